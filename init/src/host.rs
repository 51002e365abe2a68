//! Guard for the node's own network: a redirect there would catch the traffic of every pod that
//! shares it.

use std::path::Path;

use crate::failure::Failure;
use crate::nft::others;
use crate::rule::Family;
use crate::xtables;

/// Inode of the first pid namespace of a machine, a constant of the kernel.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Says why the network namespace is the node's own; none when it seems to be a pod's.
pub fn signs_of_a_node() -> Result<Option<&'static str>, Failure> {
    // The kernel offers these settings in its first network namespace only.
    if Path::new("/proc/sys/net/core/netdev_max_backlog").exists() && !is_pods_own_machine() {
        return Ok(Some("it is the machine's first"));
    }
    if is_shared_with_the_machines_init() {
        return Ok(Some("the machine's process 1 is in it"));
    }
    let legacy = xtables::read(Family::V4, "nat")?;
    if others::read()?.has_kube_proxy
        || legacy.is_some_and(|table| table.has_chain("KUBE-SERVICES"))
    {
        return Ok(Some("it holds the rules of kube-proxy"));
    }
    Ok(None)
}

/// True in a virtual machine that a runtime starts for one pod: its first namespace is the pod's.
fn is_pods_own_machine() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|line| starts_kata(&line))
}

/// True for the kernel's command line in a guest of Kata Containers: it names the agent's unit or
/// program.
fn starts_kata(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.any(|word| word.contains("kata-containers") || word.contains("kata-agent"))
}

/// True when process 1, as this process sees it, is the machine's and has our network. In a
/// container process 1 is the container's own.
fn is_shared_with_the_machines_init() -> bool {
    let link = |path: &str| std::fs::read_link(path).ok();
    if link("/proc/self/ns/pid").is_none_or(|it| it != Path::new(FIRST_PID_NAMESPACE)) {
        return false;
    }
    // The calling thread may be in another namespace than its process.
    let ours = link("/proc/thread-self/ns/net");
    ours.is_some() && ours == link("/proc/1/ns/net")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_kata_is_known_by_its_command_line() {
        assert!(starts_kata(
            "console=hvc0 quiet systemd.unit=kata-containers.target agent.log=debug"
        ));
        assert!(starts_kata("rdinit=/usr/bin/kata-agent"));
        assert!(!starts_kata("root=/dev/vda1 ro console=ttyS0"));
    }
}
