//! Callers that know what each answer has to be.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::Reason;
use h2::client::SendRequest;
use harness::caller::Caller;
use http::Request;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::ledger::{Asked, Look, Place};
use crate::seats::{HEADER, Testbed};
use crate::servers::place;

/// Delay between two requests of one caller.
const CALL_DELAY: Duration = Duration::from_millis(10);
/// Time a caller waits for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for a datagram.
const DATAGRAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests on one connection.
const REQUESTS: usize = 50;
/// Messages on one WebSocket.
const MESSAGES: usize = 5;

/// A protocol, with a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    WebSocket,
    /// A whole port is intercepted, so every connection is the developer's.
    Tcp,
    /// The same with datagrams.
    Udp,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Http1,
        Self::Http2,
        Self::WebSocket,
        Self::Tcp,
        Self::Udp,
    ];

    pub(crate) fn transport(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            _ => "TCP",
        }
    }

    /// Returns true if intercepts take the whole port.
    pub(crate) fn is_whole_port(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1",
            Self::Http2 => "HTTP/2",
            Self::WebSocket => "WebSocket",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Calls until `finish`, on behalf of the developer with this seat or of nobody.
pub(crate) fn call(testbed: &Testbed, kind: Kind, seat: Option<usize>, finish: &AtomicBool) {
    let caller = Call {
        testbed,
        kind,
        seat,
        finish,
    };
    match kind {
        Kind::Http1 => caller.http1(),
        // A connection to a port that is taken as a whole is always some developer's.
        Kind::Tcp | Kind::Udp if seat.is_none() => {}
        Kind::Tcp => caller.tcp(),
        Kind::Udp => caller.udp(),
        Kind::Http2 => testbed.runtime.block_on(caller.http2()),
        Kind::WebSocket => testbed.runtime.block_on(caller.websocket()),
    }
}

struct Call<'a> {
    testbed: &'a Testbed,
    kind: Kind,
    seat: Option<usize>,
    finish: &'a AtomicBool,
}

