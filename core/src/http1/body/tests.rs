use super::*;
use crate::http1::head::{Kind, Parser, Step};
use proptest::prelude::*;

fn head(kind: Kind, text: &str) -> Head {
    match Parser::new(kind).parse(text.as_bytes()) {
        Ok(Step::Complete(head)) => head,
        other => panic!("{text:?}: {other:?}"),
    }
}

/// Follows `bytes` in pieces and returns the end of the body.
fn end_of(bytes: &[u8], cuts: &[usize]) -> Result<Option<usize>, Malformed> {
    let mut body = Body::Chunked(Chunk::Start);
    let mut at = 0;
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|c| c % (bytes.len() + 1))
        .chain([bytes.len()])
        .collect();
    ends.sort_unstable();
    for end in ends {
        while at < end && !body.is_done() {
            at += body.advance(&bytes[at..end]).map_err(|m| Malformed {
                sound: at + m.sound,
            })?;
        }
    }
    Ok(body.is_done().then_some(at))
}

#[test]
fn bodies_of_messages() {
    let request = |text| Body::of_request(&head(Kind::Request, text));
    assert_eq!(request("GET / HTTP/1.1\r\n\r\n"), Body::Done);
    assert_eq!(
        request("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"),
        Body::Length(3)
    );
    let response = |text, method| Body::of_response(&head(Kind::Response, text), method);
    assert_eq!(
        response("HTTP/1.1 200 OK\r\n\r\n", Method::Other),
        Body::UntilClose
    );
    assert_eq!(
        response("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head),
        Body::Done
    );
    assert_eq!(
        response("HTTP/1.1 304 x\r\nContent-Length: 3\r\n\r\n", Method::Other),
        Body::Done
    );
    assert_eq!(
        response("HTTP/1.1 204 x\r\n\r\n", Method::Other),
        Body::Done
    );
    assert_eq!(
        response(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Method::Other
        ),
        Body::Done
    );
}

#[test]
fn chunks_extensions_and_trailers_are_followed_to_their_end() {
    for (text, rest) in [
        ("0\r\n\r\n", 0),
        ("5\r\nhello\r\n0\r\n\r\nNEXT", 4),
        (
            "000A;name=\"va;l\u{e4}\" ; x\r\n0123456789\r\n0;y\r\n\r\n",
            0,
        ),
        (
            "1 \t;a\r\nx\r\n0\r\nX-Sum: 1\r\nodd name: z\r\n folded\r\n\r\nGET",
            3,
        ),
        ("0\r\n\r\n\r\n", 2),
    ] {
        assert_eq!(
            end_of(text.as_bytes(), &[]),
            Ok(Some(text.len() - rest)),
            "{text:?}"
        );
    }
}

#[test]
fn every_malformed_chunk_is_refused_before_its_first_wrong_byte() {
    for (sound, wrong) in [
        ("", "\r\n"),
        ("", " 5\r\n"),
        ("", "+5\r\n"),
        ("", "-5\r\n"),
        ("0", "x5\r\n"),
        ("5", "\nhello\r\n"),
        ("5\r", "hello"),
        ("5 ", "\r\nhello\r\n"),
        ("5;a", "\nhello"),
        ("5;a\r", "b\r\nhello\r\n"),
        ("5;a\r", "\r\nhello\r\n"),
        ("5;a", "\0\r\nhello\r\n"),
        ("5\r\nhello", "X\r\n"),
        ("5\r\nhello\r", "X"),
        ("5\r\nhello", "\n0\r\n\r\n"),
        ("000000000000000", "5\r\nhello\r\n"),
        ("fffffffffffffff", "f\r\n"),
        ("0\r\n", "\n"),
        ("0\r\n\r", "X"),
        ("0\r\nX: a", "\n\r\n"),
        ("0\r\nX: a\r", "b\r\n"),
    ] {
        let text = format!("{sound}{wrong}");
        assert_eq!(
            end_of(text.as_bytes(), &[]),
            Err(Malformed { sound: sound.len() }),
            "{text:?}"
        );
    }
}

/// A second parser of chunks, over httparse's size lines.
fn second_reader(mut bytes: &[u8]) -> Option<usize> {
    let whole = bytes.len();
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(bytes) else {
            return None;
        };
        bytes = &bytes[line..];
        if size == 0 {
            while !bytes.starts_with(b"\r\n") {
                let end = bytes.windows(2).position(|w| w == b"\r\n")?;
                bytes = &bytes[end + 2..];
            }
            return Some(whole - bytes.len() + 2);
        }
        let size = usize::try_from(size).ok()?;
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn chunked() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (
        proptest::collection::vec(any::<u8>(), 1..40),
        "(|;[a-z]{1,4}|;[a-z]=\"[ -~]{0,6}\")",
        0usize..3,
    );
    (
        proptest::collection::vec(chunk, 0..5),
        "(X-[A-Za-z]{1,5}: ?[!-~]{0,9}\r\n){0,3}",
    )
        .prop_map(|(chunks, trailer)| {
            let mut out = Vec::new();
            for (data, ext, zeros) in chunks {
                out.extend_from_slice(
                    format!("{}{:x}{ext}\r\n", "0".repeat(zeros), data.len()).as_bytes(),
                );
                out.extend_from_slice(&data);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n");
            out.extend_from_slice(trailer.as_bytes());
            out.extend_from_slice(b"\r\n");
            out
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HTTP1_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(512), ..ProptestConfig::default() })]

    #[test]
    fn a_sound_body_ends_where_a_second_reader_says_however_it_is_cut(
        body in chunked(),
        next in proptest::collection::vec(any::<u8>(), 0..20),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let bytes = [body.clone(), next].concat();
        prop_assert_eq!(end_of(&bytes, &cuts), Ok(Some(body.len())));
        prop_assert_eq!(second_reader(&bytes), Some(body.len()));
    }

    /// Changes one byte of a valid body: if we still accept it, the second parser ends at the same
    /// place.
    #[test]
    fn a_damaged_body_is_never_ended_elsewhere(body in chunked(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = body;
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(Some(end)) = end_of(&bytes, &[]) {
            // Control characters in trailers, and trailers generally, are where the simple second
            // reader is lax.
            if let Some(theirs) = second_reader(&bytes) {
                prop_assert_eq!(end, theirs, "{}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn any_bytes_are_followed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), cuts in proptest::collection::vec(any::<usize>(), 0..6)) {
        prop_assert_eq!(end_of(&bytes, &[]), end_of(&bytes, &cuts));
    }
}
