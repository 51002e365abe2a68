//! A test client: one connection, one request at a time, everything checked.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use crate::apps::{field, read_body, read_head};
use crate::wait::WAIT_TIMEOUT;

/// An HTTP/1.1 connection.
#[derive(Debug)]
pub struct Caller {
    reader: BufReader<TcpStream>,
    address: SocketAddr,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The whole head as it arrived.
    pub head: String,
    /// Body without its framing.
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the name of the app that answered.
    pub fn by(&self) -> &str {
        field(&self.head, "x-answered-by").unwrap_or("nobody")
    }
}

impl Caller {
    /// Connects to `address`.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, WAIT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
        Ok(Self {
            reader: BufReader::new(stream),
            address,
        })
    }

    /// Sends a GET request and reads the response.
    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        self.send("GET", path, headers, b"")?;
        self.answer()
    }

    /// Sends a POST request with a body and reads the response.
    pub fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        self.send("POST", path, headers, body)?;
        self.answer()
    }

    /// Sends a request without waiting for the response.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
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

    /// Reads the next response.
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

    /// Returns the connection itself, for more than plain exchanges.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }
}

/// Sends one request on its own connection.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    Caller::connect(address)?.get(path, headers)
}
