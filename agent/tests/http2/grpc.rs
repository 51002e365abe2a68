//! gRPC in all four call kinds through tonic on both ends: what a caller sees is the same directly,
//! relayed, with an intercept that does not match, and matched.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService, StreamingService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::rig::Rig;
use agent_testkit::WAIT_TIMEOUT;

/// Messages are plain bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// Tells the test when a call that hangs has been dropped.
struct Dropped(mpsc::UnboundedSender<&'static str>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send("cancelled");
    }
}

#[derive(Clone)]
struct Service {
    tell: mpsc::UnboundedSender<&'static str>,
}

impl NamedService for Service {
    const NAME: &'static str = "test.Echo";
}

#[derive(Clone)]
struct Method(Service, String);

impl UnaryService<Bytes> for Method {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let Self(service, path) = self.clone();
        Box::pin(async move {
            match path.rsplit('/').next().unwrap() {
                "Fail" => {
                    let mut status = Status::with_details(
                        Code::PermissionDenied,
                        "not ü, 50%",
                        "details".into(),
                    );
                    status
                        .metadata_mut()
                        .insert("x-why", "because".parse().unwrap());
                    Err(status)
                }
                "Hang" => {
                    let _dropped = Dropped(service.tell.clone());
                    let _ = service.tell.send("hanging");
                    std::future::pending().await
                }
                _ => {
                    let mut response = Response::new(request.get_ref().clone());
                    copied(request.metadata(), response.metadata_mut());
                    Ok(response)
                }
            }
        })
    }
}

fn copied(from: &MetadataMap, to: &mut MetadataMap) {
    for value in from.get_all("x-many") {
        to.append("x-many", value.clone());
    }
    if let Some(binary) = from.get_bin("x-bytes-bin") {
        to.insert_bin("x-bytes-bin", binary.clone());
    }
}

impl StreamingService<Bytes> for Method {
    type Response = Bytes;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let Self(service, path) = self.clone();
        Box::pin(async move {
            let mut from = request.into_inner();
            let (tx, rx) = mpsc::channel(4);
            tokio::spawn(async move {
                let mut total = 0;
                loop {
                    let message = match from.message().await {
                        Ok(Some(message)) => message,
                        Ok(None) => break,
                        Err(_) => {
                            let _ = service.tell.send("cancelled");
                            return;
                        }
                    };
                    total += message.len();
                    if path.ends_with("Bidi") && tx.send(Ok(message)).await.is_err() {
                        return;
                    }
                    if path.ends_with("Break") && total > 100 {
                        let _ = tx.send(Err(Status::data_loss("broke off"))).await;
                        return;
                    }
                }
                if path.ends_with("Sum") {
                    let _ = tx.send(Ok(Bytes::from(total.to_string()))).await;
                }
                if path.ends_with("Forever") {
                    while tx.send(Ok(Bytes::from_static(b"still"))).await.is_ok() {}
                    let _ = service.tell.send("cancelled");
                }
                if path.ends_with("Count") {
                    for n in 0..100 {
                        let _ = tx.send(Ok(Bytes::from(n.to_string()))).await;
                    }
                }
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(rx)) as Messages))
        })
    }
}

impl tonic::codegen::Service<http::Request<Body>> for Service {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.clone(), request.uri().path().to_owned());
        Box::pin(async move {
            let mut grpc = Grpc::new(Raw);
            Ok(match method.1.rsplit('/').next().unwrap() {
                "Unary" | "Fail" | "Hang" => grpc.unary(method, request).await,
                _ => grpc.streaming(method, request).await,
            })
        })
    }
}

struct Backend {
    addr: SocketAddr,
    told: mpsc::UnboundedReceiver<&'static str>,
}

impl Backend {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell, told) = mpsc::unbounded_channel();
        tokio::spawn(
            Server::builder()
                .add_service(Service { tell })
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { addr, told }
    }

    async fn tells(&mut self, what: &str) {
        while timeout(WAIT_TIMEOUT, self.told.recv())
            .await
            .unwrap_or_else(|_| panic!("never {what}"))
            .unwrap()
            != what
        {}
    }
}

/// A caller's channel, and whether its calls carry the header of the intercept.
struct Client {
    grpc: tonic::client::Grpc<Channel>,
    dev: bool,
}

