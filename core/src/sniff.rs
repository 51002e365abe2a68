//! Classifies the first bytes of a connection: HTTP/2 preface, HTTP/1 request line, TLS record, or
//! other. A verdict, once given, holds for any bytes that follow.

use traffic_proto::token::is_token;
/// Client connection preface (RFC 9113 section 3.4).
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Maximum length of a method; registered ones have at most 17 letters.
const MAX_METHOD: usize = 32;

/// Methods that are registered or common.
const METHODS: [&str; 45] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// Classification of the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// The HTTP/2 preface.
    Http2,
    /// A request line of HTTP/1.0 or 1.1.
    Http1,
    /// A TLS handshake record.
    Tls,
    /// Other bytes.
    Other,
    /// Too few bytes to tell.
    NeedMore,
}

/// Classifies the bytes received so far.
#[must_use]
pub fn classify(bytes: &[u8]) -> FirstBytes {
    match bytes {
        [] => return FirstBytes::NeedMore,
        // A handshake record of SSL 3.0 to TLS 1.3, whose record version stays below 0x0304 (RFC
        // 8446 section 5.1).
        [0x16] | [0x16, 0x03] => return FirstBytes::NeedMore,
        [0x16, 0x03, 0..=4, ..] => return FirstBytes::Tls,
        _ => {}
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        FirstBytes::Http2
    } else if HTTP2_PREFACE.starts_with(bytes) {
        FirstBytes::NeedMore
    } else {
        request_line(bytes)
    }
}

/// Returns true if undecided bytes may still become TLS, a preface, or a request with a known
/// method (RFC 9110 section 16.1.1). Others can at best be a request with an unusual method.
#[must_use]
pub fn is_familiar(bytes: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let len = bytes.iter().take_while(|b| is_token(**b)).count();
    let Some((token, rest)) = bytes.split_at_checked(len) else {
        return false;
    };
    if token.is_empty() {
        return matches!(rest.first(), None | Some(0x16 | b'\r'));
    }
    METHODS.iter().any(|method| {
        if rest.is_empty() {
            method.as_bytes().starts_with(token)
        } else {
            method.as_bytes() == token
        }
    })
}

/// Returns true if these bytes, the first from a server, may be the SETTINGS frame (RFC 9113
/// section 6.5) with which every HTTP/2 server begins.
#[must_use]
pub fn may_be_settings(bytes: &[u8]) -> bool {
    let header = [
        None,
        None,
        None,
        Some(4),
        Some(0),
        Some(0),
        Some(0),
        Some(0),
        Some(0),
    ];
    let length = bytes
        .iter()
        .take(3)
        .fold(0, |n, b| n << 8 | usize::from(*b));
    header
        .iter()
        .zip(bytes)
        .all(|(want, byte)| want.is_none_or(|w| w == *byte))
        && (bytes.len() < 3 || length.is_multiple_of(6) && length <= 6 * 64)
}

