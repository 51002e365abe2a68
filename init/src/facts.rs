//! Facts of the pod: its loopback interface, its addresses, and the mark of its agent. The kernel
//! and the environment are asked once; `plan` takes it from there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use crate::env::{Env, value};
use crate::error::Error;
use crate::netlink::{Attributes, Socket, find, find_text};
use crate::plan::Pod;
use crate::rule::{Family, Owner};

/// Subsystem of interfaces and routes: number 0, which rustix writes as none.
const ROUTE: Option<rustix::net::Protocol> = None;
const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const LINK_FIXED: usize = 16;
const ADDRESS_FIXED: usize = 8;
const FLAG_UP: u32 = 0x1;
const FLAG_LOOPBACK: u32 = 0x8;
const SCOPE_GLOBAL: u8 = 0;

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

/// Group that the injector gives the agent and nobody else.
pub const AGENT_GROUP: u32 = 7439;

/// Place that the program works from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A container of the pod, whose user and group tell something of the agent's.
    Pod(Process),
    /// The node: the agent has its usual group unless the environment says otherwise.
    Node,
}

/// Gathers the pod's facts, and a warning about what they do not tell, if any. `families` are those
/// to redirect, when they are chosen.
///
/// Errors: a malformed address or id, a group that the app may have too, no address at all, or
/// addresses that could not be read.
pub fn gather(
    env: Env<'_>,
    interfaces: Result<Interfaces, Errno>,
    place: Place,
    families: Option<&[Family]>,
) -> Result<(Pod, Option<String>), Error> {
    let (agent, warning) = agent(env, place)?;
    let named = named_addresses(env)?;
    let complete = named.all || families.is_some();
    let interfaces = match interfaces {
        Ok(interfaces) => interfaces,
        // A sandbox without that socket: the environment must do.
        Err(_) if complete => Interfaces::default(),
        Err(errno) => {
            return Err(Error::Unanswered(format!(
                "the addresses of the pod's interfaces could not be read ({errno}), so that a \
                 family beside those of POD_IP ({}) would not be redirected. Set POD_IPS from the \
                 field status.podIPs, or say which families to redirect with --families",
                texts(&named.addresses)
            )));
        }
    };
    let mut addresses = addresses(named, &interfaces);
    if let Some(families) = families {
        addresses.retain(|it| families.contains(&Family::of(*it)));
        let lacks = |family: &&Family| addresses.iter().all(|it| Family::of(*it) != **family);
        if let Some(family) = families.iter().find(lacks) {
            return Err(Error::Config(format!(
                "--families names {family}, and the pod has no address of it: set POD_IPS from the \
                 field status.podIPs, or leave the family out"
            )));
        }
    }
    if addresses.is_empty() {
        return Err(Error::Config(
            "the pod has no address: neither POD_IPS nor POD_IP names one and no interface has a \
             global one. Set POD_IP from the field status.podIP"
                .to_owned(),
        ));
    }
    let loopback = interfaces.loopback.unwrap_or_else(|| "lo".to_owned());
    let pod = Pod {
        addresses,
        loopback,
        agent,
    };
    Ok((pod, warning))
}

fn texts(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    if texts.is_empty() {
        "not set".to_owned()
    } else {
        texts.join(",")
    }
}

/// Addresses that the environment names.
struct Named {
    addresses: Vec<IpAddr>,
    /// True when there are no others.
    all: bool,
}

/// Reads `POD_IPS` when set, else `POD_IP`.
fn named_addresses(env: Env<'_>) -> Result<Named, Error> {
    let list = value(env, "POD_IPS")?;
    let all = list.is_some();
    let (key, text) = match list {
        Some(list) => ("POD_IPS", list),
        None => ("POD_IP", value(env, "POD_IP")?.unwrap_or_default()),
    };
    let mut addresses = Vec::new();
    for word in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let address: IpAddr = word.parse().map_err(|_| {
            Error::Config(format!(
                "{key}={text:?}: {word:?} is no IP address; write them like 10.1.0.2,fd00::2"
            ))
        })?;
        addresses.push(address.to_canonical());
    }
    Ok(Named { addresses, all })
}

