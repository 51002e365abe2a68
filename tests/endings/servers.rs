//! Servers that people run: Go's, nginx and Node's. They end with their value.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use harness::ports;
use harness::process::Process;
use harness::wait::until;
use rustix::process::Signal;
use tempfile::TempDir;

/// The programs of the Go server, which is its own TLS caller.
pub(crate) struct Go {
    /// HTTP/1.
    pub(crate) http: SocketAddr,
    /// TCP that refuses everybody in words.
    pub(crate) refusing: SocketAddr,
    /// TLS that insists on a client's certificate.
    pub(crate) tls: SocketAddr,
    _process: Process,
}

impl Go {
    pub(crate) fn start() -> Self {
        let process = Process::start("go", &mut Command::new(go_program()));
        let line = process.line("listening=");
        let mut addresses = line
            .trim_start_matches("listening=")
            .split(' ')
            .map(|address| address.parse().unwrap());
        let mut next = || addresses.next().unwrap();
        let (http, refusing, tls) = (next(), next(), next());
        Self {
            http,
            refusing,
            tls,
            _process: process,
        }
    }
}

/// Builds the Go program once.
pub(crate) fn go_program() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("endings-go");
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
        let go = Command::new(format!("{tests}/find-go")).output().unwrap();
        let built = Command::new(String::from_utf8(go.stdout).unwrap().trim())
            .args(["build", "-trimpath", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(format!("{tests}/endings/go"))
            .env("CGO_ENABLED", "0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        assert!(
            built.status.success(),
            "the Go server does not build: {said}"
        );
        program
    });
    program.clone()
}

/// Node's own HTTP server.
pub(crate) struct Node {
    pub(crate) http: SocketAddr,
    _process: Process,
}

impl Node {
    pub(crate) fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/endings/node.js");
        let process = Process::start("node", Command::new("node").arg(script));
        let line = process.line("listening=");
        Self {
            http: line.trim_start_matches("listening=").parse().unwrap(),
            _process: process,
        }
    }
}

/// nginx that ends a connection behind two requests.
pub(crate) struct Nginx {
    pub(crate) http: SocketAddr,
    process: Process,
    _folder: TempDir,
}

impl Nginx {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let http = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let config = format!(
            "daemon off; worker_processes 1; user root; pid nginx.pid; error_log error.log;\nevents {{}}\n\
             http {{ access_log off; keepalive_requests 2; client_max_body_size 1k; server_tokens off;\n\
             client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
             server {{ listen {http}; root files; location /small {{ return 200 'small'; }} }} }}\n"
        );
        fs::write(folder.path().join("nginx.conf"), config).unwrap();
        fs::create_dir(folder.path().join("files")).unwrap();
        fs::write(folder.path().join("files/large"), vec![b'x'; 8_000_000]).unwrap();
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(folder.path())
            .args(["-c", "nginx.conf", "-e", "error.log"]);
        let process = Process::start("nginx", &mut command);
        until("nginx to listen", || TcpStream::connect(http).ok());
        Self {
            http,
            process,
            _folder: folder,
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker on SIGTERM; a kill would leave it behind.
        self.process.signal(Signal::TERM);
        self.process.exit();
    }
}
