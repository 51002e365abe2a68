//! Places of open watches: so many of a session, and so many in all.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use traffic_proto::sync::lock;

use crate::connection::ConnectionEnd;
use crate::error::RequestError;
use crate::limits::{LimitCounters, MAX_WATCHES, MAX_WATCHES_OF_SESSION, ManagerLimit};

/// Open watches by session.
#[derive(Debug)]
pub(crate) struct OpenWatches {
    by_session: Arc<Mutex<HashMap<String, usize>>>,
    limits: Arc<LimitCounters>,
}

/// End of a watch's session, and the watch's place until it is dropped.
#[derive(Debug)]
pub(crate) struct WatchEnd {
    end: CancellationToken,
    session: String,
    by_session: Arc<Mutex<HashMap<String, usize>>>,
    /// The connection that the watch belongs to.
    pub(crate) connection: ConnectionEnd,
}

impl OpenWatches {
    pub(crate) fn new(limits: Arc<LimitCounters>) -> Self {
        Self {
            by_session: Arc::default(),
            limits,
        }
    }

    /// Takes a place for a watch that ends with `end`. Watches without a session count by their
    /// connection.
    pub(crate) fn begin(
        &self,
        session: &str,
        connection: ConnectionEnd,
        end: CancellationToken,
    ) -> Result<WatchEnd, RequestError> {
        let session = match session {
            "" => format!("connection {}", connection.number()),
            session => session.to_owned(),
        };
        let mut watches = lock(&self.by_session);
        let own = watches.get(&session).copied().unwrap_or_default();
        if own >= MAX_WATCHES_OF_SESSION {
            let limit = ManagerLimit::SessionWatches;
            return Err(self.limits.refuse(limit, &session, MAX_WATCHES_OF_SESSION));
        }
        if watches.values().sum::<usize>() >= MAX_WATCHES {
            let limit = ManagerLimit::Watches;
            return Err(self.limits.refuse(limit, &session, MAX_WATCHES));
        }
        watches.insert(session.clone(), own + 1);
        Ok(WatchEnd {
            end,
            session,
            by_session: Arc::clone(&self.by_session),
            connection,
        })
    }
}

impl Deref for WatchEnd {
    type Target = CancellationToken;

    fn deref(&self) -> &CancellationToken {
        &self.end
    }
}

impl Drop for WatchEnd {
    fn drop(&mut self) {
        let mut watches = lock(&self.by_session);
        if let Some(open) = watches.get_mut(&self.session) {
            *open -= 1;
            if *open == 0 {
                watches.remove(&self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_its_places_and_gets_them_back() {
        let watches = OpenWatches::new(Arc::default());
        let one = ConnectionEnd::default();
        let open = |session: &str| watches.begin(session, one.clone(), CancellationToken::new());
        let held: Vec<_> = (0..MAX_WATCHES_OF_SESSION)
            .map(|_| open("a").unwrap())
            .collect();
        assert!(matches!(open("a"), Err(RequestError::TooMany(_))));
        assert!(open("b").is_ok(), "others are not concerned");
        drop(held);
        assert!(open("a").is_ok());
        assert!(lock(&watches.by_session).is_empty());
    }

    #[test]
    fn watches_without_a_session_count_by_connection() {
        let watches = OpenWatches::new(Arc::default());
        let (one, other) = (ConnectionEnd::default(), ConnectionEnd::default());
        let open = |of: &ConnectionEnd| watches.begin("", of.clone(), CancellationToken::new());
        let _held: Vec<_> = (0..MAX_WATCHES_OF_SESSION)
            .map(|_| open(&one).unwrap())
            .collect();
        assert!(open(&one).is_err());
        assert!(open(&other).is_ok());
    }
}
