//! Words for what was decided: reasons, notes and refusals, each with what to do about it.

use std::fmt;

use traffic_proto::Faults;
use traffic_proto::port_identifier::PortIdentifier;

use crate::facts::{Kind, PodSecurity, Service, ServicePort, TargetPort, Workload};

/// The reason why a workload gets no agent although one is wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Annotations that cannot be followed.
    #[error("{workload}: {}", one_line(.faults))]
    Faults {
        /// Kind and name.
        workload: String,
        /// Faults, one for each annotation.
        faults: Faults,
    },
    /// An annotation names a Service that is not there.
    #[error(
        "{workload}: telepresence.io/inject-service-name={service:?}: no such Service in namespace \
         {namespace}; create it or mend the annotation"
    )]
    NoSuchService {
        /// Kind and name.
        workload: String,
        /// Name of the Service.
        service: String,
        /// Namespace of the Service.
        namespace: String,
    },
    /// The template has no app container.
    #[error("{0} has no container an agent could stand for")]
    NoContainers(String),
    /// Redirects cannot be made for any port.
    #[error("{workload}: {}", .reasons.join("; "))]
    NoRedirect {
        /// Kind and name.
        workload: String,
        /// Reasons, one for each port.
        reasons: Vec<String>,
    },
    /// Two Istio `Sidecar` objects for one workload.
    #[error(
        "{workload}: the Istio Sidecar {sidecar:?} selects it already, and two are undefined \
         behaviour; give the container ports names and let the Services use them, then none is needed"
    )]
    ForeignSidecar {
        /// Kind and name.
        workload: String,
        /// Name of the other Sidecar.
        sidecar: String,
    },
    /// Port numbers are exhausted.
    #[error("{0} leaves no port number for an agent; declare fewer ports")]
    NoAgentPort(String),
}

fn one_line(faults: &Faults) -> String {
    let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
    faults.join("; ")
}

/// A remark about a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The remark needs attention.
    pub is_warning: bool,
    /// Text of the remark.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl Note {
    pub(crate) fn info(text: impl Into<String>) -> Self {
        Self {
            is_warning: false,
            text: text.into(),
        }
    }

    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self {
            is_warning: true,
            text: text.into(),
        }
    }

    pub(crate) fn unmatched_service_port(service: &Service, port: &ServicePort) -> Self {
        let target = match &port.target {
            TargetPort::Name(name) => format!("named {name:?}"),
            TargetPort::Number(number) => number.to_string(),
        };
        Self::info(format!(
            "Service {} port {}: left out, no container declares port {target}/{}",
            service.name, port.port, port.transport
        ))
    }

    pub(crate) fn unmatched_filter(identifier: &PortIdentifier) -> Self {
        Self::warning(format!(
            "telepresence.io/inject-service-ports={identifier}: no Service of the pod has this port"
        ))
    }

    pub(crate) fn no_service(services: &[&Service]) -> Self {
        let text = "every declared container port can be intercepted, callers are redirected";
        if services.is_empty() {
            return Self::info(format!("no Service selects the pod: {text}"));
        }
        Self::warning(format!(
            "no port of Service {} is a port of a container: {text}",
            names(services)
        ))
    }

    pub(crate) fn no_ports(workload: &Workload, services: &[&Service]) -> Self {
        let why = if services.is_empty() {
            "no Service selects its pods and no container declares a port".to_owned()
        } else {
            format!(
                "no port of Service {} is a port of a container",
                names(services)
            )
        };
        Self::warning(format!(
            "{workload} has no port to intercept: {why}; declare the container's port or name it in \
             telepresence.io/inject-container-ports"
        ))
    }

    pub(crate) fn moved_port(wanted: u16, got: u16) -> Self {
        Self::info(format!(
            "agent port {wanted} is taken by the workload, {got} is used; agent.port chooses another \
             range"
        ))
    }
}

fn names(services: &[&Service]) -> String {
    let names: Vec<_> = services.iter().map(|it| it.name.as_str()).collect();
    names.join(", ")
}

/// The reason why callers of a port cannot be redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRedirect {
    /// The namespace's Pod Security level.
    PodSecurity(PodSecurity),
    /// The operator's choice.
    SwitchedOff,
}

impl NoRedirect {
    /// The text for one port.
    pub(crate) fn of(self, container: &str, port: u16) -> String {
        match self {
            Self::PodSecurity(level) => format!(
                "container {container} port {port} needs an init container with NET_ADMIN, and the \
                 namespace's Pod Security level {} refuses that; give the port a name and let the \
                 Service's targetPort use it",
                level.name()
            ),
            Self::SwitchedOff => format!(
                "container {container} port {port} needs an init container, and \
                 agent.initContainer.enabled is false; give the port a name and let the Service's \
                 targetPort use it"
            ),
        }
    }
}

/// The reason why a pod is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// An annotation of the pod.
    #[error("the annotation inject-traffic-agent says {0:?}")]
    Disabled(String),
    /// The policy leaves out what is not annotated.
    #[error(
        "agentInjector.injectPolicy is {0}: only pods with telepresence.io/inject-traffic-agent: \
         enabled get an agent"
    )]
    Policy(&'static str),
    /// The image is unknown.
    #[error("the agent's image is unknown; set agent.image.name and agent.image.tag")]
    NoImage,
    /// The pod has no owner.
    #[error("a pod without a workload gets no agent; use a Deployment or StatefulSet")]
    NoOwner,
    /// The pod belongs to something else.
    #[error(
        "pods of {kind} {name} get no agent; only those of a Deployment, ReplicaSet, StatefulSet or \
         (where enabled) Rollout do"
    )]
    ForeignOwner {
        /// Kind of the owner.
        kind: String,
        /// Name of the owner.
        name: String,
    },
    /// The workload is of a kind that the operator has switched off.
    #[error("workloads of kind {0} are switched off by workloads.*.enabled")]
    KindOff(Kind),
    /// The owner could not be found.
    #[error("the owner {kind} {name} is not known (yet); a replaced pod will be looked at again")]
    OwnerUnknown {
        /// Kind of the owner.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An agent is not requested.
    #[error("nobody intercepts {0}; the agent comes with the first intercept")]
    NotWanted(String),
    /// The agent is maintained by hand.
    #[error("{0} is injected by hand (telepresence.io/manually-injected or a manual entry)")]
    Manual(String),
    /// The pod is up to date.
    #[error("the agent is there and as it is to be")]
    UpToDate,
}
