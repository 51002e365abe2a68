//! Go's regular expressions said in this engine's words. Filters are written for Go's `regexp` (stock agent and
//! client use it), and a filter has to mean the same at both ends: classes are ASCII, `\Q…\E` and octal escapes
//! exist, `{` may be a literal, and what Go refuses is refused here with Go's reason.

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};

/// The longest pattern that is looked at, in bytes.
pub const MAX_PATTERN: usize = 8 * 1024;
/// The largest compiled size of one pattern, in bytes.
pub const MAX_COMPILED: usize = 256 * 1024;
/// How often one thing may be repeated, repetitions inside repetitions multiplied; Go's limit.
const MAX_REPEAT: u32 = 1_000;
/// How deep groups may nest.
const MAX_DEPTH: u32 = 100;

/// Why a pattern is not usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Not a regular expression; the text is the one Go gives.
    #[error("error parsing regexp: {reason}: `{at}`")]
    Syntax {
        /// Go's words for it.
        reason: &'static str,
        /// The part of the pattern that is meant.
        at: String,
    },
    /// Longer than [`MAX_PATTERN`].
    #[error("a pattern of {0} bytes is too long; the limit is {MAX_PATTERN} bytes, use a shorter one")]
    TooLong(usize),
    /// Its automaton is larger than [`MAX_COMPILED`], or its groups nest too deeply.
    #[error("the pattern needs more than {MAX_COMPILED} bytes compiled, or nests deeper than {MAX_DEPTH}; simplify it")]
    TooLarge,
}

/// Compiles a Go pattern into a linear-time matcher that looks for it anywhere in a text.
///
/// # Errors
/// The pattern is no Go pattern, or too large.
pub fn compile(pattern: &str) -> Result<Regex, PatternError> {
    build(&translate(pattern)?)
}

/// Like [`compile`], for patterns that have to match a text from its first to its last byte.
///
/// # Errors
/// As [`compile`].
pub fn compile_whole(pattern: &str) -> Result<Regex, PatternError> {
    build(&format!(r"\A(?:{})\z", translate(pattern)?))
}

fn build(pattern: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(2 * MAX_DEPTH)
        .build()
        .map_err(|_| PatternError::TooLarge)
}

/// Rewrites a Go pattern for this engine.
///
/// # Errors
/// The pattern is no Go pattern, or too long.
pub fn translate(pattern: &str) -> Result<String, PatternError> {
    if pattern.len() > MAX_PATTERN {
        return Err(PatternError::TooLong(pattern.len()));
    }
    let mut t =
        Translator { all: pattern, rest: pattern, out: String::new(), open: Vec::new(), level: Level::default() };
    while !t.rest.is_empty() {
        t.step()?;
    }
    if t.open.is_empty() { Ok(t.out) } else { Err(syntax("missing closing )", pattern)) }
}

/// What may be repeated at this point.
#[derive(Clone, Copy, Default)]
enum Operand {
    /// Nothing: the start of a branch, or a flag group.
    #[default]
    None,
    /// Something that is repeated inside up to so many times.
    Atom(u32),
    /// Something already repeated; the operator starts at this offset of the pattern.
    Repeated(usize),
}

