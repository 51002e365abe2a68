//! Connections of one listener. There are so many at most; when another one comes, the one that
//! serves no request for longest is closed, of the peer that has the most: who floods the listener
//! takes places from himself.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use traffic_proto::sync::lock;

use crate::limits::{LimitCounters, ManagerLimit};

/// The connections that are open.
pub(crate) struct Connections {
    most: usize,
    limit: ManagerLimit,
    limits: Arc<LimitCounters>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    places: HashMap<u64, Place>,
    peers: HashMap<IpAddr, Peer>,
}

struct Place {
    peer: IpAddr,
    /// Requests that are being served.
    serving: usize,
    idle_since: Instant,
    close: CancellationToken,
}

/// Connections of one peer.
#[derive(Default)]
struct Peer {
    count: usize,
    /// Those that serve no request, the one that does for longest first.
    idle: BTreeSet<(Instant, u64)>,
}

impl Connections {
    /// Creates an instance without any, for `most` of them.
    pub(crate) fn new(most: usize, limit: ManagerLimit, limits: Arc<LimitCounters>) -> Arc<Self> {
        Arc::new(Self {
            most,
            limit,
            limits,
            open: Mutex::default(),
        })
    }

    /// Takes a place for a connection; none if requests are served on all others.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Arc<Connection>> {
        let peer = peer.to_canonical();
        let mut open = lock(&self.open);
        if open.places.len() >= self.most {
            self.limits.reached(self.limit, &peer.to_string());
            let given_up = open.longest_idle()?;
            if let Some(place) = open.remove(given_up) {
                place.close.cancel();
            }
        }
        let close = CancellationToken::new();
        let number = open.insert(peer, close.clone());
        Some(Arc::new(Connection {
            connections: self.clone(),
            number,
            close,
        }))
    }
}

impl Open {
    fn insert(&mut self, peer: IpAddr, close: CancellationToken) -> u64 {
        self.last += 1;
        let place = Place {
            peer,
            serving: 0,
            idle_since: Instant::now(),
            close,
        };
        let of_peer = self.peers.entry(peer).or_default();
        of_peer.count += 1;
        of_peer.idle.insert((place.idle_since, self.last));
        self.places.insert(self.last, place);
        self.last
    }

    /// Takes a connection's place away.
    fn remove(&mut self, number: u64) -> Option<Place> {
        let place = self.places.remove(&number)?;
        if let Some(of_peer) = self.peers.get_mut(&place.peer) {
            of_peer.count -= 1;
            of_peer.idle.remove(&(place.idle_since, number));
            if of_peer.count == 0 {
                self.peers.remove(&place.peer);
            }
        }
        Some(place)
    }

    /// Counts the requests that a connection serves.
    fn serve(&mut self, number: u64, change: impl FnOnce(usize) -> usize) {
        let Some(place) = self.places.get_mut(&number) else {
            return;
        };
        let Some(of_peer) = self.peers.get_mut(&place.peer) else {
            return;
        };
        of_peer.idle.remove(&(place.idle_since, number));
        place.serving = change(place.serving);
        if place.serving == 0 {
            place.idle_since = Instant::now();
            of_peer.idle.insert((place.idle_since, number));
        }
    }

    /// Returns the connection that is idle longest, of the peer that has the most.
    fn longest_idle(&self) -> Option<u64> {
        let idle = self.peers.values().filter(|it| !it.idle.is_empty());
        let (_, number) = idle.max_by_key(|it| it.count)?.idle.first()?;
        Some(*number)
    }
}

/// The place of one connection, given back at its end.
pub(crate) struct Connection {
    connections: Arc<Connections>,
    number: u64,
    close: CancellationToken,
}

impl Connection {
    /// Cancelled when it has to give way.
    pub(crate) fn close(&self) -> &CancellationToken {
        &self.close
    }

    /// Keeps its place until the returned value is dropped: a request is served.
    pub(crate) fn serves(self: &Arc<Self>) -> Serving {
        lock(&self.connections.open).serve(self.number, |serving| serving + 1);
        Serving(self.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(self.number);
    }
}

/// A request that is being served.
pub(crate) struct Serving(Arc<Connection>);

impl Drop for Serving {
    fn drop(&mut self) {
        let Connection {
            connections,
            number,
            ..
        } = &*self.0;
        lock(&connections.open).serve(*number, |serving| serving - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(most: usize, limits: Arc<LimitCounters>) -> Arc<Connections> {
        Connections::new(most, ManagerLimit::Connections, limits)
    }

    fn peer(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    async fn next_moment() {
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_most_gives_way_with_what_is_idle_longest() {
        let limits = Arc::<LimitCounters>::default();
        let connections = connections(4, limits.clone());
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
        let connections = connections(2, Arc::default());
        let busy = [1, 2].map(|number| connections.enter(peer(number)).unwrap());
        let serving = busy.each_ref().map(|it| [it.serves(), it.serves()]);
        assert!(connections.enter(peer(3)).is_none());
        // One of two requests ends: the other one keeps the place.
        let [[one, still], other] = serving;
        drop(one);
        assert!(connections.enter(peer(3)).is_none());
        drop((still, other, busy));
        assert!(lock(&connections.open).peers.is_empty());
        let again = [3, 4].map(|number| connections.enter(peer(number)));
        assert!(again.iter().all(Option::is_some));
    }
}
