//! Facts about the cluster around a pod, reduced to what a decision needs.
//!
//! They are kept for every workload and service of a cluster, so they hold no more than is read
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use traffic_proto::Transport;

use crate::annotations;

/// Name of the agent's container.
pub const AGENT_CONTAINER: &str = "traffic-agent";
/// Name of the init container that redirects numeric ports.
pub const INIT_CONTAINER: &str = "tel-agent-init";

/// Kinds of workloads whose pods can get an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `apps/v1`.
    Deployment,
    /// `apps/v1`, on its own or below a Deployment or Rollout.
    ReplicaSet,
    /// `apps/v1`.
    StatefulSet,
    /// Argo's `argoproj.io/v1alpha1`.
    Rollout,
}

impl Kind {
    /// Kinds in the order in which a name without a kind is looked up.
    pub const ALL: [Self; 4] = [
        Self::Deployment,
        Self::ReplicaSet,
        Self::StatefulSet,
        Self::Rollout,
    ];

    /// Returns the kind as Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::Rollout => "Rollout",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A kind whose pods get no agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kind {0:?} is not supported; intercept a Deployment, ReplicaSet, StatefulSet or Rollout")]
pub struct UnsupportedKind(pub String);

impl FromStr for Kind {
    type Err = UnsupportedKind;

    /// Reads a kind as Kubernetes writes it.
    fn from_str(text: &str) -> Result<Self, UnsupportedKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnsupportedKind(text.to_owned()))
    }
}

/// A workload and the template that a pod was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Kind of the workload at the end of the owner chain.
    pub kind: Kind,
    /// Name of the workload.
    pub name: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Template of the pod's nearest owner: a ReplicaSet's own, not its Deployment's.
    pub template: Template,
}

/// A pod template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Labels of the pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of ours.
    pub annotations: BTreeMap<String, String>,
    /// App containers in order, the agent's own left out.
    pub containers: Vec<Container>,
    /// The template itself has an agent container.
    pub has_agent: bool,
}

/// A container of a template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Container name.
    pub name: String,
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
    /// Volume name and path of each mount.
    pub mounts: Vec<(String, String)>,
}

/// A declared port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Empty when unnamed.
    pub name: String,
    /// Port number.
    pub number: u16,
    /// TCP where nothing is declared.
    pub transport: Transport,
}

/// A Service with a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Service name.
    pub name: String,
    /// Service uid.
    pub uid: String,
    /// Labels of the pods behind it; none: no pods.
    pub selector: BTreeMap<String, String>,
    /// The Service has no cluster address.
    pub headless: bool,
    /// TCP and UDP ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when unnamed.
    pub name: String,
    /// Port of the Service.
    pub port: u16,
    /// Port of the pods.
    pub target: TargetPort,
    /// TCP where nothing is declared.
    pub transport: Transport,
    /// Empty when undeclared.
    pub app_protocol: String,
}

/// A Service's way to say which port of the pods it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A container port's name.
    Name(String),
    /// A number; an absent one is the service port's.
    Number(u16),
}

/// The strictest Pod Security level that a namespace enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodSecurity {
    /// Unrestricted.
    #[default]
    Privileged,
    /// Baseline: added capabilities are forbidden.
    Baseline,
    /// Restricted: no root, no privilege escalation, all capabilities dropped.
    Restricted,
}

impl PodSecurity {
    /// Label of a namespace that names the level.
    pub const LABEL: &'static str = "pod-security.kubernetes.io/enforce";

    /// The level that the labels of a namespace ask for.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        match labels.get(Self::LABEL).map(String::as_str) {
            Some("baseline") => Self::Baseline,
            // Other words are an error of the label, which the API server treats as privileged.
            Some("restricted") => Self::Restricted,
            _ => Self::Privileged,
        }
    }

    /// Returns the label's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// Facts about a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Services of the pod's namespace, in any order; those that neither select the template's pods nor
    /// are named by its annotations may be left out.
    pub services: Vec<Arc<Service>>,
    /// Pod Security level.
    pub pod_security: PodSecurity,
    /// Istio `Sidecar` object of another owner that selects the workload, if there is one.
    pub foreign_sidecar: Option<String>,
}

/// The desired state of a workload, apart from what its annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// An agent is not requested.
    #[default]
    No,
    /// An agent is requested, possibly with containers to replace.
    Yes {
        /// Names of containers that a workstation stands in for.
        replaced: BTreeSet<String>,
    },
    /// The workload's configuration is maintained by hand.
    Manual,
}

impl Wanted {
    /// An agent that replaces nothing.
    pub fn agent() -> Self {
        Self::Yes {
            replaced: BTreeSet::new(),
        }
    }
}

impl From<&core::PodTemplateSpec> for Template {
    fn from(template: &core::PodTemplateSpec) -> Self {
        let meta = template.metadata.as_ref();
        let labels = meta.and_then(|it| it.labels.clone()).unwrap_or_default();
        let annotations = meta.and_then(|it| it.annotations.as_ref());
        let spec = template.spec.as_ref();
        let containers = spec.map_or(&[][..], |spec| &spec.containers);
        Self {
            labels,
            annotations: annotations.map(annotations::ours).unwrap_or_default(),
            containers: containers
                .iter()
                .filter(|it| it.name != AGENT_CONTAINER)
                .map(Container::from)
                .collect(),
            has_agent: containers.iter().any(|it| it.name == AGENT_CONTAINER),
        }
    }
}

impl From<&core::Container> for Container {
    fn from(container: &core::Container) -> Self {
        let ports = container.ports.iter().flatten();
        let mounts = container.volume_mounts.iter().flatten();
        Self {
            name: container.name.clone(),
            ports: ports.filter_map(container_port).collect(),
            mounts: mounts
                .map(|it| (it.name.clone(), it.mount_path.clone()))
                .collect(),
        }
    }
}

fn container_port(port: &core::ContainerPort) -> Option<ContainerPort> {
    Some(ContainerPort {
        name: port.name.clone().unwrap_or_default(),
        number: number(port.container_port)?,
        transport: transport(port.protocol.as_deref())?,
    })
}

impl From<&core::Service> for Service {
    fn from(service: &core::Service) -> Self {
        Self::new(&service.metadata, service.spec.as_ref())
    }
}

impl Service {
    /// Reads a Service's metadata and its spec.
    pub fn new(meta: &ObjectMeta, spec: Option<&core::ServiceSpec>) -> Self {
        let external = spec.is_some_and(|it| it.type_.as_deref() == Some("ExternalName"));
        let selector = spec
            .filter(|_| !external)
            .and_then(|it| it.selector.clone());
        let ports = spec.and_then(|it| it.ports.as_ref());
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            selector: selector.unwrap_or_default(),
            headless: spec.is_some_and(|it| it.cluster_ip.as_deref() == Some("None")),
            ports: ports
                .into_iter()
                .flatten()
                .filter_map(service_port)
                .collect(),
        }
    }
}

fn service_port(port: &core::ServicePort) -> Option<ServicePort> {
    let own = number(port.port)?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(target)) => TargetPort::Number(number(*target)?),
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(own),
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        port: own,
        target,
        transport: transport(port.protocol.as_deref())?,
        app_protocol: port.app_protocol.clone().unwrap_or_default(),
    })
}

impl Service {
    /// Returns true if pods with these labels belong to the Service.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty()
            && self
                .selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// Parses a protocol; none for one that agents do not carry, such as SCTP.
pub(crate) fn transport(protocol: Option<&str>) -> Option<Transport> {
    match protocol.unwrap_or_default() {
        "" => Some(Transport::Tcp),
        other => other.parse().ok(),
    }
}
