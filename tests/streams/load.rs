//! Callers at full work: old HTTP/1 connections, HTTP/2 connections with many streams, gRPC
//! channels. Every answer is judged, and nothing is asked twice unless the client's own library
//! says that it was never sent.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::app::Raw;
use crate::rules::{Asked, Expected, Rules};

/// Streams of an HTTP/2 connection at a time.
const STREAMS: u64 = 20;
/// Calls of a gRPC channel at a time.
const CALLS: u64 = 8;

/// Parameters of callers: address, rules and results.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) address: SocketAddr,
    pub(crate) rules: Arc<Rules>,
    pub(crate) tally: Arc<Tally>,
}

/// Results of the requests of one kind of callers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) stop: AtomicBool,
    pub(crate) by_app: AtomicU64,
    pub(crate) by_workstation: AtomicU64,
    pub(crate) connections: AtomicU64,
    /// Given back by the client's library unsent, and sent again.
    pub(crate) unsent: AtomicU64,
    pub(crate) wrong: Mutex<Vec<String>>,
    /// The app's connections that answered.
    pub(crate) app_connections: Mutex<BTreeSet<String>>,
}

/// What is seen of an answer.
pub(crate) struct Answer {
    pub(crate) by: String,
    pub(crate) connection: String,
    pub(crate) size: usize,
}

