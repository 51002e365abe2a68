//! Exceptions from the redirect that flags, the environment and the configuration name.

use std::str::FromStr;

use crate::args::List;
use crate::cidr::Cidr;
use crate::env::{Env, value};
use crate::error::Error;
use crate::plan::{Options, PortRange};
use crate::rule::{Owner, Transport};

/// Reads all lists: what a flag gives wins over the environment, and that over the configuration,
/// which names the mesh's subnets only.
///
/// Errors: every entry that cannot be read, one on each line.
pub fn read(
    lists: &[(List, String)],
    env: Env<'_>,
    configured_subnets: &[String],
) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut faults = Vec::new();
    for (list, flag, variable) in List::ALL {
        let given: Vec<&String> = lists
            .iter()
            .filter(|(it, _)| *it == list)
            .map(|(_, text)| text)
            .collect();
        let of_environment = value(env, variable)?;
        let (key, text) = if !given.is_empty() {
            let texts: Vec<_> = given.iter().map(|text| text.as_str()).collect();
            (flag, texts.join(","))
        } else if let Some(text) = of_environment {
            (variable, text)
        } else if list == List::MeshSubnets {
            ("meshDialSubnets", configured_subnets.join(","))
        } else {
            continue;
        };
        for entry in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            if let Err(problem) = add(&mut options, list, entry) {
                faults.push(format!("{key}: {entry:?} {problem}"));
            }
        }
    }
    if faults.is_empty() {
        Ok(options)
    } else {
        Err(Error::Config(faults.join("\n")))
    }
}

fn add(options: &mut Options, list: List, entry: &str) -> Result<(), String> {
    match list {
        List::Ports => options.excluded_ports.push(entry.parse()?),
        List::Sources => options.excluded_sources.push(subnet(entry)?),
        List::Uids => options.excluded_owners.push(Owner::Uid(id(entry)?)),
        List::Gids => options.excluded_owners.push(Owner::Gid(id(entry)?)),
        List::MeshSubnets => options.mesh_subnets.push(subnet(entry)?),
    }
    Ok(())
}

fn subnet(entry: &str) -> Result<Cidr, String> {
    entry
        .parse()
        .map_err(|it: crate::cidr::NoSubnet| it.to_string())
}

fn id(entry: &str) -> Result<u32, String> {
    // The highest number means "none" to the kernel.
    let id = entry.parse().ok().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| {
        format!(
            "is no number from 0 to {}; write it like 1337",
            u32::MAX - 1
        )
    })
}

impl FromStr for PortRange {
    type Err = String;

    /// Reads `port` or `first-last`, with `/tcp` or `/udp` behind it for one transport.
    fn from_str(text: &str) -> Result<Self, String> {
        let problem =
            || "is no port or range of ports; write it like 8080, 9000-9010 or 53/udp".to_owned();
        let (ports, transport) = match text.rsplit_once('/') {
            None => (text, None),
            Some((ports, word)) if word.eq_ignore_ascii_case("tcp") => {
                (ports, Some(Transport::Tcp))
            }
            Some((ports, word)) if word.eq_ignore_ascii_case("udp") => {
                (ports, Some(Transport::Udp))
            }
            Some(_) => return Err(problem()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        let range = port(first).zip(port(last));
        match range {
            Some((first, last)) if first <= last => Ok(Self {
                first,
                last,
                transport,
            }),
            _ => Err(problem()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_environment_and_all_lists_are_read() {
        let env = |key: &str| {
            Some(match key {
                "AGENT_EXCLUDE_INBOUND_PORTS" => "8081, 9000-9010,53/udp".into(),
                "AGENT_EXCLUDE_UIDS" => "1".into(),
                "AGENT_MESH_DIAL_SUBNETS" => "10.1.0.0/16,fd00::/8".into(),
                _ => return None,
            })
        };
        let lists = [
            (List::Uids, "2".to_owned()),
            (List::Uids, "3".to_owned()),
            (List::Gids, "4".to_owned()),
        ];
        let options = read(&lists, &env, &["10.9.0.0/16".to_owned()]).unwrap();
        let owners = [Owner::Uid(2), Owner::Uid(3), Owner::Gid(4)];
        assert_eq!(options.excluded_owners, owners);
        assert_eq!(options.mesh_subnets.len(), 2);
        let ports: Vec<_> = options
            .excluded_ports
            .iter()
            .map(|it| (it.first, it.last, it.transport))
            .collect();
        let udp = Some(Transport::Udp);
        assert_eq!(
            ports,
            [(8081, 8081, None), (9000, 9010, None), (53, 53, udp)]
        );
    }

    #[test]
    fn every_bad_entry_is_named_with_its_key() {
        let env = |key: &str| {
            Some(match key {
                "AGENT_EXCLUDE_INBOUND_PORTS" => "0,9-8,x,1/sctp".into(),
                "AGENT_EXCLUDE_GIDS" => "-1".into(),
                _ => return None,
            })
        };
        let lists = [(List::Sources, "10.0.0.0/64".to_owned())];
        let configured = ["10.9.0.0/99".to_owned()];
        let message = read(&lists, &env, &configured).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 7, "{message}");
        for words in [
            "AGENT_EXCLUDE_INBOUND_PORTS: \"9-8\"",
            "AGENT_EXCLUDE_GIDS: \"-1\"",
            "meshDialSubnets: \"10.9.0.0/99\"",
            "--exclude-inbound-cidrs: \"10.0.0.0/64\"",
        ] {
            assert!(message.contains(words), "{words}: {message}");
        }
    }
}
