//! Tunnel messages in their gRPC frames: five bytes of prefix, the tag and length of the one field of
//! `TunnelMessage`, then the payload. Written here and not by the gRPC library, which copies each
//! message into a buffer of its own in both directions and keeps that for as long as a tunnel lives.

use std::io::IoSlice;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{GRPC_LIMIT, Message, NORMAL, TunnelError, put_uvarint, take_counted, take_uvarint};

/// Bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Field 1 of `TunnelMessage`, the payload: counted bytes.
const PAYLOAD_TAG: u8 = 0x0a;
/// Bytes of the length of a payload within [`GRPC_LIMIT`].
const MAX_LENGTH: usize = 4;
/// Prefix, tag, length and code.
const MAX_HEAD: usize = PREFIX + 1 + MAX_LENGTH + 1;

/// A tunnel message as it goes over the wire; cheap to clone.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: Bytes,
    /// Where the payload begins.
    head: u8,
}

impl Frame {
    /// A frame of data that is gathered from `parts`, as many as `length` bytes of it.
    #[must_use]
    pub fn gathered(parts: &[IoSlice<'_>], length: usize) -> Self {
        let (mut bytes, head) = begin(1 + length);
        bytes.put_u8(NORMAL);
        let end = bytes.len() + length;
        for part in parts {
            let room = end - bytes.len();
            bytes.put_slice(part.get(..room).unwrap_or(part));
        }
        debug_assert_eq!(bytes.len(), end, "`parts` hold less than `length`");
        let bytes = bytes.freeze();
        Self { bytes, head }
    }

    /// A frame of data.
    #[must_use]
    pub fn data(data: &[u8]) -> Self {
        Self::gathered(&[IoSlice::new(data)], data.len())
    }

    /// A frame around an encoded message.
    #[must_use]
    pub fn around(payload: &[u8]) -> Self {
        let (mut bytes, head) = begin(payload.len());
        bytes.put_slice(payload);
        let bytes = bytes.freeze();
        Self { bytes, head }
    }

    /// The message in it, encoded.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(usize::from(self.head)..)
    }

    /// Bytes of data in it; what opens, answers or ends a tunnel has none.
    #[must_use]
    pub fn data_len(&self) -> usize {
        match self.bytes.get(usize::from(self.head)..) {
            Some([NORMAL, data @ ..]) => data.len(),
            _ => 0,
        }
    }

    /// Has its bytes held by what `owner` makes of them.
    #[must_use]
    pub fn held(self, owner: impl FnOnce(Bytes) -> Bytes) -> Self {
        Self {
            bytes: owner(self.bytes),
            head: self.head,
        }
    }

    /// What is sent.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl From<&Message> for Frame {
    fn from(message: &Message) -> Self {
        Self::around(&message.encode())
    }
}

/// Writes everything before a payload of `length` bytes, and returns where that begins.
fn begin(length: usize) -> (BytesMut, u8) {
    let mut bytes = BytesMut::with_capacity(MAX_HEAD + length);
    bytes.put_bytes(0, PREFIX);
    bytes.put_u8(PAYLOAD_TAG);
    put_uvarint(&mut bytes, length as u64);
    let message = bytes.len() - PREFIX + length;
    let count = u32::try_from(message).unwrap_or(u32::MAX);
    let head = bytes.len() as u8;
    if let Some(place) = bytes.get_mut(1..PREFIX) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    (bytes, head)
}

/// Error in a stream of frames.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The peer compresses, although nobody has said that we would read that.
    #[error("a compressed tunnel message")]
    Compressed,
    /// The message is too large.
    #[error("a tunnel message of {0} bytes; at most {GRPC_LIMIT} are read")]
    TooLarge(u32),
    /// The frame holds something else than a `TunnelMessage`.
    #[error("a gRPC message that is no tunnel message")]
    NoTunnelMessage,
    /// The payload is malformed.
    #[error(transparent)]
    Payload(#[from] TunnelError),
}

/// Reads messages out of received bytes. Data are slices of what was received; only other messages
/// are collected where they came in several pieces.
#[derive(Debug)]
pub struct FrameReader {
    at: At,
    whole: bool,
}

#[derive(Debug)]
enum At {
    /// In the head, of which some bytes are there.
    Head([u8; MAX_HEAD], u8),
    /// In data that are handed out as they come; these are still to come.
    Data(usize),
    /// In a message that has to be there as a whole.
    Whole(Collected),
}

/// The part of a message that is there.
#[derive(Debug)]
struct Collected {
    kept: BytesMut,
    missing: usize,
    /// It is the payload; else the message around it, of an unusual form.
    is_payload: bool,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self {
            at: BEGIN,
            whole: false,
        }
    }
}

const BEGIN: At = At::Head([0; MAX_HEAD], 0);

impl FrameReader {
    /// From now on data come in the messages in which they were sent, as datagrams must; else one
    /// message may come in several pieces.
    pub fn keep_borders(&mut self) {
        self.whole = true;
    }

    /// Returns true if no message has begun: the stream may end here.
    #[must_use]
    pub fn is_between(&self) -> bool {
        matches!(self.at, At::Head(_, 0))
    }

