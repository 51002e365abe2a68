//! Frames of the app. They pass as they are; header sections are followed, because a section of the
//! agent's own may have to be put between them, and some are looked at.

use crate::http2::frames::{self, FrameHeader, HEAD, code, kind};
use crate::http2::hpack::{Field, FieldList, encode_without_table};
use crate::http2::router::cursor::{Cursor, Forward, Partial, Rest, Sorted};
use crate::http2::router::from_caller::MAX_SMALL;
use crate::http2::router::from_tunnel::status_of;
use crate::http2::router::host::{Explained, Host, StreamEnd};
use crate::http2::router::state::{Fatal, Router, on_stream};
use crate::http2::section::{self, Extent, Section};
use crate::http2::settings;
use crate::http2::streams::Side;

impl Router {
    /// Sorts what the app has sent, which follows what earlier calls have used. What goes on to the
    /// caller is the front of `input`, and then what is put into `out`.
    pub fn app_sent<H: Host>(&mut self, input: &[u8], out: &mut Vec<u8>, host: &mut H) -> Sorted {
        let mut cursor = Cursor::new(input, out, false);
        while self.step_app(&mut cursor, host) {}
        if self.app.at_boundary() && !self.to_caller.is_empty() {
            cursor.put(&mut self.to_caller);
        }
        cursor.sorted()
    }

    fn step_app<H: Host>(&mut self, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let rest = c.rest();
        if rest.is_empty() {
            return false;
        }
        if self.app.blind {
            c.pass(rest.len());
            return false;
        }
        if !self.to_caller.is_empty() && self.app.at_boundary() {
            c.put(&mut self.to_caller);
        }
        if self.app.left > 0 {
            let n = self.app.advance(rest.len());
            match self.app.rest {
                Rest::Held => {
                    let bytes = c.take(n);
                    if let Some(diversion) = &mut self.diversion {
                        diversion.held.extend(bytes);
                    }
                    // Only whole frames leave, so that others fit between them.
                    if self.app.left == 0 {
                        self.use_room(host);
                    }
                }
                Rest::Drop | Rest::Data { .. } => {
                    c.take(n);
                }
                Rest::Pass => c.pass(n),
            }
            return true;
        }
        if self.app.partial.is_some() {
            return self.app_section(c, host);
        }
        match FrameHeader::peek(rest) {
            Some(head) => self.app_frame(head, c, host),
            None => false,
        }
    }

    fn app_frame<H: Host>(&mut self, head: FrameHeader, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let Some(stream) = self.ids.to_caller(head.stream) else {
            return self.app_late(head, c, host);
        };
        match head.kind {
            kind::DATA => self.app_data(head, stream, c, host),
            kind::HEADERS => self.app_headers(stream, c, host),
            kind::PUSH_PROMISE => {
                // Streams that the app opens are not counted here.
                self.streams.lose_track();
                self.app.partial = Some(if self.answers.is_verbatim() {
                    Partial::Follow
                } else {
                    Partial::Hold
                });
                self.app_section(c, host)
            }
            kind::RST_STREAM => self.app_reset(head, stream, c, host),
            kind::SETTINGS if !head.is_ack() && head.length <= MAX_SMALL => {
                let Some(payload) = c.rest().get(HEAD..head.size()) else {
                    return false;
                };
                self.app_said.sent(payload);
                for (id, value) in settings::entries(payload) {
                    if id == settings::INITIAL_WINDOW_SIZE && value <= frames::MAX_STREAM {
                        self.change_app_window(value);
                    }
                }
                self.pass_to_caller(head, stream, c)
            }
            kind::SETTINGS if head.is_ack() => {
                self.app_agreed();
                self.pass_to_caller(head, stream, c)
            }
            // On a stream it is malformed, and the caller's to judge.
            kind::GOAWAY if head.stream == 0 && head.length >= 8 => self.app_goaway(head, c, host),
            _ => self.pass_to_caller(head, stream, c),
        }
    }

