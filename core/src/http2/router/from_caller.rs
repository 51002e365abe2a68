//! Frames of the caller. Those of streams that go to the app pass as they are; those of diverted
//! streams are taken out and go to where the stream goes.

use crate::http2::frames::{self, FrameHeader, HEAD, PADDED, code, kind};
use crate::http2::router::cursor::{Cursor, Rest, Sorted};
use crate::http2::router::diverted::Diversion;
use crate::http2::router::host::{Host, StreamEnd};
use crate::http2::router::state::{Fatal, Router, number_in, on_stream};
use crate::http2::streams::Side;

/// Payloads of small frames that are waited for; what is larger is not looked at.
pub(super) const MAX_SMALL: u32 = 4096;

/// Destination of a stream's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To the app, where the stream has this id.
    App(u32),
    /// To where a diverted stream goes.
    Diverted,
    /// Nowhere: the app has never heard of the stream, or it is over.
    Nowhere,
}

impl Router {
    /// Sorts what the caller has sent, which follows what earlier calls have used. What goes on to
    /// the app is the front of `input`, and then what is put into `out`.
    pub fn caller_sent<H: Host>(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        host: &mut H,
    ) -> Sorted {
        let mut cursor = Cursor::new(input, out, self.app_gone);
        while self.step_caller(&mut cursor, host) {}
        if self.caller.at_boundary() && !self.to_app.is_empty() {
            cursor.put(&mut self.to_app);
        }
        cursor.sorted()
    }

    /// Deals with what is next; `false` where that needs more bytes.
    fn step_caller<H: Host>(&mut self, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let rest = c.rest();
        if rest.is_empty() {
            return false;
        }
        if self.fatal.is_some() {
            c.take(rest.len());
            return false;
        }
        // Frames that cannot be told apart any more belong to the app, which is the judge of them.
        if self.caller.blind {
            c.pass(rest.len());
            return false;
        }
        // Frames of our own fit only between two frames of the caller's.
        if !self.to_app.is_empty() && self.caller.at_boundary() {
            c.put(&mut self.to_app);
        }
        if self.caller.left > 0 {
            self.caller_payload(c, host);
            return true;
        }
        if self.caller.partial.is_some() {
            return self.caller_section(c, host);
        }
        match FrameHeader::peek(rest) {
            Some(head) => self.caller_frame(head, c, host),
            None => false,
        }
    }

    fn caller_payload<H: Host>(&mut self, c: &mut Cursor<'_>, host: &mut H) {
        let n = self.caller.advance(c.rest().len());
        match self.caller.rest {
            Rest::Pass => {
                if let Some(copying) = &mut self.copying {
                    let bytes = c.rest().get(..n).unwrap_or_default();
                    copying.payload(bytes, self.caller.left, host);
                }
                c.pass(n);
            }
            Rest::Drop | Rest::Held => {
                c.take(n);
            }
            Rest::Data { stream, pad, end } => {
                let bytes = c.take(n);
                // Padding stands at the frame's end, so of these bytes it is what the rest of the
                // frame does not hold.
                let padding = pad.saturating_sub(self.caller.left);
                let body = bytes.len() - padding.min(bytes.len());
                self.caller.rest = Rest::Data {
                    stream,
                    pad: pad - padding.min(pad),
                    end,
                };
                let body = bytes.get(..body).unwrap_or_default();
                let ends = end && self.caller.left == 0;
                if let Some(copying) = &mut self.copying {
                    copying.tell(stream, body, ends, host);
                }
                match self.target(stream) {
                    Target::App(id) => {
                        self.late_data(id, body, bytes.len(), ends, c);
                        let over = ends.then(|| self.streams.end_request(stream)).flatten();
                        if let Some(slot) = over {
                            self.app_stream_over(slot, StreamEnd::Complete, host);
                        }
                    }
                    // Flow control counts padding, the body does not.
                    _ => self.request_data(stream, body, bytes.len(), ends, host),
                }
            }
        }
    }

    /// More of a DATA frame whose stream has gone to the app since the frame began.
    fn late_data(&mut self, id: u32, body: &[u8], flow: usize, ends: bool, c: &mut Cursor<'_>) {
        let lost = if self.app_gone {
            flow
        } else {
            flow - body.len()
        };
        self.uncredited(lost);
        if !body.is_empty() || ends {
            let head = FrameHeader {
                // A part of a frame.
                length: body.len() as u32,
                kind: kind::DATA,
                flags: if ends { frames::END_STREAM } else { 0 },
                stream: id,
            };
            c.write(&head.encode());
            c.write(body);
        }
    }

