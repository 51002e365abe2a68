#![no_main]
//! Header blocks mean the same to a second decoder, and to one that only follows them.
use libfuzzer_sys::fuzz_target;
use traffic_core::http2::hpack::{Decoder, FieldList};

fuzz_target!(|blocks: Vec<&[u8]>| {
    let (mut decoder, mut follower) = (Decoder::default(), Decoder::default());
    let mut other = fluke_hpack::Decoder::new();
    for block in blocks {
        let mut list = FieldList::default();
        decoder.peek(block, &mut FieldList::default());
        if decoder.decode(block, &mut list).is_err() {
            return;
        }
        assert!(follower.follow(block).is_ok());
        assert_eq!(decoder.heap() == 0, follower.heap() == 0);
        let Ok(theirs) = other.decode(block) else { return };
        if list.has_overflowed() {
            return;
        }
        let ours: Vec<_> = list.iter().map(|f| (f.name.to_vec(), f.value.to_vec())).collect();
        assert_eq!(ours, theirs);
    }
});
