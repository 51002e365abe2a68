//! Network namespaces that a test makes for itself: a pod's and its caller's, and threads and
//! programs inside them as any user. Needs root; without it the test runs itself again in a user
//! namespace.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::thread::LinkNameSpaceType;

/// Owner of a thread's sockets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct As {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

pub(crate) const ROOT: As = As { uid: 0, gid: 0 };
pub(crate) const APP: As = As {
    uid: 1000,
    gid: 1000,
};

/// Checks that namespaces can be made here. If not, the calling test is run again where they can,
/// and its verdict is this one's: return at once.
pub(crate) fn privileged() -> bool {
    const AGAIN: &str = "AGENT_INIT_TESTS_IN_USER_NAMESPACE";
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os(AGAIN).is_none(),
        "not root even in a user namespace of our own"
    );
    let thread = std::thread::current();
    let test = thread.name().expect("the test harness names its threads");
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--map-auto",
            "--mount",
            "--net",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(AGAIN, "1")
        .status();
    let ok = status.as_ref().is_ok_and(|status| status.success());
    assert!(
        ok,
        "{test} needs root, or user namespaces with sub-ids (uidmap, /etc/subuid): {status:?}"
    );
    false
}

/// A network namespace, alive as long as this value or anything in it.
pub(crate) struct Space(OwnedFd);

impl Space {
    /// A new one, with its loopback up.
    pub(crate) fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo ready && read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare(1) of util-linux");
        let mut ready = [0; 6];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready)
            .expect("a new network namespace with a loopback (needs root and iproute2)");
        let file = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        drop(holder.stdin.take());
        holder.wait().unwrap();
        Self(file.into())
    }

    /// A new one with a pod's addresses of both families, and no cable to anywhere.
    pub(crate) fn of_pod() -> Self {
        let space = Self::new();
        space.sh(&format!(
            "ip link add eth0 type veth peer name cable && ip link set eth0 up && ip link set \
             cable up && ip address add {POD_V4}/24 dev eth0 && ip address add {POD_V6}/64 nodad \
             dev eth0"
        ));
        space.await_local(POD_V6);
        space
    }

    /// Waits until the kernel takes an IPv6 address for the namespace's own, which it does later
    /// than it lists it.
    fn await_local(&self, address: &str) {
        self.sh(&format!(
            "until ip -6 route show table local | grep -q {address}; do sleep 0.01; done"
        ));
    }

    /// Runs `work` on a thread inside, as somebody; threads and programs it starts are inside too.
    pub(crate) fn run<T: Send>(&self, who: As, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    self.0.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )
                .unwrap();
                let (uid, gid) = (
                    rustix::process::Uid::from_raw(who.uid),
                    rustix::process::Gid::from_raw(who.gid),
                );
                if who.uid != 0 || who.gid != 0 {
                    rustix::thread::set_thread_groups(&[]).unwrap();
                    rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                }
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a shell script inside as root; it must succeed. Gives what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run(ROOT, || {
            let done = Command::new("sh").args(["-ec", script]).output().unwrap();
            let error = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{script}\n{}: {error}", done.status);
            String::from_utf8(done.stdout).unwrap()
        })
    }

    /// A path that names it to `ip link set … netns`.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// Families that a pod has addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    Dual,
}

pub(crate) const POD_V4: &str = "10.77.0.2";
pub(crate) const POD_V6: &str = "fd77::2";
pub(crate) const OUTSIDE_V4: &str = "10.77.0.1";
pub(crate) const OUTSIDE_V6: &str = "fd77::1";

impl Families {
    pub(crate) const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Dual];

    fn of<'a>(self, v4: &'a str, v6: &'a str) -> Vec<&'a str> {
        match self {
            Self::V4 => vec![v4],
            Self::V6 => vec![v6],
            Self::Dual => vec![v4, v6],
        }
    }

    /// The pod's addresses.
    pub(crate) fn pod(self) -> Vec<&'static str> {
        self.of(POD_V4, POD_V6)
    }

    /// The caller's addresses.
    pub(crate) fn outside(self) -> Vec<&'static str> {
        self.of(OUTSIDE_V4, OUTSIDE_V6)
    }

    /// The loopback addresses of those families.
    pub(crate) fn localhosts(self) -> Vec<&'static str> {
        self.of("127.0.0.1", "::1")
    }
}

/// The namespaces of a pod and of a caller elsewhere, joined by a cable.
pub(crate) struct Net {
    pub(crate) pod: Space,
    pub(crate) outside: Space,
    pub(crate) families: Families,
}

impl Net {
    pub(crate) fn new(families: Families) -> Self {
        let (pod, outside) = (Space::new(), Space::new());
        pod.sh(&format!(
            "ip link add eth0 type veth peer name cable && ip link set cable netns {} name eth0",
            outside.path()
        ));
        for (space, addresses) in [(&pod, families.pod()), (&outside, families.outside())] {
            let mut script = String::from("ip link set eth0 up\n");
            for address in addresses {
                let length = if address.contains(':') {
                    "64 nodad"
                } else {
                    "24"
                };
                script += &format!("ip address add {address}/{length} dev eth0\n");
            }
            space.sh(&script);
        }
        for (space, addresses) in [(&pod, families.pod()), (&outside, families.outside())] {
            for address in addresses.iter().filter(|it| it.contains(':')) {
                space.await_local(address);
            }
        }
        Self {
            pod,
            outside,
            families,
        }
    }
}

/// Prints all rules in the pod's kernel, without counters. An x_tables `nat` table
/// without rules counts for nothing: the kernel cannot unregister one.
pub(crate) fn all_rules(space: &Space) -> String {
    let nft = space.sh("nft -s list ruleset 2>/dev/null");
    let mut text = nft.replace("# Warning", "#");
    for family in ["", "6"] {
        let saved = space.sh(&format!(
            "if grep -qs nat /proc/net/ip{family}_tables_names; then ip{family}tables-legacy-save \
             -t nat; fi"
        ));
        let rules = without_counters(&saved);
        if rules
            .iter()
            .any(|line| line.starts_with("-A") || line.ends_with(" -"))
        {
            text += &rules.join("\n");
        }
    }
    text
}

/// The lines of an `iptables-save` that say something lasting.
pub(crate) fn without_counters(saved: &str) -> Vec<String> {
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            line.split(" [")
                .next()
                .unwrap_or(line)
                .trim_end()
                .to_owned()
        })
        .collect()
}
