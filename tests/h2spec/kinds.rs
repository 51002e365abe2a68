//! What callers say that is odd, malformed or against the protocol, one script for each: straight
//! at a server and through the agent, without a rule, with one that takes nothing of it, and behind
//! a stream that a workstation has served. What is heard must be the same; beside each script
//! another stream of the connection is open.

use traffic_core::http2::frames::{self, ACK, END_STREAM, PADDED, PRIORITY, kind};

use crate::raw::{BESIDE, Judge, Lines, OWN, Script, WHOLE, block, lines};

/// Changes to a request's usual fields.
type Changes = [(&'static str, &'static [u8])];

/// Requests by their fields, without a body.
const FIELDS: &[(&str, &Changes)] = &[
    ("a usual request", &[]),
    ("a path with >", &[(":path", b"/search?q=a>1")]),
    ("a path with <>", &[(":path", b"/a<b>")]),
    ("a path with a backtick", &[(":path", b"/a`b")]),
    ("a path with a space", &[(":path", b"/a b")]),
    ("a path with a tab", &[(":path", b"/a\tb")]),
    ("a path with #", &[(":path", b"/a#fragment")]),
    ("a path with {|}", &[(":path", b"/a{|}\\^\"")]),
    ("a path with %zz", &[(":path", b"/%zz?%")]),
    ("a path in UTF-8", &[(":path", "/caf\u{e9}".as_bytes())]),
    ("a path in Latin-1", &[(":path", b"/caf\xe9")]),
    ("a path with NUL", &[(":path", b"/a\0b")]),
    ("a path with LF", &[(":path", b"/a\nb")]),
    ("a path with DEL", &[(":path", b"/a\x7fb")]),
    ("the path *", &[(":path", b"*")]),
    (
        "the path * of OPTIONS",
        &[(":method", b"OPTIONS"), (":path", b"*")],
    ),
    ("a path without slash", &[(":path", b"no-slash")]),
    ("a path with two slashes", &[(":path", b"//a//b/../c")]),
    (
        "a path in absolute form",
        &[(":path", b"http://other.test/x")],
    ),
    ("an empty path", &[(":path", b"")]),
    (
        "an authority that is a path",
        &[(":authority", b"/run/x.sock")],
    ),
    (
        "an authority with slashes",
        &[(":authority", b"extension/ns/auth-server")],
    ),
    ("an authority with %", &[(":authority", b"%2Frun%2Fx.sock")]),
    ("an empty authority", &[(":authority", b"")]),
    (
        "an authority with a user",
        &[(":authority", b"user:pw@app.test")],
    ),
    ("an authority with a space", &[(":authority", b"a b")]),
    (
        "an authority with a port",
        &[(":authority", b"app.test:99999")],
    ),
    ("an authority with a bracket", &[(":authority", b"[::1")]),
    (
        "an authority with a zone",
        &[(":authority", b"[fe80::1%25eth0]:80")],
    ),
    (
        "an authority with _",
        &[(":authority", b"under_score.ns:80")],
    ),
    ("authority and host", &[("host", b"other.test")]),
    ("host twice", &[("host", b"a"), ("host", b"b")]),
    (
        "authority twice",
        &[(":authority", b"app.test"), (":authority ", b"b")],
    ),
    ("te: gzip", &[("te", b"gzip")]),
    ("te: trailers", &[("te", b"trailers")]),
    ("te: trailers, deflate", &[("te", b"trailers, deflate")]),
    ("connection: close", &[("connection", b"close")]),
    ("connection: keep-alive", &[("connection", b"keep-alive")]),
    ("connection: x-y", &[("connection", b"x-y"), ("x-y", b"1")]),
    ("keep-alive", &[("keep-alive", b"timeout=5")]),
    ("proxy-connection", &[("proxy-connection", b"keep-alive")]),
    ("transfer-encoding", &[("transfer-encoding", b"chunked")]),
    ("upgrade", &[("upgrade", b"h2c")]),
    ("http2-settings", &[("http2-settings", b"AAAA")]),
    ("expect", &[("expect", b"100-continue")]),
    ("an odd expect", &[("expect", b"something")]),
    ("content-length without body", &[("content-length", b"5")]),
    ("content-length: 0", &[("content-length", b"0")]),
    ("content-length of words", &[("content-length", b"many")]),
    ("content-length: -1", &[("content-length", b"-1")]),
    ("content-length: +5", &[("content-length", b"+5")]),
    (
        "content-length twice",
        &[("content-length", b"0"), ("content-length", b"1")],
    ),
    ("content-length as a list", &[("content-length", b"0, 0")]),
    ("an upper-case name", &[("X-Upper", b"1")]),
    ("a partly upper-case name", &[("x-Upper", b"1")]),
    ("a name with a space", &[("x name", b"1")]),
    ("a name with a colon", &[("x:name", b"1")]),
    ("a name that begins with a colon", &[(":odd", b"1")]),
    ("a name in UTF-8", &[("x-\u{e9}", b"1")]),
    ("a name with NUL", &[("x-\0", b"1")]),
    ("an empty name", &[("", b"1")]),
    ("an empty value", &[("x-empty", b"")]),
    ("a value with a control character", &[("x-c", b"a\x01b")]),
    ("a value with NUL", &[("x-c", b"a\0b")]),
    ("a value with CR LF", &[("x-c", b"a\r\nx-d: b")]),
    ("a value with DEL", &[("x-c", b"a\x7fb")]),
    ("a value in Latin-1", &[("x-c", b"caf\xe9")]),
    ("a value with spaces around it", &[("x-c", b"  a  ")]),
    ("a value with a tab", &[("x-c", b"a\tb")]),
    ("a method with a space", &[(":method", b"A B")]),
    ("a method in lower case", &[(":method", b"get")]),
    ("an empty method", &[(":method", b"")]),
    ("a method of a control character", &[(":method", b"\x01")]),
    ("a method in UTF-8", &[(":method", "G\u{cb}T".as_bytes())]),
    ("an odd method", &[(":method", b"PURGE")]),
    ("PRI", &[(":method", b"PRI"), (":path", b"*")]),
    ("HEAD", &[(":method", b"HEAD")]),
    ("TRACE", &[(":method", b"TRACE")]),
    ("CONNECT with a path", &[(":method", b"CONNECT")]),
    (
        "CONNECT with a protocol",
        &[(":method", b"CONNECT"), (":protocol", b"websocket")],
    ),
    ("GET with a protocol", &[(":protocol", b"websocket")]),
    ("an odd scheme", &[(":scheme", b"ftp")]),
    ("the scheme https", &[(":scheme", b"https")]),
    ("an empty scheme", &[(":scheme", b"")]),
    ("a scheme in upper case", &[(":scheme", b"HTTP")]),
    (
        "a cookie in pieces",
        &[
            ("cookie", b"a=1"),
            ("cookie", b"theme=dark"),
            ("cookie", b"b=2; c=3"),
        ],
    ),
    ("an empty cookie", &[("cookie", b""), ("cookie", b"a=1")]),
    (
        "fields of one name, apart",
        &[("x-a", b"1"), ("x-b", b"2"), ("x-a", b"3")],
    ),
    (":status in a request", &[(":status", b"200")]),
    ("a rule's field with another value", &[("x-dev", b"other")]),
];

