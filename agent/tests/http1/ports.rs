//! Ports: taken ones are noticed, our own connections are not carried in a circle, descriptors run
//! out.

use std::sync::Arc;

use traffic_agent::proxy::listener::bind::{BindError, PortSpec};
use traffic_agent::proxy::listener::workers::Ports;
use traffic_agent::upstream::OpenTunnel;

use agent_testkit::app::{Expect, ScriptedApp};
use agent_testkit::eventually;
use agent_testkit::port::{PortFixture, context};
use agent_testkit::tunnels::FakeTunnels;

fn spec(port: u16) -> PortSpec {
    PortSpec {
        port,
        owner: "container web port 8080/TCP".to_owned(),
        addr: None,
        probes: false,
    }
}

#[tokio::test]
async fn a_port_that_somebody_has_is_named_with_its_owner_and_the_remedy() {
    let app = ScriptedApp::listen().await;
    let tunnels = FakeTunnels::away() as Arc<dyn OpenTunnel>;
    let other = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = other.local_addr().unwrap().port();
    for workers in [1, 2] {
        let shared = Arc::new(context(app.addr(), Arc::clone(&tunnels)));
        let error = Ports::bind(vec![(spec(port), shared)], workers).unwrap_err();
        assert!(matches!(error, BindError::Taken { .. }), "{error:?}");
        let text = error.to_string();
        for part in [
            port.to_string().as_str(),
            "container web port 8080/TCP",
            "agentPort",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    drop(other);

    // Another instance of the agent shares its ports among its workers, and yet not with us.
    let first = Ports::bind(
        vec![(spec(0), Arc::new(context(app.addr(), Arc::clone(&tunnels))))],
        2,
    )
    .unwrap();
    let taken = first.addrs()[0].port();
    for workers in [1, 2] {
        let shared = Arc::new(context(app.addr(), Arc::clone(&tunnels)));
        assert!(matches!(
            Ports::bind(vec![(spec(taken), shared)], workers),
            Err(BindError::Taken { .. })
        ));
    }
}

#[tokio::test]
async fn one_listener_serves_both_families_and_callers_of_ipv4_are_known_as_such() {
    let app = ScriptedApp::listen().await;
    let shared = Arc::new(context(app.addr(), FakeTunnels::away()));
    let ports = Ports::bind(vec![(spec(0), Arc::clone(&shared))], 2).unwrap();
    let port = ports.addrs()[0].port();
    let running = ports.run(&shared.drain).unwrap();
    for address in ["127.0.0.1", "::1"] {
        let mut caller = tokio::net::TcpStream::connect((address, port))
            .await
            .unwrap();
        caller.send("GET / HTTP/1.1\r\n\r\n").await;
        let mut socket = app.accept().await;
        socket.expect("GET / HTTP/1.1\r\n\r\n").await;
        socket.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
    }
    shared.drain.start();
    eventually("both closed", || shared.metrics.active.get() == 0).await;
    assert!(running.join());
}

#[tokio::test]
async fn a_dial_that_comes_back_to_us_is_cut_and_counted() {
    // The agent's own port as the app's address: what a redirect that spares nobody makes of it.
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let shared = Arc::new(context(addr, FakeTunnels::away()));
    let spec = PortSpec {
        addr: Some(addr.ip()),
        ..spec(addr.port())
    };
    let running = Ports::bind(vec![(spec, Arc::clone(&shared))], 1)
        .unwrap()
        .run(&shared.drain)
        .unwrap();
    // The reset may be there before the connect has been seen to succeed.
    match tokio::net::TcpStream::connect(addr).await {
        Ok(mut caller) => caller.expect_reset().await,
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert_eq!(shared.metrics.self_connections.get(), 1);
    assert_eq!(shared.metrics.connections.get(), 2);
    shared.drain.start();
    assert!(running.join());
}

#[tokio::test]
async fn a_reader_that_stalls_costs_a_buffer_and_slows_nobody_else() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut stalled = fixture.connect().await;
    stalled.send("GET /endless HTTP/1.1\r\n\r\n").await;
    let mut endless = app.accept().await;
    endless.expect("GET /endless HTTP/1.1\r\n\r\n").await;
    endless
        .send("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        .await;
    let chunk = vec![b'x'; 1 << 20];
    let mut taken = 0;
    // Until nothing more is taken for a second: sockets and one buffer are full.
    while let Ok(n) =
        tokio::time::timeout(std::time::Duration::from_secs(1), endless.write(&chunk)).await
    {
        taken += n.unwrap();
    }
    assert!(
        taken < 64 << 20,
        "{taken} bytes were taken for a reader that reads nothing"
    );

    let mut other = fixture.connect().await;
    let mut socket = app.accept().await;
    for _ in 0..100 {
        other.send("GET / HTTP/1.1\r\n\r\n").await;
        socket.expect("GET / HTTP/1.1\r\n\r\n").await;
        socket.send("HTTP/1.1 204 x\r\n\r\n").await;
        other.expect("HTTP/1.1 204 x\r\n\r\n").await;
    }
    // The stalled one goes on where it was as soon as it reads.
    let mut buf = vec![0; 1 << 16];
    let mut seen = 0;
    while seen < taken {
        seen += stalled.read(&mut buf).await.unwrap();
    }
}
