//! Lines on standard output. A line that a program may look for begins with `key=value` pairs; the
//! others are for people.

use std::fmt::{self, Display};
use std::io::Write;
use std::sync::Mutex;

use serde_json::json;
use traffic_proto::printable::{Notation, escaped, is_unprintable, printable};
use traffic_proto::sync::lock;

/// Form in which lines reach standard output.
struct Output {
    /// Events are JSON objects.
    is_json: bool,
    /// A line that stays below the others of a terminal.
    footer: String,
}

static OUTPUT: Mutex<Output> = Mutex::new(Output {
    is_json: false,
    footer: String::new(),
});

/// Clears the line that the cursor is in.
const CLEAR: &str = "\r\x1b[K";

/// Makes events JSON objects from here on.
pub(crate) fn as_json() {
    lock(&OUTPUT).is_json = true;
}

/// Prints one line at once; a closed standard output is no reason to stop. Parts of it come from
/// the cluster and from others' intercepts, so nothing in it can steer the terminal.
pub(crate) fn line(text: impl Display) {
    let mut text = text.to_string();
    let output = lock(&OUTPUT);
    if output.is_json {
        text = json!({ "text": text }).to_string();
    }
    print(&output, &text);
}

/// Prints several lines as they are, for whoever has asked for them: each of their parts is a line of
/// ours.
pub(crate) fn block(text: &str) {
    let output = lock(&OUTPUT);
    for line in text.lines() {
        print(&output, line);
    }
}

/// Prints a line for programs.
pub(crate) fn event(pairs: &Pairs<'_>) {
    let output = lock(&OUTPUT);
    let text = match output.is_json {
        true => {
            let pairs = pairs.0.iter().filter(|(_, value)| !value.is_empty());
            let object: serde_json::Map<_, _> = pairs
                .map(|(key, value)| ((*key).to_owned(), json!(value)))
                .collect();
            serde_json::Value::from(object).to_string()
        }
        false => pairs.to_string(),
    };
    print(&output, &text);
}

fn print(output: &Output, text: &str) {
    let notation = match output.is_json {
        true => Notation::Json,
        false => Notation::Text,
    };
    let text = escaped(text, notation);
    let mut out = std::io::stdout().lock();
    let written = match output.footer.as_str() {
        "" => writeln!(out, "{text}"),
        footer => write!(out, "{CLEAR}{text}\n{footer}"),
    };
    let _ = written.and_then(|()| out.flush());
}

/// Prints a line for people only, on standard error.
pub(crate) fn note(text: impl Display) {
    let output = lock(&OUTPUT);
    let mut out = std::io::stderr().lock();
    let clear = if output.footer.is_empty() { "" } else { CLEAR };
    for line in text.to_string().lines() {
        let _ = writeln!(out, "{clear}{}", printable(line));
    }
}

/// Keeps this text below the other lines of the terminal that standard output is; an empty one ends
/// that.
pub(crate) fn footer(text: &str) {
    let mut output = lock(&OUTPUT);
    if output.footer == text {
        return;
    }
    output.footer = printable(text).into_owned();
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{CLEAR}{}", output.footer).and_then(|()| out.flush());
}

/// Formats a number of things.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        n => format!("{n} {thing}s"),
    }
}

/// Escapes control characters: texts of other people must not steer the user's terminal.
pub(crate) fn plain(text: &str) -> String {
    printable(text).into_owned()
}

/// `key=value` pairs; values that are not one plain word are quoted, empty ones are left out.
pub(crate) struct Pairs<'a>(pub(crate) &'a [(&'a str, &'a str)]);

impl Display for Pairs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for (key, value) in self.0.iter().filter(|(_, value)| !value.is_empty()) {
            let plain =
                !value.contains(|c: char| c.is_whitespace() || c == '"' || is_unprintable(c));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_not_one_word_are_quoted_and_empty_ones_left_out() {
        let pairs = Pairs(&[("state", "ACTIVE"), ("message", ""), ("args", "all TCP")]);
        assert_eq!(pairs.to_string(), r#"state=ACTIVE args="all TCP""#);
    }
}
