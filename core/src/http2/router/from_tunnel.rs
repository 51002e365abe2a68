//! Frames of a workstation, on the agent's own connection to it.

use crate::http2::frames::{self, END_STREAM, FRAME_SIZE, FrameHeader, HEAD, PADDED, code, kind};
use crate::http2::hpack::{Field, FieldList};
use crate::http2::router::cursor::Rest;
use crate::http2::router::from_caller::MAX_SMALL;
use crate::http2::router::host::{Host, StreamEnd, TunnelId};
use crate::http2::router::state::{Router, on_stream};
use crate::http2::router::tunnel::{Phase, Tunnel};
use crate::http2::section::{self, Extent};
use crate::http2::settings;
use crate::http2::streams::Side;

/// A workstation that does not speak HTTP/2 as it must; its connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the workstation broke the HTTP/2 protocol: {0}")]
pub struct TunnelBroken(pub &'static str);

type TunnelStep = Result<bool, TunnelBroken>;

impl Router {
    /// Takes what a workstation has sent, and says how many bytes have been dealt with; the rest is
    /// to come again with more.
    ///
    /// # Errors
    /// The workstation breaks the protocol; its tunnel has to be given up.
    pub fn tunnel_sent<H: Host>(
        &mut self,
        id: TunnelId,
        input: &[u8],
        host: &mut H,
    ) -> Result<usize, TunnelBroken> {
        let mut rest = input;
        while !rest.is_empty() && self.step_tunnel(id, &mut rest, host)? {}
        Ok(input.len() - rest.len())
    }

    pub(super) fn tunnel(&mut self, id: TunnelId) -> Option<&mut Tunnel> {
        self.diversion.as_mut()?.tunnels.get_mut(&id)
    }

    fn step_tunnel<H: Host>(&mut self, id: TunnelId, rest: &mut &[u8], host: &mut H) -> TunnelStep {
        let Some(tunnel) = self.tunnel(id) else {
            *rest = &[];
            return Ok(false);
        };
        if tunnel.inbound.left > 0 {
            self.tunnel_payload(id, rest, host);
            return Ok(true);
        }
        if !tunnel.inbound.held.is_empty() {
            return self.tunnel_section(id, rest, host);
        }
        let Some(head) = FrameHeader::peek(rest) else {
            return Ok(false);
        };
        if !tunnel.inbound.begun && (head.kind != kind::SETTINGS || head.is_ack()) {
            return Err(TunnelBroken("it did not begin with SETTINGS"));
        }
        if head.length as usize > FRAME_SIZE {
            return Err(TunnelBroken("a frame is larger than was allowed"));
        }
        tunnel.inbound.begun = true;
        match head.kind {
            kind::HEADERS => self.tunnel_section(id, rest, host),
            kind::DATA => self.tunnel_data(id, head, rest, host),
            kind::CONTINUATION => Err(TunnelBroken("CONTINUATION without HEADERS")),
            kind::PUSH_PROMISE => Err(TunnelBroken("a push, which was not allowed")),
            _ if head.length > MAX_SMALL => {
                tunnel.inbound.skip(head);
                *rest = rest.get(HEAD..).unwrap_or_default();
                Ok(true)
            }
            _ => {
                let Some((frame, after)) = rest.split_at_checked(head.size()) else {
                    return Ok(false);
                };
                *rest = after;
                self.tunnel_frame(id, head, frame.get(HEAD..).unwrap_or_default(), host)
            }
        }
    }

    fn tunnel_payload<H: Host>(&mut self, id: TunnelId, rest: &mut &[u8], host: &mut H) {
        let Some(tunnel) = self.tunnel(id) else {
            return;
        };
        let n = tunnel.inbound.advance(rest.len());
        let (bytes, after) = rest.split_at(n);
        *rest = after;
        let Rest::Data { stream, pad, end } = tunnel.inbound.rest else {
            return;
        };
        let left = tunnel.inbound.left;
        let padding = pad.saturating_sub(left).min(n);
        tunnel.inbound.rest = Rest::Data {
            stream,
            pad: pad - padding,
            end,
        };
        let body = bytes.get(..n - padding).unwrap_or_default();
        self.answer_data(id, stream, body, end && left == 0, host);
    }

    /// A frame that is small and complete.
    fn tunnel_frame<H: Host>(
        &mut self,
        id: TunnelId,
        head: FrameHeader,
        payload: &[u8],
        host: &mut H,
    ) -> TunnelStep {
        let Some(tunnel) = self.tunnel(id) else {
            return Ok(false);
        };
        let stream = tunnel.streams.get(&head.stream).copied();
        match head.kind {
            kind::SETTINGS if !head.is_ack() => self.tunnel_settings(id, payload, host)?,
            kind::PING if !head.is_ack() => {
                let payload = payload.first_chunk();
                let payload = payload.ok_or(TunnelBroken("a PING of the wrong size"))?;
                tunnel
                    .out
                    .extend_from_slice(&frames::ping(*payload, frames::ACK));
            }
            kind::WINDOW_UPDATE => {
                let credit = frames::number(payload)
                    .ok_or(TunnelBroken("a WINDOW_UPDATE of the wrong size"))?;
                let credit = credit & frames::MAX_STREAM;
                if head.stream == 0 {
                    tunnel.window += i64::from(credit);
                    self.tunnel_writable(id, host);
                } else if let Some(stream) = stream {
                    self.remote_credit(stream, credit, host);
                }
            }
            kind::RST_STREAM => {
                let code = frames::number(payload)
                    .ok_or(TunnelBroken("a RST_STREAM of the wrong size"))?;
                if let Some(stream) = stream {
                    self.tunnel_reset(stream, code, host);
                }
            }
            kind::GOAWAY => {
                let last =
                    frames::number(payload).ok_or(TunnelBroken("a GOAWAY of the wrong size"))?;
                self.tunnel_parts(id, last & frames::MAX_STREAM, host);
            }
            other if other > kind::CONTINUATION => {
                if let Some(stream) = stream {
                    self.to_caller.extend_from_slice(&on_stream(head, stream));
                    self.to_caller.extend_from_slice(payload);
                }
            }
            _ => {}
        }
        Ok(true)
    }

    fn tunnel_settings<H: Host>(
        &mut self,
        id: TunnelId,
        payload: &[u8],
        host: &mut H,
    ) -> Result<(), TunnelBroken> {
        let Some(tunnel) = self.tunnel(id) else {
            return Ok(());
        };
        let mut change = 0;
        for (setting, value) in settings::entries(payload) {
            match setting {
                settings::HEADER_TABLE_SIZE => tunnel.encoder.allow(value as usize),
                settings::MAX_CONCURRENT_STREAMS => tunnel.max_streams = value,
                settings::INITIAL_WINDOW_SIZE if value > frames::MAX_STREAM => {
                    return Err(TunnelBroken("a window larger than there can be"));
                }
                settings::INITIAL_WINDOW_SIZE => {
                    change += i64::from(value) - i64::from(tunnel.initial_window);
                    tunnel.initial_window = value;
                }
                _ => {}
            }
        }
        // Acknowledged before anything is sent by them (RFC 9113 section 6.5.3).
        tunnel.out.extend_from_slice(&frames::SETTINGS_ACK);
        let streams: Vec<_> = tunnel.streams.values().copied().collect();
        for stream in streams.into_iter().filter(|_| change != 0) {
            if let Some(diverted) = self
                .diversion
                .as_mut()
                .and_then(|d| d.streams.get_mut(&stream))
            {
                diverted.to_remote += change;
                // The caller was told the app's window; the two may differ, and credit makes up
                // for it.
                diverted.ahead -= change;
                diverted.grant(stream, &mut self.to_caller);
            }
            self.send_request(stream);
            self.settle(stream, host);
        }
        self.send_waiting(id, host);
        Ok(())
    }

    /// A workstation takes more of a request: so does the caller hear, but for what it was ahead.
    fn remote_credit<H: Host>(&mut self, stream: u32, credit: u32, host: &mut H) {
        if let Some(diverted) = self
            .diversion
            .as_mut()
            .and_then(|d| d.streams.get_mut(&stream))
        {
            diverted.to_remote += i64::from(credit);
            diverted.ahead -= i64::from(credit);
            diverted.grant(stream, &mut self.to_caller);
        }
        self.send_request(stream);
        self.settle(stream, host);
    }

    /// A workstation takes more, or its tunnel does: requests go on.
    pub fn tunnel_writable<H: Host>(&mut self, id: TunnelId, host: &mut H) {
        let Some(diversion) = &self.diversion else {
            return;
        };
        let Some(tunnel) = diversion.tunnels.get(&id).filter(|t| t.body_room() > 0) else {
            return;
        };
        let waits = |stream: &u32| {
            let diverted = diversion.streams.get(stream);
            diverted.is_some_and(|d| d.request.waiting() > 0 && d.to_remote > 0)
        };
        let streams: Vec<_> = tunnel.streams.values().copied().filter(waits).collect();
        for stream in streams {
            self.send_request(stream);
            self.settle(stream, host);
        }
    }

    fn tunnel_data<H: Host>(
        &mut self,
        id: TunnelId,
        head: FrameHeader,
        rest: &mut &[u8],
        host: &mut H,
    ) -> TunnelStep {
        // The length of the padding is the first byte of the payload.
        let padded = head.flags & PADDED != 0;
        let pad = match rest.get(HEAD) {
            Some(byte) if padded => usize::from(*byte),
            None if padded => return Ok(false),
            _ => 0,
        };
        if padded && pad >= head.length as usize {
            return Err(TunnelBroken("padding is longer than its frame"));
        }
        let Some(tunnel) = self.tunnel(id) else {
            return Ok(false);
        };
        tunnel.room -= i64::from(head.length);
        if tunnel.room < 0 {
            return Err(TunnelBroken("more DATA than its window allows"));
        }
        *rest = rest.get(HEAD + usize::from(padded)..).unwrap_or_default();
        let Some(stream) = tunnel.streams.get(&head.stream).copied() else {
            // It is over.
            tunnel.inbound.skip(head);
            tunnel.inbound.left -= usize::from(padded);
            // Its bytes count for the connection's window all the same (RFC 9113 section 6.9).
            let room = self.window.room();
            if let Some(tunnel) = self.tunnel(id) {
                tunnel.give_credit(room);
            }
            return Ok(true);
        };
        let end = head.flags & END_STREAM != 0;
        tunnel.inbound.enter(head, Rest::Data { stream, pad, end });
        tunnel.inbound.left -= usize::from(padded);
        if padded {
            // The caller will never give credit for padding.
            let credit = frames::window_update(head.stream, pad as u32 + 1);
            tunnel.out.extend_from_slice(&credit);
        }
        if tunnel.inbound.left == 0 {
            self.answer_data(id, stream, b"", end, host);
        }
        Ok(true)
    }

    /// Body bytes of an answer.
    fn answer_data<H: Host>(
        &mut self,
        id: TunnelId,
        stream: u32,
        body: &[u8],
        ends: bool,
        host: &mut H,
    ) {
        let Some(diversion) = &mut self.diversion else {
            return;
        };
        let Some(diverted) = diversion.streams.get_mut(&stream) else {
            return;
        };
        host.moved(stream, Side::App, body.len());
        if ends {
            diverted.answer.end();
        }
        let room = usize::try_from(diverted.to_caller).unwrap_or(0);
        let room = room.min(self.window.room());
        // The common case copies the bytes once, to where the caller's wait.
        if diverted
            .answer
            .send_now(body, stream, room, &mut self.to_caller)
        {
            diverted.to_caller -= body.len() as i64;
            self.window.by_other(body.len());
            let room = self.window.room();
            if let Some(tunnel) = self.tunnel(id) {
                tunnel.give_credit(room);
            }
            return self.settle(stream, host);
        }
        diverted.answer.push(body);
        if let Some(tunnel) = self.tunnel(id) {
            tunnel.queued += body.len();
        }
        self.send_answer(stream, host);
    }

    /// A header section of an answer, or more of it.
    fn tunnel_section<H: Host>(
        &mut self,
        id: TunnelId,
        rest: &mut &[u8],
        host: &mut H,
    ) -> TunnelStep {
        let Some(tunnel) = self.tunnel(id) else {
            return Ok(false);
        };
        let mut held = std::mem::take(&mut tunnel.inbound.held);
        let before = held.len();
        // A section that came in one piece is decoded in place.
        let whole = match (before, section::extent(rest)) {
            (0, Extent::Whole(n)) => n,
            _ => {
                held.extend_from_slice(rest);
                match tunnel.inbound.extent_of(&held) {
                    Extent::Whole(n) => n,
                    Extent::More => {
                        tunnel.inbound.held = held;
                        *rest = &[];
                        return Ok(false);
                    }
                    Extent::Broken => return Err(TunnelBroken("a header section without end")),
                    Extent::TooLong => return Err(TunnelBroken("a header section is too large")),
                }
            }
        };
        let frames = if held.is_empty() { *rest } else { &held };
        let frames = frames.get(..whole).unwrap_or_default();
        let mut joined = Vec::new();
        let section = section::read(frames, &mut joined)
            .ok_or(TunnelBroken("padding is longer than its frame"))?;
        let mut fields = FieldList::default();
        tunnel
            .decoder
            .decode(section.block, &mut fields)
            .map_err(|_| TunnelBroken("a header section that can't be decoded"))?;
        let stream = tunnel.streams.get(&section.head.stream).copied();
        let ends = section.head.ends_stream();
        *rest = rest.get(whole - before..).unwrap_or_default();
        if let Some(stream) = stream {
            self.answer_section(stream, fields, ends, host);
        }
        Ok(true)
    }

    fn answer_section<H: Host>(
        &mut self,
        stream: u32,
        fields: FieldList,
        ends: bool,
        host: &mut H,
    ) {
        let Some(diverted) = self
            .diversion
            .as_mut()
            .and_then(|d| d.streams.get_mut(&stream))
        else {
            return;
        };
        // A part of a head would be another answer than the workstation gave.
        if fields.has_overflowed() {
            self.reset_to_caller(stream, code::INTERNAL_ERROR);
            return self.remove_diverted(stream, StreamEnd::Lost, host);
        }
        if diverted.answered {
            if ends {
                diverted.answer.end_with(fields);
            } else {
                // Neither trailers nor a head: the caller is the judge.
                self.write_answer_head(stream, &fields, false);
            }
            return self.send_answer(stream, host);
        }
        let status = status_of(fields.iter());
        let mut explained = None;
        // Interim answers may come before the one that counts (RFC 9110 section 15.2).
        if status / 100 != 1 {
            diverted.answered = true;
            let explains = diverted.explains;
            let took = self.now.saturating_duration_since(diverted.began);
            explained = host.answered(stream, status, took).filter(|_| explains);
            if let Some(flood) = &mut self.flood {
                flood.answered();
            }
        }
        if ends
            && let Some(diverted) = self
                .diversion
                .as_mut()
                .and_then(|d| d.streams.get_mut(&stream))
        {
            diverted.answer.end_at_once();
        }
        let extra = explained
            .as_ref()
            .map(|e| Field::plain(e.name.as_bytes(), e.value.as_bytes()));
        self.write_fields(stream, fields.iter().chain(extra), ends);
        self.settle(stream, host);
    }

    /// A workstation resets a stream. Behind a complete answer that waits until the answer has gone
    /// on; else it passes whatever waits.
    fn tunnel_reset<H: Host>(&mut self, stream: u32, code: u32, host: &mut H) {
        let Some(diverted) = self
            .diversion
            .as_mut()
            .and_then(|d| d.streams.get_mut(&stream))
        else {
            return;
        };
        if diverted.answer.has_ended() {
            diverted.reset_after = Some(code);
            return self.settle(stream, host);
        }
        self.reset_to_caller(stream, code);
        self.remove_diverted(stream, StreamEnd::ServerReset, host);
    }

    /// A workstation takes no more streams, and has not seen those above `last`.
    fn tunnel_parts<H: Host>(&mut self, id: TunnelId, last: u32, host: &mut H) {
        let Some(tunnel) = self.tunnel(id) else {
            return;
        };
        tunnel.phase = Phase::Parting;
        let unseen = tunnel.streams.range(last.saturating_add(1)..);
        let unseen: Vec<_> = unseen.map(|(_, stream)| *stream).collect();
        for stream in unseen {
            // The code says that nothing was done, so that callers may send it again (RFC 9113
            // section 8.7).
            self.reset_to_caller(stream, code::REFUSED_STREAM);
            self.remove_diverted(stream, StreamEnd::Refused, host);
        }
    }
}

/// The status of an answer; 0 where there is none.
pub(super) fn status_of<'f>(mut fields: impl Iterator<Item = Field<'f>>) -> u16 {
    let status = fields.find(|field| field.name == b":status");
    let digits = status.and_then(|field| str::from_utf8(field.value).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
