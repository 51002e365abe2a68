//! Single exchanges with the app: order, early answers, ends, upgrades, refusals.

use tokio::io::AsyncWriteExt;
use traffic_agent::outcome::Ended;
use traffic_agent::proxy::context::AppProtocol;
use traffic_agent::telemetry::metrics::{Limit, OpaqueReason, Protocol};

use agent_testkit::app::{Expect, ScriptedApp};
use agent_testkit::eventually;
use agent_testkit::port::PortFixture;
use agent_testkit::tunnels::Behaviour;

#[tokio::test]
async fn an_interim_answer_comes_before_the_body_it_asks_for() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let head = "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    caller.send(head).await;
    let mut app = app.accept().await;
    app.expect(head).await;
    app.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    caller.expect("HTTP/1.1 100 Continue\r\n\r\n").await;
    caller.send("hello").await;
    app.expect("hello").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await;
    caller.send("GET /2 HTTP/1.1\r\n\r\n").await;
    app.expect("GET /2 HTTP/1.1\r\n\r\n").await;
    eventually("two requests", || {
        fixture
            .port
            .metrics
            .http1_requests
            .iter()
            .map(|r| r.1)
            .sum::<u64>()
            == 2
    })
    .await;
}

#[tokio::test]
async fn a_final_answer_instead_of_100_leaves_the_rest_to_the_app() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    fixture.intercept();
    let mut caller = fixture.connect().await;
    caller
        .send("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n")
        .await;
    let mut app = app.accept().await;
    app.expect("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n")
        .await;
    app.send("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        .await;
    caller
        .expect("HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
        .await;
    // The announced body, or a request of its own: only caller and app know.
    caller.send("GET / HTTP/1.1\r\nx-dev: a\r\n\r\n").await;
    app.expect("GET / HTTP/1.1\r\nx-dev: a\r\n\r\n").await;
    assert_eq!(
        fixture
            .port
            .metrics
            .opaque
            .at(OpaqueReason::Ambiguous)
            .get(),
        1
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_the_second_waits_for_the_first() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller
        .send("GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
        .await;
    let mut app = app.accept().await;
    app.expect("GET /1 HTTP/1.1\r\n\r\n").await;
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        .await;
    app.expect("GET /2 HTTP/1.1\r\n\r\n").await;
    app.send("HTTP/1.1 204 x\r\n\r\n").await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 204 x\r\n\r\n")
        .await;
}

#[tokio::test]
async fn a_caller_that_ends_its_side_behind_its_request_still_gets_the_answer() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller
        .send("POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    caller.shutdown().await.unwrap();
    let mut app = app.accept().await;
    app.expect("POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    app.expect_end().await;
    app.send("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    drop(app);
    caller.expect("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    caller.expect_end().await;
}

#[tokio::test]
async fn an_answer_cut_short_by_the_app_is_cut_short_for_the_caller() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller.send("GET / HTTP/1.1\r\n\r\n").await;
    let mut socket = app.accept().await;
    socket.expect("GET / HTTP/1.1\r\n\r\n").await;
    socket
        .send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        .await;
    drop(socket);
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        .await;
    caller.expect_end().await;

    let mut caller = fixture.connect().await;
    caller.send("GET / HTTP/1.1\r\n\r\n").await;
    let mut socket = app.accept().await;
    socket.expect("GET / HTTP/1.1\r\n\r\n").await;
    socket
        .send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        .await;
    traffic_agent::io::conn::Io::abort(&mut socket);
    drop(socket);
    caller.expect_reset().await;
}

#[tokio::test]
async fn a_caller_that_resets_resets_the_app() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller
        .send("POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\npart")
        .await;
    let mut app = app.accept().await;
    app.expect("POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\npart")
        .await;
    traffic_agent::io::conn::Io::abort(&mut caller);
    drop(caller);
    app.expect_reset().await;
    eventually("counted", || {
        fixture.port.metrics.ended.at(Ended::CallerReset).get() == 1
    })
    .await;
}

#[tokio::test]
async fn an_idle_close_by_either_side_closes_the_other() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    for caller_first in [true, false] {
        let mut caller = fixture.connect().await;
        caller.send("GET / HTTP/1.1\r\n\r\n").await;
        let mut socket = app.accept().await;
        socket.expect("GET / HTTP/1.1\r\n\r\n").await;
        socket.send("HTTP/1.1 204 x\r\n\r\n").await;
        caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
        if caller_first {
            drop(caller);
            socket.expect_end().await;
        } else {
            drop(socket);
            caller.expect_end().await;
        }
    }
    eventually("both ended well", || {
        fixture.port.metrics.ended.at(Ended::Clean).get() == 2
    })
    .await;
    assert_eq!(fixture.port.metrics.active.get(), 0);
}

#[tokio::test]
async fn an_answer_nobody_asked_for_reaches_the_caller() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller.send("GET / HTTP/1.1\r\n\r\n").await;
    let mut app = app.accept().await;
    app.expect("GET / HTTP/1.1\r\n\r\n").await;
    app.send("HTTP/1.1 204 x\r\n\r\n").await;
    caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
    app.send("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        .await;
    drop(app);
    caller
        .expect("HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        .await;
    caller.expect_end().await;
}

#[tokio::test]
async fn an_upgrade_becomes_a_relay_and_bytes_that_came_along_are_not_lost() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let request = "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    caller.send(&format!("{request}early")).await;
    let mut app = app.accept().await;
    app.expect(request).await;
    app.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nalong")
        .await;
    caller
        .expect("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nalong")
        .await;
    app.expect("early").await;
    caller
        .send("GET / HTTP/1.1\r\nnot a request any more")
        .await;
    app.expect("GET / HTTP/1.1\r\nnot a request any more").await;
    caller.shutdown().await.unwrap();
    app.expect_end().await;
    app.send("bye").await;
    drop(app);
    caller.expect("bye").await;
    caller.expect_end().await;
    assert_eq!(
        fixture.port.metrics.opaque.at(OpaqueReason::Upgraded).get(),
        1
    );
}

#[tokio::test]
async fn a_refused_upgrade_is_an_answer_like_any_other() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let request = "GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    caller.send(request).await;
    let mut app = app.accept().await;
    app.expect(request).await;
    app.send("HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno")
        .await;
    caller
        .expect("HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno")
        .await;
    caller.send("GET /2 HTTP/1.1\r\n\r\n").await;
    app.expect("GET /2 HTTP/1.1\r\n\r\n").await;
    eventually("understood", || {
        fixture
            .port
            .metrics
            .http1_requests
            .iter()
            .map(|r| r.1)
            .sum::<u64>()
            == 2
    })
    .await;
}

#[tokio::test]
async fn connect_becomes_a_relay_where_the_app_agrees_and_stays_http_where_it_does_not() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    caller.send("CONNECT db:5432 HTTP/1.1\r\n\r\n").await;
    let mut app = app.accept().await;
    app.expect("CONNECT db:5432 HTTP/1.1\r\n\r\n").await;
    app.send("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        .await;
    caller
        .expect("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
        .await;
    caller.send("CONNECT db:5432 HTTP/1.1\r\n\r\n").await;
    app.expect("CONNECT db:5432 HTTP/1.1\r\n\r\n").await;
    // A length has no meaning in an answer that opens a tunnel.
    app.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\0\0\0\0")
        .await;
    caller
        .expect("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\0\0\0\0")
        .await;
    caller.send("\u{1}\u{2}").await;
    app.expect("\u{1}\u{2}").await;
}

#[tokio::test]
async fn an_app_that_refuses_is_a_reset_for_the_caller() {
    let gone = std::net::SocketAddr::from(([127, 0, 0, 1], harness::ports::free()));
    let fixture = PortFixture::start(gone);
    let mut caller = fixture.connect().await;
    // Without a rule there is nothing to wait for: not even a request.
    caller.expect_reset().await;
    eventually("counted", || {
        fixture.port.metrics.ended.at(Ended::AppRefused).get() == 1
    })
    .await;
    assert_eq!(fixture.port.metrics.app_connect_failures.get(), 1);

    fixture.intercept();
    let mut caller = fixture.connect().await;
    caller.send("GET / HTTP/1.1\r\n\r\n").await;
    caller.expect_reset().await;
}

#[tokio::test]
async fn a_head_that_comes_in_pieces_is_one_request() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let text = format!(
        "GET /{} HTTP/1.1\r\nX-Long: {}\r\n\r\n",
        "p".repeat(9000),
        "v".repeat(40_000)
    );
    for piece in text.as_bytes().chunks(1111) {
        caller.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut app = app.accept().await;
    app.expect(&text).await;
    app.send("HTTP/1.1 204 x\r\n\r\n").await;
    caller.expect("HTTP/1.1 204 x\r\n\r\n").await;
    assert!(fixture.port.metrics.opaque.iter().all(|(_, n)| n == 0));
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_the_apps_affair_and_counted() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    fixture.intercept();
    let mut caller = fixture.connect().await;
    let text = format!(
        "GET / HTTP/1.1\r\nx-dev: a\r\nX-Long: {}\r\n\r\n",
        "v".repeat(100_000)
    );
    caller.send(&text).await;
    let mut app = app.accept().await;
    app.expect(&text).await;
    app.send("HTTP/1.1 431 Too Large\r\nConnection: close\r\n\r\n")
        .await;
    caller
        .expect("HTTP/1.1 431 Too Large\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(fixture.port.metrics.limits.at(Limit::HeadBytes).get(), 1);
    assert_eq!(
        fixture
            .port
            .metrics
            .opaque
            .at(OpaqueReason::OversizedHead)
            .get(),
        1
    );
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once_and_half_close_is_kept() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let mut app = app.accept().await;
    app.send("220 mail.test ESMTP\r\n").await;
    caller.expect("220 mail.test ESMTP\r\n").await;
    caller.send("EHLO x\r\n").await;
    app.expect("EHLO x\r\n").await;
    app.socket_end().await;
    caller.expect_end().await;
    caller.send("QUIT\r\n").await;
    app.expect("QUIT\r\n").await;
    assert_eq!(
        fixture
            .port
            .metrics
            .opaque
            .at(OpaqueReason::ServerFirst)
            .get(),
        1
    );
    assert_eq!(fixture.port.metrics.carried.at(Protocol::Opaque).get(), 1);
}

trait SocketEnd {
    async fn socket_end(&mut self);
}

impl SocketEnd for tokio::net::TcpStream {
    async fn socket_end(&mut self) {
        self.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_no_http_reaches_the_app_and_a_declared_port_is_not_looked_at() {
    let app = ScriptedApp::listen().await;
    for (declared, text, reason) in [
        (
            AppProtocol::Unknown,
            "*1\r\n$4\r\nPING\r\n",
            OpaqueReason::NotHttp,
        ),
        (
            AppProtocol::Unknown,
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}",
            OpaqueReason::TlsRelayed,
        ),
        (AppProtocol::Http1, "\0\0\0\u{8}", OpaqueReason::NotHttp),
        (
            AppProtocol::Tls,
            "GET / HTTP/1.1\r\n\r\n",
            OpaqueReason::NotHttp,
        ),
        (
            AppProtocol::Opaque,
            "GET / HTTP/1.1\r\n\r\n",
            OpaqueReason::Declared,
        ),
    ] {
        let fixture = PortFixture::with(app.addr(), declared, Behaviour::Away);
        let mut caller = fixture.connect().await;
        caller.send(text).await;
        let mut app = app.accept().await;
        app.expect(text).await;
        app.send("+PONG\r\n").await;
        caller.expect("+PONG\r\n").await;
        assert_eq!(
            fixture.port.metrics.opaque.at(reason).get(),
            1,
            "{declared:?} {text:?}"
        );
    }
}

#[tokio::test]
async fn a_caller_that_ends_without_a_word_is_passed_on() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let mut caller = fixture.connect().await;
    let mut app = app.accept().await;
    caller.shutdown().await.unwrap();
    app.expect_end().await;
    app.send("Sat Nov 21 2026\r\n").await;
    drop(app);
    caller.expect("Sat Nov 21 2026\r\n").await;
    caller.expect_end().await;
}

#[tokio::test]
async fn draining_lets_the_exchange_finish_and_closes_what_is_idle() {
    let app = ScriptedApp::listen().await;
    let fixture = PortFixture::start(app.addr());
    let (mut busy, mut idle) = (fixture.connect().await, fixture.connect().await);
    let request = "GET / HTTP/1.1\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
    idle.send(request).await;
    let mut socket = loop {
        let mut socket = app.accept().await;
        // Whichever came first: only one of them was asked.
        let mut byte = [0; 1];
        let asked = tokio::time::timeout(
            std::time::Duration::from_millis(500),
            socket.peek(&mut byte),
        )
        .await;
        if asked.is_ok() {
            socket.expect(request).await;
            break socket;
        }
        tokio::spawn(async move {
            socket.expect(request).await;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            socket.send(answer).await;
            socket.expect_end().await;
        });
    };
    socket.send(answer).await;
    idle.expect(answer).await;
    busy.send(request).await;
    let other = tokio::spawn(async move {
        let mut second = app.accept().await;
        second.expect(request).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        second.send(answer).await;
        second.expect_end().await;
    });
    eventually("two requests", || {
        fixture
            .port
            .metrics
            .http1_requests
            .iter()
            .map(|r| r.1)
            .sum::<u64>()
            == 2
    })
    .await;
    fixture.port.drain.start();
    idle.expect_end().await;
    // It is told that this answer is the last one.
    busy.expect("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlate")
        .await;
    busy.expect_end().await;
    other.abort();
}
