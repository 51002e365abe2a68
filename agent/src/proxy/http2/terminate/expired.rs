//! The one answer that the agent gives itself: a request whose intercept has expired, while expired
//! notifications are on.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};

use traffic_core::routing::Intercept;

/// 503 with a body that says so; to gRPC callers status UNAVAILABLE as a trailers-only response.
/// `explained` is told to whoever asked why.
pub(crate) fn expired(
    mut respond: SendResponse<Bytes>,
    request: &Request<RecvStream>,
    intercept: &Intercept,
    explained: Option<String>,
) -> u16 {
    let text = format!(
        "Intercept \"{}\" of {} has expired. Create it again, or call without the headers that select it.",
        intercept.name, intercept.client
    );
    let grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .filter(|t| t.as_bytes().starts_with(b"application/grpc"));
    let mut response = Response::new(());
    let headers = response.headers_mut();
    if let Some(value) = explained.and_then(|text| HeaderValue::try_from(text).ok()) {
        headers.insert(crate::telemetry::explain_header::HEADER, value);
    }
    // A caller that is gone needs no answer.
    if let Some(kind) = grpc {
        headers.insert(CONTENT_TYPE, kind.clone());
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&text)) {
            headers.insert("grpc-message", message);
        }
        let _ = respond.send_response(response, true);
        return 200;
    }
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    let body = text + "\n";
    headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if request.method() == http::Method::HEAD {
        let _ = respond.send_response(response, true);
    } else if let Ok(mut send) = respond.send_response(response, false) {
        let _ = send.send_data(Bytes::from(body), true);
    }
    503
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
