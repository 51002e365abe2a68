//! Connections in the pod that show whether the rules lead where they should.
//!
//! The kernel's connection tracking tells where a connection was led, so that nobody has to listen
//! there: it works before the agent runs and beside it. Callers from elsewhere cannot be played
//! from inside; the way of neighbours uses the same kind of rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::conntrack::{self, Follower};
use crate::plan::{Options, Pod, PortPlan};
use crate::rule::{Family, Owner, Transport};

/// Limit of ports that are tried: what holds for these holds for all.
const MAX_PORTS: usize = 200;

/// Result of the probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// All connections went where they should; their number.
    Passed(usize),
    /// A line for each that did not.
    Failed(Vec<String>),
    /// No connection could be made or followed, for this reason.
    Impossible(String),
}

/// A connection to make, and the address it has to be led to.
struct Expected {
    to: SocketAddr,
    led_to: SocketAddr,
}

/// Connects to every redirected TCP port, and to the agent's proxy ports. Datagrams are not sent:
/// an app that got one could take it for a request.
pub fn probe(ports: &[PortPlan], pod: &Pod, options: &Options) -> Probe {
    if options.excluded_owners.iter().any(|owner| is_ours(*owner)) {
        let text = "the user or group of this process is excluded from the redirect";
        return Probe::Impossible(text.to_owned());
    }
    let follower = match Follower::new() {
        Ok(follower) => follower,
        Err(errno) => return impossible(errno),
    };
    let expected = expected(ports, pod, options);
    let mut lines = Vec::new();
    for connection in &expected {
        match led_to(&follower, connection.to) {
            Ok(led_to) if led_to == connection.led_to => {}
            Ok(led_to) => lines.push(format!(
                "a connection to {} was led to {led_to}, not to {}",
                connection.to, connection.led_to
            )),
            // Filtered on its way out.
            Err(Attempt::Connect(errno)) => {
                lines.push(format!("a connection to {} failed: {errno}", connection.to));
            }
            Err(Attempt::Track(Errno::NOENT)) if conntrack::is_silent() => {
                let text = "the kernel tells of no new connection: \
                            net.netfilter.nf_conntrack_events is 0";
                return Probe::Impossible(text.to_owned());
            }
            Err(Attempt::Track(Errno::NOENT)) => lines.push(format!(
                "a connection to {} is not tracked by the kernel, so that no redirect can hold for \
                 it",
                connection.to
            )),
            Err(Attempt::Track(errno)) => return impossible(errno),
        }
    }
    if lines.is_empty() {
        Probe::Passed(expected.len())
    } else {
        Probe::Failed(lines)
    }
}

fn impossible(errno: Errno) -> Probe {
    Probe::Impossible(format!(
        "the kernel's connection tracking cannot be asked ({errno}): it may lack \
         CONFIG_NF_CT_NETLINK (module nf_conntrack_netlink)"
    ))
}

fn expected(ports: &[PortPlan], pod: &Pod, options: &Options) -> Vec<Expected> {
    let mut list = Vec::new();
    let is_probed = |port: &&PortPlan| port.numeric && port.transport == Transport::Tcp;
    for port in ports.iter().filter(is_probed).take(MAX_PORTS) {
        for address in &pod.addresses {
            let at = |port| SocketAddr::new(*address, port);
            list.push(Expected {
                to: at(port.proxy_port),
                led_to: at(port.container_port),
            });
            if !options.excludes(port) {
                list.push(Expected {
                    to: at(port.container_port),
                    led_to: at(port.agent_port),
                });
            }
        }
        // To the agent, loopback is the direct way.
        if !options.excludes(port) && !is_ours(pod.agent) {
            list.extend(families(pod).map(|family| Expected {
                to: SocketAddr::new(localhost(family), port.container_port),
                led_to: SocketAddr::new(localhost(family), port.agent_port),
            }));
        }
    }
    list
}

fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn families(pod: &Pod) -> impl Iterator<Item = Family> {
    let has = |family: &Family| pod.addresses.iter().any(|it| Family::of(*it) == *family);
    Family::ALL.into_iter().filter(has)
}

/// True when this process has that owner.
fn is_ours(owner: Owner) -> bool {
    match owner {
        Owner::Uid(id) => rustix::process::geteuid().as_raw() == id,
        Owner::Gid(id) => rustix::process::getegid().as_raw() == id,
    }
}

/// Step at which a probe failed.
enum Attempt {
    Connect(Errno),
    Track(Errno),
}

/// Begins a connection and asks the kernel where it leads. It does not matter if anybody listens
/// there.
fn led_to(follower: &Follower, to: SocketAddr) -> Result<SocketAddr, Attempt> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(Attempt::Connect)?;
    // To itself, a pod sends from the address it sends to.
    rustix::net::bind(&socket, &SocketAddr::new(to.ip(), 0)).map_err(Attempt::Connect)?;
    let from = rustix::net::getsockname(&socket).map_err(Attempt::Connect)?;
    let from = SocketAddr::try_from(from).map_err(|_| Attempt::Connect(Errno::AFNOSUPPORT))?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::CONNREFUSED) => {}
        Err(errno) => return Err(Attempt::Connect(errno)),
    }
    follower
        .led_to(Transport::Tcp, from, to)
        .map_err(Attempt::Track)
}
