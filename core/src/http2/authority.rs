//! Requests for servers that are stricter than their callers: the `http` crate, which stands below
//! gRPC servers here, refuses an `:authority` that it takes for no host name, and Go's gRPC sends such
//! (`pod%2Fname.namespace:18000`, a path of a socket, nothing at all). What such a server shall read
//! has another authority in its place, and says the rest as the client did.
//!
//! Header sections come out plain: no Huffman code and no table. What the server's library keeps for
//! both stays empty, and no entry of a table keeps a buffer of 8 kB alive in which it was read.

use crate::http2::frames::{FrameHeader, HEAD, PREFACE, kind};
use crate::http2::hpack::{
    DEFAULT_TABLE, Decoder, Field, FieldList, Form, StaticRef, encode_without_table,
};
use crate::http2::section::{self, Extent};
use traffic_proto::rewrite::Rewrite;

/// The index of `:authority` in HPACK's static table.
const AUTHORITY: StaticRef = StaticRef::Name(1);
/// Bytes of a section that a server is to read; it refuses far smaller ones. The section of a client
/// that names large entries of its table is many times as large without one.
const MAX_SECTION: usize = 64 * 1024;
/// Bytes beyond which no further section is begun before the server has read.
const MAX_AHEAD: usize = 64 * 1024;

/// Rewrites what one client sends on one connection. Bytes in, bytes out; it never fails: what it
/// can't understand passes as it is, and so does everything behind it.
#[derive(Debug)]
pub struct AuthorityRewriter {
    replacement: &'static str,
    /// Bytes that are not understood yet: a frame header, or a header section; or that wait.
    pending: Vec<u8>,
    /// Bytes of a payload that are still to pass.
    passing: usize,
    /// What is still to come of the preface.
    preface: &'static [u8],
    decoder: Decoder,
    /// The client's bytes are no longer understood, or were never HTTP/2.
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
            passing: 0,
            preface: PREFACE,
            // What servers allow that say nothing else.
            decoder: Decoder::new(DEFAULT_TABLE),
            lost: false,
        }
    }

    /// Passes what belongs to the preface, and returns the rest.
    fn begin<'b>(&mut self, bytes: &'b [u8], out: &mut Vec<u8>) -> &'b [u8] {
        let (now, later) = bytes.split_at(self.preface.len().min(bytes.len()));
        match self.preface.strip_prefix(now) {
            Some(to_come) => self.preface = to_come,
            None => self.lost = true,
        }
        out.extend_from_slice(now);
        later
    }

    /// One whole header section.
    fn section(&mut self, frames: &[u8], out: &mut Vec<u8>) {
        let (mut joined, mut fields) = (Vec::new(), FieldList::default());
        let read = section::read(frames, &mut joined);
        let Some(section) = read.filter(|s| self.decoder.decode(s.block, &mut fields).is_ok())
        else {
            self.lost = true;
            out.extend_from_slice(frames);
            return;
        };
        let odd = |f: &Field<'_>| f.name == b":authority" && !is_host(f.value);
        let replacement = Field {
            name: b":authority",
            value: self.replacement.as_bytes(),
            form: Form::Plain,
            known: AUTHORITY,
        };
        let mut block = Vec::new();
        for field in fields.iter() {
            encode_without_table(if odd(&field) { replacement } else { field }, &mut block);
            if block.len() > MAX_SECTION {
                break;
            }
        }
        let (stream, ends) = (section.head.stream, section.head.ends_stream());
        section::write_request(stream, ends, section.priority, &block, out);
    }
}

impl Rewrite for AuthorityRewriter {
    /// Everything passes but header sections.
    fn pass(&mut self, received: &[u8]) -> usize {
        if !self.pending.is_empty() || !self.preface.is_empty() {
            return 0;
        }
        let mut rest = received;
        while !self.lost {
            let (now, later) = rest.split_at(self.passing.min(rest.len()));
            self.passing -= now.len();
            rest = later;
            match FrameHeader::peek(rest) {
                Some(head) if head.kind != kind::HEADERS => {
                    self.passing = HEAD + head.length as usize;
                }
                _ => return received.len() - rest.len(),
            }
        }
        received.len()
    }

