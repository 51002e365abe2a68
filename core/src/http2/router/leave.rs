//! The connection's end: the caller is asked to leave, or the app is gone.

use std::time::Instant;

use crate::http2::frames::code;
use crate::http2::router::host::{Host, StreamEnd};
use crate::http2::router::leaving::Leaving;
use crate::http2::router::state::Router;

impl Router {
    /// Asks the caller to come again on another connection. An app that leaves does so itself.
    pub fn leave(&mut self) {
        if self.leaving.is_none() && !self.app_parts {
            let leaving = Leaving::begin(self.now, self.newest, &mut self.to_caller);
            self.leaving = Some(Box::new(leaving));
        }
    }

    /// Returns true if the caller has been asked to leave.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// Goes on with what time or quiet decides.
    pub fn advance(&mut self) {
        let idle = self.streams.open() == Some(0) && !self.has_diverted();
        if let Some(leaving) = &mut self.leaving {
            leaving.advance(self.now, self.newest, idle, &mut self.to_caller);
        }
    }

    /// Latest time for the next [`Self::advance`].
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.leaving.as_ref()?.deadline()
    }

    /// Returns true if the caller knows that it has to leave, and nothing is under way any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.leaving.as_ref().is_some_and(|l| l.is_final())
            && (self.streams.open() == Some(0) || self.app_gone)
            && !self.has_diverted()
            && self.to_caller.is_empty()
            && self.app.left == 0
    }

    /// The app's connection has ended while workstations still answer: they may, and then the
    /// caller has to leave. `false` where that can't be, because the app broke off within a frame.
    pub fn app_ended<H: Host>(&mut self, host: &mut H) -> bool {
        if self.app.begun && !self.app.at_boundary() {
            return false;
        }
        self.app_gone = true;
        self.to_app = Vec::new();
        let open: Vec<_> = self.streams.iter().map(|slot| slot.id).collect();
        for stream in open {
            self.reset_to_caller(stream, code::INTERNAL_ERROR);
            if let Some(slot) = self.streams.remove(stream) {
                self.app_stream_over(slot, StreamEnd::Lost, host);
            }
        }
        self.leave_at_once();
        true
    }

    /// There has never been an app, and workstations may answer all the same.
    pub fn app_absent(&mut self) {
        self.app_gone = true;
        self.greet();
    }
}
