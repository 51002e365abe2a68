//! The answer to an admission review as it is sent. The `kube` crate writes a patch byte by byte, as a
//! list of numbers, which is four times as long as the patch, for us to write and for the API server to read.

use injector::Patch;
use k8s_openapi::ByteString;
use kube::Resource;
use kube::core::admission::AdmissionRequest;
use serde::Serialize;

/// An `AdmissionReview` with a response that admits the object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReviewAnswer {
    api_version: String,
    kind: String,
    response: Response,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<ByteString>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl ReviewAnswer {
    /// Admits the object of a request as it is.
    pub(crate) fn to<K: Resource>(request: &AdmissionRequest<K>) -> Self {
        Self {
            api_version: request.types.api_version.clone(),
            kind: request.types.kind.clone(),
            response: Response {
                uid: request.uid.clone(),
                allowed: true,
                patch: None,
                patch_type: None,
                warnings: Vec::new(),
            },
        }
    }

    /// The same with a patch of the object.
    #[must_use]
    pub(crate) fn with_patch(mut self, patch: &Patch) -> Self {
        if patch.0.is_empty() {
            return self;
        }
        // Operations of text and numbers always serialize; should they not, the object comes as it is.
        if let Ok(patch) = serde_json::to_vec(patch) {
            self.response.patch = Some(ByteString(patch));
            self.response.patch_type = Some("JSONPatch");
        }
        self
    }

    /// The same with warnings for whoever sent the object.
    #[must_use]
    pub(crate) fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.response.warnings = warnings;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::core::admission::AdmissionReview;
    use serde_json::{Value, json};

    fn request() -> AdmissionRequest<Pod> {
        let what = |it: &str| json!({"group": "", "version": "v1", "kind": it, "resource": it});
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u-1", "kind": what("Pod"), "resource": what("pods"),
                "namespace": "n", "name": "", "operation": "CREATE", "userInfo": {}}});
        let review: AdmissionReview<Pod> = serde_json::from_value(review).unwrap();
        review.try_into().unwrap()
    }

    fn sent(answer: &ReviewAnswer) -> Value {
        serde_json::to_value(answer).unwrap()
    }

    #[test]
    fn an_object_without_a_patch_is_admitted_as_it_is() {
        let answer = ReviewAnswer::to(&request()).with_patch(&Patch::default());
        let expected = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "response": {"uid": "u-1", "allowed": true}});
        assert_eq!(sent(&answer), expected);
    }

    #[test]
    fn a_patch_is_sent_in_base64() {
        let patch: Patch = serde_json::from_value(json!([{"op": "remove", "path": "/a"}])).unwrap();
        let answer = ReviewAnswer::to(&request())
            .with_patch(&patch)
            .with_warnings(vec!["why".to_owned()]);
        let sent = sent(&answer);
        let response = &sent["response"];
        assert_eq!(
            (&response["patchType"], &response["warnings"]),
            (&json!("JSONPatch"), &json!(["why"]))
        );
        let bytes: ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
        let back: Patch = serde_json::from_slice(&bytes.0).unwrap();
        assert_eq!(back, patch);
    }
}
