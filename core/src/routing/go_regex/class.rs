//! Classes and escapes of Go's regular expressions: `[…]`, `\pL`, `\x{…}` and the like.

use std::fmt::Write as _;

use crate::routing::go_regex::error::{PatternError, syntax};

/// Translates a class with its brackets, at the front of `text`.
pub(crate) fn class(text: &str) -> Result<(String, &str), PatternError> {
    let mut out = String::from("[");
    let mut rest = text.get(1..).unwrap_or_default();
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let body = out.len();
    let mut first = true;
    loop {
        let Some(c) = rest.chars().next() else {
            return Err(syntax("missing closing ]", text));
        };
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

fn class_range<'p>(
    class: &'p str,
    text: &'p str,
    out: &mut String,
) -> Result<&'p str, PatternError> {
    let (low, rest) = class_char(class, text)?;
    let Some(after) = rest
        .strip_prefix('-')
        .filter(|r| !r.is_empty() && !r.starts_with(']'))
    else {
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

/// Parses `[:alpha:]` and similar classes; these are ASCII in both engines.
fn posix_class(text: &str) -> Result<Option<(&str, &str)>, PatternError> {
    const NAMES: [&str; 14] = [
        "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
        "space", "upper", "word", "xdigit",
    ];
    let Some(end) = text.strip_prefix("[:").and_then(|t| t.find(":]")) else {
        return Ok(None);
    };
    let whole = text.get(..end + 4).unwrap_or(text);
    let name = text.get(2..end + 2).unwrap_or_default();
    if NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        Ok(Some((whole, text.get(end + 4..).unwrap_or_default())))
    } else {
        Err(syntax("invalid character class range", whole))
    }
}

/// Translates `\d`, `\pN`, `\p{Greek}`, `\P{…}` to the inside of a class.
pub(crate) fn named_class(text: &str) -> Result<Option<(String, &str)>, PatternError> {
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
        "C", "Cc", "Cf", "Cn", "Co", "Cs", "L", "LC", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc",
        "Me", "Mn", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",
        "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs",
    ];
    let mut negated = text.starts_with(r"\P");
    let after = text.get(2..).unwrap_or_default();
    let (mut name, len) = if let Some(inside) = after.strip_prefix('{') {
        let end = inside
            .find('}')
            .ok_or_else(|| syntax("invalid character class range", text))?;
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

/// Parses an escape that stands for one character.
pub(crate) fn escaped_char(text: &str) -> Result<(u32, &str), PatternError> {
    let mut chars = text.chars();
    chars.next();
    let Some(c) = chars.next() else {
        return Err(syntax("trailing backslash at end of expression", ""));
    };
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
        '1'..='7' if !rest.starts_with(|d: char| ('0'..='7').contains(&d)) => {
            Err(bad_escape(text, rest))
        }
        '0'..='7' => Ok(octal(text.get(1..).unwrap_or_default())),
        'x' => hexadecimal(text, rest),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => simple(u32::from(c)),
        _ => Err(bad_escape(text, rest)),
    }
}

fn octal(digits: &str) -> (u32, &str) {
    let len = digits
        .bytes()
        .take(3)
        .take_while(|b| (b'0'..=b'7').contains(b))
        .count();
    let (number, rest) = digits.split_at(len);
    (u32::from_str_radix(number, 8).unwrap_or_default(), rest)
}

fn hexadecimal<'p>(text: &'p str, after: &'p str) -> Result<(u32, &'p str), PatternError> {
    let (digits, rest) = match after.strip_prefix('{') {
        Some(inside) => inside.split_once('}').ok_or_else(|| bad_escape(text, ""))?,
        None => (
            after.get(..2).ok_or_else(|| bad_escape(text, ""))?,
            after.get(2..).unwrap_or_default(),
        ),
    };
    let value = digits
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten();
    value
        .filter(|v| *v <= u32::from(char::MAX))
        .map(|v| (v, rest))
        .ok_or_else(|| bad_escape(text, rest))
}

fn bad_escape(text: &str, rest: &str) -> PatternError {
    syntax(
        "invalid escape sequence",
        text.get(..text.len() - rest.len()).unwrap_or(text),
    )
}

pub(crate) fn push_literal(out: &mut String, c: u32) {
    match char::from_u32(c) {
        Some(c) if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
        Some(_) => {
            let _ = write!(out, r"\x{{{c:X}}}");
        }
        // A surrogate: valid in Go's syntax, in no text.
        None => out.push_str(r"[^\x{0}-\x{10FFFF}]"),
    }
}

/// Adds a range to a class, cutting surrogates off its ends because this engine cannot express
/// them.
fn push_range(out: &mut String, low: u32, high: u32) {
    let low = if (0xD800..=0xDFFF).contains(&low) {
        0xE000
    } else {
        low
    };
    let high = if (0xD800..=0xDFFF).contains(&high) {
        0xD7FF
    } else {
        high
    };
    if low <= high {
        let _ = write!(out, r"\x{{{low:X}}}-\x{{{high:X}}}");
    }
}
