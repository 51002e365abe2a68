//! SFTP packets: any bytes are parsed without a panic, and what is parsed lies within the packet.
#![no_main]
use libfuzzer_sys::fuzz_target;
use traffic_core::sftp::{Operation, parse};

fuzz_target!(|packet: &[u8]| {
    if let Ok(request) = parse(packet)
        && let Operation::Write { handle, data, .. } = request.operation
    {
        assert!(handle.len() + data.len() <= packet.len());
    }
});
