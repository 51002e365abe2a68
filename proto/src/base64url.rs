//! Text of the alphabet that URLs and header fields can carry (RFC 4648 section 5), without padding.

/// Decodes a text; space around it and padding behind it are left alone. None if another character
/// is in it.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut have) = (0u32, 0);
    for byte in text.trim_ascii() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn texts_of_every_length_are_decoded() {
        for (text, wanted) in [
            ("", &b""[..]),
            ("AQ", b"\x01"),
            ("AQI", b"\x01\x02"),
            (" AQID ", b"\x01\x02\x03"),
            ("-_-_", b"\xfb\xff\xbf"),
            ("AQ==", b"\x01"),
        ] {
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(wanted), "{text:?}");
        }
        assert_eq!(decode(b"A.B"), None);
    }
}
