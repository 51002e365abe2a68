#![no_main]
//! Frame headers are the same however the bytes are cut, and an announced boundary is one.
use traffic_core::http2::frames::{FrameHeader, FrameScanner};
use libfuzzer_sys::fuzz_target;

fn heads(mut tracker: FrameScanner, bytes: &[u8], step: usize) -> (Vec<FrameHeader>, bool) {
    let mut seen = Vec::new();
    for piece in bytes.chunks(step) {
        tracker.follow(piece, |head| seen.push(head));
    }
    (seen, tracker.at_boundary())
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, client, bytes) = input;
    let new = || if client { FrameScanner::client() } else { FrameScanner::server() };
    assert_eq!(heads(new(), bytes, bytes.len().max(1)), heads(new(), bytes, 1 + usize::from(step)));
    if let Some(at) = new().next_boundary(bytes) {
        assert!(at <= bytes.len() && heads(new(), &bytes[..at], 7).1);
    }
    let _ = new().peek(bytes);
});
