//! Streams that do not go to the app: their two messages, their windows, and the account of all of
//! them.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::http2::frames::{self, FrameHeader, HEAD};
use crate::http2::hpack::FieldList;
use crate::http2::router::half::Half;
use crate::http2::router::held::HeldFrames;
use crate::http2::router::host::TunnelId;
use crate::http2::router::ids::Withheld;
use crate::http2::router::tunnel::Tunnel;

/// Body bytes for workstations that may wait here while the caller gets credit for them all the
/// same, so that a workstation that stalls holds up no other stream.
const MAX_BUFFERED: usize = 256 * 1024;

/// Credit below this is not worth a frame.
const LEAST_CREDIT: usize = 8 * 1024;

/// Heads that may wait for tunnels.
const MAX_WAITING_HEADS: usize = 4 << 20;

/// Body bytes that may wait for tunnels before the caller is held back.
const MAX_WAITING_BODIES: usize = 4 << 20;

/// Frames of unknown types that may wait with one head.
const MAX_WAITING_UNKNOWN: usize = 16 * 1024;

/// Diverted streams of one caller at a time.
const MAX_DIVERTED: usize = 4096;

/// A request's head that waits for its tunnel.
#[derive(Debug)]
pub(super) struct WaitingHead {
    pub(super) fields: FieldList,
    pub(super) ends: bool,
    pub(super) priority: Option<[u8; 5]>,
    /// Credit that the caller has given for the answer meanwhile.
    pub(super) credit: u32,
    /// Frames of unknown types that have come behind it.
    pub(super) unknown: Vec<u8>,
}

impl WaitingHead {
    /// Keeps a frame of an unknown type, within reason.
    pub(super) fn keep(&mut self, head: FrameHeader, payload: &[u8]) {
        if self.unknown.len() < MAX_WAITING_UNKNOWN {
            self.unknown.extend_from_slice(&head.encode());
            self.unknown.extend_from_slice(payload);
        }
    }

