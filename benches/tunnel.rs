//! Tunnel messages, and a whole tunnel over a real gRPC connection on loopback.
#![allow(missing_docs)]

#[path = "support/port.rs"]
mod port;

use std::hint::black_box;
use std::time::Duration;

use agent_testkit::grpc::tunnel_pair;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use traffic_proto::conn_id::ConnId;
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo, normal_from};

const BULK: usize = 16 << 20;

fn codec(c: &mut Criterion) {
    let (source, destination) = (
        ([10, 1, 2, 3], 50_000).into(),
        ([127, 0, 0, 1], 8080).into(),
    );
    let conn_id = ConnId::new(Transport::Tcp, source, destination);
    let info = StreamInfo::new(
        conn_id,
        "0af76519-16cd-43dd-8448-eb211c80319c",
        Duration::from_secs(4),
        Duration::ZERO,
    );
    let info = Message::StreamInfo(info);
    let encoded = info.encode();
    let data = vec![1; 64 << 10];
    let message = normal_from(&data);
    let mut group = c.benchmark_group("codec");
    group.bench_function("encode StreamInfo", |b| {
        b.iter(|| black_box(&info).encode())
    });
    group.bench_function("decode StreamInfo", |b| {
        b.iter(|| Message::decode(black_box(&encoded).clone()))
    });
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("encode 64KiB", |b| b.iter(|| normal_from(black_box(&data))));
    group.bench_function("decode 64KiB", |b| {
        b.iter(|| Message::decode(black_box::<&Bytes>(&message).clone()))
    });
}

fn whole(c: &mut Criterion) {
    let runtime = port::runtime();
    let (mut workstation, mut agent) = runtime.block_on(tunnel_pair(true));
    let mut group = c.benchmark_group("tunnel");
    group.bench_function("64 B there and back", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let mut buf = [7; 64];
                agent.write_all(&buf).await.expect("write");
                workstation.read_exact(&mut buf).await.expect("read");
                workstation.write_all(&buf).await.expect("write");
                agent.read_exact(&mut buf).await.expect("read");
            });
        });
    });
    group
        .throughput(Throughput::Bytes(BULK as u64))
        .sample_size(20);
    let (sent, mut seen) = (vec![1; BULK], vec![0; BULK]);
    group.bench_function("16 MiB to the workstation", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let (wrote, read) =
                    tokio::join!(agent.write_all(&sent), workstation.read_exact(&mut seen));
                wrote.expect("write");
                read.expect("read");
            });
        });
    });
    group.bench_function("16 MiB from the workstation", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let (wrote, read) =
                    tokio::join!(workstation.write_all(&sent), agent.read_exact(&mut seen));
                wrote.expect("write");
                read.expect("read");
            });
        });
    });
}

criterion_group!(benches, codec, whole);
criterion_main!(benches);
