//! Translates Go's regular expressions to this engine's syntax. Filters are written for Go's
//! `regexp` (used by stock agent and client) and must mean the same at both ends: classes are
//! ASCII, `\Q…\E` and octal escapes exist, `{` may be a literal, and what Go rejects is rejected
//! with Go's reason.

mod class;
mod error;

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};

use crate::routing::go_regex::class::{class, escaped_char, named_class, push_literal};
pub use crate::routing::go_regex::error::{MAX_COMPILED, MAX_PATTERN, PatternError};
use crate::routing::go_regex::error::{MAX_DEPTH, syntax};

/// Compiled size of a small pattern in bytes; most filters are.
const MAX_SMALL: usize = 16 * 1024;
/// Size in bytes of the cache in which a pattern's states are kept once they have been met.
const MAX_CACHE: usize = 48 * 1024;

/// Go's limit on repetitions, with nested ones multiplied.
const MAX_REPEAT: u32 = 1_000;
/// Compiles a Go pattern into a linear-time, unanchored matcher.
///
/// # Errors
/// The pattern is not a Go pattern, or too large.
pub fn compile(pattern: &str) -> Result<Regex, PatternError> {
    build(&translate(pattern)?)
}

/// Compiles like [`compile`], for patterns that have to match the whole text.
///
/// # Errors
/// As [`compile`].
pub fn compile_whole(pattern: &str) -> Result<Regex, PatternError> {
    build(&format!(r"\A(?:{})\z", translate(pattern)?))
}

fn build(pattern: &str) -> Result<Regex, PatternError> {
    build_within(pattern, MAX_COMPILED).map_err(|_| PatternError::TooLarge)
}

fn build_within(pattern: &str, size: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .size_limit(size)
        .dfa_size_limit(MAX_CACHE)
        .nest_limit(2 * MAX_DEPTH)
        .build()
}

/// Returns the memory to reckon with for a compiled pattern and its caches, in bytes: one of two
/// sizes, because the engine tells no more than that a pattern fits into a size.
#[must_use]
pub fn memory(regex: &Regex) -> usize {
    match build_within(regex.as_str(), MAX_SMALL) {
        Ok(_) => MAX_SMALL + MAX_CACHE,
        Err(_) => MAX_COMPILED + MAX_CACHE,
    }
}

/// Translates a Go pattern to this engine's syntax.
///
/// # Errors
/// The pattern is not a Go pattern, or too long.
pub fn translate(pattern: &str) -> Result<String, PatternError> {
    if pattern.len() > MAX_PATTERN {
        return Err(PatternError::TooLong(pattern.len()));
    }
    let mut t = Translator {
        all: pattern,
        rest: pattern,
        out: String::new(),
        open: Vec::new(),
        level: Level::default(),
    };
    while !t.rest.is_empty() {
        t.step()?;
    }
    if t.open.is_empty() {
        Ok(t.out)
    } else {
        Err(syntax("missing closing )", pattern))
    }
}

/// Operand of a repetition at the current place.
#[derive(Clone, Copy, Default)]
enum Operand {
    /// Missing: the start of a branch, or a flag group.
    #[default]
    None,
    /// An operand with at most this many repetitions inside.
    Atom(u32),
    /// An operand already repeated; the operator starts at this offset of the pattern.
    Repeated(usize),
}

/// A nesting level of groups.
#[derive(Default)]
struct Level {
    operand: Operand,
    /// Largest product of repetitions inside.
    weight: u32,
}

struct Translator<'p> {
    all: &'p str,
    rest: &'p str,
    out: String,
    open: Vec<Level>,
    level: Level,
}