    /// Writes what has come behind the head: credit, and frames of unknown types.
    pub(super) fn follow(&self, stream: u32, out: &mut Vec<u8>) {
        if self.credit > 0 {
            out.extend_from_slice(&frames::window_update(stream, self.credit));
        }
        let mut rest = &self.unknown[..];
        while let Some(head) = FrameHeader::peek(rest) {
            let (frame, after) = rest.split_at(head.size().min(rest.len()));
            out.extend_from_slice(&FrameHeader { stream, ..head }.encode());
            out.extend_from_slice(frame.get(HEAD..).unwrap_or_default());
            rest = after;
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Diverted {
    /// Its tunnel; `None` for one that is answered here.
    pub(super) tunnel: Option<TunnelId>,
    /// Its id there, once it has been sent.
    pub(super) remote: u32,
    pub(super) head: Option<Box<WaitingHead>>,
    pub(super) request: Half,
    pub(super) answer: Half,
    /// A reset that waits until the answer, which is complete, has gone on.
    pub(super) reset_after: Option<u32>,
    /// Window of the workstation for the request.
    pub(super) to_remote: i64,
    /// Bytes that the caller may send beyond that window.
    pub(super) ahead: i64,
    /// Bytes by which windows have shrunk, perhaps without the caller's knowledge.
    pub(super) overdraft: i64,
    /// Window of the caller for the answer.
    pub(super) to_caller: i64,
    pub(super) began: Instant,
    pub(super) answered: bool,
    pub(super) explains: bool,
}

impl Diverted {
    /// A stream for which the caller may send `from_caller` bytes, and takes `to_caller`.
    pub(super) fn new(
        tunnel: Option<TunnelId>,
        began: Instant,
        from_caller: u32,
        to_caller: u32,
    ) -> Self {
        Self {
            tunnel,
            remote: 0,
            head: None,
            request: Half::default(),
            answer: Half::default(),
            reset_after: None,
            to_remote: 0,
            ahead: from_caller.into(),
            overdraft: 0,
            to_caller: to_caller.into(),
            began,
            answered: false,
            explains: false,
        }
    }

    /// Returns true if so much more is beyond all that the caller may send.
    pub(super) fn exceeds(&self, flow: usize) -> bool {
        let left = self.ahead + self.to_remote - self.request.waiting() as i64;
        self.tunnel.is_some() && left - (flow as i64) < -self.overdraft
    }

    /// Tells the caller of what the workstation takes beyond what the caller believes.
    pub(super) fn grant(&mut self, stream: u32, to_caller: &mut Vec<u8>) {
        let Ok(more @ 1..) = u32::try_from(-self.ahead) else {
            return;
        };
        self.ahead = 0;
        if !self.request.has_ended() {
            to_caller.extend_from_slice(&frames::window_update(stream, more));
        }
    }
}

/// All diverted streams of a caller, and the connections they take.
#[derive(Debug)]
pub(super) struct Diversion {
    pub(super) streams: BTreeMap<u32, Diverted>,
    pub(super) tunnels: BTreeMap<TunnelId, Tunnel>,
    /// Recent streams that the app has not been told of.
    pub(super) withheld: Withheld,
    pub(super) held: HeldFrames,
    /// Body bytes of the caller for which it has not been given credit.
    pub(super) uncredited: usize,
    /// Of these, bytes that wait for a tunnel, and may yet go to the app.
    pub(super) waiting_bodies: usize,
    /// Bytes that wait for a workstation to take them.
    pub(super) buffered: usize,
    waiting_heads: usize,
}

impl Diversion {
    pub(super) fn new(newest: u32) -> Box<Self> {
        Box::new(Self {
            streams: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            withheld: Withheld::new(newest),
            held: HeldFrames::default(),
            uncredited: 0,
            waiting_bodies: 0,
            buffered: 0,
            waiting_heads: 0,
        })
    }

    /// Returns true if another stream, with a head of `size` bytes, may be diverted to `tunnel`.
    pub(super) fn has_room(&self, tunnel: TunnelId, size: usize) -> bool {
        self.streams.len() < MAX_DIVERTED
            && self.waiting_heads + size <= MAX_WAITING_HEADS
            && !self.tunnels.get(&tunnel).is_some_and(Tunnel::is_stuffed)
    }

    /// Returns true if so much waits for tunnels that nothing more is to be read from the caller.
    pub(super) fn is_full(&self) -> bool {
        self.waiting_bodies + self.buffered > MAX_WAITING_BODIES
    }

    /// Lets a head wait.
    pub(super) fn wait(&mut self, head: WaitingHead) -> Box<WaitingHead> {
        self.waiting_heads += head.fields.size();
        Box::new(head)
    }

    /// A head waits no longer.
    pub(super) fn waited(&mut self, head: &WaitingHead) {
        self.waiting_heads -= head.fields.size().min(self.waiting_heads);
    }

    /// Gives the caller credit for body bytes that the app will never see.
    pub(super) fn settle_credit(&mut self, to_caller: &mut Vec<u8>) {
        let kept = self.waiting_bodies + self.buffered.saturating_sub(MAX_BUFFERED);
        let due = self.uncredited.saturating_sub(kept);
        if due >= LEAST_CREDIT {
            // At most a window's worth.
            to_caller.extend_from_slice(&frames::window_update(0, due as u32));
            self.uncredited -= due;
        }
    }

    /// Takes a stream out, with all that waits for it.
    pub(super) fn remove(&mut self, stream: u32) -> Option<Diverted> {
        let diverted = self.streams.remove(&stream)?;
        if let Some(head) = &diverted.head {
            self.waited(head);
            self.waiting_bodies -= diverted.request.waiting();
        } else if diverted.tunnel.is_some() {
            self.buffered -= diverted.request.waiting();
        }
        if let Some(tunnel) = diverted.tunnel.and_then(|id| self.tunnels.get_mut(&id)) {
            tunnel.queued -= diverted.answer.waiting();
            tunnel.streams.remove(&diverted.remote);
            tunnel.waiting.retain(|waiting| *waiting != stream);
        }
        Some(diverted)
    }
}
