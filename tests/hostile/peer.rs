//! A manager that begins in good order and then answers as a seed wants.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use harness::random::Random;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::garbage;

/// Messages of an answer that does not end by itself.
const MANY: usize = 200;
/// Delay of an end that comes late.
const END_DELAY: Duration = Duration::from_secs(2);

/// The manager; it ends when dropped.
pub(crate) struct Peer {
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Peer {
    pub(crate) fn start(mut random: Random) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&answered);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let random = Random::new(random.number());
                tokio::spawn(serve(socket, random, Arc::clone(&counter)));
            }
        });
        Self {
            address,
            answered,
            _runtime: runtime,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of calls that have been answered in some way.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn serve(socket: TcpStream, mut random: Random, answered: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(socket).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        answered.fetch_add(1, Ordering::Relaxed);
        if random.once_in(40) {
            // The whole connection ends amid what it carries.
            connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
            continue;
        }
        let random = Random::new(random.number());
        tokio::spawn(async move { drop(answer(request, respond, random).await) });
    }
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut random: Random,
) -> Result<(), h2::Error> {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    let is_begin = matches!(method, "Version" | "ArriveAsAgent" | "ArriveAsClient");
    // Most sessions begin, else nothing behind that would be reached.
    let kind = if is_begin && !random.once_in(6) {
        0
    } else {
        random.below(9)
    };
    if kind == 1 {
        respond.send_reset(*random.of(&[h2::Reason::INTERNAL_ERROR, h2::Reason::REFUSED_STREAM]));
        return Ok(());
    }
    let head = match kind {
        2 => Response::builder()
            .status(503)
            .header("content-type", "text/html"),
        _ => Response::builder().header("content-type", "application/grpc"),
    };
    let mut stream = respond.send_response(head.body(()).unwrap(), false)?;
    let valid = |random: &mut Random| garbage::answer(random, method);
    let mut body = BytesMut::new();
    match kind {
        0 => plain(&mut body, &valid(&mut random)),
        3 => {
            for _ in 0..MANY {
                let message = garbage::message(&mut random, &valid);
                plain(&mut body, &message);
            }
        }
        _ => body = garbage::body(&mut random, &valid).into(),
    }
    stream.send_data(body.freeze(), false)?;
    end(&mut stream, kind, &mut random).await
}

/// Ends an answer: in order, with an odd status, by a reset, or late.
async fn end(
    stream: &mut SendStream<Bytes>,
    kind: usize,
    random: &mut Random,
) -> Result<(), h2::Error> {
    let mut trailers = HeaderMap::new();
    match kind {
        4 => {
            stream.send_reset(h2::Reason::CANCEL);
            return Ok(());
        }
        5 => {
            tokio::time::sleep(END_DELAY).await;
            trailers.insert("grpc-status", "0".parse().unwrap());
        }
        6 => {
            let status = *random.of(&["5", "16", "7", "12", "99", "x", ""]);
            trailers.insert("grpc-status", status.parse().unwrap());
            trailers.insert("grpc-message", "%zz%0a%1b[31m".parse().unwrap());
        }
        7 => return stream.send_data(Bytes::new(), true),
        _ => drop(trailers.insert("grpc-status", "0".parse().unwrap())),
    }
    stream.send_trailers(trailers)
}

/// Appends a message in a right frame.
fn plain(body: &mut BytesMut, message: &[u8]) {
    let length = u32::try_from(message.len()).unwrap();
    body.extend_from_slice(&[0]);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(message);
}
