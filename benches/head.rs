//! Finding the end of HTTP/1 heads and bodies.
#![allow(missing_docs)]

#[path = "support/samples.rs"]
mod samples;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use traffic_core::http1::body::{Body, Chunk};
use traffic_core::http1::head::{Kind, Parser};

fn head(c: &mut Criterion) {
    let large = samples::large();
    let mut group = c.benchmark_group("head");
    let heads: [(&str, Kind, &[u8]); 5] = [
        ("curl", Kind::Request, samples::CURL),
        ("browser", Kind::Request, samples::BROWSER),
        ("grpc-gateway", Kind::Request, samples::GATEWAY),
        ("8KiB", Kind::Request, &large),
        ("answer", Kind::Response, samples::ANSWER),
    ];
    for (name, kind, bytes) in heads {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| Parser::new(kind).parse(black_box(bytes)))
        });
    }
}

fn body(c: &mut Criterion) {
    let mut group = c.benchmark_group("body");
    let chunked = samples::chunked();
    group.throughput(Throughput::Bytes(chunked.len() as u64));
    group.bench_function("chunked 64KiB", |b| {
        b.iter(|| Body::Chunked(Chunk::Start).advance(black_box(&chunked)));
    });
    group.bench_function("length 64KiB", |b| {
        b.iter(|| Body::Length(chunked.len() as u64).advance(black_box(&chunked)));
    });
}

criterion_group!(benches, head, body);
criterion_main!(benches);
