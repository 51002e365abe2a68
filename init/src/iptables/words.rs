//! Words of a rule as `iptables-save` prints it: text with spaces or quotes is quoted, as comments
//! may be. Pure.

use crate::ours::Seen;
use crate::rule::Owner;

/// Splits a line as the programs do: at spaces, with double quotes around words that hold some and
/// backslashes before quotes and backslashes.
pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Reads a rule without its chain, as far as it matters for telling whose it is.
pub(super) fn seen(chain: &str, line: &str) -> Seen {
    let words = split(line);
    let mut seen = Seen {
        chain: chain.to_owned(),
        ..Seen::default()
    };
    let (mut plain, mut inverted, mut returns) = (true, false, false);
    let mut owner_inverted = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "!" => {
                inverted = true;
                continue;
            }
            "-j" => {
                let target = words.next().unwrap_or_default();
                returns = target == "RETURN";
                seen.jump = Some(target.to_owned());
            }
            "--uid-owner" | "--gid-owner" => {
                let id = words.next().and_then(|id| id.parse().ok());
                let owner = if word == "--uid-owner" {
                    Owner::Uid
                } else {
                    Owner::Gid
                };
                seen.owner = id.map(owner);
                owner_inverted = inverted;
            }
            "-p" | "--dport" => drop(words.next()),
            "-m" => plain &= matches!(words.next(), Some("tcp" | "udp" | "owner")),
            "--comment" => {
                words.next();
                plain = false;
            }
            _ => plain = false,
        }
        inverted = false;
    }
    seen.returns_owner = plain && returns && seen.owner.is_some() && !owner_inverted;
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_one_word() {
        let line = r#"-m comment --comment "a \"b\" -j TEL_X \\" -j ACCEPT"#;
        let words = split(line);
        assert_eq!(words[3], r#"a "b" -j TEL_X \"#);
        assert_eq!(seen("OUTPUT", line).jump.as_deref(), Some("ACCEPT"));
        assert_eq!(split(r#"a "" b"#), ["a", "", "b"]);
    }

    #[test]
    fn the_originals_last_rule_is_recognised_in_all_its_forms() {
        for line in [
            "-m owner --uid-owner 0 -j RETURN",
            "-p tcp -m tcp ! --dport 53 -m owner --gid-owner 0 -j RETURN",
        ] {
            assert!(seen("OUTPUT", line).returns_owner, "{line}");
        }
        for line in [
            "-m owner ! --uid-owner 0 -j RETURN",
            "-m owner --uid-owner 0 -j ACCEPT",
            "-d 10.0.0.1/32 -m owner --uid-owner 0 -j RETURN",
            "-m comment --comment \"--uid-owner 0\" -j RETURN",
            "-j RETURN",
        ] {
            assert!(!seen("OUTPUT", line).returns_owner, "{line}");
        }
    }
}
