//! Tunnel payloads: decoding never panics, and a decoded message encodes to one that decodes alike.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use traffic_proto::tunnel::{MAX_STREAM_TIMEOUT, Message};

fuzz_target!(|payload: &[u8]| {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(payload)) else { return };
    // Durations beyond the longest are cut on encoding, by design.
    if let Message::StreamInfo(info) = &message
        && (info.roundtrip_latency > MAX_STREAM_TIMEOUT || info.dial_timeout > MAX_STREAM_TIMEOUT)
    {
        return;
    }
    assert_eq!(Message::decode(message.encode()), Ok(message));
});
