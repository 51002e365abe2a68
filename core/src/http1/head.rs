//! HTTP/1 head parser: end of the head, data for routing, and framing of the body (RFC 9112
//! sections 2 to 6). Bytes are parsed in place; nothing is copied, kept in a map or normalised.
//!
//! A head that two parsers could read differently is [`Ambiguous`] and left to the app. Being
//! strict is therefore free: a rejected head is only relayed opaquely.

mod lines;
mod model;

use memchr::memchr;

use self::lines::{
    Line, decimal, field_line, may_be_length, may_begin, request_line, start_line_end, status_line,
    trimmed,
};
pub use self::model::{Ambiguous, Framing, Kind, Method, Start};

/// Maximum head size in bytes; a larger one is relayed opaquely. Servers commonly stop at 8 to 32
/// KiB.
pub const MAX_HEAD: usize = 64 * 1024;

/// A complete head, as offsets into the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length from the front to the end of the empty line.
    pub len: usize,
    /// Contents of the first line.
    pub start: Start,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub minor: u8,
    /// Framing of the body.
    pub framing: Framing,
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// An `Upgrade` field is present.
    pub upgrade: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    fields: usize,
}

/// Result of a parsing step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The head is not complete yet.
    More,
    /// The head is complete.
    Complete(Head),
}

/// Parses one head from bytes that grow at their end. Every byte is searched once and every line
/// parsed once, so a head that arrives byte by byte costs no more than one that arrives whole.
#[derive(Clone, Debug)]
pub struct Parser {
    kind: Kind,
    /// Start of the first incomplete line.
    at: usize,
    /// End of the part already searched for a line end.
    searched: usize,
    /// Empty lines that may still be skipped; the largest number does not become less.
    skips: u8,
    start: Option<Start>,
    minor: u8,
    fields: usize,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    expects_continue: bool,
}

