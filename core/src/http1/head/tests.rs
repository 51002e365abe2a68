use super::lines::text_len;
use super::*;
use crate::routing::Request as _;
use proptest::prelude::*;

fn parse(kind: Kind, text: &[u8]) -> Result<Step, Ambiguous> {
    Parser::new(kind).parse(text)
}

fn request(text: &str) -> Result<Head, Ambiguous> {
    match parse(Kind::Request, text.as_bytes())? {
        Step::Complete(head) => Ok(head),
        Step::More => panic!("incomplete: {text:?}"),
    }
}

fn response(text: &str) -> Result<Head, Ambiguous> {
    match parse(Kind::Response, text.as_bytes())? {
        Step::Complete(head) => Ok(head),
        Step::More => panic!("incomplete: {text:?}"),
    }
}

#[test]
fn what_routing_reads_of_a_request() {
    let text =
        "GET /a?b=c HTTP/1.1\r\nHost: x\r\nX-Dev: \t a b \t\r\nEmpty:\r\nx-dev:c:d\r\n\r\nbody";
    let head = request(text).unwrap();
    assert_eq!(head.len, text.len() - 4);
    let view = head.request(text.as_bytes());
    assert_eq!((view.method, view.target()), (&b"GET"[..], &b"/a?b=c"[..]));
    let mut lines = Vec::new();
    view.visit_headers(&mut |n, v| {
        lines.push(format!("{}={}", n.escape_ascii(), v.escape_ascii()))
    });
    assert_eq!(lines, ["Host=x", "X-Dev=a b", "Empty=", "x-dev=c:d"]);
}

#[test]
fn empty_lines_in_front_of_a_request() {
    let lines = |n| format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n".repeat(n));
    for n in 0..4 {
        let text = lines(n);
        // A first request may have one (RFC 9112 section 2.2); behind a message there is no limit
        // but that of the head.
        assert_eq!(request(&text).is_ok(), n < 2, "{n}");
        let Ok(Step::Complete(head)) = Parser::of_next_request().parse(text.as_bytes()) else {
            panic!("{n} empty lines");
        };
        assert_eq!((head.empty_lines(), head.len), (2 * n, text.len()));
        assert_eq!(head.request(text.as_bytes()).target(), b"/");
    }
    let endless = lines(MAX_HEAD / 2);
    let parsed = Parser::of_next_request().parse(endless.as_bytes());
    assert_eq!(parsed, Err(Ambiguous::Oversized));
}

#[test]
fn the_path_of_every_target_form() {
    for (target, path) in [
        ("/", "/"),
        ("/a//b?x=http://y/z", "/a//b?x=http://y/z"),
        ("*", "*"),
        ("http://host", "/"),
        ("http://host/", "/"),
        ("HTTP://host:80/a?b", "/a?b"),
        ("http://host?a/b", "/"),
        ("host:443", "host:443"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\n\r\n");
        let head = request(&text).unwrap();
        assert_eq!(
            head.request(text.as_bytes()).target(),
            path.as_bytes(),
            "{target}"
        );
    }
}

#[test]
fn framing_and_persistence() {
    let framing =
        |fields: &str| request(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).map(|h| h.framing);
    assert_eq!(framing(""), Ok(Framing::Unsaid));
    assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Length(0)));
    assert_eq!(
        framing("cOnTeNt-LeNgTh:\t 007 \r\n"),
        Ok(Framing::Length(7))
    );
    assert_eq!(
        framing("Content-Length: 9223372036854775807\r\n"),
        Ok(Framing::Length(i64::MAX as u64))
    );
    assert_eq!(
        framing("Transfer-Encoding: Chunked\r\n"),
        Ok(Framing::Chunked)
    );
    for (text, persists) in [
        ("GET / HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: x, close ,y\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        assert_eq!(request(text).unwrap().persists(), persists, "{text}");
    }
    let head =
        request("GET / HTTP/1.1\r\nUpgrade: websocket\r\nExpect: 100-Continue\r\n\r\n").unwrap();
    assert!(head.upgrade && head.expects_continue);
    assert_eq!(
        request("HEAD / HTTP/1.1\r\n\r\n").unwrap().method(),
        Method::Head
    );
    assert_eq!(
        request("CONNECT a:1 HTTP/1.1\r\n\r\n").unwrap().method(),
        Method::Connect
    );
}

