//! A pod on loopback: an app that names itself, the agent as a process, and callers.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::WAIT_TIMEOUT;

pub struct Pod {
    pub root: TempDir,
    pub app_port: u16,
    pub agent_port: u16,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// Standard output and error of an agent, as pipes that nobody reads yet.
pub struct Unread {
    pub output: ChildStdout,
    pub error: ChildStderr,
}

/// Returns unused ports below the kernel's range for outgoing connections, each given once.
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 6_000).unwrap();
    std::array::from_fn(|_| {
        loop {
            let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::SeqCst)) % 12_000;
            if TcpListener::bind(("::", port)).is_ok()
                && TcpListener::bind(("127.0.0.1", port)).is_ok()
            {
                return port;
            }
        }
    })
}

impl Pod {
    /// An agent whose manager is (or will be) at `manager`; `extra` are further lines of
    /// configuration.
    pub async fn start(manager: SocketAddr, extra: &str) -> Self {
        Self::start_behind(&[], manager, extra).await
    }

    /// The same in a pod whose container an intercept has replaced: the agent has the app's port.
    pub async fn start_replacing(manager: SocketAddr) -> Self {
        let container = "  replace: 1\n";
        let (mut pod, unread) =
            Self::spawn(new_root(), &[], &[], manager, container, "", &[]).await;
        pod.agent_port = pod.app_port;
        drop(unread.output);
        pod.read(unread.error);
        pod
    }

    /// The same as the first with more ports, undeclared, whose apps are others.
    pub async fn start_beside(ports: &[u16], manager: SocketAddr) -> Self {
        let (mut pod, unread) = Self::spawn(new_root(), &[], ports, manager, "", "", &[]).await;
        drop(unread.output);
        pod.read(unread.error);
        pod
    }

    /// The same as the first behind a program that starts it in a limited way.
    pub async fn start_behind(prefix: &[String], manager: SocketAddr, extra: &str) -> Self {
        let (mut pod, unread) = Self::spawn(new_root(), prefix, &[], manager, "", extra, &[]).await;
        drop(unread.output);
        pod.read(unread.error);
        pod
    }

    /// The same with more environment, and nobody who reads what it prints.
    pub async fn start_unread(
        manager: SocketAddr,
        extra: &str,
        environment: &[(&str, &str)],
    ) -> (Self, Unread) {
        Self::spawn(new_root(), &[], &[], manager, "", extra, environment).await
    }

    /// The same as the first with more environment, in a file system that has something already.
    pub async fn start_in(
        root: TempDir,
        manager: SocketAddr,
        environment: &[(&str, &str)],
    ) -> Self {
        let (mut pod, unread) = Self::spawn(root, &[], &[], manager, "", "", environment).await;
        drop(unread.output);
        pod.read(unread.error);
        pod
    }

