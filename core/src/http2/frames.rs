//! Frame headers (RFC 9113 section 4.1), and the small frames that are written here.

/// The client's first bytes (RFC 9113 section 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame header.
pub const HEAD: usize = 9;

/// The largest stream id, with which a graceful GOAWAY begins (RFC 9113 section 6.8), and the
/// largest window.
pub const MAX_STREAM: u32 = 0x7fff_ffff;

/// Frames larger than this are not written: every peer takes this size (RFC 9113 section 4.2).
pub const FRAME_SIZE: usize = 16 * 1024;

/// The window of a connection, and of a stream where nothing else was said (RFC 9113 section
/// 6.9.2).
pub const DEFAULT_WINDOW: u32 = 65_535;

/// Frame types (RFC 9113 section 6).
pub mod kind {
    /// Body bytes.
    pub const DATA: u8 = 0;
    /// A header section, or its beginning.
    pub const HEADERS: u8 = 1;
    /// A deprecated hint.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream, with a reason.
    pub const RST_STREAM: u8 = 3;
    /// Parameters of the connection.
    pub const SETTINGS: u8 = 4;
    /// A header section of a stream the server opens.
    pub const PUSH_PROMISE: u8 = 5;
    /// Are you there.
    pub const PING: u8 = 6;
    /// No new streams, please.
    pub const GOAWAY: u8 = 7;
    /// More flow-control credit.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a header section.
    pub const CONTINUATION: u8 = 9;
}

/// Error codes (RFC 9113 section 7).
pub mod code {
    /// No error.
    pub const NO_ERROR: u32 = 0x0;
    /// A rule of the protocol was broken.
    pub const PROTOCOL_ERROR: u32 = 0x1;
    /// Something broke on the way.
    pub const INTERNAL_ERROR: u32 = 0x2;
    /// More was sent than a window allows.
    pub const FLOW_CONTROL_ERROR: u32 = 0x3;
    /// A frame has a size that its type does not allow.
    pub const FRAME_SIZE_ERROR: u32 = 0x6;
    /// The stream was not processed; it may be tried again.
    pub const REFUSED_STREAM: u32 = 0x7;
    /// The stream is no longer needed.
    pub const CANCEL: u32 = 0x8;
    /// The state of header compression is unknown.
    pub const COMPRESSION_ERROR: u32 = 0x9;
    /// The peer does too much of something.
    pub const ENHANCE_YOUR_CALM: u32 = 0xb;
}

/// On DATA and HEADERS: the sender is done with the stream.
pub const END_STREAM: u8 = 0x1;
/// On SETTINGS and PING: an answer.
pub const ACK: u8 = 0x1;
/// On HEADERS, PUSH_PROMISE and CONTINUATION: the header section is complete.
pub const END_HEADERS: u8 = 0x4;
/// On DATA, HEADERS and PUSH_PROMISE: the payload is padded.
pub const PADDED: u8 = 0x8;
/// On HEADERS: the payload begins with a priority.
pub const PRIORITY: u8 = 0x20;

/// A frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload bytes that follow; at most 2^24 - 1.
    pub length: u32,
    /// One of [`kind`], or an unknown one.
    pub kind: u8,
    /// Meaning depends on the kind.
    pub flags: u8,
    /// The stream, without the reserved bit; 0 is the connection.
    pub stream: u32,
}

impl FrameHeader {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: [u8; HEAD]) -> Self {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes;
        Self {
            length: u32::from_be_bytes([0, l0, l1, l2]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_STREAM,
        }
    }

    /// The header at the front of `bytes`, where it is complete.
    #[must_use]
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|head| Self::parse(*head))
    }

    /// Writes a header.
    #[must_use]
    pub fn encode(self) -> [u8; HEAD] {
        let [_, l0, l1, l2] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, self.kind, self.flags, s0, s1, s2, s3]
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn size(self) -> usize {
        HEAD + self.length as usize
    }

    /// Returns true if this is the sender's last frame on the stream but for CONTINUATION.
    #[must_use]
    pub fn ends_stream(self) -> bool {
        self.flags & END_STREAM != 0 && matches!(self.kind, kind::DATA | kind::HEADERS)
    }

    /// Returns true if this is an answer to SETTINGS or to PING.
    #[must_use]
    pub fn is_ack(self) -> bool {
        self.flags & ACK != 0 && matches!(self.kind, kind::SETTINGS | kind::PING)
    }
}

