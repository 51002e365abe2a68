//! Grammar of single lines: request line, status line and field lines (RFC 9112 sections 3 to 5).

use memchr::memchr;
use traffic_proto::token::is_token;

use super::model::{Ambiguous, Kind, Method, Start};

/// Offsets of a line's parts from its start.
#[derive(Clone, Copy)]
pub(super) struct Line {
    /// Offset of a field line's colon.
    pub(super) colon: usize,
    /// Offset of the CR.
    pub(super) end: usize,
}

pub(super) fn start_line_end(bytes: &[u8]) -> Result<Option<Line>, Ambiguous> {
    line_end(bytes, 0).map(|end| end.map(|end| Line { colon: 0, end }))
}

/// Finds colon and end of a field line, `None` while it is incomplete; the empty line has its end
/// at 0.
pub(super) fn field_line(bytes: &[u8]) -> Result<Option<Line>, Ambiguous> {
    let Some(colon) = bytes.iter().position(|b| !is_token(*b)) else {
        return Ok(None);
    };
    match (colon, bytes.get(colon).copied()) {
        (0, Some(b'\r')) => Ok(line_end(bytes, 0)?.map(|end| Line { colon: 0, end })),
        // obs-fold is deprecated (RFC 9112 section 5.2) and merged differently by parsers.
        (0, Some(b' ' | b'\t')) => Err(Ambiguous::Folded),
        (0, _) => Err(Ambiguous::Name),
        (_, Some(b':')) => Ok(line_end(bytes, colon + 1)?.map(|end| Line { colon, end })),
        _ => Err(Ambiguous::Name),
    }
}

/// Returns the offset of the CR LF that ends the line, searched from `from`; rejects control
/// characters before it.
pub(super) fn line_end(bytes: &[u8], from: usize) -> Result<Option<usize>, Ambiguous> {
    let mut at = from;
    loop {
        at += text_len(bytes.get(at..).unwrap_or_default());
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(b'\t'), _) => at += 1,
            (Some(b'\r'), Some(b'\n')) => return Ok(Some(at)),
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            // A bare CR or LF ends a line for some parsers only (RFC 9112 section 2.2).
            (Some(b'\r' | b'\n'), _) => return Err(Ambiguous::LineEnd),
            (Some(_), _) => return Err(Ambiguous::Value),
        }
    }
}

/// Counts the leading bytes that are neither control characters nor DEL; eight at a time.
pub(super) fn text_len(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let (words, tail) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let w = u64::from_le_bytes(*word);
        let del = w ^ (ONES * 0x7f);
        // The usual bit tricks for "a byte below 0x20" and "a zero byte"; the lowest flag is exact,
        // higher ones need not be.
        let flags = (w.wrapping_sub(ONES * 0x20) & !w | del.wrapping_sub(ONES) & !del) & HIGH;
        if flags != 0 {
            return i * 8 + (flags.trailing_zeros() / 8) as usize;
        }
    }
    words.len() * 8
        + tail
            .iter()
            .position(|b| *b < 0x20 || *b == 0x7f)
            .unwrap_or(tail.len())
}

/// Returns true if an incomplete first line may still become a valid one; it holds no control
/// characters but tabs.
pub(super) fn may_begin(kind: Kind, bytes: &[u8]) -> bool {
    match kind {
        Kind::Request => may_begin_request(bytes),
        Kind::Response => may_begin_response(bytes),
    }
}

fn may_begin_request(bytes: &[u8]) -> bool {
    let Some(method) = bytes.iter().position(|b| !is_token(*b)) else {
        return true;
    };
    if method == 0 {
        return bytes == b"\r";
    }
    let Some(rest) = bytes.get(method..).and_then(|b| b.strip_prefix(b" ")) else {
        return false;
    };
    let Some(target) = rest.iter().position(|b| !is_text(*b) || *b == b' ') else {
        return true;
    };
    target > 0
        && rest
            .get(target..)
            .and_then(|b| b.strip_prefix(b" "))
            .is_some_and(|version| {
                [&b"HTTP/1.1\r"[..], b"HTTP/1.0\r"]
                    .iter()
                    .any(|whole| whole.starts_with(version))
            })
}

fn may_begin_response(bytes: &[u8]) -> bool {
    let version = bytes.get(..bytes.len().min(9)).unwrap_or_default();
    let code = bytes.get(9..bytes.len().min(12)).unwrap_or_default();
    (b"HTTP/1.1 ".starts_with(version) || b"HTTP/1.0 ".starts_with(version))
        && code.iter().all(u8::is_ascii_digit)
        && matches!(bytes.get(12), None | Some(b' ' | b'\r'))
}

/// Returns true if the value of an incomplete `Content-Length` line may still be a number.
pub(super) fn may_be_length(value: &[u8]) -> bool {
    let digits = value.trim_ascii_start();
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let rest = digits.get(len..).unwrap_or_default();
    (len > 0 || rest.is_empty()) && rest.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r'))
}

/// Parses `method SP target SP HTTP/1.x`, with exactly one space at each place (RFC 9112 section
/// 3).
pub(super) fn request_line(line: &[u8], offset: usize) -> Option<(Start, u8)> {
    let method_end = memchr(b' ', line).filter(|end| *end > 0)?;
    let method = line.get(..method_end)?;
    if !method.iter().all(|b| is_token(*b)) {
        return None;
    }
    let target = method_end + 1;
    let target_end = target + memchr(b' ', line.get(target..)?).filter(|len| *len > 0)?;
    // Some parsers split the request line at tabs as well.
    if line.get(target..target_end)?.contains(&b'\t') {
        return None;
    }
    let minor = version(line.get(target_end + 1..)?)?;
    let method = match method {
        b"HEAD" => Method::Head,
        b"CONNECT" => Method::Connect,
        _ => Method::Other,
    };
    Some((
        Start::Request {
            method,
            method_at: offset,
            target: offset + target,
            target_end: offset + target_end,
        },
        minor,
    ))
}

/// Parses `HTTP/1.x SP 3DIGIT [SP reason]` (RFC 9112 section 4).
pub(super) fn status_line(line: &[u8]) -> Option<(Start, u8)> {
    let (version_text, rest) = line.split_at_checked(8)?;
    let minor = version(version_text)?;
    let (digits, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(reason.first(), None | Some(b' ')) {
        return None;
    }
    let status = digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    // Three digits are at most 999; codes below 100 do not exist.
    (status >= 100).then_some((Start::Response { status }, minor))
}

fn version(text: &[u8]) -> Option<u8> {
    match text {
        b"HTTP/1.1" => Some(1),
        b"HTTP/1.0" => Some(0),
        _ => None,
    }
}

pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let number = digits.iter().try_fold(0u64, |n, d| {
        let digit = d.is_ascii_digit().then(|| u64::from(d - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })?;
    // Lengths above a signed 64-bit number are parsed differently by different implementations.
    (!digits.is_empty() && i64::try_from(number).is_ok()).then_some(number)
}

/// Returns true for a byte of visible text, space, or beyond ASCII.
pub(super) fn is_text(byte: u8) -> bool {
    byte >= 0x20 && byte != 0x7f
}

pub(super) fn trimmed(value: &[u8]) -> &[u8] {
    let mut value = value;
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