/// All scripts.
pub(crate) fn scripts() -> Vec<Script> {
    let mut scripts = Vec::new();
    for (name, changes) in FIELDS {
        scripts.push(script(name, |s| s.head(OWN, &lines(changes), true)));
    }
    scripts.extend(missing_and_repeated());
    scripts.extend(long());
    scripts.extend(bodies());
    scripts.extend(streams());
    scripts.extend(sections());
    scripts.extend(windows());
    scripts
}

fn script(name: &str, say: impl FnOnce(&mut Script)) -> Script {
    let mut script = Script {
        name: name.to_owned(),
        ..Script::default()
    };
    say(&mut script);
    script
}

/// One script with one request of these lines.
fn request(name: &str, lines: Lines) -> Script {
    script(name, |s| s.head(OWN, &lines, true))
}

fn post(changes: &[(&str, &[u8])]) -> Lines {
    lines(&[&[(":method", &b"POST"[..])], changes].concat())
}

fn missing_and_repeated() -> Vec<Script> {
    let mut scripts = Vec::new();
    for name in [":method", ":scheme", ":path", ":authority"] {
        let mut without = lines(&[]);
        without.retain(|(known, _)| known != name.as_bytes());
        scripts.push(request(&format!("no {name}"), without));
        let mut twice = lines(&[]);
        let again = twice.iter().find(|(known, _)| known == name.as_bytes());
        twice.insert(1, again.unwrap().clone());
        scripts.push(request(&format!("{name} twice"), twice));
        let mut late = lines(&[("x-a", b"1")]);
        let at = late.iter().position(|(known, _)| known == name.as_bytes());
        let line = late.remove(at.unwrap());
        late.push(line);
        scripts.push(request(&format!("{name} behind fields"), late));
    }
    let mut connect = lines(&[(":method", b"CONNECT")]);
    connect.retain(|(name, _)| name != b":path" && name != b":scheme");
    scripts.push(script("CONNECT", |s| {
        s.head(OWN, &connect, false);
        s.data(OWN, b"hello", true);
    }));
    scripts.push(request("no fields", Lines::new()));
    let mut turned = lines(&[("x-a", b"1")]);
    turned[..4].reverse();
    scripts.push(request("pseudo-header fields in another order", turned));
    scripts
}

