//! Upstream selection for a matched request: an open tunnel of this connection, or a new one.
//! Nothing of a request is sent until the workstation has connected; every failure before that
//! falls back to the app.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crate::proxy::http1::connection::{Connection, Upstream};
use crate::proxy::http1::tunnels::PooledTunnel;
use crate::upstream::workstation;
use crate::upstream::workstation::FirstWrite;
use traffic_core::routing::Intercept;

impl Connection {
    /// Returns the upstream to the intercept's workstation, or the app if no tunnel can be had.
    pub(crate) async fn workstation(&mut self, intercept: Arc<Intercept>) -> Upstream {
        workstation::hit(&intercept);
        poll_fn(|cx| {
            self.workstations.drop_ended(cx);
            Poll::Ready(())
        })
        .await;
        let context = &self.context;
        let way = context.port.workstations();
        if let Some(at) = self.workstations.find_current(&intercept, &way) {
            return Upstream::Tunnel(at);
        }
        let path = way.path(&intercept);
        let hello = context.hello.as_deref();
        let dial = way.connect(&intercept, context.caller, hello, FirstWrite::AfterDial);
        match Box::pin(dial).await {
            Ok(conn) => Upstream::Tunnel(self.workstations.add(PooledTunnel {
                intercept,
                conn,
                path,
            })),
            Err(failure) => {
                way.fell_back(&intercept, failure.why);
                if let Some(record) = &mut self.record {
                    record.failed_open(failure.why, &context.app_address());
                }
                Upstream::App
            }
        }
    }
}
