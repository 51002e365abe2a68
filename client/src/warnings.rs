//! Warnings about requests and datagrams that the developer's machine did not get, a few lines of
//! them however many there are. The manager tells how many requests went to the app; an older one
//! does not, and then the failed dials of this program are counted. Datagrams are lost here, so this
//! program alone knows of them.

use std::collections::BTreeMap;
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
    /// Addresses at which nothing took datagrams.
    datagrams: BTreeMap<SocketAddr, LostDatagrams>,
}

#[derive(Debug, Default)]
struct LostDatagrams {
    lost: u64,
    /// As many were said to be.
    printed: u64,
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

    /// Counts a datagram that nothing took at an address of this machine.
    pub(crate) fn datagram_lost(&self, address: SocketAddr) {
        self.lock().datagrams.entry(address).or_default().lost += 1;
        self.changed.notify_one();
    }

    /// Notes that datagrams are answered at an address: if they are lost again, that is news.
    pub(crate) fn datagram_answered(&self, address: SocketAddr) {
        self.lock().datagrams.remove(&address);
    }

    /// Takes in what the manager says of the active intercept; empty when all is well.
    pub(crate) fn manager_says(&self, message: &str) {
        let mut state = self.lock();
        let message = Some(message.to_owned()).filter(|m| !m.is_empty());
        if state.of_manager == message {
            return;
        }
        if message.is_none() {
            *state = State {
                datagrams: std::mem::take(&mut state.datagrams),
                ..State::default()
            };
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
            let texts = self.next();
            if texts.is_empty() {
                continue;
            }
            for text in texts {
                line(format_args!("warning: {text}"));
            }
            sleep(pause).await;
            pause = (pause * 2).min(WARNING_INTERVAL.1);
            // What has come meanwhile is said now.
            self.changed.notify_one();
        }
    }

    /// The texts to print that differ from those before.
    fn next(&self) -> Vec<String> {
        let mut state = self.lock();
        let mut texts: Vec<_> = state.next_of_requests().into_iter().collect();
        for (address, datagrams) in &mut state.datagrams {
            texts.extend(datagrams.next(*address));
        }
        texts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn next_of_requests(&mut self) -> Option<String> {
        let own = || {
            let address = self.failed_address?;
            Some(format!(
                "nothing listens on {address}; {} went to the app",
                counted(self.failed_dials, "request")
            ))
        };
        let text = self.of_manager.clone().or_else(own)?;
        if self.printed.as_ref() == Some(&text) {
            return None;
        }
        self.printed = Some(text.clone());
        Some(text)
    }
}

impl LostDatagrams {
    fn next(&mut self, address: SocketAddr) -> Option<String> {
        if self.lost == self.printed {
            return None;
        }
        self.printed = self.lost;
        let were = if self.lost == 1 { "was" } else { "were" };
        Some(format!(
            "nothing listens on {address}; {} {were} lost",
            counted(self.lost, "datagram")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: ([u8; 4], u16) = ([127, 0, 0, 1], 3000);

    #[test]
    fn the_manager_s_word_comes_before_our_own_and_nothing_is_said_twice() {
        let warnings = Warnings::default();
        assert!(warnings.next().is_empty());
        warnings.dial_failed(LOCAL.into());
        let own = "nothing listens on 127.0.0.1:3000; 1 request went to the app";
        assert_eq!(warnings.next(), [own]);
        assert!(warnings.next().is_empty());
        warnings.manager_says("nothing listens; 3 requests went to the app");
        let of_manager = "nothing listens; 3 requests went to the app";
        assert_eq!(warnings.next(), [of_manager]);
        warnings.manager_says("");
        assert!(warnings.next().is_empty());
    }

    #[test]
    fn lost_datagrams_are_said_beside_requests_and_anew_once_one_was_answered() {
        let warnings = Warnings::default();
        let lost = |count| format!("nothing listens on 127.0.0.1:3000; {count} lost");
        warnings.datagram_lost(LOCAL.into());
        assert_eq!(warnings.next(), [lost("1 datagram was")]);
        warnings.datagram_lost(LOCAL.into());
        warnings.manager_says("3 requests went to the app");
        assert_eq!(
            warnings.next(),
            ["3 requests went to the app", &lost("2 datagrams were")]
        );
        warnings.manager_says("");
        assert!(warnings.next().is_empty());
        warnings.datagram_answered(LOCAL.into());
        warnings.datagram_lost(LOCAL.into());
        assert_eq!(warnings.next(), [lost("1 datagram was")]);
    }
}
