//! Connections of the webhook. There are so many at most; when another one comes, the one that waits
//! longest for a request is closed, of the peer that has the most: who floods the webhook takes
//! places from himself.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use traffic_proto::sync::lock;

use crate::limits::{LimitCounters, MAX_WEBHOOK_CONNECTIONS, ManagerLimit};

/// The connections that are open.
pub(super) struct Connections {
    most: usize,
    limits: Arc<LimitCounters>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    places: BTreeMap<u64, Place>,
}

struct Place {
    peer: IpAddr,
    /// Time since when no request is served; none while one is.
    idle_since: Option<Instant>,
    close: CancellationToken,
}

impl Connections {
    pub(super) fn new(limits: Arc<LimitCounters>) -> Arc<Self> {
        Self::with(MAX_WEBHOOK_CONNECTIONS, limits)
    }

    fn with(most: usize, limits: Arc<LimitCounters>) -> Arc<Self> {
        Arc::new(Self {
            most,
            limits,
            open: Mutex::default(),
        })
    }

    /// Takes a place for a connection; none if requests are served on all others.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Connection> {
        let mut open = lock(&self.open);
        if open.places.len() >= self.most {
            self.limits
                .reached(ManagerLimit::WebhookConnections, &peer.to_string());
            let given_up = open.longest_idle()?;
            if let Some(place) = open.places.remove(&given_up) {
                place.close.cancel();
            }
        }
        open.last += 1;
        let (number, close) = (open.last, CancellationToken::new());
        let place = Place {
            peer,
            idle_since: Some(Instant::now()),
            close: close.clone(),
        };
        open.places.insert(number, place);
        Some(Connection {
            connections: self.clone(),
            number,
            close,
        })
    }
}

impl Open {
    /// Returns the connection that is idle longest, of the peer that has the most.
    fn longest_idle(&self) -> Option<u64> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for place in self.places.values() {
            *counts.entry(place.peer).or_default() += 1;
        }
        let idle = self.places.iter().filter_map(|(number, place)| {
            let idle = place.idle_since?.elapsed();
            Some((counts.get(&place.peer), idle, *number))
        });
        idle.max().map(|(_, _, number)| number)
    }
}

/// The place of one connection, given back at its end.
pub(super) struct Connection {
    connections: Arc<Connections>,
    number: u64,
    close: CancellationToken,
}

impl Connection {
    /// Resolves when it has to give way.
    pub(super) async fn closed(&self) {
        self.close.cancelled().await;
    }

    /// Keeps its place until the returned value is dropped: a request is served.
    pub(super) fn serves(&self) -> Serving<'_> {
        self.idle_since(None);
        Serving(self)
    }

    fn idle_since(&self, time: Option<Instant>) {
        let mut open = lock(&self.connections.open);
        if let Some(place) = open.places.get_mut(&self.number) {
            place.idle_since = time;
        }
    }
}

/// A request that is being served.
pub(super) struct Serving<'a>(&'a Connection);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.idle_since(Some(Instant::now()));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.connections.open).places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    async fn next_moment() {
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_most_gives_way_with_what_is_idle_longest() {
        let limits = Arc::<LimitCounters>::default();
        let connections = Connections::with(4, limits.clone());
        // The API server's is the oldest of all, and idle.
        let server = connections.enter(peer(1)).unwrap();
        let mut flood = Vec::new();
        for _ in 0..3 {
            next_moment().await;
            flood.push(connections.enter(peer(2)).unwrap());
        }
        let serving = flood[0].serves();
        next_moment().await;
        let another = connections.enter(peer(2)).unwrap();
        let closed: Vec<_> = flood.iter().map(|it| it.close.is_cancelled()).collect();
        assert_eq!(closed, [false, true, false]);
        assert!(!server.close.is_cancelled() && !another.close.is_cancelled());
        assert_eq!(limits.counts().map(|(_, count)| count).sum::<u64>(), 1);
        drop(serving);
        // Its place is taken: its end gives none back.
        flood.remove(1);
        next_moment().await;
        let third = connections.enter(peer(3)).unwrap();
        assert!(flood[1].close.is_cancelled(), "idle longer than the first");
        assert!(!third.close.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_serve_are_never_closed_and_places_come_back() {
        let connections = Connections::with(2, Arc::default());
        let busy = [1, 2].map(|number| connections.enter(peer(number)).unwrap());
        let serving = busy.each_ref().map(Connection::serves);
        assert!(connections.enter(peer(3)).is_none());
        drop(serving);
        drop(busy);
        let again = [3, 4].map(|number| connections.enter(peer(number)));
        assert!(again.iter().all(Option::is_some));
    }
}