    /// Takes the next message, or piece of data, from `received`; none if more has to be received.
    ///
    /// # Errors
    /// What was received is malformed; nothing more can be read.
    pub fn next(&mut self, received: &mut Bytes) -> Result<Option<Message>, FrameError> {
        loop {
            match &mut self.at {
                At::Head(head, seen) => {
                    let Some(byte) = received.first().copied() else {
                        return Ok(None);
                    };
                    if let Some(place) = head.get_mut(usize::from(*seen)) {
                        *place = byte;
                    }
                    *seen += 1;
                    let there = head.get(..usize::from(*seen)).unwrap_or_default();
                    let next = after(there, self.whole)?;
                    received.advance(1);
                    let Some(next) = next else { continue };
                    self.at = next;
                    // Without data it is a message all the same.
                    if matches!(self.at, At::Data(0)) {
                        self.at = BEGIN;
                        return Ok(Some(Message::Normal(Bytes::new())));
                    }
                }
                At::Data(left) => {
                    let now = received.len().min(*left);
                    if now == 0 {
                        return Ok(None);
                    }
                    *left -= now;
                    if *left == 0 {
                        self.at = BEGIN;
                    }
                    return Ok(Some(Message::Normal(piece(received, now))));
                }
                At::Whole(collected) => {
                    let Some(whole) = collected.more(received) else {
                        return Ok(None);
                    };
                    let is_payload = collected.is_payload;
                    self.at = BEGIN;
                    let payload = if is_payload { whole } else { payload(whole)? };
                    return Ok(Some(Message::decode(payload)?));
                }
            }
        }
    }
}

/// Takes the first `n` bytes, without a trace of an empty rest: that would hold the memory.
fn piece(received: &mut Bytes, n: usize) -> Bytes {
    if n == received.len() {
        std::mem::take(received)
    } else {
        received.split_to(n)
    }
}

impl Collected {
    fn more(&mut self, received: &mut Bytes) -> Option<Bytes> {
        let now = received.len().min(self.missing);
        self.missing -= now;
        if self.missing == 0 && self.kept.is_empty() {
            return Some(piece(received, now));
        }
        self.kept.extend_from_slice(&piece(received, now));
        (self.missing == 0).then(|| std::mem::take(&mut self.kept).freeze())
    }
}

/// What follows on the `head` of a message; none if it is not complete.
fn after(head: &[u8], whole: bool) -> Result<Option<At>, FrameError> {
    let Some((prefix, message)) = head.split_at_checked(PREFIX) else {
        return Ok(None);
    };
    let [compressed, a, b, c, d] = *prefix else {
        return Ok(None);
    };
    if compressed != 0 {
        return Err(FrameError::Compressed);
    }
    let count = u32::from_be_bytes([a, b, c, d]);
    let length = count as usize;
    if length > GRPC_LIMIT {
        return Err(FrameError::TooLarge(count));
    }
    let unusual = || {
        let collected = Collected {
            kept: message.into(),
            missing: length - message.len(),
            is_payload: false,
        };
        Ok(Some(At::Whole(collected)))
    };
    let [tag, counted @ ..] = message else {
        // An empty message has no payload.
        return if length == 0 { unusual() } else { Ok(None) };
    };
    if *tag != PAYLOAD_TAG {
        return unusual();
    }
    let last = counted.iter().position(|byte| *byte < 0x80);
    let Some((number, code)) = last.map(|last| counted.split_at(last + 1)) else {
        let is_long = counted.len() >= MAX_LENGTH || message.len() == length;
        return if is_long { unusual() } else { Ok(None) };
    };
    let bits = |number, byte: &u8| number << 7 | usize::from(byte & 0x7f);
    let payload = number.iter().rev().fold(0, bits);
    if payload == 0 || 1 + number.len() + payload != length {
        return unusual();
    }
    let [code] = code else { return Ok(None) };
    let missing = payload - 1;
    if *code == NORMAL && !whole {
        return Ok(Some(At::Data(missing)));
    }
    Ok(Some(At::Whole(Collected {
        kept: BytesMut::from(&[*code][..]),
        missing,
        is_payload: true,
    })))
}

/// Reads a `TunnelMessage` of any form: the last payload counts, other fields are passed over.
fn payload(mut message: Bytes) -> Result<Bytes, FrameError> {
    let malformed = |_| FrameError::NoTunnelMessage;
    let mut payload = Bytes::new();
    while !message.is_empty() {
        let key = take_uvarint(&mut message, "field").map_err(malformed)?;
        let fixed = match key & 7 {
            0 => {
                take_uvarint(&mut message, "field").map_err(malformed)?;
                continue;
            }
            2 => {
                let value = take_counted(&mut message, "field").map_err(malformed)?;
                if key >> 3 == 1 {
                    payload = value;
                }
                continue;
            }
            1 => 8,
            5 => 4,
            _ => return Err(FrameError::NoTunnelMessage),
        };
        if message.len() < fixed {
            return Err(FrameError::NoTunnelMessage);
        }
        message.advance(fixed);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests;
