//! Opaque connections: to the app, or whole to a workstation while a TCP-mechanism intercept takes
//! the port.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::intercept::whole_port;
use agent_testkit::port::{connection, context};
use agent_testkit::tunnels::FakeTunnels;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use traffic_agent::io::buffers::Buf;
use traffic_agent::io::conn::Conn;
use traffic_agent::outcome::Ended;
use traffic_agent::proxy::context::PortContext;
use traffic_agent::proxy::opaque;
use traffic_agent::telemetry::metrics::{FailOpen, OpaqueReason};
use traffic_agent::upstream::Transport;
use traffic_core::routing::RouteTable;
use traffic_proto::tunnel::Message;

async fn call(shared: &Arc<PortContext>) -> (TcpStream, JoinHandle<Ended>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (caller, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr().unwrap()),
        listener.accept()
    );
    let (down, from) = accepted.unwrap();
    let lane = connection(shared, from);
    let task = tokio::spawn(async move {
        opaque::carry(
            Conn::Tcp(down),
            Buf::default(),
            None,
            &lane,
            OpaqueReason::NotHttp,
        )
        .await
    });
    (caller.unwrap(), task)
}

async fn answered(app: &TcpListener, caller: &mut TcpStream) {
    let (mut app, _) = timeout(WAIT_TIMEOUT, app.accept()).await.unwrap().unwrap();
    caller.write_all(b"ping").await.unwrap();
    let mut seen = [0; 4];
    app.read_exact(&mut seen).await.unwrap();
    app.write_all(b"pong").await.unwrap();
    caller.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"pong");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = Arc::new(context(app.local_addr().unwrap(), FakeTunnels::away()));
    let (mut caller, task) = call(&shared).await;
    let (mut app, _) = app.accept().await.unwrap();
    app.write_all(b"220 hello").await.unwrap();
    let mut seen = [0; 9];
    timeout(WAIT_TIMEOUT, caller.read_exact(&mut seen))
        .await
        .unwrap()
        .unwrap();
    drop((caller, app));
    assert_eq!(task.await.unwrap(), Ended::Clean);
    assert_eq!(shared.metrics.opaque.at(OpaqueReason::NotHttp).get(), 1);
}

#[tokio::test]
async fn a_refusing_app_is_seen_as_a_reset() {
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let shared = Arc::new(context(nobody, FakeTunnels::away()));
    let (mut caller, task) = call(&shared).await;
    let error = timeout(WAIT_TIMEOUT, caller.read(&mut [0; 1]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(task.await.unwrap(), Ended::AppRefused);
}

#[tokio::test]
async fn a_tcp_intercept_takes_new_connections_and_leaves_old_ones_where_they_are() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (workstation, mut opened) = FakeTunnels::scripted();
    let shared = Arc::new(context(app.local_addr().unwrap(), workstation));
    let (mut old, _old_task) = call(&shared).await;
    let (mut old_app, _) = app.accept().await.unwrap();

    shared.routes.store(whole_port());
    let (mut new, new_task) = call(&shared).await;
    let from = new.local_addr().unwrap();
    new.write_all(b"to the workstation").await.unwrap();
    let mut far = timeout(WAIT_TIMEOUT, opened.recv()).await.unwrap().unwrap();
    assert_eq!((far.caller.0, far.transport), (from, Transport::Tcp));
    // The bytes come although no DialOk was said.
    let sent = Message::decode(far.from_agent.recv().await.unwrap().payload()).unwrap();
    assert_eq!(
        sent,
        Message::Normal(Bytes::from_static(b"to the workstation"))
    );

    shared.routes.store(RouteTable::default());
    for (caller, word) in [(&mut old, b"old"), (&mut new, b"new")] {
        caller.write_all(word).await.unwrap();
    }
    let mut seen = [0; 3];
    old_app.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"old");
    let sent = Message::decode(far.from_agent.recv().await.unwrap().payload()).unwrap();
    assert_eq!(sent, Message::Normal(Bytes::from_static(b"new")));
    far.to_agent
        .send(Ok(Message::DialOk.encode()))
        .await
        .unwrap();
    far.to_agent
        .send(Ok(Message::Normal(Bytes::from_static(b"bye")).encode()))
        .await
        .unwrap();
    far.to_agent
        .send(Ok(Message::CloseSend.encode()))
        .await
        .unwrap();
    let mut all = Vec::new();
    timeout(WAIT_TIMEOUT, new.read_to_end(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, b"bye");
    drop(new);
    assert_eq!(
        timeout(WAIT_TIMEOUT, new_task).await.unwrap().unwrap(),
        Ended::Clean
    );
    assert_eq!(
        shared.metrics.opaque.at(OpaqueReason::TcpIntercept).get(),
        1
    );
    assert_eq!(shared.metrics.tunnels.get(), 1);
}

#[tokio::test]
async fn without_a_tunnel_the_app_answers_and_it_is_counted() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shared = Arc::new(context(app.local_addr().unwrap(), FakeTunnels::away()));
    shared.routes.store(whole_port());
    let (mut caller, _task) = call(&shared).await;
    answered(&app, &mut caller).await;
    assert_eq!(shared.metrics.fail_open.at(FailOpen::NoTunnel).get(), 1);
    assert_eq!(shared.metrics.tunnel_failures.get(), 1);
}

#[tokio::test]
async fn a_rejected_dial_resets_the_caller() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (workstation, mut opened) = FakeTunnels::scripted();
    let shared = Arc::new(context(app.local_addr().unwrap(), workstation));
    shared.routes.store(whole_port());
    let (mut caller, task) = call(&shared).await;
    let far = timeout(WAIT_TIMEOUT, opened.recv()).await.unwrap().unwrap();
    far.to_agent
        .send(Ok(Message::DialReject.encode()))
        .await
        .unwrap();
    let error = timeout(WAIT_TIMEOUT, caller.read(&mut [0; 1]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(task.await.unwrap(), Ended::TunnelLost);
    assert_eq!(shared.metrics.tunnel_failures.get(), 1);
}
