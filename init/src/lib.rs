//! agent-init: redirects the callers of an app's numeric target ports to the agent in the same pod.
//!
//! Read `plan` first: it is the policy. `rule` is a typed rule and its spellings; `facts` describes
//! the pod; `nft` and `iptables` are the two ways into the kernel, `xtables` a third for reading
//! and removing; `choice` chooses between them and `apply` uses them; `probe` tries the result;
//! `command` is one run.

pub mod cidr;
pub mod family;
pub mod rule;

pub mod plan;

pub mod env;
pub mod error;
pub mod exceptions;
pub mod facts;
pub mod settings;
pub mod wanted;

pub mod failure;
pub mod iptables;
pub mod netlink;
pub mod nft;
pub mod ours;
pub mod permission;
mod system;
pub mod xtables;

pub mod apply;
pub mod args;
pub mod choice;
pub mod cni;
pub mod command;
pub mod conntrack;
pub mod host;
pub mod lock;
pub mod log;
pub mod namespace;
pub mod probe;
pub mod render;
pub mod signals;
pub mod task;
