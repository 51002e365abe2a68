//! Servers that people use.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use harness::ports;
use harness::process::Process;
use harness::programs;
use harness::wait::until;
use tempfile::TempDir;

/// A running server of HTTP/2 in clear text.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl Server {
    /// The one of Go's standard library, which says what request has arrived.
    pub(crate) fn go() -> Self {
        let process = Process::start(
            "Go's server",
            Command::new(programs::go("h2spec")).arg("serve"),
        );
        let address = process.line("127.0.0.1:").parse().unwrap();
        Self {
            address,
            _process: process,
            _folder: TempDir::new().unwrap(),
        }
    }

    /// nginx, which says a part of it.
    pub(crate) fn nginx() -> Self {
        let (folder, address) = (TempDir::new().unwrap(), free_address());
        let facts = "$request_method $request_uri $host $http_te $http_cookie $http_x_a";
        let config = format!(
            "daemon off; master_process off; pid nginx.pid; error_log error.log;\nevents {{}}\n\
             http {{ access_log off; client_body_temp_path t1; proxy_temp_path t2;\n\
             fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
             server {{ listen {address} http2; location / {{ return 200 '{facts}\\n'; }} }} }}\n"
        );
        fs::write(folder.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder.path());
        command.args(["-c", "nginx.conf", "-e", "error.log"]);
        Self::start("nginx", &mut command, folder, address)
    }

    /// nghttpd, which answers requests for one file.
    pub(crate) fn nghttpd() -> Self {
        let (folder, address) = (TempDir::new().unwrap(), free_address());
        fs::write(folder.path().join("index.html"), "an answer of nghttpd\n").unwrap();
        let mut command = Command::new("nghttpd");
        command.args(["--no-tls", "--address=127.0.0.1", "--htdocs"]);
        command.arg(folder.path()).arg(address.port().to_string());
        Self::start("nghttpd", &mut command, folder, address)
    }

    fn start(name: &str, command: &mut Command, folder: TempDir, address: SocketAddr) -> Self {
        let process = Process::start(name, command);
        until("the server to listen", || TcpStream::connect(address).ok());
        Self {
            address,
            _process: process,
            _folder: folder,
        }
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], ports::free()))
}
