//! The intercepts of a snapshot that are about one port, compiled for it.

use std::collections::HashMap;
use std::sync::Arc;

use traffic_core::routing::{Intercept, Mechanism};
use traffic_proto::manager::InterceptDispositionType as Disposition;
use traffic_proto::port::Transport;
use traffic_proto::sidecar::Target;
use traffic_proto::suspension;

use crate::control::intercepts::refusal::Refusal;
use crate::control::intercepts::shown::{Shown, ShownSpec};

/// Knowledge of a port that a review with filters depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Readability {
    /// Single requests can be told apart.
    #[default]
    Readable,
    /// They cannot; a text for the intercept's owner.
    Unreadable(String),
    /// The app has to be probed first.
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) intercept: Arc<Intercept>,
    /// Memory of the compiled patterns.
    pub(super) pattern_bytes: usize,
}

/// An intercept of the snapshot that applies to the current port.
pub(super) struct Candidate<'s> {
    pub(super) info: &'s Shown,
    pub(super) spec: &'s ShownSpec,
    pub(super) rule: Result<Compiled, Refusal>,
}

/// The intercepts of the snapshot that apply to the current port.
pub(super) struct Candidates<'s> {
    pub(super) list: Vec<Candidate<'s>>,
    pub(super) index: HashMap<&'s str, usize>,
}

impl<'s> Candidates<'s> {
    pub(super) fn find(&self, id: &str) -> Option<&Candidate<'s>> {
        self.list.get(*self.index.get(id)?)
    }
}

impl Candidate<'_> {
    pub(super) fn has_filters(&self) -> bool {
        self.rule
            .as_ref()
            .is_ok_and(|c| !c.intercept.filters.is_empty())
    }
}

/// Checks that this pod and port can serve a spec that is valid in itself.
pub(super) fn fits(
    compiled: Compiled,
    spec: &ShownSpec,
    target: &Target,
    containers: &[String],
    readability: &Readability,
) -> Result<Compiled, Refusal> {
    if !spec.container_name.is_empty() && !containers.contains(&spec.container_name) {
        return Err(Refusal::of_agent(format!(
            "No match for container {:?}",
            spec.container_name
        )));
    }
    if spec.wiretap && target.transport == Transport::Udp {
        let port = target.container_port;
        return Err(Refusal::of_agent(format!(
            "port {port}/UDP: a wiretap copies TCP connections and HTTP requests, no datagrams; \
            intercept it, or wiretap a TCP port"
        )));
    }
    // Without filters the whole port is taken, which needs no parsing of requests.
    if compiled.intercept.filters.is_empty() {
        return Ok(compiled);
    }
    if target.transport == Transport::Udp {
        let port = target.container_port;
        return Err(Refusal::of_agent(format!(
            "port {port}/UDP carries no HTTP requests; intercept it without header and path \
            filters (--http-header, --http-path-prefix and the like)"
        )));
    }
    match readability {
        Readability::Unreadable(why) => Err(Refusal::of_agent(why.clone())),
        Readability::Readable | Readability::Unknown => Ok(compiled),
    }
}

/// Returns true if the manager waits for a review.
pub(super) fn awaits_review(info: &Shown) -> bool {
    info.disposition() == Disposition::Waiting && !suspension::is_suspended(&info.message)
}

/// Returns true if the intercept was accepted and its client is away.
pub(super) fn is_suspended(info: &Shown) -> bool {
    info.disposition() == Disposition::Waiting && suspension::is_suspended(&info.message)
}

/// Returns true if a rival's promise is binding: the manager confirmed it, or it is a TCP
/// intercept, which keeps its place even unserved.
pub(super) fn is_binding(candidate: &Candidate<'_>) -> bool {
    candidate.info.disposition() == Disposition::Active
        || candidate
            .rule
            .as_ref()
            .is_ok_and(|c| c.intercept.mechanism == Mechanism::Tcp)
}
