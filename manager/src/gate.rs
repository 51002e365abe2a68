//! The way of a call through the gate: what has to be proved is proved before the call is served.

use std::convert::Infallible;
use std::mem;
use std::sync::Arc;

use tonic::Status;
use tonic::codegen::Service as HttpService;
use tonic::codegen::http::{HeaderMap, Request, Response, header};
use tonic::metadata::MetadataMap;
use traffic_proto::client_certificate;

use crate::callers::Caller;
use crate::cluster::gate::Gate;
use crate::identity::Credential;

/// Calls that need no proof: how else would a client learn that one is wanted?
const OPEN: [&str; 2] = [
    "/telepresence.manager.Manager/Version",
    "/grpc.health.v1.Health/",
];

/// Passes a call on with its caller, or answers it with the refusal.
pub(crate) async fn pass<S, B, R>(
    gate: Arc<Gate>,
    mut grpc: S,
    request: Request<B>,
) -> Result<Response<R>, Infallible>
where
    S: HttpService<Request<B>, Response = Response<R>, Error = Infallible>,
    R: Default,
{
    let (mut head, body) = request.into_parts();
    let path = head.uri.path();
    if !OPEN.iter().any(|open| path.starts_with(open)) {
        let metadata = MetadataMap::from_headers(mem::take(&mut head.headers));
        let certificate = client_certificate::given(&metadata);
        head.headers = metadata.into_headers();
        let credential = token(&head.headers)
            .map(Credential::Token)
            .or(certificate.as_deref().map(Credential::Certificate));
        match Caller::with(gate, credential).await {
            Ok(caller) => head.extensions.insert(caller),
            Err(status) => return Ok(refusal(&status)),
        };
    }
    // Nobody may put his credential anywhere by having it passed on.
    head.headers.remove(header::AUTHORIZATION);
    head.headers.remove(client_certificate::PROOF);
    grpc.call(Request::from_parts(head, body)).await
}

fn refusal<R: Default>(status: &Status) -> Response<R> {
    status.clone().into_http()
}

/// The bearer token of a call.
fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let is_bearer = scheme.eq_ignore_ascii_case("bearer");
    Some(token.trim()).filter(|token| is_bearer && !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_are_read() {
        for (value, wanted) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic abc", None),
            ("abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(token(&headers), wanted, "{value}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }
}
