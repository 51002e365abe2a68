//! The router's state, and what several of its parts do to it.

use std::time::{Duration, Instant};

use crate::http2::flood::FloodBudget;
use crate::http2::frames::{self, DEFAULT_WINDOW, FrameHeader, HEAD, PREFACE, code};
use crate::http2::hpack::{Field, FieldList, Form, HpackError, Recoder};
use crate::http2::router::copying::Copying;
use crate::http2::router::cursor::{Inbound, Rest};
use crate::http2::router::diverted::Diversion;
use crate::http2::router::host::{Host, StreamEnd};
use crate::http2::router::ids::StreamIds;
use crate::http2::router::leaving::Leaving;
use crate::http2::router::unanswered::Unanswered;
use crate::http2::router::window::CallerWindow;
use crate::http2::settings;
use crate::http2::streams::{OpenStreams, Side, StreamSlot};

/// Bytes of the app that may be held back because the caller has no room for them.
const MAX_HELD: usize = 256 * 1024;

/// Bytes for the caller beyond which workstations are not read: with one read more it stays below
/// 64 KiB, so that the buffer is no larger.
const MAX_TO_CALLER: usize = 40 * 1024;

/// A request field that the agent vouches for: what callers send under its name is taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VouchedField {
    /// Its name, in lower case.
    pub name: String,
    /// This caller's value, where it has one.
    pub value: Option<String>,
}

/// Reason for which the router itself ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fatal {
    /// The caller does too much of what carries nothing.
    Flood,
    /// The caller's bytes can no longer be understood, and the app can't be the judge of them.
    Unclear,
}

/// The caller's SETTINGS as far as workstations are told them.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallerSettings {
    pub(super) initial_window: u32,
    pub(super) max_list: Option<u32>,
}

/// Routes the streams of one caller's connection. See the module's page.
#[derive(Debug)]
pub struct Router {
    pub(super) caller: Inbound,
    pub(super) app: Inbound,
    /// Header sections from the caller to the app.
    pub(super) requests: Recoder,
    /// Header sections from the app to the caller.
    pub(super) answers: Recoder,
    /// Requests, or answers, can no longer be decoded; they go on as they are.
    pub(super) lost: Option<Lost>,
    pub(super) answers_lost: bool,
    pub(super) streams: OpenStreams,
    pub(super) ids: StreamIds,
    /// The highest stream that the caller has opened.
    pub(super) newest: u32,
    pub(super) window: CallerWindow,
    pub(super) caller_settings: CallerSettings,
    /// The window that the app gives a new stream.
    pub(super) app_window: u32,
    /// The last stream that the app has said, by GOAWAY, it serves.
    pub(super) announced: u32,
    pub(super) app_parts: bool,
    /// The caller was told another last stream than the app had said.
    pub(super) goaway_changed: bool,
    pub(super) app_gone: bool,
    /// SETTINGS of the caller and of the app on their way to the other.
    pub(super) caller_said: Unanswered,
    pub(super) app_said: Unanswered,
    /// The window of a new stream that the caller knows of.
    pub(super) known_window: u32,
    /// Streams at a time that the caller knows it may open.
    pub(super) max_streams: Option<u32>,
    /// SETTINGS of ours that the caller has not answered.
    pub(super) own_settings: u32,
    pub(super) diversion: Option<Box<Diversion>>,
    /// Requests that are copied; none before the first.
    pub(super) copying: Option<Box<Copying>>,
    pub(super) leaving: Option<Box<Leaving>>,
    pub(super) vouched: Option<Box<VouchedField>>,
    pub(super) flood: Option<Box<FloodBudget>>,
    pub(super) fatal: Option<Fatal>,
    /// Frames of ours that wait for a gap between those that pass.
    pub(super) to_caller: Vec<u8>,
    pub(super) to_app: Vec<u8>,
    caller_stalls: bool,
    pub(super) now: Instant,
    started: Instant,
}

/// Reason for which requests can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The caller's table or header section is larger than what is followed here; the app may well
    /// understand it.
    TooLarge,
    /// They are malformed; the app will say so.
    Malformed,
}

