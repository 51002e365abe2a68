//! The cluster's networks as clients are told them: Services, pods, names.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use traffic_proto::manager as pb;

use super::caches::Caches;
use super::env::{CidrStrategy, ClusterSettings};

/// Pods come and go in crowds; clients need not hear of each.
const PODS_DELAY: Duration = Duration::from_millis(500);
/// Nodes are looked at again when there are new ones, and not more often than this: each is large.
const NODES_INTERVAL: Duration = Duration::from_secs(60);

/// Finds the networks and follows them.
pub(crate) struct Networks {
    pub(crate) client: Client,
    pub(crate) caches: Arc<Caches>,
    pub(crate) settings: ClusterSettings,
    pub(crate) info: watch::Sender<pb::ClusterInfo>,
}

/// Waits for a moment; for ever where there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Networks {
    /// Runs until it is dropped.
    pub(crate) async fn run(&self) {
        let mut info = self.fixed().await;
        self.publish(&info);
        let mut pods = self.caches.changes();
        let mut by_nodes = Vec::new();
        // Places of pods that no node had when the nodes were looked at last: of the nodes
        // themselves, or of a network that does not ask Kubernetes for addresses.
        let mut strange = BTreeSet::new();
        let mut looked = Instant::now();
        let mut due = Some(Instant::now());
        loop {
            tokio::select! {
                () = until(due) => {
                    let seen = self.strange(&[]);
                    by_nodes = self.node_networks().await;
                    // Whatever came meanwhile may be of a node that came meanwhile.
                    strange = &seen & &self.strange(&by_nodes);
                    due = None;
                    looked = Instant::now();
                }
                _ = pods.changed() => {
                    sleep(PODS_DELAY).await;
                    pods.mark_unchanged();
                    if due.is_none() && !self.strange(&by_nodes).is_subset(&strange) {
                        due = Some(looked + NODES_INTERVAL);
                    }
                }
            }
            info.pod_subnets = self.pod_networks(&by_nodes);
            self.publish(&info);
        }
    }

    /// Places of pods, no wider than what one node is given, that are in none of the nodes' networks.
    /// A new one may be that of a new node.
    fn strange(&self, by_nodes: &[(IpAddr, u8)]) -> BTreeSet<IpAddr> {
        let mut found = BTreeSet::new();
        if !self.asks_nodes() {
            return found;
        }
        self.caches.pods.each(|pod| {
            let places = pod.ips.iter().filter_map(|ip| outside(by_nodes, *ip));
            found.extend(places);
        });
        found
    }

    /// The nodes are asked for the networks of their pods.
    fn asks_nodes(&self) -> bool {
        let strategies = [CidrStrategy::Auto, CidrStrategy::Nodes];
        self.settings.managed.is_empty() && strategies.contains(&self.settings.pod_cidr_strategy)
    }

    fn publish(&self, info: &pb::ClusterInfo) {
        self.info.send_if_modified(|current| {
            let differs = current != info;
            if differs {
                current.clone_from(info);
            }
            differs
        });
    }

    /// Facts that do not change while the manager runs.
    async fn fixed(&self) -> pb::ClusterInfo {
        let settings = &self.settings;
        let injector = self.injector_service().await;
        let injector_ip = injector.as_ref().and_then(|(ip, _)| *ip);
        let domain = self.domain();
        let own = settings.pod_ip.map(bytes).unwrap_or_default();
        let hints = &settings.client;
        pb::ClusterInfo {
            service_subnet: self.service_network(injector_ip).await,
            manager_pod_ip: own.clone(),
            manager_pod_port: settings.server_port.into(),
            injector_svc_ip: injector_ip.map(bytes).unwrap_or_default(),
            injector_svc_port: injector.as_ref().map_or(0, |(_, port)| *port),
            injector_svc_host: match settings.webhook.service.as_str() {
                "" => String::new(),
                name => format!("{name}.{}", settings.namespace),
            },
            routing: Some(pb::Routing {
                also_proxy_subnets: networks(&hints.also_proxy),
                never_proxy_subnets: networks(&hints.never_proxy),
                allow_conflicting_subnets: networks(&hints.allow_conflicting),
            }),
            dns: Some(pb::Dns {
                include_suffixes: hints.include_suffixes.clone(),
                exclude_suffixes: hints.exclude_suffixes.clone(),
                kube_ip: own.clone(),
                cluster_domain: domain.clone(),
            }),
            kube_dns_ip: own,
            cluster_domain: domain,
            pod_subnets: Vec::new(),
        }
    }

    /// Address and port of the webhook's Service.
    async fn injector_service(&self) -> Option<(Option<IpAddr>, i32)> {
        let name = &self.settings.webhook.service;
        if name.is_empty() {
            return None;
        }
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let service = match api.get(name).await {
            Ok(service) => service,
            Err(error) => {
                tracing::warn!(service = name.as_str(), "cannot be read: {error}");
                return None;
            }
        };
        let spec = service.spec.unwrap_or_default();
        let ip = spec.cluster_ip.and_then(|it| it.parse().ok());
        let ports = spec.ports.unwrap_or_default();
        let https = ports.iter().find(|it| it.name.as_deref() == Some("https"));
        Some((ip, https.or(ports.first()).map_or(0, |it| it.port)))
    }

    /// Asks the API that tells it, else reads the refusal of an impossible Service, else guesses.
    async fn service_network(&self, injector: Option<IpAddr>) -> Option<pb::IpNet> {
        if let Some(network) = self.told_network(injector).await {
            return Some(network);
        }
        let v6 = injector.is_some_and(|it| it.is_ipv6());
        if let Some(network) = self.refused_network(v6).await {
            return Some(network);
        }
        let ip = injector?;
        Some(masked(ip, if ip.is_ipv4() { 16 } else { 64 }))
    }

    async fn told_network(&self, injector: Option<IpAddr>) -> Option<pb::IpNet> {
        let api: Api<ServiceCIDR> = Api::all(self.client.clone());
        let list = api.list(&ListParams::default()).await.ok()?;
        let cidrs = list
            .items
            .into_iter()
            .flat_map(|it| it.spec.and_then(|it| it.cidrs).unwrap_or_default());
        let networks: Vec<_> = cidrs.filter_map(|it| parse(&it)).collect();
        // Of two families the webhook's own.
        let own = |it: &&(IpAddr, u8)| injector.is_none_or(|ip| ip.is_ipv4() == it.0.is_ipv4());
        let found = networks.iter().find(own).or(networks.first());
        found.map(|(ip, prefix)| masked(*ip, *prefix))
    }

    /// Older API servers name the network in the refusal of an address outside it.
    async fn refused_network(&self, v6: bool) -> Option<pb::IpNet> {
        let ip = if v6 { "1:1::1" } else { "1.1.1.1" };
        let trial: Service = serde_json::from_value(json!({
            "metadata": {"name": "t2-tst-dummy"},
            "spec": {"clusterIP": ip, "ports": [{"port": 443}]},
        }))
        .ok()?;
        let parameters = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let api: Api<Service> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let Err(kube::Error::Api(status)) = api.create(&parameters, &trial).await else {
            return None;
        };
        let (_, rest) = status.message.split_once("range of valid IPs is ")?;
        let cidr = rest
            .split(|it: char| it.is_whitespace() || it == ',')
            .next()?;
        parse(cidr).map(|(ip, prefix)| masked(ip, prefix))
    }

    fn pod_networks(&self, by_nodes: &[(IpAddr, u8)]) -> Vec<pb::IpNet> {
        match self.settings.pod_cidr_strategy {
            CidrStrategy::Environment => networks(&self.settings.pod_cidrs),
            CidrStrategy::Auto if by_nodes.is_empty() => self.covering(),
            CidrStrategy::Auto | CidrStrategy::Nodes => {
                by_nodes.iter().map(|it| masked(it.0, it.1)).collect()
            }
            CidrStrategy::Pods => self.covering(),
        }
    }

    /// Networks of the nodes' pods, if the manager's own pod is in one of them.
    async fn node_networks(&self) -> Vec<(IpAddr, u8)> {
        let settings = &self.settings;
        if !self.asks_nodes() {
            if settings.pod_cidr_strategy == CidrStrategy::Nodes {
                tracing::error!("podCIDRStrategy nodePodCIDRs needs a cluster-wide manager");
            }
            return Vec::new();
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let nodes = match api.list(&ListParams::default()).await {
            Ok(nodes) => nodes,
            Err(error) => {
                tracing::warn!("nodes cannot be listed: {error}");
                return Vec::new();
            }
        };
        let mut found = BTreeSet::new();
        for node in nodes {
            let spec = node.spec.unwrap_or_default();
            let cidrs = spec
                .pod_cidrs
                .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
            found.extend(cidrs.iter().filter_map(|it| parse(it)));
        }
        let own = settings.pod_ip;
        let usable = own.is_none_or(|ip| found.iter().any(|it| contains(*it, ip)));
        match usable {
            true => found.into_iter().collect(),
            false => Vec::new(),
        }
    }

    /// Networks that cover the addresses of all known pods.
    fn covering(&self) -> Vec<pb::IpNet> {
        let mut ips = BTreeSet::new();
        self.caches.pods.each(|pod| {
            ips.extend(&pod.ips);
        });
        cover(&ips)
            .into_iter()
            .map(|(ip, prefix)| masked(ip, prefix))
            .collect()
    }

    /// The cluster's domain, with a dot at the end.
    fn domain(&self) -> String {
        let configured = self.settings.cluster_domain.trim_matches('.');
        if !configured.is_empty() {
            return format!("{configured}.");
        }
        let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        // On the node's network the search list is the node's; then the usual domain is the best
        // guess.
        searched_domain(&resolv, &self.settings.namespace)
            .unwrap_or_else(|| "cluster.local.".to_owned())
    }
}