/// One nesting level of groups.
#[derive(Default)]
struct Level {
    operand: Operand,
    /// The largest product of repetitions inside.
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
        let Some(c) = self.rest.chars().next() else { return Ok(()) };
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
            None => Err(syntax("invalid repeat count", self.rest.get(..len).unwrap_or(self.rest))),
        }
    }

    /// An operator of `len` bytes that repeats what stands before it up to `count` times, as far as Go's limit counts.
    fn repeat(&mut self, len: usize, count: u32) -> Result<(), PatternError> {
        let at = self.all.len() - self.rest.len();
        let lazy = usize::from(self.rest.get(len..).is_some_and(|r| r.starts_with('?')));
        let operator = self.rest.get(..len + lazy).unwrap_or(self.rest);
        match self.level.operand {
            Operand::None => {
                return Err(syntax("missing argument to repetition operator", operator.get(..len).unwrap_or(operator)));
            }
            Operand::Repeated(first) => {
                let both = self.all.get(first..at + len + lazy).unwrap_or(operator);
                return Err(syntax("invalid nested repetition operator", both));
            }
            Operand::Atom(weight) => {
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

    /// The name plays no part in matching and is left out.
    fn open_named(&mut self, opening: &str, after: &'p str) -> Result<(), PatternError> {
        let Some(end) = after.find('>') else {
            let look_behind = opening == "(?<" && (after.starts_with('=') || after.starts_with('!'));
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

    /// `(?i)`, `(?i-s:`, `(?:`.
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
        let Some(outer) = self.open.pop() else { return Err(syntax("unexpected )", self.all)) };
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

    /// `\Q…\E`, or to the end.
    fn quoted(&mut self) {
        let body = self.rest.get(2..).unwrap_or_default();
        let (text, rest) = body.split_once(r"\E").unwrap_or((body, ""));
        for c in text.chars() {
            self.literal(c);
        }
        self.rest = rest;
    }
}

fn syntax(reason: &'static str, at: &str) -> PatternError {
    PatternError::Syntax { reason, at: at.to_owned() }
}

/// `{n}`, `{n,}` or `{n,m}` at the front: its length, and the count that Go's limit looks at (`None`: refused).
/// Anything else makes the brace a literal.
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

/// Decimal digits without leading zeros; huge values saturate.
fn number(digits: &str) -> Option<u32> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = plain && (digits == "0" || !digits.starts_with('0'));
    canonical.then(|| digits.parse().unwrap_or(u32::MAX))
}

/// A class with its brackets, at the front of `text`.
fn class(text: &str) -> Result<(String, &str), PatternError> {
    let mut out = String::from("[");
    let mut rest = text.get(1..).unwrap_or_default();
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let body = out.len();
    let mut first = true;
    loop {
        let Some(c) = rest.chars().next() else { return Err(syntax("missing closing ]", text)) };
        if c == ']' && !first {
            break;
        }
        first = false;
        if let Some((posix, after)) = posix_class(rest)? {
            out.push_str(posix);
            rest = after;
        } else if let Some((named, after)) = named_class(rest)? {
            out.push_str(&named);
            rest = after;
        } else {
            rest = class_range(text, rest, &mut out)?;
        }
    }
    if out.len() == body {
        // Only ranges inside the surrogates were named, which no text holds.
        out.push_str(r"[^\x{0}-\x{10FFFF}]");
    }
    out.push(']');
    Ok((out, rest.get(1..).unwrap_or_default()))
}

fn class_range<'p>(class: &'p str, text: &'p str, out: &mut String) -> Result<&'p str, PatternError> {
    let (low, rest) = class_char(class, text)?;
    let Some(after) = rest.strip_prefix('-').filter(|r| !r.is_empty() && !r.starts_with(']')) else {
        push_range(out, low, low);
        return Ok(rest);
    };
    let (high, rest) = class_char(class, after)?;
    if high < low {
        let range = text.get(..text.len() - rest.len()).unwrap_or(text);
        return Err(syntax("invalid character class range", range));
    }
    push_range(out, low, high);
    Ok(rest)
}

fn class_char<'p>(class: &'p str, text: &'p str) -> Result<(u32, &'p str), PatternError> {
    match text.chars().next() {
        None => Err(syntax("missing closing ]", class)),
        Some('\\') => escaped_char(text),
        Some(c) => Ok((u32::from(c), text.get(c.len_utf8()..).unwrap_or_default())),
    }
}

/// `[:alpha:]` and its like; these are ASCII in both engines.
fn posix_class(text: &str) -> Result<Option<(&str, &str)>, PatternError> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "word", "xdigit",
    ];
    let Some(end) = text.strip_prefix("[:").and_then(|t| t.find(":]")) else { return Ok(None) };
    let whole = text.get(..end + 4).unwrap_or(text);
    let name = text.get(2..end + 2).unwrap_or_default();
    if NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        Ok(Some((whole, text.get(end + 4..).unwrap_or_default())))
    } else {
        Err(syntax("invalid character class range", whole))
    }
}

