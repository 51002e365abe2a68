//! Stream ids towards the app. They are the caller's, until a stream that was meant for a
//! workstation goes to the app after all, when streams with higher ids have gone there already: ids
//! must grow, so it gets a new one, and so does every stream after it.

use std::collections::HashMap;

/// Number of recent streams that are remembered.
const REMEMBERED: usize = 4096;

/// The ids of one connection.
#[derive(Debug, Default)]
pub(super) struct StreamIds {
    /// The highest id that the app has seen.
    highest: u32,
    mapped: Option<Box<Mapped>>,
}

#[derive(Debug)]
struct Mapped {
    /// Ids up to these are the same on both sides, unless they are in the maps.
    same: (u32, u32),
    to_app: HashMap<u32, u32>,
    to_caller: HashMap<u32, u32>,
}

impl StreamIds {
    /// The highest id that the app has seen.
    pub(super) fn highest(&self) -> u32 {
        self.highest
    }

    /// Returns true if ids are the same on both sides.
    pub(super) fn are_same(&self) -> bool {
        self.mapped.is_none()
    }

    /// The app's id of a stream that begins; `newest` is the highest id that the caller has used.
    pub(super) fn assign(&mut self, caller: u32, newest: u32) -> u32 {
        if self.mapped.is_none() && caller > self.highest {
            self.highest = caller;
            return caller;
        }
        let highest = self.highest;
        let mapped = self.mapped.get_or_insert_with(|| {
            Box::new(Mapped {
                same: (newest, highest),
                to_app: HashMap::new(),
                to_caller: HashMap::new(),
            })
        });
        // Odd, as ids of clients are.
        self.highest = (highest + 1) | 1;
        mapped.to_app.insert(caller, self.highest);
        mapped.to_caller.insert(self.highest, caller);
        self.highest
    }

    /// The app's id of a caller's stream; `None` for one that is over.
    pub(super) fn to_app(&self, caller: u32) -> Option<u32> {
        let Some(mapped) = &self.mapped else {
            return Some(caller);
        };
        let same = caller <= mapped.same.0 || caller.is_multiple_of(2);
        let known = mapped.to_app.get(&caller).copied();
        known.or(same.then_some(caller))
    }

    /// The caller's id of an app's stream; `None` for one that is over.
    pub(super) fn to_caller(&self, app: u32) -> Option<u32> {
        let Some(mapped) = &self.mapped else {
            return Some(app);
        };
        let same = app <= mapped.same.1 || app.is_multiple_of(2);
        let known = mapped.to_caller.get(&app).copied();
        known.or(same.then_some(app))
    }

    /// Forgets a stream that is over; says if the app knew it by another id.
    pub(super) fn remove(&mut self, caller: u32) -> bool {
        let Some(mapped) = &mut self.mapped else {
            return false;
        };
        let Some(app) = mapped.to_app.remove(&caller) else {
            return false;
        };
        mapped.to_caller.remove(&app);
        app != caller
    }
}

/// Recent streams that the app knows nothing of: what still comes for them must not reach it.
#[derive(Debug)]
pub(super) struct Withheld {
    bits: [u64; REMEMBERED / 64],
    newest: u32,
}

impl Withheld {
    pub(super) fn new(newest: u32) -> Self {
        Self {
            bits: [0; REMEMBERED / 64],
            newest,
        }
    }

    /// A stream begins; those too old to be remembered are forgotten.
    pub(super) fn advance(&mut self, stream: u32) {
        let skipped = stream.saturating_sub(self.newest) / 2;
        for n in 0..skipped.min(REMEMBERED as u32) {
            self.set(stream - 2 * n, false);
        }
        self.newest = self.newest.max(stream);
    }

    /// The app is not told of this stream.
    pub(super) fn insert(&mut self, stream: u32) {
        self.advance(stream);
        self.set(stream, true);
    }

    /// The app knows it by another id, and it is over.
    pub(super) fn restore(&mut self, stream: u32) {
        if self.newest.saturating_sub(stream) < 2 * REMEMBERED as u32 {
            self.set(stream, true);
        }
    }

    /// The app is told of it after all.
    pub(super) fn remove(&mut self, stream: u32) {
        self.set(stream, false);
    }

    pub(super) fn contains(&self, stream: u32) -> bool {
        let recent = self.newest.saturating_sub(stream) < 2 * REMEMBERED as u32;
        let (word, bit) = place(stream);
        stream % 2 == 1
            && stream <= self.newest
            && recent
            && self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn set(&mut self, stream: u32, withheld: bool) {
        let (word, bit) = place(stream);
        if let Some(bits) = self.bits.get_mut(word) {
            *bits = if withheld { *bits | bit } else { *bits & !bit };
        }
    }
}

fn place(stream: u32) -> (usize, u64) {
    let n = stream as usize / 2 % REMEMBERED;
    (n / 64, 1 << (n % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_the_callers_until_one_comes_late() {
        let mut ids = StreamIds::default();
        assert_eq!((ids.assign(1, 1), ids.assign(5, 5)), (1, 5));
        // Streams 3 and 7 were meant for a workstation; 9 has been told to the app.
        assert_eq!(ids.assign(9, 9), 9);
        assert!(ids.are_same());
        assert_eq!(ids.assign(3, 11), 11);
        assert_eq!(ids.assign(13, 13), 13);
        assert_eq!(ids.assign(7, 15), 15);
        assert_eq!(ids.assign(17, 17), 17);
        assert!(!ids.are_same());
        for (caller, app) in [
            (1, 1),
            (5, 5),
            (9, 9),
            (3, 11),
            (13, 13),
            (7, 15),
            (17, 17),
            (4, 4),
        ] {
            assert_eq!(ids.to_app(caller), Some(app));
            assert_eq!(ids.to_caller(app), Some(caller));
        }
        ids.remove(13);
        assert_eq!((ids.to_app(13), ids.to_caller(13)), (None, None));
        assert_eq!(ids.highest(), 17);
    }

    proptest! {
        #[test]
        fn what_is_withheld_is_remembered_as_long_as_it_is_recent(steps in proptest::collection::vec((1u32..400, any::<bool>()), 1..300)) {
            let (mut withheld, mut plain, mut stream) = (Withheld::new(0), BTreeSet::new(), 1);
            for (step, insert) in steps {
                stream += 2 * step;
                withheld.advance(stream);
                if insert {
                    withheld.insert(stream);
                    plain.insert(stream);
                }
                for known in (stream.saturating_sub(8_000)..=stream + 4).filter(|s| s % 2 == 1) {
                    prop_assert_eq!(withheld.contains(known), plain.contains(&known), "{}", known);
                }
            }
            let last = plain.last().copied().unwrap_or(1);
            withheld.remove(last);
            prop_assert!(!withheld.contains(last));
        }
    }
}
