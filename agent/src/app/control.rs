//! The control side of the composition: tunnels and the manager session.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::ports::Port;
use crate::addr::Caller;
use crate::metrics::ControlMetrics;
use crate::ready::Blocker;
use crate::route::Intercept;
use crate::settings::Settings;
use crate::upstream::{OpenTunnel, Transport, TunnelError, TunnelIo};

/// No session yet: every tunnel is refused, so that every request goes to the app.
#[derive(Clone, Debug)]
pub(super) struct Tunnels(#[allow(dead_code)] Arc<ControlMetrics>);

impl Tunnels {
    pub(super) fn new(metrics: Arc<ControlMetrics>) -> Self {
        Self(metrics)
    }
}

impl OpenTunnel for Tunnels {
    fn open(
        &self,
        intercept: Arc<Intercept>,
        _: Caller,
        _: Transport,
    ) -> BoxFuture<'static, Result<TunnelIo, TunnelError>> {
        Box::pin(async move { Err(TunnelError::NoPath(format!("{} has no session", intercept.client))) })
    }
}

/// Starts the session; the future departs.
pub(super) fn start(
    _: &Settings,
    _: &[Port],
    _: Tunnels,
    _: Arc<ControlMetrics>,
    blocker: Blocker,
) -> impl Future<Output = ()> {
    drop(blocker);
    async {}
}
