//! The bytes of one read on their way through the router, and what is kept between two reads.

use crate::http2::frames::FrameHeader;
use crate::http2::section::{self, Extent};

/// Decision about the bytes of one read: the first `pass` of them go on as they are, and all
/// up to `used` have been dealt with. What goes on behind the first is in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// Bytes at the front that go on as they are, before the output does.
    pub pass: usize,
    /// Bytes at the front that are no longer needed once those have gone.
    pub used: usize,
}

/// Goes through the bytes of one read. As long as everything passes, nothing is copied.
pub(super) struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    pass: usize,
    out: &'a mut Vec<u8>,
    /// The receiver is gone: passing bytes are dropped.
    closed: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(input: &'a [u8], out: &'a mut Vec<u8>, closed: bool) -> Self {
        Self {
            input,
            at: 0,
            pass: 0,
            out,
            closed,
        }
    }

    /// The bytes that have not been dealt with.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.input.get(self.at..).unwrap_or_default()
    }

    /// Lets the next `n` bytes through.
    pub(super) fn pass(&mut self, n: usize) {
        let bytes = self.take(n);
        if self.closed {
            return;
        }
        if self.pass + bytes.len() == self.at && self.out.is_empty() {
            self.pass = self.at;
        } else {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Takes the next `n` bytes out.
    pub(super) fn take(&mut self, n: usize) -> &'a [u8] {
        let rest = self.rest();
        let bytes = rest.get(..n).unwrap_or(rest);
        self.at += bytes.len();
        bytes
    }

    /// Puts bytes behind those that have passed.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Puts frames of ours behind those that have passed.
    pub(super) fn put(&mut self, frames: &mut Vec<u8>) {
        self.out.append(frames);
        frames.shrink_to(1024);
    }

    pub(super) fn sorted(&self) -> Sorted {
        Sorted {
            pass: self.pass,
            used: self.at,
        }
    }
}

/// Destination of a payload's bytes that are still to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rest {
    /// They go on.
    #[default]
    Pass,
    /// They are thrown away.
    Drop,
    /// They are body bytes of a stream that does not go on as it is; the last `pad` are padding.
    Data { stream: u32, pad: usize, end: bool },
    /// They belong to the frame that was held back last.
    Held,
}

/// Treatment of a header section that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partial {
    /// Its bytes go on as they come, and are looked at when all are there.
    Follow,
    /// It waits until all of it is there.
    Hold,
}

/// Result for a whole header section.
pub(super) enum Forward {
    /// It goes on as it came.
    AsIs,
    /// These bytes go on in its place.
    Instead(Vec<u8>),
    /// It does not go on.
    Nothing,
}

/// State of one direction between two reads.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// Bytes of the current payload, or of the preface, that are still to come.
    pub(super) left: usize,
    pub(super) rest: Rest,
    /// The frames of a header section that is not complete.
    pub(super) held: Vec<u8>,
    /// Bytes of `held` that are whole frames.
    pub(super) measured: usize,
    pub(super) partial: Option<Partial>,
    /// A frame has gone on, so that frames of ours may follow.
    pub(super) begun: bool,
    /// CONTINUATION must follow what has gone on.
    pub(super) section_open: bool,
    /// The bytes are no longer understood and go on as they are.
    pub(super) blind: bool,
}

impl Inbound {
    /// Returns true if frames of ours may be put behind what has gone on.
    pub(super) fn at_boundary(&self) -> bool {
        let inside = self.left > 0 && self.rest == Rest::Pass;
        let open = self.section_open || self.partial == Some(Partial::Follow);
        self.begun && !inside && !open && !self.blind
    }

    /// Measures the header section that is held and grows.
    pub(super) fn extent_of(&mut self, held: &[u8]) -> Extent {
        let extent = section::extent_from(held, &mut self.measured);
        if extent != Extent::More {
            self.measured = 0;
        }
        extent
    }

    /// Begins a payload.
    pub(super) fn enter(&mut self, head: FrameHeader, rest: Rest) {
        self.left = head.length as usize;
        self.rest = rest;
    }

    /// Returns how many of the `there` bytes belong to the current payload, and counts them off.
    pub(super) fn advance(&mut self, there: usize) -> usize {
        let n = self.left.min(there);
        self.left -= n;
        n
    }
}
