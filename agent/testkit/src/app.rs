//! Apps and callers whose every byte the test writes and expects.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::{WAIT_TIMEOUT, soon};

/// A connection on which the test says what is sent and what is expected.
#[expect(async_fn_in_trait, reason = "for tests, which name the type")]
pub trait Expect {
    /// Sends a text.
    async fn send(&mut self, text: &str);
    /// Reads exactly this text.
    async fn expect(&mut self, text: &str);
    /// Reads the orderly end.
    async fn expect_end(&mut self);
    /// Reads a reset.
    async fn expect_reset(&mut self);
}

impl Expect for TcpStream {
    async fn send(&mut self, text: &str) {
        self.write_all(text.as_bytes()).await.unwrap();
    }

    async fn expect(&mut self, text: &str) {
        let mut seen = vec![0; text.len()];
        let mut at = 0;
        while at < seen.len() {
            match timeout(WAIT_TIMEOUT, self.read(&mut seen[at..])).await {
                Ok(Ok(n @ 1..)) => at += n,
                other => {
                    let so_far = String::from_utf8_lossy(&seen[..at]);
                    panic!("expected {text:?}, read {so_far:?}, then {other:?}")
                }
            }
        }
        assert_eq!(String::from_utf8_lossy(&seen), text);
    }

    async fn expect_end(&mut self) {
        let (read, rest) = rest(self).await;
        assert!(
            matches!(read, Ok(0)),
            "expected the end, got {read:?}: {rest:?}"
        );
    }

    async fn expect_reset(&mut self) {
        let (read, rest) = rest(self).await;
        let reset = read
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset);
        assert!(reset, "expected a reset, got {read:?}: {rest:?}");
    }
}

async fn rest(socket: &mut TcpStream) -> (io::Result<usize>, String) {
    let mut rest = Vec::new();
    let read = soon(socket.read_to_end(&mut rest)).await;
    (read, String::from_utf8_lossy(&rest).into_owned())
}

/// A listener on loopback whose connections the test serves: an app, or a server at a workstation.
#[derive(Debug)]
pub struct ScriptedApp {
    listener: TcpListener,
}

impl ScriptedApp {
    /// Listens on a port chosen by the kernel.
    pub async fn listen() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> TcpStream {
        let (socket, _) = soon(self.listener.accept()).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// Returns true if nothing has connected.
    pub async fn is_untouched(&self) -> bool {
        timeout(Duration::from_millis(50), self.listener.accept())
            .await
            .is_err()
    }
}

/// Starts a server that answers every request head with its name.
pub async fn named_server(name: &'static str) -> SocketAddr {
    let ScriptedApp { listener } = ScriptedApp::listen().await;
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve_named(socket, name));
        }
    });
    addr
}

async fn serve_named(mut socket: TcpStream, name: &'static str) {
    let mut seen = Vec::new();
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = socket.read(&mut buf).await {
        seen.extend_from_slice(&buf[..n]);
        while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            seen.drain(..end + 4);
            let length = name.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// A connected pair of sockets.
pub async fn socket_pair() -> (TcpStream, TcpStream) {
    let app = ScriptedApp::listen().await;
    let (near, far) = tokio::join!(TcpStream::connect(app.addr()), app.accept());
    let near = near.unwrap();
    near.set_nodelay(true).unwrap();
    (near, far)
}
