//! The offer of a request to go on in HTTP/2 (RFC 7540 section 3.2): `Upgrade: h2c` and
//! `HTTP2-Settings`.

use crate::http1::head::Head;
use crate::http2::settings;
use memchr::memchr;

/// An offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The payload of the caller's SETTINGS.
    pub settings: Vec<u8>,
}

/// The offer of a request, where it makes one. `bytes` are the head's own.
#[must_use]
pub fn offered(head: &Head, bytes: &[u8]) -> Option<Offer> {
    if !head.upgrade || !names_h2c(head, bytes) {
        return None;
    }
    let mut said = values(head, bytes, b"http2-settings");
    // Without them, or with some that make no sense, the app may agree all the same.
    let settings = said.next().and_then(settings::from_upgrade);
    Some(Offer {
        settings: settings.unwrap_or_default(),
    })
}

/// Returns true if an answer agrees to the offer.
#[must_use]
pub fn is_accepted(head: &Head, bytes: &[u8]) -> bool {
    head.status() == 101 && head.upgrade && names_h2c(head, bytes)
}

/// A head without its offer, for a server that must not have the whole connection; `None` where
/// nothing is offered. An offer is between two neighbours and may be left out (RFC 9110 section
/// 7.8); offers of other protocols stay.
#[must_use]
pub fn without_offer(head: &Head, bytes: &[u8]) -> Option<Vec<u8>> {
    if !head.upgrade || !names_h2c(head, bytes) {
        return None;
    }
    let others = values(head, bytes, b"upgrade").flat_map(tokens);
    let others = others.filter(|token| !is_h2c(token)).count() > 0;
    let (first, mut fields) = head.split(bytes);
    let mut out = Vec::with_capacity(head.len);
    out.extend_from_slice(first);
    while let Some(end) = memchr(b'\n', fields) {
        let (line, after) = fields.split_at(end + 1);
        fields = after;
        let name = name(line);
        if name.eq_ignore_ascii_case(b"upgrade") {
            keep(line, |token| !is_h2c(token), &mut out);
        } else if name.eq_ignore_ascii_case(b"connection") {
            let of_offer = |token: &[u8]| {
                token.eq_ignore_ascii_case(b"http2-settings")
                    || (!others && token.eq_ignore_ascii_case(b"upgrade"))
            };
            keep(line, |token| !of_offer(token), &mut out);
        } else if !name.eq_ignore_ascii_case(b"http2-settings") {
            out.extend_from_slice(line);
        }
    }
    Some(out)
}

/// Writes a line with those of its tokens that stay, or as it is where all do.
fn keep(line: &[u8], stays: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
    if tokens(value(line)).all(&stays) {
        out.extend_from_slice(line);
        return;
    }
    let kept: Vec<_> = tokens(value(line)).filter(|token| stays(token)).collect();
    if !kept.is_empty() {
        out.extend_from_slice(name(line));
        out.extend_from_slice(b": ");
        out.extend_from_slice(&kept.join(&b", "[..]));
        out.extend_from_slice(b"\r\n");
    }
}

fn names_h2c(head: &Head, bytes: &[u8]) -> bool {
    values(head, bytes, b"upgrade").flat_map(tokens).any(is_h2c)
}

fn is_h2c(token: &[u8]) -> bool {
    token.eq_ignore_ascii_case(b"h2c")
}

/// Values of all lines of this name.
fn values<'b>(
    head: &Head,
    bytes: &'b [u8],
    wanted: &'static [u8],
) -> impl Iterator<Item = &'b [u8]> + use<'b> {
    let (_, fields) = head.split(bytes);
    let lines = fields.split_inclusive(|b| *b == b'\n');
    lines
        .filter(move |line| name(line).eq_ignore_ascii_case(wanted))
        .map(value)
}

fn name(line: &[u8]) -> &[u8] {
    let colon = memchr(b':', line).unwrap_or(0);
    line.get(..colon).unwrap_or_default()
}

fn value(line: &[u8]) -> &[u8] {
    let after = memchr(b':', line).map_or(0, |colon| colon + 1);
    line.get(after..).unwrap_or_default().trim_ascii()
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let tokens = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    tokens.filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head::{Kind, Parser, Step};

    const SETTINGS: &str = "HTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n";

    fn parsed(kind: Kind, text: &str) -> Head {
        match Parser::new(kind).parse(text.as_bytes()) {
            Ok(Step::Complete(head)) => head,
            other => panic!("{other:?} for {text:?}"),
        }
    }

    #[test]
    fn an_offer_is_known_with_its_settings() {
        for (lines, offers) in [
            (format!("Upgrade: h2c\r\n{SETTINGS}"), Some(18)),
            (format!("upgrade: websocket, H2C\r\n{SETTINGS}"), Some(18)),
            ("Upgrade: h2c\r\n".to_owned(), Some(0)),
            ("Upgrade: h2c\r\nHTTP2-Settings: !\r\n".to_owned(), Some(0)),
            (format!("Upgrade: websocket\r\n{SETTINGS}"), None),
            (format!("X-Upgrade: h2c\r\n{SETTINGS}"), None),
            (SETTINGS.to_owned(), None),
        ] {
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
            let head = parsed(Kind::Request, &text);
            let offer = offered(&head, text.as_bytes());
            assert_eq!(offer.map(|o| o.settings.len()), offers, "{lines}");
        }
    }

    #[test]
    fn an_answer_agrees_or_does_not() {
        for (text, agrees) in [
            (
                "101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c",
                true,
            ),
            ("101 Switching Protocols\r\nUpgrade: websocket", false),
            ("101 Switching Protocols\r\nX: h2c", false),
            ("200 OK\r\nUpgrade: h2c", false),
        ] {
            let text = format!("HTTP/1.1 {text}\r\n\r\n");
            let head = parsed(Kind::Response, &text);
            assert_eq!(is_accepted(&head, text.as_bytes()), agrees, "{text}");
        }
    }

    #[test]
    fn a_head_loses_the_offer_and_nothing_else() {
        for (given, left) in [
            (
                format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n{SETTINGS}"),
                Some(""),
            ),
            (
                format!(
                    "Connection: keep-alive, Upgrade, HTTP2-Settings\r\nX:  y \r\nUpgrade: h2c\r\n{SETTINGS}"
                ),
                Some("Connection: keep-alive\r\nX:  y \r\n"),
            ),
            (
                format!(
                    "upgrade:h2c,websocket\r\nConnection:Upgrade\r\nConnection: HTTP2-Settings\r\n{SETTINGS}"
                ),
                Some("upgrade: websocket\r\nConnection:Upgrade\r\n"),
            ),
            (
                "Upgrade: websocket\r\nConnection: Upgrade\r\n".to_owned(),
                None,
            ),
        ] {
            let text = format!("GET /a HTTP/1.1\r\nHost:  a\r\n{given}\r\n");
            let head = parsed(Kind::Request, &text);
            let longer = format!("{text}body");
            let left = left.map(|left| format!("GET /a HTTP/1.1\r\nHost:  a\r\n{left}\r\n"));
            let without = without_offer(&head, longer.as_bytes());
            assert_eq!(
                without.map(|b| String::from_utf8(b).unwrap()),
                left,
                "{given}"
            );
        }
    }
}
