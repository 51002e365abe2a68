//! Calls with garbage to every method of a service.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::client::SendRequest;
use harness::random::Random;
use http::Request;
use tokio::net::TcpStream;
use traffic_proto::manager::ClientInfo;
use traffic_proto::manager::manager_client::ManagerClient;

use crate::garbage;

/// Calls at a time.
const CALLERS: usize = 8;
/// Calls on one connection.
const PER_CONNECTION: usize = 40;
/// Time a caller listens to an answer.
const LISTEN_TIMEOUT: Duration = Duration::from_millis(200);

/// Returns the paths of a service's methods, from its schema.
fn methods(service: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join(format!("proto/proto/{service}.proto"));
    let schema = std::fs::read_to_string(file).unwrap();
    let word = |line: &str, before: &str| {
        let rest = line.trim().strip_prefix(before)?;
        let end = rest.find(|c: char| !c.is_alphanumeric())?;
        Some(rest[..end].to_owned())
    };
    let name = schema.lines().find_map(|line| word(line, "service "));
    let name = name.expect("a service");
    let calls = schema.lines().filter_map(|line| word(line, "rpc "));
    let paths: Vec<_> = calls
        .map(|call| format!("/telepresence.{service}.{name}/{call}"))
        .collect();
    assert!(paths.len() >= 4, "{paths:?}");
    paths
}

/// Makes so many calls, from several connections.
pub(crate) fn make(address: SocketAddr, service: &str, calls: usize, mut random: Random) {
    let methods = methods(service);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let session = if service == "manager" {
            arrive(address).await
        } else {
            garbage::SESSION.to_owned()
        };
        let callers = (0..CALLERS).map(|_| {
            let caller = Caller {
                address,
                methods: &methods,
                session: &session,
                random: Random::new(random.number()),
            };
            caller.run(calls / CALLERS)
        });
        join_all(callers).await;
    });
}

/// Begins a session in good order, so that calls get further than to its check.
async fn arrive(address: SocketAddr) -> String {
    let mut manager = ManagerClient::connect(format!("http://{address}"))
        .await
        .unwrap();
    let client = ClientInfo {
        name: "hostile@laptop".to_owned(),
        install_id: "hostile".to_owned(),
        product: "telepresence".to_owned(),
        version: "v2.27.5".to_owned(),
        ..ClientInfo::default()
    };
    let session = manager.arrive_as_client(client).await.unwrap();
    session.into_inner().session_id
}

struct Caller<'a> {
    address: SocketAddr,
    methods: &'a [String],
    session: &'a str,
    random: Random,
}

impl Caller<'_> {
    async fn run(mut self, calls: usize) {
        for _ in 0..calls.div_ceil(PER_CONNECTION) {
            let socket = TcpStream::connect(self.address).await.unwrap();
            let (send, connection) = h2::client::handshake(socket).await.unwrap();
            let driving = tokio::spawn(connection);
            for _ in 0..PER_CONNECTION {
                // A connection that was ended is one way to answer.
                if self.call(&send).await.is_err() {
                    break;
                }
            }
            driving.abort();
        }
    }

    async fn call(&mut self, send: &SendRequest<Bytes>) -> Result<(), h2::Error> {
        let mut send = send.clone().ready().await?;
        let method = self.random.of(self.methods);
        let request = Request::post(format!("http://peer.example{method}"))
            .header(
                "content-type",
                *self.random.of(&["application/grpc", "text/html"]),
            )
            .header("te", "trailers");
        let ends_at_once = self.random.once_in(10);
        let request = request.body(()).unwrap();
        let (answer, mut stream) = send.send_request(request, ends_at_once)?;
        if !ends_at_once {
            let session = self.session;
            let valid = |random: &mut Random| {
                let message = garbage::request(random);
                replaced(message, garbage::SESSION.as_bytes(), session.as_bytes())
            };
            let body = garbage::body(&mut self.random, &valid);
            let way = self.random.below(4);
            stream.send_data(body, way == 0)?;
            match way {
                1 => stream.send_reset(h2::Reason::CANCEL),
                2 => stream.send_trailers(http::HeaderMap::new())?,
                _ => {}
            }
        }
        let listening = async {
            let mut body = answer.await?.into_body();
            while let Some(data) = body.data().await {
                body.flow_control().release_capacity(data?.len())?;
            }
            Ok::<_, h2::Error>(())
        };
        // Refused calls are answered at once; watches go on until the caller drops them.
        let _ = tokio::time::timeout(LISTEN_TIMEOUT, listening).await;
        Ok(())
    }
}

/// Puts the id of a session that exists in the place of the other, which is as long.
fn replaced(mut message: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    let at = message.windows(old.len()).position(|window| window == old);
    if let Some(at) = at.filter(|_| old.len() == new.len()) {
        message[at..at + old.len()].copy_from_slice(new);
    }
    message
}
