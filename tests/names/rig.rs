//! A pod with an agent, a cluster with a manager, a workstation's session and a DNS server, in
//! network namespaces of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::pod::{Pod, Space};
use harness::process::Process;
use harness::programs;
use harness::wait::until;
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};
use traffic_proto::agent::agent_client::AgentClient;
use traffic_proto::manager::manager_client::ManagerClient;
use traffic_proto::manager::{
    ClientInfo, DnsRequest, DnsResponse, LookupRequest, LookupResponse, SessionInfo,
};

/// All that exists but for the other zone.
const ROOT_ZONE: &str = include_str!("root.zone");
/// A zone of its own, beside the cluster's.
const CORP_ZONE: &str = include_str!("corp.zone");
/// A pod's usual `resolv.conf`, but for its name servers.
pub(crate) const SEARCH: &str =
    "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
/// Address at which nobody answers: its frames go to a device that is not there.
pub(crate) const NOBODY: &str = "10.88.0.77";
/// The same, IPv6.
pub(crate) const NOBODY6: &str = "fd88::77";
/// Name servers, the second of which fails for every name.
const SERVERS: [(&str, &str); 2] = [("10.88.0.1", "fd88::1"), ("10.88.0.3", "fd88::3")];
/// Addresses of a name that has many.
pub(crate) const MANY: u8 = 100;
/// Settings of the name servers.
const UNBOUND: &str = "\
  chroot: \"\"
  username: \"\"
  pidfile: \"\"
  do-daemonize: no
  use-syslog: no
  logfile: \"\"
  log-queries: yes
  verbosity: 1
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  module-config: iterator
  rrset-roundrobin: no
  unblock-lan-zones: yes
  local-zone: silent.example. deny
";
const MANAGER: &str = "10.88.0.1:8081";
const API: &str = "127.0.0.1:18000";
const CONFIG: &str = "\
agentName: web
namespace: shop
workloadName: web
workloadKind: Deployment
managerHost: 10.88.0.1
managerPort: 8081
containers:
- {name: app, envPrefix: A_, mountPoint: /tel_app_mounts/app, intercepts: [
    {containerPortName: http, protocol: TCP, containerPort: 8080, agentPort: 9900}]}
";

/// All of it; ends with its value.
pub(crate) struct Rig {
    pub(crate) pod: Pod,
    pub(crate) server: Process,
    root: TempDir,
    processes: Vec<Process>,
}

impl Rig {
    /// Starts all of it; `resolv_conf` is the pod's, and the manager's is without a search list.
    pub(crate) fn start(resolv_conf: &str) -> Self {
        let mut rig = Self::without_agent();
        let mut agent = rig.behind("pod", resolv_conf, "traffic-agent");
        let config = rig.file("config.yaml", CONFIG);
        let root = rig.root.path().join("pod");
        agent
            .args(["agent", "--config"])
            .arg(config)
            .arg("--root")
            .arg(&root);
        agent
            .env("LOG_LEVEL", "debug")
            .env("_TEL_AGENT_POD_IP", Pod::IP)
            .env("_TEL_AGENT_NAME", "web-1")
            .env("_TEL_AGENT_POD_UID", "uid-1");
        let agent = rig
            .pod
            .inside
            .run(|| Process::start("traffic-agent", &mut agent));
        until("the agent to arrive", || {
            assert!(agent.is_running(), "the agent has ended");
            root.join("tmp/agent/ready").exists().then_some(())
        });
        rig.processes.push(agent);
        rig
    }