/// A GOAWAY without debug data (RFC 9113 section 6.8).
#[must_use]
pub fn goaway(last_stream: u32, reason: u32) -> [u8; 17] {
    let mut payload = [0; 8];
    let (last, code) = payload.split_at_mut(4);
    last.copy_from_slice(&last_stream.to_be_bytes());
    code.copy_from_slice(&reason.to_be_bytes());
    framed(kind::GOAWAY, 0, 0, payload)
}

/// A PING (RFC 9113 section 6.7).
#[must_use]
pub fn ping(payload: [u8; 8], flags: u8) -> [u8; 17] {
    framed(kind::PING, flags, 0, payload)
}

/// A WINDOW_UPDATE (RFC 9113 section 6.9).
#[must_use]
pub fn window_update(stream: u32, credit: u32) -> [u8; 13] {
    framed(kind::WINDOW_UPDATE, 0, stream, credit.to_be_bytes())
}

/// A RST_STREAM (RFC 9113 section 6.4).
#[must_use]
pub fn reset(stream: u32, reason: u32) -> [u8; 13] {
    framed(kind::RST_STREAM, 0, stream, reason.to_be_bytes())
}

/// Appends SETTINGS (RFC 9113 section 6.5).
pub fn settings(entries: &[(u16, u32)], out: &mut Vec<u8>) {
    let head = FrameHeader {
        // A handful of settings.
        length: entries.len() as u32 * 6,
        kind: kind::SETTINGS,
        flags: 0,
        stream: 0,
    };
    out.extend_from_slice(&head.encode());
    for (id, value) in entries {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// The answer to SETTINGS.
pub const SETTINGS_ACK: [u8; HEAD] = [0, 0, 0, kind::SETTINGS, ACK, 0, 0, 0, 0];

fn framed<const PAYLOAD: usize, const WHOLE: usize>(
    kind: u8,
    flags: u8,
    stream: u32,
    payload: [u8; PAYLOAD],
) -> [u8; WHOLE] {
    const { assert!(WHOLE == HEAD + PAYLOAD) };
    let head = FrameHeader {
        length: PAYLOAD as u32,
        kind,
        flags,
        stream,
    };
    let mut frame = [0; WHOLE];
    let (front, back) = frame.split_at_mut(HEAD);
    front.copy_from_slice(&head.encode());
    back.copy_from_slice(&payload);
    frame
}

/// The four bytes at the front of a payload as a number, such as an error code or a stream.
#[must_use]
pub fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|n| u32::from_be_bytes(*n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_ours_have_the_shape_the_standard_asks_for() {
        assert_eq!(
            goaway(7, 0),
            [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0]
        );
        assert_eq!(
            ping([1, 2, 3, 4, 5, 6, 7, 8], ACK)[..10],
            [0, 0, 8, 6, 1, 0, 0, 0, 0, 1]
        );
        assert_eq!(window_update(3, 5), [0, 0, 4, 8, 0, 0, 0, 0, 3, 0, 0, 0, 5]);
        assert_eq!(reset(3, 8), [0, 0, 4, 3, 0, 0, 0, 0, 3, 0, 0, 0, 8]);
        let mut out = Vec::new();
        settings(&[(4, 1)], &mut out);
        assert_eq!(out, [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1]);
    }

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        let head = FrameHeader {
            length: 0x01_02_03,
            kind: 9,
            flags: 4,
            stream: 0x7fff_fff1,
        };
        assert_eq!(FrameHeader::parse(head.encode()), head);
        assert_eq!(FrameHeader::peek(&head.encode()[..8]), None);
        assert_eq!(head.size(), 0x01_02_03 + 9);
    }
}