#[test]
fn every_smuggling_vector_is_ambiguous() {
    let chunked = "Transfer-Encoding: chunked";
    for (fields, why) in [
        (
            format!("Content-Length: 5\r\n{chunked}\r\n"),
            Ambiguous::Conflict,
        ),
        (
            format!("{chunked}\r\nContent-Length: 5\r\n"),
            Ambiguous::Conflict,
        ),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n".to_owned(),
            Ambiguous::Length,
        ),
        (
            "Content-Length: 5\r\nContent-Length: 5\r\n".to_owned(),
            Ambiguous::Length,
        ),
        ("Content-Length: 5, 5\r\n".to_owned(), Ambiguous::Length),
        ("Content-Length: +5\r\n".to_owned(), Ambiguous::Length),
        ("Content-Length: -5\r\n".to_owned(), Ambiguous::Length),
        ("Content-Length: 0x5\r\n".to_owned(), Ambiguous::Length),
        ("Content-Length: 5 6\r\n".to_owned(), Ambiguous::Length),
        (
            "Content-Length: 9223372036854775808\r\n".to_owned(),
            Ambiguous::Length,
        ),
        (
            "Content-Length: 18446744073709551621\r\n".to_owned(),
            Ambiguous::Length,
        ),
        ("Content-Length:\r\n".to_owned(), Ambiguous::Length),
        (format!("{chunked}\r\n{chunked}\r\n"), Ambiguous::Coding),
        (
            "Transfer-Encoding: xchunked\r\n".to_owned(),
            Ambiguous::Coding,
        ),
        (
            "Transfer-Encoding: chunked, identity\r\n".to_owned(),
            Ambiguous::Coding,
        ),
        (
            "Transfer-Encoding: gzip, chunked\r\n".to_owned(),
            Ambiguous::Coding,
        ),
        (
            "Transfer-Encoding: \"chunked\"\r\n".to_owned(),
            Ambiguous::Coding,
        ),
        (
            "Transfer-Encoding:\x0bchunked\r\n".to_owned(),
            Ambiguous::Value,
        ),
        (
            "Transfer-Encoding : chunked\r\n".to_owned(),
            Ambiguous::Name,
        ),
        (
            "Transfer-Encoding\t: chunked\r\n".to_owned(),
            Ambiguous::Name,
        ),
        (
            "Transfer-Encoding\r\n : chunked\r\n".to_owned(),
            Ambiguous::Name,
        ),
        (
            "X: a\r\n Transfer-Encoding: chunked\r\n".to_owned(),
            Ambiguous::Folded,
        ),
        ("X: a\r\n\tb\r\n".to_owned(), Ambiguous::Folded),
        (" Content-Length: 5\r\n".to_owned(), Ambiguous::Folded),
        ("X: a\nContent-Length: 5\r\n".to_owned(), Ambiguous::LineEnd),
        ("X: a\rContent-Length: 5\r\n".to_owned(), Ambiguous::LineEnd),
        (
            "X: a\r\r\nContent-Length: 5\r\n".to_owned(),
            Ambiguous::LineEnd,
        ),
        ("\rX: a\r\n".to_owned(), Ambiguous::LineEnd),
        ("X: a\0\r\n".to_owned(), Ambiguous::Value),
        ("X: a\x7f\r\n".to_owned(), Ambiguous::Value),
        ("X\0: a\r\n".to_owned(), Ambiguous::Name),
        (": a\r\n".to_owned(), Ambiguous::Name),
        ("no colon\r\n".to_owned(), Ambiguous::Name),
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(request(&text), Err(why), "{text:?}");
    }
    for line in [
        "GET / HTTP/1.1\n",
        "GET  / HTTP/1.1\r\n",
        "GET /  HTTP/1.1\r\n",
        "GET / HTTP/1.1 \r\n",
        " GET / HTTP/1.1\r\n",
        "GET\t/ HTTP/1.1\r\n",
        "GET / HTTP/1.2\r\n",
        "GET / HTTP/2.0\r\n",
        "GET / http/1.1\r\n",
        "GET /\r\n",
        "G@T / HTTP/1.1\r\n",
        "GET /a\tb HTTP/1.1\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n",
        "\nGET / HTTP/1.1\r\n",
        "\r\r\nGET / HTTP/1.1\r\n",
    ] {
        assert!(request(&format!("{line}\r\n")).is_err(), "{line:?}");
    }
    assert_eq!(
        request("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Err(Ambiguous::Conflict)
    );
    assert_eq!(
        request("CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n"),
        Err(Ambiguous::Conflict)
    );
}

