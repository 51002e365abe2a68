//! Patterns of values: exact text, or an unanchored linear-time regex in Go's dialect.

use std::borrow::Cow;

use regex::bytes::Regex;
use regex_syntax::hir::Look;
use regex_syntax::hir::literal::Extractor;

use crate::routing::go_regex;
use crate::routing::go_regex::PatternError;

/// Characters that make a value a regex, as the stock agent has it.
const METACHARACTERS: &str = r"\.+*?()[]{}^$|";

/// A value or path pattern.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    /// Exact bytes.
    Exact(Vec<u8>),
    /// An unanchored regex.
    Regex(Regex),
}

impl Pattern {
    /// Compiles a value: a regex if it has one of the metacharacters, else exact text.
    ///
    /// # Errors
    /// The value has metacharacters and is not a Go pattern, or too large.
    pub(crate) fn compile(value: &str) -> Result<Self, PatternError> {
        if value.contains(|c| METACHARACTERS.contains(c)) {
            return go_regex::compile(value).map(Self::Regex);
        }
        Ok(Self::exact(value))
    }

    pub(crate) fn exact(value: &str) -> Self {
        Self::Exact(value.as_bytes().to_vec())
    }

    /// Returns true if the value matches.
    pub(crate) fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text == value,
            Self::Regex(regex) => regex.is_match(&as_go_reads(value)),
        }
    }

    /// Returns the regex, if it is one.
    pub(crate) fn regex(&self) -> Option<&Regex> {
        match self {
            Self::Regex(regex) => Some(regex),
            Self::Exact(_) => None,
        }
    }

    /// Returns true if some value may match both; two regexes are compared only if one of them
    /// is a list of texts.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let any_holds = |texts: Vec<Vec<u8>>, by: &Self| texts.iter().any(|text| by.holds(text));
        match (self.texts(), other.texts()) {
            (Some(texts), _) => any_holds(texts, other),
            (None, Some(texts)) => any_holds(texts, self),
            (None, None) => true,
        }
    }

    /// Returns true if every value that matches `other` matches this one, as far as that can be
    /// decided.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match other.texts() {
            Some(texts) => texts.iter().all(|text| self.holds(text)),
            None => match (self, other) {
                (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
                _ => false,
            },
        }
    }

    /// Returns the values that match, if they are a short list.
    fn texts(&self) -> Option<Vec<Vec<u8>>> {
        let regex = match self {
            Self::Exact(text) => return Some(vec![text.clone()]),
            Self::Regex(regex) => regex,
        };
        let parser = regex_syntax::ParserBuilder::new().utf8(false).build();
        let hir = { parser }.parse(regex.as_str()).ok()?;
        let properties = hir.properties();
        let is_whole = properties.look_set_prefix().contains(Look::Start)
            && properties.look_set_suffix().contains(Look::End);
        if !is_whole {
            return None;
        }
        let texts = Extractor::new().extract(&hir);
        let texts = texts.literals().filter(|_| texts.is_exact())?;
        Some(texts.iter().map(|text| text.as_bytes().to_vec()).collect())
    }
}

/// Returns true if `pattern`, with `*` for any bytes, matches the whole of `text`.
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut parts = pattern.split(|b| *b == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    // Without a `*` the whole text has to equal the pattern.
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) =
            // The leftmost match is always right for inner parts, because `*` takes the rest.
            (0..=rest.len()).find(|at| rest.get(*at..).is_some_and(|r| r.starts_with(part)))
        else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// Returns text as Go's regexps see it: a byte that is not UTF-8 counts as one U+FFFD.
pub(crate) fn as_go_reads(text: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(text).is_ok() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len() * 3);
    for chunk in text.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        out.extend(chunk.invalid().iter().flat_map(|_| "\u{FFFD}".bytes()));
    }
    Cow::Owned(out)
}

/// Returns text with its percent-escapes decoded; what is no escape stays.
pub(crate) fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let hex = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'%', [a, b, after @ ..]) if hex(*a).is_some() && hex(*b).is_some() => {
                out.push(hex(*a).unwrap_or_default() << 4 | hex(*b).unwrap_or_default());
                after
            }
            _ => {
                out.push(*first);
                tail
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(value: &str) -> Pattern {
        Pattern::compile(value).unwrap()
    }

    #[test]
    fn lists_of_texts_are_compared_and_other_regexes_are_not() {
        let rows = [
            ("a", "a", true),
            ("a", "b", false),
            (r"^jane\.doe$", r"^john\.doe$", false),
            (r"^(?:GET|POST)$", r"^(?:PUT|POST)$", true),
            (r"^(?:GET|POST)$", r"^(?:PUT|PATCH)$", false),
            (r"^(?:GET|POST)$", "PUT", false),
            (r"^(?:GET|POST)$", "P.T", false),
            (r"^(?:GET|PUT)$", "P.T", true),
            ("^a", "^b", true),
            ("a$", "b", false),
            ("", "^$", true),
        ];
        for (a, b, want) in rows {
            let (p, q) = (pattern(a), pattern(b));
            assert_eq!(
                (p.overlaps(&q), q.overlaps(&p)),
                (want, want),
                "{a:?} and {b:?}"
            );
        }
    }

    #[test]
    fn covering_is_decided_for_texts_and_equal_regexes() {
        for (a, b, want) in [
            ("a", "a", true),
            (".*", "a", true),
            ("^(?:a|b)$", "a", true),
            ("a", "^(?:a|b)$", false),
            ("^a", "^a", true),
            ("^a", "^ab", false),
        ] {
            assert_eq!(pattern(a).covers(&pattern(b)), want, "{a:?} covers {b:?}");
        }
    }
}