impl Client {
    async fn connect(addr: SocketAddr, dev: bool) -> Self {
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            grpc: tonic::client::Grpc::new(channel),
            dev,
        }
    }

    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if self.dev {
            metadata.insert("x-dev", "a".parse().unwrap());
        }
        metadata.append("x-many", "one".parse().unwrap());
        metadata.append("x-many", "two".parse().unwrap());
        metadata.insert_bin("x-bytes-bin", MetadataValue::from_bytes(&[0, 255, 7]));
        request
    }

    async fn unary(
        &self,
        method: &str,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready()
            .await
            .map_err(|e| Status::unknown(e.to_string()))?;
        grpc.unary(request, path(method), Raw).await
    }

    async fn streaming(
        &self,
        method: &str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Response<Streaming<Bytes>>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready()
            .await
            .map_err(|e| Status::unknown(e.to_string()))?;
        grpc.streaming(self.with(messages), path(method), Raw).await
    }

    /// Everything a caller can see of a streaming call.
    async fn transcript(&self, method: &str, messages: Vec<Bytes>) -> String {
        match timeout(
            WAIT_TIMEOUT,
            self.streaming(method, tokio_stream::iter(messages)),
        )
        .await
        .expect("a head")
        {
            Err(status) => format!("refused {}", shown(&status)),
            Ok(response) => {
                let (metadata, mut stream, _) = response.into_parts();
                let mut text = format!("{:?}", without_date(metadata));
                loop {
                    match timeout(WAIT_TIMEOUT, stream.message())
                        .await
                        .expect("a message")
                    {
                        Ok(Some(message)) => text += &format!(" {message:?}"),
                        Ok(None) => break text + &format!(" {:?}", stream.trailers().await),
                        Err(status) => break text + &shown(&status),
                    }
                }
            }
        }
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Echo/{method}").parse().unwrap()
}

fn without_date(mut metadata: MetadataMap) -> MetadataMap {
    metadata.remove("date");
    metadata
}

fn shown(status: &Status) -> String {
    let metadata = without_date(status.metadata().clone());
    format!(
        "{:?} {:?} {:?} {metadata:?}",
        status.code(),
        status.message(),
        status.details()
    )
}

/// What a caller sees of one call of every kind.
async fn everything(client: &Client) -> Vec<String> {
    let mut seen = Vec::new();
    let response = client
        .unary("Unary", client.with(Bytes::from(vec![7; 100_000])))
        .await
        .unwrap();
    assert_eq!(response.get_ref().len(), 100_000);
    seen.push(format!("{:?}", without_date(response.metadata().clone())));
    seen.push(shown(
        &client
            .unary("Fail", client.with(Bytes::from_static(b"x")))
            .await
            .unwrap_err(),
    ));
    let mut late = client.with(Bytes::new());
    late.set_timeout(Duration::from_millis(100));
    seen.push(format!(
        "{:?}",
        client.unary("Hang", late).await.unwrap_err().code()
    ));
    seen.push(client.transcript("Count", vec![]).await);
    seen.push(
        client
            .transcript("Sum", vec![Bytes::from_static(b"abc"); 1_000])
            .await,
    );
    seen.push(
        client
            .transcript(
                "Bidi",
                (0..1_000).map(|n| Bytes::from(vec![1; n])).collect(),
            )
            .await,
    );
    seen.push(
        client
            .transcript("Break", vec![Bytes::from_static(b"abc"); 100])
            .await,
    );
    seen.push(
        client
            .transcript("Bidi", vec![Bytes::from(vec![9; 3_000_000])])
            .await,
    );
    seen
}

#[tokio::test]
async fn all_kinds_of_calls_look_the_same_directly_relayed_terminated_and_matched() {
    let (app, workstation) = (Backend::start().await, Backend::start().await);
    let direct = everything(&Client::connect(app.addr, true).await).await;
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    assert_eq!(
        everything(&Client::connect(rig.addr, true).await).await,
        direct,
        "relayed"
    );
    assert!(rig.metrics().http2_relayed.get() >= direct.len() as u64);
    rig.intercept();
    assert_eq!(
        everything(&Client::connect(rig.addr, false).await).await,
        direct,
        "active, not matched"
    );
    assert_eq!(rig.metrics().tunnels.get(), 0);
    assert_eq!(
        everything(&Client::connect(rig.addr, true).await).await,
        direct,
        "matched"
    );
    assert_eq!(rig.metrics().tunnels.get(), 1);
}

