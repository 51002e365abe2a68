//! Text of the alphabet that URLs and header fields can carry (RFC 4648 section 5), without
//! padding.

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

/// Encodes bytes.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity((bytes.len() * 4).div_ceil(3));
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        // A byte takes two characters, and each further one another.
        for at in 0..=group.len() {
            let six = bits >> (18 - 6 * at) & 63;
            text.push(char::from(ALPHABET[six as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{decode, encode};

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

    #[test]
    fn bytes_of_every_length_come_back() {
        for (bytes, wanted) in [
            (&b""[..], ""),
            (b"\x01", "AQ"),
            (b"\x01\x02", "AQI"),
            (b"\x01\x02\x03", "AQID"),
            (b"\xfb\xff\xbf\xff", "-_-__w"),
        ] {
            assert_eq!(encode(bytes), wanted);
            assert_eq!(decode(wanted.as_bytes()).as_deref(), Some(bytes));
        }
    }
}
