//! Apps and local servers for tests: they name themselves, report what they saw, and count.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An HTTP/1.1 server with a name.
///
/// Every answer carries `x-answered-by: NAME` and repeats the request's head in its body, followed
/// by the request's body. The path may ask for more: `/slow/MS` waits so many milliseconds before
/// the answer, `/bytes/N` answers with N bytes, `/drip/N/MS` with N chunks that far apart, `/close`
/// closes afterwards.
#[derive(Clone, Debug)]
pub struct App {
    name: Arc<str>,
    address: SocketAddr,
    served: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
}

impl App {
    /// Starts one on loopback, on a port chosen by the kernel.
    pub fn start(name: &str) -> Self {
        Self::on(name, TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    }

    /// Starts one on a listener, which may belong to a namespace.
    pub fn on(name: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let app = Self {
            name: name.into(),
            address,
            served: Arc::default(),
            failures: Arc::default(),
            stopped: Arc::default(),
        };
        let serving = app.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serving.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let app = serving.clone();
                std::thread::spawn(move || {
                    let mut doing = String::from("a first request");
                    // Between two exchanges a connection may end in any way.
                    if let Err(error) = app.serve(stream, &mut doing)
                        && !doing.is_empty()
                    {
                        app.failures
                            .lock()
                            .unwrap()
                            .push(format!("{doing}: {error}"));
                    }
                });
            }
        });
        app
    }

    /// Returns its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of requests that have come so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Describes the connections that broke during an exchange.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Stops accepting; open connections continue.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then drops its listener.
        let _ = TcpStream::connect(self.address);
    }

    fn serve(&self, stream: TcpStream, doing: &mut String) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        loop {
            // What is no HTTP, such as the beginning of TLS, is hung up on.
            if reader
                .fill_buf()?
                .first()
                .is_some_and(|byte| !byte.is_ascii_uppercase())
            {
                return Ok(());
            }
            let Some(head) = read_head(&mut reader)? else {
                return Ok(());
            };
            // Who asks for HTTP/2 this way gets what most servers of HTTP/1 say, and is not
            // counted.
            if head.starts_with("PRI * HTTP/2.0") {
                return writer.write_all(
                    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
                );
            }
            *doing = head.lines().next().unwrap_or_default().to_owned();
            let body = read_body(&mut reader, &head)?;
            let path = head
                .split(' ')
                .nth(1)
                .unwrap_or_default()
                .split('?')
                .next()
                .unwrap_or_default()
                .to_owned();
            // Before the answer: whoever has it may ask for the count at once.
            self.served.fetch_add(1, Ordering::Relaxed);
            self.answer(&mut writer, &path, &head, &body)?;
            doing.clear();
            if path == "/close" || field(&head, "connection").is_some_and(|value| value == "close")
            {
                return Ok(());
            }
        }
    }

    fn answer(
        &self,
        writer: &mut TcpStream,
        path: &str,
        head: &str,
        body: &[u8],
    ) -> io::Result<()> {
        let mut parts = path.split('/').skip(1);
        let kind = parts.next().unwrap_or_default();
        let numbers: Vec<u64> = parts.map_while(|part| part.parse().ok()).collect();
        let name = &self.name;
        match (kind, &numbers[..]) {
            ("bytes", &[count]) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nx-answered-by: {name}\r\ncontent-length: {count}\r\n\r\n"
                );
                writer.write_all(head.as_bytes())?;
                io::copy(&mut io::repeat(b'x').take(count), writer).map(drop)
            }
            ("drip", &[count, pause]) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nx-answered-by: {name}\r\ntransfer-encoding: \
                    chunked\r\n\r\n"
                );
                writer.write_all(head.as_bytes())?;
                for _ in 0..count {
                    writer.write_all(b"5\r\ndrip\n\r\n")?;
                    std::thread::sleep(Duration::from_millis(pause));
                }
                writer.write_all(b"0\r\n\r\n")
            }
            _ => {
                if let ("slow", &[pause]) = (kind, &numbers[..]) {
                    std::thread::sleep(Duration::from_millis(pause));
                }
                let length = head.len() + body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nx-answered-by: {name}\r\ncontent-length: \
                    {length}\r\n\r\n{head}"
                );
                writer.write_all(&[answer.as_bytes(), body].concat())
            }
        }
    }
}

/// Starts a server for one behaviour: every connection is passed to `serve` on its own thread.
pub fn raw(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    raw_on(listener, serve);
    address
}

/// Starts the same on a listener, which may belong to a namespace.
pub fn raw_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// Reads one head including the empty line; `None` at the end of the connection.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 {
            return if before == 0 {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        if matches!(&head[before..], "\r\n" | "\n") {
            return Ok(Some(head));
        }
    }
}

/// Returns the value of a header field, if present.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields
        .filter(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .next()
}

/// Reads the body announced by the head, by length or in chunks; without either it is empty.
pub fn read_body(reader: &mut impl BufRead, head: &str) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if field(head, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size =
                u64::from_str_radix(size.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
            io::copy(&mut reader.by_ref().take(size), &mut body)?;
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if size == 0 {
                return Ok(body);
            }
        }
    }
    let length: u64 = field(head, "content-length")
        .and_then(|value| value.parse().ok())
        .unwrap_or(0);
    let read = io::copy(&mut reader.by_ref().take(length), &mut body)?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(body)
}
