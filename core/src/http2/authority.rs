//! `:authority` for servers that are stricter than their callers: the `http` crate, which stands
//! below gRPC servers here, refuses what it takes for no host name, and Go's gRPC sends such
//! (`pod%2Fname.namespace:18000`, a path of a socket, nothing at all). What such a server shall
//! read has another authority in its place; everything else passes as it came.

use crate::http2::frames::{FrameHeader, HEAD, PREFACE, kind};
use crate::http2::hpack::{Field, FieldList, Form, Recoder, StaticRef};
use crate::http2::section::{self, Extent};

/// The index of `:authority` in HPACK's static table.
const AUTHORITY: StaticRef = StaticRef::Name(1);

/// Rewrites what one client sends on one connection. Bytes in, bytes out; it never fails: what it
/// can't understand passes as it is, and so does everything behind it.
#[derive(Debug)]
pub struct AuthorityRewriter {
    replacement: &'static str,
    /// Bytes that are not understood yet: a frame header, or a header section.
    pending: Vec<u8>,
    /// Bytes of a payload, or of the preface, that are still to pass.
    passing: usize,
    recoder: Recoder,
    fields: FieldList,
    /// The client's bytes are no longer understood.
    lost: bool,
}

impl AuthorityRewriter {
    /// A rewriter for a connection from its first byte on. `replacement` takes the place of what is
    /// no host name.
    #[must_use]
    pub fn new(replacement: &'static str) -> Self {
        Self {
            replacement,
            pending: Vec::new(),
            passing: PREFACE.len(),
            recoder: Recoder::default(),
            fields: FieldList::default(),
            lost: false,
        }
    }

    /// Takes the next bytes of the client, and appends to `out` what the server shall read. A
    /// header section comes out when it is complete, everything else at once.
    pub fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.lost {
            out.extend_from_slice(input);
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(input);
        let mut rest = &pending[..];
        loop {
            let (now, later) = rest.split_at(self.passing.min(rest.len()));
            out.extend_from_slice(now);
            self.passing -= now.len();
            rest = later;
            let Some(head) = FrameHeader::peek(rest) else {
                break;
            };
            if head.kind != kind::HEADERS {
                self.passing = HEAD + head.length as usize;
                continue;
            }
            match section::extent(rest) {
                Extent::More => break,
                Extent::Whole(n) => {
                    let (frames, later) = rest.split_at(n);
                    self.section(frames, out);
                    rest = later;
                }
                Extent::Broken | Extent::TooLong => self.lost = true,
            }
            if self.lost {
                out.extend_from_slice(rest);
                rest = &[];
                break;
            }
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        pending.shrink_to(HEAD);
        self.pending = pending;
    }

    /// One whole header section.
    fn section(&mut self, frames: &[u8], out: &mut Vec<u8>) {
        let mut joined = Vec::new();
        self.fields.clear();
        let read = section::read(frames, &mut joined);
        let Some(section) = read.filter(|s| self.recoder.read(s.block, &mut self.fields).is_ok())
        else {
            self.lost = true;
            out.extend_from_slice(frames);
            return;
        };
        let odd = |f: &Field<'_>| f.name == b":authority" && !is_host(f.value);
        if self.recoder.is_verbatim() && !self.fields.iter().any(|f| odd(&f)) {
            out.extend_from_slice(frames);
            return;
        }
        let replacement = Field {
            name: b":authority",
            value: self.replacement.as_bytes(),
            form: Form::Incremental,
            known: AUTHORITY,
        };
        let fields = self.fields.iter();
        let fields = fields.map(|f| if odd(&f) { replacement } else { f });
        let mut block = Vec::new();
        self.recoder.encode(fields, &mut block);
        let (stream, ends) = (section.head.stream, section.head.ends_stream());
        section::write_request(stream, ends, section.priority, &block, out);
    }
}

/// Returns true if `authority` is a name or an address, with or without a port (RFC 3986 section
/// 3.2), of characters that nobody objects to.
#[must_use]
pub fn is_host(authority: &[u8]) -> bool {
    let (host, port) = match authority {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|b| *b == b']') else {
                return false;
            };
            let (host, rest) = rest.split_at(end);
            let address =
                str::from_utf8(host).is_ok_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok());
            match rest {
                [b']'] => return address,
                [b']', b':', port @ ..] if address => return is_port(port),
                _ => return false,
            }
        }
        _ => match authority.iter().position(|b| *b == b':') {
            Some(at) => {
                let (host, port) = authority.split_at(at);
                (host, port.get(1..))
            }
            None => (authority, None),
        },
    };
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    !host.is_empty() && host.iter().all(allowed) && port.is_none_or(is_port)
}

