//! Permission to program rules, and the reason when it is missing: the reader of the message has a pod
//! manifest to mend.

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, no_new_privs, set_capabilities,
};

/// Checks for NET_ADMIN. One that is merely permitted (a file capability can be) is made
/// effective.
pub fn may_program() -> bool {
    let Ok(mut sets) = capabilities(None) else {
        return true;
    };
    if sets.effective.contains(CapabilitySet::NET_ADMIN) {
        return true;
    }
    sets.effective |= sets.permitted & CapabilitySet::NET_ADMIN;
    sets.effective.contains(CapabilitySet::NET_ADMIN) && set_capabilities(None, sets).is_ok()
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

/// Explains the kernel's refusal: the cause, and the line to change.
pub fn explanation() -> String {
    let uid = rustix::process::geteuid().as_raw();
    let effective =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    let bounding = capability_is_in_bounding_set(CapabilitySet::NET_ADMIN).unwrap_or(false);
    let locked = no_new_privs().unwrap_or(false);
    let why = match (effective, uid, bounding) {
        (true, _, _) => {
            "NET_ADMIN is held, but not over this network namespace: it belongs to another user namespace. Start the \
             init container in the pod's own"
                .to_owned()
        }
        (false, 0, _) => {
            "NET_ADMIN is missing: add it to securityContext.capabilities.add of the init container".to_owned()
        }
        (false, _, true) => format!(
            "NET_ADMIN is only in the bounding set: a container that runs as uid {uid} gets the capabilities its pod \
             adds there and nowhere else. Run the init container as root (runAsUser: 0, runAsNonRoot: false), or give \
             the program the file capability cap_net_admin+ep, which takes allowPrivilegeEscalation: true ({})",
            if locked { "it is false here" } else { "it is true here" }
        ),
        (false, _, false) => format!(
            "NET_ADMIN is missing: add it to securityContext.capabilities.add of the init container, and run it as \
             root (runAsUser: 0) instead of uid {uid}, or with the file capability cap_net_admin+ep on the program"
        ),
    };
    format!("{why}. Without that right {}", crate::error::REMEDIES)
}
