//! A request's header list as routing sees it, and what makes a list malformed (RFC 9113 section
//! 8.1.1). A malformed request is nobody's but the app's, which judges it as it would without an
//! agent.

use crate::http2::hpack::FieldList;
use crate::routing;

/// The fields that routing and logs read.
#[derive(Debug)]
pub struct RequestHead<'f> {
    fields: &'f FieldList,
    method: &'f [u8],
    path: &'f [u8],
    authority: Option<&'f [u8]>,
    has_host: bool,
    /// The only cookie line, or all of them as one (RFC 9113 section 8.2.3).
    cookies: Cookies,
    content_type: &'f [u8],
}

#[derive(Debug)]
enum Cookies {
    AsTheyAre,
    Joined(Vec<u8>),
}

impl<'f> RequestHead<'f> {
    /// Looks through a header list.
    #[must_use]
    pub fn new(fields: &'f FieldList) -> Self {
        let mut head = Self {
            fields,
            method: b"",
            path: b"",
            authority: None,
            has_host: false,
            cookies: Cookies::AsTheyAre,
            content_type: b"",
        };
        let mut cookies = 0;
        for field in fields.iter() {
            match field.name {
                b":method" => head.method = field.value,
                b":path" => head.path = field.value,
                b":authority" => head.authority = Some(field.value),
                b"host" => head.has_host = true,
                b"cookie" => cookies += 1,
                b"content-type" => head.content_type = field.value,
                _ => {}
            }
        }
        if cookies > 1 {
            let lines = fields.iter().filter(|f| f.name == b"cookie");
            let lines: Vec<_> = lines.map(|f| f.value).collect();
            head.cookies = Cookies::Joined(lines.join(&b"; "[..]));
        }
        head
    }

    /// All fields as they were sent.
    #[must_use]
    pub fn fields(&self) -> &'f FieldList {
        self.fields
    }

    /// The method as it was sent.
    #[must_use]
    pub fn method(&self) -> &'f [u8] {
        self.method
    }

    /// The value of `content-type`, or nothing.
    #[must_use]
    pub fn content_type(&self) -> &'f [u8] {
        self.content_type
    }
}

impl routing::Request for RequestHead<'_> {
    fn method(&self) -> &[u8] {
        self.method
    }

    fn target(&self) -> &[u8] {
        self.path
    }

    /// `:authority` is shown, and as `host` where there is no such line, because that is what it is
    /// for (RFC 9113 section 8.3.1).
    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        if let Some(authority) = self.authority {
            visit(b":authority", authority);
            if !self.has_host {
                visit(b"host", authority);
            }
        }
        if let Cookies::Joined(cookies) = &self.cookies {
            visit(b"cookie", cookies);
        }
        for field in self.fields.iter() {
            let joined = field.name == b"cookie" && matches!(self.cookies, Cookies::Joined(_));
            if !joined && !field.name.starts_with(b":") {
                visit(field.name, field.value);
            }
        }
    }
}

/// Returns true if a request's header list is sound. `ends` says that no body follows.
#[must_use]
pub fn is_sound(fields: &FieldList, ends: bool) -> bool {
    let mut pseudo = Pseudo::default();
    let (mut regular, mut length) = (false, None);
    for field in fields.iter() {
        if !is_value(field.value) {
            return false;
        }
        if field.name.starts_with(b":") {
            if regular || !pseudo.take(field.name, field.value) {
                return false;
            }
            continue;
        }
        regular = true;
        if !is_regular(field.name, field.value) {
            return false;
        }
        if field.name == b"content-length" {
            let Some(value) = decimal(field.value) else {
                return false;
            };
            if length.is_some_and(|known| known != value) {
                return false;
            }
            length = Some(value);
        }
    }
    pseudo.is_sound() && !(ends && length.is_some_and(|n| n > 0))
}

/// Returns true if trailers are sound.
#[must_use]
pub fn are_trailers_sound(fields: &FieldList) -> bool {
    fields
        .iter()
        .all(|field| is_regular(field.name, field.value) && is_value(field.value))
}

#[derive(Default)]
struct Pseudo<'f> {
    method: Option<&'f [u8]>,
    scheme: Option<&'f [u8]>,
    path: Option<&'f [u8]>,
    authority: Option<&'f [u8]>,
    protocol: Option<&'f [u8]>,
}

impl<'f> Pseudo<'f> {
    /// Takes a field in; `false` where it is unknown or has been there.
    fn take(&mut self, name: &[u8], value: &'f [u8]) -> bool {
        let place = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":path" => &mut self.path,
            b":authority" => &mut self.authority,
            b":protocol" => &mut self.protocol,
            _ => return false,
        };
        place.replace(value).is_none()
    }

    fn is_sound(&self) -> bool {
        let Some(method) = self.method.filter(|m| is_token(m)) else {
            return false;
        };
        // No character that would end the field in a request line of HTTP/1.
        let plain = |text: &[u8]| !text.iter().any(|b| *b <= b' ' || *b == 0x7f);
        if !self.authority.is_none_or(plain) {
            return false;
        }
        if method == b"CONNECT" && self.protocol.is_none() {
            return self.scheme.is_none() && self.path.is_none() && self.authority.is_some();
        }
        if self.protocol.is_some() && method != b"CONNECT" {
            return false;
        }
        let (Some(scheme), Some(path)) = (self.scheme, self.path) else {
            return false;
        };
        let path_sound = path.starts_with(b"/") || (path == b"*" && method == b"OPTIONS");
        path_sound && plain(path) && is_token(scheme)
    }
}