    /// A frame of a stream that is over and forgotten. Header sections change the table all the
    /// same.
    fn app_late<H: Host>(&mut self, head: FrameHeader, c: &mut Cursor<'_>, host: &mut H) -> bool {
        if head.kind == kind::HEADERS {
            // Its fields may enter the table that later sections refer to.
            self.app.partial = Some(Partial::Hold);
            return self.app_section(c, host);
        }
        c.take(HEAD);
        // The app has paid for it with its window, and would stall without it.
        if head.kind == kind::DATA {
            self.credit_app(head.length as usize);
        }
        self.app.skip(head);
        true
    }

    /// Lets a frame through, as one of the caller's stream.
    fn pass_to_caller(&mut self, head: FrameHeader, stream: u32, c: &mut Cursor<'_>) -> bool {
        if stream == head.stream {
            c.pass(HEAD);
        } else {
            c.take(HEAD);
            c.write(&on_stream(head, stream));
        }
        self.app.enter(head, Rest::Pass);
        self.app.begun = true;
        true
    }

    fn app_data<H: Host>(
        &mut self,
        head: FrameHeader,
        stream: u32,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        let length = head.length as usize;
        if self.is_watching() {
            host.moved(stream, Side::App, length);
        }
        let held = self.diversion.as_ref().is_some_and(|d| {
            // Behind DATA that waits everything waits, or answers would overtake each other.
            !d.held.is_empty() || (self.window.is_shared() && length > self.window.room())
        });
        if let Some(slot) = self.streams.note(stream, head, Side::App) {
            self.app_stream_over(slot, StreamEnd::Complete, host);
        }
        if let (true, Some(diversion)) = (held, &mut self.diversion) {
            c.take(HEAD);
            diversion.held.push(stream, &on_stream(head, stream));
            self.app.enter(head, Rest::Held);
            if length == 0 {
                self.use_room(host);
            }
            return true;
        }
        self.window.by_app(length);
        self.pass_to_caller(head, stream, c)
    }

    /// The app has sent DATA that does not reach the caller: it gets its credit back.
    fn credit_app(&mut self, length: usize) {
        let credit = self.window.dropped(length);
        if credit > 0 {
            self.to_app
                .extend_from_slice(&frames::window_update(0, credit));
        }
    }

    /// Drops what is held of a stream.
    pub(super) fn drop_held(&mut self, stream: u32) {
        let dropped = match &mut self.diversion {
            Some(diversion) => diversion.held.drop_stream(stream),
            None => 0,
        };
        self.credit_app(dropped);
    }

    /// A reset passes DATA that is held, unless that is the whole rest of an answer.
    fn app_reset<H: Host>(
        &mut self,
        head: FrameHeader,
        stream: u32,
        c: &mut Cursor<'_>,
        host: &mut H,
    ) -> bool {
        let behind = self
            .diversion
            .as_ref()
            .is_some_and(|d| d.held.has_end(stream));
        // An answer that is complete reaches the caller whole, although the app has reset the
        // stream since.
        if behind {
            if c.rest().len() < head.size() {
                return false;
            }
            let payload = c.take(head.size()).get(HEAD..).unwrap_or_default();
            let frame = [&on_stream(head, stream)[..], payload].concat();
            if let Some(diversion) = &mut self.diversion {
                diversion.held.push(stream, &frame);
            }
        } else {
            self.drop_held(stream);
        }
        if let Some(slot) = self.streams.note(stream, head, Side::App) {
            self.app_stream_over(slot, StreamEnd::ServerReset, host);
        }
        behind || self.pass_to_caller(head, stream, c)
    }

    fn app_headers<H: Host>(&mut self, stream: u32, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let held = self.diversion.as_ref().is_some_and(|d| d.held.has(stream));
        let explains = self
            .streams
            .get_mut(stream)
            .is_some_and(|slot| slot.explains && !slot.answered);
        // Only a section that goes on byte for byte may leave before it is complete.
        let hold = held || explains || !self.ids.are_same() || !self.answers.is_verbatim();
        self.app.partial = Some(if hold { Partial::Hold } else { Partial::Follow });
        self.app_section(c, host)
    }

