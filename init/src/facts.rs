//! Facts of the pod: its loopback interface, its addresses, and the mark of its agent. The kernel and
//! the environment are asked once; `plan` takes it from there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;
use crate::netlink::{Attributes, Socket, find, find_text};
use crate::plan::Pod;
use crate::rule::{Agent, Family};

/// Subsystem of interfaces and routes: number 0, which rustix writes as none.
const ROUTE: Option<rustix::net::Protocol> = None;
const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const LINK_FIXED: usize = 16;
const ADDRESS_FIXED: usize = 8;
const FLAG_UP: u32 = 0x1;
const FLAG_LOOPBACK: u32 = 0x8;
const SCOPE_GLOBAL: u8 = 0;

/// Reads a variable of the environment; a map in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Interfaces of the namespace, as far as they matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// Loopback interface, found by its flag: the first that is up, else the first.
    pub loopback: Option<String>,
    /// Global addresses of the other interfaces.
    pub global: Vec<IpAddr>,
}

/// Identity of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Process {
    /// Identity of the calling process.
    pub fn current() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        }
    }
}

/// Gathers the pod's facts, and a warning about what they do not tell, if any.
///
/// Errors: a malformed address or id, a group that the app may have too, or no address at all.
pub fn gather(
    env: Env<'_>,
    interfaces: &Interfaces,
    process: Process,
) -> Result<(Pod, Option<String>), Error> {
    let (agent, warning) = agent(env, process)?;
    let addresses = addresses(env, interfaces)?;
    if addresses.is_empty() {
        return Err(Error::Config(
            "the pod has no address: neither POD_IPS nor POD_IP names one and no interface has a global one. Set \
             POD_IP from the field status.podIP"
                .to_owned(),
        ));
    }
    let loopback = interfaces
        .loopback
        .clone()
        .unwrap_or_else(|| "lo".to_owned());
    Ok((
        Pod {
            addresses,
            loopback,
            agent,
        },
        warning,
    ))
}

/// Lists the pod's addresses: `POD_IPS` when set, else `POD_IP` and every global address of the
/// interfaces; each once, and none that is loopback or link-local: no caller can use those from
/// elsewhere.
fn addresses(env: Env<'_>, interfaces: &Interfaces) -> Result<Vec<IpAddr>, Error> {
    let mut named = Vec::new();
    let list = value(env, "POD_IPS");
    let (key, text) = match &list {
        Some(list) => ("POD_IPS", list.clone()),
        None => ("POD_IP", value(env, "POD_IP").unwrap_or_default()),
    };
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let address: IpAddr = word.parse().map_err(|_| {
            Error::Config(format!(
                "{key}={text:?}: {word:?} is no IP address; write them like 10.1.0.2,fd00::2"
            ))
        })?;
        named.push(address.to_canonical());
    }
    if list.is_none() {
        named.extend(&interfaces.global);
    }
    let mut addresses = Vec::new();
    for address in named.into_iter().filter(|address| is_global(*address)) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.sort_by_key(|address| Family::of(*address));
    Ok(addresses)
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => {
            !it.is_loopback() && !it.is_link_local() && !it.is_unspecified() && !it.is_multicast()
        }
        IpAddr::V6(it) => {
            !it.is_loopback()
                && !it.is_unicast_link_local()
                && !it.is_unspecified()
                && !it.is_multicast()
        }
    }
}

/// Chooses the mark of the agent: its own group, else a user.
fn agent(env: Env<'_>, process: Process) -> Result<(Agent, Option<String>), Error> {
    if let Some(gid) = id(env, "AGENT_GID")? {
        // The group must be the agent's alone. What this container has without being given it, the
        // pod gives to all.
        let whose = if gid == 0 {
            "is root's group, which containers have by default"
        } else if gid == process.gid {
            "is the group this init container runs as, so the pod gives it to every container"
        } else {
            return Ok((Agent::Gid(gid), None));
        };
        return Err(Error::Config(format!(
            "AGENT_GID={gid}: {whose}; a rule for it could match the app and take it out of the mesh and past the \
             agent. Give the agent container a runAsGroup of its own and pass that"
        )));
    }
    let (uid, whose) = match id(env, "AGENT_UID")? {
        Some(uid) => (uid, "AGENT_UID"),
        None => (process.uid, "the uid of this init container"),
    };
    let warning = format!(
        "the agent is told from the app by uid {uid} ({whose}); an app with the same uid is treated as the agent. \
         Set AGENT_GID to a group that only the agent runs as to tell them apart for sure"
    );
    Ok((Agent::Uid(uid), Some(warning)))
}

fn id(env: Env<'_>, key: &str) -> Result<Option<u32>, Error> {
    let Some(text) = value(env, key) else {
        return Ok(None);
    };
    match text.parse::<u32>() {
        // The highest number means "none" to the kernel.
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => Err(Error::Config(format!(
            "{key}={text:?}: not a number from 0 to {}; write it like 7439",
            u32::MAX - 1
        ))),
    }
}

/// Value of a variable that is set to something.
fn value(env: Env<'_>, key: &str) -> Option<String> {
    env(key)
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
}

/// Asks the kernel for the interfaces. A sandbox without that socket has none to tell: the
/// environment must do.
pub fn interfaces() -> Interfaces {
    Socket::open(ROUTE)
        .and_then(|socket| read_interfaces(&socket))
        .unwrap_or_default()
}

