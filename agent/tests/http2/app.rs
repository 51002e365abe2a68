//! An HTTP/2 server that behaves as the path asks, says in `x-server` who it is, and tells the test
//! what it sees.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub struct App {
    pub addr: SocketAddr,
    /// What it sees: `hang`, `reset CANCEL`, `open`, `closed`.
    pub seen: mpsc::UnboundedReceiver<String>,
    /// Tells its connections to leave kindly.
    pub leave: watch::Sender<bool>,
}

impl App {
    pub async fn start(name: &'static str) -> Self {
        let mut settings = h2::server::Builder::new();
        settings
            .max_concurrent_streams(5_000)
            .enable_connect_protocol()
            .initial_connection_window_size(1 << 20);
        Self::with(name, settings).await
    }

    pub async fn with(name: &'static str, settings: h2::server::Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let (leave, leaving) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(connection(
                    socket,
                    name,
                    settings.clone(),
                    tell.clone(),
                    leaving.clone(),
                ));
            }
        });
        Self { addr, seen, leave }
    }

    pub async fn sees(&mut self, what: &str) {
        loop {
            let seen = tokio::time::timeout(agent_testkit::WAIT_TIMEOUT, self.seen.recv()).await;
            if seen
                .unwrap_or_else(|_| panic!("the app never saw {what:?}"))
                .unwrap()
                == what
            {
                return;
            }
        }
    }
}

async fn connection(
    socket: TcpStream,
    name: &'static str,
    settings: h2::server::Builder,
    tell: mpsc::UnboundedSender<String>,
    mut leaving: watch::Receiver<bool>,
) {
    socket.set_nodelay(true).unwrap();
    let Ok(mut server) = settings.handshake::<_, Bytes>(socket).await else {
        return;
    };
    let _ = tell.send("open".to_owned());
    let mut left = false;
    loop {
        tokio::select! {
            accepted = server.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::spawn(answer(request, respond, name, tell.clone()));
                }
                _ => break,
            },
            Ok(_) = leaving.wait_for(|l| *l), if !left => {
                left = true;
                server.graceful_shutdown();
            }
        }
    }
    let _ = tell.send("closed".to_owned());
}

fn head(name: &'static str) -> Response<()> {
    Response::builder()
        .header("x-server", name)
        .body(())
        .unwrap()
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &'static str,
    tell: mpsc::UnboundedSender<String>,
) {
    let path = request.uri().path().to_owned();
    let (parts, mut body) = request.into_parts();
    match path.as_str() {
        "/headers" => {
            let text = listing(&parts);
            let mut send = respond.send_response(head(name), false).unwrap();
            let _ = send.send_data(text.into(), true);
        }
        "/echo" => {
            let send = respond.send_response(head(name), false).unwrap();
            echo(body, send, &tell).await;
        }
        "/trailers-only" => {
            let mut response = head(name);
            response
                .headers_mut()
                .insert("grpc-status", HeaderValue::from_static("7"));
            let _ = respond.send_response(response, true);
        }
        "/early" => {
            let mut send = respond.send_response(head(name), false).unwrap();
            let _ = send.send_data(Bytes::from_static(b"enough"), true);
            // Dropping the rest of the request resets the stream with NO_ERROR.
        }
        "/informational" => {
            let hint = Response::builder()
                .status(103)
                .header("link", "</style.css>")
                .body(())
                .unwrap();
            respond.send_informational(hint).unwrap();
            let _ = respond.send_response(head(name), true);
        }
        "/hang" => {
            let _ = tell.send("hang".to_owned());
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            let _ = tell.send(reason.map_or("broken".to_owned(), |r| format!("reset {r:?}")));
        }
        "/endless" => {
            let mut send = respond.send_response(head(name), false).unwrap();
            let _ = tell.send("endless".to_owned());
            while send_all(&mut send, Bytes::from(vec![7; 16 * 1024]))
                .await
                .is_ok()
            {}
            let _ = tell.send("endless over".to_owned());
        }
        "/stall" => {
            let mut send = respond.send_response(head(name), false).unwrap();
            let _ = tell.send("stall".to_owned());
            let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await;
            drop(body);
            let _ = tell.send(reason.map_or("broken".to_owned(), |r| format!("reset {r:?}")));
        }
        "/die" => {
            // Half an answer, then a reset.
            let mut send = respond.send_response(head(name), false).unwrap();
            let _ = send.send_data(Bytes::from_static(b"half"), false);
            tokio::task::yield_now().await;
            send.send_reset(Reason::INADEQUATE_SECURITY);
        }
        reset if reset.starts_with("/reset/") => {
            let code: u32 = reset["/reset/".len()..].parse().unwrap();
            respond.send_reset(Reason::from(code));
        }
        _ => {
            while let Some(Ok(chunk)) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.len());
            }
            // A caller that has gone wants no answer.
            if let Ok(mut send) = respond.send_response(head(name), false) {
                let _ = send.send_data(Bytes::from(format!("{name} {path}")), true);
            }
        }
    }
}

async fn echo(
    mut body: RecvStream,
    mut send: SendStream<Bytes>,
    tell: &mpsc::UnboundedSender<String>,
) {
    while let Some(chunk) = body.data().await {
        match chunk {
            Ok(chunk) => {
                let n = chunk.len();
                if send_all(&mut send, chunk).await.is_err() {
                    return;
                }
                let _ = body.flow_control().release_capacity(n);
            }
            Err(e) => {
                let _ = tell.send(
                    e.reason()
                        .map_or("broken".to_owned(), |r| format!("reset {r:?}")),
                );
                return;
            }
        }
    }
    let mut trailers = HeaderMap::new();
    if let Ok(Some(received)) = body.trailers().await {
        trailers.extend(received);
    }
    trailers.insert("x-end", HeaderValue::from_static("yes"));
    let _ = send.send_trailers(trailers);
}

pub async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), ()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let n = loop {
            match send.capacity() {
                0 => match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    _ => return Err(()),
                },
                n => break n.min(data.len()),
            }
        };
        send.send_data(data.split_to(n), false).map_err(drop)?;
    }
    Ok(())
}

/// Everything of a request's head, in a form that can be compared.
fn listing(parts: &http::request::Parts) -> String {
    let mut text = String::new();
    let uri = &parts.uri;
    let protocol = parts
        .extensions
        .get::<h2::ext::Protocol>()
        .map(|p| p.as_str());
    let _ = writeln!(
        text,
        "{} {:?} {:?} {:?}",
        parts.method,
        uri.scheme_str(),
        uri.authority(),
        uri.path_and_query()
    );
    let _ = writeln!(text, "protocol {protocol:?}");
    for (name, value) in &parts.headers {
        let _ = writeln!(
            text,
            "{name}: {}{}",
            value.as_bytes().escape_ascii(),
            if value.is_sensitive() {
                " (never indexed)"
            } else {
                ""
            }
        );
    }
    text
}
