//! A manager that waits for its turn passes connections on to the one that leads.
//!
//! So each replica is ready and may be called by anybody: rolling updates end, a
//! PodDisruptionBudget counts right, and nobody has to know which one leads.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::listen::bind_everywhere;

/// Connections that are passed on at the same time.
const MAX_RELAYED: usize = 4096;
/// Time for a connection to the manager that leads.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before accepting again when there are no descriptors left.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Passes connections of both ports on until it is dropped, which ends all of them.
pub(crate) async fn relay(
    api: &TcpListener,
    webhook_port: u16,
    mut leader: watch::Receiver<Option<IpAddr>>,
) -> Infallible {
    let webhook = match webhook_port {
        0 => None,
        port => bind_everywhere(port).await.ok(),
    };
    let mut relayed = JoinSet::new();
    loop {
        let (accepted, listener) = tokio::select! {
            // Who was passed on to another manager connects again.
            Ok(()) = leader.changed() => {
                relayed.abort_all();
                continue;
            }
            Some(_) = relayed.join_next() => continue,
            accepted = api.accept() => (accepted, Some(api)),
            accepted = accept(webhook.as_ref()) => (accepted, webhook.as_ref()),
        };
        let port = listener.and_then(|it| it.local_addr().ok());
        let target = *leader.borrow();
        match (accepted, target, port) {
            (Ok((stream, _)), Some(leader), Some(own)) if relayed.len() < MAX_RELAYED => {
                relayed.spawn(pass_on(stream, SocketAddr::new(leader, own.port())));
            }
            (Err(error), ..) => {
                tracing::warn!("a waiting manager cannot accept: {error}");
                sleep(ACCEPT_DELAY).await;
            }
            // Closed: nobody leads yet.
            _ => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn pass_on(mut stream: TcpStream, leader: SocketAddr) {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(leader)).await {
        Ok(Ok(mut onward)) => {
            let _ = (stream.set_nodelay(true), onward.set_nodelay(true));
            let _ = copy_bidirectional(&mut stream, &mut onward).await;
        }
        Ok(Err(error)) => tracing::debug!(%leader, "the leading manager is not reached: {error}"),
        Err(_) => tracing::debug!(%leader, "the leading manager does not answer"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn echo(listener: TcpListener) {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    }

    #[tokio::test]
    async fn connections_reach_the_leader_and_end_with_it() {
        // Another address of loopback stands for another pod.
        let waiting = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = waiting.local_addr().unwrap().port();
        let leading = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        tokio::spawn(echo(leading));
        let leader = watch::Sender::new(None);
        let follow = leader.subscribe();
        tokio::spawn(async move { relay(&waiting, 0, follow).await });
        let mut early = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(
            early.read(&mut [0; 4]).await.unwrap_or(0),
            0,
            "nobody leads"
        );
        leader.send_replace(Some([127, 0, 0, 2].into()));
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
        leader.send_replace(None);
        assert_eq!(stream.read(&mut answer).await.unwrap_or(0), 0, "it ended");
    }
}
