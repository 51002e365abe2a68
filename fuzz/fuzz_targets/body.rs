#![no_main]
//! A chunked body ends at the same byte however it is cut, and never behind the bytes it was given.
use fuzz::http1::body::{Body, Chunk};
use libfuzzer_sys::fuzz_target;

fn end(bytes: &[u8], step: usize) -> (usize, bool, bool) {
    let mut body = Body::Chunked(Chunk::Start);
    let mut at = 0;
    while at < bytes.len() && !body.is_done() {
        let piece = &bytes[at..(at + step).min(bytes.len())];
        match body.advance(piece) {
            Ok(used) => {
                assert!(used <= piece.len() && (used == piece.len() || body.is_done()));
                at += used;
            }
            Err(bad) => return (at + bad.sound, false, true),
        }
    }
    (at, body.is_done(), false)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    assert_eq!(end(bytes, bytes.len().max(1)), end(bytes, 1 + usize::from(step)));
});