    /// More of a header section, or all of it.
    fn app_section<H: Host>(&mut self, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let follow = self.app.partial == Some(Partial::Follow);
        let rest = c.rest();
        let before = self.app.held.len();
        let mut held = std::mem::take(&mut self.app.held);
        let n = match (before, section::extent(rest)) {
            (0, Extent::Whole(n)) => n,
            _ => {
                held.extend_from_slice(rest);
                match self.app.extent_of(&held) {
                    Extent::Whole(n) => n,
                    Extent::More => {
                        self.app.held = held;
                        if follow {
                            c.pass(rest.len());
                            self.app.begun = true;
                        } else {
                            c.take(rest.len());
                        }
                        return false;
                    }
                    Extent::Broken | Extent::TooLong => {
                        // The caller is the judge of it, and of all behind it.
                        self.app.blind = true;
                        self.app.partial = None;
                        if follow {
                            c.pass(rest.len());
                        } else {
                            c.take(rest.len());
                            c.write(&held);
                        }
                        return true;
                    }
                }
            }
        };
        self.app.partial = None;
        let frames = if held.is_empty() { rest } else { &held };
        let frames = frames.get(..n).unwrap_or_default();
        let forward = self.app_section_whole(frames, host);
        self.app.begun = true;
        match forward {
            Forward::AsIs if follow || before == 0 => c.pass(n - before),
            Forward::AsIs => {
                c.take(n - before);
                c.write(frames);
            }
            Forward::Instead(bytes) => {
                c.take(n - before);
                c.write(&bytes);
            }
            Forward::Nothing => {
                c.take(n - before);
            }
        }
        true
    }

    fn app_section_whole<H: Host>(&mut self, frames: &[u8], host: &mut H) -> Forward {
        let mut joined = Vec::new();
        let section = section::read(frames, &mut joined);
        let Some(section) = section.filter(|_| !self.answers_lost) else {
            self.lose_answers();
            return Forward::AsIs;
        };
        let stream = self.ids.to_caller(section.head.stream);
        let explained = stream.and_then(|stream| self.app_answers(stream, &section, host));
        let held = self.diversion.as_ref();
        let held = held.is_some_and(|d| stream.is_some_and(|stream| d.held.has(stream)));
        let forward = match stream {
            Some(stream) if self.answers.is_verbatim() && !held => {
                self.answer_verbatim(stream, &section, explained, frames)
            }
            _ => self.answer_anew(stream, &section, explained, held),
        };
        let over = stream.and_then(|id| self.streams.note(id, section.head, Side::App));
        if let Some(slot) = over {
            self.app_stream_over(slot, StreamEnd::Complete, host);
        }
        forward
    }

    /// The caller's table is the app's: the section goes on as it is, or with a field more.
    fn answer_verbatim(
        &mut self,
        stream: u32,
        section: &Section<'_>,
        explained: Option<Explained>,
        frames: &[u8],
    ) -> Forward {
        if self.answers.follow(section.block).is_err() {
            self.lose_answers();
        }
        if explained.is_none() && stream == section.head.stream {
            return Forward::AsIs;
        }
        let mut block = section.block.to_vec();
        if let Some(explained) = explained {
            let field = Field::plain(explained.name.as_bytes(), explained.value.as_bytes());
            // A field in the table would be there for the caller and not for the app.
            encode_without_table(field, &mut block);
        }
        let mut out = Vec::with_capacity(frames.len() + 256);
        section::write(stream, section.head.ends_stream(), &block, &mut out);
        Forward::Instead(out)
    }

