//! Hands a verified caller's identity on, where the port is annotated so. What callers themselves
//! send under the header's name is taken out.

use http::{HeaderName, HeaderValue, Request};

use crate::tls::identity::CallerIdentity;

/// Sets the header `name` of a request to who the caller is, or removes it.
pub(crate) fn replace<B>(request: &mut Request<B>, name: &str, caller: Option<&CallerIdentity>) {
    // The name was checked when the annotation was read; one that is none has no field to be taken
    // out either.
    let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
        return;
    };
    request.headers_mut().remove(&name);
    if let Some(value) =
        caller.and_then(|identity| HeaderValue::from_str(identity.header_value()).ok())
    {
        request.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_says_of_itself_is_taken_out_and_nothing_else_changes() {
        let builder = Request::builder()
            .header("x-caller", "root")
            .header("accept", "*/*")
            .header("x-caller", "admin");
        let mut request = builder.body(()).unwrap();
        replace(&mut request, "x-caller", None);
        assert_eq!(request.headers().len(), 1);
        assert_eq!(request.headers()["accept"], "*/*");
    }
}
