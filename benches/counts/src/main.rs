//! Single operations to be counted in instructions: `counts OPERATION TIMES`. Each is a separate
//! function, so that callgrind can count inside it alone; `benches/counts.py` does so and compares.
#![allow(missing_docs)]

#[path = "../../support/rules.rs"]
mod rules;
#[path = "../../support/samples.rs"]
mod samples;

use std::hint::black_box;
use std::time::Duration;

use traffic_core::sniff::classify;
use traffic_core::http1::body::{Body, Chunk};
use traffic_core::http1::head::{Kind, Parser, Step};
use traffic_core::routing::RouteTable;
use traffic_proto::conn_id::ConnId;
use traffic_proto::port::Transport;
use traffic_proto::tunnel::{Message, StreamInfo, normal_from};

/// Runs the operation; only instructions inside are counted.
#[inline(never)]
fn counted(operation: &mut dyn FnMut()) {
    operation();
}

fn head(bytes: &'static [u8], kind: Kind) -> Box<dyn FnMut()> {
    Box::new(move || {
        let _ = black_box(Parser::new(kind).parse(black_box(bytes)));
    })
}

fn decide(table: RouteTable) -> Box<dyn FnMut()> {
    let Ok(Step::Complete(head)) = Parser::new(Kind::Request).parse(samples::BROWSER) else {
        unreachable!("the sample is a whole head")
    };
    Box::new(move || {
        let request = head.request(samples::BROWSER);
        black_box(matches!(table.decide(black_box(&request)), traffic_core::routing::Decision::App));
    })
}

fn operation(name: &str) -> Option<Box<dyn FnMut()>> {
    let (source, destination) = (([10, 1, 2, 3], 50_000).into(), ([127, 0, 0, 1], 8080).into());
    let conn_id = ConnId::new(Transport::Tcp, source, destination);
    let info = StreamInfo::new(conn_id, "0af76519-16cd-43dd-8448-eb211c80319c", Duration::from_secs(4), Duration::ZERO);
    let info = Message::StreamInfo(info);
    Some(match name {
        "prefix_http1" => Box::new(|| {
            black_box(classify(black_box(samples::BROWSER)));
        }),
        "head_curl" => head(samples::CURL, Kind::Request),
        "head_browser" => head(samples::BROWSER, Kind::Request),
        "head_gateway" => head(samples::GATEWAY, Kind::Request),
        "head_8k" => head(samples::large().leak(), Kind::Request),
        "head_answer" => head(samples::ANSWER, Kind::Response),
        "body_chunked" => {
            let body = samples::chunked();
            Box::new(move || {
                let _ = black_box(Body::Chunked(Chunk::Start).advance(black_box(&body)));
            })
        }
        "decide_1_exact" => decide(rules::table(1, false)),
        "decide_10_exact" => decide(rules::table(10, false)),
        "decide_50_exact" => decide(rules::table(50, false)),
        "decide_200_exact" => decide(rules::table(200, false)),
        "decide_1_regex" => decide(rules::table(1, true)),
        "decide_10_regex" => decide(rules::table(10, true)),
        "decide_50_regex" => decide(rules::table(50, true)),
        "decide_1_cookie" => decide(rules::structured("cookie[user]", "developer0")),
        "decide_1_baggage" => decide(rules::structured("baggage[user]", "developer0")),
        "codec_encode_info" => Box::new(move || {
            black_box(black_box(&info).encode());
        }),
        "codec_decode_info" => {
            let encoded = info.encode();
            Box::new(move || {
                let _ = black_box(Message::decode(black_box(encoded.clone())));
            })
        }
        "codec_encode_4k" => Box::new(|| {
            black_box(normal_from(black_box(&[1; 4096])));
        }),
        "codec_decode_4k" => {
            let encoded = normal_from(&[1; 4096]);
            Box::new(move || {
                let _ = black_box(Message::decode(black_box(encoded.clone())));
            })
        }
        _ => return None,
    })
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (name, times) = (args.next().unwrap_or_default(), args.next().and_then(|n| n.parse().ok()).unwrap_or(0));
    let Some(mut operation) = operation(&name) else {
        eprintln!("usage: counts OPERATION TIMES");
        std::process::exit(64);
    };
    // Lazy initialisation is no part of the operation.
    operation();
    for _ in 0..times {
        counted(&mut operation);
    }
}
