//! A caller: one connection, one request after the other, everything checked.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use crate::apps::{field, read_body, read_head};
use crate::wait::PATIENCE;

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub struct Caller {
    reader: BufReader<TcpStream>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The whole head as it arrived.
    pub head: String,
    /// The body without its framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// Who answered, as our apps say.
    pub fn by(&self) -> &str {
        field(&self.head, "x-answered-by").unwrap_or("nobody")
    }
}

impl Caller {
    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Sends a GET request and reads the answer.
    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        self.send("GET", path, headers, b"")?;
        self.answer()
    }

    /// Sends a POST request with a body and reads the answer.
    pub fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        self.send("POST", path, headers, body)?;
        self.answer()
    }

    /// Sends a request without waiting for the answer.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: app.example\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            request += &format!("content-length: {}\r\n", body.len());
        }
        request += "\r\n";
        self.stream()
            .write_all(&[request.as_bytes(), body].concat())
    }

    /// Reads the next answer.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let head = read_head(&mut self.reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or(io::ErrorKind::InvalidData)?;
        let body = read_body(&mut self.reader, &head)?;
        Ok(Answer { status, head, body })
    }

    /// The connection itself, for what is no plain exchange.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    Caller::connect(address)?.get(path, headers)
}
