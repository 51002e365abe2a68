//! Callers whose request is there when they are accepted.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use tokio::task::JoinHandle;
use traffic_agent::addr::Caller;
use traffic_agent::outcome::Ended;
use traffic_agent::proxy::connection;
use traffic_agent::proxy::context::{AppProtocol, ConnContext};

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::app::{Expect, ScriptedApp};
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

/// A caller whose `request` is there when it is accepted, and the connection that carries it.
fn asks(fixture: &PortFixture, request: &str) -> (tokio::net::TcpStream, JoinHandle<Ended>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    caller.write_all(request.as_bytes()).unwrap();
    caller.set_nonblocking(true).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    accepted.peek(&mut [0]).unwrap();
    accepted.set_nonblocking(true).unwrap();
    let lane = ConnContext {
        caller: Caller::new(peer),
        port: Arc::clone(&fixture.port),
        hello: None,
    };
    let accepted = tokio::net::TcpStream::from_std(accepted).unwrap();
    let carried = tokio::spawn(connection::connection(accepted, lane));
    (tokio::net::TcpStream::from_std(caller).unwrap(), carried)
}

async fn ended(carried: JoinHandle<Ended>) -> Ended {
    tokio::time::timeout(WAIT_TIMEOUT, carried)
        .await
        .expect("still carried")
        .unwrap()
}

#[tokio::test]
async fn a_caller_that_leaves_while_its_first_answer_is_awaited_is_noticed() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let (mut caller, carried) = asks(&fixture, "GET / HTTP/1.1\r\n\r\n");
    let mut socket = app.accept().await;
    socket.expect("GET / HTTP/1.1\r\n\r\n").await;
    traffic_agent::io::conn::Io::abort(&mut caller);
    drop(caller);
    socket.expect_reset().await;
    assert_eq!(ended(carried).await, Ended::CallerReset);

    let (caller, carried) = asks(&fixture, "GET / HTTP/1.1\r\n\r\n");
    let mut socket = app.accept().await;
    socket.expect("GET / HTTP/1.1\r\n\r\n").await;
    drop(caller);
    socket.expect_end().await;
    drop(socket);
    assert_eq!(ended(carried).await, Ended::Clean);
}

#[tokio::test]
async fn a_last_answer_ends_the_connection_and_others_keep_it() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ] {
        let (mut caller, carried) = asks(&fixture, "GET / HTTP/1.0\r\n\r\n");
        let mut socket = app.accept().await;
        socket.expect("GET / HTTP/1.0\r\n\r\n").await;
        socket.send(answer).await;
        drop(socket);
        caller.expect(answer).await;
        caller.expect_end().await;
        drop(caller);
        assert_eq!(ended(carried).await, Ended::Clean);
    }
    let (mut caller, carried) = asks(&fixture, "GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n");
    let mut socket = app.accept().await;
    for request in [
        "GET /1 HTTP/1.1\r\n\r\n",
        "GET /2 HTTP/1.1\r\n\r\n",
        "GET /3 HTTP/1.1\r\n\r\n",
    ] {
        if request.contains("/3") {
            caller.send(request).await;
        }
        socket.expect(request).await;
        socket.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
    }
    drop(socket);
    caller.expect_end().await;
    assert_eq!(ended(carried).await, Ended::Clean);
}

#[tokio::test]
async fn an_answer_that_is_reset_behind_its_end_is_reset_for_the_caller() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let (mut caller, carried) = asks(&fixture, "GET / HTTP/1.0\r\n\r\n");
    let mut socket = app.accept().await;
    socket.expect("GET / HTTP/1.0\r\n\r\n").await;
    socket
        .send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    traffic_agent::io::conn::Io::abort(&mut socket);
    drop(socket);
    caller.expect_reset().await;
    assert_eq!(ended(carried).await, Ended::AppReset);
}

#[tokio::test]
async fn a_large_first_answer_arrives_whole_by_a_caller_that_reads_late() {
    const SIZE: usize = 8 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let body: Vec<u8> = (0..SIZE).map(|i| ((i * 31) >> 3) as u8).collect();
    let sent = body.clone();
    let app = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        assert!(socket.read(&mut [0; 100]).unwrap() > 0);
        socket
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes())
            .unwrap();
        socket.write_all(&sent).unwrap();
    });
    let fixture = PortFixture::with(addr, AppProtocol::Http1, Behaviour::Away);
    let (mut caller, carried) = asks(&fixture, "GET / HTTP/1.0\r\n\r\n");
    // Until the app is held up, because nobody takes its answer.
    let mut stalled = 0;
    let mut passed = 0;
    while stalled < 5 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let now = fixture.port.metrics.bytes_out.get();
        stalled = if now == passed && now > 0 {
            stalled + 1
        } else {
            0
        };
        passed = now;
    }
    assert!(passed < SIZE as u64);
    caller
        .expect(&format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"
        ))
        .await;
    let mut seen = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut caller, &mut seen)
        .await
        .unwrap();
    assert!(seen == body);
    drop(caller);
    assert_eq!(ended(carried).await, Ended::Clean);
    app.join().unwrap();
}
