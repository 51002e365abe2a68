//! The same bytes through our framers and through hyper's server: never a different boundary where
//! we see none unclear.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traffic_core::http1::body::Body;
use traffic_core::http1::head::{Kind, Parser, Step};

use crate::generate::{Rng, exchange};

/// Cuts a stream of pipelined requests into messages: method, target and length of each whole one,
/// until something is unclear.
fn ours(mut bytes: &[u8]) -> Vec<(String, String, usize)> {
    let mut messages = Vec::new();
    while let Ok(Step::Complete(head)) = Parser::new(Kind::Request).parse(bytes) {
        let view = head.request(bytes);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let (method, target) = (text(view.method), text(view.target));
        let mut body = Body::of_request(&head);
        let rest = &bytes[head.len..];
        let Ok(n) = body.advance(rest) else { break };
        if !body.is_done() {
            break;
        }
        messages.push((method, target, n));
        bytes = &rest[n..];
    }
    messages
}

/// What hyper makes of the same stream: method, target and content length of each request it
/// delivers whole.
async fn hypers(bytes: &[u8]) -> Vec<(String, String, usize)> {
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn({
        let seen = Arc::clone(&seen);
        move |request: hyper::Request<Incoming>| {
            let seen = Arc::clone(&seen);
            async move {
                let (parts, body) = request.into_parts();
                if let Ok(body) = body.collect().await {
                    let length = body.to_bytes().len();
                    seen.lock().unwrap().push((
                        parts.method.to_string(),
                        parts.uri.to_string(),
                        length,
                    ));
                }
                Ok::<_, Infallible>(hyper::Response::new(Empty::<Bytes>::new()))
            }
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(far), service);
    let talking = async {
        let (mut read, mut write) = tokio::io::split(&mut near);
        let writing = async {
            let _ = write.write_all(bytes).await;
            let _ = write.shutdown().await;
        };
        let mut answers = Vec::new();
        let reading = read.read_to_end(&mut answers);
        let _ = tokio::join!(writing, reading);
    };
    let _ = tokio::join!(serving, talking);
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

/// A request that hyper is able to represent, and that keeps the connection.
fn plain_request(rng: &mut Rng) -> Vec<u8> {
    loop {
        let request = exchange(rng).request;
        let head_end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = &request[..head_end];
        let line = head.split(|b| *b == b'\r').next().unwrap();
        if request.len() < 100_000
            && head.is_ascii()
            && line.ends_with(b"1.1")
            && !line.contains(&b'#')
        {
            return request;
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_cut_where_a_second_server_cuts_them() {
    let mut rng = Rng::new(7);
    let rounds = std::env::var("HTTP1_EXCHANGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(300)
        / 3;
    for round in 0..rounds {
        let stream: Vec<u8> = (0..1 + rng.below(4))
            .flat_map(|_| plain_request(&mut rng))
            .collect();
        let (ours, theirs) = (ours(&stream), hypers(&stream).await);
        let heads = |messages: &[(String, String, usize)]| -> Vec<(String, String)> {
            messages
                .iter()
                .map(|(m, t, _)| (m.clone(), t.clone()))
                .collect()
        };
        assert_eq!(
            heads(&ours),
            heads(&theirs),
            "round {round}: {}",
            stream.escape_ascii()
        );
    }
}

#[tokio::test]
async fn damaged_requests_are_never_cut_elsewhere() {
    let mut rng = Rng::new(11);
    let rounds = std::env::var("HTTP1_EXCHANGES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(600);
    for round in 0..rounds {
        let mut stream: Vec<u8> = (0..2).flat_map(|_| plain_request(&mut rng)).collect();
        stream.truncate(20_000);
        for _ in 0..1 + rng.below(2) {
            let at = rng.below(stream.len());
            stream[at] = *rng.pick(b"\r\n\0 :,;015aGT\t\x7f\xff");
        }
        let (ours, theirs) = (ours(&stream), hypers(&stream).await);
        // Hyper may give up earlier, or go on where we see something unclear; both agree on what
        // both accept.
        for (mine, other) in ours.iter().zip(&theirs) {
            assert_eq!(
                (&mine.0, &mine.1),
                (&other.0, &other.1),
                "round {round}: {}",
                stream.escape_ascii()
            );
        }
    }
}