/// `\d`, `\pN`, `\p{Greek}`, `\P{…}` as the inside of a class.
fn named_class(text: &str) -> Result<Option<(String, &str)>, PatternError> {
    let ascii = match text.as_bytes() {
        [b'\\', b'd', ..] => "0-9",
        [b'\\', b'D', ..] => "[^0-9]",
        [b'\\', b's', ..] => r"\t\n\x0C\r\x20",
        [b'\\', b'S', ..] => r"[^\t\n\x0C\r\x20]",
        [b'\\', b'w', ..] => "0-9A-Za-z_",
        [b'\\', b'W', ..] => "[^0-9A-Za-z_]",
        [b'\\', b'p' | b'P', ..] => return unicode_class(text).map(Some),
        _ => return Ok(None),
    };
    Ok(Some((ascii.to_owned(), text.get(2..).unwrap_or_default())))
}

fn unicode_class(text: &str) -> Result<(String, &str), PatternError> {
    const CATEGORIES: [&str; 38] = [
        "C", "Cc", "Cf", "Cn", "Co", "Cs", "L", "LC", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd",
        "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
    ];
    let mut negated = text.starts_with(r"\P");
    let after = text.get(2..).unwrap_or_default();
    let (mut name, len) = if let Some(inside) = after.strip_prefix('{') {
        let end = inside.find('}').ok_or_else(|| syntax("invalid character class range", text))?;
        (inside.get(..end).unwrap_or_default(), 2 + end + 2)
    } else {
        let len = after.chars().next().map_or(0, char::len_utf8);
        (after.get(..len).unwrap_or_default(), 2 + len)
    };
    let whole = text.get(..len).unwrap_or(text);
    if let Some(inverted) = name.strip_prefix('^') {
        negated = !negated;
        name = inverted;
    }
    let property = if name == "Any" {
        "any".to_owned()
    } else if CATEGORIES.contains(&name) {
        format!("gc={name}")
    } else {
        format!("sc={name}")
    };
    let class = format!(r"\{}{{{property}}}", if negated { 'P' } else { 'p' });
    let script = name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c == '_' || c.is_ascii_alphabetic())
        && regex_syntax::parse(&class).is_ok();
    if script {
        Ok((class, text.get(len..).unwrap_or_default()))
    } else {
        Err(syntax("invalid character class range", whole))
    }
}

/// An escape that stands for one character.
fn escaped_char(text: &str) -> Result<(u32, &str), PatternError> {
    let mut chars = text.chars();
    chars.next();
    let Some(c) = chars.next() else { return Err(syntax("trailing backslash at end of expression", "")) };
    let rest = chars.as_str();
    let simple = |value: u32| Ok((value, rest));
    match c {
        'a' => simple(7),
        'f' => simple(12),
        'n' => simple(10),
        'r' => simple(13),
        't' => simple(9),
        'v' => simple(11),
        // A single digit other than 0 would be a back-reference, which neither engine has.
        '1'..='7' if !rest.starts_with(|d: char| ('0'..='7').contains(&d)) => Err(bad_escape(text, rest)),
        '0'..='7' => Ok(octal(text.get(1..).unwrap_or_default())),
        'x' => hexadecimal(text, rest),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => simple(u32::from(c)),
        _ => Err(bad_escape(text, rest)),
    }
}

fn octal(digits: &str) -> (u32, &str) {
    let len = digits.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
    let (number, rest) = digits.split_at(len);
    (u32::from_str_radix(number, 8).unwrap_or_default(), rest)
}