fn is_regular(name: &[u8], value: &[u8]) -> bool {
    if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
        return false;
    }
    match name {
        // Fields of a connection (RFC 9113 section 8.2.2).
        b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => {
            false
        }
        b"te" => value == b"trailers",
        _ => true,
    }
}

fn is_token(name: &[u8]) -> bool {
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(token)
}

fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| b.is_some_and(|b| matches!(b, b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        && !value
            .iter()
            .any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok()?;
    let all = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http2::hpack::Field;
    use crate::routing::Request as _;

    const GET: [(&str, &str); 4] = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/a?b"),
        (":authority", "app.test"),
    ];

    fn list<'f>(fields: impl IntoIterator<Item = &'f (&'f str, &'f str)>) -> FieldList {
        let mut list = FieldList::default();
        for (name, value) in fields {
            list.push(Field::plain(name.as_bytes(), value.as_bytes()));
        }
        list
    }

    fn seen(fields: &[(&str, &str)]) -> Vec<String> {
        let list = list(fields);
        let (head, mut seen) = (RequestHead::new(&list), Vec::new());
        head.visit_headers(&mut |name, value| {
            seen.push(format!("{}={}", name.escape_ascii(), value.escape_ascii()));
        });
        seen
    }

    #[test]
    fn cookies_are_one_line_and_the_authority_is_a_host_where_there_is_none() {
        let more = [
            ("cookie", "a=1"),
            ("x", "1"),
            ("cookie", "b=2"),
            ("cookie", "c"),
            ("x", "2"),
        ];
        assert_eq!(
            seen(&[&GET[..], &more].concat()),
            [
                ":authority=app.test",
                "host=app.test",
                "cookie=a=1; b=2; c",
                "x=1",
                "x=2"
            ]
        );
        let own = [("host", "other"), ("cookie", "a=1; b=2")];
        assert_eq!(
            seen(&[&GET[..], &own].concat()),
            [":authority=app.test", "host=other", "cookie=a=1; b=2"]
        );
        let list = list(&GET);
        let head = RequestHead::new(&list);
        assert_eq!((head.method(), head.target()), (&b"GET"[..], &b"/a?b"[..]));
    }

    #[test]
    fn odd_requests_that_servers_take_are_sound() {
        let with = |name: &'static str, value: &'static str| {
            let mut fields = GET.to_vec();
            fields.retain(|(n, _)| *n != name);
            fields.insert(0, (name, value));
            fields
        };
        for fields in [
            GET.to_vec(),
            with(":path", "/search?q=a>1|<`[{^\\\"#x"),
            with(":path", "/caf\u{e9}"),
            with(":authority", "extension/ns/auth-server"),
            with(":authority", ""),
            with(":authority", "%2Frun%2Fx.sock"),
            with(":method", "PURGE"),
            [
                &GET[..],
                &[("te", "trailers"), ("a`b", "\u{e9}\t x"), ("empty", "")],
            ]
            .concat(),
            [
                &GET[..],
                &[("content-length", "5"), ("content-length", "5")],
            ]
            .concat(),
            vec![(":method", "CONNECT"), (":authority", "a:1")],
            [
                &[(":protocol", "websocket")],
                &with(":method", "CONNECT")[..],
            ]
            .concat(),
            vec![(":method", "OPTIONS"), (":scheme", "http"), (":path", "*")],
        ] {
            assert!(is_sound(&list(&fields), false), "{fields:?}");
        }
        assert!(is_sound(
            &list(&[&GET[..], &[("content-length", "0")]].concat()),
            true
        ));
    }

    #[test]
    fn malformed_requests_are_known_as_such() {
        let without = |name: &str| {
            let mut fields = GET.to_vec();
            fields.retain(|(n, _)| *n != name);
            fields
        };
        let with = |name: &'static str, value: &'static str| {
            let mut fields = without(name);
            fields.insert(0, (name, value));
            fields
        };
        let and = |name: &'static str, value: &'static str| [&GET[..], &[(name, value)]].concat();
        for fields in [
            without(":method"),
            without(":scheme"),
            without(":path"),
            with(":path", ""),
            with(":path", "a"),
            with(":path", "*"),
            with(":path", "/a b"),
            with(":path", "/a\u{1}"),
            with(":method", "A B"),
            with(":method", ""),
            with(":scheme", "ht tp"),
            with(":authority", "a b"),
            with(":unknown", "1"),
            with(":status", "200"),
            and(":method", "GET"),
            and("X-Upper", "1"),
            and("x name", "v"),
            and("", "v"),
            and("x", "a\u{1}b"),
            and("x", "a\r\nb"),
            and("x", " a"),
            and("x", "a\t"),
            and("connection", "close"),
            and("keep-alive", "1"),
            and("proxy-connection", "1"),
            and("transfer-encoding", "chunked"),
            and("upgrade", "h2c"),
            and("te", "gzip"),
            and("content-length", "1x"),
            and("content-length", ""),
            [
                &GET[..],
                &[("content-length", "1"), ("content-length", "2")],
            ]
            .concat(),
            [&[("x", "1")], &GET[..]].concat(),
            [&[(":protocol", "websocket")], &GET[..]].concat(),
            vec![(":method", "CONNECT")],
            vec![
                (":method", "CONNECT"),
                (":authority", "a:1"),
                (":path", "/"),
            ],
        ] {
            assert!(!is_sound(&list(&fields), false), "{fields:?}");
        }
        assert!(!is_sound(&list(&and("content-length", "1")), true));
        assert!(are_trailers_sound(&list(&[("x-end", "1")])));
        assert!(!are_trailers_sound(&list(&[(":path", "/")])));
        assert!(!are_trailers_sound(&list(&[("X-End", "1")])));
    }
}
