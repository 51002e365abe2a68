//! A pod: a network namespace, and one for its callers, joined by a veth pair. Needs root.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::process::{Gid, Uid};
use rustix::thread::LinkNameSpaceType;

/// A network namespace; lives as long as this value or a process in it.
#[derive(Debug)]
pub struct Space(OwnedFd);

impl Space {
    /// Creates one with its loopback up.
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && echo up && read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux");
        let mut up = [0; 3];
        let said = std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up);
        said.expect("a network namespace: needs root and iproute2");
        let file = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        drop(holder.stdin.take());
        holder.wait().unwrap();
        Self(file.into())
    }

    /// Runs `work` on a thread inside. Its sockets, threads and processes belong to the namespace,
    /// even after it is dropped.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(self.0.as_fd(), network).unwrap();
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` as a user: `uid` and `gid` own the sockets and processes it makes.
    pub fn run_as<T: Send>(&self, uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
        self.run(|| {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        })
    }

    /// Runs a shell script inside, which must succeed, and returns its output.
    pub fn sh(&self, script: &str) -> String {
        self.run(|| {
            let done = Command::new("sh").args(["-ec", script]).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{script}\n{}: {said}", done.status);
            String::from_utf8(done.stdout).unwrap()
        })
    }

    /// Returns a path that names it for `ip link set … netns`.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

/// A pod and the world outside it, with IPv4 and IPv6.
#[derive(Debug)]
pub struct Pod {
    /// The pod's namespace.
    pub inside: Space,
    /// Namespace of its callers: the rest of the cluster.
    pub outside: Space,
}

impl Pod {
    /// IPv4 address of the pod.
    pub const IP: &'static str = "10.88.0.2";
    /// IPv6 address of the pod.
    pub const IP6: &'static str = "fd88::2";
    /// IPv4 address of the outside.
    pub const OUTSIDE: &'static str = "10.88.0.1";
    /// IPv6 address of the outside.
    pub const OUTSIDE6: &'static str = "fd88::1";

    /// Creates two namespaces with a veth pair between them.
    pub fn new() -> Self {
        let (inside, outside) = (Space::new(), Space::new());
        let path = outside.path();
        inside.sh(&format!(
            "ip link add eth0 type veth peer name cable && ip link set cable netns {path} name \
            eth0"
        ));
        for (space, ip, ip6) in [
            (&inside, Self::IP, Self::IP6),
            (&outside, Self::OUTSIDE, Self::OUTSIDE6),
        ] {
            space.sh(&format!(
                "ip link set eth0 up; ip address add {ip}/24 dev eth0; ip address add {ip6}/64 \
                nodad dev eth0"
            ));
        }
        Self { inside, outside }
    }
}

impl Default for Pod {
    fn default() -> Self {
        Self::new()
    }
}
