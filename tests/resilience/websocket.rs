//! WebSockets by a real library on both ends: messages, refusals, what comes along with the
//! handshake, closing.

use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use harness::apps::{field, raw, read_head};
use harness::caller::Caller;
use harness::wait::{SetAtEnd, WAIT_TIMEOUT, until};
use tokio::net::TcpStream as Socket;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::rig::{Way, connect, each, in_front_of, towards};

const WAYS: [Way; 4] = [Way::App, Way::Beside, Way::Direct, Way::Manager];
const MATCHING: (&str, &str) = ("x-dev", "a");

/// Close codes and reasons of clients that called leave.
type Closes = Arc<Mutex<Vec<(u16, String)>>>;

/// A server that says its name and then sends every message back. Asked to `leave`, it closes with
/// 1013.
fn echo(runtime: &Runtime, name: &'static str) -> (SocketAddr, Closes) {
    let closes = Closes::default();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let seen = closes.clone();
    runtime.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(name, socket, seen.clone()));
        }
    });
    (address, closes)
}

async fn serve(name: &'static str, socket: Socket, closes: Closes) -> Result<(), Error> {
    let mut socket = accept_async(socket).await?;
    socket.send(Message::text(name)).await?;
    while let Some(message) = socket.next().await {
        match message? {
            Message::Close(frame) => {
                let frame = frame.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
                closes
                    .lock()
                    .unwrap()
                    .push(frame.unwrap_or((1005, String::new())));
            }
            Message::Text(text) if text.as_str() == "leave" => {
                socket
                    .close(Some(CloseFrame {
                        code: CloseCode::Again,
                        reason: "later".into(),
                    }))
                    .await?;
            }
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await?,
            _ => {}
        }
    }
    Ok(())
}

/// Opens one and says who answered.
async fn open(
    address: SocketAddr,
    headers: &[(&'static str, &str)],
) -> (WebSocketStream<Socket>, String) {
    let mut request = "ws://app.example/chat".into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let socket = Socket::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut socket, _) = timeout(WAIT_TIMEOUT, client_async(request, socket))
        .await
        .unwrap()
        .unwrap();
    let name = next(&mut socket).await.into_text().unwrap().to_string();
    (socket, name)
}

async fn next(socket: &mut WebSocketStream<Socket>) -> Message {
    timeout(WAIT_TIMEOUT, socket.next())
        .await
        .expect("a message in time")
        .expect("a message")
        .unwrap()
}

/// Message `number`: mostly small, now and then large, text and binary.
fn message(number: u64) -> Message {
    let size = match number {
        n if n % 1000 == 999 => 1 << 20,
        n if n % 100 == 99 => 70_000,
        n => n % 300,
    };
    let text = format!("{number} ").repeat(usize::try_from(size / 4).unwrap());
    if number.is_multiple_of(2) {
        Message::text(format!("{number}:{text}"))
    } else {
        Message::binary(text)
    }
}

fn headers(way: Way) -> &'static [(&'static str, &'static str)] {
    if way.is_tunnel() { &[MATCHING] } else { &[] }
}

#[test]
fn ten_thousand_messages_pass_each_way_wherever_the_websocket_goes() {
    let messages = crate::rig::scale("WEBSOCKET_MESSAGES", 10_000);
    let runtime = Runtime::new().unwrap();
    each(&WAYS, |way| {
        let (server, _) = echo(&runtime, "server");
        let (system, _client) = towards(server, way, &["--http-header=x-dev=a"]);
        let begin = std::time::Instant::now();
        runtime.block_on(async {
            let (socket, name) = open(system.address(), headers(way)).await;
            assert_eq!(name, "server");
            let (mut sink, mut source) = socket.split();
            let sending = async {
                for number in 0..messages {
                    sink.send(message(number)).await.unwrap();
                }
            };
            let receiving = async {
                for number in 0..messages {
                    let came = timeout(WAIT_TIMEOUT, source.next())
                        .await
                        .expect("a message in time")
                        .unwrap()
                        .unwrap();
                    assert!(came == message(number), "message {number} by {way:?}");
                }
            };
            tokio::join!(sending, receiving);
        });
        eprintln!(
            "{messages} messages each way by {way:?}: {:?}",
            begin.elapsed()
        );
        assert_eq!(system.agent.stat(".opaque.upgraded"), 1);
    });
}

#[test]
fn codes_and_reasons_of_closing_pass_both_ways() {
    let runtime = Runtime::new().unwrap();
    each(&WAYS, |way| {
        let (server, closes) = echo(&runtime, "server");
        let (system, _client) = towards(server, way, &["--http-header=x-dev=a"]);
        runtime.block_on(async {
            let (mut socket, _) = open(system.address(), headers(way)).await;
            let frame = CloseFrame {
                code: CloseCode::Library(4001),
                reason: "bye".into(),
            };
            socket.close(Some(frame.clone())).await.unwrap();
            assert_eq!(
                next(&mut socket).await,
                Message::Close(Some(frame)),
                "{way:?}"
            );
            assert!(
                timeout(WAIT_TIMEOUT, socket.next())
                    .await
                    .unwrap()
                    .is_none(),
                "an orderly end, {way:?}"
            );

            let (mut socket, _) = open(system.address(), headers(way)).await;
            socket.send(Message::text("leave")).await.unwrap();
            let frame = CloseFrame {
                code: CloseCode::Again,
                reason: "later".into(),
            };
            assert_eq!(
                next(&mut socket).await,
                Message::Close(Some(frame)),
                "{way:?}"
            );
            assert!(
                timeout(WAIT_TIMEOUT, socket.next())
                    .await
                    .unwrap()
                    .is_none(),
                "an orderly end, {way:?}"
            );
        });
        let seen = until("both closes", || {
            Some(closes.lock().unwrap().clone()).filter(|closes| closes.len() == 2)
        });
        assert_eq!(
            seen,
            [(4001, "bye".to_owned()), (1013, "later".to_owned())],
            "{way:?}"
        );
    });
}

