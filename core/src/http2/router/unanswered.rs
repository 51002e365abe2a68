//! SETTINGS that one side has sent and the other has not answered: what they ask of the other holds
//! from its answer on (RFC 9113 section 6.5.3).

use std::collections::VecDeque;

use crate::http2::settings;

/// Frames that are told apart; what comes beyond is taken together with the last of them.
const MAX_FRAMES: usize = 256;

/// What one frame asks of its reader, as far as who stands between has to keep to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Size of the table for header sections.
    pub(super) table: Option<usize>,
    /// Streams at a time.
    pub(super) streams: Option<u32>,
    /// Window of a stream.
    pub(super) window: Option<u32>,
}

/// The frames of one side, in order.
#[derive(Debug, Default)]
pub(super) struct Unanswered(VecDeque<Asked>);

impl Unanswered {
    /// A frame with this payload goes to its reader.
    pub(super) fn sent(&mut self, payload: &[u8]) {
        let mut asked = match self.0.len() {
            MAX_FRAMES.. => self.0.pop_back().unwrap_or_default(),
            _ => Asked::default(),
        };
        for (id, value) in settings::entries(payload) {
            match id {
                settings::HEADER_TABLE_SIZE => asked.table = Some(value as usize),
                settings::MAX_CONCURRENT_STREAMS => asked.streams = Some(value),
                settings::INITIAL_WINDOW_SIZE => asked.window = Some(value),
                _ => {}
            }
        }
        self.0.push_back(asked);
    }

    /// The reader answers the oldest of them.
    pub(super) fn answered(&mut self) -> Asked {
        let asked = self.0.pop_front().unwrap_or_default();
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_holds_from_its_own_answer_on() {
        let mut unanswered = Unanswered::default();
        unanswered.sent(b"\0\x03\0\0\0\x07\0\x01\0\0\0\0");
        unanswered.sent(b"\0\x04\0\0\0\x07");
        unanswered.sent(b"\0\x01\0\0\0\x09\0\x01\0\0\0\x08");
        let asked = |table, streams, window| Asked {
            table,
            streams,
            window,
        };
        assert_eq!(unanswered.answered(), asked(Some(0), Some(7), None));
        assert_eq!(unanswered.answered(), asked(None, None, Some(7)));
        assert_eq!(unanswered.answered(), asked(Some(8), None, None));
        assert_eq!(unanswered.answered(), asked(None, None, None));
        for n in 0..2 * MAX_FRAMES {
            unanswered.sent(&[0, 3, 0, 0, 0, n as u8]);
        }
        assert_eq!(unanswered.0.len(), MAX_FRAMES);
    }
}
