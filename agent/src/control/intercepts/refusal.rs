//! Reasons to refuse an intercept, as its owner is told.

/// Reason an intercept cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The spec is wrong, not this agent's state.
    pub(crate) bad_args: bool,
    /// A bound on sizes or numbers is reached.
    pub(crate) is_bound: bool,
    /// Problem and remedy.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn of_agent(message: String) -> Self {
        Self {
            bad_args: false,
            is_bound: false,
            message,
        }
    }

    pub(crate) fn of_spec(message: String) -> Self {
        Self {
            bad_args: true,
            is_bound: false,
            message,
        }
    }

    /// The same, of a bound that was reached.
    pub(crate) fn by_bound(self) -> Self {
        Self {
            is_bound: true,
            ..self
        }
    }
}
