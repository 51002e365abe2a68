//! Lists of names and values in header lines: cookies (RFC 6265), W3C baggage and trace state; and
//! the path of a gRPC call. Nothing is copied unless a value has escapes.

use memchr::memchr;

use crate::routing::pattern::percent_decoded;

/// Forms of a value that are compared beside the one as it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forms {
    quoted: bool,
    escaped: bool,
}

impl Forms {
    /// Returns true if a form of the value is wanted.
    pub(super) fn any(self, value: &[u8], wanted: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if wanted(value) {
            return true;
        }
        let inner = match value {
            [b'"', inner @ .., b'"'] if self.quoted => inner,
            _ => value,
        };
        (inner.len() < value.len() && wanted(inner))
            || (self.escaped && memchr(b'%', inner).is_some() && wanted(&percent_decoded(inner)))
    }
}

/// Called with each value of the name; returns true to stop.
pub(super) type Visit<'v> = &'v mut dyn FnMut(&[u8], Forms) -> bool;
/// Visits the values of a name in a line.
pub(super) type List = fn(line: &[u8], name: &[u8], visit: Visit<'_>) -> bool;

/// Visits the values of a cookie in a line. One without `=` has an empty value.
pub(super) fn cookie(line: &[u8], name: &[u8], visit: Visit<'_>) -> bool {
    let forms = Forms {
        quoted: true,
        escaped: true,
    };
    members(line, b';').any(|member| {
        let (key, value) = pair(member).unwrap_or((member, b""));
        key == name && visit(value, forms)
    })
}

/// Visits the values of a key in a line of baggage; properties are no part of a value.
pub(super) fn baggage(line: &[u8], name: &[u8], visit: Visit<'_>) -> bool {
    let forms = Forms {
        quoted: false,
        escaped: true,
    };
    members(line, b',').any(|member| {
        let member = members(member, b';').next().unwrap_or_default();
        pair(member).is_some_and(|(key, value)| key == name && visit(value, forms))
    })
}

/// Visits the values of a key in a line of trace state, which has no escapes.
pub(super) fn trace_state(line: &[u8], name: &[u8], visit: Visit<'_>) -> bool {
    let forms = Forms {
        quoted: false,
        escaped: false,
    };
    members(line, b',')
        .any(|member| pair(member).is_some_and(|(key, value)| key == name && visit(value, forms)))
}

fn members(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    line.split(move |b| *b == separator).map(<[u8]>::trim_ascii)
}

fn pair(member: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, value) = member.split_at_checked(memchr(b'=', member)?)?;
    Some((key.trim_ascii_end(), value.get(1..)?.trim_ascii_start()))
}

/// Returns service and method of a gRPC call, which its content type makes one.
pub(super) fn grpc_call<'p, 'v>(
    path: &'p [u8],
    mut content_types: impl Iterator<Item = &'v [u8]>,
) -> Option<(&'p [u8], &'p [u8])> {
    const PREFIX: &[u8] = b"application/grpc";
    let is_grpc = content_types.any(|value| {
        value
            .split_at_checked(PREFIX.len())
            .is_some_and(|(start, rest)| {
                let ends = matches!(rest.first(), None | Some(b'+' | b';' | b'-' | b' '));
                ends && start.eq_ignore_ascii_case(PREFIX)
            })
    });
    let rest = path.strip_prefix(b"/").filter(|_| is_grpc)?;
    let slash = memchr::memrchr(b'/', rest)?;
    let (service, method) = (rest.get(..slash)?, rest.get(slash + 1..)?);
    (!service.is_empty() && !method.is_empty()).then_some((service, method))
}