    async fn spawn(
        root: TempDir,
        prefix: &[String],
        ports: &[u16],
        manager: SocketAddr,
        container: &str,
        extra: &str,
        environment: &[(&str, &str)],
    ) -> (Self, Unread) {
        let app_port = match container {
            "" => serve_app().await,
            _ => free_ports::<1>()[0],
        };
        let [agent_port] = free_ports();
        let mut config = format!(
            "agentName: web\nnamespace: shop\nmanagerHost: {}\nmanagerPort: {}\nworkloadKind: Deployment\n{extra}\n\
             containers:\n- name: app\n  envPrefix: A_\n  mountPoint: /tel_app_mounts/app\n{container}  intercepts:\n  \
             - {{containerPortName: http, containerPort: {app_port}, agentPort: {agent_port}, protocol: TCP}}\n",
            manager.ip(),
            manager.port()
        );
        for (port, [agent_port]) in ports.iter().map(|port| (port, free_ports())) {
            config +=
                &format!("  - {{containerPort: {port}, agentPort: {agent_port}, protocol: TCP}}\n");
        }
        let file = root.path().join("config.yaml");
        std::fs::write(&file, config).unwrap();
        let words = [prefix, &[env!("CARGO_BIN_EXE_traffic-agent").to_owned()]].concat();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["agent", "--config"])
            .arg(&file)
            .arg("--root")
            .arg(root.path())
            .env_clear()
            .envs([
                ("_TEL_AGENT_POD_IP", "127.0.0.1"),
                ("_TEL_AGENT_NAME", "web-1"),
                ("_TEL_AGENT_POD_UID", "uid-1"),
                ("_TEL_APP_A_COLOUR", "red"),
                ("AGENT_ENVOY_SERVER_PORT", "0"),
                ("AGENT_ENVOY_ADMIN_PORT", "0"),
                ("AGENT_DRAIN_LAME_DUCK", "0s"),
            ])
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let unread = Unread {
            output: child.stdout.take().unwrap(),
            error: child.stderr.take().unwrap(),
        };
        let pod = Self {
            root,
            app_port,
            agent_port,
            child,
            log: Arc::default(),
        };
        pod.until("the agent to listen", |p| p.ports().is_some())
            .await;
        (pod, unread)
    }

    /// Reads log lines from here on.
    pub fn read(&mut self, stderr: ChildStderr) {
        let lines = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in
                std::io::BufRead::lines(std::io::BufReader::new(stderr)).map_while(Result::ok)
            {
                lines.lock().unwrap().push(line);
            }
        });
    }

    /// The body of an admin page.
    pub async fn admin(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(("127.0.0.1", self.admin_port()))
            .await
            .unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Value of a statistic of the pod's port.
    pub async fn port_stat(&self, name: &str) -> u64 {
        self.stat(&format!("traffic_agent.port_{}.{name}", self.app_port))
            .await
    }

    /// Value of a statistic.
    pub async fn stat(&self, name: &str) -> u64 {
        let stats = self.admin("/stats").await;
        let line = stats
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_else(|| panic!("no {name} in {stats}"))
            .parse()
            .unwrap()
    }

    pub fn ready(&self) -> bool {
        self.root.path().join("tmp/agent/ready").exists()
    }

    /// The gRPC API's port.
    pub fn api_port(&self) -> u16 {
        let ports = self.ports().expect("ports.json is there");
        u16::try_from(ports["server"].as_u64().unwrap()).unwrap()
    }

    /// The admin's port.
    pub fn admin_port(&self) -> u16 {
        let ports = self.ports().expect("ports.json is there");
        u16::try_from(ports["admin"].as_u64().unwrap()).unwrap()
    }

    /// The agent's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Number of the agent's threads.
    pub fn threads(&self) -> usize {
        self.entries_of("task")
    }

    /// Number of the agent's open descriptors.
    pub fn descriptors(&self) -> usize {
        self.entries_of("fd")
    }

    /// A size from the process's status, in bytes.
    pub fn memory(&self, what: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(what)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 1024
    }

    fn entries_of(&self, what: &str) -> usize {
        let folder = format!("/proc/{}/{what}", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    fn ports(&self) -> Option<serde_json::Value> {
        let text = std::fs::read_to_string(self.root.path().join("tmp/agent/ports.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Log lines that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.log
            .lock()
            .unwrap()
            .iter()
            .filter(|l| l.contains(text))
            .cloned()
            .collect()
    }

    pub async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "waited for {what}; the agent said {:#?}",
                self.log.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Sends a request and returns the name of the server.
    pub async fn ask(&self, header: &str) -> std::io::Result<String> {
        request(self.agent_port, header).await
    }

    /// Asks until the answer comes from `who`.
    pub async fn until_answered_by(&self, header: &str, who: &str) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        loop {
            let answer = self.ask(header).await.unwrap();
            if answer == who {
                return;
            }
            let log = self.log.lock().unwrap().clone();
            assert!(
                Instant::now() < deadline,
                "still answered by {answer}, not {who}; log {log:#?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, and the exit code.
    pub async fn end(mut self) -> i32 {
        self.signal();
        tokio::task::spawn_blocking(move || self.child.wait().unwrap().code().unwrap_or(-1))
            .await
            .unwrap()
    }

    pub fn signal(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file system with nothing in it.
pub fn new_root() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Sends one HTTP/1.1 request on its own connection and returns the response body.
pub async fn request(port: u16, header: &str) -> std::io::Result<String> {
    let exchange = async {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
        let head = format!("GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{header}\r\n");
        socket.write_all(head.as_bytes()).await?;
        let mut reader = BufReader::new(socket);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).await?;
        Ok(String::from_utf8(body).unwrap())
    };
    tokio::time::timeout(WAIT_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
}

/// An app that answers every request with its name.
async fn serve_app() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(n) = socket.read(&mut chunk).await {
                    head.extend_from_slice(&chunk[..n]);
                    if n == 0 {
                        return;
                    }
                    while let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
                        head.drain(..end + 4);
                        if socket
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\napp")
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}
