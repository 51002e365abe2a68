//! The relay between two socket pairs: one small message there and back, and bulk, spliced and
//! copied.
#![allow(missing_docs)]

#[path = "support/port.rs"]
mod port;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use agent_testkit::app::socket_pair;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use traffic_agent::io::conn::{Conn, Io};
use traffic_agent::io::relay;
use traffic_agent::io::relay::PendingBytes;
use traffic_agent::telemetry::metrics::PortMetrics;

const BULK: usize = 16 << 20;

/// A socket that looks like TLS to the relay: no splicing.
struct Unspliced(TcpStream);

impl AsyncRead for Unspliced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unspliced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Io for Unspliced {
    fn abort(&mut self) {
        self.0.abort();
    }
}

async fn relayed(spliced: bool) -> (TcpStream, TcpStream) {
    let ((caller, down), (up, app)) = (socket_pair().await, socket_pair().await);
    let (mut down, mut up) = if spliced {
        (Conn::Tcp(down), Conn::Tcp(up))
    } else {
        (
            Conn::Other(Box::new(Unspliced(down))),
            Conn::Other(Box::new(Unspliced(up))),
        )
    };
    tokio::spawn(async move {
        relay::both(
            &mut down,
            &mut up,
            PendingBytes::default(),
            &PortMetrics::default(),
        )
        .await;
    });
    (caller, app)
}

fn relay_pairs(c: &mut Criterion) {
    let runtime = port::runtime();
    let mut group = c.benchmark_group("relay");
    let (mut caller, mut app) = runtime.block_on(relayed(true));
    group.bench_function("64 B there and back", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut buf = [7; 64];
                caller.write_all(&buf).await.expect("write");
                app.read_exact(&mut buf).await.expect("read");
                app.write_all(&buf).await.expect("write");
                caller.read_exact(&mut buf).await.expect("read");
            });
        });
    });
    group
        .throughput(Throughput::Bytes(BULK as u64))
        .sample_size(20);
    for (name, spliced) in [("16 MiB spliced", true), ("16 MiB copied", false)] {
        let (mut caller, mut app) = runtime.block_on(relayed(spliced));
        let (sent, mut seen) = (vec![1; BULK], vec![0; BULK]);
        group.bench_function(name, |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let (wrote, read) =
                        tokio::join!(caller.write_all(&sent), app.read_exact(&mut seen));
                    wrote.expect("write");
                    read.expect("read");
                });
            });
        });
    }
}

criterion_group!(benches, relay_pairs);
criterion_main!(benches);
