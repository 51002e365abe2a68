//! Protocol of a copy.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod, Uri};
use traffic_core::http1::head::{Head, Method};
use traffic_core::http2::hpack::FieldList;

/// Protocol of a copy, which decides where it ends.
#[derive(Clone, Debug)]
pub(crate) enum Speech {
    /// An HTTP/1 request.
    Http1 {
        method: Method,
        /// Its caller means to keep the connection.
        persists: bool,
    },
    /// An HTTP/2 request, whose head goes before its body.
    Http2(Arc<CopiedHead>),
    /// A whole connection.
    Unread,
}

impl From<&Head> for Speech {
    fn from(head: &Head) -> Self {
        Self::Http1 {
            method: head.method(),
            persists: head.persists(),
        }
    }
}

/// Head of an HTTP/2 request for another connection.
#[derive(Debug)]
pub(crate) struct CopiedHead {
    pub(crate) method: HttpMethod,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    /// Memory that it takes.
    pub(crate) size: usize,
}

impl CopiedHead {
    /// Takes the head of a sound request; `None` for one that opens a tunnel.
    pub(crate) fn of(fields: &FieldList) -> Option<Self> {
        let value = |name: &[u8]| {
            let found = fields.iter().find(|field| field.name == name);
            found.map(|field| field.value)
        };
        let method = HttpMethod::from_bytes(value(b":method")?).ok()?;
        if method == HttpMethod::CONNECT {
            return None;
        }
        let authority = value(b":authority").or_else(|| value(b"host"))?;
        let uri = Uri::builder()
            .scheme(value(b":scheme")?)
            .authority(authority)
            .path_and_query(value(b":path")?)
            .build();
        Some(Self {
            method,
            uri: uri.ok()?,
            headers: regular(fields),
            size: fields.size(),
        })
    }
}

/// The fields that are no pseudo-headers.
pub(crate) fn regular(fields: &FieldList) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for field in fields.iter().filter(|f| !f.name.starts_with(b":")) {
        let name = HeaderName::from_bytes(field.name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) {
            headers.append(name, value);
        }
    }
    headers
}
