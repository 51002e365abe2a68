//! Classifying first bytes as HTTP/1, HTTP/2, TLS or other.
#![allow(missing_docs)]

#[path = "support/samples.rs"]
mod samples;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use traffic_core::sniff::{HTTP2_PREFACE, classify};

fn prefix(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefix");
    let samples: [(&str, &[u8]); 4] = [
        ("http1", samples::BROWSER),
        ("http2", HTTP2_PREFACE),
        ("tls", &[0x16, 3, 1, 2, 0, 1, 0, 1]),
        ("redis", b"*1\r\n$4\r\nPING\r\n"),
    ];
    for (name, bytes) in samples {
        group.bench_function(name, |b| b.iter(|| classify(black_box(bytes))));
    }
}

criterion_group!(benches, prefix);
criterion_main!(benches);
