//! Requests that are copied while they go their way. Without one, each DATA frame pays one branch.

use crate::http2::frames::{FrameHeader, PADDED};
use crate::http2::router::host::Host;

/// The streams whose requests are copied, and the frame of one that is passing.
#[derive(Debug, Default)]
pub(super) struct Copying {
    streams: Vec<u32>,
    frame: Option<CopiedFrame>,
}

/// A DATA frame that goes on as it is.
#[derive(Clone, Copy, Debug)]
struct CopiedFrame {
    stream: u32,
    ends: bool,
    padding: Padding,
}

#[derive(Clone, Copy, Debug)]
enum Padding {
    /// The first byte of the payload says how much there is.
    Unknown,
    /// So many bytes at the frame's end.
    Known(usize),
}

impl Copying {
    pub(super) fn begin(&mut self, stream: u32) {
        self.streams.push(stream);
    }

    /// Returns true if a stream's request is copied and has not ended.
    pub(super) fn has(&self, stream: u32) -> bool {
        self.streams.contains(&stream)
    }

    pub(super) fn end(&mut self, stream: u32) {
        self.streams.retain(|known| *known != stream);
    }

    /// A DATA frame of the caller's begins to pass.
    pub(super) fn frame<H: Host>(&mut self, head: FrameHeader, host: &mut H) {
        self.frame = None;
        if !self.has(head.stream) {
            return;
        }
        let ends = head.ends_stream();
        if head.length == 0 {
            return self.tell(head.stream, b"", ends, host);
        }
        let padded = head.flags & PADDED != 0;
        self.frame = Some(CopiedFrame {
            stream: head.stream,
            ends,
            padding: if padded {
                Padding::Unknown
            } else {
                Padding::Known(0)
            },
        });
    }

    /// Bytes of that frame's payload pass, and `left` are still to come.
    pub(super) fn payload<H: Host>(&mut self, mut bytes: &[u8], left: usize, host: &mut H) {
        let Some(frame) = &mut self.frame else { return };
        if let (Padding::Unknown, Some((length, rest))) = (frame.padding, bytes.split_first()) {
            frame.padding = Padding::Known(usize::from(*length));
            bytes = rest;
        }
        let Padding::Known(padding) = frame.padding else {
            return;
        };
        // What of the padding is not among the bytes to come is among these.
        let padding = padding.saturating_sub(left);
        let body = bytes.len().saturating_sub(padding);
        let body = bytes.get(..body).unwrap_or_default();
        let CopiedFrame { stream, ends, .. } = *frame;
        if left == 0 {
            self.frame = None;
        }
        self.tell(stream, body, ends && left == 0, host);
    }

    /// Tells of body bytes; the last ones end the copy.
    pub(super) fn tell<H: Host>(&mut self, stream: u32, body: &[u8], ends: bool, host: &mut H) {
        if !self.has(stream) {
            return;
        }
        host.copied(stream, body, ends);
        if ends {
            self.end(stream);
        }
    }
}
