//! Integers with a prefix (RFC 7541 section 5.1).

use crate::http2::hpack::error::HpackError;

/// Octets behind the prefix beyond which an integer is refused: more than any value needs.
const MAX_OCTETS: u32 = 9;

/// Reads an integer whose prefix has `bits` bits, and says how many bytes it took.
pub(super) fn decode(bytes: &[u8], bits: u32) -> Result<(usize, usize), HpackError> {
    let mask = (1u64 << bits) - 1;
    let (first, rest) = bytes.split_first().ok_or(HpackError::Truncated)?;
    let mut value = u64::from(*first) & mask;
    if value < mask {
        // Below 2^8.
        return Ok((value as usize, 1));
    }
    for (n, byte) in (0..MAX_OCTETS).zip(rest) {
        // At most 7 * 8 + 7 bits, so nothing is shifted out.
        value += u64::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).map_err(|_| HpackError::Integer)?;
            return Ok((value as usize, 2 + n as usize));
        }
    }
    Err(if rest.len() < MAX_OCTETS as usize {
        HpackError::Truncated
    } else {
        HpackError::Integer
    })
}

/// Writes an integer behind the bits of `pattern`, which its prefix of `bits` bits leaves free.
pub(super) fn encode(mut value: usize, bits: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = (1usize << bits) - 1;
    if value < mask {
        // Below 2^8.
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    value -= mask;
    while value >= 0x80 {
        // Seven bits and the mark that more follows.
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_standard_hold() {
        let mut out = Vec::new();
        encode(10, 5, 0, &mut out);
        encode(1337, 5, 0xe0, &mut out);
        encode(42, 8, 0, &mut out);
        assert_eq!(out, [10, 0xff, 0x9a, 0x0a, 42]);
        assert_eq!(decode(&out[1..], 5), Ok((1337, 3)));
    }

    #[test]
    fn what_is_too_long_too_large_or_cut_is_refused() {
        assert_eq!(decode(&[], 7), Err(HpackError::Truncated));
        assert_eq!(decode(&[0x7f], 7), Err(HpackError::Truncated));
        assert_eq!(decode(&[0x7f, 0x80, 0x80], 7), Err(HpackError::Truncated));
        assert_eq!(decode(&[0x7f; 12], 7), Ok((0x7f + 0x7f, 2)));
        assert_eq!(decode(&[0xff; 12], 7), Err(HpackError::Integer));
        let zeros = [&[0x7f][..], &[0x80; 9], &[0]].concat();
        assert_eq!(decode(&zeros, 7), Err(HpackError::Integer));
        let large = [0x7f, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert_eq!(decode(&large, 7), Err(HpackError::Integer));
    }

    proptest! {
        #[test]
        fn an_integer_reads_back_as_it_was_written(value in 0u32.., bits in 4u32..=7) {
            let mut out = Vec::new();
            encode(value as usize, bits, 0, &mut out);
            prop_assert_eq!(decode(&out, bits), Ok((value as usize, out.len())));
        }
    }
}