impl Parser {
    /// Creates a parser at the front of a head.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            at: 0,
            searched: 0,
            // One before a request is ignored (RFC 9112 section 2.2).
            skips: u8::from(kind == Kind::Request),
            start: None,
            minor: 0,
            fields: 0,
            length: None,
            chunked: false,
            close: false,
            keep_alive: false,
            upgrade: false,
            expects_continue: false,
        }
    }

    /// Creates a parser at the end of another message on the same connection. Any number of empty
    /// lines may be between the two; the head's length includes them.
    #[must_use]
    pub fn of_next_request() -> Self {
        Self {
            skips: u8::MAX,
            ..Self::new(Kind::Request)
        }
    }

    /// Continues parsing. `bytes` starts at the front of the head and holds everything received,
    /// more than in the call before.
    ///
    /// # Errors
    /// The ambiguity of the head, found as soon as its line is complete.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Step, Ambiguous> {
        // The incomplete line has no new line feed, so it is not parsed again.
        if self.searched > self.at
            && memchr(b'\n', bytes.get(self.searched..).unwrap_or_default()).is_none()
        {
            self.searched = bytes.len();
            return self.more(bytes);
        }
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let line = match self.start {
                None => start_line_end(rest)?,
                Some(_) => field_line(rest)?,
            };
            let Some(line) = line else {
                self.searched = bytes.len();
                return self.more(bytes);
            };
            let next = self.at + line.end + 2;
            if next > MAX_HEAD {
                return Err(Ambiguous::Oversized);
            }
            match (self.start, line.end) {
                (None, 0) if self.skips > 0 => self.skips -= u8::from(self.skips < u8::MAX),
                (None, _) => self.first_line(rest.get(..line.end).unwrap_or_default(), next)?,
                // An empty line ends the head.
                (Some(start), 0) => return self.complete(start, next),
                (Some(_), _) => self.field(rest, line)?,
            }
            self.at = next;
        }
    }

    /// Returns `More` only if the bytes may still become a head: others must not be held back.
    fn more(&self, bytes: &[u8]) -> Result<Step, Ambiguous> {
        if bytes.len() >= MAX_HEAD {
            Err(Ambiguous::Oversized)
        } else {
            self.may_go_on(bytes.get(self.at..).unwrap_or_default())
        }
    }

    /// Judges the line that is not complete yet.
    fn may_go_on(&self, line: &[u8]) -> Result<Step, Ambiguous> {
        if self.start.is_none() {
            return if may_begin(self.kind, line) {
                Ok(Step::More)
            } else {
                Err(Ambiguous::StartLine)
            };
        }
        let length = b"content-length:";
        let is_length = line
            .get(..length.len())
            .is_some_and(|name| name.eq_ignore_ascii_case(length));
        if is_length && !may_be_length(line.get(length.len()..).unwrap_or_default()) {
            return Err(Ambiguous::Length);
        }
        Ok(Step::More)
    }

    fn first_line(&mut self, line: &[u8], next: usize) -> Result<(), Ambiguous> {
        let (start, minor) = match self.kind {
            Kind::Request => request_line(line, self.at),
            Kind::Response => status_line(line),
        }
        .ok_or(Ambiguous::StartLine)?;
        self.start = Some(start);
        self.minor = minor;
        self.fields = next;
        Ok(())
    }

    fn field(&mut self, rest: &[u8], line: Line) -> Result<(), Ambiguous> {
        // Most names are skipped by their length alone.
        if !matches!(line.colon, 6 | 7 | 10 | 14 | 17) {
            return Ok(());
        }
        let name = rest.get(..line.colon).unwrap_or_default();
        let value = || trimmed(rest.get(line.colon + 1..line.end).unwrap_or_default());
        // Equal repeated lengths are allowed by RFC 9110 section 8.6, but implementations differ,
        // so they are ambiguous.
        if name.eq_ignore_ascii_case(b"content-length") {
            if self
                .length
                .replace(decimal(value()).ok_or(Ambiguous::Length)?)
                .is_some()
            {
                return Err(Ambiguous::Length);
            }
            return self.check_framing();
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // Any other coding, or a list of them, may be decoded differently by the next hop.
            if self.chunked || !value().eq_ignore_ascii_case(b"chunked") {
                return Err(Ambiguous::Coding);
            }
            self.chunked = true;
            return self.check_framing();
        } else if name.eq_ignore_ascii_case(b"connection") {
            for token in value().split(|b| *b == b',').map(trimmed) {
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        } else if name.eq_ignore_ascii_case(b"expect") {
            self.expects_continue |= value().eq_ignore_ascii_case(b"100-continue");
        }
        Ok(())
    }

    /// Framing faults are final: nothing that follows mends one that contradicts itself.
    fn check_framing(&self) -> Result<(), Ambiguous> {
        match self.start {
            Some(start) => self.framing(start).map(drop),
            None => Ok(()),
        }
    }

    /// Framing of the body, as far as the lines so far say.
    fn framing(&self, start: Start) -> Result<Framing, Ambiguous> {
        let framing = match (self.length, self.chunked) {
            (None, false) => Framing::Unsaid,
            (Some(n), false) => Framing::Length(n),
            // A 1.0 peer knows no transfer coding and would read the chunks as the body (RFC 9112
            // section 6.1).
            (None, true) if self.minor == 1 => Framing::Chunked,
            // Length and coding together are the classic request smuggling vector (RFC 9112 section
            // 6.3, rule 3).
            _ => return Err(Ambiguous::Conflict),
        };
        let bodyless = match start {
            // Content of a CONNECT has no meaning that implementations agree on (RFC 9110 section
            // 9.3.6).
            Start::Request { method, .. } => method == Method::Connect,
            // RFC 9112 section 6.1 and RFC 9110 section 8.6 forbid framing here.
            Start::Response { status } => status / 100 == 1 || status == 204,
        };
        if bodyless && !matches!(framing, Framing::Unsaid | Framing::Length(0)) {
            return Err(Ambiguous::Conflict);
        }
        Ok(framing)
    }

    fn complete(&self, start: Start, len: usize) -> Result<Step, Ambiguous> {
        let framing = self.framing(start)?;
        Ok(Step::Complete(Head {
            len,
            start,
            minor: self.minor,
            framing,
            close: self.close,
            keep_alive: self.keep_alive,
            upgrade: self.upgrade,
            expects_continue: self.expects_continue,
            fields: self.fields,
        }))
    }
}

