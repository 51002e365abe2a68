//! Connections to ports of pods through the API server, opened anew for each connection, so that
//! one which breaks is followed by another to a pod that is there.

use std::io;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Api, Client};
use tokio::io::DuplexStream;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::{SERVICE, is_ready, is_refused, manager_pods};

/// Time for opening one connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// Name of the API port in the manager's Service and pods.
const API_PORT_NAME: &str = "api";
/// The manager's API port, where its Service cannot be read.
const DEFAULT_API_PORT: u16 = 8081;

/// A port that can be reached again and again.
#[derive(Clone)]
pub(crate) struct Port {
    client: Client,
    namespace: String,
    target: Target,
    /// Tasks that carry the open connections; each ends with its connection.
    tasks: TaskTracker,
}

#[derive(Clone)]
enum Target {
    /// A ready pod of the manager.
    Manager,
    Pod {
        name: String,
        port: u16,
    },
}

/// A manager is installed, and starts or is broken.
#[derive(Debug, thiserror::Error)]
#[error(
    "the traffic-manager in namespace {namespace} is not ready; see kubectl -n {namespace} \
    describe pod {pod}"
)]
struct NotReady {
    namespace: String,
    pod: String,
}

/// Returns true if this is the error of a manager that is installed and not ready.
pub(crate) fn is_not_ready(error: &(dyn std::error::Error + 'static)) -> bool {
    let inner = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    inner.is_some_and(|it| it.is::<NotReady>())
}

impl Port {
    pub(super) fn manager(client: Client, namespace: String) -> Self {
        Self {
            client,
            namespace,
            target: Target::Manager,
            tasks: TaskTracker::new(),
        }
    }

    pub(super) fn pod(client: Client, namespace: &str, name: &str, port: u16) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            target: Target::Pod {
                name: name.to_owned(),
                port,
            },
            tasks: TaskTracker::new(),
        }
    }

    /// A new connection.
    pub(crate) async fn open(&self) -> io::Result<DuplexStream> {
        timeout(OPEN_TIMEOUT, self.open_untimed())
            .await
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{self}: no port-forward within {OPEN_TIMEOUT:?}"),
                )
            })?
    }

    async fn open_untimed(&self) -> io::Result<DuplexStream> {
        let (pod, port) = match &self.target {
            Target::Manager => self.ready_manager().await?,
            Target::Pod { name, port } => (name.clone(), *port),
        };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut forwarder = pods
            .portforward(&pod, &[port])
            .await
            .map_err(|error| self.failed(&error))?;
        let stream = forwarder.take_stream(port);
        // The kubelet reports a refused port here, after the stream is open.
        if let Some(error) = forwarder.take_error(port) {
            let place = self.to_string();
            self.tasks.spawn(async move {
                if let Some(message) = error.await {
                    tracing::debug!("{place}: {}", message.trim());
                }
            });
        }
        // The forwarder works as long as the stream is held.
        self.tasks.spawn(forwarder.join());
        stream.ok_or_else(|| io::Error::other(format!("{self}: no stream for port {port}")))
    }

    /// Name and API port of a manager's pod that is ready.
    async fn ready_manager(&self) -> io::Result<(String, u16)> {
        let pods = manager_pods(&self.client, &self.namespace).await;
        let pods = pods.map_err(|error| self.failed(&error))?;
        let Some(pod) = pods.iter().find(|pod| is_ready(pod)) else {
            let namespace = &self.namespace;
            return Err(match pods.first() {
                Some(pod) => io::Error::other(NotReady {
                    namespace: namespace.clone(),
                    pod: name_of(pod),
                }),
                None => io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "no traffic-manager in namespace {namespace}; install one with intercept \
                        helm install, or name its namespace with --manager-namespace"
                    ),
                ),
            });
        };
        Ok((name_of(pod), self.api_port(pod).await))
    }

    /// The pod's port `api`, else what the Service's port of that name leads to: a question less
    /// for everybody who waits for an intercept, since all charts name it.
    async fn api_port(&self, pod: &Pod) -> u16 {
        if let Some(port) = named_port(pod, API_PORT_NAME) {
            return port;
        }
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let service = services.get_opt(SERVICE).await.ok().flatten();
        let target = service
            .and_then(|it| it.spec)
            .into_iter()
            .flat_map(|it| it.ports.unwrap_or_default())
            .find(|it| it.name.as_deref() == Some(API_PORT_NAME));
        // A Service port without targetPort targets its own number.
        let target = target.map(|it| it.target_port.unwrap_or(IntOrString::Int(it.port)));
        match target {
            Some(IntOrString::Int(number)) => u16::try_from(number).ok(),
            Some(IntOrString::String(name)) => named_port(pod, &name),
            None => None,
        }
        .unwrap_or(DEFAULT_API_PORT)
    }

    fn failed(&self, error: &kube::Error) -> io::Error {
        let message = match error {
            // The handshake's refusal comes without the API server's words.
            kube::Error::UpgradeConnection(error) => format!(
                "{self}: the API server does not forward the port: {error}; \
                 it takes the verbs get and create on pods/portforward in namespace {}",
                self.namespace
            ),
            kube::Error::Api(status) if is_refused(error) => format!("{self}: {}", status.message),
            other => format!("{self}: {}", super::chain(other)),
        };
        io::Error::other(message)
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.target {
            Target::Manager => write!(f, "{SERVICE}.{}", self.namespace),
            Target::Pod { name, port } => write!(f, "{name}.{}:{port}", self.namespace),
        }
    }
}

fn name_of(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn named_port(pod: &Pod, name: &str) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|it| &it.containers);
    let mut ports = containers.flat_map(|it| it.ports.iter().flatten());
    let port = ports.find(|it| it.name.as_deref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}