    /// A header section comes out when it is complete, everything else at once. Where `out` has
    /// become long the rest waits for the next call, which may bring nothing.
    fn rewrite(&mut self, input: &[u8], out: &mut Vec<u8>) {
        if self.lost && self.pending.is_empty() {
            out.extend_from_slice(input);
            return;
        }
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(input);
        let mut rest = self.begin(&pending, out);
        while !self.lost && out.len() < MAX_AHEAD {
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
        }
        if self.lost {
            out.extend_from_slice(rest);
            rest = &[];
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        pending.shrink_to_fit();
        self.pending = pending;
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
        let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
        for byte in [&PREFACE[..], &settings].concat() {
            rewriter.rewrite(&[byte], &mut out);
        }
        assert_eq!(out, [&PREFACE[..], &settings].concat());
        out.clear();
        for byte in request {
            assert!(out.is_empty());
            rewriter.rewrite(&[byte], &mut out);
        }
        assert_eq!(Ends::default().authorities(&out), ["echo"]);
        out.clear();
        for byte in data.iter().take(data.len() - 1) {
            rewriter.rewrite(&[*byte], &mut out);
        }
        assert_eq!(out, data[..data.len() - 1]);
    }

    #[test]
    fn a_section_comes_out_without_code_and_table() {
        let mut ends = Ends::default();
        let wire = [
            PREFACE.to_vec(),
            ends.request(1, b"echo"),
            ends.request(3, b"echo"),
        ];
        let mut out = Vec::new();
        AuthorityRewriter::new("localhost").rewrite(&wire.concat(), &mut out);
        // Each is read without the other.
        let mut bytes = out.strip_prefix(PREFACE).unwrap();
        while let Extent::Whole(n) = section::extent(bytes) {
            let (section, later) = bytes.split_at(n);
            assert_eq!(Ends::default().authorities(section), ["echo"]);
            assert!(section.windows(6).any(|text| text == b"\x04echo\x00"));
            bytes = later;
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_client_that_names_large_entries_often_is_read_step_by_step() {
        let (mut block, mut wire) = (Vec::new(), PREFACE.to_vec());
        let large = Field {
            form: Form::Incremental,
            ..Field::plain(b"x-large", &[b'a'; 4000])
        };
        Encoder::default().encode(std::iter::once(large), &mut block);
        section::write(1, true, &block, &mut wire);
        // The entry's index.
        for n in 1..400 {
            section::write(2 * n + 1, true, &[0x80 | 62; 100], &mut wire);
        }
        let (mut rewriter, mut all) = (AuthorityRewriter::new("localhost"), 0);
        let (mut input, mut sections) = (&wire[..], 0);
        loop {
            let mut out = Vec::new();
            rewriter.rewrite(input, &mut out);
            assert!(out.len() <= MAX_AHEAD + MAX_SECTION + 8192, "{}", out.len());
            if out.is_empty() {
                break;
            }
            let mut bytes = out.strip_prefix(PREFACE).unwrap_or(&out);
            while let Extent::Whole(n) = section::extent(bytes) {
                (bytes, sections) = (&bytes[n..], sections + 1);
            }
            assert!(bytes.is_empty());
            (input, all) = (&[], all + out.len());
        }
        assert_eq!(sections, 400);
        assert!(all > 100 * MAX_SECTION, "{all}");
    }

    #[test]
    fn what_is_no_http2_passes_as_it_is() {
        let headers = [0, 0, 1, kind::HEADERS, END_HEADERS, 0, 0, 0, 1, 0x82];
        let wire = [&b"POST / HTTP/1.1\r\nhost: a\r\n\r\n"[..], &headers].concat();
        for step in [1, 7, wire.len()] {
            let (mut rewriter, mut out) = (AuthorityRewriter::new("localhost"), Vec::new());
            for piece in wire.chunks(step) {
                rewriter.rewrite(piece, &mut out);
            }
            assert_eq!(out, wire);
        }
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
            prop_assert!(out.len() <= MAX_AHEAD + MAX_SECTION + 8192);
        }
    }
}
