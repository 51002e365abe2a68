//! The Huffman code of RFC 7541 appendix B. The code is canonical (longer codes come behind shorter
//! ones, and in the order of their symbols), so the lengths are all there is to know.

/// The end of a string, which must not be written out.
const EOS: usize = 256;

/// Bits of the code of every byte, and of [`EOS`].
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, // 0x00
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, // 0x10
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, // 0x20
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, // 0x30
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, // 0x40
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, // 0x50
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, // 0x60
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, // 0x70
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, // 0x80
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, // 0x90
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, // 0xa0
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, // 0xb0
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, // 0xc0
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, // 0xd0
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, // 0xe0
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, // 0xf0
    30, // EOS
];

const LONGEST: usize = 30;
/// Bits that one look into [`Code::short`] decides.
const SHORT: u32 = 9;

struct Code {
    /// The code of every symbol, in its lowest bits.
    codes: [u32; 257],
    /// Symbols by their code.
    symbols: [u16; 257],
    /// For each length, the first code behind those of the length, in the highest bits of 32, and
    /// what to take from a code of the length to find its symbol's place.
    ends: [(u64, u32); LONGEST + 1],
    /// The symbol and length of the code at the front of so many bits; length 0 where it is longer.
    short: [(u8, u8); 1 << SHORT],
}

const CODE: Code = build();
static TABLES: Code = CODE;

const fn build() -> Code {
    let mut code = Code {
        codes: [0; 257],
        symbols: [0; 257],
        ends: [(0, 0); LONGEST + 1],
        short: [(0, 0); 1 << SHORT],
    };
    let (mut next, mut place, mut length) = (0u32, 0usize, 1usize);
    while length <= LONGEST {
        next <<= 1;
        let offset = next.wrapping_sub(place as u32);
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.codes[symbol] = next;
                code.symbols[place] = symbol as u16;
                if length <= SHORT as usize {
                    let free = SHORT as usize - length;
                    let mut n = 0;
                    while n < 1 << free {
                        code.short[((next as usize) << free) + n] = (symbol as u8, length as u8);
                        n += 1;
                    }
                }
                next += 1;
                place += 1;
            }
            symbol += 1;
        }
        code.ends[length] = ((next as u64) << (32 - length), offset);
        length += 1;
    }
    code
}

/// A string that is none of the code: an end of string within it, or padding that is no beginning
/// of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHuffman;

/// Appends what `bytes` stand for.
pub(super) fn decode(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), BadHuffman> {
    out.reserve(bytes.len() + bytes.len() / 2);
    // Bits that were read and not used, in the highest bits; how many.
    let (mut bits, mut have, mut rest) = (0u64, 0u32, bytes.iter());
    loop {
        while have <= 56 {
            let Some(byte) = rest.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        // Behind the end come ones, as padding is made.
        let padded = if have < 64 {
            bits | (u64::MAX >> have)
        } else {
            bits
        };
        let (symbol, length) = match TABLES.short.get((padded >> (64 - SHORT)) as usize) {
            Some((symbol, length)) if *length > 0 => (usize::from(*symbol), u32::from(*length)),
            _ => long((padded >> 32) as u32),
        };
        if length > have {
            // Less than a byte of the beginning of an end of string.
            return if have < 8 && padded == u64::MAX {
                Ok(())
            } else {
                Err(BadHuffman)
            };
        }
        if symbol == EOS {
            return Err(BadHuffman);
        }
        // Below 256.
        out.push(symbol as u8);
        bits <<= length;
        have -= length;
    }
}

/// The symbol whose code, a longer one, is at the front of `bits`, and its length.
fn long(bits: u32) -> (usize, u32) {
    let lengths = TABLES.ends.iter().enumerate().skip(SHORT as usize + 1);
    for (length, (end, offset)) in lengths {
        if u64::from(bits) < *end {
            let place = (bits >> (32 - length)).wrapping_sub(*offset) as usize;
            let symbol = TABLES.symbols.get(place).copied();
            return (symbol.map_or(EOS, usize::from), length as u32);
        }
    }
    (EOS, LONGEST as u32)
}

/// Bytes that `text` takes when it is encoded.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    let bits: u64 = text
        .iter()
        .map(|byte| u64::from(LENGTHS[usize::from(*byte)]))
        .sum();
    bits.div_ceil(8) as usize
}

/// Appends the code of `text`.
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut have) = (0u64, 0u32);
    for byte in text {
        let symbol = usize::from(*byte);
        let length = u32::from(LENGTHS[symbol]);
        bits = bits << length | u64::from(TABLES.codes[symbol]);
        have += length;
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push((bits << (8 - have)) as u8 | (0xff >> have));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, BadHuffman> {
        let mut out = Vec::new();
        decode(bytes, &mut out).map(|()| out)
    }

    #[test]
    fn the_example_of_the_standard_holds() {
        let mut out = Vec::new();
        encode(b"www.example.com", &mut out);
        assert_eq!(
            out,
            [
                0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff
            ]
        );
        assert_eq!(encoded_len(b"www.example.com"), out.len());
        assert_eq!(decoded(&out), Ok(b"www.example.com".to_vec()));
    }

    #[test]
    fn the_longest_codes_are_told_apart() {
        assert_eq!(TABLES.codes[EOS], 0x3fff_ffff);
        assert_eq!(TABLES.codes[22], 0x3fff_fffe);
        assert_eq!(TABLES.codes[usize::from(b'0')], 0);
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        encode(&all, &mut out);
        assert_eq!(decoded(&out), Ok(all));
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones_and_no_end_of_string_is_written_out() {
        assert_eq!(decoded(&[]), Ok(vec![]));
        // `a` is 00011.
        assert_eq!(decoded(&[0b0001_1111]), Ok(b"a".to_vec()));
        assert_eq!(decoded(&[0b0001_1110]), Err(BadHuffman));
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(BadHuffman));
        assert_eq!(decoded(&[0xff]), Err(BadHuffman));
        assert_eq!(decoded(&[0xff; 4]), Err(BadHuffman));
        assert_eq!(decoded(&[0xff; 40]), Err(BadHuffman));
    }

    proptest! {
        #[test]
        fn text_reads_back_as_it_was_written(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            encode(&text, &mut out);
            prop_assert_eq!(out.len(), encoded_len(&text));
            prop_assert_eq!(decoded(&out), Ok(text));
        }

        #[test]
        fn what_is_decoded_encodes_to_what_it_was(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(text) = decoded(&bytes) {
                let mut out = Vec::new();
                encode(&text, &mut out);
                prop_assert_eq!(out, bytes);
            }
        }
    }
}