/// The domain that the search list of a pod tells.
fn searched_domain(resolv: &str, namespace: &str) -> Option<String> {
    let mut search = resolv.lines().filter_map(|it| it.strip_prefix("search"));
    let entries: Vec<_> = search.next_back()?.split_whitespace().collect();
    let first = entries
        .first()?
        .strip_prefix(&format!("{namespace}.svc."))?;
    let domain = first.trim_end_matches('.');
    let has = |entry: &str| entries.iter().any(|it| it.trim_end_matches('.') == entry);
    (has(&format!("svc.{domain}")) && has(domain)).then(|| format!("{domain}."))
}

/// The smallest networks for all addresses: a common one for each group whose members share at
/// least two bytes (IPv4) or eight (IPv6).
fn cover(ips: &BTreeSet<IpAddr>) -> Vec<(IpAddr, u8)> {
    let mut groups: Vec<(IpAddr, IpAddr)> = Vec::new();
    for ip in ips {
        let least = if ip.is_ipv4() { 16 } else { 64 };
        let same = |it: &&mut (IpAddr, IpAddr)| {
            it.0.is_ipv4() == ip.is_ipv4() && common_prefix(it.0, *ip) >= least
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.1 = *ip,
            None => groups.push((*ip, *ip)),
        }
    }
    groups
        .into_iter()
        .map(|(first, last)| {
            // Room for the next pods: no smaller than what nodes are usually given.
            let most = if first.is_ipv4() { 24 } else { 120 };
            (first, common_prefix(first, last).min(most))
        })
        .collect()
}

