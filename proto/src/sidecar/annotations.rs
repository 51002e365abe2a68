//! Pod annotations as Kubernetes' downward API writes them to a file: one `key="value"` per line,
//! the value quoted as Go quotes strings.

use std::collections::BTreeMap;

use crate::fault::Fault;

/// Annotation that holds the sidecar's configuration as JSON.
pub const AGENT_CONFIG: &str = "telepresence.io/agent-config";

/// Contents of an annotation file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// Values by name.
    pub entries: BTreeMap<String, String>,
    /// Faults of unreadable lines; the key is the annotation's name if that was readable.
    pub warnings: Vec<Fault>,
}

/// Parses an annotation file. Unreadable lines are left out and reported. `source` is the file's
/// path, for messages.
pub fn parse(text: &str, source: &str) -> Annotations {
    let mut annotations = Annotations::default();
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.trim().is_empty() {
            continue;
        }
        let at = format!("({source} line {})", index + 1);
        let (key, quoted) = match line.split_once('=') {
            Some((key, quoted)) if !key.trim().is_empty() => (key.trim(), quoted.trim()),
            _ => {
                let problem = format!("no annotation {at}");
                let fault = Fault::text(
                    format!("{source} line {}", index + 1),
                    line,
                    problem,
                    "write name=\"value\"",
                );
                annotations.warnings.push(fault);
                continue;
            }
        };
        match unquote(quoted) {
            Ok(value) => {
                annotations.entries.insert(key.to_owned(), value);
            }
            Err(problem) => {
                let problem = format!("{problem} {at}");
                annotations.warnings.push(Fault::text(
                    key,
                    quoted,
                    problem,
                    "quote the value as Go quotes strings",
                ));
            }
        }
    }
    annotations
}

/// Unquotes a Go string. Bytes that are not UTF-8 become replacement characters. JSON's escapes
/// beyond Go's, `\/` and surrogate pairs, are accepted as well.
fn unquote(quoted: &str) -> Result<String, &'static str> {
    let inner = quoted
        .strip_prefix('"')
        .ok_or("value without an opening quote")?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    loop {
        let stop = rest
            .find(['"', '\\'])
            .ok_or("value without a closing quote")?;
        bytes.extend_from_slice(&rest.as_bytes()[..stop]);
        rest = &rest[stop..];
        if let Some(behind) = rest.strip_prefix('"') {
            return match behind {
                "" => Ok(String::from_utf8_lossy(&bytes).into_owned()),
                _ => Err("text after the closing quote"),
            };
        }
        rest = escape(&rest[1..], &mut bytes)?;
    }
}

/// Decodes the escape after a backslash and returns the rest.
fn escape<'a>(text: &'a str, bytes: &mut Vec<u8>) -> Result<&'a str, &'static str> {
    const BAD: &str = "value with an unknown escape";
    let kind = text.chars().next().ok_or("value without a closing quote")?;
    let rest = &text[kind.len_utf8()..];
    let plain = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '"' | '\\' | '\'' | '/' => kind as u8,
        'x' => {
            let (byte, rest) = digits(rest, 2, 16).ok_or(BAD)?;
            bytes.push(byte as u8);
            return Ok(rest);
        }
        '0'..='7' => {
            let (byte, rest) = digits(text, 3, 8).ok_or(BAD)?;
            bytes.push(u8::try_from(byte).map_err(|_| BAD)?);
            return Ok(rest);
        }
        'u' => {
            let (mut code, mut rest) = digits(rest, 4, 16).ok_or(BAD)?;
            if let (0xd800..0xdc00, Some(behind)) = (code, rest.strip_prefix("\\u"))
                && let Some((low @ 0xdc00..0xe000, behind)) = digits(behind, 4, 16)
            {
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                rest = behind;
            }
            push(code, bytes)?;
            return Ok(rest);
        }
        'U' => {
            let (code, rest) = digits(rest, 8, 16).ok_or(BAD)?;
            push(code, bytes)?;
            return Ok(rest);
        }
        _ => return Err(BAD),
    };
    bytes.push(plain);
    Ok(rest)
}