#[tokio::test]
async fn a_cancelled_call_ends_at_the_server_at_once() {
    let (mut app, mut workstation) = (Backend::start().await, Backend::start().await);
    for (active, dev) in [(false, true), (true, false), (true, true)] {
        let rig = Rig::new(app.addr, Some(workstation.addr)).await;
        if active {
            rig.intercept();
        }
        let server = if active && dev {
            &mut workstation
        } else {
            &mut app
        };
        let client = Client::connect(rig.addr, dev).await;
        let mut took = Vec::new();
        for _ in 0..30 {
            tokio::select! {
                _ = client.unary("Hang", client.with(Bytes::new())) => panic!("it hangs"),
                () = server.tells("hanging") => {}
            }
            // The call was dropped.
            let cancelled = Instant::now();
            server.tells("cancelled").await;
            took.push(cancelled.elapsed());
        }
        took.sort();
        eprintln!(
            "cancel, intercept {active}, matched {}: median {:?}, most {:?}",
            active && dev,
            took[15],
            took[29]
        );
        // A tenth of a second is the promise; one that is not kept at all takes for ever.
        assert!(took[15] < Duration::from_secs(1), "{took:?}");

        let mut answers = client
            .streaming("Forever", tokio_stream::empty())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            timeout(WAIT_TIMEOUT, answers.message())
                .await
                .expect("a message")
                .unwrap()
                .unwrap(),
            "still"
        );
        drop(answers);
        server.tells("cancelled").await;
    }
}

#[tokio::test]
async fn a_call_past_its_deadline_ends_at_the_server() {
    let (mut app, mut workstation) = (Backend::start().await, Backend::start().await);
    for (active, dev) in [(false, true), (true, false), (true, true)] {
        let rig = Rig::new(app.addr, Some(workstation.addr)).await;
        if active {
            rig.intercept();
        }
        let server = if active && dev {
            &mut workstation
        } else {
            &mut app
        };
        let client = Client::connect(rig.addr, dev).await;
        let mut late = client.with(Bytes::new());
        late.set_timeout(Duration::from_millis(300));
        let call = tokio::time::timeout(WAIT_TIMEOUT, client.unary("Hang", late));
        let (status, ()) = tokio::join!(call, server.tells("cancelled"));
        let code = status.expect("an end").unwrap_err().code();
        assert!(
            matches!(code, Code::Cancelled | Code::DeadlineExceeded),
            "{code:?}"
        );
    }
}

#[tokio::test]
async fn a_thousand_concurrent_calls_are_all_answered() {
    let (app, workstation) = (Backend::start().await, Backend::start().await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    for active in [false, true] {
        if active {
            rig.intercept();
        }
        for dev in [false, true] {
            let client = Client::connect(rig.addr, dev).await;
            let calls = (0..1_000).map(|n| {
                let client = &client;
                async move {
                    let message = Bytes::from(format!("call {n}"));
                    let answer = client
                        .unary("Unary", client.with(message.clone()))
                        .await
                        .unwrap();
                    assert_eq!(answer.get_ref(), &message);
                }
            });
            timeout(WAIT_TIMEOUT, futures_util::future::join_all(calls))
                .await
                .expect("all answers");
        }
    }
}

#[tokio::test]
async fn channels_at_work_lose_no_call_when_intercepts_come_and_go() {
    let (app, workstation) = (Backend::start().await, Backend::start().await);
    let rig = Rig::new(app.addr, Some(workstation.addr)).await;
    let (over_tx, over) = tokio::sync::watch::channel(false);
    let mut workers = Vec::new();
    for n in 0..8 {
        let (addr, over) = (rig.addr, over.clone());
        workers.push(tokio::spawn(async move {
            let (mut calls, mut failures) = (0u32, Vec::new());
            while !*over.borrow() {
                // A new channel now and then begins in relay mode again.
                let client = Client::connect(addr, n % 2 == 0).await;
                for _ in 0..100 {
                    calls += 1;
                    if let Err(status) = client
                        .unary("Unary", client.with(Bytes::from_static(b"m")))
                        .await
                    {
                        failures.push(shown(&status));
                    }
                }
            }
            (calls, failures)
        }));
    }
    for n in 0..40 {
        if n % 2 == 0 {
            rig.intercept()
        } else {
            rig.clear()
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    over_tx.send(true).unwrap();
    let mut all = 0;
    for worker in workers {
        let (calls, failures) = timeout(WAIT_TIMEOUT, worker)
            .await
            .expect("workers end")
            .unwrap();
        all += calls;
        assert!(
            failures.is_empty(),
            "{} of {calls} failed, the first: {}",
            failures.len(),
            failures[0]
        );
    }
    assert!(all > 100, "{all}");
}