#[test]
fn a_head_that_cannot_become_complete_is_refused_before_its_line_ends() {
    let refused = |kind, text: &str| parse(kind, text.as_bytes()).is_err();
    for text in [
        "GET /a b",
        "GET / HTTX",
        "GET / HTTP/2",
        "GET / HTTP/1.1 ",
        "GET  ",
        "GET\t",
        "GET / HTTP/1.1\r\nContent-Length: a",
        "GET / HTTP/1.1\r\nContent-Length: 5 6",
        "GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        "CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n",
    ] {
        assert!(refused(Kind::Request, text), "{text:?}");
    }
    for text in ["HTTP/1.1 2a", "HTTP/1.2", "HTTP/1.1 2000", "HTTP/1.1\t"] {
        assert!(refused(Kind::Response, text), "{text:?}");
    }
    for text in [
        "GE",
        "GET ",
        "GET /",
        "GET / ",
        "GET / HTTP/1.",
        "GET / HTTP/1.1\r",
        "\r",
        "GET / HTTP/1.1\r\nContent-Length: ",
        "GET / HTTP/1.1\r\nContent-Length: 5 \r",
        "GET / HTTP/1.1\r\nContent-Len",
    ] {
        assert!(!refused(Kind::Request, text), "{text:?}");
    }
    for text in [
        "H",
        "HTTP/1.1 2",
        "HTTP/1.1 200",
        "HTTP/1.1 200 O",
        "HTTP/1.0 204\r",
    ] {
        assert!(!refused(Kind::Response, text), "{text:?}");
    }
}

#[test]
fn one_empty_line_before_a_request_is_part_of_it() {
    let text = "\r\nGET /x HTTP/1.1\r\nA: b\r\n\r\n";
    let head = request(text).unwrap();
    assert_eq!(head.len, text.len());
    let view = head.request(text.as_bytes());
    assert_eq!((view.method, view.target), (&b"GET"[..], &b"/x"[..]));
    assert!(response("\r\nHTTP/1.1 200 OK\r\n\r\n").is_err());
}

#[test]
fn status_lines() {
    for (line, status) in [
        ("HTTP/1.1 200 OK", 200),
        ("HTTP/1.0 404 Not  Found ", 404),
        ("HTTP/1.1 204", 204),
        ("HTTP/1.1 204 ", 204),
        ("HTTP/1.1 599 \u{e4}", 599),
        ("HTTP/1.1 100 Continue", 100),
    ] {
        assert_eq!(
            response(&format!("{line}\r\n\r\n")).unwrap().status(),
            status,
            "{line}"
        );
    }
    for line in [
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 099 x",
        "HTTP/1.1 +20 x",
        "ICY 200 OK",
    ] {
        assert!(response(&format!("{line}\r\n\r\n")).is_err(), "{line}");
    }
    assert_eq!(
        response("HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n"),
        Err(Ambiguous::Conflict)
    );
    assert!(response("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n").is_ok());
}

