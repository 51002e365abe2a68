//! The client's session has a key where the manager takes keys, and works as ever where it does
//! not.

use std::net::SocketAddr;
use std::process::Command;

use harness::apps::App;
use harness::process::Process;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use traffic_proto::manager::{InterceptDispositionType as Disposition, SessionInfo};
use traffic_proto::session_key::KEY;

use crate::fixture::Manager;

/// Passes calls on to a manager, which so looks like one of others: it is told of no key.
async fn without_keys(manager: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let far = TcpStream::connect(manager).await.unwrap();
            let handshake =
                client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(far)).await;
            let (calls, connection) = handshake.unwrap();
            tokio::spawn(connection);
            let pass = service_fn(move |mut request: Request<Incoming>| {
                request.headers_mut().remove(KEY);
                calls.clone().send_request(request)
            });
            let serving = server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serving.serve_connection(TokioIo::new(near), pass));
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_manager_without_keys_all_is_as_ever() {
    let mut manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    manager.address = without_keys(manager.address).await;
    let client = manager.create(app.address(), &[]);
    let info = agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    let id = info.client_session.unwrap().session_id;
    assert!(!id.starts_with("key-"), "{id}");
    let leave = manager.client(&["leave", "one", "--client=dev@laptop"]);
    assert!(leave.exit().success());
    client.line("state=REMOVED");
    assert!(client.exit().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_the_id_alone_cannot_act_for_the_session() {
    let manager = Manager::start().await;
    let mut agent = manager.agent().await;
    let app = App::start("local");
    let client = manager.create(app.address(), &[]);
    let info = agent.review(Disposition::Active, "").await;
    client.line("state=ACTIVE");
    let session: SessionInfo = info.client_session.unwrap();
    assert!(session.session_id.starts_with("key-"), "{session:?}");
    let mut stranger = manager.connect().await;
    let watch = stranger.watch_dial(session.clone()).await.map(drop);
    assert_eq!(watch.unwrap_err().code(), Code::Unauthenticated);
    let depart = stranger.depart(session).await;
    assert_eq!(depart.unwrap_err().code(), Code::Unauthenticated);
    assert!(client.is_running());
    // Another user of this machine, or another machine, where nothing is known of the process.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_intercept"));
    command
        .args(["leave", "one", "--client=dev@laptop", "--manager"])
        .arg(manager.address.to_string())
        .env("XDG_RUNTIME_DIR", elsewhere.path());
    let leave = Process::start("intercept leave", &mut command);
    leave.line("run intercept leave on the machine where the intercept runs");
    assert_eq!(leave.exit().code(), Some(1));
    assert!(client.is_running());
    let leave = manager.client(&["leave", "one", "--client=dev@laptop"]);
    assert!(leave.exit().success());
    client.line("state=REMOVED");
}
