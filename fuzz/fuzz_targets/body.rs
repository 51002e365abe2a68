#![no_main]
//! Chunked bodies: the end does not depend on how the bytes are cut, and a second parser of size
//! lines finds the same.

use libfuzzer_sys::fuzz_target;
use traffic_core::http1::body::{Body, Chunk, Malformed};

fn end_of(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, Malformed> {
    let mut body = Body::Chunked(Chunk::Start);
    let mut at = 0;
    for end in cuts.iter().copied().chain([bytes.len()]) {
        while at < end && !body.is_done() {
            at += body.advance(&bytes[at..end]).map_err(|m| Malformed { sound: at + m.sound })?;
        }
    }
    Ok(body.is_done().then_some(at))
}

fn second_reader(mut bytes: &[u8]) -> Option<usize> {
    let whole = bytes.len();
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(bytes) else { return None };
        bytes = &bytes[line..];
        if size == 0 {
            while !bytes.starts_with(b"\r\n") {
                let end = bytes.windows(2).position(|w| w == b"\r\n")?;
                bytes = &bytes[end + 2..];
            }
            return Some(whole - bytes.len() + 2);
        }
        bytes = bytes.get(usize::try_from(size).ok()?..)?.strip_prefix(b"\r\n")?;
    }
}

fuzz_target!(|input: (Vec<u16>, Vec<u8>)| {
    let (mut cuts, bytes) = (input.0.iter().map(|c| usize::from(*c) % (input.1.len() + 1)).collect::<Vec<_>>(), input.1);
    cuts.sort_unstable();
    let whole = end_of(&bytes, &[]);
    assert_eq!(whole, end_of(&bytes, &cuts));
    if let (Ok(Some(ours)), Some(theirs)) = (whole, second_reader(&bytes)) {
        assert_eq!(ours, theirs);
    }
});
