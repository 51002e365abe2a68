//! Tunnel messages: one byte of code, then a body.
//!
//! A gRPC stream carries one TCP connection or one UDP flow. Decoding slices the received bytes and
//! copies nothing; malformed input is rejected with a reason, never with a panic.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::conn_id::{ConnId, ConnIdError};

pub mod frame;

/// Version of the stream protocol; the only one in use.
pub const STREAM_VERSION: u64 = 2;
/// Maximum of data in a `Normal` message of a TCP connection.
pub const MAX_BODY: usize = 1 << 20;
/// Maximum of data in a `Normal` message of a UDP flow; each message is one datagram.
pub const MAX_DATAGRAM: usize = 1 << 16;
/// gRPC message limit of every hop; messages stay well below it.
pub const GRPC_LIMIT: usize = 4 << 20;
/// Largest HTTP/2 frame that our ends take: a message of 64 KiB in one. What is sent follows what the
/// peer takes.
pub const MAX_FRAME: u32 = 65 * 1024;
/// Idle time after which a TCP stream is closed.
pub const TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// Idle time after which a UDP stream is closed.
pub const UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest duration in a `StreamInfo`: a peer has eight bytes of seven bits for it.
pub const MAX_STREAM_TIMEOUT: Duration = Duration::from_nanos((1 << 56) - 1);

const NORMAL: u8 = 0;
const STREAM_INFO: u8 = 1;
const STREAM_OK: u8 = 2;
const CLOSE_SEND: u8 = 3;
const DIAL_OK: u8 = 4;
const DIAL_REJECT: u8 = 5;
const DISCONNECT: u8 = 6;
const KEEP_ALIVE: u8 = 7;
const SESSION: u8 = 8;

/// A tunnel message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Data of the carried connection.
    Normal(Bytes),
    /// Opens a stream: the gRPC caller's first message, exactly once.
    StreamInfo(StreamInfo),
    /// The gRPC server's response to `StreamInfo`, with its stream version.
    StreamOk(u64),
    /// End of the gRPC server's data; a gRPC client half-closes its stream instead.
    CloseSend,
    /// The dialling end has connected.
    DialOk,
    /// The dialling end could not connect; the stream is over.
    DialReject,
    /// Ends the stream at once, in both directions.
    Disconnect,
    /// Keeps the stream from idling out.
    KeepAlive,
    /// Workstation session that an intercept's stream is meant for: an agent's second message on a
    /// stream to the manager.
    Session(String),
    /// An unknown code, to be ignored at an end and passed on in a pipe.
    Unknown(u8, Bytes),
}

/// Parameters of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Stream version of the gRPC client.
    pub version: u64,
    /// Time allowed for the way to the dialling end and back, in addition to the dial.
    pub roundtrip_latency: Duration,
    /// Time allowed for the dial.
    pub dial_timeout: Duration,
    /// The carried connection.
    pub conn_id: ConnId,
    /// The gRPC client's own session with the manager; towards an agent the workstation's session.
    pub session_id: String,
}

impl StreamInfo {
    /// Creates parameters of a stream with our version.
    pub fn new(
        conn_id: ConnId,
        session_id: impl Into<String>,
        roundtrip_latency: Duration,
        dial_timeout: Duration,
    ) -> Self {
        Self {
            version: STREAM_VERSION,
            roundtrip_latency,
            dial_timeout,
            conn_id,
            session_id: session_id.into(),
        }
    }
}

