//! Client sessions. The agent's own API serves those of announced intercepts' clients, and those that
//! the manager confirms: whoever can reach the port could use the agent as a way into the pod's
//! network otherwise. And a manager is asked for tunnels to those alone that it knows itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;
use traffic_proto::sync::lock;

/// Time a manager's confirmation holds.
const CONFIRMED_TTL: Duration = Duration::from_secs(30);
/// The same for its denial: a client may be quicker than the manager's news of it.
const DENIED_TTL: Duration = Duration::from_secs(1);
/// Sessions whose answers are kept.
const MAX_ANSWERS: usize = 1024;

/// What is known of client sessions.
#[derive(Debug, Default)]
pub(crate) struct KnownSessions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Clients of what the manager shows in the session that lasts.
    announced: HashSet<String>,
    /// Clients of what a lost session left in force.
    carried: HashSet<String>,
    answers: HashMap<String, (bool, Instant)>,
}

impl KnownSessions {
    /// Begins a session: its manager need not know anybody of the one before.
    pub(crate) fn arrive(&self) {
        let mut known = self.lock();
        let before = std::mem::take(&mut known.announced);
        known.carried.extend(before);
        known.answers.clear();
    }

    /// Replaces the clients of what the manager shows and of what is carried, after a snapshot.
    pub(crate) fn announce(&self, announced: HashSet<String>, carried: HashSet<String>) {
        let mut known = self.lock();
        known.announced = announced;
        known.carried = carried;
    }

    /// Returns if a session is served, as far as that is known without asking the manager.
    pub(crate) fn is_known(&self, session: &str) -> Option<bool> {
        let known = self.lock();
        if known.carried.contains(session) {
            return Some(true);
        }
        known.by_manager(session)
    }

    /// Returns if the manager knows a session, as far as that is known without asking it.
    pub(crate) fn is_known_to_manager(&self, session: &str) -> Option<bool> {
        self.lock().by_manager(session)
    }

    /// Keeps the manager's answer about a session.
    pub(crate) fn answered(&self, session: &str, confirmed: bool) {
        let now = Instant::now();
        let mut known = self.lock();
        if known.answers.len() >= MAX_ANSWERS {
            known.answers.retain(|_, (_, until)| now < *until);
        }
        // A crowd of answers that still hold: the next question is asked again.
        if known.answers.len() < MAX_ANSWERS {
            let ttl = if confirmed { CONFIRMED_TTL } else { DENIED_TTL };
            let answer = (confirmed, now + ttl);
            known.answers.insert(session.to_owned(), answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.0)
    }
}

impl Known {
    fn by_manager(&self, session: &str) -> Option<bool> {
        if self.announced.contains(session) {
            return Some(true);
        }
        let (confirmed, until) = self.answers.get(session)?;
        (Instant::now() < *until).then_some(*confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn announced_sessions_are_known_and_answers_hold_for_a_while() {
        let sessions = KnownSessions::default();
        assert_eq!(sessions.is_known("a"), None);
        sessions.announce(HashSet::from(["a".to_owned()]), HashSet::new());
        assert_eq!(sessions.is_known("a"), Some(true));
        sessions.announce(HashSet::new(), HashSet::new());
        assert_eq!(sessions.is_known("a"), None);
        sessions.answered("b", true);
        sessions.answered("c", false);
        let answers = || (sessions.is_known("b"), sessions.is_known("c"));
        assert_eq!(answers(), (Some(true), Some(false)));
        tokio::time::advance(DENIED_TTL).await;
        assert_eq!(answers(), (Some(true), None));
        tokio::time::advance(CONFIRMED_TTL).await;
        assert_eq!(answers(), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn another_manager_is_not_taken_to_know_the_clients_of_the_one_before() {
        let sessions = KnownSessions::default();
        sessions.announce(HashSet::from(["a".to_owned()]), HashSet::new());
        sessions.answered("b", true);
        assert_eq!(sessions.is_known_to_manager("a"), Some(true));
        sessions.arrive();
        assert_eq!(sessions.is_known_to_manager("a"), None);
        assert_eq!(sessions.is_known_to_manager("b"), None);
        assert_eq!(sessions.is_known("a"), Some(true), "it is served on");
        sessions.announce(HashSet::new(), HashSet::from(["a".to_owned()]));
        sessions.answered("a", false);
        assert_eq!(sessions.is_known_to_manager("a"), Some(false));
        assert_eq!(sessions.is_known("a"), Some(true));
        sessions.announce(HashSet::from(["a".to_owned()]), HashSet::new());
        assert_eq!(sessions.is_known_to_manager("a"), Some(true));
    }

    #[test]
    fn answers_are_bounded() {
        let sessions = KnownSessions::default();
        for n in 0..2 * MAX_ANSWERS {
            sessions.answered(&n.to_string(), true);
        }
        assert_eq!(sessions.lock().answers.len(), MAX_ANSWERS);
    }
}
