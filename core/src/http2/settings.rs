//! SETTINGS as they concern who stands between (RFC 9113 section 6.5.2).

use traffic_proto::base64url::decode;

/// `SETTINGS_HEADER_TABLE_SIZE`.
pub const HEADER_TABLE_SIZE: u16 = 0x1;
/// `SETTINGS_ENABLE_PUSH`.
pub const ENABLE_PUSH: u16 = 0x2;
/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
/// `SETTINGS_MAX_FRAME_SIZE`.
pub const MAX_FRAME_SIZE: u16 = 0x5;
/// `SETTINGS_MAX_HEADER_LIST_SIZE`.
pub const MAX_HEADER_LIST_SIZE: u16 = 0x6;

/// The settings of a frame's payload, in order.
pub fn entries(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload.chunks_exact(6).filter_map(|entry| match *entry {
        [i0, i1, v0, v1, v2, v3] => Some((
            u16::from_be_bytes([i0, i1]),
            u32::from_be_bytes([v0, v1, v2, v3]),
        )),
        _ => None,
    })
}

/// Reads the payload that the request header `HTTP2-Settings` carries (RFC 7540 section 3.2.1):
/// base64url without padding.
#[must_use]
pub fn from_upgrade(value: &[u8]) -> Option<Vec<u8>> {
    decode(value).filter(|payload| payload.len() % 6 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_in_order_and_a_rest_is_left_alone() {
        let payload = b"\0\x03\0\0\0\x64\0\x04\0\x01\0\0\0\x05\0";
        let read: Vec<_> = entries(payload).collect();
        assert_eq!(read, [(3, 100), (4, 65_536)]);
    }

    #[test]
    fn settings_of_an_upgrade_are_base64url() {
        let payload = from_upgrade(b"AAMAAABkAAQBAAAAAAIAAAAA").unwrap();
        let read: Vec<_> = entries(&payload).collect();
        assert_eq!(read, [(3, 100), (4, 1 << 24), (2, 0)]);
        assert_eq!(from_upgrade(b""), Some(vec![]));
        assert_eq!(from_upgrade(b"AAM"), None);
        assert_eq!(from_upgrade(b"AA MAAABk"), None);
    }
}