impl Answer {
    fn of(headers: &http::HeaderMap, size: usize) -> Self {
        let text = |name| {
            let value = headers.get(name);
            value.map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        Self {
            by: text("x-answered-by"),
            connection: text("x-connection"),
            size,
        }
    }
}

impl Tally {
    pub(crate) fn answered(&self) -> u64 {
        self.by_app.load(Ordering::Relaxed) + self.by_workstation.load(Ordering::Relaxed)
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn wrong(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }
}

impl Work {
    /// Takes an answer, or what came instead; false ends the caller's work.
    pub(crate) fn judge(
        &self,
        kind: &str,
        asked: &Asked,
        answer: Result<Answer, String>,
        sent: usize,
    ) -> bool {
        let tally = &self.tally;
        let Answer {
            by,
            connection,
            size: got,
        } = match answer {
            Ok(answer) => answer,
            Err(error) => {
                tally.wrong(format!("{kind} {asked:?} failed: {error}"));
                return false;
            }
        };
        let expected = self.rules.expected(asked);
        let right = match by.as_str() {
            "app" => expected != Expected::Workstation,
            "workstation" => expected != Expected::App,
            _ => false,
        };
        if !right || got != sent {
            tally.wrong(format!(
                "{kind} {asked:?}: {got} of {sent} bytes by {by:?}, not {expected:?}"
            ));
        }
        let answered = if by == "app" {
            tally.app_connections.lock().unwrap().insert(connection);
            &tally.by_app
        } else {
            &tally.by_workstation
        };
        answered.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Runs one HTTP/1 connection for the whole time.
    pub(crate) async fn http1(self, mut number: u64) {
        let mut socket = self.connect().await;
        while !self.tally.stopped() {
            number += 1;
            let asked = self.rules.ask(number);
            let body = "x".repeat(length(number));
            let exchange = timeout(
                harness::wait::WAIT_TIMEOUT,
                exchange(&mut socket, &asked, &body),
            );
            let answer = exchange
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            if !self.judge(
                "HTTP/1",
                &asked,
                answer.map_err(|e| e.to_string()),
                body.len(),
            ) {
                return;
            }
        }
    }

    async fn connect(&self) -> BufReader<TcpStream> {
        self.tally.connections.fetch_add(1, Ordering::Relaxed);
        let socket = TcpStream::connect(self.address).await.unwrap();
        socket.set_nodelay(true).unwrap();
        BufReader::new(socket)
    }

    /// An HTTP/2 connection, and another as soon as the one before has been told to leave.
    pub(crate) async fn http2(self, number: u64) {
        while !self.tally.stopped() {
            let socket = self.connect().await.into_inner();
            let settings = http2::Builder::new(TokioExecutor::new());
            let (send, connection) = settings
                .handshake::<_, Full<Bytes>>(TokioIo::new(socket))
                .await
                .unwrap();
            // How the connection ends is seen by its streams.
            tokio::spawn(connection);
            let lanes = (0..STREAMS).map(|lane| self.lane(send.clone(), number + lane));
            futures_util::future::join_all(lanes).await;
        }
    }

    /// Sends requests one after the other until the connection takes no more.
    async fn lane(&self, mut send: http2::SendRequest<Full<Bytes>>, mut number: u64) {
        while !self.tally.stopped() {
            number += 1;
            if send.ready().await.is_err() {
                return;
            }
            let asked = self.rules.ask(number);
            let sent = length(number);
            let mut request = Request::post(format!("http://app.example/{number}"));
            if let Some(dev) = &asked.dev {
                request = request.header("x-dev", dev);
            }
            let request = request.body(Full::new(vec![b'x'; sent].into())).unwrap();
            let answer =
                match timeout(harness::wait::WAIT_TIMEOUT, send.try_send_request(request)).await {
                    Ok(Ok(response)) => {
                        let (head, body) = response.into_parts();
                        let body = body.collect().await;
                        body.map(|body| Answer::of(&head.headers, body.to_bytes().len()))
                            .map_err(|e| format!("{e:?}"))
                    }
                    // The library gives back what it has not sent, because its connection was told
                    // to leave.
                    Ok(Err(mut error)) => match error.take_message() {
                        Some(_) => return,
                        None if is_unprocessed(error.error()) => {
                            self.tally.unsent.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        None => Err(format!("{:?}", error.into_error())),
                    },
                    Err(late) => Err(late.to_string()),
                };
            if !self.judge("HTTP/2", &asked, answer, sent) {
                return;
            }
        }
    }

    /// A gRPC channel with some calls at a time.
    pub(crate) async fn grpc(self, number: u64) {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        self.tally.connections.fetch_add(1, Ordering::Relaxed);
        let calls = (0..CALLS)
            .map(|call| self.calls(tonic::client::Grpc::new(channel.clone()), number + call));
        futures_util::future::join_all(calls).await;
    }

    async fn calls(&self, mut grpc: tonic::client::Grpc<Channel>, mut number: u64) {
        while !self.tally.stopped() {
            number += 1;
            let asked = self.rules.ask(number);
            let sent = length(number);
            let answer = loop {
                let called =
                    timeout(harness::wait::WAIT_TIMEOUT, call(&mut grpc, &asked, sent)).await;
                match called.unwrap_or_else(|late| Err(Status::deadline_exceeded(late.to_string())))
                {
                    Ok(answer) => break Ok(answer),
                    // What never left the client is sent again, as gRPC asks of its clients
                    // ("transparent retries"); this one leaves it to its user.
                    Err(status) if is_unsent(&status) => {
                        self.tally.unsent.fetch_add(1, Ordering::Relaxed)
                    }
                    Err(status) => break Err(format!("{status:?}")),
                };
            };
            self.judge("gRPC", &asked, answer, sent);
        }
    }
}

/// Sends a unary call; returns the server's name and the number of bytes.
async fn call(
    grpc: &mut tonic::client::Grpc<Channel>,
    asked: &Asked,
    sent: usize,
) -> Result<Answer, Status> {
    let mut request = tonic::Request::new(Bytes::from(vec![b'x'; sent]));
    if let Some(dev) = &asked.dev {
        request.metadata_mut().insert("x-dev", dev.parse().unwrap());
    }
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    let response = grpc
        .unary(request, "/test.Echo/Unary".parse().unwrap(), Raw)
        .await?;
    let size = response.get_ref().len();
    Ok(Answer::of(&response.into_parts().0.into_headers(), size))
}

/// Returns true if the library gave the request up before sending any of it.
fn is_unsent(status: &Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = status.source();
    while let Some(error) = cause {
        let hyper = error.downcast_ref::<hyper::Error>();
        if hyper.is_some_and(|error| error.is_canceled() || is_unprocessed(error)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Returns true if the connection was closing before the request: the library reports that also for
/// requests it never sent, and both may be repeated (RFC 9113 section 6.8).
fn is_unprocessed(error: &hyper::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// Mostly small, sometimes not.
pub(crate) fn length(number: u64) -> usize {
    if number % 50 == 7 {
        40_000
    } else {
        usize::try_from(number % 100).unwrap()
    }
}

/// Sends one HTTP/1 request; returns the server's name and the number of bytes.
async fn exchange(
    socket: &mut BufReader<TcpStream>,
    asked: &Asked,
    body: &str,
) -> io::Result<Answer> {
    let dev = asked
        .dev
        .as_ref()
        .map(|dev| format!("X-Dev: {dev}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: app.example\r\n{dev}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await?;
    let (mut by, mut connection, mut length) = (String::new(), String::new(), 0);
    let mut line = String::new();
    loop {
        line.clear();
        if socket.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            if line == "\r\n" {
                break;
            }
            continue;
        };
        match name {
            "x-answered-by" => by = value.trim().to_owned(),
            "x-connection" => connection = value.trim().to_owned(),
            "content-length" => {
                length = value
                    .trim()
                    .parse()
                    .map_err(|_| io::ErrorKind::InvalidData)?
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    Ok(Answer {
        by,
        connection,
        size: length,
    })
}