impl Head {
    /// Returns true if the sender of this head keeps the connection open (RFC 9112 section 9.3).
    #[must_use]
    pub fn persists(&self) -> bool {
        !self.close && (self.minor == 1 || self.keep_alive)
    }

    /// Returns the status code; 0 in a request.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.start {
            Start::Response { status } => status,
            Start::Request { .. } => 0,
        }
    }

    /// Returns the method class; [`Method::Other`] in a response.
    #[must_use]
    pub fn method(&self) -> Method {
        match self.start {
            Start::Request { method, .. } => method,
            Start::Response { .. } => Method::Other,
        }
    }

    /// Returns the length of the empty lines in front of a request; 0 in a response.
    #[must_use]
    pub fn empty_lines(&self) -> usize {
        match self.start {
            Start::Request { method_at, .. } => method_at,
            Start::Response { .. } => 0,
        }
    }

    /// Splits into the first line, and the field lines with the empty line; `bytes` are the head's
    /// own.
    #[must_use]
    pub fn split<'b>(&self, bytes: &'b [u8]) -> (&'b [u8], &'b [u8]) {
        bytes
            .get(..self.len)
            .and_then(|head| head.split_at_checked(self.fields))
            .unwrap_or_default()
    }

    /// Returns the request as routing reads it; `bytes` are those the head was parsed from.
    #[must_use]
    pub fn request<'b>(&self, bytes: &'b [u8]) -> RequestView<'b> {
        let (method, target) = match self.start {
            Start::Request {
                method_at,
                target,
                target_end,
                ..
            } => (
                bytes.get(method_at..target.saturating_sub(1)),
                bytes.get(target..target_end),
            ),
            Start::Response { .. } => (None, None),
        };
        RequestView {
            method: method.unwrap_or_default(),
            target: target.unwrap_or_default(),
            fields: bytes
                .get(self.fields..self.len.saturating_sub(2))
                .unwrap_or_default(),
        }
    }
}

/// A request head as routing and the access log read it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'b> {
    /// Method as received.
    pub method: &'b [u8],
    /// Target as received.
    pub target: &'b [u8],
    fields: &'b [u8],
}

impl crate::routing::Request for RequestView<'_> {
    fn method(&self) -> &[u8] {
        self.method
    }

    fn target(&self) -> &[u8] {
        origin_form(self.target)
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        let mut rest = self.fields;
        // The lines were validated before: each has a colon and ends in CR LF.
        while let Some(colon) = memchr(b':', rest) {
            let (name, after) = rest.split_at(colon);
            let end = memchr(b'\r', after).unwrap_or(after.len());
            visit(name, trimmed(after.get(1..end).unwrap_or_default()));
            rest = after.get(end + 2..).unwrap_or_default();
        }
    }
}

/// Returns path and query of a target: the part after the authority in absolute-form (RFC 9112
/// section 3.2.2), everything in the other forms.
fn origin_form(target: &[u8]) -> &[u8] {
    let Some(scheme) = target
        .first()
        .filter(|b| b.is_ascii_alphabetic())
        .and_then(|_| memchr(b':', target))
    else {
        return target;
    };
    let Some(after) = target.get(scheme..).and_then(|t| t.strip_prefix(b"://")) else {
        return target;
    };
    let path = after.iter().position(|b| matches!(b, b'/' | b'?' | b'#'));
    match path.map(|at| after.split_at(at).1) {
        Some(path) if path.first() == Some(&b'/') => path,
        // An authority without a path means the root.
        _ => b"/",
    }
}

#[cfg(test)]
mod tests;
