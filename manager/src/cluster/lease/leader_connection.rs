//! The connection by which a waiting manager notices the end of the one that leads: the kernel closes
//! it together with the process, while the lease takes seconds to run out.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Time for a connection. An address that is gone from the network is reported within three
/// seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause after a connection has ended: who only closes it is not asked all the time.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// A connection to the API of the manager that leads.
#[derive(Default)]
pub(super) struct LeaderConnection {
    leader: Option<SocketAddr>,
    held: Option<TcpStream>,
    /// It has been held once, so the address and the port are right and no policy is in the way.
    was_held: bool,
}

impl LeaderConnection {
    /// Connects to the manager that leads. Returns true if it was there and is not any more: nobody
    /// listens on its port. A connection that only takes long says nothing.
    pub(super) async fn follow(&mut self, leader: Option<IpAddr>, port: u16) -> bool {
        let leader = leader.map(|address| SocketAddr::new(address, port));
        if self.leader != leader {
            *self = Self {
                leader,
                ..Self::default()
            };
        }
        let (Some(leader), None) = (leader, &self.held) else {
            return false;
        };
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(leader)).await {
            Ok(Ok(stream)) => {
                (self.held, self.was_held) = (Some(stream), true);
                false
            }
            Ok(Err(_)) => self.was_held,
            Err(_) => false,
        }
    }

    /// Resolves when the connection has ended, for whatever reason; never without one.
    pub(super) async fn ended(&mut self) {
        let Some(stream) = &mut self.held else {
            return std::future::pending().await;
        };
        while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
        self.held = None;
        sleep(RECONNECT_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    const LOOPBACK: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    #[tokio::test]
    async fn a_leader_that_was_there_and_is_not_any_more_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut connection = LeaderConnection::default();
        assert!(!connection.follow(LOOPBACK, port).await);
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(!connection.follow(LOOPBACK, port).await, "held");
        // Closed by a process that goes on.
        drop(accepted);
        connection.ended().await;
        assert!(!connection.follow(LOOPBACK, port).await, "held again");
        let (accepted, _) = listener.accept().await.unwrap();
        drop((accepted, listener));
        connection.ended().await;
        assert!(connection.follow(LOOPBACK, port).await);
        assert!(connection.follow(LOOPBACK, port).await, "still so");
        // Nothing is said of the next one, which is not reached.
        let another = Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
        assert!(!connection.follow(another, port).await);
    }

    #[tokio::test]
    async fn a_leader_that_was_never_reached_is_left_to_its_lease() {
        let mut connection = LeaderConnection::default();
        let port = harness::ports::free();
        assert!(!connection.follow(None, port).await);
        assert!(!connection.follow(LOOPBACK, port).await);
        assert!(!connection.follow(LOOPBACK, port).await);
        let ended = timeout(Duration::from_millis(20), connection.ended()).await;
        assert!(ended.is_err(), "there is nothing that could end");
    }
}
