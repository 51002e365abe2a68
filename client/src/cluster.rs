//! The way to a manager and to its agents through the API server: the user's kubeconfig is all it
//! takes.

mod access;
mod certificate;
mod check;
mod commands;
mod forward;
pub(crate) mod kubeconfig;
mod login;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};

use crate::Failure;
use crate::flags::cluster::ClusterFlags;
use kubeconfig::{Chosen, DEFAULT_MANAGER_NAMESPACE};

pub(crate) use certificate::Certificate;
pub use commands::{Check, ClusterCommand};
pub(crate) use forward::{Port, is_not_ready};
pub(crate) use login::Login;

/// Name of the manager's Service, whatever the release is called.
pub(crate) const SERVICE: &str = "traffic-manager";
/// Label of pods with an agent, as the injector sets it.
const WORKLOAD_LABEL: &str = "telepresence.io/workloadName";
/// Time for connecting to the API server.
const API_TIMEOUT: Duration = Duration::from_secs(15);

/// A cluster, and the place of its manager.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Name of the context.
    pub(crate) context: String,
    /// Namespace of the context.
    pub(crate) namespace: String,
    pub(crate) manager_namespace: String,
    /// The user's proof for the manager.
    pub(crate) login: Login,
}

impl Cluster {
    /// Reads the kubeconfig and finds the manager's namespace.
    pub(crate) async fn open(flags: &ClusterFlags) -> Result<Self, Failure> {
        let Chosen {
            mut config,
            context,
            namespace,
            manager_namespace,
        } = flags.choose().await?;
        config.connect_timeout = Some(API_TIMEOUT);
        let login = Login::new(config.clone());
        let client = access::client(config).map_err(|error| {
            Failure::Failed(format!("context {context:?} of the kubeconfig: {error}"))
        })?;
        let manager_namespace = match manager_namespace {
            Some(named) => named,
            None => find_manager(&client, &namespace).await?,
        };
        Ok(Self {
            client,
            context,
            namespace,
            manager_namespace,
            login,
        })
    }

    /// The manager's API port. Each connection looks for a pod that is ready.
    pub(crate) fn manager(&self) -> Port {
        Port::manager(self.client.clone(), self.manager_namespace.clone())
    }

    /// The names of a workload's pods that have an agent; an error if there is none.
    pub(crate) async fn agents(
        &self,
        namespace: &str,
        workload: &str,
    ) -> Result<Vec<String>, Failure> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let selector = ListParams::default().labels(&format!("{WORKLOAD_LABEL}={workload}"));
        let pods = pods.list(&selector).await;
        let pods = pods.map_err(|error| unreachable(&error))?.items;
        let names: Vec<_> = pods
            .into_iter()
            .filter_map(|pod| pod.metadata.name)
            .collect();
        if names.is_empty() {
            return Err(Failure::Failed(format!(
                "no pod of workload {workload:?} in namespace {namespace:?} has an agent: nothing \
                 is intercepted there; see intercept list"
            )));
        }
        Ok(names)
    }

    /// A port of one pod.
    pub(crate) fn pod(&self, namespace: &str, name: &str, port: u16) -> Port {
        Port::pod(self.client.clone(), namespace, name, port)
    }
}

/// The namespace of the manager, where nobody names it: the usual one, or the user's own.
async fn find_manager(client: &Client, own: &str) -> Result<String, Failure> {
    for namespace in [DEFAULT_MANAGER_NAMESPACE, own] {
        match service(client, namespace).await {
            Ok(Some(_)) => return Ok(namespace.to_owned()),
            Ok(None) => {}
            Err(error) if is_refused(&error) => {}
            Err(error) => return Err(unreachable(&error)),
        }
    }
    Ok(DEFAULT_MANAGER_NAMESPACE.to_owned())
}

async fn service(client: &Client, namespace: &str) -> kube::Result<Option<Service>> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    services.get_opt(SERVICE).await
}

/// Pods of the manager.
pub(crate) async fn manager_pods(client: &Client, namespace: &str) -> kube::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let selector = ListParams::default().labels("app=traffic-manager,telepresence=manager");
    Ok(pods.list(&selector).await?.items)
}

/// Is the pod able to take requests?
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|it| it.conditions.iter());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .flatten()
            .any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Did the API server answer that the user may not do this?
pub(crate) fn is_refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 401 || status.code == 403)
}

/// An error of the API server in words, with the remedy.
pub(crate) fn unreachable(error: &kube::Error) -> Failure {
    let text = match error {
        kube::Error::Api(status) => format!("the API server refuses: {}", status.message),
        kube::Error::Auth(error) => format!("the kubeconfig's login fails: {error}"),
        other => format!(
            "the API server cannot be reached: {}; does kubectl get pods work?",
            chain(other)
        ),
    };
    Failure::Failed(text)
}

/// An error and its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let status_text = cause.to_string();
        if !text.contains(&status_text) {
            text = format!("{text}: {status_text}");
        }
        source = cause.source();
    }
    text
}
