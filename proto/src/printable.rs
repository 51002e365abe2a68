//! Text of foreign origin on its way to a terminal or a log: characters that could forge a line,
//! move the cursor or turn the direction of writing are shown as escapes.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Notation of an escaped character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// `\n`, `\u{1b}`, for people.
    Text,
    /// `\u001b`, which a JSON string may contain.
    Json,
}

/// Returns true for characters that must not reach a terminal or a log as they are: control
/// characters, separators of lines and paragraphs, and marks of the direction of writing.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Returns `text` with unprintable characters as escapes.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, Notation::Text)
}

/// Returns `text` with unprintable characters in the given notation.
#[must_use]
pub fn escaped(text: &str, notation: Notation) -> Cow<'_, str> {
    // Nearly all text is plain, and a look at its bytes says so.
    let plain = |byte: &u8| (0x20..0x7f).contains(byte);
    if text.as_bytes().iter().all(plain) || !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match notation {
            _ if !is_unprintable(c) => shown.push(c),
            Notation::Text => shown.extend(c.escape_default()),
            // All of them lie in the basic plane, so one unit is enough.
            Notation::Json => {
                let _ = write!(shown, "\\u{:04x}", u32::from(c));
            }
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_forge_a_line_or_steer_a_terminal_is_escaped() {
        assert_eq!(printable("plain, Grüße 東京 🙂"), "plain, Grüße 東京 🙂");
        assert_eq!(printable("a\nb\r\u{1b}[2J\t"), "a\\nb\\r\\u{1b}[2J\\t");
        assert_eq!(
            printable("\u{85}\u{2028}\u{202e}x"),
            "\\u{85}\\u{2028}\\u{202e}x"
        );
        assert_eq!(escaped("a\u{7f}\u{85}", Notation::Json), "a\\u007f\\u0085");
    }

    #[test]
    fn json_stays_json() {
        let value = "a\u{7f}\u{85}\u{202e}\n";
        let line = serde_json::to_string(value).unwrap();
        let shown = escaped(&line, Notation::Json);
        assert!(!shown.chars().any(is_unprintable));
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), value);
    }
}
