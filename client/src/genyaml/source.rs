//! The workload and its surroundings, from a manifest or from the cluster.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use injector::{Kind, PodSecurity, Service, Surroundings, Template, Workload};
use k8s_openapi::api::core::v1 as core;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use serde_json::Value;

use super::flags::Genyaml;
use crate::Failure;
use crate::cluster::unreachable;

/// Material of a decision.
pub(super) struct Source {
    pub(super) workload: Workload,
    pub(super) template: core::PodTemplateSpec,
    pub(super) around: Surroundings,
    /// The workload as it was read.
    pub(super) manifest: Value,
}

impl Source {
    pub(super) async fn read(flags: &Genyaml) -> Result<Self, Failure> {
        match (&flags.input, &flags.workload) {
            (Some(path), _) => {
                let namespace = flags.namespace.as_deref().unwrap_or("default");
                from_manifest(&text_of(path)?, namespace).map_err(|problem| {
                    Failure::Failed(format!("--input {}: {problem}", path.display()))
                })
            }
            (None, Some(workload)) => from_cluster(flags, workload).await,
            (None, None) => Err(Failure::Usage("name a --workload or an --input".into())),
        }
    }

    fn new(manifest: Value, kind: Kind, namespace: &str) -> Result<Self, String> {
        let template = manifest["spec"]["template"].clone();
        let template: core::PodTemplateSpec = serde_json::from_value(template)
            .map_err(|error| format!("spec.template of the {kind}: {error}"))?;
        let text = |path: &str| manifest.pointer(path).and_then(Value::as_str);
        let name = text("/metadata/name").ok_or_else(|| format!("the {kind} has no name"))?;
        let workload = Workload {
            kind,
            name: name.to_owned(),
            namespace: text("/metadata/namespace").unwrap_or(namespace).to_owned(),
            template: Template::from(&template),
        };
        Ok(Self {
            workload,
            template,
            around: Surroundings::default(),
            manifest,
        })
    }
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(|_| ()),
        _ => std::fs::read_to_string(path).map(|read| text = read),
    };
    read.map(|()| text)
        .map_err(|error| Failure::Failed(format!("--input {}: {error}", path.display())))
}

/// One workload, and the Services beside it.
pub(super) fn from_manifest(text: &str, namespace: &str) -> Result<Source, String> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut source = None;
    let mut services = Vec::new();
    for document in documents {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        if kind == "Service" {
            let service = serde_json::from_value::<core::Service>(document);
            let service = service.map_err(|error| format!("Service: {error}"))?;
            services.push(Arc::new(Service::from(&service)));
        } else if let Ok(kind) = kind.parse::<Kind>() {
            if source.is_some() {
                return Err("more than one workload; one at a time".into());
            }
            source = Some(Source::new(document, kind, namespace)?);
        }
    }
    let mut source = source.ok_or("no Deployment, ReplicaSet, StatefulSet or Rollout in it")?;
    source.around.services = services;
    Ok(source)
}

async fn from_cluster(flags: &Genyaml, workload: &str) -> Result<Source, Failure> {
    let chosen = flags.cluster.choose().await?;
    let namespace = flags.namespace.clone().unwrap_or(chosen.namespace);
    let client = Client::try_from(chosen.config).map_err(|error| unreachable(&error))?;
    let (kinds, name) = match workload.split_once('/') {
        Some((kind, name)) => (vec![kind_of(kind)?], name),
        None => (Kind::ALL.to_vec(), workload),
    };
    for kind in kinds {
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &namespace, &resource(kind));
        match api.get_opt(name).await {
            Ok(Some(object)) => {
                let manifest = serde_json::to_value(object).unwrap_or_default();
                let source = Source::new(tidied(manifest), kind, &namespace);
                let mut source = source.map_err(Failure::Failed)?;
                source.around = surroundings(&client, &namespace)
                    .await
                    .map_err(|error| unreachable(&error))?;
                return Ok(source);
            }
            Ok(None) => {}
            // Rollouts are unknown to clusters without Argo.
            Err(_) if kind == Kind::Rollout => {}
            Err(error) => return Err(unreachable(&error)),
        }
    }
    Err(Failure::Failed(format!(
        "no workload {workload} in namespace {namespace}; name one of kubectl get deployments,statefulsets -n {namespace}"
    )))
}

/// A kind as people write it: `deployment`, `Deployment`, `statefulsets`.
fn kind_of(text: &str) -> Result<Kind, Failure> {
    let word = text.to_ascii_lowercase();
    let found = Kind::ALL
        .into_iter()
        .find(|kind| word.trim_end_matches('s') == kind.name().to_ascii_lowercase());
    found.ok_or_else(|| {
        Failure::Usage(format!(
            "--workload {text}/…: no kind with agents; write deployment, statefulset, replicaset or rollout"
        ))
    })
}

fn resource(kind: Kind) -> ApiResource {
    let (group, version) = match kind {
        Kind::Rollout => ("argoproj.io", "v1alpha1"),
        _ => ("apps", "v1"),
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind.name()))
}

async fn surroundings(client: &Client, namespace: &str) -> kube::Result<Surroundings> {
    let services: Api<core::Service> = Api::namespaced(client.clone(), namespace);
    let services = services.list(&ListParams::default()).await?.items;
    let namespaces: Api<core::Namespace> = Api::all(client.clone());
    // Without the right to see it nothing is known of Pod Security.
    let labels = namespaces.get(namespace).await.ok();
    let labels = labels.and_then(|it| it.metadata.labels).unwrap_or_default();
    Ok(Surroundings {
        services: services
            .iter()
            .map(|it| Arc::new(Service::from(it)))
            .collect(),
        pod_security: PodSecurity::of(&labels),
        foreign_sidecar: None,
    })
}

/// The object without what the API server keeps about it.
fn tidied(mut manifest: Value) -> Value {
    if let Some(object) = manifest.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = manifest["metadata"].as_object_mut() {
        for key in [
            "managedFields",
            "resourceVersion",
            "uid",
            "creationTimestamp",
            "generation",
        ] {
            metadata.remove(key);
        }
    }
    manifest
}
