//! Which workloads are to have an agent, apart from what their annotations say, and when each was
//! last used.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use injector::{Kind, Wanted};
use serde::{Deserialize, Serialize};

use super::caches::Key;
use traffic_proto::sync::lock;

/// A newer time of use than this is written down: the state outlives a manager, it is no clock.
const MAX_USE_INTERVAL: Duration = Duration::from_secs(120);

/// All wishes.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    state: Mutex<WishState>,
}

#[derive(Debug, Default)]
struct WishState {
    wanted: BTreeMap<Key, Wish>,
    /// Removal of everything has begun: nothing is wanted any more.
    terminating: bool,
    /// Something is different from what was written down.
    unsaved: bool,
}

#[derive(Clone, Debug)]
struct Wish {
    last_used: SystemTime,
    /// Containers to replace, by the intercept that asks for it.
    replaced: BTreeMap<String, BTreeSet<String>>,
}

/// A wish as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Saved {
    /// Kind of the workload.
    pub(crate) kind: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) last_used: u64,
}

impl Wishes {
    /// Asks for an agent; true when nobody had before.
    pub(crate) fn want(&self, key: &Key, now: SystemTime) -> bool {
        let mut state = self.lock();
        let is_new = !state.wanted.contains_key(key);
        let wish = state.wanted.entry(key.clone()).or_insert_with(|| Wish {
            last_used: now,
            replaced: BTreeMap::new(),
        });
        // Clocks of two managers differ, and the newer use counts.
        wish.last_used = wish.last_used.max(now);
        state.unsaved |= is_new;
        is_new
    }

    /// Takes the wish back; false when there was none.
    pub(crate) fn release(&self, key: &Key) -> bool {
        let mut state = self.lock();
        let released = state.wanted.remove(key).is_some();
        state.unsaved |= released;
        released
    }

    /// Asks for the replacement of containers, on behalf of an intercept; true when that makes a
    /// difference.
    pub(crate) fn replace(&self, key: &Key, intercept: &str, containers: BTreeSet<String>) -> bool {
        let mut state = self.lock();
        let Some(wish) = state.wanted.get_mut(key) else {
            return false;
        };
        let before = wish
            .replaced
            .insert(intercept.to_owned(), containers.clone());
        before.as_ref() != Some(&containers)
    }

    /// Ends replacements whose intercept is not among the live ones; returns their workloads.
    pub(crate) fn restore(&self, is_live: impl Fn(&str) -> bool) -> Vec<Key> {
        let mut restored = Vec::new();
        for (key, wish) in &mut self.lock().wanted {
            let before = wish.replaced.len();
            wish.replaced.retain(|intercept, _| is_live(intercept));
            if wish.replaced.len() < before {
                restored.push(key.clone());
            }
        }
        restored
    }

    /// The desired state of a workload.
    pub(crate) fn of(&self, key: &Key) -> Wanted {
        let state = self.lock();
        match state.wanted.get(key) {
            // Intercepts of one workload may replace different containers: the pod has to suit
            // all.
            Some(wish) if !state.terminating => Wanted::Yes {
                replaced: wish.replaced.values().flatten().cloned().collect(),
            },
            _ => Wanted::No,
        }
    }

    /// Workloads of a namespace with a wish.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Key> {
        let state = self.lock();
        let first = Key {
            namespace: namespace.to_owned(),
            kind: Kind::ALL[0],
            name: String::new(),
        };
        let keys = state.wanted.range(first..).map(|(key, _)| key);
        let keys = keys.take_while(|key| key.namespace == namespace);
        keys.cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Key> {
        self.lock().wanted.keys().cloned().collect()
    }

    /// The workload is used; agents go that were not for `longest`.
    pub(crate) fn used(&self, key: &Key, now: SystemTime, longest: Duration) {
        let mut state = self.lock();
        let Some(wish) = state.wanted.get_mut(key) else {
            return;
        };
        let since = now.duration_since(wish.last_used).unwrap_or_default();
        if since >= use_interval(longest) {
            wish.last_used = now;
            state.unsaved = true;
        }
    }

    /// Workloads that have not been used for so long.
    pub(crate) fn idle(&self, now: SystemTime, longest: Duration) -> Vec<Key> {
        let state = self.lock();
        let is_idle = |wish: &Wish| {
            // A replaced container has nobody but the agent in its place.
            wish.replaced.is_empty()
                && now
                    .duration_since(wish.last_used)
                    // The time that was written down may be that much too old.
                    .is_ok_and(|idle| idle > longest + use_interval(longest))
        };
        let wanted = state.wanted.iter().filter(|(_, wish)| is_idle(wish));
        wanted.map(|(key, _)| key.clone()).collect()
    }

    /// Withdraws all wishes from now on, annotated or not.
    pub(crate) fn terminate(&self) {
        self.lock().terminating = true;
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.lock().terminating
    }