fn common_prefix(one: IpAddr, other: IpAddr) -> u8 {
    let zeros = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u32::from(one) ^ u32::from(other)).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(other)) => {
            (u128::from(one) ^ u128::from(other)).leading_zeros()
        }
        _ => 0,
    };
    u8::try_from(zeros).unwrap_or(0)
}

fn contains((network, prefix): (IpAddr, u8), ip: IpAddr) -> bool {
    network.is_ipv4() == ip.is_ipv4() && common_prefix(network, ip) >= prefix
}

fn parse(cidr: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = cidr.trim().split_once('/')?;
    let (ip, prefix): (IpAddr, u8) = (ip.parse().ok()?, prefix.parse().ok()?);
    (prefix <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, prefix))
}

fn networks(cidrs: &[String]) -> Vec<pb::IpNet> {
    let found = cidrs.iter().filter_map(|it| parse(it));
    found.map(|(ip, prefix)| masked(ip, prefix)).collect()
}

/// The place of an address that is in none of the networks: the part of it that the pods of one node
/// share, however few addresses the node is given.
fn outside(networks: &[(IpAddr, u8)], ip: IpAddr) -> Option<IpAddr> {
    let is_inside = networks.iter().any(|it| contains(*it, ip));
    (!is_inside).then(|| first(ip, if ip.is_ipv4() { 28 } else { 80 }))
}

