//! Warnings about requests that the developer's machine did not get, a few lines of them however
//! many requests there are. The manager tells how many went to the app; an older one does not, and
//! then the failed dials of this program are counted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::report::{counted, line};
use traffic_proto::sync::lock;

/// Time for the manager to tell of a failure before this program tells what it knows itself.
const MANAGER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Pause between two warnings: the first, and the longest.
const WARNING_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Warnings of one intercept.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    of_manager: Option<String>,
    failed_dials: u64,
    /// Address of the last one.
    failed_address: Option<SocketAddr>,
    printed: Option<String>,
}

impl Warnings {
    /// Counts a connection that could not be made to an address of this machine.
    pub(crate) fn dial_failed(&self, address: SocketAddr) {
        let mut state = self.lock();
        state.failed_dials += 1;
        state.failed_address = Some(address);
        drop(state);
        self.changed.notify_one();
    }

    /// Takes in what the manager says of the active intercept; empty when all is well.
    pub(crate) fn manager_says(&self, message: &str) {
        let mut state = self.lock();
        let message = Some(message.to_owned()).filter(|m| !m.is_empty());
        if state.of_manager == message {
            return;
        }
        if message.is_none() {
            *state = State::default();
        }
        state.of_manager = message;
        drop(state);
        self.changed.notify_one();
    }

    /// Prints what there is to say.
    pub(crate) async fn run(&self) -> Infallible {
        let mut pause = WARNING_INTERVAL.0;
        loop {
            self.changed.notified().await;
            if self.lock().of_manager.is_none() {
                sleep(MANAGER_TIMEOUT).await;
            }
            let Some(text) = self.next() else { continue };
            line(format_args!("warning: {text}"));
            sleep(pause).await;
            pause = (pause * 2).min(WARNING_INTERVAL.1);
            // What has come meanwhile is said now.
            self.changed.notify_one();
        }
    }

    /// The text to print, if it differs from the one before.
    fn next(&self) -> Option<String> {
        let mut state = self.lock();
        let own = || {
            let address = state.failed_address?;
            Some(format!(
                "nothing listens on {address}; {} went to the app",
                counted(state.failed_dials, "request")
            ))
        };
        let text = state.of_manager.clone().or_else(own)?;
        if state.printed.as_ref() == Some(&text) {
            return None;
        }
        state.printed = Some(text.clone());
        Some(text)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_s_word_comes_before_our_own_and_nothing_is_said_twice() {
        let warnings = Warnings::default();
        assert_eq!(warnings.next(), None);
        warnings.dial_failed(([127, 0, 0, 1], 3000).into());
        let own = "nothing listens on 127.0.0.1:3000; 1 request went to the app";
        assert_eq!(warnings.next().as_deref(), Some(own));
        assert_eq!(warnings.next(), None);
        warnings.manager_says("nothing listens; 3 requests went to the app");
        let of_manager = "nothing listens; 3 requests went to the app";
        assert_eq!(warnings.next().as_deref(), Some(of_manager));
        warnings.manager_says("");
        assert_eq!(warnings.next(), None);
    }
}
