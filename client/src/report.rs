//! Lines on standard output. A line that a program may look for begins with `key=value` pairs; the
//! others are for people.

use std::fmt::{self, Display};
use std::io::Write;

/// Prints one line at once; a closed standard output is no reason to stop.
pub(crate) fn line(text: impl Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// `key=value` pairs; values that are not one plain word are quoted, empty ones are left out.
pub(crate) struct Pairs<'a>(pub(crate) &'a [(&'a str, &'a str)]);

impl Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (key, value) in self.0.iter().filter(|(_, value)| !value.is_empty()) {
            let plain = !value.contains(|c: char| c.is_whitespace() || c == '"' || c.is_control());
            if plain {
                write!(f, "{space}{key}={value}")?
            } else {
                write!(f, "{space}{key}={value:?}")?
            }
            space = " ";
        }
        Ok(())
    }
}

/// Formats an environment as a file of `KEY=VALUE` lines. A value of several lines is written on
/// one, quoted.
pub(crate) fn env_file<'a>(
    environment: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> String {
    let line = |(key, value): (&String, &String)| match value.contains('\n') {
        true => format!("{key}={value:?}\n"),
        false => format!("{key}={value}\n"),
    };
    environment.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_one_word_are_quoted_and_empty_ones_left_out() {
        let pairs = Pairs(&[("state", "ACTIVE"), ("message", ""), ("args", "all TCP")]);
        assert_eq!(pairs.to_string(), r#"state=ACTIVE args="all TCP""#);
    }
}