/// Lists the pod's addresses: those of `POD_IPS`, else `POD_IP` and every global address of the
/// interfaces; each once, and none that is loopback or link-local: no caller can use those from
/// elsewhere.
fn addresses(named: Named, interfaces: &Interfaces) -> Vec<IpAddr> {
    let mut all = named.addresses;
    if !named.all {
        all.extend(&interfaces.global);
    }
    let mut addresses = Vec::new();
    for address in all.into_iter().filter(|address| is_global(*address)) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.sort_by_key(|address| Family::of(*address));
    addresses
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
fn agent(env: Env<'_>, place: Place) -> Result<(Owner, Option<String>), Error> {
    if let Some(gid) = id(env, "AGENT_GID")? {
        // The group must be the agent's alone. What this container has without being given it, the
        // pod gives to all; but the usual group is also that of the image.
        let whose = if gid == 0 {
            "is root's group, which containers have by default"
        } else if gid != AGENT_GROUP && matches!(place, Place::Pod(process) if process.gid == gid) {
            "is the group this init container runs as, so the pod gives it to every container"
        } else {
            return Ok((Owner::Gid(gid), None));
        };
        return Err(Error::Config(format!(
            "AGENT_GID={gid}: {whose}; a rule for it could match the app and take it out of the \
             mesh and past the agent. Give the agent container a runAsGroup of its own and pass \
             that"
        )));
    }
    let (uid, whose) = match (id(env, "AGENT_UID")?, place) {
        (Some(uid), _) => (uid, "AGENT_UID"),
        (None, Place::Pod(process)) => (process.uid, "the uid of this init container"),
        (None, Place::Node) => return Ok((Owner::Gid(AGENT_GROUP), None)),
    };
    let warning = format!(
        "the agent is told from the app by uid {uid} ({whose}); an app with the same uid is \
         treated as the agent. Set AGENT_GID to a group that only the agent runs as to tell them \
         apart for sure"
    );
    Ok((Owner::Uid(uid), Some(warning)))
}

fn id(env: Env<'_>, key: &str) -> Result<Option<u32>, Error> {
    let Some(text) = value(env, key)? else {
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

/// Asks the kernel for the interfaces.
pub fn interfaces() -> Result<Interfaces, Errno> {
    let socket = Socket::open(ROUTE)?;
    read_interfaces(&socket)
}

fn read_interfaces(socket: &Socket) -> Result<Interfaces, Errno> {
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
        let interfaces = Interfaces {
            loopback: Some("lo".into()),
            global,
        };
        let env = |key: &str| env.get(key).map(Into::into);
        gather(&env, Ok(interfaces), Place::Pod(process), None)
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
            (Owner::Gid(7439), false)
        );
        assert_eq!(agent(&[("AGENT_UID", "5")], ROOT), (Owner::Uid(5), true));
        assert_eq!(
            agent(&[], Process { uid: 1001, gid: 1 }),
            (Owner::Uid(1001), true)
        );
        let of_image = Process {
            uid: 7439,
            gid: 7439,
        };
        let group = (Owner::Gid(7439), false);
        assert_eq!(agent(&[("AGENT_GID", "7439")], of_image), group);
        for (gid, process) in [("0", ROOT), ("4242", Process { uid: 5, gid: 4242 })] {
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

    #[test]
    fn addresses_that_could_not_be_read_are_an_error_unless_families_are_chosen() {
        let env = |key: &str| (key == "POD_IP").then(|| "10.1.0.2".into());
        let gathered = |families: Option<&[Family]>| {
            gather(&env, Err(Errno::PERM), Place::Pod(ROOT), families)
        };
        let error = gathered(None).unwrap_err();
        for words in ["10.1.0.2", "POD_IPS", "--families"] {
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        assert_eq!(error.exit_code(), 74);
        let (pod, _) = gathered(Some(&[Family::V4])).unwrap();
        assert_eq!(pod.addresses.len(), 1);
        let error = gathered(Some(&Family::ALL)).unwrap_err();
        assert!(error.to_string().contains("IPv6"), "{error}");
        assert_eq!(error.exit_code(), 64);
    }

    #[test]
    fn on_the_node_the_agent_has_its_usual_group() {
        let env = |key: &str| (key == "POD_IP").then(|| "10.1.0.2".into());
        let (pod, warning) = gather(&env, Ok(Interfaces::default()), Place::Node, None).unwrap();
        assert_eq!((pod.agent, warning), (Owner::Gid(7439), None));
    }
}
