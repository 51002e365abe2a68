//! Limits of the app hold for the caller as long as they are announced, and requests waiting for a
//! busy app or a tunnel are bounded.

use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use traffic_agent::telemetry::metrics::Limit;
use traffic_core::http2::frames::{ACK, END_HEADERS, END_STREAM, PREFACE, kind};

use crate::app::App;
use crate::relayed::{next, send};
use crate::rig::{Caller, Rig, request};
use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::tunnels::FakeTunnels;

/// An app of which the test writes the frames.
struct Raw {
    rig: Rig,
    listener: TcpListener,
}

impl Raw {
    async fn new(secure: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tunnels, _) = FakeTunnels::scripted();
        let rig = Rig::start(listener.local_addr().unwrap(), tunnels, secure).await;
        rig.intercept();
        Self { rig, listener }
    }

    /// The app's side of a caller's connection, with these settings said.
    async fn accept(&self, settings: &[u8]) -> TcpStream {
        let (mut app, _) = timeout(WAIT_TIMEOUT, self.listener.accept())
            .await
            .expect("a connection")
            .unwrap();
        app.read_exact(&mut [0; 24]).await.unwrap();
        send(&mut app, kind::SETTINGS, 0, 0, settings).await;
        app
    }
}

/// The next frame of this kind.
async fn next_of(from: &mut TcpStream, wanted: u8) -> (u32, Vec<u8>) {
    loop {
        let (head, payload) = next(from).await;
        if head.kind == wanted && (wanted != kind::SETTINGS || head.flags & ACK == 0) {
            return (head.stream, payload);
        }
    }
}