fn hexadecimal<'p>(text: &'p str, after: &'p str) -> Result<(u32, &'p str), PatternError> {
    let (digits, rest) = match after.strip_prefix('{') {
        Some(inside) => inside.split_once('}').ok_or_else(|| bad_escape(text, ""))?,
        None => (after.get(..2).ok_or_else(|| bad_escape(text, ""))?, after.get(2..).unwrap_or_default()),
    };
    let value = digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok()).flatten();
    value.filter(|v| *v <= u32::from(char::MAX)).map(|v| (v, rest)).ok_or_else(|| bad_escape(text, rest))
}

fn bad_escape(text: &str, rest: &str) -> PatternError {
    syntax("invalid escape sequence", text.get(..text.len() - rest.len()).unwrap_or(text))
}

fn push_literal(out: &mut String, c: u32) {
    match char::from_u32(c) {
        Some(c) if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
        Some(_) => {
            let _ = write!(out, r"\x{{{c:X}}}");
        }
        // A surrogate: valid in Go's syntax, in no text.
        None => out.push_str(r"[^\x{0}-\x{10FFFF}]"),
    }
}

/// A range inside a class, the surrogates cut out of its ends because this engine has no words for them.
fn push_range(out: &mut String, low: u32, high: u32) {
    let low = if (0xD800..=0xDFFF).contains(&low) { 0xE000 } else { low };
    let high = if (0xD800..=0xDFFF).contains(&high) { 0xD7FF } else { high };
    if low <= high {
        let _ = write!(out, r"\x{{{low:X}}}-\x{{{high:X}}}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}")).is_match(text.as_bytes())
    }

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        let rows: &[(&str, &str, bool)] = &[
            (r"^\w+$", "abc_9", true),
            (r"^\w+$", "é", false),
            (r"\d", "٣", false),
            (r"^\D$", "٣", true),
            (r"\s", "\u{a0}", false),
            (r"^\S$", "\u{a0}", true),
            (r"\bé", "é", false),
            (r"a\b", "aé", true),
            (r"\Qa.b\E+", "a.bbb", true),
            (r"\Qa.b\E", "axb", false),
            (r"\Q[", "[", true),
            (r"\07", "\u{7}", true),
            (r"^\101$", "A", true),
            (r"^\x41\x{1F600}$", "A😀", true),
            (r"^a{,5}$", "a{,5}", true),
            (r"^a{01}$", "a{01}", true),
            (r"^{$", "{", true),
            (r"^a{2,3}$", "aaa", true),
            (r"^a{2}?$", "aa", true),
            (r"^[[a]$", "[", true),
            (r"^[]a]+$", "a]", true),
            (r"^[^]a]$", "b", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[+--]+$", "+,-", true),
            (r"^[\d-z]+$", "3-z", true),
            (r"^[[:word:]]+$", "aZ_0", true),
            (r"^[[:^alpha:]]+$", "12", true),
            (r"^[\pN]$", "٣", true),
            (r"^\p{Greek}$", "λ", true),
            (r"^\p{^Greek}$", "λ", false),
            (r"^\P{Greek}$", "l", true),
            (r"(?i)k", "\u{212a}", true),
            (r"(?i:A)b", "ab", true),
            (r"(?s).", "\n", true),
            (r".", "\n", false),
            (r"(?U)a+", "a", true),
            (r"(?P<x>a)(?P<x>b)", "ab", true),
            (r"(?<year>\d{4})", "2025", true),
            (r"(?)a", "a", true),
            (r"^$", "", true),
            (r"a$", "a\n", false),
            (r"\_\-\/", "_-/", true),
            (r"()", "", true),
            (r"[\x{D800}-\x{DFFF}]", "a", false),
        ];
        for (pattern, text, want) in rows {
            assert_eq!(matches(pattern, text), *want, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused_with_its_words() {
        let rows = [
            (r"a{1001}", "invalid repeat count: `{1001}`"),
            (r"a{2,1}", "invalid repeat count: `{2,1}`"),
            (r"a{1,9876543210}", "invalid repeat count: `{1,9876543210}`"),
            (r"(a{100}){11}", "invalid repeat count: `{11}`"),
            (r"x*+", "invalid nested repetition operator: `*+`"),
            (r"x**", "invalid nested repetition operator: `**`"),
            (r"x*??", "invalid nested repetition operator: `*??`"),
            (r"x{2}*", "invalid nested repetition operator: `{2}*`"),
            (r"*a", "missing argument to repetition operator: `*`"),
            (r"a|*", "missing argument to repetition operator: `*`"),
            (r"(+)", "missing argument to repetition operator: `+`"),
            (r"{2}", "missing argument to repetition operator: `{2}`"),
            (r"(?i)*", "missing argument to repetition operator: `*`"),
            (r"\Q\E*", "missing argument to repetition operator: `*`"),
            (r"a(b", "missing closing ): `a(b`"),
            (r"a)b", "unexpected ): `a)b`"),
            (r"a[b", "missing closing ]: `[b`"),
            (r"[]", "missing closing ]: `[]`"),
            (r"[b-a]", "invalid character class range: `b-a`"),
            (r"[a--b]", "invalid character class range: `a--`"),
            (r"[[:foo:]]", "invalid character class range: `[:foo:]`"),
            (r"\p{Alphabetic}", r"invalid character class range: `\p{Alphabetic}`"),
            (r"\p{greek}", r"invalid character class range: `\p{greek}`"),
            (r"\C", r"invalid escape sequence: `\C`"),
            (r"\Z", r"invalid escape sequence: `\Z`"),
            (r"\1", r"invalid escape sequence: `\1`"),
            (r"\8", r"invalid escape sequence: `\8`"),
            (r"\E", r"invalid escape sequence: `\E`"),
            (r"\xg1", r"invalid escape sequence: `\xg1`"),
            (r"a\", "trailing backslash at end of expression: ``"),
            (r"(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            (r"(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
            (r"(?-)a", "invalid or unsupported Perl syntax: `(?-)`"),
            (r"(?<=a", "invalid or unsupported Perl syntax: `(?<`"),
            (r"(?P<x y>a)", "invalid named capture: `(?P<x y>`"),
            (r"(?P<>a)", "invalid named capture: `(?P<>`"),
        ];
        for (pattern, want) in rows {
            let got = compile(pattern).map(|_| ()).unwrap_err().to_string();
            assert_eq!(got, format!("error parsing regexp: {want}"), "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_accepted_is_a_pattern_for_this_engine(
            pattern in r"([a-c]|[-(){}\[\]|*+?^$.,:=<>!&~/]|\(\?[imsU:P<-]|\\[dDwWsSbBAzQEpPx017nt.]|\[:[a-z^]{1,6}:\]|[0-9]|é){0,14}"
        ) {
            if let Ok(translated) = translate(&pattern) {
                let parsed = regex_syntax::ParserBuilder::new().utf8(false).build().parse(&translated);
                proptest::prop_assert!(parsed.is_ok(), "{pattern} became {translated}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn sizes_are_limited_with_a_message() {
        let long = "a".repeat(MAX_PATTERN + 1);
        assert_eq!(compile(&long).unwrap_err(), PatternError::TooLong(MAX_PATTERN + 1));
        assert_eq!(compile(r"(?:\pL{50}\pL{50}){10}").unwrap_err(), PatternError::TooLarge);
        let deep = format!("{}a{}", "(".repeat(500), ")".repeat(500));
        assert_eq!(compile(&deep).unwrap_err(), PatternError::TooLarge);
    }

    #[test]
    fn a_whole_match_looks_at_both_ends() {
        let whole = compile_whole("a|bc").unwrap();
        assert!(whole.is_match(b"bc") && !whole.is_match(b"bcd") && !whole.is_match(b"xa"));
    }
}