/// Classifies a request line; one empty line before it has to be ignored (RFC 9112 section 2.2).
fn request_line(bytes: &[u8]) -> FirstBytes {
    let bytes = match bytes {
        [b'\r'] => return FirstBytes::NeedMore,
        [b'\r', b'\n', rest @ ..] => rest,
        _ => bytes,
    };
    let method = bytes.iter().take_while(|b| is_token(**b)).count();
    match bytes.get(method) {
        None if method <= MAX_METHOD => return FirstBytes::NeedMore,
        Some(b' ') if method > 0 && method <= MAX_METHOD => {}
        _ => return FirstBytes::Other,
    }
    let after = bytes.get(method + 1..).unwrap_or_default();
    let Some(target) = after.iter().position(|b| *b <= b' ' || *b == 0x7f) else {
        return FirstBytes::NeedMore;
    };
    if target == 0 || after.get(target) != Some(&b' ') {
        return FirstBytes::Other;
    }
    let version = after.get(target + 1..).unwrap_or_default();
    let is_http = [&b"HTTP/1.1\r\n"[..], b"HTTP/1.0\r\n"]
        .into_iter()
        .find(|v| v.starts_with(version) || version.starts_with(v));
    match is_http {
        Some(whole) if version.len() >= whole.len() => FirstBytes::Http1,
        Some(_) => FirstBytes::NeedMore,
        None => FirstBytes::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks that a verdict goes from `NeedMore` to its final value and never changes.
    fn settles_to(sample: &[u8], want: FirstBytes) {
        for cut in 0..=sample.len() {
            let verdict = classify(&sample[..cut]);
            assert!(
                verdict == FirstBytes::NeedMore || verdict == want,
                "at {cut}: {verdict:?}, want {want:?}"
            );
        }
        assert_eq!(classify(sample), want, "{sample:?}");
    }

    #[test]
    fn each_protocol_is_recognised_and_never_mistaken_on_the_way() {
        settles_to(HTTP2_PREFACE, FirstBytes::Http2);
        for line in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "M-SEARCH * HTTP/1.1\r\n",
            "x!#$%&'*+-.^_`|~9 /a?b=c HTTP/1.0\r\n",
            "CONNECT a:443 HTTP/1.1\r\n",
            "GET http://a/b HTTP/1.1\r\n",
            "\r\nPOST / HTTP/1.1\r\n",
            "PRI * HTTP/1.1\r\n",
            "PRIx / HTTP/1.1\r\n",
        ] {
            settles_to(line.as_bytes(), FirstBytes::Http1);
        }
        settles_to(&[0x16, 3, 1, 2, 0, 1], FirstBytes::Tls);
        for other in [
            &b"GET /\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"EHLO mail.example\r\n",
            b"get key\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET /\tx HTTP/1.1\r\n",
            b"GET / HTTP/1.2\r\n",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/2.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"AMQP\0\0\x09\x01",
            b"\x16\x02\x01",
            b" GET / HTTP/1.1\r\n",
        ] {
            settles_to(other, FirstBytes::Other);
        }
    }

    #[test]
    fn a_prefix_is_familiar_as_long_as_it_may_become_a_usual_request() {
        for yes in [
            "",
            "G",
            "GET",
            "GET /a",
            "\r",
            "\r\n",
            "\r\nPO",
            "PRI * HT",
            "PROPF",
            "M-SEARCH *",
            "\x16",
            "\x16\x03",
        ] {
            assert!(is_familiar(yes.as_bytes()), "{yes:?}");
        }
        for no in [
            "H1", "get", "GETX", "GE /", "HELLO", "x", "PING", "AUTH me", "\0", "\x01\x02",
        ] {
            assert!(!is_familiar(no.as_bytes()), "{no:?}");
        }
    }

    #[test]
    fn an_endless_method_is_not_waited_for() {
        assert_eq!(classify(&[b'A'; MAX_METHOD]), FirstBytes::NeedMore);
        assert_eq!(classify(&[b'A'; MAX_METHOD + 1]), FirstBytes::Other);
    }

    proptest! {
        #[test]
        fn a_verdict_holds_for_whatever_follows(
            head in prop_oneof![
                Just(b"GET /x HTTP/1.1\r\n".to_vec()),
                Just(HTTP2_PREFACE.to_vec()),
                Just(vec![0x16, 3, 1]),
                proptest::collection::vec(any::<u8>(), 0..40),
                "[A-Z]{0,8} {0,2}[ -~]{0,12} HTTP/[0-2].[0-2]\r?\n".prop_map(String::into_bytes),
            ],
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let whole = [head, tail].concat();
            let mut settled = None;
            for cut in 0..=whole.len() {
                let verdict = classify(&whole[..cut]);
                match settled {
                    None if verdict != FirstBytes::NeedMore => settled = Some(verdict),
                    None => {}
                    Some(before) => prop_assert_eq!(before, verdict, "at {}", cut),
                }
            }
        }
    }
}