fn digits(text: &str, count: usize, radix: u32) -> Option<(u32, &str)> {
    let digits = text.get(..count)?;
    let good = digits.chars().all(|digit| digit.is_digit(radix));
    Some((
        good.then(|| u32::from_str_radix(digits, radix).ok())??,
        &text[count..],
    ))
}

fn push(code: u32, bytes: &mut Vec<u8>) -> Result<(), &'static str> {
    let char = char::from_u32(code).ok_or("value with an escape for no character")?;
    bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> BTreeMap<String, String> {
        let annotations = parse(text, "/etc/podinfo/annotations");
        assert_eq!(annotations.warnings, []);
        annotations.entries
    }

    #[test]
    fn lines_are_names_and_quoted_values() {
        let text = "a/b=\"1\"\ntelepresence.io/agent-config=\"{\\\"agentName\\\":\\\"x=y\\\"}\"\n\nempty=\"\"\r\n";
        let entries = parsed(text);
        assert_eq!(entries["a/b"], "1");
        assert_eq!(entries[AGENT_CONFIG], r#"{"agentName":"x=y"}"#);
        assert_eq!(entries["empty"], "");
        assert_eq!(entries.len(), 3);
        assert!(parsed("").is_empty());
    }

    #[test]
    fn escapes_are_those_of_go_and_of_json() {
        for (quoted, value) in [
            (r#""\a\b\f\n\r\t\v\\\"""#, "\x07\x08\x0c\n\r\t\x0b\\\""),
            (r#""\x41\101\u00e9\U0001f600""#, "AAé😀"),
            // Two bytes that are one character, and one that is none.
            (r#""\xc3\xa9\xff""#, "é\u{fffd}"),
            (r#""é\/\ud83d\ude00""#, "é/😀"),
        ] {
            assert_eq!(parsed(&format!("k={quoted}"))["k"], value, "{quoted}");
        }
    }

    #[test]
    fn lines_that_cannot_be_read_are_named_and_the_others_kept() {
        let bad = [
            "no equals sign",
            "=\"no name\"",
            "k1=unquoted",
            "k2=\"open",
            "k3=\"open\\\"",
            "k4=\"\\q\"",
            "k5=\"\\x4\"",
            "k6=\"\\ud83d\"",
            "k7=\"\\777\"",
            "k8=\"a\"b",
            "k9=\"\\x+1\"",
            "k10=\"\\",
        ];
        let text = format!("{}\ngood=\"1\"\n", bad.join("\n"));
        let annotations = parse(&text, "file");
        assert_eq!(annotations.entries.len(), 1);
        assert_eq!(annotations.entries["good"], "1");
        assert_eq!(annotations.warnings.len(), bad.len());
        assert_eq!(
            annotations.warnings[2].to_string(),
            "k1=\"unquoted\": value without an opening quote (file line 3); quote the value as Go \
            quotes strings"
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "([a-z]{0,3}=?\"?(\\\\[abxuU0-9\"]{0,3}|[a-fé\"0-9]){0,12}\"?\n?){0,4}|(?s:.*)") {
            let _ = parse(&text, "file");
        }

        #[test]
        fn what_is_quoted_reads_the_same(value: String) {
            // Rust's own quoting differs from Go's only in how it writes what it escapes.
            let mut quoted = String::from("\"");
            for char in value.chars() {
                match char {
                    '"' | '\\' => quoted.extend(['\\', char]),
                    '\n' => quoted.push_str("\\n"),
                    char if char.is_control() => quoted.push_str(&format!("\\U{:08x}", u32::from(char))),
                    char => quoted.push(char),
                }
            }
            quoted.push('"');
            let entries = parsed(&format!("k={quoted}\n"));
            prop_assert_eq!(&entries["k"], &value);
        }
    }
}
