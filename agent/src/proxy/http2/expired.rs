//! The only answer the agent makes itself: a request whose intercept has expired, while its owner
//! wants such requests to be noticed.

use crate::telemetry::explain_header::HEADER;
use traffic_core::http2::hpack::Field;
use traffic_core::http2::request::RequestHead;
use traffic_core::http2::router::LocalAnswer;
use traffic_core::routing::Intercept;

/// 503 with a body that says so; to gRPC callers status UNAVAILABLE as a trailers-only answer.
/// `explained` is told to a caller that asked for it. Says the status as well.
pub(super) fn answer(
    head: &RequestHead<'_>,
    intercept: &Intercept,
    explained: Option<&str>,
) -> (u16, LocalAnswer) {
    let text = format!(
        "Intercept \"{}\" of {} has expired. Create it again, or call without the headers that \
         select it.",
        intercept.name, intercept.client
    );
    let mut answer = LocalAnswer::default();
    let grpc = head.content_type().starts_with(b"application/grpc");
    let mut put = |name: &str, value: &[u8]| {
        answer.fields.push(Field::plain(name.as_bytes(), value));
    };
    let status = if grpc { 200 } else { 503 };
    put(":status", status.to_string().as_bytes());
    if let Some(value) = explained {
        put(HEADER, value.as_bytes());
    }
    if grpc {
        put("content-type", head.content_type());
        put("grpc-status", b"14");
        put("grpc-message", percent_encoded(&text).as_bytes());
        return (status, answer);
    }
    let body = text + "\n";
    put("content-type", b"text/plain; charset=utf-8");
    put("content-length", body.len().to_string().as_bytes());
    if head.method() != b"HEAD" {
        answer.body = body.into_bytes();
    }
    (status, answer)
}

/// The form of `grpc-message`: printable ASCII without `%`, everything else as `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_grpc_message_is_printable_ascii() {
        assert_eq!(super::percent_encoded("50% of ü\n"), "50%25 of %C3%BC%0A");
    }
}