impl<'p> Translator<'p> {
    fn step(&mut self) -> Result<(), PatternError> {
        let Some(c) = self.rest.chars().next() else {
            return Ok(());
        };
        match c {
            '(' => self.open_group(),
            ')' => self.close_group(),
            '|' => {
                self.skip(1);
                self.out.push('|');
                self.level.operand = Operand::None;
                Ok(())
            }
            '^' | '$' | '.' => {
                self.skip(1);
                self.out.push(c);
                self.atom(1);
                Ok(())
            }
            '*' | '+' | '?' => self.repeat(1, 1),
            '{' => match repeat_range(self.rest) {
                Some((len, count)) => self.repeat_counted(len, count),
                None => {
                    self.skip(1);
                    self.literal('{');
                    Ok(())
                }
            },
            '[' => {
                let (class, rest) = class(self.rest)?;
                self.rest = rest;
                self.out.push_str(&class);
                self.atom(1);
                Ok(())
            }
            '\\' => self.escape(),
            _ => {
                self.skip(c.len_utf8());
                self.literal(c);
                Ok(())
            }
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    fn atom(&mut self, weight: u32) {
        self.level.weight = self.level.weight.max(weight);
        self.level.operand = Operand::Atom(weight);
    }

    fn literal(&mut self, c: char) {
        push_literal(&mut self.out, u32::from(c));
        self.atom(1);
    }

    fn repeat_counted(&mut self, len: usize, count: Option<u32>) -> Result<(), PatternError> {
        match count {
            Some(count) => self.repeat(len, count),
            None => Err(syntax(
                "invalid repeat count",
                self.rest.get(..len).unwrap_or(self.rest),
            )),
        }
    }

    /// Handles an operator of `len` bytes that repeats its operand up to `count` times, as far as
    /// Go's limit counts.
    fn repeat(&mut self, len: usize, count: u32) -> Result<(), PatternError> {
        let at = self.all.len() - self.rest.len();
        // A `?` behind an operator belongs to it and is no second repetition.
        let lazy = usize::from(self.rest.get(len..).is_some_and(|r| r.starts_with('?')));
        let operator = self.rest.get(..len + lazy).unwrap_or(self.rest);
        match self.level.operand {
            Operand::None => {
                return Err(syntax(
                    "missing argument to repetition operator",
                    operator.get(..len).unwrap_or(operator),
                ));
            }
            // This engine takes `a**`; Go refuses it, and whoever wrote it meant something else.
            Operand::Repeated(first) => {
                let both = self.all.get(first..at + len + lazy).unwrap_or(operator);
                return Err(syntax("invalid nested repetition operator", both));
            }
            Operand::Atom(weight) => {
                // Go counts what nested repetitions amount to together.
                let weight = weight.saturating_mul(count.max(1));
                if weight > MAX_REPEAT {
                    return Err(syntax("invalid repeat count", operator));
                }
                self.level.weight = self.level.weight.max(weight);
            }
        }
        self.out.push_str(operator);
        self.skip(len + lazy);
        self.level.operand = Operand::Repeated(at);
        Ok(())
    }

    fn open_group(&mut self) -> Result<(), PatternError> {
        if !self.rest.starts_with("(?") {
            self.skip(1);
            self.out.push_str("(?:");
            return self.enter();
        }
        for named in ["(?P<", "(?<"] {
            if let Some(after) = self.rest.strip_prefix(named) {
                return self.open_named(named, after);
            }
        }
        self.flags()
    }

    /// Opens a named group; the name does not affect matching and is left out.
    fn open_named(&mut self, opening: &str, after: &'p str) -> Result<(), PatternError> {
        let Some(end) = after.find('>') else {
            // The dialect has no look-behind; `(?<` alone would be a name that does not end.
            let look_behind =
                opening == "(?<" && (after.starts_with('=') || after.starts_with('!'));
            return Err(if look_behind {
                syntax("invalid or unsupported Perl syntax", "(?<")
            } else {
                syntax("invalid named capture", self.rest)
            });
        };
        let name = after.get(..end).unwrap_or_default();
        if name.is_empty() || !name.chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
            let whole = self.rest.get(..=opening.len() + end).unwrap_or(self.rest);
            return Err(syntax("invalid named capture", whole));
        }
        self.skip(opening.len() + end + 1);
        self.out.push_str("(?:");
        self.enter()
    }

    /// Handles flag groups: `(?i)`, `(?i-s:`, `(?:`.
    fn flags(&mut self) -> Result<(), PatternError> {
        let mut negative = false;
        let mut flag_seen = false;
        for (at, c) in self.rest.char_indices().skip(2) {
            let end = at + c.len_utf8();
            let whole = self.rest.get(..end).unwrap_or(self.rest);
            match c {
                'i' | 'm' | 's' | 'U' => flag_seen = true,
                '-' if !negative => {
                    negative = true;
                    flag_seen = false;
                }
                ')' | ':' if !negative || flag_seen => {
                    // "(?)" changes nothing, and this engine does not know it.
                    if whole != "(?)" {
                        self.out.push_str(whole);
                    }
                    self.skip(end);
                    if c == ':' {
                        return self.enter();
                    }
                    // Flags alone are nothing to repeat: `(?i)*` is an error in Go.
                    self.level.operand = Operand::None;
                    return Ok(());
                }
                _ => return Err(syntax("invalid or unsupported Perl syntax", whole)),
            }
        }
        Err(syntax("missing closing )", self.all))
    }

    fn enter(&mut self) -> Result<(), PatternError> {
        if self.open.len() >= MAX_DEPTH as usize {
            return Err(PatternError::TooLarge);
        }
        self.open.push(std::mem::take(&mut self.level));
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), PatternError> {
        let Some(outer) = self.open.pop() else {
            return Err(syntax("unexpected )", self.all));
        };
        // A group weighs as much as its heaviest part, for repetitions around it.
        let inner = std::mem::replace(&mut self.level, outer);
        self.skip(1);
        self.out.push(')');
        self.atom(inner.weight.max(1));
        Ok(())
    }

    fn escape(&mut self) -> Result<(), PatternError> {
        let word = match self.rest.as_bytes().get(1) {
            Some(b'Q') => {
                self.quoted();
                return Ok(());
            }
            Some(b'A') => r"\A",
            Some(b'z') => r"\z",
            // Word boundaries are those of ASCII words.
            Some(b'b') => r"(?-u:\b)",
            Some(b'B') => r"(?-u:\B)",
            _ => "",
        };
        if !word.is_empty() {
            self.skip(2);
            self.out.push_str(word);
            self.atom(1);
            return Ok(());
        }
        if let Some((class, rest)) = named_class(self.rest)? {
            let _ = write!(self.out, "[{class}]");
            self.rest = rest;
        } else {
            let (c, rest) = escaped_char(self.rest)?;
            push_literal(&mut self.out, c);
            self.rest = rest;
        }
        self.atom(1);
        Ok(())
    }

    /// Handles `\Q…\E`, or `\Q` to the end.
    fn quoted(&mut self) {
        let body = self.rest.get(2..).unwrap_or_default();
        let (text, rest) = body.split_once(r"\E").unwrap_or((body, ""));
        for c in text.chars() {
            self.literal(c);
        }
        self.rest = rest;
    }
}

/// Parses `{n}`, `{n,}` or `{n,m}` at the front: its length, and the count for Go's limit (`None`:
/// rejected). Anything else makes the brace a literal.
fn repeat_range(text: &str) -> Option<(usize, Option<u32>)> {
    let end = text.find('}')?;
    let inside = text.get(1..end)?;
    let (min, max) = match inside.split_once(',') {
        None => (number(inside)?, None),
        Some((min, "")) => (number(min)?, None),
        Some((min, max)) => (number(min)?, Some(number(max)?)),
    };
    let sane = min <= MAX_REPEAT && max.is_none_or(|max| max <= MAX_REPEAT && min <= max);
    Some((end + 1, sane.then(|| max.unwrap_or(min))))
}

/// Parses decimal digits without leading zeros; huge values saturate.
fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = plain && (digits == "0" || !digits.starts_with('0'));
    canonical.then(|| digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
