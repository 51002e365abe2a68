//! Routing one request past 1, 10, 50 and 200 rules that do not match it.
#![allow(missing_docs)]

#[path = "support/rules.rs"]
mod rules;
#[path = "support/samples.rs"]
mod samples;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use traffic_core::http1::head::{Kind, Parser, Step};

fn decide(c: &mut Criterion) {
    let Ok(Step::Complete(head)) = Parser::new(Kind::Request).parse(samples::BROWSER) else {
        unreachable!("the sample is a whole head")
    };
    let request = head.request(samples::BROWSER);
    let mut group = c.benchmark_group("decide");
    for (kind, regex) in [("exact", false), ("regex", true)] {
        for n in [1, 10, 50, 200] {
            let table = rules::table(n, regex);
            group.bench_function(format!("{n} {kind}"), |b| {
                b.iter(|| black_box(table.decide(black_box(&request))).is_app());
            });
        }
    }
}

trait IsApp {
    fn is_app(&self) -> bool;
}

impl IsApp for traffic_core::routing::Decision<'_> {
    fn is_app(&self) -> bool {
        matches!(self, Self::App)
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
