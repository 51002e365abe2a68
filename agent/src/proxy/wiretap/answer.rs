//! The workstation's answer to a copy, of which only the end matters.

use std::task::{Context, Poll, ready};

use crate::io::buffers::Buf;
use crate::io::conn::Conn;
use crate::proxy::wiretap::speech::Speech;
use traffic_core::http1::body::Body;
use traffic_core::http1::head::{Head, Kind, MAX_HEAD, Method, Parser, Step};

/// An answer that is read and dropped.
#[derive(Debug)]
pub(super) struct Answer {
    speech: Speech,
    at: Place,
    buf: Buf,
}

#[derive(Debug)]
enum Place {
    Head(Parser),
    Body(Body),
    /// Complete; another copy may follow on the connection.
    Complete,
    /// Nothing more comes, or nothing that could be told from another answer.
    Over,
}

impl Answer {
    pub(super) fn to(speech: Speech) -> Self {
        Self {
            at: match &speech {
                Speech::Http1 { .. } => Place::Head(Parser::new(Kind::Response)),
                Speech::Unread => Place::Body(Body::UntilClose),
                // Read by stream, elsewhere.
                Speech::Http2(_) => Place::Over,
            },
            speech,
            buf: Buf::default(),
        }
    }

    /// Returns true if the workstation takes nothing more on this connection.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.at, Place::Over)
    }

    /// Reads and drops what has arrived; ready with true if the connection can be used again.
    pub(super) fn poll(&mut self, conn: &mut Conn, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            self.parse();
            match self.at {
                Place::Complete => return Poll::Ready(true),
                Place::Over => return Poll::Ready(false),
                Place::Head(_) | Place::Body(_) => {}
            }
            if let Ok(1..) = ready!(self.buf.poll_fill(conn, cx)) {
                continue;
            }
            self.at = Place::Over;
        }
    }

    /// Takes off what is in the buffer.
    fn parse(&mut self) {
        while !self.buf.is_empty() {
            match &mut self.at {
                Place::Head(parser) => match parser.parse(self.buf.unread()) {
                    Ok(Step::More) if self.buf.is_full() => return self.buf.grow(MAX_HEAD),
                    Ok(Step::More) => return,
                    Ok(Step::Complete(head)) => {
                        self.buf.consume(head.len);
                        self.at = self.behind(&head);
                    }
                    Err(_) => self.at = Place::Over,
                },
                Place::Body(body) => match body.advance(self.buf.unread()) {
                    Ok(n) => {
                        self.buf.consume(n);
                        if body.is_done() {
                            self.at = Place::Complete;
                        }
                    }
                    Err(_) => self.at = Place::Over,
                },
                // Bytes that nobody has asked for.
                Place::Complete | Place::Over => {
                    self.buf.consume(usize::MAX);
                    self.at = Place::Over;
                }
            }
        }
    }

    fn behind(&self, head: &Head) -> Place {
        let Speech::Http1 { method, persists } = self.speech else {
            return Place::Over;
        };
        match head.status() {
            // The connection has become something else.
            101 => Place::Over,
            200..=299 if method == Method::Connect => Place::Over,
            100..=199 => Place::Head(Parser::new(Kind::Response)),
            _ if !persists || !head.persists() => Place::Body(Body::UntilClose),
            _ => match Body::of_response(head, method) {
                Body::Done => Place::Complete,
                body => Place::Body(body),
            },
        }
    }
}
