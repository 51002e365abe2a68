//! Istio's `Sidecar` objects, which redirect ports where a mesh is in charge of the pod's traffic.

use std::collections::BTreeMap;

use injector::config::Config;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::replacing::said;

/// Marks objects of the manager's.
const CREATED_BY: &str = "app.kubernetes.io/created-by";

/// The API of Istio's `Sidecar`.
pub(crate) fn sidecar_resource() -> ApiResource {
    ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1beta1".to_owned(),
        api_version: "networking.istio.io/v1beta1".to_owned(),
        kind: "Sidecar".to_owned(),
        plural: "sidecars".to_owned(),
    }
}

/// The manager has made it.
pub(crate) fn is_ours(object: &DynamicObject) -> bool {
    object.labels().get(CREATED_BY).map(String::as_str) == Some("traffic-manager")
}

/// Name of the object of a workload.
fn sidecar_name(workload: &str) -> String {
    format!("telepresence-{workload}")
}

/// The object that leads callers of redirected ports to the agent.
fn sidecar(config: &Config, egress: Option<Value>) -> Value {
    let name = sidecar_name(&config.workload_name);
    let mut ports: BTreeMap<u16, u16> = BTreeMap::new();
    for (container, entry) in config.entries() {
        if entry.is_redirected() && !container.takes_ports {
            ports.insert(entry.container_port, entry.agent_port);
        }
    }
    let ingress: Vec<_> = ports
        .iter()
        .map(|(container_port, agent_port)| {
            json!({
                "port": {"number": container_port, "protocol": "TCP",
                    "name": format!("tcp-{container_port}")},
                "defaultEndpoint": format!("127.0.0.1:{agent_port}"),
            })
        })
        .collect();
    let mut object = json!({
        "apiVersion": "networking.istio.io/v1beta1",
        "kind": "Sidecar",
        "metadata": {
            "name": name,
            "namespace": config.namespace,
            "labels": {
                CREATED_BY: "traffic-manager",
                "app.kubernetes.io/name": name,
                "telepresence.io/workloadName": config.workload_name,
            },
        },
        "spec": {
            "ingress": ingress,
            "workloadSelector": {"labels": {
                "telepresence.io/workloadEnabled": "true",
                "telepresence.io/workloadName": config.workload_name,
            }},
        },
    });
    if let Some(egress) = egress {
        object["spec"]["egress"] = egress;
    }
    object
}

/// Makes the object, or brings it up to date.
pub(crate) async fn apply(
    client: &Client,
    config: &Config,
    egress: Option<Value>,
) -> Result<(), String> {
    let namespace = &config.namespace;
    let api = sidecars(client, namespace);
    let name = sidecar_name(&config.workload_name);
    let parameters = PatchParams::apply("traffic-manager").force();
    let patch = Patch::Apply(sidecar(config, egress));
    match api.patch(&name, &parameters, &patch).await {
        Ok(_) => Ok(()),
        Err(error) => Err(said(
            &error,
            "patch",
            "sidecars.networking.istio.io",
            namespace,
        )),
    }
}

/// Removes the object of a workload.
pub(crate) async fn remove(client: &Client, namespace: &str, workload: &str) -> Result<(), String> {
    let api = sidecars(client, namespace);
    let name = sidecar_name(workload);
    match api.delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(said(
            &error,
            "delete",
            "sidecars.networking.istio.io",
            namespace,
        )),
    }
}

fn sidecars(client: &Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &sidecar_resource())
}