fn read_interfaces(socket: &Socket) -> Result<Interfaces, rustix::io::Errno> {
    let mut loopbacks = Vec::new();
    for body in socket.dump(GET_LINK, &Attributes::default().fixed(&[0; LINK_FIXED]))? {
        let (Some(index), Some(flags)) = (number_at(&body, 4), number_at(&body, 8)) else {
            continue;
        };
        if flags & FLAG_LOOPBACK != 0 {
            let name = find_text(body.get(LINK_FIXED..).unwrap_or_default(), 3)
                .unwrap_or_default()
                .to_owned();
            loopbacks.push((flags & FLAG_UP == 0, index, name));
        }
    }
    loopbacks.sort();
    let mut global = Vec::new();
    for body in socket.dump(
        GET_ADDRESS,
        &Attributes::default().fixed(&[0; ADDRESS_FIXED]),
    )? {
        let (Some(scope), Some(index)) = (body.get(3), number_at(&body, 4)) else {
            continue;
        };
        let address = address(body.get(ADDRESS_FIXED..).unwrap_or_default());
        if *scope == SCOPE_GLOBAL && loopbacks.iter().all(|(_, it, _)| *it != index) {
            global.extend(address.filter(|it| is_global(*it)));
        }
    }
    Ok(Interfaces {
        loopback: loopbacks.into_iter().next().map(|(_, _, name)| name),
        global,
    })
}

/// Own address of an interface: `IFA_LOCAL` where there is a peer, else `IFA_ADDRESS`.
fn address(attributes: &[u8]) -> Option<IpAddr> {
    let bytes = find(attributes, 2).or_else(|| find(attributes, 1))?;
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Process = Process { uid: 0, gid: 0 };

    fn gathered(
        env: &[(&str, &str)],
        global: &[&str],
        process: Process,
    ) -> Result<(Pod, Option<String>), Error> {
        let env: std::collections::HashMap<_, _> = env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let global = global.iter().map(|it| it.parse().unwrap()).collect();
        gather(
            &|key| env.get(key).cloned(),
            &Interfaces {
                loopback: Some("lo".into()),
                global,
            },
            process,
        )
    }

    fn addresses_of(env: &[(&str, &str)], global: &[&str]) -> Vec<String> {
        gathered(env, global, ROOT)
            .unwrap()
            .0
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn pod_ips_alone_says_which_families_there_are() {
        assert_eq!(
            addresses_of(
                &[("POD_IPS", "10.1.0.2"), ("POD_IP", "10.9.9.9")],
                &["fd00::2"]
            ),
            ["10.1.0.2"]
        );
        assert_eq!(
            addresses_of(&[("POD_IPS", " fd00::2 , 10.1.0.2")], &[]),
            ["10.1.0.2", "fd00::2"]
        );
    }

    #[test]
    fn without_pod_ips_the_interfaces_add_to_pod_ip() {
        assert_eq!(
            addresses_of(&[("POD_IP", "10.1.0.2")], &["10.1.0.2", "fd00::2"]),
            ["10.1.0.2", "fd00::2"]
        );
        assert_eq!(addresses_of(&[], &["fd00::2"]), ["fd00::2"]);
    }

    #[test]
    fn loopback_and_link_local_make_no_family() {
        assert_eq!(
            addresses_of(
                &[("POD_IPS", "10.1.0.2,fe80::1,::1,127.0.0.1,169.254.1.1")],
                &[]
            ),
            ["10.1.0.2"]
        );
        assert_eq!(
            addresses_of(&[("POD_IP", "::ffff:10.1.0.2")], &[]),
            ["10.1.0.2"]
        );
        let message = gathered(&[("POD_IP", "127.0.0.1")], &[], ROOT)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("POD_IP") && message.contains("status.podIP"),
            "{message}"
        );
    }

    #[test]
    fn the_agent_is_its_group_then_its_user_then_ours() {
        let pod = |env: &[(&str, &str)], process| {
            let env: Vec<_> = env
                .iter()
                .copied()
                .chain([("POD_IP", "10.1.0.2")])
                .collect();
            gathered(&env, &[], process)
        };
        let agent = |env, process| {
            pod(env, process)
                .map(|(pod, warning)| (pod.agent, warning.is_some()))
                .unwrap()
        };
        assert_eq!(
            agent(&[("AGENT_GID", "7439"), ("AGENT_UID", "5")], ROOT),
            (Agent::Gid(7439), false)
        );
        assert_eq!(agent(&[("AGENT_UID", "5")], ROOT), (Agent::Uid(5), true));
        assert_eq!(
            agent(&[], Process { uid: 1001, gid: 1 }),
            (Agent::Uid(1001), true)
        );
        for (gid, process) in [("0", ROOT), ("7439", Process { uid: 5, gid: 7439 })] {
            let message = pod(&[("AGENT_GID", gid)], process).unwrap_err().to_string();
            assert!(
                message.contains(&format!("AGENT_GID={gid}")) && message.contains("runAsGroup"),
                "{message}"
            );
        }
    }

    #[test]
    fn bad_values_are_named() {
        for (key, bad) in [
            ("POD_IP", "nowhere"),
            ("POD_IPS", "10.1.0.2,x"),
            ("AGENT_GID", "-1"),
            ("AGENT_UID", "root"),
        ] {
            let env = [("POD_IP", "10.1.0.2"), (key, bad)];
            let message = gathered(&env, &[], ROOT).unwrap_err().to_string();
            assert!(message.contains(key) && message.contains(bad), "{message}");
        }
    }
}