impl Router {
    /// A router for a connection from its first byte on.
    #[must_use]
    pub fn new(vouched: Option<VouchedField>, now: Instant) -> Self {
        let mut router = Self {
            caller: Inbound {
                left: PREFACE.len(),
                ..Inbound::default()
            },
            app: Inbound::default(),
            requests: Recoder::default(),
            answers: Recoder::default(),
            lost: None,
            answers_lost: false,
            streams: OpenStreams::default(),
            ids: StreamIds::default(),
            newest: 0,
            window: CallerWindow::default(),
            caller_settings: CallerSettings {
                initial_window: DEFAULT_WINDOW,
                max_list: None,
            },
            app_window: DEFAULT_WINDOW,
            announced: frames::MAX_STREAM,
            app_parts: false,
            goaway_changed: false,
            app_gone: false,
            caller_said: Unanswered::default(),
            app_said: Unanswered::default(),
            known_window: DEFAULT_WINDOW,
            max_streams: None,
            own_settings: 0,
            diversion: None,
            copying: None,
            leaving: None,
            vouched: None,
            flood: None,
            fatal: None,
            to_caller: Vec::new(),
            to_app: Vec::new(),
            caller_stalls: false,
            now,
            started: now,
        };
        if let Some(vouched) = vouched {
            router.vouched = Some(Box::new(vouched));
            // Sections to the app are written here from the first on.
            router.requests.withhold();
        }
        router
    }

    /// A router for a connection that has been upgraded from HTTP/1 (RFC 7540 section 3.2): the
    /// app's connection carries the request as stream 1, and the caller's settings were in its
    /// head. `explains` says that its answer has to say why it comes from the app.
    #[must_use]
    pub fn upgraded(
        settings: &[u8],
        explains: bool,
        vouched: Option<VouchedField>,
        now: Instant,
    ) -> Self {
        let mut router = Self::new(vouched, now);
        if let Some(window) = router.read_caller_settings(settings) {
            router.caller_settings.initial_window = window;
        }
        router.newest = 1;
        router.ids.assign(1, 1);
        let mut slot = StreamSlot::new(1, 0);
        // The request's head was routed as HTTP/1; only its answer is still looked at.
        (slot.watched, slot.explains) = (true, explains);
        router.streams.insert(slot);
        let ended = FrameHeader {
            length: 0,
            kind: frames::kind::HEADERS,
            flags: frames::END_STREAM,
            stream: 1,
        };
        router.streams.note(1, ended, Side::Caller);
        router
    }

    /// Sets the time that holds until the next call.
    pub fn set_now(&mut self, now: Instant) {
        self.now = now;
    }

    /// Returns the reason if the connection has to be ended by the agent. The last frame for the
    /// caller is in its output.
    #[must_use]
    pub fn fatal(&self) -> Option<Fatal> {
        self.fatal
    }

    /// Returns true if the caller is to be read.
    #[must_use]
    pub fn reads_caller(&self) -> bool {
        self.fatal.is_none()
            // A caller that floods with what has to be answered, such as PING, and reads nothing
            // would fill the answers' buffer.
            && self.to_caller.len() < 4 * MAX_TO_CALLER
            && !self.diversion.as_ref().is_some_and(|d| d.is_full())
    }

    /// Returns true if the app is to be read.
    #[must_use]
    pub fn reads_app(&self) -> bool {
        // Without a diversion the app's bytes pass at once, or wait in its own socket.
        let held = self.diversion.as_ref().map_or(0, |d| d.held.bytes());
        self.fatal.is_none() && held < MAX_HELD
    }

    /// Returns true if workstations are to be read.
    #[must_use]
    pub fn reads_tunnels(&self) -> bool {
        self.fatal.is_none() && !self.caller_stalls && self.to_caller.len() < MAX_TO_CALLER
    }

    /// Takes note if the caller does not take what was put out for it: then nothing more is to come
    /// for it.
    pub fn set_caller_stalls(&mut self, stalls: bool) {
        self.caller_stalls = stalls;
    }

    /// Returns true if anything is diverted at the moment.
    #[must_use]
    pub fn has_diverted(&self) -> bool {
        self.diversion
            .as_ref()
            .is_some_and(|d| !d.streams.is_empty())
    }