#[test]
fn a_head_beyond_the_limit_is_oversized_whether_or_not_it_ends() {
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(MAX_HEAD));
    assert_eq!(request(&long), Err(Ambiguous::Oversized));
    assert_eq!(
        parse(Kind::Request, &long.as_bytes()[..MAX_HEAD]),
        Err(Ambiguous::Oversized)
    );
    assert_eq!(
        parse(Kind::Request, &long.as_bytes()[..MAX_HEAD - 1]),
        Ok(Step::More)
    );
}

/// Parses a head byte by byte.
fn crawl(kind: Kind, bytes: &[u8]) -> Result<Option<Head>, Ambiguous> {
    let mut parser = Parser::new(kind);
    for end in 1..=bytes.len() {
        if let Step::Complete(head) = parser.parse(&bytes[..end])? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

fn messy_head() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => "[A-Za-z-]{1,12}: ?[ -~]{0,20}\r\n",
        1 => Just("Content-Length: 12\r\n".to_owned()),
        1 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
        1 => Just("Connection: close\r\n".to_owned()),
        1 => "[ -~\r\n\t\0]{0,6}",
        1 => "[A-Za-z]{1,4} ?:[ \t]?[ -~]{0,4}\r?\n",
    ];
    let line = prop_oneof![
        8 => "[A-Z]{1,7} /[!-~]{0,12} HTTP/1.[01]\r\n",
        1 => "[ -~\r\n]{0,20}",
        1 => "[A-Z]{0,4} {1,2}[ -~]{0,8} {1,2}HTTP/1.[0-2]\r?\n",
    ];
    (line, proptest::collection::vec(piece, 0..8), "(\r\n|\n|)")
        .prop_map(|(line, pieces, end)| [line, pieces.concat(), end].concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HTTP1_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(512), ..ProptestConfig::default() })]

    #[test]
    fn a_head_that_crawls_is_read_like_one_that_comes_whole(bytes in messy_head()) {
        let whole = match parse(Kind::Request, &bytes) {
            Ok(Step::Complete(head)) => Ok(Some(head)),
            Ok(Step::More) => Ok(None),
            Err(why) => Err(why),
        };
        // What is wrong in a line that is incomplete yet may be noticed early, when the line comes
        // whole.
        match (whole, crawl(Kind::Request, &bytes)) {
            (Err(_), Err(_) | Ok(None)) => {}
            (whole, crawled) => prop_assert_eq!(whole, crawled),
        }
    }

    /// Compares with a second parser: a head we call complete has the same end and fields there.
    #[test]
    fn a_second_parser_sees_the_same_head(bytes in messy_head()) {
        let Ok(Step::Complete(head)) = parse(Kind::Request, &bytes) else { return Ok(()) };
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut second = httparse::Request::new(&mut fields);
        let end = second.parse(&bytes);
        prop_assert_eq!(end, Ok(httparse::Status::Complete(head.len)), "{}", bytes.escape_ascii());
        let view = head.request(&bytes);
        prop_assert_eq!(second.method.map(str::as_bytes), Some(view.method));
        prop_assert_eq!(second.path.map(str::as_bytes), Some(view.target));
        let mut seen = Vec::new();
        view.visit_headers(&mut |n, v| seen.push((n.to_vec(), v.to_vec())));
        let theirs: Vec<_> = second.headers.iter().map(|h| (h.name.as_bytes().to_vec(), h.value.to_vec())).collect();
        prop_assert_eq!(theirs, seen);
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(Kind::Request, &bytes);
        let _ = parse(Kind::Response, &bytes);
    }

    #[test]
    fn the_eight_byte_scan_finds_what_a_simple_one_finds(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let simple = bytes.iter().position(|b| *b < 0x20 || *b == 0x7f).unwrap_or(bytes.len());
        prop_assert_eq!(text_len(&bytes), simple);
    }
}
