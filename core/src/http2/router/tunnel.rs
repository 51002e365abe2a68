//! An HTTP/2 connection of the agent's own, through a tunnel to a workstation.

use std::collections::{BTreeMap, VecDeque};

use crate::http2::frames::{self, DEFAULT_WINDOW, MAX_STREAM, PREFACE};
use crate::http2::hpack::{DEFAULT_TABLE, Decoder, Encoder};
use crate::http2::router::cursor::Inbound;
use crate::http2::settings;

/// Bytes from one workstation that may be on their way inside the agent: enough to keep a tunnel
/// busy that is some tens of milliseconds long.
pub(super) const MAX_WINDOW: u32 = 1 << 20;

/// Bytes towards a workstation beyond which bodies wait.
pub(super) const HIGH_WATER: usize = 64 * 1024;

/// Bytes towards a workstation that does not take them, beyond which streams are refused.
const MAX_UNSENT: usize = 1 << 20;

/// Phase of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The tunnel is being opened; nothing may be sent.
    Opening,
    /// Streams may be opened.
    Open,
    /// The workstation takes no more streams.
    Parting,
}

/// The connection.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) phase: Phase,
    /// Bytes to be written.
    pub(super) out: Vec<u8>,
    pub(super) inbound: Inbound,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    /// Window of the workstation for the whole connection.
    pub(super) window: i64,
    /// Window of the workstation for a new stream.
    pub(super) initial_window: u32,
    /// Streams it serves at a time.
    pub(super) max_streams: u32,
    /// Window of the agent for the whole connection.
    pub(super) room: i64,
    /// Bytes of it that wait here.
    pub(super) queued: usize,
    next: u32,
    /// Its streams that are open, and the caller's ids of them.
    pub(super) streams: BTreeMap<u32, u32>,
    /// The caller's ids of streams that wait for the tunnel, or for others to end.
    pub(super) waiting: VecDeque<u32>,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            phase: Phase::Opening,
            out: Vec::new(),
            inbound: Inbound::default(),
            encoder: Encoder::default(),
            decoder: Decoder::new(DEFAULT_TABLE),
            window: DEFAULT_WINDOW.into(),
            initial_window: DEFAULT_WINDOW,
            max_streams: u32::MAX,
            room: DEFAULT_WINDOW.into(),
            queued: 0,
            next: 1,
            streams: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Tunnel {
    /// Greets the workstation. A stream's window is the caller's.
    pub(super) fn open(&mut self, initial_window: u32, list: Option<u32>) {
        self.phase = Phase::Open;
        self.out.extend_from_slice(PREFACE);
        let mut entries = vec![
            (settings::ENABLE_PUSH, 0),
            (settings::INITIAL_WINDOW_SIZE, initial_window),
        ];
        entries.extend(list.map(|list| (settings::MAX_HEADER_LIST_SIZE, list)));
        frames::settings(&entries, &mut self.out);
    }

    /// Returns true if a stream can be opened now.
    pub(super) fn takes_stream(&self) -> bool {
        self.phase == Phase::Open && self.streams.len() < self.max_streams as usize
    }

    /// Returns true if the workstation takes so little that it must not be sent more heads.
    pub(super) fn is_stuffed(&self) -> bool {
        self.out.len() > MAX_UNSENT
    }

    /// The id of a stream that begins.
    pub(super) fn begin(&mut self, caller: u32) -> u32 {
        let id = self.next;
        self.next += 2;
        if self.next > MAX_STREAM {
            self.phase = Phase::Parting;
        }
        self.streams.insert(id, caller);
        id
    }

    /// Returns how many body bytes may be sent now.
    pub(super) fn body_room(&self) -> usize {
        if self.out.len() >= HIGH_WATER {
            return 0;
        }
        usize::try_from(self.window).unwrap_or(0)
    }

    /// Gives as much credit as the caller has room for, which takes `caller_room` bytes, so that
    /// hardly more comes than can go on.
    pub(super) fn give_credit(&mut self, caller_room: usize) {
        if self.phase == Phase::Opening {
            return;
        }
        let wanted = u32::try_from(caller_room).unwrap_or(MAX_WINDOW);
        let wanted = i64::from(wanted.clamp(DEFAULT_WINDOW, MAX_WINDOW));
        let credit = wanted - self.room - self.queued as i64;
        if let Some(credit) = u32::try_from(credit)
            .ok()
            .filter(|n| i64::from(*n) >= wanted / 4)
        {
            self.out
                .extend_from_slice(&frames::window_update(0, credit));
            self.room += i64::from(credit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_follows_what_the_caller_takes_and_never_exceeds_the_bound() {
        let mut tunnel = Tunnel::default();
        tunnel.give_credit(1 << 30);
        assert!(
            tunnel.out.is_empty(),
            "nothing is said before the tunnel is open"
        );
        tunnel.phase = Phase::Open;
        tunnel.give_credit(0);
        assert!(tunnel.out.is_empty());
        tunnel.give_credit(1 << 30);
        assert_eq!(
            tunnel.out,
            frames::window_update(0, MAX_WINDOW - DEFAULT_WINDOW)
        );
        tunnel.out.clear();
        tunnel.room -= 600_000;
        tunnel.queued += 400_000;
        tunnel.give_credit(1 << 30);
        assert!(tunnel.out.is_empty(), "what waits here takes its room");
        tunnel.queued = 0;
        tunnel.give_credit(1 << 30);
        assert_eq!(tunnel.out, frames::window_update(0, 600_000));
    }

    #[test]
    fn ids_are_those_of_a_client_until_they_run_out() {
        let mut tunnel = Tunnel::default();
        tunnel.open(7, None);
        assert_eq!((tunnel.begin(5), tunnel.begin(9)), (1, 3));
        tunnel.max_streams = 2;
        assert!(!tunnel.takes_stream());
        tunnel.max_streams = 3;
        assert!(tunnel.takes_stream());
        tunnel.next = MAX_STREAM;
        tunnel.begin(11);
        assert_eq!(tunnel.phase, Phase::Parting);
    }
}
