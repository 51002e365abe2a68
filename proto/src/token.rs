//! Tokens of HTTP: methods and field names.

/// Returns true for a token character: part of a method or field name (RFC 9110 section 5.6.2).
#[must_use]
#[inline]
pub fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut b = 0;
        while b < 256 {
            let c = b as u8;
            table[b] = c.is_ascii_alphanumeric()
                || matches!(
                    c,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            b += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

/// Returns true for a whole token: a method, or the name of a field.
#[must_use]
pub fn is_token_text(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_told_from_other_text() {
        for name in ["x-dev", "X!#$%&'*+.^_`|~9", "a"] {
            assert!(is_token_text(name), "{name}");
        }
        for text in ["", "x dev", "x:dev", "x\r\n", "(x)", "naïve", "x/y", "\0"] {
            assert!(!is_token_text(text), "{text}");
        }
    }
}