/// The first address of a network.
fn first(ip: IpAddr, prefix: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(ip) & mask))
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(ip) & mask))
        }
    }
}

fn masked(ip: IpAddr, prefix: u8) -> pb::IpNet {
    pb::IpNet {
        ip: bytes(first(ip, prefix)),
        mask: prefix.into(),
    }
}

fn bytes(ip: IpAddr) -> Bytes {
    crate::snapshots::ip_bytes(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_search_list_tells_the_domain() {
        let told = |text: &str| searched_domain(text, "ambassador");
        assert_eq!(
            told("nameserver 10.96.0.10\nsearch ambassador.svc.corp.lan svc.corp.lan corp.lan x\n"),
            Some("corp.lan.".to_owned())
        );
        assert_eq!(told("search ambassador.svc.corp.lan svc.corp.lan\n"), None);
        assert_eq!(
            told("search other.svc.corp.lan svc.corp.lan corp.lan\n"),
            None
        );
        assert_eq!(told("nameserver 8.8.8.8\n"), None);
    }

    #[test]
    fn networks_cover_all_pods_and_leave_room() {
        let covered = |list: &[&str]| {
            let ips = list.iter().map(|it| it.parse().unwrap()).collect();
            let found = cover(&ips).into_iter();
            found
                .map(|(ip, prefix)| format!("{ip}/{prefix}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(covered(&["10.244.0.5"]), ["10.244.0.5/24"]);
        assert_eq!(covered(&["10.244.0.5", "10.244.1.5"]), ["10.244.0.5/23"]);
        assert_eq!(
            covered(&["10.244.0.5", "192.168.1.1", "fd00::5", "fd00::6"]),
            ["10.244.0.5/24", "192.168.1.1/24", "fd00::5/120"]
        );
    }

    #[test]
    fn addresses_that_no_node_has_are_known_by_their_places() {
        let nodes = [parse("10.244.0.0/24").unwrap(), parse("fd00::/64").unwrap()];
        let place = |ip: &str| outside(&nodes, ip.parse().unwrap()).map(|it| it.to_string());
        assert_eq!((place("10.244.0.200"), place("fd00::7")), (None, None));
        assert_eq!(place("10.64.0.1").as_deref(), Some("10.64.0.0"));
        assert_eq!(place("10.64.0.15").as_deref(), Some("10.64.0.0"));
        assert_eq!(place("10.64.0.16").as_deref(), Some("10.64.0.16"));
        assert_eq!(
            place("fd00:1:2:3:4:5:6:7").as_deref(),
            Some("fd00:1:2:3:4::")
        );
    }

    #[test]
    fn networks_are_sent_masked() {
        let net = masked("10.96.7.1".parse().unwrap(), 16);
        assert_eq!((net.ip.to_vec(), net.mask), (vec![10, 96, 0, 0], 16));
        assert_eq!(
            masked("10.96.7.1".parse().unwrap(), 0).ip.to_vec(),
            [0, 0, 0, 0]
        );
        assert_eq!(networks(&["10.0.0.0/33".to_owned(), "x".to_owned()]), []);
    }
}