fn long() -> Vec<Script> {
    let path = [b"/", &[b'p'; 70_000][..]].concat();
    let value = vec![b'v'; 60_000];
    let mut many = lines(&[]);
    for n in 0..150 {
        many.push((format!("x-{n}").into(), b"value".to_vec()));
    }
    vec![
        request("a path of 70 000 bytes", lines(&[(":path", &path)])),
        request("a value of 60 000 bytes", lines(&[("x-long", &value)])),
        request(
            "a method of 2 000 bytes",
            lines(&[(":method", &[b'M'; 2_000])]),
        ),
        request(
            "an authority of 2 000 bytes",
            lines(&[(":authority", &[b'a'; 2_000])]),
        ),
        request("150 fields", many),
    ]
}

fn bodies() -> Vec<Script> {
    let sent = |name: &str, length: &'static [u8], body: &'static [u8]| {
        script(name, |s| {
            s.head(OWN, &post(&[("content-length", length)]), false);
            s.data(OWN, body, true);
        })
    };
    vec![
        sent("content-length that is right", b"5", b"12345"),
        sent("content-length that is too large", b"50", b"12345"),
        sent("content-length that is too small", b"2", b"12345"),
        sent("content-length with zeros", b"005", b"12345"),
        script("trailers", |s| {
            s.head(OWN, &post(&[("trailer", b"x-end")]), false);
            s.data(OWN, b"12345", false);
            s.head(OWN, &vec![(b"x-end".to_vec(), b"1".to_vec())], true);
        }),
        script("trailers with a pseudo-header field", |s| {
            s.head(OWN, &post(&[]), false);
            s.head(OWN, &vec![(b":path".to_vec(), b"/".to_vec())], true);
        }),
        script("trailers with an upper-case name", |s| {
            s.head(OWN, &post(&[]), false);
            s.head(OWN, &vec![(b"X-End".to_vec(), b"1".to_vec())], true);
        }),
        script("trailers that end nothing", |s| {
            s.head(OWN, &post(&[]), false);
            s.head(OWN, &vec![(b"x-end".to_vec(), b"1".to_vec())], false);
        }),
        script("padding", |s| {
            s.head(OWN, &post(&[]), false);
            s.frame(
                kind::DATA,
                PADDED,
                OWN,
                &[&[3][..], b"body", &[0; 3]].concat(),
            );
            s.frame(kind::DATA, PADDED | END_STREAM, OWN, &[0]);
        }),
        script("padding longer than its frame", |s| {
            s.head(OWN, &post(&[]), false);
            s.frame(kind::DATA, PADDED | END_STREAM, OWN, &[9, 1, 2]);
        }),
        script("empty frames of a body", |s| {
            s.head(OWN, &post(&[]), false);
            for _ in 0..3 {
                s.data(OWN, b"", false);
            }
            s.data(OWN, b"x", false);
            s.data(OWN, b"", true);
        }),
        script("a half-closed connection", |s| {
            s.head(OWN, &lines(&[]), true);
            s.half_closes = true;
        }),
        script("a half-closed connection with a body", |s| {
            s.head(OWN, &post(&[]), false);
            s.data(OWN, b"12345", true);
            s.half_closes = true;
        }),
    ]
}

