//! agent-init: redirects the callers of an app's numeric target ports to the agent in the same pod.
//!
//! Read `plan` first: it is the policy. `rule` is a typed rule and its spellings; `facts` describes
//! the pod; `nft` and `iptables` are the two ways into the kernel; `apply` chooses between them;
//! `command` is one run.

pub mod rule;

pub mod plan;

pub mod facts;

pub mod failure;
pub mod iptables;
pub mod netlink;
pub mod nft;

pub mod apply;
pub mod args;
pub mod command;
pub mod error;
pub mod lock;
pub mod permission;
pub mod render;
pub mod settings;
