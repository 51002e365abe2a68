#![no_main]
//! An accepted head ends where httparse says, with the same fields, however it is cut.
use traffic_core::http1::head::{Kind, MAX_HEAD, Parser, Step};
use traffic_core::routing::Request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, request, bytes) = input;
    let kind = if request { Kind::Request } else { Kind::Response };
    let whole = Parser::new(kind).parse(bytes);
    let mut parser = Parser::new(kind);
    let mut pieces = Ok(Step::More);
    let mut end = 0;
    while pieces == Ok(Step::More) && end < bytes.len() {
        end = (end + 1 + usize::from(step % 16)).min(bytes.len());
        pieces = parser.parse(&bytes[..end]);
    }
    if let Ok(Step::Complete(head)) = whole {
        assert!(head.len <= bytes.len() && head.len <= MAX_HEAD);
        assert_eq!(pieces, whole);
        let mut lines = Vec::new();
        if request {
            head.request(bytes).visit_headers(&mut |n, v| lines.push((n.to_vec(), v.to_vec())));
        }
        let mut fields = vec![httparse::EMPTY_HEADER; 4096];
        let (status, fields) = if request {
            let mut second = httparse::Request::new(&mut fields);
            (second.parse(bytes), second.headers.to_vec())
        } else {
            let mut second = httparse::Response::new(&mut fields);
            (second.parse(bytes), second.headers.to_vec())
        };
        if let Ok(httparse::Status::Complete(len)) = status {
            assert_eq!(len, head.len);
            if request {
                let theirs: Vec<_> = fields.iter().map(|h| (h.name.as_bytes().to_vec(), h.value.to_vec())).collect();
                assert_eq!(lines, theirs);
            }
        }
    } else if whole.is_err() {
        assert!(pieces.is_err() || pieces == Ok(Step::More), "{whole:?} but in pieces {pieces:?}");
    }
});
