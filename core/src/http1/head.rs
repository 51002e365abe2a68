//! HTTP/1 head parser: end of the head, data for routing, and framing of the body (RFC 9112
//! sections 2 to 6). Bytes are parsed in place; nothing is copied, kept in a map or normalised.
//!
//! A head that two parsers could read differently is [`Ambiguous`] and left to the app. Being
//! strict is therefore free: a rejected head is only relayed opaquely.

use memchr::memchr;

/// Maximum head size in bytes; a larger one is relayed opaquely. Servers commonly stop at 8 to 32
/// KiB.
pub const MAX_HEAD: usize = 64 * 1024;

/// Body framing as declared by the message's own head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Neither length nor transfer coding: no body in a request, until close in a response.
    Unsaid,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// Reason a head is left to the app's judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguous {
    /// The first line is not a request or status line of HTTP/1.0 or 1.1.
    StartLine,
    /// A line ends in LF alone, or a CR stands alone.
    LineEnd,
    /// A line that continues the one before it (obs-fold).
    Folded,
    /// A field name with a character outside of tokens, including white space before the colon.
    Name,
    /// A control character in a value.
    Value,
    /// A length that is repeated, signed, listed, too large or not a number.
    Length,
    /// A transfer coding other than exactly one `chunked`.
    Coding,
    /// A length beside a transfer coding, or framing that the message may not have.
    Conflict,
    /// Larger than [`MAX_HEAD`].
    Oversized,
}

/// Methods that change the framing of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// HEAD: the response has no body.
    Head,
    /// CONNECT: a 2xx response turns the connection into a tunnel.
    Connect,
    /// Other methods, known or not.
    Other,
}

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

/// Contents of the first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A request line, with the target's offsets.
    Request {
        /// Method class.
        method: Method,
        /// Start of the method (after an empty line that may precede it).
        method_at: usize,
        /// Start of the target.
        target: usize,
        /// End of the target.
        target_end: usize,
    },
    /// A status line.
    Response {
        /// The status code.
        status: u16,
    },
}

/// Result of a parsing step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The head is not complete yet.
    More,
    /// The head is complete.
    Complete(Head),
}

/// Kind of message being parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A caller's request.
    Request,
    /// A response of an app or workstation.
    Response,
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
                // One empty line before a request is ignored (RFC 9112 section 2.2).
                (None, 0) if self.at == 0 && self.kind == Kind::Request => {}
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

    /// Nothing that follows mends a framing that contradicts itself.
    fn check_framing(&self) -> Result<(), Ambiguous> {
        match self.start {
            Some(start) => self.framing(start).map(drop),
            None => Ok(()),
        }
    }

    /// How the body ends, as far as the lines so far say.
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

/// Offsets of a line's parts from its start.
#[derive(Clone, Copy)]
struct Line {
    /// Offset of a field line's colon.
    colon: usize,
    /// Offset of the CR.
    end: usize,
}

fn start_line_end(bytes: &[u8]) -> Result<Option<Line>, Ambiguous> {
    line_end(bytes, 0).map(|end| end.map(|end| Line { colon: 0, end }))
}

/// Finds colon and end of a field line, `None` while it is incomplete; the empty line has its end
/// at 0.
fn field_line(bytes: &[u8]) -> Result<Option<Line>, Ambiguous> {
    let Some(colon) = bytes.iter().position(|b| !is_token(*b)) else {
        return Ok(None);
    };
    match (colon, bytes.get(colon).copied()) {
        (0, Some(b'\r')) => Ok(line_end(bytes, 0)?.map(|end| Line { colon: 0, end })),
        // obs-fold is deprecated (RFC 9112 section 5.2) and merged differently by parsers.
        (0, Some(b' ' | b'\t')) => Err(Ambiguous::Folded),
        (0, _) => Err(Ambiguous::Name),
        (_, Some(b':')) => Ok(line_end(bytes, colon + 1)?.map(|end| Line { colon, end })),
        _ => Err(Ambiguous::Name),
    }
}

/// Returns the offset of the CR LF that ends the line, searched from `from`; rejects control
/// characters before it.
fn line_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Ambiguous> {
    let mut at = from;
    loop {
        at += text_len(bytes.get(at..).unwrap_or_default());
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'\t'), _) => at += 1,
            (Some(b'\r'), Some(b'\n')) => return Ok(Some(at)),
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            // A bare CR or LF ends a line for some parsers only (RFC 9112 section 2.2).
            (Some(b'\r' | b'\n'), _) => return Err(Ambiguous::LineEnd),
            (Some(_), _) => return Err(Ambiguous::Value),
        }
    }
}