/// Error in a message payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The payload is empty.
    #[error("tunnel message without a code")]
    Empty,
    /// The payload ends inside the named field.
    #[error("tunnel message ends inside its {0}")]
    Truncated(&'static str),
    /// The named number does not fit into 64 bits.
    #[error("tunnel message with a {0} of more than 64 bits")]
    Overlong(&'static str),
    /// The named text is not UTF-8.
    #[error("tunnel message with a {0} that is not UTF-8")]
    NotUtf8(&'static str),
    /// The connection id is malformed.
    #[error("tunnel message with a bad connection id: {0}")]
    ConnId(#[from] ConnIdError),
}

/// Tells whether a payload holds data of the carried connection.
#[must_use]
pub fn is_normal(payload: &[u8]) -> bool {
    payload.first() == Some(&NORMAL)
}

impl Message {
    /// Returns the first byte of the payload.
    pub fn code(&self) -> u8 {
        match self {
            Self::Normal(_) => NORMAL,
            Self::StreamInfo(_) => STREAM_INFO,
            Self::StreamOk(_) => STREAM_OK,
            Self::CloseSend => CLOSE_SEND,
            Self::DialOk => DIAL_OK,
            Self::DialReject => DIAL_REJECT,
            Self::Disconnect => DISCONNECT,
            Self::KeepAlive => KEEP_ALIVE,
            Self::Session(_) => SESSION,
            Self::Unknown(code, _) => *code,
        }
    }

    /// Encodes the message. Durations above `MAX_STREAM_TIMEOUT` are capped. Data is copied: to avoid
    /// that, read it directly after [`begin_normal`].
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Normal(data) => normal_from(data),
            Self::StreamInfo(info) => info.encode(),
            Self::StreamOk(version) => {
                // One byte of code and at most ten of number.
                let mut payload = BytesMut::with_capacity(11);
                payload.put_u8(STREAM_OK);
                put_uvarint(&mut payload, *version);
                payload.freeze()
            }
            Self::CloseSend => Bytes::from_static(&[CLOSE_SEND]),
            Self::DialOk => Bytes::from_static(&[DIAL_OK]),
            Self::DialReject => Bytes::from_static(&[DIAL_REJECT]),
            Self::Disconnect => Bytes::from_static(&[DISCONNECT]),
            Self::KeepAlive => Bytes::from_static(&[KEEP_ALIVE]),
            Self::Session(session) => with_code(SESSION, session.as_bytes()),
            Self::Unknown(code, body) => with_code(*code, body),
        }
    }

    /// Decodes a payload; its data stays a slice of it. Bytes after the last field of a message are
    /// ignored, so that a later version may add to it.
    pub fn decode(mut payload: Bytes) -> Result<Self, TunnelError> {
        if payload.is_empty() {
            return Err(TunnelError::Empty);
        }
        let mut body = payload.split_off(1);
        Ok(match payload[0] {
            NORMAL => Self::Normal(body),
            STREAM_INFO => Self::StreamInfo(StreamInfo::decode(&mut body)?),
            STREAM_OK => Self::StreamOk(take_uvarint(&mut body, "stream version")?),
            CLOSE_SEND => Self::CloseSend,
            DIAL_OK => Self::DialOk,
            DIAL_REJECT => Self::DialReject,
            DISCONNECT => Self::Disconnect,
            KEEP_ALIVE => Self::KeepAlive,
            SESSION => Self::Session(text(&body, "session id")?),
            // Kept whole, so that a relay can pass on what a later version adds.
            code => Self::Unknown(code, body),
        })
    }
}

impl StreamInfo {
    fn encode(&self) -> Bytes {
        let conn_id = self.conn_id.as_bytes();
        let session_id = self.session_id.as_bytes();
        // 64 bytes cover the code and five numbers of at most ten bytes.
        let mut payload = BytesMut::with_capacity(64 + conn_id.len() + session_id.len());
        payload.put_u8(STREAM_INFO);
        put_uvarint(&mut payload, self.version);
        put_uvarint(&mut payload, wire_nanos(self.roundtrip_latency));
        put_uvarint(&mut payload, wire_nanos(self.dial_timeout));
        put_uvarint(&mut payload, conn_id.len() as u64);
        payload.put_slice(conn_id);
        put_uvarint(&mut payload, session_id.len() as u64);
        payload.put_slice(session_id);
        payload.freeze()
    }

    fn decode(body: &mut Bytes) -> Result<Self, TunnelError> {
        Ok(Self {
            version: take_uvarint(body, "stream version")?,
            roundtrip_latency: Duration::from_nanos(take_uvarint(body, "roundtrip latency")?),
            dial_timeout: Duration::from_nanos(take_uvarint(body, "dial timeout")?),
            conn_id: ConnId::parse(&take_counted(body, "connection id")?)?,
            session_id: text(&take_counted(body, "session id")?, "session id")?,
        })
    }
}

/// Encodes `data` as a payload; the caller must not exceed `MAX_BODY`.
pub fn normal_from(data: &[u8]) -> Bytes {
    with_code(NORMAL, data)
}

/// Begins a payload in place: bytes read into `buf` after this are data, and `buf.split().freeze()`
/// is then the payload, without a copy.
pub fn begin_normal(buf: &mut BytesMut) {
    buf.put_u8(NORMAL);
}

/// Reads a duration from a nanosecond field, as in `InterceptSpec` and `DialRequest`; a negative
/// one counts as zero.
pub fn duration_from_nanos(nanos: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Converts a duration for a nanosecond field, capped to `MAX_STREAM_TIMEOUT` since the receiver may put
/// it into a `StreamInfo`.
pub fn nanos_from_duration(duration: Duration) -> i64 {
    wire_nanos(duration).cast_signed()
}

fn wire_nanos(duration: Duration) -> u64 {
    let max = MAX_STREAM_TIMEOUT.as_nanos();
    u64::try_from(duration.as_nanos().min(max)).unwrap_or(u64::MAX >> 8)
}

fn with_code(code: u8, body: &[u8]) -> Bytes {
    let mut payload = BytesMut::with_capacity(1 + body.len());
    payload.put_u8(code);
    payload.put_slice(body);
    payload.freeze()
}

/// Encodes a number with seven bits in each byte, low ones first; all but the last byte have the
/// top bit set.
fn put_uvarint(buf: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        buf.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    buf.put_u8(number as u8);
}

fn take_uvarint(body: &mut Bytes, field: &'static str) -> Result<u64, TunnelError> {
    let mut number = 0u64;
    for (index, &byte) in body.iter().enumerate() {
        // The tenth byte has room for one bit, and there is no eleventh.
        if index == 9 && byte > 1 {
            return Err(TunnelError::Overlong(field));
        }
        number |= u64::from(byte & 0x7f) << (7 * index);
        // The last byte of a number has no top bit.
        if byte < 0x80 {
            let _ = body.split_to(index + 1);
            return Ok(number);
        }
    }
    Err(TunnelError::Truncated(field))
}

fn take_counted(body: &mut Bytes, field: &'static str) -> Result<Bytes, TunnelError> {
    let length = take_uvarint(body, field)?;
    match usize::try_from(length) {
        // Checked against what is there, so a forged length allocates nothing.
        Ok(length) if length <= body.len() => Ok(body.split_to(length)),
        _ => Err(TunnelError::Truncated(field)),
    }
}

fn text(bytes: &[u8], field: &'static str) -> Result<String, TunnelError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(TunnelError::NotUtf8(field)),
    }
}

#[cfg(test)]
mod tests;