impl Call<'_> {
    fn over(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }

    fn ask(&self) -> Asked {
        self.testbed.ledger.ask(self.kind, self.seat)
    }

    /// Returns what is expected of the seat's requests now.
    fn look(&self) -> Option<Look> {
        self.seat.map(|seat| self.testbed.ledger.look(seat))
    }

    /// Closes the account: the answer has to be of this request, with this text behind it.
    fn close(&self, asked: &Asked, answer: Result<(Place, bool), String>) -> bool {
        match answer {
            Ok((by, true)) => self.testbed.ledger.answered(asked, by),
            Ok((by, false)) => self.testbed.ledger.problem(format!(
                "request {} came back with another body from {by:?}",
                asked.id
            )),
            Err(error) => {
                self.testbed.ledger.failed(asked, &error);
                return false;
            }
        }
        true
    }

    fn header(&self) -> Option<(&'static str, String)> {
        self.seat
            .map(|seat| (HEADER, self.testbed.seats[seat].value.clone()))
    }

    fn http1(&self) {
        let address = self.testbed.address(self.kind);
        while !self.over() {
            let mut connection = None;
            for number in 0..REQUESTS {
                if self.over() {
                    return;
                }
                let asked = self.ask();
                let answer = (|| {
                    if connection.is_none() {
                        let caller = Caller::connect(address)?;
                        connection = Some(caller);
                    }
                    let caller = connection.as_mut().unwrap();
                    caller.stream().set_read_timeout(Some(ANSWER_TIMEOUT))?;
                    let header = self.header();
                    let headers: Vec<_> = header.iter().map(|(n, v)| (*n, v.as_str())).collect();
                    let body = vec![b'x'; if number % 7 == 0 { 100_000 } else { number }];
                    let answer = caller.post(&format!("/{}", asked.id), &headers, &body)?;
                    Ok::<_, std::io::Error>((answer, body))
                })();
                let answer = answer
                    .map_err(|e| e.to_string())
                    .and_then(|(answer, body)| {
                        let text = String::from_utf8_lossy(&answer.body);
                        let (by, rest) = place(asked.id, &text)?;
                        Ok((by, rest.as_bytes() == body))
                    });
                if !self.close(&asked, answer) {
                    break;
                }
                std::thread::sleep(CALL_DELAY);
            }
        }
    }

    fn tcp(&self) {
        while !self.over() {
            let asked = self.ask();
            let answer = self.tcp_once(&asked).map_err(|e| e.to_string());
            let answer = answer.and_then(|text| {
                let (by, rest) = place(asked.id, &text)?;
                Ok((by, rest == " 50000"))
            });
            self.close(&asked, answer);
            std::thread::sleep(CALL_DELAY);
        }
    }

    fn tcp_once(&self, asked: &Asked) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.testbed.address(self.kind))?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut text = format!("{}\n", asked.id).into_bytes();
        text.resize(text.len() + 50_000, b'x');
        stream.write_all(&text)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Sends datagrams from a few sockets, since each is a flow of its own.
    fn udp(&self) {
        while !self.over() {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.connect(self.testbed.address(self.kind)).unwrap();
            socket.set_read_timeout(Some(DATAGRAM_TIMEOUT)).unwrap();
            let begin = self.look();
            for _ in 0..REQUESTS {
                if self.over() {
                    return;
                }
                // A flow stays in its tunnel. One that began before its workstation was attached goes
                // through the manager, and shares its fate.
                if self.look() != begin {
                    break;
                }
                let asked = self.ask();
                let mut buf = [0; 100];
                let answer = socket
                    .send(asked.id.to_string().as_bytes())
                    .and_then(|_| socket.recv(&mut buf))
                    .map_err(|e| e.to_string());
                let answer = answer.and_then(|length| {
                    let text = String::from_utf8_lossy(&buf[..length]);
                    let (by, rest) = place(asked.id, &text)?;
                    Ok((by, rest.is_empty()))
                });
                if !self.close(&asked, answer) {
                    // An answer that comes late must not be taken for the next one's.
                    break;
                }
                std::thread::sleep(CALL_DELAY);
            }
        }
    }

    async fn http2(&self) {
        while !self.over() {
            let socket = tokio::net::TcpStream::connect(self.testbed.address(self.kind)).await;
            let socket = socket.expect("the agent accepts");
            socket.set_nodelay(true).unwrap();
            let shaken = h2::client::handshake(socket).await;
            let (send, connection) = shaken.expect("the agent shakes hands");
            let driving = tokio::spawn(connection);
            for _ in 0..REQUESTS {
                if self.over() {
                    break;
                }
                let asked = self.ask();
                let answer = tokio::time::timeout(ANSWER_TIMEOUT, self.stream(&asked, &send));
                match answer
                    .await
                    .unwrap_or(Err(Stream::Failed("no answer".into())))
                {
                    Ok(answer) => drop(self.close(&asked, Ok(answer))),
                    Err(Stream::HandedBack) => {
                        self.testbed.ledger.repeat(&asked);
                        break;
                    }
                    Err(Stream::Failed(error)) => drop(self.close(&asked, Err(error))),
                }
                tokio::time::sleep(CALL_DELAY).await;
            }
            driving.abort();
        }
    }

    async fn stream(
        &self,
        asked: &Asked,
        send: &SendRequest<Bytes>,
    ) -> Result<(Place, bool), Stream> {
        let mut send = send.clone().ready().await.map_err(|e| sorted(&e))?;
        let mut request = Request::post(format!("http://app.example/{}", asked.id));
        if let Some((name, value)) = self.header() {
            request = request.header(name, value);
        }
        let (answer, mut body) = send
            .send_request(request.body(()).unwrap(), false)
            .map_err(|e| sorted(&e))?;
        body.send_data(Bytes::from_static(&[b'x'; 1000]), true)
            .map_err(|e| sorted(&e))?;
        let mut body = answer.await.map_err(|e| sorted(&e))?.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(|e| Stream::Failed(format!("amid the answer: {e}")))?;
            let _ = body.flow_control().release_capacity(data.len());
            text.extend_from_slice(&data);
        }
        let text = String::from_utf8_lossy(&text);
        let (by, rest) = place(asked.id, &text).map_err(Stream::Failed)?;
        Ok((by, rest.as_bytes() == [b'x'; 1000]))
    }

    async fn websocket(&self) {
        while !self.over() {
            let asked = self.ask();
            let talk = tokio::time::timeout(ANSWER_TIMEOUT, self.talk(&asked));
            let answer = talk.await.unwrap_or(Err("no answer".into()));
            self.close(&asked, answer);
            tokio::time::sleep(CALL_DELAY).await;
        }
    }

    async fn talk(&self, asked: &Asked) -> Result<(Place, bool), String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let address = self.testbed.address(self.kind);
        let socket = tokio::net::TcpStream::connect(address)
            .await
            .map_err(|e| failed(&e))?;
        let mut request = format!("ws://app.example/{}", asked.id)
            .into_client_request()
            .unwrap();
        if let Some((name, value)) = self.header() {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (mut talk, _) = client_async(request, socket)
            .await
            .map_err(|e| failed(&e))?;
        let mut by = None;
        for number in 0..MESSAGES {
            let text = Message::text(format!("message {number}"));
            talk.send(text).await.map_err(|e| failed(&e))?;
            let Some(Ok(Message::Text(text))) = talk.next().await else {
                return Err(format!("the WebSocket ended before message {number}"));
            };
            let (place, rest) = place(asked.id, &text)?;
            if rest != format!(" message {number}") || by.is_some_and(|by| by != place) {
                return Ok((place, false));
            }
            by = Some(place);
        }
        talk.close(None).await.map_err(|e| failed(&e))?;
        while talk.next().await.is_some() {}
        Ok((by.unwrap(), true))
    }
}

/// What became of a stream that has no answer.
enum Stream {
    /// The peer says that it was not processed (RFC 9113 section 8.7).
    HandedBack,
    Failed(String),
}

fn sorted(error: &h2::Error) -> Stream {
    if error.is_go_away() || (error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)) {
        Stream::HandedBack
    } else {
        Stream::Failed(format!("{error:?}"))
    }
}