#[test]
fn intercepts_that_begin_and_end_do_not_disturb_open_websockets() {
    let runtime = Runtime::new().unwrap();
    let [(app, _), (laptop_a, _), (laptop_b, _)] =
        ["app", "laptop-a", "laptop-b"].map(|name| echo(&runtime, name));
    let system = in_front_of(app, |_| {});
    let _b = system.intercept("b", laptop_b, &["--http-header=x-dev=b"]);
    let (stop, passed) = (
        AtomicBool::new(false),
        [AtomicU64::new(0), AtomicU64::new(0)],
    );
    std::thread::scope(|scope| {
        for (number, headers, name) in [(0, &[][..], "app"), (1, &[("x-dev", "b")][..], "laptop-b")]
        {
            let (stop, passed, runtime, address) =
                (&stop, &passed[number], &runtime, system.address());
            scope.spawn(move || {
                runtime.block_on(async {
                    let (mut socket, answered) = open(address, headers).await;
                    assert_eq!(answered, name);
                    while !stop.load(Ordering::Relaxed) {
                        let message = message(passed.fetch_add(1, Ordering::Relaxed));
                        socket.send(message.clone()).await.unwrap();
                        assert!(next(&mut socket).await == message);
                    }
                });
            });
        }
        let _stop = SetAtEnd(&stop);
        let more = || {
            let before = [0, 1].map(|n: usize| passed[n].load(Ordering::Relaxed));
            until("more messages", || {
                (0..2)
                    .all(|n| passed[n].load(Ordering::Relaxed) > before[n] + 20)
                    .then_some(())
            });
        };
        more();
        for _ in 0..3 {
            let a = system.intercept("a", laptop_a, &["--http-header=x-dev=a"]);
            assert_eq!(
                runtime.block_on(open(system.address(), &[MATCHING])).1,
                "laptop-a"
            );
            more();
            assert!(a.terminate().success());
            until("the app to answer", || {
                (runtime.block_on(open(system.address(), &[MATCHING])).1 == "app").then_some(())
            });
            more();
        }
    });
}

#[test]
fn a_refusal_is_delivered_byte_for_byte_and_the_connection_goes_on() {
    const REFUSAL: &str = "HTTP/1.1 403 Forbidden\r\nX-Odd:  \tvalue\r\nx-odd:\r\nConTent-length: \
        18\r\n\r\nnot\0today\r\n\r\nsorry";
    each(&WAYS, |way| {
        let server = raw(|stream| {
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            while let Ok(Some(head)) = read_head(&mut reader) {
                let plain = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-answered-by: \
                    server\r\n\r\n";
                let refused = field(&head, "upgrade").is_some();
                writer
                    .write_all(if refused { REFUSAL } else { plain }.as_bytes())
                    .unwrap();
            }
        });
        let (system, _client) = towards(server, way, &["--http-header=x-dev=a"]);
        let mut caller = Caller::connect(system.address()).unwrap();
        let upgrade = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
        ];
        caller
            .send("GET", "/chat", &[&upgrade, headers(way)].concat(), b"")
            .unwrap();
        let mut answer = vec![0; REFUSAL.len()];
        caller.stream().read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), REFUSAL, "{way:?}");
        assert_eq!(
            caller.get("/", headers(way)).unwrap().by(),
            "server",
            "{way:?}"
        );
        assert_eq!(system.agent.stat(".opaque.upgraded"), 0);
    });
}

#[test]
fn bytes_that_come_along_with_the_handshake_are_not_lost_on_either_side() {
    const EARLY: &[u8] = b"\x82\x85\0\0\0\0early";
    const GREETING: &[u8] = b"\x82\x08greeting";
    each(&WAYS, |way| {
        let server = raw(|stream| {
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            let Ok(Some(_)) = read_head(&mut reader) else {
                return;
            };
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            let _ = writer.write_all(&[switch, GREETING].concat());
            let mut early = vec![0; EARLY.len() + 5];
            // Who only asks for HTTP/2 goes away here.
            if reader.read_exact(&mut early).is_ok() {
                writer.write_all(&early).unwrap();
            }
        });
        let (system, _client) = towards(server, way, &["--http-header=x-dev=a"]);
        let mut head =
            "GET /chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
                .to_owned();
        headers(way)
            .iter()
            .for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let request = [head.as_bytes(), b"\r\n", EARLY].concat();
        // All at once, and cut inside the early frame.
        for cut in [request.len(), request.len() - 3] {
            let mut caller: TcpStream = connect(system.address());
            caller.write_all(&request[..cut]).unwrap();
            std::thread::sleep(Duration::from_millis(if cut < request.len() {
                20
            } else {
                0
            }));
            caller.write_all(&request[cut..]).unwrap();
            let mut reader = BufReader::new(caller.try_clone().unwrap());
            let head = read_head(&mut reader).unwrap().unwrap();
            assert!(
                head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
                "{way:?}: {head}"
            );
            let mut greeting = [0; GREETING.len()];
            reader.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting, GREETING, "{way:?}");
            caller.write_all(b"later").unwrap();
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, [EARLY, b"later"].concat(), "{way:?}");
        }
    });
}