    /// Returns the destination of frames of a stream that has begun.
    pub(super) fn target(&self, stream: u32) -> Target {
        let Some(diversion) = &self.diversion else {
            return Target::App(stream);
        };
        // The connection itself: its settings and its window are the app's.
        if stream == 0 {
            return Target::App(0);
        }
        if diversion.streams.contains_key(&stream) {
            return Target::Diverted;
        }
        if diversion.withheld.contains(stream) {
            return Target::Nowhere;
        }
        match self.ids.to_app(stream) {
            Some(id) => Target::App(id),
            None => Target::Nowhere,
        }
    }

    /// One frame, whose header is complete.
    fn caller_frame<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        // Counted before it is looked at, since looking is what a flood makes expensive.
        if let Some(flood) = &mut self.flood
            && !flood.allows(head, self.now)
        {
            self.end(Fatal::Flood, code::ENHANCE_YOUR_CALM);
            return true;
        }
        match head.kind {
            kind::HEADERS => self.caller_headers(head, c, host),
            kind::DATA => self.caller_data(head, c, host),
            kind::RST_STREAM => self.caller_reset(head, c, host),
            kind::WINDOW_UPDATE => self.caller_credit(head, c, host),
            kind::SETTINGS | kind::PING => self.caller_control(head, c, host),
            // Of the wrong size it is an error, and the app's to judge.
            kind::PRIORITY if head.length != 5 => self.pass_to_app(head, head.stream, c),
            // It may come for a stream that has not begun, and it changes nothing.
            kind::PRIORITY => match self.target(head.stream) {
                Target::App(id) => self.pass_to_app(head, id, c),
                Target::Diverted | Target::Nowhere => {
                    c.take(HEAD);
                    self.caller.skip(head);
                    true
                }
            },
            _ => self.caller_other(head, c),
        }
    }

    /// Lets a frame through, as one of the app's stream `id`.
    pub(super) fn pass_to_app(&mut self, head: FrameHeader, id: u32, c: &mut Cursor<'_>) -> bool {
        if id == head.stream {
            c.pass(HEAD);
        } else {
            c.take(HEAD);
            c.write(&on_stream(head, id));
        }
        self.caller.enter(head, Rest::Pass);
        self.caller.begun = true;
        if matches!(head.kind, kind::HEADERS | kind::CONTINUATION) {
            self.caller.section_open = head.flags & frames::END_HEADERS == 0;
        }
        true
    }

    fn caller_data<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        match self.target(head.stream) {
            Target::App(id) => {
                if self.is_watching() {
                    host.moved(head.stream, Side::Caller, head.length as usize);
                }
                if let Some(copying) = &mut self.copying {
                    copying.frame(head, host);
                }
                if let Some(slot) = self.streams.note(head.stream, head, Side::Caller) {
                    self.app_stream_over(slot, StreamEnd::Complete, host);
                }
                // Nobody reads it, but the caller's other streams need the window.
                if self.app_gone {
                    self.uncredited(head.length as usize);
                }
                self.pass_to_app(head, id, c)
            }
            Target::Nowhere => {
                c.take(HEAD);
                self.uncredited(head.length as usize);
                self.caller.skip(head);
                true
            }
            Target::Diverted => self.diverted_data(head, c, host),
        }
    }

    fn diverted_data<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        let (stream, end) = (head.stream, head.ends_stream());
        let mut pad = 0;
        if head.flags & PADDED != 0 {
            // The length of the padding is the payload's first byte, and may not have come yet.
            let Some(byte) = c.rest().get(HEAD) else {
                return false;
            };
            pad = usize::from(*byte);
            if pad >= head.length as usize {
                self.lose_frames(code::PROTOCOL_ERROR);
                return true;
            }
        }
        let padded = head.flags & PADDED != 0;
        c.take(HEAD + usize::from(padded));
        self.caller.enter(head, Rest::Data { stream, pad, end });
        self.caller.left -= usize::from(padded);
        if let Some(copying) = &mut self.copying
            && self.caller.left == 0
        {
            copying.tell(stream, b"", end, host);
        }
        if self.caller.left == 0 {
            self.request_data(stream, b"", usize::from(padded), end, host);
        } else if padded {
            self.request_data(stream, b"", 1, false, host);
        }
        true
    }

    fn caller_reset<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        match self.target(head.stream) {
            Target::App(id) => {
                // The caller wants no more of the answer.
                self.drop_held(head.stream);
                if let Some(slot) = self.streams.note(head.stream, head, Side::Caller) {
                    let given_up = !slot.answered;
                    self.app_stream_over(slot, StreamEnd::CallerReset, host);
                    self.given_up(given_up);
                }
                self.pass_to_app(head, id, c)
            }
            Target::Nowhere => {
                c.take(HEAD);
                self.caller.skip(head);
                true
            }
            Target::Diverted => {
                if c.rest().len() < head.size() {
                    return head.length > MAX_SMALL && self.not_understood();
                }
                match number_in(head, c.rest()) {
                    Some(code) => self.cancel_diverted(head.stream, code, host),
                    None => return self.not_understood(),
                }
                c.take(head.size());
                true
            }
        }
    }

    fn not_understood(&mut self) -> bool {
        self.lose_frames(code::FRAME_SIZE_ERROR);
        true
    }

    /// A request was given up, before its answer or behind it.
    pub(super) fn given_up(&mut self, before_answer: bool) {
        let Some(flood) = &mut self.flood else { return };
        if before_answer && !flood.given_up(self.now) {
            self.end(Fatal::Flood, code::ENHANCE_YOUR_CALM);
        }
    }

    fn caller_credit<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        let target = self.target(head.stream);
        if head.length != 4 {
            // The app answers a frame of the wrong size itself.
            return match target {
                Target::App(id) => self.pass_to_app(head, id, c),
                Target::Diverted | Target::Nowhere => self.not_understood(),
            };
        }
        let Some(credit) = number_in(head, c.rest()).map(|n| n & frames::MAX_STREAM) else {
            return false;
        };
        match target {
            Target::App(0) => {
                // While answers of workstations share the connection's window, the app gets only
                // its part of the credit.
                // One of nothing is the app's to judge.
                let shared = self.window.is_shared() && credit > 0;
                let for_app = self.window.credit(credit);
                if shared {
                    c.take(head.size());
                    if for_app > 0 {
                        c.write(&frames::window_update(0, for_app));
                    }
                } else {
                    c.pass(head.size());
                    self.caller.begun = true;
                }
                self.use_room(host);
            }
            Target::App(id) => return self.pass_to_app(head, id, c),
            Target::Diverted => {
                c.take(head.size());
                self.credit_diverted(head.stream, credit, host);
            }
            Target::Nowhere => {
                c.take(head.size());
            }
        }
        true
    }

    /// SETTINGS and PING.
    fn caller_control<H: Host>(
        &mut self,
        head: FrameHeader,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        if head.length > MAX_SMALL {
            // No sensible one is that large.
            return self.pass_to_app(head, head.stream, c);
        }
        if c.rest().len() < head.size() {
            return false;
        }
        let payload = c.rest().get(HEAD..head.size()).unwrap_or_default();
        let ours = match (head.kind, head.is_ack()) {
            // The app must not see an answer to settings that it never sent.
            (kind::SETTINGS, true) if self.own_settings > 0 => {
                self.own_settings -= 1;
                true
            }
            (kind::SETTINGS, true) => {
                self.caller_agreed();
                false
            }
            (kind::PING, true) => {
                let newest = self.newest;
                let leaving = self.leaving.as_mut();
                leaving.is_some_and(|leaving| leaving.answered(payload, newest))
            }
            (kind::SETTINGS, false) => {
                self.take_caller_settings(payload, host);
                false
            }
            _ => {
                if let (true, Some(payload)) = (self.app_gone, payload.first_chunk()) {
                    self.to_caller
                        .extend_from_slice(&frames::ping(*payload, frames::ACK));
                }
                false
            }
        };
        if ours {
            c.take(head.size());
        } else {
            c.pass(head.size());
            self.caller.begun = true;
        }
        true
    }

    /// The caller says settings.
    fn take_caller_settings<H: Host>(&mut self, payload: &[u8], host: &mut H) {
        if let Some(window) = self.read_caller_settings(payload) {
            self.change_caller_window(window, host);
        }
        self.caller_said.sent(payload);
        // Streams of workstations go on without the app, and with them the connection's duties.
        if self.app_gone {
            self.to_caller.extend_from_slice(&frames::SETTINGS_ACK);
            self.app_agreed();
        }
    }

    /// Frames whose type means nothing here. Those of diverted streams go where these go.
    fn caller_other(&mut self, head: FrameHeader, c: &mut Cursor<'_>) -> bool {
        match self.target(head.stream) {
            Target::App(id) => self.pass_to_app(head, id, c),
            Target::Diverted if head.kind > kind::CONTINUATION && head.length <= MAX_SMALL => {
                if c.rest().len() < head.size() {
                    return false;
                }
                let frame = c.take(head.size());
                self.unknown_to_tunnel(head, frame.get(HEAD..).unwrap_or_default());
                true
            }
            // A push, or what belongs to the connection: errors of it, and the app's to judge.
            Target::Diverted | Target::Nowhere if head.kind <= kind::CONTINUATION => {
                self.pass_to_app(head, head.stream, c)
            }
            Target::Diverted | Target::Nowhere => {
                c.take(HEAD);
                self.caller.skip(head);
                true
            }
        }
    }

    /// The caller's credit for bytes that the app will not see is to be given back.
    pub(super) fn uncredited(&mut self, n: usize) {
        let newest = self.newest;
        let diversion = self.diversion.get_or_insert_with(|| Diversion::new(newest));
        diversion.uncredited += n;
        diversion.settle_credit(&mut self.to_caller);
    }
}
