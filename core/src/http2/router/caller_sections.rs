//! Header sections of the caller: those that nobody looks at go on as they come, others when they
//! are complete.

use crate::http2::frames::{FrameHeader, code};
use crate::http2::router::cursor::{Cursor, Forward, Partial};
use crate::http2::router::from_caller::Target;
use crate::http2::router::host::{Host, StreamEnd};
use crate::http2::router::state::{Fatal, Lost, Router};
use crate::http2::section::{self, Extent};
use crate::http2::streams::{Side, StreamSlot};

impl Router {
    /// The beginning of a header section.
    pub(super) fn caller_headers<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        let begins = head.stream % 2 == 1 && head.stream > self.newest;
        // The table is unknown from here on: nothing can be looked at, and the app is the judge.
        if self.lost.is_some() {
            if begins {
                self.begin_relayed(head, host);
            }
            return self.pass_to_app(head, head.stream, c);
        }
        // What is encoded anew has to be read; else only a stream that somebody wants to see, or a
        // section behind one that is not the app's under the same number.
        let looked_at = !self.requests.is_verbatim()
            || if begins {
                host.reads_requests() || self.leaving.is_some()
            } else {
                self.target(head.stream) != Target::App(head.stream)
            };
        if begins && looked_at {
            self.guard();
        }
        self.caller.partial = Some(if looked_at {
            Partial::Hold
        } else {
            Partial::Follow
        });
        self.caller_section(c, host)
    }

    /// More of a header section, or all of it.
    pub(super) fn caller_section<H: Host>(&mut self, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let follow = self.caller.partial == Some(Partial::Follow);
        let rest = c.rest();
        // Nearly every section comes in one read, and then nothing is copied.
        if self.caller.held.is_empty()
            && let Extent::Whole(n) = section::extent(rest)
        {
            self.caller_section_at_once(follow, n, c, host);
            return true;
        }
        let mut held = std::mem::take(&mut self.caller.held);
        let before = held.len();
        held.extend_from_slice(rest);
        let n = match self.caller.extent_of(&held) {
            Extent::Whole(n) => n,
            Extent::More => {
                self.caller.held = held;
                // The app gets it as it comes; what is held only tells where it ends.
                if follow {
                    c.pass(rest.len());
                    self.caller.begun = true;
                } else {
                    c.take(rest.len());
                }
                return false;
            }
            Extent::Broken => return self.caller_section_bad(Lost::Malformed, &held, c),
            Extent::TooLong => return self.caller_section_bad(Lost::TooLarge, &held, c),
        };
        held.truncate(n);
        self.caller.partial = None;
        let forward = self.caller_section_whole(follow, &held, host);
        if follow {
            c.pass(n - before);
            return true;
        }
        c.take(n - before);
        match forward {
            Forward::AsIs => c.write(&held),
            Forward::Instead(bytes) => c.write(&bytes),
            Forward::Nothing => return true,
        }
        self.caller.begun = true;
        true
    }

    /// A header section whose `n` bytes have come in one read.
    fn caller_section_at_once<H: Host>(
        &mut self,
        follow: bool,
        n: usize,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) {
        let frames = c.rest().get(..n).unwrap_or_default();
        self.caller.partial = None;
        match self.caller_section_whole(follow, frames, host) {
            Forward::AsIs => {
                c.pass(n);
                self.caller.begun = true;
            }
            Forward::Instead(bytes) => {
                c.take(n);
                c.write(&bytes);
                self.caller.begun = true;
            }
            Forward::Nothing => {
                c.take(n);
            }
        }
    }

    /// A header section that is none, or has no end. What was held of it goes on where the app can
    /// judge it.
    fn caller_section_bad(&mut self, why: Lost, held: &[u8], c: &mut Cursor<'_>) -> bool {
        let rest = c.rest();
        let hold = self.caller.partial.take() == Some(Partial::Hold);
        // The app has other bytes than the caller sent, so it can't judge them.
        if !self.requests.is_verbatim() {
            match why {
                Lost::Malformed => self.end(Fatal::Unclear, code::PROTOCOL_ERROR),
                Lost::TooLarge => self.end(Fatal::Flood, code::ENHANCE_YOUR_CALM),
            }
            return true;
        }
        self.lost = Some(why);
        self.caller.blind = true;
        self.streams.lose_track();
        // The app has nothing of it yet.
        if hold {
            c.take(rest.len());
            c.write(held);
        } else {
            c.pass(rest.len());
        }
        true
    }

    /// A whole header section.
    fn caller_section_whole<H: Host>(
        &mut self,
        follow: bool,
        frames: &[u8],
        host: &mut H,
    ) -> Forward {
        let mut joined = Vec::new();
        let Some(section) = section::read(frames, &mut joined) else {
            return self.unreadable_section(frames, host);
        };
        let head = section.head;
        if follow {
            if let Err(error) = self.requests.follow(section.block) {
                self.lose_requests(error.into());
            }
            if head.stream % 2 == 1 && head.stream > self.newest {
                self.begin_relayed(head, host);
            } else if let Some(slot) = self.streams.note(head.stream, head, Side::Caller) {
                self.app_stream_over(slot, StreamEnd::Complete, host);
            }
            return Forward::AsIs;
        }
        self.read_section(&section, host)
    }

    /// A section whose padding is longer than its frame. It changes no table, and some take it for
    /// an error of its stream, so the app is the judge.
    fn unreadable_section<H: Host>(&mut self, frames: &[u8], host: &mut H) -> Forward {
        let head = FrameHeader::peek(frames).filter(|_| self.ids.are_same() && !self.app_gone);
        match head {
            Some(head) if head.stream % 2 == 1 && head.stream > self.newest => {
                self.begin_relayed(head, host);
            }
            Some(head) if self.target(head.stream) == Target::App(head.stream) => {}
            _ => self.lose_frames(code::PROTOCOL_ERROR),
        }
        if self.fatal.is_some() {
            return Forward::Nothing;
        }
        Forward::AsIs
    }

    /// A stream begins that nobody looks at.
    fn begin_relayed<H: Host>(&mut self, head: FrameHeader, host: &mut H) {
        self.newest = head.stream;
        self.ids.assign(head.stream, head.stream);
        if let Some(diversion) = &mut self.diversion {
            diversion.withheld.advance(head.stream);
        }
        let slot = StreamSlot::new(head.stream, self.age());
        self.streams.insert(slot);
        self.streams.note(head.stream, head, Side::Caller);
        host.relayed();
    }
}
