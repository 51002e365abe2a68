//! Traffic of diverted streams: bodies, trailers, credit and resets, between the caller and a
//! tunnel.

use crate::http2::frames::{self, FrameHeader, code};
use crate::http2::hpack::{Field, FieldList, encode_without_table};
use crate::http2::router::cursor::Partial;
use crate::http2::router::diverted::Diversion;
use crate::http2::router::held::Sent;
use crate::http2::router::host::{Host, StreamEnd, TunnelId};
use crate::http2::router::state::{Router, on_stream};
use crate::http2::router::tunnel::Phase;
use crate::http2::section;
use crate::http2::settings;
use crate::http2::streams::Side;

impl Router {
    /// Body bytes of the caller; `flow` counts padding as well.
    pub(super) fn request_data<H: Host>(
        &mut self,
        stream: u32,
        body: &[u8],
        flow: usize,
        ends: bool,
        host: &mut H,
    ) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        // The connection's window is given back by the agent, whatever becomes of the stream:
        // others need it.
        diversion.uncredited += flow;
        let Some(diverted) = diversion.streams.get_mut(&stream) else {
            diversion.settle_credit(&mut self.to_caller);
            return;
        };
        if diverted.request.has_ended() {
            // Nothing may come behind an end; what does is nobody's.
            diversion.settle_credit(&mut self.to_caller);
            return;
        }
        if diverted.exceeds(flow) {
            return self.break_diverted(stream, code::FLOW_CONTROL_ERROR, host);
        }
        host.moved(stream, Side::Caller, body.len());
        diverted.ahead -= flow as i64 - body.len() as i64;
        if ends {
            diverted.request.end();
        }
        // Without a tunnel the agent has answered by itself, and the body is nobody's.
        if diverted.tunnel.is_none() {
            if ends {
                diverted.request.end_at_once();
            }
        } else if diverted.head.is_some() {
            diverted.request.push(body);
            diversion.waiting_bodies += body.len();
        } else {
            diverted.grant(stream, &mut self.to_caller);
            let tunnel = diverted
                .tunnel
                .and_then(|id| diversion.tunnels.get_mut(&id));
            if let Some(tunnel) = tunnel {
                let room = usize::try_from(diverted.to_remote).unwrap_or(0);
                let room = room.min(tunnel.body_room());
                let (remote, out) = (diverted.remote, &mut tunnel.out);
                if diverted.request.send_now(body, remote, room, out) {
                    tunnel.window -= body.len() as i64;
                    diverted.to_remote -= body.len() as i64;
                } else {
                    diverted.request.push(body);
                    diversion.buffered += body.len();
                    self.send_request(stream);
                }
            }
        }
        self.settle(stream, host);
    }

    /// The caller's request ends with trailers.
    pub(super) fn request_trailers<H: Host>(
        &mut self,
        stream: u32,
        trailers: FieldList,
        host: &mut H,
    ) {
        let Some(diverted) = self.diverted(stream) else {
            return;
        };
        if diverted.request.has_ended() {
            return self.break_diverted(stream, code::PROTOCOL_ERROR, host);
        }
        diverted.request.end_with(trailers);
        if diverted.tunnel.is_none() {
            diverted.request.end_at_once();
        } else if diverted.head.is_none() {
            self.send_request(stream);
        }
        self.settle(stream, host);
    }

    fn diverted(&mut self, stream: u32) -> Option<&mut super::diverted::Diverted> {
        self.diversion.as_mut()?.streams.get_mut(&stream)
    }

    /// Sends what waits of a request, as its workstation takes it.
    pub(super) fn send_request(&mut self, stream: u32) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.streams.get_mut(&stream) else {
            return;
        };
        // A body never overtakes its head, which may wait for the tunnel to open.
        let id = diverted.tunnel.filter(|_| diverted.head.is_none());
        let Some(tunnel) = id.and_then(|id| diversion.tunnels.get_mut(&id)) else {
            return;
        };
        let room = usize::try_from(diverted.to_remote).unwrap_or(0);
        let room = room.min(tunnel.body_room());
        let sent = diverted
            .request
            .send(diverted.remote, room, &mut tunnel.out);
        tunnel.window -= sent as i64;
        diverted.to_remote -= sent as i64;
        diversion.buffered -= sent;
        if let Some(trailers) = diverted.request.take_trailers() {
            let mut block = Vec::new();
            tunnel.encoder.encode(trailers.iter(), &mut block);
            section::write(diverted.remote, true, &block, &mut tunnel.out);
        }
        diversion.settle_credit(&mut self.to_caller);
    }

    /// Sends what waits of an answer, as the caller takes it.
    pub(super) fn send_answer<H: Host>(&mut self, stream: u32, host: &mut H) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.streams.get_mut(&stream) else {
            return;
        };
        let room = usize::try_from(diverted.to_caller).unwrap_or(0);
        let room = room.min(self.window.room());
        let sent = diverted.answer.send(stream, room, &mut self.to_caller);
        self.window.by_other(sent);
        diverted.to_caller -= sent as i64;
        let trailers = diverted.answer.take_trailers();
        let tunnel = diverted
            .tunnel
            .and_then(|id| diversion.tunnels.get_mut(&id));
        if let Some(tunnel) = tunnel {
            // What the caller has taken makes room for more of the workstation.
            tunnel.queued -= sent;
            tunnel.give_credit(self.window.room());
        }
        if let Some(trailers) = trailers {
            self.write_answer_head(stream, &trailers, true);
        }
        self.settle(stream, host);
    }

    /// Writes a header section of an answer. It leaves the caller's table as the app's encoder
    /// knows it.
    pub(super) fn write_answer_head(&mut self, stream: u32, fields: &FieldList, ends: bool) {
        self.write_fields(stream, fields.iter(), ends);
    }

    pub(super) fn write_fields<'f>(
        &mut self,
        stream: u32,
        fields: impl Iterator<Item = Field<'f>>,
        ends: bool,
    ) {
        let mut block = Vec::new();
        // A section of the app's that is on its way says it before this one can.
        if self.app.partial != Some(Partial::Follow) {
            self.answers.announce(&mut block);
        }
        fields.for_each(|field| encode_without_table(field, &mut block));
        section::write(stream, ends, &block, &mut self.to_caller);
    }

    /// Lets a stream go when both of its messages are complete, and its place to the next.
    pub(super) fn settle<H: Host>(&mut self, stream: u32, host: &mut H) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        diversion.settle_credit(&mut self.to_caller);
        let Some(diverted) = diversion.streams.get(&stream) else {
            return;
        };
        if !diverted.answer.is_done() {
            return;
        }
        let reset = match (diverted.reset_after, diverted.tunnel) {
            (Some(code), _) => Some(code),
            // The agent's own answer does not wait for the rest of the request (RFC 9113 section
            // 8.1).
            (None, None) if !diverted.request.is_done() => Some(code::NO_ERROR),
            (None, _) if diverted.request.is_done() => None,
            _ => return,
        };
        if let Some(code) = reset {
            self.reset_to_caller(stream, code);
        }
        let end = match reset {
            None | Some(code::NO_ERROR) => StreamEnd::Complete,
            Some(_) => StreamEnd::ServerReset,
        };
        self.remove_diverted(stream, end, host);
    }

    /// Forgets a diverted stream.
    pub(super) fn remove_diverted<H: Host>(&mut self, stream: u32, end: StreamEnd, host: &mut H) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.remove(stream) else {
            return;
        };
        diversion.settle_credit(&mut self.to_caller);
        // A copy of a whole request is ended where the request ends.
        if let Some(copying) = &mut self.copying
            && end != StreamEnd::Complete
        {
            copying.end(stream);
        }
        host.ended(stream, end);
        if let Some(id) = diverted.tunnel {
            if let Some(tunnel) = diversion.tunnels.get_mut(&id) {
                tunnel.give_credit(self.window.room());
            }
            self.send_waiting(id, host);
        }
    }

    /// The caller gives a stream up.
    pub(super) fn cancel_diverted<H: Host>(&mut self, stream: u32, code: u32, host: &mut H) {
        let answered = self.diverted(stream).is_some_and(|d| d.answered);
        self.reset_to_tunnel(stream, code);
        self.remove_diverted(stream, StreamEnd::CallerReset, host);
        // Resets before an answer are how a rapid-reset flood looks.
        self.given_up(!answered);
    }

    /// The caller has broken a stream: an error of that stream alone (RFC 9113 section 8.1.1).
    pub(super) fn break_diverted<H: Host>(&mut self, stream: u32, code: u32, host: &mut H) {
        self.reset_to_tunnel(stream, code);
        self.reset_to_caller(stream, code);
        self.remove_diverted(stream, StreamEnd::Refused, host);
    }

    fn reset_to_tunnel(&mut self, stream: u32, code: u32) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let diverted = diversion.streams.get(&stream);
        // A workstation that has not heard of the stream needs no reset.
        let Some(diverted) = diverted.filter(|d| d.head.is_none()) else {
            return;
        };
        let tunnel = diverted
            .tunnel
            .and_then(|id| diversion.tunnels.get_mut(&id));
        if let Some(tunnel) = tunnel {
            tunnel
                .out
                .extend_from_slice(&frames::reset(diverted.remote, code));
        }
    }

    /// The caller takes more of a diverted stream's answer.
    pub(super) fn credit_diverted<H: Host>(&mut self, stream: u32, credit: u32, host: &mut H) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.streams.get_mut(&stream) else {
            return;
        };
        diverted.to_caller += i64::from(credit);
        let error = match diverted.to_caller {
            _ if credit == 0 => Some(code::PROTOCOL_ERROR),
            window if window > frames::MAX_STREAM.into() => Some(code::FLOW_CONTROL_ERROR),
            _ => None,
        };
        if let Some(error) = error {
            return self.break_diverted(stream, error, host);
        }
        // Told with the head, since the stream does not exist in the tunnel yet.
        if let Some(head) = &mut diverted.head {
            head.credit = head.credit.saturating_add(credit).min(frames::MAX_STREAM);
            return;
        }
        let tunnel = diverted
            .tunnel
            .and_then(|id| diversion.tunnels.get_mut(&id));
        if let Some(tunnel) = tunnel.filter(|_| !diverted.answer.has_ended()) {
            tunnel
                .out
                .extend_from_slice(&frames::window_update(diverted.remote, credit));
        }
        self.send_answer(stream, host);
    }

    /// A frame of an unknown type on a diverted stream.
    pub(super) fn unknown_to_tunnel(&mut self, head: FrameHeader, payload: &[u8]) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.streams.get_mut(&head.stream) else {
            return;
        };
        if let Some(waiting) = &mut diverted.head {
            return waiting.keep(head, payload);
        }
        let tunnel = diverted
            .tunnel
            .and_then(|id| diversion.tunnels.get_mut(&id));
        if let Some(tunnel) = tunnel {
            let head = on_stream(head, diverted.remote);
            tunnel.out.extend_from_slice(&head);
            tunnel.out.extend_from_slice(payload);
        }
    }

    /// The caller's connection has room again: first for what is held of the app, in its order,
    /// then for workstations.
    pub(super) fn use_room<H: Host>(&mut self, host: &mut H) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        // Held sections are encoded only now: the table has to be as the caller's is by then.
        while let Some(sent) = diversion.held.send(self.window.room(), &mut self.to_caller) {
            match sent {
                Sent::Frame(n) => self.window.by_app(n),
                Sent::Section(section) => {
                    let mut block = Vec::new();
                    self.answers.encode(section.fields.iter(), &mut block);
                    section::write(section.stream, section.ends, &block, &mut self.to_caller);
                }
            }
        }
        let room = self.window.room();
        let Diversion {
            tunnels, streams, ..
        } = &mut **diversion;
        tunnels.values_mut().for_each(|t| t.give_credit(room));
        let waiting = streams.iter().filter(|(_, d)| d.answer.waiting() > 0);
        let waiting: Vec<_> = waiting.map(|(stream, _)| *stream).collect();
        for stream in waiting {
            self.send_answer(stream, host);
        }
    }

    /// The caller gives new streams, and those that are open, another window.
    pub(super) fn change_caller_window<H: Host>(&mut self, window: u32, host: &mut H) {
        let change = i64::from(window) - i64::from(self.caller_settings.initial_window);
        self.caller_settings.initial_window = window;
        let Some(diversion) = self.diversion.as_mut().filter(|_| change != 0) else {
            return;
        };
        let opened = |phase: Phase| phase != Phase::Opening;
        for tunnel in diversion.tunnels.values_mut().filter(|t| opened(t.phase)) {
            frames::settings(&[(settings::INITIAL_WINDOW_SIZE, window)], &mut tunnel.out);
        }
        let streams: Vec<_> = diversion.streams.keys().copied().collect();
        for stream in streams {
            if let Some(diverted) = self.diverted(stream) {
                diverted.to_caller += change;
                self.send_answer(stream, host);
            }
        }
    }

    /// The app gives new streams another window. The caller believes it of diverted ones as well.
    pub(super) fn change_app_window(&mut self, window: u32) {
        let change = i64::from(window) - i64::from(self.app_window);
        self.app_window = window;
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        for (stream, diverted) in &mut diversion.streams {
            diverted.ahead += change;
            // A window that shrinks may become negative (RFC 9113 section 6.9.2); what the caller
            // had sent by then is no fault of its.
            diverted.overdraft -= change.min(0);
            if diverted.head.is_none() {
                diverted.grant(*stream, &mut self.to_caller);
            }
        }
    }

    /// Sends heads that wait, as far as the tunnel takes them.
    pub(super) fn send_waiting<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        while let Some(diversion) = &mut self.diversion {
            let Some(tunnel) = diversion.tunnels.get_mut(&id).filter(|t| t.takes_stream()) else {
                return;
            };
            let Some(stream) = tunnel.waiting.pop_front() else {
                return;
            };
            let Some(diverted) = diversion.streams.get_mut(&stream) else {
                continue;
            };
            let Some(head) = diverted.head.take() else {
                continue;
            };
            let remote = tunnel.begin(stream);
            diverted.remote = remote;
            diverted.to_remote = tunnel.initial_window.into();
            diverted.ahead -= i64::from(tunnel.initial_window);
            let mut block = Vec::new();
            tunnel.encoder.encode(head.fields.iter(), &mut block);
            section::write_request(remote, head.ends, head.priority, &block, &mut tunnel.out);
            head.follow(remote, &mut tunnel.out);
            let waiting = diverted.request.waiting();
            let after = self.now.saturating_duration_since(diverted.began);
            diverted.grant(stream, &mut self.to_caller);
            diversion.waited(&head);
            diversion.waiting_bodies -= waiting;
            diversion.buffered += waiting;
            host.forwarded(stream, after);
            if !head.ends {
                self.send_request(stream);
            }
        }
    }
}
