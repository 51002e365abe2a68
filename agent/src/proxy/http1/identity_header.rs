//! Sets the verified caller's identity header on ports annotated for it; the only case in which a
//! head is changed. Headers of that name sent by callers are removed.

use memchr::memchr;

use crate::io::buffers::Buf;
use crate::tls::identity::CallerIdentity;
use traffic_core::http1::head::{Head, Kind, Parser, Step};

/// Rewrites the head at the front of `buf` and returns the new head; `None` if it became too large.
pub(crate) fn replace(
    buf: &mut Buf,
    head: &Head,
    name: &str,
    caller: Option<&CallerIdentity>,
) -> Option<Head> {
    let (old, rest) = buf.unread().split_at_checked(head.len)?;
    let (first, mut fields) = head.split(old);
    let mut bytes = Vec::with_capacity(buf.len() + 512);
    bytes.extend_from_slice(first);
    if let Some(identity) = caller {
        bytes.extend_from_slice(format!("{name}: {}\r\n", identity.header_value()).as_bytes());
    }
    while let Some(end) = memchr(b'\n', fields) {
        let (line, after) = fields.split_at(end + 1);
        let is_ours = memchr(b':', line)
            .and_then(|colon| line.get(..colon))
            .is_some_and(|field| field.eq_ignore_ascii_case(name.as_bytes()));
        if !is_ours {
            bytes.extend_from_slice(line);
        }
        fields = after;
    }
    let end = bytes.len();
    bytes.extend_from_slice(rest);
    *buf = Buf::from(&bytes[..]);
    match Parser::new(Kind::Request).parse(bytes.get(..end)?) {
        Ok(Step::Complete(head)) => Some(head),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_says_of_itself_is_taken_out_and_nothing_else_changes() {
        let text = b"POST /a HTTP/1.1\r\nHost: x\r\nX-Caller: root\r\nx-caller:\r\nContent-Length: 4\r\n\r\nbodyGET /";
        let Ok(Step::Complete(head)) = Parser::new(Kind::Request).parse(text) else {
            panic!()
        };
        let mut buf = Buf::from(&text[..]);
        let head = replace(&mut buf, &head, "x-caller", None).unwrap();
        let want = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET /";
        assert_eq!(String::from_utf8_lossy(buf.unread()), want);
        assert_eq!(head.len, want.len() - 9);
    }
}
