#![no_main]
//! A verdict goes from "need more" to its final value and never changes, however the bytes arrive.
use traffic_core::sniff::{FirstBytes, classify};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bytes = bytes.get(..256).unwrap_or(bytes);
    let mut settled = None;
    for cut in 0..=bytes.len() {
        let verdict = classify(&bytes[..cut]);
        match &settled {
            None if verdict != FirstBytes::NeedMore => settled = Some(verdict),
            None => {}
            Some(before) => assert_eq!(*before, verdict, "at {cut}"),
        }
    }
});