fn streams() -> Vec<Script> {
    let many = |name: &str, count: u32| {
        script(name, |s| {
            for n in 0..count {
                s.head(OWN + 2 * n, &post(&[]), false);
            }
            for n in 0..count {
                s.data(OWN + 2 * n, b"x", true);
            }
        })
    };
    vec![
        many("90 streams", 90),
        script("a reset of its own", |s| {
            s.head(OWN, &post(&[]), false);
            s.frame(kind::RST_STREAM, 0, OWN, &[0, 0, 0, 8]);
            s.head(OWN + 2, &lines(&[]), true);
        }),
        script("a reset of an odd code", |s| {
            s.head(OWN, &post(&[]), false);
            s.frame(kind::RST_STREAM, 0, OWN, &[0xff; 4]);
            s.head(OWN + 2, &lines(&[]), true);
        }),
        script("a stream id that is even", |s| {
            s.head(OWN + 1, &lines(&[]), true)
        }),
        script("a stream id that is lower", |s| {
            s.head(OWN + 4, &lines(&[]), true);
            s.head(OWN, &lines(&[]), true);
        }),
        script("stream ids with gaps", |s| {
            // Every one between them counts as over.
            s.head(OWN + 200, &lines(&[]), true);
        }),
        script("DATA on a stream that never began", |s| {
            s.data(OWN, b"x", true)
        }),
        script("a reset of a stream that never began", |s| {
            s.frame(kind::RST_STREAM, 0, OWN, &[0, 0, 0, 8]);
        }),
        script("credit for a stream that never began", |s| {
            s.out.extend_from_slice(&frames::window_update(OWN, 9));
        }),
        script("a priority of a stream that never began", |s| {
            s.frame(kind::PRIORITY, 0, OWN, &[0, 0, 0, 0, 3]);
            s.head(OWN, &lines(&[]), true);
        }),
        script("a stream that depends on itself", |s| {
            let payload = [&[0, 0, 0, 5, 3][..], &block(&lines(&[]))].concat();
            s.frame(kind::HEADERS, WHOLE | PRIORITY | END_STREAM, OWN, &payload);
        }),
        script("a stream that depends on another", |s| {
            let payload = [&[0x80, 0, 0, 3, 200][..], &block(&lines(&[]))].concat();
            s.frame(kind::HEADERS, WHOLE | PRIORITY | END_STREAM, OWN, &payload);
        }),
        script("unknown frames", |s| {
            s.head(OWN, &post(&[]), false);
            s.frame(0x77, 0xff, OWN, b"unknown");
            s.frame(0x78, 0, 0, b"unknown");
            s.data(OWN, b"x", true);
        }),
        script("a push of the caller's", |s| {
            s.frame(kind::PUSH_PROMISE, WHOLE, BESIDE, &[0; 4])
        }),
        script("a GOAWAY of the caller's", |s| {
            s.head(OWN, &lines(&[]), true);
            s.out.extend_from_slice(&frames::goaway(0, 0));
        }),
    ]
}

fn sections() -> Vec<Script> {
    let mut scripts = unjudged_sections();
    for script in &mut scripts {
        script.judge = match &script.name[..] {
            "CONTINUATION in pieces" | "a section that is padded" => Judge::App,
            "a section whose padding is too long" => Judge::App,
            "a table size in the middle" => Judge::Nobody,
            _ => Judge::Agent,
        };
    }
    scripts
}

fn unjudged_sections() -> Vec<Script> {
    let block = block(&lines(&[("x-a", b"1")]));
    vec![
        script("CONTINUATION in pieces", |s| {
            s.frame(kind::HEADERS, END_STREAM, OWN, &block[..3]);
            s.frame(kind::CONTINUATION, 0, OWN, b"");
            s.frame(kind::CONTINUATION, 0, OWN, &block[3..4]);
            s.frame(kind::CONTINUATION, 0, OWN, &block[4..20]);
            s.frame(kind::CONTINUATION, WHOLE, OWN, &block[20..]);
        }),
        script("a section that is padded", |s| {
            let payload = [&[7][..], &block, &[0; 7]].concat();
            s.frame(kind::HEADERS, WHOLE | END_STREAM | PADDED, OWN, &payload);
        }),
        script("a section whose padding is too long", |s| {
            s.frame(
                kind::HEADERS,
                WHOLE | END_STREAM | PADDED,
                OWN,
                &[200, 1, 2],
            );
        }),
        script("a PING inside a section", |s| {
            s.frame(kind::HEADERS, END_STREAM, OWN, &block[..3]);
            s.frame(kind::PING, 0, 0, &[0; 8]);
            s.frame(kind::CONTINUATION, WHOLE, OWN, &block[3..]);
        }),
        script("an unknown frame inside a section", |s| {
            s.frame(kind::HEADERS, END_STREAM, OWN, &block[..3]);
            s.frame(0x77, 0, OWN, b"x");
            s.frame(kind::CONTINUATION, WHOLE, OWN, &block[3..]);
        }),
        script("CONTINUATION of another stream", |s| {
            s.frame(kind::HEADERS, END_STREAM, OWN, &block[..3]);
            s.frame(kind::CONTINUATION, WHOLE, OWN + 2, &block[3..]);
        }),
        script("CONTINUATION without a beginning", |s| {
            s.frame(kind::CONTINUATION, WHOLE, OWN, &block);
        }),
        script("an index that is nobody's", |s| {
            s.frame(kind::HEADERS, WHOLE | END_STREAM, OWN, &[0xff, 0x7f]);
        }),
        script("a Huffman code that is none", |s| {
            let mut odd = block.clone();
            odd.extend_from_slice(&[0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x01, b'a']);
            s.frame(kind::HEADERS, WHOLE | END_STREAM, OWN, &odd);
        }),
        script("a block that breaks off", |s| {
            s.frame(
                kind::HEADERS,
                WHOLE | END_STREAM,
                OWN,
                &block[..block.len() - 1],
            );
        }),
        script("a table size larger than allowed", |s| {
            let payload = [&[0x3f, 0xff, 0xff, 0x03][..], &block].concat();
            s.frame(kind::HEADERS, WHOLE | END_STREAM, OWN, &payload);
        }),
        script("a table size in the middle", |s| {
            let payload = [&block[..], &[0x20]].concat();
            s.frame(kind::HEADERS, WHOLE | END_STREAM, OWN, &payload);
        }),
    ]
}

