//! Header sections of the caller that are looked at: where a new stream goes, and what becomes of
//! trailers.

use crate::http2::frames::code;
use crate::http2::hpack::FieldList;
use crate::http2::request::{self, RequestHead};
use crate::http2::router::cursor::Forward;
use crate::http2::router::diverted::{Diversion, Diverted, WaitingHead};
use crate::http2::router::from_caller::Target;
use crate::http2::router::host::{Host, LocalAnswer, StreamEnd, StreamRoute, TunnelId, Way};
use crate::http2::router::leaving::Leaving;
use crate::http2::router::state::Router;
use crate::http2::section::{self, Section};
use crate::http2::streams::{Side, StreamSlot};

thread_local! {
    /// Field lists are taken apart one at a time.
    static FIELDS: std::cell::RefCell<FieldList> = std::cell::RefCell::default();
}

impl Router {
    /// A whole header section of the caller that is looked at.
    pub(super) fn read_section<H: Host>(&mut self, section: &Section<'_>, host: &mut H) -> Forward {
        let mut fields = FIELDS.take();
        fields.clear();
        let read = self.requests.read(section.block, &mut fields);
        let stream = section.head.stream;
        let forward = match read {
            Err(error) => {
                self.lose_requests(error.into());
                Forward::AsIs
            }
            Ok(()) if stream % 2 == 1 && stream > self.newest => {
                self.begin(section, &mut fields, host)
            }
            Ok(()) => self.continue_stream(section, &mut fields, host),
        };
        FIELDS.set(fields);
        if self.fatal.is_some() {
            return Forward::Nothing;
        }
        forward
    }

    /// The first section of a stream.
    fn begin<H: Host>(
        &mut self,
        section: &Section<'_>,
        fields: &mut FieldList,
        host: &mut H,
    ) -> Forward {
        let (stream, ends) = (section.head.stream, section.head.ends_stream());
        self.newest = stream;
        if let Some(diversion) = &mut self.diversion {
            diversion.withheld.advance(stream);
        }
        if self.leaving.as_ref().is_some_and(|l| l.refuses(stream)) {
            // The caller has been told that it is not served.
            self.withhold(stream);
            return Forward::Nothing;
        }
        // A stream that was opened against the app's GOAWAY is the app's to ignore.
        if stream > self.announced || !host.reads_requests() {
            host.relayed();
            return self.send_to_app(section, fields, StreamSlot::new(stream, self.age()), host);
        }
        self.vouch(fields, true);
        let sound = !fields.has_overflowed() && request::is_sound(fields, ends);
        let routed = host.route(stream, &RequestHead::new(fields), sound);
        let StreamRoute {
            way,
            explains,
            copied,
        } = routed;
        if copied {
            let copying = self.copying.get_or_insert_default();
            copying.begin(stream);
            if ends {
                copying.tell(stream, b"", true, host);
            }
        }
        match way {
            Way::App => {
                let mut slot = StreamSlot::new(stream, self.age());
                (slot.watched, slot.explains) = (true, explains);
                self.send_to_app(section, fields, slot, host)
            }
            Way::Tunnel(tunnel) => {
                self.divert(section, fields, tunnel, explains, host);
                Forward::Nothing
            }
            Way::Answer(answer) => {
                self.withhold(stream);
                self.answer_here(stream, ends, answer, host);
                Forward::Nothing
            }
        }
    }

    /// A stream goes to the app.
    fn send_to_app<H: Host>(
        &mut self,
        section: &Section<'_>,
        fields: &FieldList,
        slot: StreamSlot,
        host: &mut H,
    ) -> Forward {
        let stream = slot.id;
        if self.app_gone {
            self.refuse(stream, code::REFUSED_STREAM, host);
            self.leave_at_once();
            return Forward::Nothing;
        }
        let as_is = self.requests.is_verbatim();
        if !as_is && fields.has_overflowed() {
            self.refuse(stream, code::ENHANCE_YOUR_CALM, host);
            return Forward::Nothing;
        }
        let id = self.ids.assign(stream, self.newest);
        self.streams.insert(slot);
        self.streams.note(stream, section.head, Side::Caller);
        if as_is {
            return Forward::AsIs;
        }
        self.section_anew(section, fields, id)
    }

    /// Writes a section for the app anew.
    fn section_anew(&mut self, section: &Section<'_>, fields: &FieldList, id: u32) -> Forward {
        let (mut block, mut out) = (Vec::new(), Vec::new());
        self.requests.encode(fields.iter(), &mut block);
        let priority = if self.ids.are_same() {
            section.priority
        } else {
            independent(section.priority)
        };
        section::write_request(id, section.head.ends_stream(), priority, &block, &mut out);
        Forward::Instead(out)
    }

