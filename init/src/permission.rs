//! Permission to program rules, and the reason when it is missing: the reader of the message has a
//! pod manifest to mend.

use std::fmt::{self, Display, Formatter};

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, no_new_privs, set_capabilities,
};

use crate::error::REMEDIES;
use crate::system;

/// Right that a backend needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// NET_ADMIN over the network namespace.
    NetAdmin,
    /// NET_ADMIN, and NET_RAW for the socket that the legacy programs open.
    NetAdminAndRaw,
}

/// Cause of a missing right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The manifest adds no such capability.
    NotAdded,
    /// The capability is added, but the process, which is not root, does not have it.
    OnlyBounding,
    /// The capability is added, but the process, which is root, does not have it.
    NotEffective,
    /// The program has the capability as a file, and no-new-privileges makes the kernel ignore it.
    NoNewPrivileges,
    /// The network namespace belongs to another user namespace.
    UserNamespace,
    /// NET_ADMIN is held, and NET_RAW is not.
    RawMissing,
    /// All rights are held, and the kernel refuses all the same.
    Policy,
}

/// Missing right, with its cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// Cause.
    pub cause: Cause,
    uid: u32,
}

impl Denied {
    /// Looks for the cause of a refusal that came although `need` seemed to be met.
    pub fn in_spite_of(need: Need) -> Self {
        check(need)
            .err()
            .unwrap_or_else(|| Self::new(Cause::Policy))
    }

    fn new(cause: Cause) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        Self { cause, uid }
    }
}

const NOT_ADDED: &str = "NET_ADMIN is missing: add it to securityContext.capabilities.add of the \
                         init container";
const NOT_EFFECTIVE: &str = "NET_ADMIN is added, but not in the effective set of this process \
                             although it is root: the container runtime or a wrapper took it \
                             away. Start agent-init as the container's own command";
const USER_NAMESPACE: &str = "NET_ADMIN is held, but not over this network namespace: it belongs \
                              to another user namespace. Start the init container in the pod's own";
const RAW_MISSING: &str = "NET_ADMIN is held, but the legacy programs of iptables need NET_RAW as \
                           well: add it to securityContext.capabilities.add of the init \
                           container, or use --backend nft, which does without";
const POLICY: &str = "NET_ADMIN is held over this network namespace, and the kernel refuses all \
                      the same: a seccomp profile or a security module of the node forbids it. \
                      Allow agent-init there";

impl Display for Denied {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let uid = self.uid;
        match self.cause {
            Cause::NotAdded if uid == 0 => f.write_str(NOT_ADDED),
            Cause::NotAdded => write!(
                f,
                "{NOT_ADDED}, and run it as root (runAsUser: 0) instead of uid {uid}, or with the \
                 file capability cap_net_admin+p on the program"
            ),
            Cause::OnlyBounding => write!(
                f,
                "NET_ADMIN is only in the bounding set: a container that runs as uid {uid} gets \
                 the capabilities its pod adds there and nowhere else. Run the init container as \
                 root (runAsUser: 0, runAsNonRoot: false), or give the program the file capability \
                 cap_net_admin+p, which takes allowPrivilegeEscalation: true (it is {} here)",
                !no_new_privs().unwrap_or(false)
            ),
            Cause::NotEffective => f.write_str(NOT_EFFECTIVE),
            Cause::NoNewPrivileges => write!(
                f,
                "NET_ADMIN is a file capability of the program, and no-new-privileges makes the \
                 kernel ignore it for uid {uid}: set allowPrivilegeEscalation: true on the init \
                 container, or run it as root (runAsUser: 0)"
            ),
            Cause::UserNamespace => f.write_str(USER_NAMESPACE),
            Cause::RawMissing => f.write_str(RAW_MISSING),
            Cause::Policy => f.write_str(POLICY),
        }?;
        let third = "a third is agent-init as a CNI plugin of the nodes";
        write!(f, ". Without that right {REMEDIES}; {third}")
    }
}

/// Checks the rights of the process. One that is merely permitted (a file capability can be) is
/// made effective first.
pub fn check(need: Need) -> Result<(), Denied> {
    let Ok(mut sets) = capabilities(None) else {
        // The kernel will say so itself.
        return Ok(());
    };
    let wanted = match need {
        Need::NetAdmin => CapabilitySet::NET_ADMIN,
        Need::NetAdminAndRaw => CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW,
    };
    if !sets.effective.contains(wanted) {
        sets.effective |= sets.permitted & wanted;
        let _ = set_capabilities(None, sets);
    }
    let held = capabilities(None).map_or(sets.effective, |sets| sets.effective);
    if !held.contains(CapabilitySet::NET_ADMIN) {
        return Err(Denied::new(without_net_admin()));
    }
    if !owns_network() {
        return Err(Denied::new(Cause::UserNamespace));
    }
    if !held.contains(wanted) {
        return Err(Denied::new(Cause::RawMissing));
    }
    Ok(())
}

fn without_net_admin() -> Cause {
    if !capability_is_in_bounding_set(CapabilitySet::NET_ADMIN).unwrap_or(false) {
        Cause::NotAdded
    } else if rustix::process::geteuid().is_root() {
        Cause::NotEffective
    } else if no_new_privs().unwrap_or(false) && program_has_file_capability() {
        Cause::NoNewPrivileges
    } else {
        Cause::OnlyBounding
    }
}

fn program_has_file_capability() -> bool {
    let mut value = [0u8; 24];
    rustix::fs::getxattr("/proc/self/exe", "security.capability", &mut value[..]).is_ok()
}

/// False when the network namespace belongs to a user namespace above or beside ours, over which
/// the process's capabilities do not count: of those alone the kernel does not tell the owner.
fn owns_network() -> bool {
    let Ok(network) = std::fs::File::open("/proc/self/ns/net") else {
        return true;
    };
    system::owner_of(&network).err() != Some(Errno::PERM)
}

/// Lets the programs we start keep the capabilities they need when we are not root: without this a
/// program that is not root starts with none.
pub fn pass_capabilities() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(mut sets) = capabilities(None) else {
        return;
    };
    let wanted = sets.permitted & (CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
    sets.inheritable |= wanted;
    // Where a step is refused the program itself will say that it lacks permission.
    if set_capabilities(None, sets).is_ok() {
        for capability in wanted.iter() {
            let _ = rustix::thread::configure_capability_in_ambient_set(capability, true);
        }
    }
}