fn windows() -> Vec<Script> {
    let setting = |id: u16, value: u32| {
        let mut out = Vec::new();
        frames::settings(&[(id, value)], &mut out);
        out
    };
    let said = |name: &str, frames: Vec<u8>| {
        script(name, |s| {
            s.out.extend_from_slice(&frames);
            s.head(OWN, &lines(&[]), true);
        })
    };
    vec![
        said("a window of 0", setting(4, 0)),
        said("a window of 7", setting(4, 7)),
        said("a window that is too large", setting(4, 1 << 31)),
        said("a frame size that is too small", setting(5, 100)),
        said("a push setting of 2", setting(2, 2)),
        said("a header table of 0", setting(1, 0)),
        said("a header table of 64 KiB", setting(1, 65_536)),
        said("an unknown setting", setting(0xabcd, 9)),
        script("a window from 0", |s| {
            s.out.extend_from_slice(&setting(4, 0));
            s.head(OWN, &lines(&[]), true);
            s.out.extend_from_slice(&frames::window_update(OWN, 5));
            s.out.extend_from_slice(&frames::window_update(OWN, 5));
        }),
        script("a window that changes", |s| {
            s.out.extend_from_slice(&setting(4, 0));
            s.head(OWN, &lines(&[]), true);
            s.out.extend_from_slice(&setting(4, 65_535));
        }),
        script("no credit", |s| {
            s.head(OWN, &post(&[]), false);
            s.out.extend_from_slice(&frames::window_update(OWN, 0));
        }),
        script("no credit for the connection", |s| {
            s.out.extend_from_slice(&frames::window_update(0, 0));
        }),
        script("more credit than there can be", |s| {
            s.head(OWN, &post(&[]), false);
            s.out
                .extend_from_slice(&frames::window_update(OWN, 0x7fff_ffff));
        }),
        script("more credit for the connection than there can be", |s| {
            s.out
                .extend_from_slice(&frames::window_update(0, 0x7fff_ffff));
        }),
        script("credit of the wrong size", |s| {
            s.frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3])
        }),
        script("SETTINGS of the wrong size", |s| {
            s.frame(kind::SETTINGS, 0, 0, &[0; 5])
        }),
        script("SETTINGS on a stream", |s| {
            s.frame(kind::SETTINGS, 0, BESIDE, &[])
        }),
        script("an answer to SETTINGS with a payload", |s| {
            s.frame(kind::SETTINGS, ACK, 0, &[0; 6])
        }),
        script("a PING of the wrong size", |s| {
            s.frame(kind::PING, 0, 0, &[0; 7])
        }),
        script("a PING on a stream", |s| {
            s.frame(kind::PING, 0, BESIDE, &[0; 8])
        }),
        script("a reset of the wrong size", |s| {
            s.frame(kind::RST_STREAM, 0, BESIDE, &[0; 3])
        }),
        script("a reset of the connection", |s| {
            s.frame(kind::RST_STREAM, 0, 0, &[0; 4])
        }),
        script("a priority of the wrong size", |s| {
            s.frame(kind::PRIORITY, 0, BESIDE, &[0; 4])
        }),
        script("a GOAWAY of the wrong size", |s| {
            s.frame(kind::GOAWAY, 0, 0, &[0; 7])
        }),
        script("a GOAWAY on a stream", |s| {
            s.frame(kind::GOAWAY, 0, BESIDE, &[0; 8])
        }),
        script("DATA on the connection", |s| {
            s.frame(kind::DATA, 0, 0, b"x")
        }),
        script("HEADERS on the connection", |s| {
            s.frame(kind::HEADERS, WHOLE, 0, b"")
        }),
        script("a frame that is too large", |s| {
            s.head(OWN, &post(&[]), false);
            s.data(OWN, &[0; 16_385], true);
        }),
    ]
}
