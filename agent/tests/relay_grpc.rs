//! The tunnel over a real gRPC connection, the agent being either side of the call.

#![allow(clippy::unwrap_used)]

use agent_testkit::WAIT_TIMEOUT;
use agent_testkit::grpc::tunnel_pair;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use traffic_agent::io::conn::Io;
use traffic_agent::upstream::tunnel::Tunnel;

/// `late` goes on after `early` has said it has no more data, and is dropped at once when it has
/// written all.
async fn nothing_is_lost(mut early: Tunnel, mut late: Tunnel) {
    const LEN: usize = 8 << 20;
    early.write_all(b"over").await.unwrap();
    early.shutdown().await.unwrap();
    let writer = tokio::spawn(async move {
        let mut seen = Vec::new();
        late.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"over");
        late.write_all(&vec![9; LEN]).await.unwrap();
        late.shutdown().await.unwrap();
    });
    let mut seen = Vec::new();
    timeout(WAIT_TIMEOUT, early.read_to_end(&mut seen))
        .await
        .expect("ends")
        .expect("ends properly");
    assert_eq!(seen.len(), LEN);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_writes_after_the_server_s_half_close_arrives_whole() {
    let (caller, server) = tunnel_pair(false).await;
    nothing_is_lost(server, caller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_writes_after_the_caller_s_half_close_arrives_whole() {
    let (caller, server) = tunnel_pair(false).await;
    nothing_is_lost(caller, server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_either_side_is_a_reset_at_the_other() {
    for server_resets in [true, false] {
        let (mut caller, mut server) = tunnel_pair(false).await;
        caller.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
        let (mut breaks, mut sees) = if server_resets {
            (server, caller)
        } else {
            (caller, server)
        };
        breaks.abort();
        drop(breaks);
        let error = timeout(WAIT_TIMEOUT, sees.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
