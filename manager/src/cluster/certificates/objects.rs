//! The Secret and the webhook's configuration.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::Pair;
use crate::cluster::replacing::said;

/// The certificate in a Secret; none while it is empty or what it holds is not one.
pub(super) async fn read_secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Pair>, String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = api.get(name).await;
    let secret = secret.map_err(|error| said(&error, "get", "secrets", namespace))?;
    let data = secret.data.unwrap_or_default();
    let text = |names: [&str; 2]| {
        let bytes = names.iter().find_map(|name| data.get(*name));
        bytes.and_then(|it: &ByteString| String::from_utf8(it.0.clone()).ok())
    };
    let (Some(certificate), Some(key)) =
        (text(["tls.crt", "crt.pem"]), text(["tls.key", "key.pem"]))
    else {
        return Ok(None);
    };
    let bundle = text(["ca.crt", "ca.pem"]).unwrap_or_default();
    match Pair::new(&certificate, &key, &bundle) {
        Ok(pair) => Ok(Some(pair)),
        Err(problem) => {
            tracing::error!(secret = name, "{problem}");
            Ok(None)
        }
    }
}

/// Puts the certificate into the Secret.
pub(super) async fn write_secret(
    client: &Client,
    namespace: &str,
    name: &str,
    pair: &Pair,
) -> Result<(), String> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"stringData": {
        "ca.crt": pair.bundle,
        "tls.crt": pair.certificate,
        "tls.key": pair.key,
    }});
    let patch = Patch::Merge(patch);
    match api.patch(name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) => Err(said(&error, "patch", "secrets", namespace)),
    }
}

/// Puts the authorities into every webhook of the configuration, unless they are there.
pub(super) async fn publish_bundle(
    client: &Client,
    name: &str,
    bundle: &str,
) -> Result<(), String> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = match api.get(name).await {
        Ok(configuration) => configuration,
        // On its way out with the release.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(said(&error, "get", RESOURCE, "(cluster)")),
    };
    let wanted = ByteString(bundle.as_bytes().to_vec());
    let webhooks = configuration.webhooks.unwrap_or_default();
    let operations: Vec<_> = webhooks
        .iter()
        .enumerate()
        .filter(|(_, it)| it.client_config.ca_bundle.as_ref() != Some(&wanted))
        .map(|(at, _)| {
            json!({"op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"),
                "value": wanted})
        })
        .collect();
    if operations.is_empty() {
        return Ok(());
    }
    let operations = serde_json::from_value(json!(operations)).map_err(|it| it.to_string())?;
    let patch = Patch::<MutatingWebhookConfiguration>::Json(operations);
    match api.patch(name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(error) => Err(said(&error, "patch", RESOURCE, "(cluster)")),
    }
}

const RESOURCE: &str = "mutatingwebhookconfigurations";