/// Counts the leading bytes that are neither control characters nor DEL; eight at a time.
fn text_len(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (words, tail) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let w = u64::from_le_bytes(*word);
        let del = w ^ (ONES * 0x7f);
        // The usual bit tricks for "a byte below 0x20" and "a zero byte"; the lowest flag is exact,
        // higher ones need not be.
        let flags = (w.wrapping_sub(ONES * 0x20) & !w | del.wrapping_sub(ONES) & !del) & HIGH;
        if flags != 0 {
            return i * 8 + (flags.trailing_zeros() / 8) as usize;
        }
    }
    words.len() * 8
        + tail
            .iter()
            .position(|b| *b < 0x20 || *b == 0x7f)
            .unwrap_or(tail.len())
}

/// Returns true if an incomplete first line may still become a valid one; it holds no control
/// characters but tabs.
fn may_begin(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::Request => may_begin_request(bytes),
        Kind::Response => may_begin_response(bytes),
    }
}

fn may_begin_request(bytes: &[u8]) -> bool {
    let Some(method) = bytes.iter().position(|b| !is_token(*b)) else {
        return true;
    };
    if method == 0 {
        return bytes == b"\r";
    }
    let Some(rest) = bytes.get(method..).and_then(|b| b.strip_prefix(b" ")) else {
        return false;
    };
    let Some(target) = rest.iter().position(|b| !is_text(*b) || *b == b' ') else {
        return true;
    };
    target > 0
        && rest
            .get(target..)
            .and_then(|b| b.strip_prefix(b" "))
            .is_some_and(|version| {
                [&b"HTTP/1.1\r"[..], b"HTTP/1.0\r"]
                    .iter()
                    .any(|whole| whole.starts_with(version))
            })
}

fn may_begin_response(bytes: &[u8]) -> bool {
    let version = bytes.get(..bytes.len().min(9)).unwrap_or_default();
    let code = bytes.get(9..bytes.len().min(12)).unwrap_or_default();
    (b"HTTP/1.1 ".starts_with(version) || b"HTTP/1.0 ".starts_with(version))
        && code.iter().all(u8::is_ascii_digit)
        && matches!(bytes.get(12), None | Some(b' ' | b'\r'))
}

/// Returns true if the value of an incomplete `Content-Length` line may still be a number.
fn may_be_length(value: &[u8]) -> bool {
    let digits = value.trim_ascii_start();
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let rest = digits.get(len..).unwrap_or_default();
    (len > 0 || rest.is_empty()) && rest.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r'))
}

/// Parses `method SP target SP HTTP/1.x`, with exactly one space at each place (RFC 9112 section
/// 3).
fn request_line(line: &[u8], offset: usize) -> Option<(Start, u8)> {
    let method_end = memchr(b' ', line).filter(|end| *end > 0)?;
    let method = line.get(..method_end)?;
    if !method.iter().all(|b| is_token(*b)) {
        return None;
    }
    let target = method_end + 1;
    let target_end = target + memchr(b' ', line.get(target..)?).filter(|len| *len > 0)?;
    // Some parsers split the request line at tabs as well.
    if line.get(target..target_end)?.contains(&b'\t') {
        return None;
    }
    let minor = version(line.get(target_end + 1..)?)?;
    let method = match method {
        b"HEAD" => Method::Head,
        b"CONNECT" => Method::Connect,
        _ => Method::Other,
    };
    Some((
        Start::Request {
            method,
            method_at: offset,
            target: offset + target,
            target_end: offset + target_end,
        },
        minor,
    ))
}

/// Parses `HTTP/1.x SP 3DIGIT [SP reason]` (RFC 9112 section 4).
fn status_line(line: &[u8]) -> Option<(Start, u8)> {
    let (version_text, rest) = line.split_at_checked(8)?;
    let minor = version(version_text)?;
    let (digits, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason.first(), None | Some(b' ')) {
        return None;
    }
    let status = digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    // Three digits are at most 999; codes below 100 do not exist.
    (status >= 100).then_some((Start::Response { status }, minor))
}

fn version(text: &[u8]) -> Option<u8> {
    match text {
        b"HTTP/1.1" => Some(1),
        b"HTTP/1.0" => Some(0),
        _ => None,
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let number = digits.iter().try_fold(0u64, |n, d| {
        let digit = d.is_ascii_digit().then(|| u64::from(d - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })?;
    // Lengths above a signed 64-bit number are parsed differently by different implementations.
    (!digits.is_empty() && i64::try_from(number).is_ok()).then_some(number)
}

/// Returns true for a byte of visible text, space, or beyond ASCII.
fn is_text(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f
}

fn trimmed(value: &[u8]) -> &[u8] {
    let mut value = value;
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Returns true for a token character: part of a method or field name (RFC 9110 section 5.6.2).
#[must_use]
pub fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        while b < 256 {
            let c = b as u8;
            table[b] = c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            b += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

#[cfg(test)]
mod tests;