    /// WishState to write down, if it is different from the last time.
    pub(crate) fn take_unsaved(&self) -> Option<Vec<Saved>> {
        let mut state = self.lock();
        if !std::mem::take(&mut state.unsaved) {
            return None;
        }
        Some(
            state
                .wanted
                .iter()
                .map(|(key, wish)| save(key, wish))
                .collect(),
        )
    }

    /// Writing down has failed.
    pub(crate) fn still_unsaved(&self) {
        self.lock().unsaved = true;
    }

    /// Takes over what an earlier manager wrote down. What is known already stays.
    pub(crate) fn load(&self, saved: &[Saved]) {
        let mut state = self.lock();
        for wish in saved {
            let Ok(kind) = wish.kind.parse() else {
                continue;
            };
            let key = Key {
                namespace: wish.namespace.clone(),
                kind,
                name: wish.name.clone(),
            };
            let last_used = SystemTime::UNIX_EPOCH + Duration::from_secs(wish.last_used);
            state.wanted.entry(key).or_insert(Wish {
                last_used,
                replaced: BTreeMap::new(),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, WishState> {
        lock(&self.state)
    }
}

/// Precision with which the time of use is known.
fn use_interval(longest: Duration) -> Duration {
    MAX_USE_INTERVAL.min(longest / 10)
}

fn save(key: &Key, wish: &Wish) -> Saved {
    let since = wish.last_used.duration_since(SystemTime::UNIX_EPOCH);
    Saved {
        kind: key.kind.name().to_owned(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        last_used: since.unwrap_or_default().as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key {
            namespace: "n".to_owned(),
            kind: Kind::Deployment,
            name: name.to_owned(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_wish_holds_until_it_is_taken_back() {
        let wishes = Wishes::default();
        assert_eq!(wishes.of(&key("a")), Wanted::No);
        assert!(wishes.want(&key("a"), at(0)));
        assert!(!wishes.want(&key("a"), at(1)));
        assert_eq!(wishes.of(&key("a")), Wanted::agent());
        assert!(wishes.release(&key("a")));
        assert!(!wishes.release(&key("a")));
        assert_eq!(wishes.of(&key("a")), Wanted::No);
    }

    #[test]
    fn wishes_are_found_by_namespace() {
        let wishes = Wishes::default();
        let of = |namespace: &str, kind| Key {
            namespace: namespace.to_owned(),
            kind,
            name: "a".to_owned(),
        };
        let (first, last) = (of("n", Kind::ALL[0]), of("n", Kind::Rollout));
        for key in [
            &last,
            &of("m", Kind::Rollout),
            &of("n2", Kind::ALL[0]),
            &first,
        ] {
            wishes.want(key, at(0));
        }
        assert_eq!(wishes.in_namespace("n"), [first, last]);
        assert_eq!(wishes.in_namespace("o"), []);
    }

    #[test]
    fn replacements_last_as_long_as_their_intercepts() {
        let wishes = Wishes::default();
        wishes.want(&key("a"), at(0));
        let containers = BTreeSet::from(["app".to_owned()]);
        assert!(wishes.replace(&key("a"), "i", containers.clone()));
        assert!(!wishes.replace(&key("a"), "i", containers.clone()));
        let replaced = Wanted::Yes {
            replaced: containers,
        };
        assert_eq!(wishes.of(&key("a")), replaced);
        assert_eq!(wishes.restore(|it| it == "i"), []);
        assert_eq!(wishes.restore(|_| false), [key("a")]);
        assert_eq!(wishes.of(&key("a")), Wanted::agent());
    }

    #[test]
    fn what_was_written_down_is_taken_over() {
        let wishes = Wishes::default();
        wishes.want(&key("a"), at(7));
        let saved = wishes.take_unsaved().unwrap();
        assert_eq!(wishes.take_unsaved(), None);
        wishes.still_unsaved();
        assert_eq!(wishes.take_unsaved().as_ref(), Some(&saved));
        let next = Wishes::default();
        next.load(&saved);
        assert_eq!(next.all(), [key("a")]);
        assert_eq!(next.take_unsaved(), None);
    }

    #[test]
    fn idle_is_what_was_not_used_for_long() {
        let wishes = Wishes::default();
        wishes.want(&key("a"), at(0));
        wishes.want(&key("b"), at(0));
        let hour = Duration::from_secs(3600);
        wishes.used(&key("b"), at(3000), hour);
        assert_eq!(wishes.idle(at(3600), hour), []);
        assert_eq!(wishes.idle(at(3721), hour), [key("a")]);
        let short = Duration::from_secs(20);
        wishes.used(&key("b"), at(3003), short);
        assert_eq!(wishes.idle(at(3025), short), [key("a")]);
        assert_eq!(wishes.idle(at(3026), short), [key("a"), key("b")]);
    }

    #[test]
    fn nothing_is_wanted_at_the_end() {
        let wishes = Wishes::default();
        wishes.want(&key("a"), at(0));
        wishes.terminate();
        assert_eq!(wishes.of(&key("a")), Wanted::No);
        assert_eq!(wishes.all(), [key("a")]);
    }
}