    /// A stream goes into a tunnel.
    fn divert<H: Host>(
        &mut self,
        section: &Section<'_>,
        fields: &FieldList,
        tunnel: TunnelId,
        explains: bool,
        host: &mut H,
    ) {
        let stream = section.head.stream;
        self.withhold(stream);
        if self.has_all_streams() {
            // As the app would, which does not see this stream.
            return self.refuse(stream, code::REFUSED_STREAM, host);
        }
        let (to_caller, newest) = (self.caller_settings.initial_window, self.newest);
        let diversion = self.diversion.get_or_insert_with(|| Diversion::new(newest));
        if !diversion.has_room(tunnel, fields.size()) {
            host.limited();
            self.refuse(stream, code::REFUSED_STREAM, host);
            return;
        }
        let mut diverted = Diverted::new(Some(tunnel), self.now, self.app_window, to_caller);
        diverted.explains = explains;
        // The caller may not have heard yet that the app gives less.
        diverted.overdraft = i64::from(self.known_window.saturating_sub(self.app_window));
        let ends = section.head.ends_stream();
        if ends {
            diverted.request.end_at_once();
        }
        diverted.head = Some(diversion.wait(WaitingHead {
            fields: fields.clone(),
            ends,
            priority: independent(section.priority),
            credit: 0,
            unknown: Vec::new(),
        }));
        diversion.streams.insert(stream, diverted);
        let connection = diversion.tunnels.entry(tunnel).or_default();
        connection.waiting.push_back(stream);
        self.send_waiting(tunnel, host);
    }

    /// A stream is answered by the agent itself.
    fn answer_here<H: Host>(&mut self, stream: u32, ends: bool, answer: LocalAnswer, host: &mut H) {
        let (to_caller, newest) = (self.caller_settings.initial_window, self.newest);
        let diversion = self.diversion.get_or_insert_with(|| Diversion::new(newest));
        let mut diverted = Diverted::new(None, self.now, self.app_window, to_caller);
        if ends {
            diverted.request.end_at_once();
        }
        let bare = answer.body.is_empty();
        diverted.answer.push(&answer.body);
        if bare {
            diverted.answer.end_at_once();
        } else {
            diverted.answer.end();
        }
        diversion.streams.insert(stream, diverted);
        self.write_answer_head(stream, &answer.fields, bare);
        self.send_answer(stream, host);
    }

    /// A section of a stream that has begun: trailers, or what the app calls an error.
    fn continue_stream<H: Host>(
        &mut self,
        section: &Section<'_>,
        fields: &mut FieldList,
        host: &mut H,
    ) -> Forward {
        let stream = section.head.stream;
        self.vouch(fields, false);
        if let Some(copying) = &mut self.copying
            && copying.has(stream)
            && section.head.ends_stream()
        {
            host.copied_trailers(stream, fields);
            copying.end(stream);
        }
        match self.target(stream) {
            Target::App(id) => {
                if let Some(slot) = self.streams.note(stream, section.head, Side::Caller) {
                    self.app_stream_over(slot, StreamEnd::Complete, host);
                }
                if self.requests.is_verbatim() {
                    return Forward::AsIs;
                }
                self.section_anew(section, fields, id)
            }
            Target::Diverted => {
                self.requests.withhold();
                let sound = section.head.ends_stream()
                    && !fields.has_overflowed()
                    && request::are_trailers_sound(fields);
                if sound {
                    self.request_trailers(stream, fields.clone(), host);
                } else {
                    self.break_diverted(stream, code::PROTOCOL_ERROR, host);
                }
                Forward::Nothing
            }
            Target::Nowhere => {
                self.requests.withhold();
                Forward::Nothing
            }
        }
    }

    /// The app is not told of a stream.
    fn withhold(&mut self, stream: u32) {
        self.requests.withhold();
        let newest = self.newest;
        let diversion = self.diversion.get_or_insert_with(|| Diversion::new(newest));
        diversion.withheld.insert(stream);
    }

    /// Refuses a stream of which nothing has gone anywhere.
    fn refuse<H: Host>(&mut self, stream: u32, code: u32, host: &mut H) {
        self.withhold(stream);
        self.reset_to_caller(stream, code);
        self.stop_copying(stream);
        host.ended(stream, StreamEnd::Refused);
    }

    /// Tells the caller that no further stream can be served.
    pub(super) fn leave_at_once(&mut self) {
        if !self.leaving.as_ref().is_some_and(|l| l.is_final()) {
            let leaving = Leaving::at_once(self.last_served(), &mut self.to_caller);
            self.leaving = Some(Box::new(leaving));
        }
    }
}

/// The priority of a section on its way to another connection: what it depends on is not known
/// there.
fn independent(priority: Option<[u8; 5]>) -> Option<[u8; 5]> {
    priority.map(|[.., weight]| [0, 0, 0, 0, weight])
}
