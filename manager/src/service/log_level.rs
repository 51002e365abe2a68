//! The log level of manager and agents, changed at run time.

use futures_util::stream;
use futures_util::stream::StreamExt;
use tonic::{Request, Response};
use traffic_proto::manager as pb;

use super::{Answer, Service};
use crate::callers::Caller;
use crate::connection::ConnectionEnd;
use crate::rights::Right;
use crate::watch_body::Messages;

impl Service {
    pub(super) async fn change_log_level(
        &self,
        request: Request<pb::LogLevelRequest>,
    ) -> Answer<()> {
        Caller::of(&request).may(Right::set_log_level()).await?;
        let request = request.into_inner();
        self.settings.log.request(&request, &self.tasks);
        let request = Some(request);
        // Agents that subscribe later hear of it too.
        self.log_level.send_if_modified(|current| {
            let is_new = *current != request;
            *current = request;
            is_new
        });
        Ok(Response::new(()))
    }

    pub(super) async fn log_levels(
        &self,
        request: Request<()>,
    ) -> Answer<Messages<pb::LogLevelRequest>> {
        let (connection, stop) = (ConnectionEnd::of(&request), self.shared.stop.clone());
        let end = self.shared.watches.begin("", connection, stop)?;
        let mut levels = self.log_level.subscribe();
        // A lasting level is part of the configuration by the time one subscribes; a temporary one
        // is not.
        let lasting = |request: &pb::LogLevelRequest| request.duration.is_none();
        if levels
            .borrow()
            .as_ref()
            .is_some_and(|request| !lasting(request))
        {
            levels.mark_changed();
        }
        let following = stream::unfold((levels, end), |(mut levels, end)| async move {
            loop {
                tokio::select! {
                    () = end.cancelled() => return None,
                    changed = levels.changed() => changed.ok()?,
                }
                let request = levels.borrow_and_update().clone();
                if let Some(request) = request {
                    return Some((Ok(request), (levels, end)));
                }
            }
        });
        Ok(Response::new(following.boxed()))
    }
}
