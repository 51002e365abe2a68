//! The answer to an intercept that waits for this agent.

use std::collections::BTreeMap;

use crate::control::intercepts::refusal::Refusal;

/// Review of one waiting intercept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// Intercept id.
    pub id: String,
    /// Description of what it takes, for its owner.
    pub description: String,
    /// Result of the review.
    pub verdict: Verdict,
    /// Refused because it is too large, or there are too many.
    pub is_bound: bool,
    /// It was served so far.
    pub ends: bool,
}

/// Result of reviewing an intercept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted: the agent will serve it.
    Accept {
        /// Container whose environment and mounts its owner gets.
        container: String,
        /// Filters in the form the owner's tools read back.
        headers: BTreeMap<String, String>,
        /// Key-value pairs of its owner, for the REST API of both ends.
        metadata: BTreeMap<String, String>,
        /// Its owner may read the volumes and not change them: a wiretap leaves no trace.
        reads_only: bool,
    },
    /// Refused.
    Refuse {
        /// The spec itself is wrong.
        bad_args: bool,
        /// Problem and remedy.
        message: String,
    },
}

impl Review {
    /// Puts what it takes of another port first, unless that is the same.
    pub(super) fn describe_also(&mut self, other: &str) {
        let own = &self.description;
        let is_said = other == own
            || other.starts_with(&format!("{own} and "))
            || other.ends_with(&format!(" and {own}"));
        self.description = match is_said {
            true => other.to_owned(),
            false => format!("{other} and {own}"),
        };
    }

    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.verdict, Verdict::Refuse { .. })
    }
}

pub(super) fn refusal(id: &str, description: &str, refused: Refusal) -> Review {
    let is_bound = refused.is_bound;
    let verdict = Verdict::Refuse {
        bad_args: refused.bad_args,
        message: refused.message,
    };
    Review {
        id: id.to_owned(),
        description: description.to_owned(),
        verdict,
        is_bound,
        ends: false,
    }
}
