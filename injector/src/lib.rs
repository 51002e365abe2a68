//! Decides for a pod: agent or not, with which configuration, by which patch, and why.
//!
//! All functions are pure: no clock, no sockets. The desired agent of a workload comes from its
//! template, Services and the settings ([`plan`]); a pod is patched to have it ([`decide`]). A
//! digest of these inputs, kept in an annotation, tells if a pod was made from them, so that
//! changes by other webhooks neither loop nor roll anything.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

mod agent;
pub mod annotations;
pub mod config;
mod decide;
mod env;
mod explain;
mod facts;
mod manager_token;
mod owner;
mod patch;
mod plan;
mod ports;
mod settings;

pub use annotations::Inject;
pub use decide::{Decision, OwnerOf, Verdict, decide, desired};
pub use explain::{Note, Refusal, Skip};
pub use facts::{
    AGENT_CONTAINER, Container, ContainerPort, INIT_CONTAINER, Kind, PodSecurity, Service,
    ServicePort, Surroundings, TargetPort, Template, UnsupportedKind, Wanted, Workload,
};
pub use json_patch::Patch;
pub use owner::{Link, OwnerRef, Walk, controller, walk};
pub use plan::{Plan, plan};
pub use settings::{
    AGENT_GROUP, AgentOptions, Carrier, InjectPolicy, Mesh, NativeSidecar, Settings,
};
