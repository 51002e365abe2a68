//! Header filters as the user means them. The protocol has one form for both kinds: a value with a
//! regex metacharacter is an unanchored regex in Go's dialect, any other the exact text.

use traffic_core::routing::go_regex::{self, PatternError};

/// Characters that make a value a regex, as the agents see it.
const METACHARACTERS: &str = r"\.+*?()[]{}^$|";

/// Returns true if agents take the value for a regex.
pub(crate) fn is_regex(value: &str) -> bool {
    value.contains(|c| METACHARACTERS.contains(c))
}

/// Returns the filter value that matches this text and nothing else.
pub(crate) fn exact(text: &str) -> String {
    if !is_regex(text) {
        return text.to_owned();
    }
    format!("^{}$", escaped(text))
}

/// Returns the text as a part of a regular expression.
pub(crate) fn escaped(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if METACHARACTERS.contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Checks a filter value.
///
/// # Errors
/// The reason a regex cannot be one: stock agents would take it as literal text, without a word.
pub(crate) fn check(name: &str, value: &str) -> Result<(), String> {
    if !is_regex(value) {
        return Ok(());
    }
    let Err(error) = go_regex::compile(value) else {
        return Ok(());
    };
    let remedy = match error {
        PatternError::Syntax { .. } => {
            format!("if the text itself is meant, use --http-header-exact '{name}={value}'")
        }
        _ => "use a shorter expression".to_owned(),
    };
    Err(format!(
        "--http-header {name}={value}: the value has characters of regular expressions, but {error}; \
         {remedy}"
    ))
}

/// Returns advice if a regex looks like text of which only a part has to match.
pub(crate) fn advice(name: &str, value: &str) -> Option<String> {
    // Who writes anchors knows what an expression is.
    let looks_deliberate = value.starts_with('^') || value.ends_with('$');
    if !is_regex(value) || looks_deliberate {
        return None;
    }
    Some(format!(
        "note: takes requests whose {name} matches the regular expression /{value}/ anywhere; for \
         an exact match use --http-header-exact '{name}={value}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_core::routing::matcher::HeaderFilter;

    #[test]
    fn an_exact_text_stays_text_or_becomes_an_anchored_regex() {
        for (text, filter) in [
            ("me", "me"),
            ("jane.doe", r"^jane\.doe$"),
            (r"a\b", r"^a\\b$"),
            ("1+1=2", r"^1\+1=2$"),
            ("", ""),
        ] {
            assert_eq!(exact(text), filter);
            if is_regex(text) {
                assert!(HeaderFilter::compile("x", filter).unwrap().is_regex());
            }
        }
    }

    #[test]
    fn a_broken_regex_is_refused_with_the_way_out() {
        assert_eq!(check("user", "jane"), Ok(()));
        assert_eq!(check("user", "^a(b|c)$"), Ok(()));
        let error = check("user", "a(").unwrap_err();
        assert!(
            error.contains("missing closing )") && error.contains("--http-header-exact 'user=a('"),
            "{error}"
        );
    }

    #[test]
    fn advice_is_for_expressions_that_look_like_text() {
        assert!(
            advice("user", "jane.doe")
                .unwrap()
                .contains("/jane.doe/ anywhere")
        );
        assert_eq!(advice("user", "jane"), None);
        assert_eq!(advice("user", r"^jane\.doe$"), None);
    }
}