fn is_port(port: &[u8]) -> bool {
    !port.is_empty() && port.iter().all(u8::is_ascii_digit) && port.len() <= 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::frames::{END_HEADERS, END_STREAM};
    use crate::http2::hpack::{Decoder, Encoder};
    use proptest::prelude::*;

    /// A client that writes header sections, and what a server reads of them.
    #[derive(Default)]
    struct Ends {
        encoder: Encoder,
        decoder: Decoder,
    }

    impl Ends {
        fn request(&mut self, stream: u32, authority: &[u8]) -> Vec<u8> {
            let incremental = |name, value| Field {
                form: Form::Incremental,
                ..Field::plain(name, value)
            };
            let fields = [
                incremental(b":method", b"POST"),
                incremental(b":authority", authority),
                incremental(b"x-own", authority),
                Field::plain(b"te", b"trailers"),
            ];
            let (mut block, mut out) = (Vec::new(), Vec::new());
            self.encoder.encode(fields.into_iter(), &mut block);
            section::write(stream, true, &block, &mut out);
            out
        }

        /// Authorities of the requests in `bytes`, behind the preface.
        fn authorities(&mut self, mut bytes: &[u8]) -> Vec<String> {
            let mut found = Vec::new();
            while let Extent::Whole(n) = section::extent(bytes) {
                let mut joined = Vec::new();
                let section = section::read(&bytes[..n], &mut joined).unwrap();
                let mut list = FieldList::default();
                self.decoder.decode(section.block, &mut list).unwrap();
                let of = |name: &[u8]| list.iter().find(|f| f.name == name).unwrap();
                assert_eq!(list.len(), 4);
                found.push(of(b":authority").value.escape_ascii().to_string());
                bytes = &bytes[n..];
            }
            assert!(bytes.is_empty());
            found
        }
    }

    #[test]
    fn what_is_no_host_is_replaced_and_the_next_sections_are_still_understood() {
        let mut ends = Ends::default();
        let mut wire = PREFACE.to_vec();
        let sent = [
            &b"echo.default:80"[..],
            b"pod%2Fecho-1.default:18000",
            b"pod%2Fecho-1.default:18000",
            b"",
            b"/run/x.sock",
            b"echo.default:80",
            b"[::1]:80",
        ];
        for (n, authority) in sent.iter().enumerate() {
            wire.extend(ends.request(2 * n as u32 + 1, authority));
        }
        for step in [1, 7, wire.len()] {
            let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
            for piece in wire.chunks(step) {
                rewriter.rewrite(piece, &mut out);
            }
            let mut ends = Ends::default();
            assert_eq!(
                ends.authorities(out.strip_prefix(PREFACE).unwrap()),
                [
                    "echo.default:80",
                    "localhost",
                    "localhost",
                    "localhost",
                    "localhost",
                    "echo.default:80",
                    "[::1]:80"
                ]
            );
        }
    }

    #[test]
    fn all_else_passes_at_once_and_as_it_came() {
        let mut ends = Ends::default();
        let settings = [0, 0, 0, kind::SETTINGS, 0, 0, 0, 0, 0];
        let data = [&[0, 0, 3, kind::DATA, END_STREAM, 0, 0, 0, 1][..], b"abc"].concat();
        let request = ends.request(1, b"echo");
        let wire = [&PREFACE[..], &settings, &request, &data].concat();
        let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
        for byte in wire.iter().take(wire.len() - 1) {
            rewriter.rewrite(&[*byte], &mut out);
        }
        assert_eq!(out, wire[..wire.len() - 1]);
    }

    #[test]
    fn what_is_not_understood_passes_with_all_behind_it() {
        let broken = [0, 0, 1, kind::HEADERS, END_HEADERS, 0, 0, 0, 1, 0x80];
        let open = [0, 0, 0, kind::HEADERS, 0, 0, 0, 0, 1];
        let ping = [0, 0, 0, kind::PING, 0, 0, 0, 0, 0];
        for bad in [&broken[..], &[&open[..], &ping].concat()] {
            let later = Ends::default().request(3, b"a/b");
            let wire = [&PREFACE[..], bad, &later].concat();
            let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
            rewriter.rewrite(&wire, &mut out);
            rewriter.rewrite(b"more", &mut out);
            assert_eq!(out, [&wire[..], b"more"].concat());
        }
    }

    #[test]
    fn names_and_addresses_are_hosts() {
        for host in ["a", "a.b-c_d:1", "10.0.0.1:65535", "[::1]", "[fe80::1]:443"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for other in [
            "", ":80", "a:", "a:b", "a:1:2", "a%2Fb", "a/b", "a b", "u@a", "[a]", "[::1", "[::1]x",
            "a:123456", "\u{e9}",
        ] {
            assert!(!is_host(other.as_bytes()), "{other}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_for_a_host_is_one_for_the_http_crate(text in "[a-z0-9.:%/@\\[\\]_~-]{0,24}") {
            if is_host(text.as_bytes()) {
                prop_assert!(text.parse::<http::uri::Authority>().is_ok(), "{}", text);
            }
        }

        #[test]
        fn any_bytes_are_rewritten_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..40,
        ) {
            let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
            for piece in bytes.chunks(step) {
                rewriter.rewrite(piece, &mut out);
            }
            prop_assert!(out.len() <= bytes.len() * 40 + 40);
        }
    }
}
