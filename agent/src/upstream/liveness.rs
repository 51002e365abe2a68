//! Signs of life of the workstation behind a tunnel. An attached one is watched by its gRPC
//! connection, which a tunnel only has ask sooner where a whole port's caller waits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};
use traffic_core::routing::Intercept;
use traffic_core::routing::dial_memory::DialMemory;
use traffic_proto::tunnel::Message;

use crate::upstream::Messages;

/// Interval of silence after which a peer that answers keep-alives is asked for one, and after a
/// second one taken for dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The same where a whole port's caller waits for an answer: callers are anybody.
const AWAITED_INTERVAL: Duration = Duration::from_millis(500);
/// Time for the keep-alive of a whole port's workstation.
const AWAITED_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes that a local server's socket surely takes: behind more a keep-alive may wait for who
/// reads slowly, which is no sign of death.
const MAX_UNREAD: usize = 16 * 1024;

/// Reason of a tunnel whose dial is unanswered.
const NO_ANSWER: &str = "the workstation did not connect in time";
/// Reason of a tunnel whose peer is taken for gone.
const NO_SIGN_OF_LIFE: &str = "the workstation gives no sign of life";

/// Signs of life of a tunnel's far end. It says that it answers keep-alives by one of its own
/// behind the dial's answer; others are left alone, because they would never answer.
#[derive(Default)]
pub(super) struct Liveness {
    dials: Option<Arc<DialMemory>>,
    /// Its callers are those of a whole port.
    whole_port: bool,
    /// The end of the dial's time, where bytes may be sent before it is answered.
    dial_by: Option<Instant>,
    /// Its connection ends by itself where the workstation is gone.
    attached: bool,
    answers: bool,
    /// Messages received, wrapping.
    received: u32,
    /// The same when the timer was set.
    seen: u32,
    /// No data has come since the last ones were sent, or none yet.
    awaited: bool,
    /// Bytes sent that nothing tells to have been read.
    unread: usize,
    asked: bool,
    /// The timer is to be set anew.
    restart: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Liveness {
    /// Belongs to this intercept from now on, and to an attached workstation or not.
    pub(super) fn of(&mut self, intercept: &Intercept, attached: bool) {
        self.attached = attached;
        self.dials = Some(Arc::clone(&intercept.stats.dials));
        self.whole_port = intercept.takes_whole_port();
        self.awaited = true;
    }

    /// Bounds the time until the dial is answered.
    pub(super) fn dialled_by(&mut self, then: Instant) {
        self.dial_by = Some(then);
    }

    pub(super) fn dialled(&mut self) {
        self.restart |= self.dial_by.take().is_some();
    }

    /// The peer has announced that it answers keep-alives.
    pub(super) fn announced(&mut self) {
        self.answers = true;
    }

    pub(super) fn has_announced(&self) -> bool {
        self.answers
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.unread = self.unread.saturating_add(bytes);
        if !self.awaited {
            self.awaited = true;
            self.restart |= self.whole_port;
        }
    }

    pub(super) fn received(&mut self, message: &Message) {
        self.received = self.received.wrapping_add(1);
        let is_data = matches!(message, Message::Normal(_));
        self.awaited &= !is_data;
        // An answer to little follows it; while much is sent only a keep-alive behind it proves.
        let answers = matches!(message, Message::KeepAlive) && self.asked;
        if answers || (is_data && self.unread <= MAX_UNREAD) {
            self.unread = 0;
        }
    }

    /// Ready with the reason when the peer is taken for gone: its dial is unanswered, or it has
    /// given no sign of life although it was asked for one.
    pub(super) fn poll_gone(
        &mut self,
        messages: &mut dyn Messages,
        cx: &mut Context<'_>,
    ) -> Poll<&'static str> {
        if let Some(dial_by) = self.dial_by {
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(dial_by)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(NO_ANSWER);
        }
        // Older workstations ignore keep-alives, so their silence means nothing.
        let is_watched = if self.attached {
            self.awaited && self.is_prompt()
        } else {
            self.answers
        };
        if !is_watched {
            return Poll::Pending;
        }
        if self.restart || self.timer.is_none() {
            // Once for each answer that is waited for: who does not answer for long is slow.
            self.begin(if self.awaited && self.is_prompt() {
                AWAITED_INTERVAL
            } else {
                KEEPALIVE_INTERVAL
            });
        }
        while let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(cx));
            if self.seen != self.received {
                self.begin(KEEPALIVE_INTERVAL);
            } else if self.attached {
                messages.ask_for_life();
                self.begin(KEEPALIVE_INTERVAL);
            } else if self.asked {
                if let Some(dials) = &self.dials {
                    dials.tunnel_lost();
                }
                return Poll::Ready(NO_SIGN_OF_LIFE);
            } else {
                self.asked = true;
                messages.ask_for_life();
                self.wait(if self.is_prompt() {
                    AWAITED_TIMEOUT
                } else {
                    KEEPALIVE_INTERVAL
                });
            }
        }
        Poll::Pending
    }

    fn is_prompt(&self) -> bool {
        self.whole_port && (self.attached || self.unread <= MAX_UNREAD)
    }

    fn begin(&mut self, interval: Duration) {
        self.seen = self.received;
        self.asked = false;
        self.restart = false;
        self.wait(interval);
    }

    fn wait(&mut self, time: Duration) {
        let then = Instant::now() + time;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(then),
            None => self.timer = Some(Box::pin(sleep_until(then))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use traffic_proto::tunnel::frame::Frame;

    use super::*;
    use crate::upstream::{Gone, TunnelError};

    /// Counts how often it is asked for a sign of life.
    #[derive(Default)]
    struct Asked(usize);

    impl Messages for Asked {
        fn poll_room(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Gone>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _: Frame) -> Result<(), Gone> {
            Ok(())
        }

        fn try_send(&mut self, _: Frame) -> bool {
            self.0 += 1;
            true
        }

        fn end(&mut self, _: Option<Frame>) {}

        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Message, TunnelError>>> {
            Poll::Pending
        }
    }

    fn data() -> Message {
        Message::Normal(bytes::Bytes::from_static(b"data"))
    }

    /// A tunnel of a whole port through the manager whose workstation answers keep-alives.
    fn of_a_whole_port() -> Liveness {
        let mut liveness = Liveness {
            whole_port: true,
            ..Liveness::default()
        };
        liveness.announced();
        liveness
    }

    /// Time until it is taken for gone, if that is within a minute, and how often it was asked.
    async fn gone_after(liveness: &mut Liveness) -> (Option<Duration>, usize) {
        let (began, mut asked) = (Instant::now(), Asked::default());
        let gone = poll_fn(|cx| liveness.poll_gone(&mut asked, cx));
        let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
        (gone.ok().map(|_| began.elapsed()), asked.0)
    }

    #[tokio::test(start_paused = true)]
    async fn an_awaited_answer_is_asked_after_sooner_than_an_idle_tunnel() {
        let mut liveness = of_a_whole_port();
        liveness.sent(100);
        let prompt = AWAITED_INTERVAL + AWAITED_TIMEOUT;
        assert_eq!(gone_after(&mut liveness).await, (Some(prompt), 1));
        let mut liveness = of_a_whole_port();
        liveness.sent(100);
        liveness.received(&data());
        let idle = KEEPALIVE_INTERVAL + AWAITED_TIMEOUT;
        assert_eq!(gone_after(&mut liveness).await, (Some(idle), 1));
        let mut liveness = of_a_whole_port();
        liveness.whole_port = false;
        liveness.sent(100);
        let filtered = 2 * KEEPALIVE_INTERVAL;
        assert_eq!(gone_after(&mut liveness).await, (Some(filtered), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_keep_alive_behind_much_that_is_unread_has_its_time() {
        let mut liveness = of_a_whole_port();
        liveness.sent(MAX_UNREAD + 1);
        // It may have come before anything was read.
        liveness.received(&data());
        liveness.sent(1);
        let slow = 2 * KEEPALIVE_INTERVAL;
        assert_eq!(gone_after(&mut liveness).await, (Some(slow), 1));
        // Behind an answered keep-alive all has been read.
        liveness.received(&Message::KeepAlive);
        liveness.received(&data());
        liveness.sent(1);
        let prompt = AWAITED_INTERVAL + AWAITED_TIMEOUT;
        assert_eq!(gone_after(&mut liveness).await, (Some(prompt), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_dial_ends_in_its_time_whoever_it_is() {
        let mut liveness = Liveness::default();
        liveness.dialled_by(Instant::now() + Duration::from_secs(1));
        let (gone, asked) = gone_after(&mut liveness).await;
        assert_eq!((gone, asked), (Some(Duration::from_secs(1)), 0));
        liveness.dialled();
        assert_eq!(gone_after(&mut liveness).await, (None, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attached_workstation_is_asked_and_ended_by_its_connection() {
        let mut liveness = Liveness {
            whole_port: true,
            attached: true,
            ..Liveness::default()
        };
        liveness.sent(100);
        let (gone, asked) = gone_after(&mut liveness).await;
        assert_eq!(gone, None);
        assert!(asked >= 1);
        liveness.received(&data());
        assert_eq!(gone_after(&mut liveness).await, (None, 0));
    }
}