    /// The section is written anew, or waits behind DATA that is held, or is nobody's.
    fn answer_anew(
        &mut self,
        stream: Option<u32>,
        section: &Section<'_>,
        explained: Option<Explained>,
        held: bool,
    ) -> Forward {
        let mut fields = FieldList::default();
        if self.answers.read(section.block, &mut fields).is_err() {
            self.lose_answers();
            return Forward::AsIs;
        }
        if let Some(explained) = explained {
            let field = Field::plain(explained.name.as_bytes(), explained.value.as_bytes());
            fields.push(field);
        }
        let ends = section.head.ends_stream();
        let (Some(stream), false) = (stream, held) else {
            self.answers.withhold();
            if let (Some(stream), Some(diversion)) = (stream, &mut self.diversion) {
                diversion.held.push_section(stream, fields, ends);
            }
            return Forward::Nothing;
        };
        let (mut block, mut out) = (Vec::new(), Vec::new());
        self.answers.encode(fields.iter(), &mut block);
        match section.promised {
            Some(promised) => section::write_promise(stream, promised, &block, &mut out),
            None => section::write(stream, ends, &block, &mut out),
        }
        Forward::Instead(out)
    }

    /// The app's header sections can't be read. The caller is the judge, where it has had all of
    /// them as they came.
    fn lose_answers(&mut self) {
        self.answers_lost = true;
        if !self.answers.is_verbatim() {
            self.end(Fatal::Unclear, code::INTERNAL_ERROR);
        }
    }

    /// Takes note of an answer's head, where its stream is known.
    fn app_answers<H: Host>(
        &mut self,
        stream: u32,
        section: &Section<'_>,
        host: &mut H,
    ) -> Option<Explained> {
        let slot = self.streams.get_mut(stream).filter(|slot| !slot.answered)?;
        if !slot.watched {
            slot.answered = true;
            return None;
        }
        let (began, explains) = (slot.began, slot.explains);
        let mut first = FieldList::default();
        self.answers.peek(section.block, &mut first);
        let status = status_of(first.iter());
        if status / 100 == 1 && !section.head.ends_stream() {
            return None;
        }
        slot.answered = true;
        let took = self.since(began);
        if let Some(flood) = &mut self.flood {
            flood.answered();
        }
        host.answered(stream, status, took).filter(|_| explains)
    }

    /// The app leaves. Its last stream is said in the caller's terms: streams that it refuses are
    /// reset one by one where others, which go on elsewhere, have higher ids.
    fn app_goaway<H: Host>(&mut self, head: FrameHeader, c: &mut Cursor<'_>, host: &mut H) -> bool {
        let Some(last) = c.rest().get(HEAD..HEAD + 8).and_then(frames::number) else {
            return false;
        };
        let last = last & frames::MAX_STREAM;
        self.app_parts = true;
        let diverted = self
            .diversion
            .as_ref()
            .and_then(|d| d.streams.keys().next_back());
        let beyond = diverted.is_some_and(|newest| *newest > last) || !self.ids.are_same();
        let mut said = last;
        if beyond && last < self.ids.highest() {
            let refused = self.streams.iter().map(|slot| slot.id);
            let refused = refused.filter(|id| self.ids.to_app(*id).is_some_and(|id| id > last));
            let refused: Vec<_> = refused.collect();
            for stream in refused {
                self.reset_to_caller(stream, code::REFUSED_STREAM);
                self.drop_held(stream);
                if let Some(slot) = self.streams.remove(stream) {
                    self.app_stream_over(slot, StreamEnd::Refused, host);
                }
            }
        }
        if beyond && last != frames::MAX_STREAM {
            said = self.newest;
        }
        // Streams may have come since the app's last GOAWAY: ids must not grow (RFC 9113 section 6.8).
        // Where none of the app's has been changed they grow as the app lets them.
        if beyond || self.goaway_changed {
            said = said.min(self.announced);
        }
        if let Some(leaving) = &mut self.leaving {
            said = leaving.lower(said);
        }
        self.announced = self.announced.min(said);
        if said == last {
            return self.pass_to_caller(head, 0, c);
        }
        self.goaway_changed = true;
        c.take(HEAD + 4);
        if self.app.at_boundary() && !self.to_caller.is_empty() {
            c.put(&mut self.to_caller);
        }
        c.write(&head.encode());
        c.write(&said.to_be_bytes());
        self.app.enter(head, Rest::Pass);
        self.app.left -= 4;
        self.app.begun = true;
        true
    }
}
