//! Tunnels come up, fail and end; and streams that were meant for one that does not come up go to
//! the app.

use crate::http2::frames::{self, code};
use crate::http2::router::host::{Host, StreamEnd, TunnelId};
use crate::http2::router::state::Router;
use crate::http2::router::tunnel::{HIGH_WATER, Phase};
use crate::http2::section;
use crate::http2::streams::StreamSlot;

impl Router {
    /// A tunnel is open and the workstation has connected.
    pub fn tunnel_opened<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        let (settings, room) = (self.caller_settings, self.window.room());
        let Some(tunnel) = self.tunnel(id) else {
            return;
        };
        tunnel.open(settings.initial_window, settings.max_list);
        tunnel.give_credit(room);
        self.send_waiting(id, host);
    }

    /// A tunnel could not be opened: nothing was sent into it, and the app answers instead.
    pub fn tunnel_failed<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        self.waiting_to_app(id, host);
        if let Some(diversion) = &mut self.diversion {
            diversion.tunnels.remove(&id);
        }
    }

    /// A tunnel has ended, or broke. Streams whose answers are complete still get them.
    pub fn tunnel_closed<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        self.waiting_to_app(id, host);
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(tunnel) = diversion.tunnels.remove(&id) else {
            return;
        };
        for stream in tunnel.streams.into_values() {
            let Some(diverted) = diversion.streams.get_mut(&stream) else {
                continue;
            };
            diversion.buffered -= diverted.request.take().len();
            // What happens to it from now on happens here.
            diverted.tunnel = None;
            if diverted.answer.has_ended() {
                diverted.reset_after = diverted
                    .reset_after
                    .or((!diverted.request.is_done()).then_some(code::NO_ERROR));
            }
        }
        let diverted = diversion.streams.iter();
        let cut = diverted.filter(|(_, d)| d.remote > 0 && d.tunnel.is_none());
        let cut: Vec<_> = cut
            .map(|(stream, d)| (*stream, d.answer.has_ended()))
            .collect();
        for (stream, complete) in cut {
            if complete {
                self.settle(stream, host);
            } else {
                self.reset_to_caller(stream, code::INTERNAL_ERROR);
                self.remove_diverted(stream, StreamEnd::Lost, host);
            }
        }
    }

    /// Returns the bytes to be written into a tunnel.
    pub fn tunnel_output(&mut self, id: TunnelId) -> Option<&mut Vec<u8>> {
        self.tunnel(id).map(|tunnel| &mut tunnel.out)
    }

    /// Returns true if a workstation is to be read.
    #[must_use]
    pub fn reads_tunnel(&self, id: TunnelId) -> bool {
        let tunnel = self.diversion.as_ref().and_then(|d| d.tunnels.get(&id));
        self.reads_tunnels() && tunnel.is_some_and(|t| t.out.len() < HIGH_WATER)
    }

    /// Returns true if nothing uses a tunnel.
    #[must_use]
    pub fn is_tunnel_idle(&self, id: TunnelId) -> bool {
        let tunnel = self.diversion.as_ref().and_then(|d| d.tunnels.get(&id));
        tunnel.is_none_or(|t| t.streams.is_empty() && t.waiting.is_empty())
    }

    /// Returns true if a tunnel takes no more streams.
    #[must_use]
    pub fn is_tunnel_parting(&self, id: TunnelId) -> bool {
        let tunnel = self.diversion.as_ref().and_then(|d| d.tunnels.get(&id));
        tunnel.is_some_and(|t| t.phase == Phase::Parting)
    }

    /// A tunnel is no longer needed.
    pub fn forget_tunnel(&mut self, id: TunnelId) {
        if let Some(diversion) = &mut self.diversion {
            diversion.tunnels.remove(&id);
        }
    }

    /// Streams that wait for a tunnel go to the app.
    pub(super) fn waiting_to_app<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        let waiting = self
            .tunnel(id)
            .map(|tunnel| std::mem::take(&mut tunnel.waiting));
        for stream in waiting.into_iter().flatten() {
            self.fail_open(stream, host);
        }
    }

    /// A stream of which nothing was sent goes to the app.
    fn fail_open<H: Host>(&mut self, stream: u32, host: &mut H) {
        let age = self.age();
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(mut diverted) = diversion.streams.remove(&stream) else {
            return;
        };
        let Some(head) = diverted.head.take() else {
            return;
        };
        let waiting = diverted.request.waiting();
        diversion.waited(&head);
        diversion.waiting_bodies -= waiting;
        host.failed_open(stream);
        if self.app_gone {
            diversion.settle_credit(&mut self.to_caller);
            self.reset_to_caller(stream, code::REFUSED_STREAM);
            self.stop_copying(stream);
            host.ended(stream, StreamEnd::Refused);
            return self.leave_at_once();
        }
        // The app will give the caller credit for these.
        diversion.uncredited -= waiting;
        diversion.withheld.remove(stream);
        let id = self.ids.assign(stream, self.newest);
        let waited = self.now.saturating_duration_since(diverted.began);
        let waited = u32::try_from(waited.as_micros()).unwrap_or(u32::MAX);
        let mut slot = StreamSlot::new(stream, age.saturating_sub(waited));
        (slot.watched, slot.explains) = (true, diverted.explains);
        self.streams.insert(slot);
        let padding = i64::from(self.app_window) - diverted.ahead;
        if let Ok(padding @ 1..) = u32::try_from(padding) {
            let credit = frames::window_update(stream, padding);
            self.to_caller.extend_from_slice(&credit);
        }
        let mut block = Vec::new();
        self.requests.encode(head.fields.iter(), &mut block);
        let out = &mut self.to_app;
        section::write_request(id, head.ends, head.priority, &block, out);
        head.follow(id, out);
        let ends = diverted.request.has_ended();
        if !head.ends {
            diverted.request.send(id, usize::MAX, out);
            if let Some(trailers) = diverted.request.take_trailers() {
                let mut block = Vec::new();
                self.requests.encode(trailers.iter(), &mut block);
                section::write(id, true, &block, &mut self.to_app);
            }
        }
        if ends {
            self.streams.end_request(stream);
        }
    }
}
