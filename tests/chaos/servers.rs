//! Servers that tell the ledger what arrives. Each listens on a port that can be closed for a while,
//! and answers with its own name behind the request's number.

use std::convert::Infallible;
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use harness::apps::{read_body, read_head};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Handle;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{
    Request as UpgradeRequest, Response as UpgradeResponse,
};

use crate::callers::Kind;
use crate::ledger::{Ledger, Place};

/// A server of one protocol at one place.
#[derive(Clone)]
pub(crate) struct Server(Arc<Inner>);

struct Inner {
    kind: Kind,
    place: Place,
    address: SocketAddr,
    ledger: Arc<Ledger>,
    runtime: Handle,
    closed: AtomicBool,
    accepting: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What a server receives by.
enum Socket {
    Listener(TcpListener),
    Datagrams(UdpSocket),
}

impl Socket {
    fn bind(kind: Kind, address: SocketAddr) -> Self {
        match kind {
            Kind::Udp => Self::Datagrams(UdpSocket::bind(address).unwrap()),
            _ => Self::Listener(TcpListener::bind(address).unwrap()),
        }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Listener(listener) => listener.local_addr(),
            Self::Datagrams(socket) => socket.local_addr(),
        }
        .unwrap()
    }
}

impl Server {
    pub(crate) fn start(kind: Kind, place: Place, ledger: &Arc<Ledger>, runtime: &Handle) -> Self {
        let socket = Socket::bind(kind, (Ipv4Addr::LOCALHOST, 0).into());
        let server = Self(Arc::new(Inner {
            kind,
            place,
            address: socket.address(),
            ledger: Arc::clone(ledger),
            runtime: runtime.clone(),
            closed: AtomicBool::new(false),
            accepting: Mutex::default(),
        }));
        server.begin(socket);
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Closes the port; open connections go on.
    pub(crate) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        // Wakes the thread, which then drops its socket.
        match self.0.kind {
            Kind::Udp => {
                let waker = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                waker.send_to(b"", self.0.address).unwrap();
            }
            _ => drop(TcpStream::connect(self.0.address)),
        }
        let accepting = self.0.accepting.lock().unwrap().take();
        accepting.unwrap().join().unwrap();
    }

    /// Opens the port again.
    pub(crate) fn open(&self) {
        self.0.closed.store(false, Ordering::SeqCst);
        self.begin(Socket::bind(self.0.kind, self.0.address));
    }

    fn begin(&self, socket: Socket) {
        let server = self.clone();
        let thread = std::thread::spawn(move || match socket {
            Socket::Listener(listener) => server.accept(&listener),
            Socket::Datagrams(socket) => server.datagrams(&socket),
        });
        *self.0.accepting.lock().unwrap() = Some(thread);
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }

    fn accept(&self, listener: &TcpListener) {
        for socket in listener.incoming().map_while(Result::ok) {
            if self.is_closed() {
                return;
            }
            self.serve(socket);
        }
    }

    fn datagrams(&self, socket: &UdpSocket) {
        let mut buf = [0; 2000];
        loop {
            // An answer to who is gone comes back as an error of the next call.
            let Ok((length, from)) = socket.recv_from(&mut buf) else {
                continue;
            };
            if self.is_closed() {
                return;
            }
            let text = String::from_utf8_lossy(&buf[..length]);
            if let Some(answer) = self.arrived(&text) {
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        }
    }

    /// Connections may end in any way: the callers' accounts say whether something was lost.
    fn serve(&self, socket: TcpStream) {
        let server = self.clone();
        match self.0.kind {
            Kind::Http1 => drop(std::thread::spawn(move || server.http1(socket))),
            Kind::Tcp => drop(std::thread::spawn(move || server.tcp(socket))),
            Kind::Http2 => drop(self.0.runtime.spawn(server.http2(socket))),
            Kind::WebSocket => drop(self.0.runtime.spawn(server.websocket(socket))),
            Kind::Udp => unreachable!("datagrams have no connections"),
        }
    }

    /// Notes an arrival and returns the answer to it: the request's number and the place.
    fn arrived(&self, id: &str) -> Option<String> {
        let id: u64 = id.trim_start_matches('/').parse().ok()?;
        self.0.ledger.arrived(id, self.0.place);
        Some(format!("{id} {}", name(self.0.place)))
    }

    fn http1(&self, socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let mut writer = socket.try_clone()?;
        let mut reader = BufReader::new(socket);
        while let Some(head) = read_head(&mut reader)? {
            let body = read_body(&mut reader, &head)?;
            // What hostile callers send has no number.
            let Some(answer) = self.arrived(head.split(' ').nth(1).unwrap_or_default()) else {
                return writer.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
            };
            let length = answer.len() + body.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}");
            writer.write_all(&[head.as_bytes(), &body].concat())?;
        }
        Ok(())
    }

    fn tcp(&self, mut socket: TcpStream) -> io::Result<()> {
        let mut said = Vec::new();
        socket.read_to_end(&mut said)?;
        let text = String::from_utf8_lossy(&said);
        if let Some((id, rest)) = text.split_once('\n')
            && let Some(answer) = self.arrived(id)
        {
            socket.write_all(format!("{answer} {}", rest.len()).as_bytes())?;
        }
        socket.shutdown(Shutdown::Write)
    }

    async fn http2(self, socket: TcpStream) {
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let answer = service_fn(|request: Request<Incoming>| {
            let server = self.clone();
            async move {
                let path = request.uri().path().to_owned();
                let status = |code| Response::builder().status(code);
                let Ok(body) = request.into_body().collect().await else {
                    return Ok(status(400).body(Full::new(Bytes::new())).unwrap());
                };
                let (code, mut text) = match server.arrived(&path) {
                    Some(answer) => (200, answer.into_bytes()),
                    None => (400, Vec::new()),
                };
                text.extend_from_slice(&body.to_bytes());
                Ok::<_, Infallible>(status(code).body(Full::from(text)).unwrap())
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(socket), answer)
            .await;
    }

    #[expect(clippy::result_large_err, reason = "the library's type")]
    async fn websocket(self, socket: TcpStream) {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::TcpStream::from_std(socket).unwrap();
        let mut answer = None;
        let look = |request: &UpgradeRequest, response: UpgradeResponse| {
            answer = self.arrived(request.uri().path());
            Ok(response)
        };
        let Ok(mut talk) = accept_hdr_async(socket, look).await else {
            return;
        };
        let Some(answer) = answer else { return };
        while let Some(Ok(message)) = talk.next().await {
            let Message::Text(text) = message else {
                continue;
            };
            let echo = Message::text(format!("{answer} {text}"));
            if talk.send(echo).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the name of a place in answers.
fn name(place: Place) -> String {
    match place {
        Place::App => "app".to_owned(),
        Place::Workstation(seat) => seat.to_string(),
    }
}

/// Reads an answer's place; an error says what else was answered.
pub(crate) fn place(id: u64, answer: &str) -> Result<(Place, &str), String> {
    let wrong = || format!("another answer: {:?}", answer.get(..answer.len().min(80)));
    let rest = answer.strip_prefix(&format!("{id} ")).ok_or_else(wrong)?;
    if let Some(rest) = rest.strip_prefix("app") {
        return Ok((Place::App, rest));
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (seat, rest) = rest.split_at(digits);
    Ok((Place::Workstation(seat.parse().map_err(|_| wrong())?), rest))
}
