//! Intercepts of a lost session, which stay in force until their clients have come back to a manager
//! that has forgotten them too. Clients come back one by one: a snapshot with the first of them is
//! no news of the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use traffic_core::routing::Intercept;
use traffic_proto::manager::InterceptDispositionType as Disposition;

use super::candidates::Candidates;
use crate::control::intercepts::conflict;

/// Time clients have to come back, from the agent's arrival at a manager that did not know it.
pub(super) const RETURN_GRACE: Duration = Duration::from_secs(10);

/// When carried intercepts end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Returning {
    /// No session was lost, or all clients have had their time.
    #[default]
    Over,
    /// Clients have until then.
    Until(Instant),
}

impl Returning {
    /// Returns the deadline if it lies ahead; what is due is over from then on.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        match *self {
            Self::Until(deadline) if now < deadline => Some(deadline),
            _ => {
                *self = Self::Over;
                None
            }
        }
    }
}

/// The carried intercepts of one port.
#[derive(Debug, Default)]
pub(super) struct Carried(Vec<Arc<Intercept>>);

impl Carried {
    /// Carries what was in force when a session was lost.
    pub(super) fn take(&mut self, served: &[Arc<Intercept>]) {
        self.0 = served.to_vec();
    }

    /// Ends them all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Intercept>> {
        self.0.iter()
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|carried| carried.id == id)
    }

    /// Ends those about which the manager knows more by now, or whose place is taken by what it
    /// shows as active, which is `served`; returns the others.
    pub(super) fn settle(
        &mut self,
        candidates: &Candidates<'_>,
        served: &[Arc<Intercept>],
    ) -> &[Arc<Intercept>] {
        self.0.retain(|carried| {
            let is_unreviewed = |id: &str| {
                candidates.find(id).is_none_or(|candidate| {
                    candidate.rule.is_ok() && candidate.info.disposition() == Disposition::Waiting
                })
            };
            is_unreviewed(&carried.id) && served.iter().all(|other| !replaces(other, carried))
        });
        &self.0
    }
}

/// Returns true if `new` is the same intercept of the same user's in a later session, or takes
/// requests of `old`.
fn replaces(new: &Intercept, old: &Intercept) -> bool {
    let is_same = new.client == old.client && name(new) == name(old);
    let conflicts =
        !new.wiretap && !old.wiretap && conflict::between(&new.filters, &old.filters).is_some();
    new.id == old.id || is_same || conflicts
}

/// Returns the name within an id, which is SESSION:NAME.
fn name(intercept: &Intercept) -> &str {
    let id = intercept.id.as_str();
    id.split_once(':').map_or(id, |(_, name)| name)
}