    /// Starts what is outside the pod.
    pub(crate) fn without_agent() -> Self {
        let (pod, root) = (Pod::new(), tempfile::tempdir().unwrap());
        for space in [&pod.inside, &pod.outside] {
            space.sh(&format!(
                "for it in {NOBODY} {NOBODY6}; do
                   ip neighbour add $it lladdr 02:00:00:00:00:77 dev eth0 nud permanent
                 done"
            ));
        }
        pod.outside
            .sh("ip address add 10.88.0.3/24 dev eth0; ip address add fd88::3/64 nodad dev eth0");
        let server = name_server(
            &pod.outside,
            root.path(),
            0,
            &[
                (".", "root.zone"),
                ("corp.example", "corp.zone"),
                ("broken.example", ""),
            ],
        );
        let failing = name_server(&pod.outside, root.path(), 1, &[(".", "")]);
        let mut rig = Self {
            pod,
            server,
            root,
            processes: vec![failing],
        };
        let mut manager = rig.behind("manager", "nameserver 10.88.0.1\n", "traffic-manager");
        manager.args(["--listen", MANAGER]);
        let manager = rig
            .pod
            .outside
            .run(|| Process::start("traffic-manager", &mut manager));
        manager.line("listening=");
        rig.processes.push(manager);
        rig
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A program in a mount namespace, with its own `resolv.conf` and `hosts`, and a root folder.
    fn behind(&self, name: &str, resolv_conf: &str, program: &str) -> Command {
        let folder = self.root.path().join(name);
        fs::create_dir_all(folder.join("tmp")).unwrap();
        let resolv_conf = self.file(&format!("{name}/resolv.conf"), resolv_conf);
        let hosts =
            "127.0.0.1 localhost\n::1 localhost\n10.88.0.2 web-1\n10.9.9.9 alias.of.the.pod\n";
        let hosts = self.file(&format!("{name}/hosts"), hosts);
        let mut command = Command::new("unshare");
        let script = "mount --bind \"$1\" /etc/resolv.conf; mount --bind \"$2\" /etc/hosts; \
                      shift 2; exec \"$@\"";
        command.args(["--mount", "sh", "-ec", script, "sh"]);
        command
            .arg(resolv_conf)
            .arg(hosts)
            .arg(programs::path(program));
        command
    }

    /// Opens a workstation's session and does what `work` says in the cluster's namespace.
    pub(crate) fn workstation<T: Send>(
        &self,
        work: impl AsyncFnOnce(Workstation) -> T + Send,
    ) -> T {
        self.pod.outside.run(|| {
            run(async {
                let mut manager = ManagerClient::connect(format!("http://{MANAGER}"))
                    .await
                    .unwrap();
                let client = ClientInfo {
                    name: "dev@box".into(),
                    install_id: "dev".into(),
                    product: "telepresence".into(),
                    version: "v2.20.2".into(),
                    namespace: "shop".into(),
                    ..ClientInfo::default()
                };
                let session = manager.arrive_as_client(client).await.unwrap().into_inner();
                work(Workstation { manager, session }).await
            })
        })
    }

    /// Does what `work` says at the agent's own port, through a port-forward's end on loopback.
    pub(crate) fn directly<T: Send>(
        &self,
        work: impl AsyncFnOnce(AgentClient<Channel>) -> T + Send,
    ) -> T {
        let connect = || AgentClient::connect(format!("http://{API}"));
        self.pod
            .inside
            .run(|| run(async { work(connect().await.unwrap()).await }))
    }

    /// Asks the agent itself for addresses.
    pub(crate) fn asked_directly(&self, name: &str) -> Result<LookupResponse, Status> {
        self.directly(async |mut agent| {
            let found = agent.lookup(LookupRequest {
                name: name.into(),
                ..Default::default()
            });
            found.await.map(tonic::Response::into_inner)
        })
    }

    /// How often the server was asked this, such as `web.cluster.local. A`.
    pub(crate) fn asked(&self, question: &str) -> usize {
        self.server.lines(&format!(" {question} IN")).len()
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(work)
}

/// Starts unbound on the addresses of `SERVERS`; a zone without a file fails.
fn name_server(space: &Space, root: &Path, number: usize, zones: &[(&str, &str)]) -> Process {
    let (v4, v6) = SERVERS[number];
    let folder = root.join(format!("server-{number}"));
    fs::create_dir_all(&folder).unwrap();
    write_zones(&folder);
    let zones = zones.iter().map(|(name, file)| {
        let source = match *file {
            "" => "primary: 10.88.0.1@9".to_owned(),
            file => format!("zonefile: {file:?}"),
        };
        format!("auth-zone:\n  name: {name:?}\n  {source}\n  fallback-enabled: no\n")
    });
    let config = format!(
        "server:\n  directory: {folder:?}\n{UNBOUND}  interface: {v4}\n  interface: {v6}\n\
         remote-control:\n  control-enable: no\n{}",
        zones.collect::<String>()
    );
    let file = folder.join("unbound.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new("unbound");
    command.args(["-d", "-c"]).arg(&file);
    let server = space.run(|| Process::start("unbound", &mut command));
    server.line("start of service");
    server
}

/// Writes the zones, with answers that are too large for a datagram.
fn write_zones(folder: &Path) {
    let many = (1..=MANY).map(|n| format!("many.shop.svc.cluster.local. A 10.3.0.{n}\n"));
    let root = ROOT_ZONE.to_owned() + &many.collect::<String>();
    fs::write(folder.join("root.zone"), root).unwrap();
    let strings: Vec<_> = big_text().map(|text| format!("{text:?}")).collect();
    let corp = format!("{CORP_ZONE}big TXT {}\n", strings.join(" "));
    fs::write(folder.join("corp.zone"), corp).unwrap();
}

/// The strings of a text of 4000 bytes.
pub(crate) fn big_text() -> impl Iterator<Item = String> {
    (0..20).map(|n| format!("{n:0200}"))
}

/// A workstation's session with the manager.
#[derive(Clone)]
pub(crate) struct Workstation {
    pub(crate) manager: ManagerClient<Channel>,
    pub(crate) session: SessionInfo,
}

impl Workstation {
    /// Asks for records as the stock client does.
    pub(crate) async fn ask(&self, name: &str, kind: &str) -> DnsResponse {
        let request = DnsRequest {
            session: Some(self.session.clone()),
            name: name.into(),
            r#type: u16::from(kind.parse::<RecordType>().unwrap()).into(),
        };
        self.manager
            .clone()
            .lookup_dns(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// The same as text: the code where it is not 0, else the records' data in order.
    pub(crate) async fn text(&self, name: &str, kind: &str) -> String {
        text(name, kind, &self.ask(name, kind).await)
    }

    /// Asks the manager for addresses, as newer clients do.
    pub(crate) async fn addresses(&self, name: &str) -> Result<LookupResponse, Status> {
        let request = LookupRequest {
            session: Some(self.session.clone()),
            name: name.into(),
        };
        self.manager
            .clone()
            .lookup(request)
            .await
            .map(tonic::Response::into_inner)
    }
}

/// Shows an answer, whose records must be as every answer's.
fn text(name: &str, kind: &str, answer: &DnsResponse) -> String {
    match answer.r_code {
        0 => {}
        2 => return "SERVFAIL".into(),
        3 => return "NXDOMAIN".into(),
        4 => return "NOTIMP".into(),
        other => return format!("code {other}"),
    }
    let mut decoder = BinDecoder::new(&answer.rrs);
    let mut data = BTreeSet::new();
    while !decoder.is_empty() {
        let record = Record::read(&mut decoder).unwrap();
        assert_eq!(record.name.to_string(), name, "the name asked for");
        assert_eq!(
            (record.ttl, record.dns_class),
            (4, DNSClass::IN),
            "{name} {kind}"
        );
        assert_eq!(record.record_type().to_string(), kind, "{name}");
        data.insert(record.data.to_string());
    }
    Vec::from_iter(data).join(", ")
}

/// Addresses of a lookup as text, or the code of its status.
pub(crate) fn ips(found: Result<LookupResponse, Status>) -> Result<Vec<String>, Code> {
    let found = found.map_err(|status| status.code())?;
    let ips = found.ips.iter().map(|ip| match ip.len() {
        4 => std::net::IpAddr::from(<[u8; 4]>::try_from(&ip[..]).unwrap()),
        _ => std::net::IpAddr::from(<[u8; 16]>::try_from(&ip[..]).unwrap()),
    });
    let mut ips: Vec<_> = ips.map(|ip| ip.to_string()).collect();
    ips.sort();
    Ok(ips)
}
