//! nginx from Debian, which answers and logs what it saw of a handshake.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use harness::certs::Authority;
use harness::ports;
use harness::wait::until;
use tempfile::TempDir;

/// Protocol of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    /// Clear text.
    Clear,
    /// TLS, and insists on a certificate of the authority.
    MutualTls,
}

/// A running nginx; ended when dropped.
pub(crate) struct Nginx {
    /// Address of the server.
    pub(crate) addr: SocketAddr,
    dir: TempDir,
    child: Child,
}

impl Nginx {
    /// Starts one that answers `NAME sni=… alpn=… dn=… proto=… caller=…`.
    pub(crate) fn start(name: &str, speaks: Speaks, http2: bool, authority: &Authority) -> Self {
        let dir = tempfile::tempdir().unwrap();
        authority.write_secret(dir.path(), &authority.sign(&["app.test"]));
        let addr = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let h2 = if http2 { " http2" } else { "" };
        let (ssl, tls) = match speaks {
            Speaks::Clear => ("", ""),
            Speaks::MutualTls => (
                " ssl",
                "ssl_certificate tls.crt; ssl_certificate_key tls.key; ssl_client_certificate \
                ca.crt; ssl_verify_client on;",
            ),
        };
        let facts = format!(
            "{name} sni=$ssl_server_name alpn=$ssl_alpn_protocol dn=$ssl_client_s_dn \
            proto=$server_protocol caller=$http_x_caller"
        );
        let config = format!(
            "daemon off; worker_processes 1; user root; pid nginx.pid; error_log error.log;\nevents {{}}\n\
             http {{ log_format facts '{facts}'; access_log access.log facts;\n\
             client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
             server {{ listen {addr}{ssl}{h2}; {tls} location / {{ return 200 '{facts}\\n'; }} }} }}\n"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(dir.path())
            .args(["-c", "nginx.conf", "-e", "error.log"]);
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { addr, dir, child };
        until("nginx to listen", || TcpStream::connect(addr).ok());
        nginx
    }

    /// Returns its log of requests.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its worker on SIGTERM; a kill would leave it behind.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}
