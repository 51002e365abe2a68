#![no_main]
//! Header sections are the same however the bytes are cut, and the rewriter of authorities says the
//! same however they come.
use libfuzzer_sys::fuzz_target;
use traffic_core::http2::authority::AuthorityRewriter;
use traffic_proto::rewrite::Rewrite as _;
use traffic_core::http2::frames::{FrameHeader, HEAD};
use traffic_core::http2::section::{self, Extent};

fn rewritten(bytes: &[u8], step: usize) -> Vec<u8> {
    let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
    for piece in bytes.chunks(step) {
        rewriter.rewrite(piece, &mut out);
    }
    // What waits until the server has read.
    loop {
        let mut more = Vec::new();
        rewriter.rewrite(&[], &mut more);
        if more.is_empty() {
            return out;
        }
        out.append(&mut more);
    }
}

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    if let Some(head) = bytes.first_chunk::<HEAD>() {
        let head = FrameHeader::parse(*head);
        assert_eq!(FrameHeader::parse(head.encode()), head);
    }
    let extent = section::extent(bytes);
    let mut joined = Vec::new();
    if let Extent::Whole(n) = extent {
        assert!(n <= bytes.len());
        for cut in 0..n.min(64) {
            assert_eq!(section::extent(&bytes[..cut]), Extent::More);
        }
        if let Some(section) = section::read(&bytes[..n], &mut joined) {
            let (head, mut out, mut again) = (section.head, Vec::new(), Vec::new());
            section::write(head.stream, head.ends_stream(), section.block, &mut out);
            let read = section::read(&out, &mut again).expect("what was written is a section");
            assert_eq!(read.block, section.block);
        }
    }
    assert_eq!(rewritten(bytes, bytes.len().max(1)), rewritten(bytes, 1 + usize::from(step)));
});
