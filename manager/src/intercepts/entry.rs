//! One intercept: its state at the manager, and how agents and clients see it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tokio::time::Instant;
use traffic_proto::manager::{InterceptDispositionType as Disposition, InterceptInfo};
use traffic_proto::suspension;

use crate::viewed::Viewed;

#[derive(Debug)]
pub(super) struct Intercept {
    pub(super) info: Arc<InterceptInfo>,
    /// View of others, made when it is asked for.
    pub(super) shown: OnceLock<Viewed<InterceptInfo>>,
    /// View of agents.
    pub(super) uncounted: OnceLock<Viewed<InterceptInfo>>,
    /// Taken over from an earlier manager: until then its agents may still be reconnecting.
    pub(super) trusted_until: Option<Instant>,
    /// Time since which its client is away; it is shown as waiting meanwhile.
    pub(super) suspended: Option<SystemTime>,
    /// Meanwhile another intercept of the workload was accepted, maybe in its place.
    pub(super) is_contested: bool,
    /// Reports of its agents, by their sessions.
    pub(super) reports: BTreeMap<String, Report>,
}

/// An agent's word on the requests of an intercept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Requests that the workstation got.
    pub(crate) hits: u64,
    /// Requests that went to the app because the workstation is not reached.
    pub(crate) failed_open: u64,
    /// Why it is not; empty while it is.
    pub(crate) failure: String,
}

impl Intercept {
    pub(super) fn new(info: InterceptInfo, trusted_until: Option<Instant>) -> Self {
        Self {
            info: Arc::new(info),
            shown: OnceLock::new(),
            uncounted: OnceLock::new(),
            trusted_until,
            suspended: None,
            is_contested: false,
            reports: BTreeMap::new(),
        }
    }

    /// Changes the intercept, also as others see it.
    pub(super) fn edit(&mut self) -> &mut InterceptInfo {
        self.changed();
        Arc::make_mut(&mut self.info)
    }

    /// The intercept as others see it.
    pub(super) fn shown(&self) -> &Viewed<InterceptInfo> {
        self.shown.get_or_init(|| Viewed::new(self.to_show()))
    }

    /// The same without the counts of requests.
    pub(super) fn uncounted(&self) -> &Viewed<InterceptInfo> {
        self.uncounted.get_or_init(|| {
            let mut info = self.to_show();
            if (info.hits, info.failed_open) != (0, 0) {
                let counted = Arc::make_mut(&mut info);
                (counted.hits, counted.failed_open) = (0, 0);
            }
            Viewed::new(info)
        })
    }

    /// Has it made anew what others see.
    pub(super) fn changed(&mut self) {
        self.shown.take();
        self.uncounted.take();
    }

    fn to_show(&self) -> Arc<InterceptInfo> {
        let is_active = self.info.disposition() == Disposition::Active;
        if self.reports.is_empty() && !(is_active && self.suspended.is_some()) {
            return Arc::clone(&self.info);
        }
        let mut info = InterceptInfo::clone(&self.info);
        info.hits = self.reports.values().map(|it| it.hits).sum();
        info.failed_open = self.reports.values().map(|it| it.failed_open).sum();
        if !is_active {
            return Arc::new(info);
        }
        if let Some(since) = self.suspended {
            info.set_disposition(Disposition::Waiting);
            let since = prost_types::Timestamp {
                nanos: 0,
                ..since.into()
            };
            info.message = suspension::message(client_of(&info), &since.to_string());
        } else if let Some(failing) = self.reports.values().find(|it| !it.failure.is_empty()) {
            let failure = &failing.failure;
            let requests = match info.failed_open {
                1 => "1 request".to_owned(),
                n => format!("{n} requests"),
            };
            info.message = format!("{failure}; {requests} went to the app");
        }
        Arc::new(info)
    }
}

fn client_of(info: &InterceptInfo) -> &str {
    info.spec.as_ref().map_or("", |spec| spec.client.as_str())
}
