//! What has to be said between the frames of the `h2` library, or instead of them, where the
//! library has no word for it: the first step of a graceful GOAWAY, a limit of streams that
//! changes, `https` without an authority. Pure; the connection below the library
//! ([`super::watched`]) writes what is found here.

use traffic_core::http2::frames;
use traffic_core::http2::frames::{FrameHeader, FrameScanner, HEAD, Next, kind};

/// `SETTINGS_MAX_CONCURRENT_STREAMS` (RFC 9113 section 6.5.2).
pub(crate) const MAX_STREAMS: u16 = 0x3;
const INITIAL_WINDOW: u16 = 0x4;
/// `:scheme: http` and `:scheme: https` in HPACK's static table (RFC 7541 appendix A).
const SCHEME_HTTP: u8 = 0x86;
const SCHEME_HTTPS: u8 = 0x87;

/// Where in `bytes`, which follow what `out` has followed, a frame begins that is `wanted`; their
/// length if none does.
pub(crate) fn find(
    out: &FrameScanner,
    bytes: &[u8],
    wanted: impl Fn(FrameHeader) -> bool,
) -> usize {
    let (mut out, mut at) = (*out, 0);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        if let Next::Frame(head) = out.peek(rest)
            && wanted(head)
        {
            return at;
        }
        at += out.step(rest).0;
    }
    at
}

/// The frame to be sent for the library's SETTINGS at the front of `bytes`, and how many bytes it
/// stands for: with `limit` as the most streams at a time. The library tells that once, in its
/// first SETTINGS; what it can say again later is the initial window, so a frame with nothing but
/// that one becomes the new limit.
pub(crate) fn limited(bytes: &[u8], limit: u32) -> Option<Vec<u8>> {
    let head = FrameHeader::parse(*bytes.first_chunk()?);
    let mut ours = bytes.get(..HEAD + head.length as usize)?.to_vec();
    let alone = head.length == 6;
    for setting in ours.get_mut(HEAD..)?.chunks_exact_mut(6) {
        if let [i0, i1, value @ ..] = setting {
            let id = u16::from_be_bytes([*i0, *i1]);
            if id == MAX_STREAMS || (alone && id == INITIAL_WINDOW) {
                [*i0, *i1] = MAX_STREAMS.to_be_bytes();
                value.copy_from_slice(&limit.to_be_bytes());
                return Some(ours);
            }
        }
    }
    None
}

/// Whether a frame tells the library's settings.
pub(crate) fn is_settings(head: FrameHeader) -> bool {
    head.kind == kind::SETTINGS && head.flags & frames::ACK == 0
}

/// The beginning of the HEADERS at the front of `bytes` with the scheme `https` instead of `http`.
/// The library drops the scheme of a request without an authority, and writes `http`.
pub(crate) fn secured(bytes: &[u8]) -> Option<Vec<u8>> {
    let at = HEAD + second_field(bytes.get(HEAD..)?)?;
    if *bytes.get(at)? != SCHEME_HTTP {
        return None;
    }
    let mut ours = bytes.get(..at)?.to_vec();
    ours.push(SCHEME_HTTPS);
    Some(ours)
}

/// Where the second field of a header section begins, in the forms that the library writes: changes
/// of the table's size, then `:method` from a table or as a literal with a name from a table (RFC
/// 7541 section 6).
fn second_field(section: &[u8]) -> Option<usize> {
    let mut at = 0;
    while section.get(at)? & 0xe0 == 0x20 {
        at += integer(section.get(at..)?, 0x1f)?;
    }
    let first = *section.get(at)?;
    if first & 0x80 != 0 {
        return Some(at + integer(section.get(at..)?, 0x7f)?);
    }
    let prefix = if first & 0x40 != 0 { 0x3f } else { 0x0f };
    at += integer(section.get(at..)?, prefix)?;
    // Methods are short: their length is in the prefix.
    let length = usize::from(section.get(at)? & 0x7f);
    (length < 0x7f).then_some(at + 1 + length)
}

/// Bytes of an integer whose prefix has the bits of `mask`.
fn integer(bytes: &[u8], mask: u8) -> Option<usize> {
    if bytes.first()? & mask != mask {
        return Some(1);
    }
    let more = bytes
        .iter()
        .skip(1)
        .take_while(|byte| **byte & 0x80 != 0)
        .count();
    Some(2 + more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let head = FrameHeader {
            length: payload.len() as u32,
            kind,
            flags: 0,
            stream: 0,
        };
        [&head.encode()[..], payload].concat()
    }

    #[test]
    fn a_limit_takes_the_place_of_the_librarys_or_of_a_lone_window() {
        let first = frame(kind::SETTINGS, b"\0\x03\0\0\x10\0\0\x04\0\x02\0\0");
        assert_eq!(
            limited(&first, 7),
            Some(frame(kind::SETTINGS, b"\0\x03\0\0\0\x07\0\x04\0\x02\0\0"))
        );
        let later = frame(kind::SETTINGS, b"\0\x04\0\x02\0\0");
        assert_eq!(
            limited(&later, 0),
            Some(frame(kind::SETTINGS, b"\0\x03\0\0\0\0"))
        );
        assert_eq!(
            limited(
                &frame(kind::SETTINGS, b"\0\x04\0\x02\0\0\0\x06\0\0\0\x01"),
                0
            ),
            None
        );
        assert_eq!(limited(&first[..12], 7), None);
    }

    #[test]
    fn the_scheme_is_found_behind_every_form_of_a_method() {
        for method in [
            &b"\x82"[..],
            b"\x42\x03PUT",
            b"\x02\x03PUT",
            b"\xbe",
            b"\x20\x82",
            b"\x3f\xe1\x1f\x83",
        ] {
            let section = [method, b"\x86\x84"].concat();
            let expected = [method, b"\x87"].concat();
            let ours = secured(&frame(kind::HEADERS, &section)).expect("a scheme");
            assert_eq!(&ours[HEAD..], expected);
        }
        assert_eq!(secured(&frame(kind::HEADERS, b"\x82\x87\x84")), None);
        assert_eq!(secured(&frame(kind::HEADERS, b"")), None);
    }

    #[test]
    fn a_frame_is_found_behind_others_and_never_inside_one() {
        let bytes = [frame(kind::PING, b"12345678"), frame(kind::SETTINGS, b"")].concat();
        assert_eq!(find(&FrameScanner::server(), &bytes, is_settings), 17);
        let mut inside = FrameScanner::server();
        inside.follow(&frame(kind::DATA, &[0; 30])[..15], |_| {});
        assert_eq!(find(&inside, &bytes, is_settings), bytes.len());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = (limited(&bytes, 1), secured(&bytes), find(&FrameScanner::client(), &bytes, is_settings));
        }
    }
}