    /// Returns true if the app has announced that it leaves.
    #[must_use]
    pub fn app_parts(&self) -> bool {
        self.app_parts
    }

    /// Returns true if the caller has heard from a server yet.
    #[must_use]
    pub fn is_greeted(&self) -> bool {
        self.app.begun
    }

    /// Moves frames of ours for the caller to `out`, where a gap allows it, and once what was there
    /// has gone: as long as frames wait here, they hold back those who sent them.
    pub fn put_to_caller(&mut self, out: &mut Vec<u8>) {
        if out.is_empty() && !self.to_caller.is_empty() && self.app.at_boundary() {
            std::mem::swap(out, &mut self.to_caller);
        }
    }

    /// Moves frames of ours for the app to `out`, where a gap allows it.
    pub fn put_to_app(&mut self, out: &mut Vec<u8>) {
        if !self.to_app.is_empty() && self.caller.at_boundary() {
            out.append(&mut self.to_app);
            // It is used seldom, and most connections are idle most of the time.
            self.to_app.shrink_to(0);
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn heap(&self) -> usize {
        self.requests.heap()
            + self.answers.heap()
            + self.caller.held.capacity()
            + self.app.held.capacity()
            + self.to_caller.capacity()
            + self.to_app.capacity()
    }

    /// Begins to count what the caller sends that carries nothing. Before, that is the app's to
    /// judge.
    pub fn guard(&mut self) {
        if self.flood.is_none() {
            self.flood = Some(Box::default());
        }
    }

    /// Sends the caller something that asks for no answer and changes nothing, so that one that is
    /// gone is noticed.
    pub fn probe_caller(&mut self) {
        self.to_caller
            .extend_from_slice(&frames::window_update(0, 1));
    }

    /// Greets the caller in place of an app that says nothing, so that workstations can answer.
    pub fn greet(&mut self) {
        if !self.app.begun && self.app.held.is_empty() {
            frames::settings(&[], &mut self.to_caller);
            self.own_settings += 1;
            self.app.begun = true;
        }
    }

    /// Takes note of the caller's settings; answers the window that it gives new streams, where it
    /// says one.
    pub(super) fn read_caller_settings(&mut self, payload: &[u8]) -> Option<u32> {
        let mut window = None;
        for (id, value) in settings::entries(payload) {
            match id {
                // A larger one is an error that the app finds by itself (RFC 9113 section 6.5.2).
                settings::INITIAL_WINDOW_SIZE if value <= frames::MAX_STREAM => {
                    window = Some(value);
                }
                settings::MAX_HEADER_LIST_SIZE => self.caller_settings.max_list = Some(value),
                _ => {}
            }
        }
        window
    }

    /// The app has answered SETTINGS of the caller's.
    pub(super) fn app_agreed(&mut self) {
        if let Some(table) = self.caller_said.answered().table {
            self.answers.limit(table);
        }
    }

    /// The caller has answered SETTINGS of the app's.
    pub(super) fn caller_agreed(&mut self) {
        let asked = self.app_said.answered();
        self.max_streams = asked.streams.or(self.max_streams);
        self.known_window = asked.window.unwrap_or(self.known_window);
        if let Some(table) = asked.table {
            self.requests.limit(table);
        }
    }

    /// Returns true if the caller may not open another stream beside those that are open.
    pub(super) fn has_all_streams(&self) -> bool {
        let diverted = self.diversion.as_ref().map_or(0, |d| d.streams.len());
        // Without a limit of the app's there is none here either; what it has is its own matter.
        let (Some(max), Some(open)) = (self.max_streams, self.streams.open()) else {
            return false;
        };
        diverted + open >= max as usize
    }

    /// Returns true if single requests were ever looked at.
    pub(super) fn is_watching(&self) -> bool {
        self.flood.is_some()
    }

    /// Microseconds of the connection's life.
    pub(super) fn age(&self) -> u32 {
        let age = self.now.saturating_duration_since(self.started);
        u32::try_from(age.as_micros()).unwrap_or(u32::MAX)
    }

    pub(super) fn since(&self, began: u32) -> Duration {
        Duration::from_micros(u64::from(self.age().saturating_sub(began)))
    }

    /// The newest stream, or a lower one that the caller has been told as the last: ids must not grow
    /// from one GOAWAY to the next (RFC 9113 section 6.8).
    pub(super) fn last_served(&self) -> u32 {
        let ours = self.leaving.as_ref().map(|leaving| leaving.announced());
        let told = ours.map_or(self.announced, |ours| ours.min(self.announced));
        self.newest.min(told)
    }

    /// Ends the connection: the caller is told why, where a gap between frames allows it.
    pub(super) fn end(&mut self, fatal: Fatal, code: u32) {
        if self.fatal.is_none() {
            let last = self.last_served();
            self.fatal = Some(fatal);
            self.to_caller
                .extend_from_slice(&frames::goaway(last, code));
        }
    }

    /// The caller's header sections can't be read any more. Where the app has had all of them as
    /// they came, it is the judge; else nobody can be.
    pub(super) fn lose_requests(&mut self, why: Lost) {
        if self.requests.is_verbatim() {
            self.lost = Some(why);
            self.caller.held = Vec::new();
        } else {
            let (fatal, code) = match why {
                Lost::TooLarge => (Fatal::Flood, code::ENHANCE_YOUR_CALM),
                Lost::Malformed => (Fatal::Unclear, code::COMPRESSION_ERROR),
            };
            self.end(fatal, code);
        }
    }

    /// The frames themselves make no sense any more.
    pub(super) fn lose_frames(&mut self, code: u32) {
        if self.requests.is_verbatim() {
            self.lost = Some(Lost::Malformed);
            self.caller.blind = true;
        } else {
            self.end(Fatal::Unclear, code);
        }
    }

    /// Returns true if the caller's table can't be followed although the app may understand it, so
    /// that the caller has to come again for rules to hold.
    #[must_use]
    pub fn is_out_of_step(&self) -> bool {
        self.lost == Some(Lost::TooLarge)
    }

    /// A stream between caller and app is over.
    pub(super) fn app_stream_over<H: Host>(
        &mut self,
        slot: StreamSlot,
        end: StreamEnd,
        host: &mut H,
    ) {
        if self.ids.remove(slot.id)
            && let Some(diversion) = &mut self.diversion
        {
            diversion.withheld.restore(slot.id);
        }
        if end != StreamEnd::Complete {
            self.stop_copying(slot.id);
        }
        if slot.watched {
            host.ended(slot.id, end);
        }
    }

    /// Nothing more of a request is copied.
    pub(super) fn stop_copying(&mut self, stream: u32) {
        if let Some(copying) = &mut self.copying {
            copying.end(stream);
        }
    }

    /// Resets a stream towards the caller.
    pub(super) fn reset_to_caller(&mut self, stream: u32, code: u32) {
        self.to_caller
            .extend_from_slice(&frames::reset(stream, code));
    }

    /// Takes what the caller must not say of itself out of a list, and puts in what holds.
    pub(super) fn vouch(&self, fields: &mut FieldList, is_head: bool) {
        let Some(vouched) = &self.vouched else { return };
        fields.remove(vouched.name.as_bytes());
        if let (Some(value), true) = (&vouched.value, is_head) {
            fields.push(Field {
                form: Form::Incremental,
                ..Field::plain(vouched.name.as_bytes(), value.as_bytes())
            });
        }
    }
}

impl From<HpackError> for Lost {
    fn from(error: HpackError) -> Self {
        match error {
            HpackError::TableNotFollowed => Self::TooLarge,
            _ => Self::Malformed,
        }
    }
}

/// The number in the payload of a frame at the front of `bytes`, where all of it is there.
pub(super) fn number_in(head: FrameHeader, bytes: &[u8]) -> Option<u32> {
    let payload = bytes.get(HEAD..head.size())?;
    frames::number(payload)
}

/// A frame header for the same frame on another stream.
pub(super) fn on_stream(head: FrameHeader, stream: u32) -> [u8; HEAD] {
    FrameHeader { stream, ..head }.encode()
}

impl Inbound {
    /// Drops the payload of a frame.
    pub(super) fn skip(&mut self, head: FrameHeader) {
        self.enter(head, Rest::Drop);
    }
}
