//! Ages of intercepts, where the platform team limits them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use traffic_proto::manager::InterceptDispositionType as Disposition;

use super::review::{Review, refusal};
use crate::control::intercepts::guard_rails::Rails;
use crate::control::intercepts::refusal::Refusal;
use crate::control::intercepts::shown::Shown;

/// Times at which intercepts began, by id.
#[derive(Debug, Default)]
pub(super) struct Ages {
    began: HashMap<String, Age>,
}

#[derive(Clone, Copy, Debug)]
struct Age {
    since: Instant,
    /// It was too old before.
    has_ended: bool,
}

/// The intercepts of a snapshot that are too old.
pub(super) struct Aged<'s> {
    ended: BTreeMap<&'s str, EndedIntercept<'s>>,
    next: Option<Instant>,
}

/// An intercept that is too old.
struct EndedIntercept<'s> {
    info: &'s Shown,
    refusal: Refusal,
    is_news: bool,
}

impl Ages {
    /// Sorts out what is too old.
    pub(super) fn take<'s>(
        &mut self,
        infos: impl Iterator<Item = &'s Shown>,
        rails: &Rails,
        (now, wall): (Instant, SystemTime),
    ) -> Aged<'s> {
        let mut aged = Aged {
            ended: BTreeMap::new(),
            next: None,
        };
        let Some(most) = rails.max_lifetime() else {
            return aged;
        };
        let mut began = HashMap::new();
        for info in infos {
            // What was seen first counts: the clocks of manager and agent may differ.
            let mut of_it = self.began.remove(&info.id).unwrap_or_else(|| Age {
                since: now.checked_sub(age(info, wall)).unwrap_or(now),
                has_ended: false,
            });
            let ends = of_it.since + most;
            if ends <= now {
                let ended = EndedIntercept {
                    info,
                    refusal: rails.too_old(most),
                    is_news: !of_it.has_ended,
                };
                of_it.has_ended = true;
                aged.ended.insert(&info.id, ended);
            } else {
                aged.next = aged.next.into_iter().chain([ends]).min();
            }
            began.insert(info.id.clone(), of_it);
        }
        self.began = began;
        aged
    }
}

/// The age that the manager says; 0 unless it does.
fn age(info: &Shown, wall: SystemTime) -> Duration {
    let age = info.created.and_then(|at| wall.duration_since(at).ok());
    age.unwrap_or_default()
}

impl Aged<'_> {
    /// Refuses an intercept that is too old.
    pub(super) fn check(&self, id: &str) -> Result<(), Refusal> {
        match self.ended.get(id) {
            Some(ended) => Err(ended.refusal.clone()),
            None => Ok(()),
        }
    }

    /// Returns when the next one is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl<'s> Aged<'s> {
    /// Says of those that the manager still takes for active that they are over.
    pub(super) fn tell(&self, changes: &mut Vec<String>, reviews: &mut BTreeMap<&'s str, Review>) {
        for ended in self.ended.values() {
            let EndedIntercept {
                info,
                refusal: refused,
                is_news,
            } = ended;
            if info.disposition() != Disposition::Active {
                continue;
            }
            if *is_news {
                changes.push(format!("intercept {} {}", info.id, refused.message));
            }
            let review = Review {
                ends: true,
                ..refusal(&info.id, "", refused.clone())
            };
            reviews.insert(&info.id, review);
        }
    }
}