async fn until_allowed(caller: &Caller, streams: usize) {
    let wait = async {
        while caller.send.current_max_send_streams() != streams {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    timeout(WAIT_TIMEOUT, wait)
        .await
        .unwrap_or_else(|_| panic!("never {streams} streams"));
}

#[tokio::test]
async fn an_app_that_takes_no_streams_yet_is_believed_and_followed_when_it_does() {
    let raw = Raw::new(false).await;
    let caller = Caller::connect(raw.rig.addr);
    let (caller, mut app) = tokio::join!(caller, raw.accept(b"\0\x03\0\0\0\0"));
    until_allowed(&caller, 0).await;
    let waiting = {
        let send = caller.send.clone();
        tokio::spawn(async move {
            let get = request("/", false).body(()).unwrap();
            send.ready()
                .await
                .unwrap()
                .send_request(get, true)
                .unwrap()
                .0
                .await
        })
    };
    for limit in [3, 1, 200, 2] {
        send(
            &mut app,
            kind::SETTINGS,
            0,
            0,
            &[&b"\0\x03"[..], &u32::to_be_bytes(limit)].concat(),
        )
        .await;
        until_allowed(&caller, limit as usize).await;
    }
    let (stream, _) = next_of(&mut app, kind::HEADERS).await;
    send(
        &mut app,
        kind::HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        b"\x88",
    )
    .await;
    assert_eq!(
        timeout(WAIT_TIMEOUT, waiting)
            .await
            .expect("an answer")
            .unwrap()
            .unwrap()
            .status(),
        200
    );
}

#[tokio::test]
async fn a_request_without_an_authority_keeps_its_scheme() {
    for secure in [true, false] {
        let raw = Raw::new(secure).await;
        let mut caller = TcpStream::connect(raw.rig.addr).await.unwrap();
        caller.write_all(PREFACE).await.unwrap();
        send(&mut caller, kind::SETTINGS, 0, 0, b"").await;
        let mut app = raw.accept(b"").await;
        for (n, section) in [
            &b"\x82\x87\x84\x41\x03app"[..],
            b"\x82\x87\x84",
            b"\x83\x87\x84",
            b"\x42\x03PUT\x87\x84",
        ]
        .into_iter()
        .enumerate()
        {
            send(
                &mut caller,
                kind::HEADERS,
                END_HEADERS | END_STREAM,
                2 * n as u32 + 1,
                section,
            )
            .await;
            let (stream, got) = next_of(&mut app, kind::HEADERS).await;
            assert_eq!(stream, 2 * n as u32 + 1);
            assert_eq!(got, section);
        }
    }
}

/// A header section of about 64 000 bytes in literals that go into no table.
fn large_section(dev: bool) -> Vec<u8> {
    let mut section = b"\x82\x86\x84\x41\x0bapp.example".to_vec();
    if dev {
        section.extend_from_slice(b"\x00\x05x-dev\x01a");
    }
    for n in 0..16u8 {
        section.extend_from_slice(&[0, 2, b'x', b'a' + n, 0x7f, 0xa1, 0x1e]);
        section.resize(section.len() + 4_000, b'v');
    }
    section
}

/// Sends requests with large heads until `most` or until nothing more is taken; says how many.
async fn offer(to: &mut tokio::net::tcp::OwnedWriteHalf, dev: bool, most: u32) -> u32 {
    let section = large_section(dev);
    for n in 0..most {
        let mut frames = Vec::new();
        let chunks: Vec<_> = section.chunks(16_000).collect();
        for (k, chunk) in chunks.iter().enumerate() {
            let last = if k + 1 == chunks.len() {
                END_HEADERS
            } else {
                0
            };
            let (kind, flags) = if k == 0 {
                (kind::HEADERS, last | END_STREAM)
            } else {
                (kind::CONTINUATION, last)
            };
            let head = traffic_core::http2::frames::FrameHeader {
                length: chunk.len() as u32,
                kind,
                flags,
                stream: 2 * n + 1,
            };
            frames.extend_from_slice(&head.encode());
            frames.extend_from_slice(chunk);
        }
        // A caller that is held back is not allowed another byte, however long it waits.
        match timeout(std::time::Duration::from_secs(2), to.write_all(&frames)).await {
            Ok(written) => written.unwrap(),
            Err(_) => return n,
        }
    }
    most
}

#[tokio::test]
async fn an_app_that_does_not_read_holds_its_caller_back_and_nobody_else() {
    let raw = Raw::new(false).await;
    let mut caller = TcpStream::connect(raw.rig.addr).await.unwrap();
    caller.write_all(PREFACE).await.unwrap();
    send(&mut caller, kind::SETTINGS, 0, 0, b"").await;
    let mut app = raw.accept(b"").await;
    let (mut from, mut to) = caller.into_split();
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
    let sent = offer(&mut to, false, 2_000).await;
    assert!(
        sent < 500,
        "{sent} heads of 64 KB were taken for an app that reads none"
    );
    let taken = raw.rig.metrics().bytes_in.get();
    assert!(taken < 16 << 20, "{taken} bytes inside the agent");
    // The app reads again, and gets all of them.
    for _ in 0..sent {
        next_of(&mut app, kind::HEADERS).await;
    }
    reading.abort();
}

#[tokio::test]
async fn heads_that_wait_for_a_tunnel_have_a_bound() {
    let app = App::start("app").await;
    let (tunnels, _opened) = FakeTunnels::scripted();
    let rig = Rig::over(app.addr, tunnels).await;
    rig.intercept();
    let mut caller = TcpStream::connect(rig.addr).await.unwrap();
    caller.write_all(PREFACE).await.unwrap();
    send(&mut caller, kind::SETTINGS, 0, 0, b"").await;
    let (mut from, mut to) = caller.into_split();
    let refused = tokio::spawn(async move {
        let mut head = [0; 9];
        loop {
            from.read_exact(&mut head).await.unwrap();
            let head = traffic_core::http2::frames::FrameHeader::parse(head);
            let mut payload = vec![0; head.length as usize];
            from.read_exact(&mut payload).await.unwrap();
            if head.kind == kind::RST_STREAM {
                return payload;
            }
        }
    });
    let offering = tokio::spawn(async move { offer(&mut to, true, 300).await });
    let reason = timeout(WAIT_TIMEOUT, refused)
        .await
        .expect("a refusal")
        .unwrap();
    assert_eq!(reason, u32::from(Reason::REFUSED_STREAM).to_be_bytes());
    assert!(rig.metrics().limits.at(Limit::Http2Flood).get() >= 1);
    let other = Caller::connect(rig.addr).await;
    assert_eq!(other.get("/", false).await.unwrap().server(), "app");
    offering.abort();
}
