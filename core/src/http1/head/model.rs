//! Parts of a head: its kind, its start line, the framing it announces, and why it may be ambiguous.

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

/// Contents of the first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A request line, with the target's offsets.
    Request {
        /// Method class.
        method: Method,
        /// Start of the method, behind empty lines that may precede it.
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

/// Kind of message being parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A caller's request.
    Request,
    /// A response of an app or workstation.
    Response,
}
