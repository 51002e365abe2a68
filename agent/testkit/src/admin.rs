//! The admin server in front of one port, and a client for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use traffic_agent::admin::{Agent, Certificate, Certificates, ListenerInfo, server};
use traffic_agent::proxy::context::PortContext;
use traffic_agent::telemetry::logging::LogControl;

/// No TLS is configured.
#[derive(Debug)]
struct NoCertificates;

impl Certificates for NoCertificates {
    fn certificates(&self) -> Vec<Certificate> {
        Vec::new()
    }
}

/// The agent as the admin sees it, with this port alone and no listener of its own.
pub fn agent(port: &Arc<PortContext>) -> Agent {
    Agent {
        version: "v0.0.0",
        workload: "echo".to_owned(),
        namespace: "shop".to_owned(),
        pod: "echo-1".to_owned(),
        names: traffic_proto::web_origin::OwnNames::new("echo-1", None),
        manager: "traffic-manager.ambassador:8081".to_owned(),
        started: Instant::now(),
        workers: 1,
        listeners: Vec::new(),
        ports: vec![Arc::clone(port)],
        control: Arc::default(),
        certificates: Arc::new(NoCertificates),
        ready: traffic_agent::ready::Ready::default(),
        drain: port.drain.clone(),
        log: LogControl::detached(),
        config: serde_json::json!({ "agentName": "echo" }),
        commands: Arc::default(),
    }
}

/// A running admin server.
#[derive(Debug)]
pub struct AdminFixture {
    /// What it shows.
    pub agent: Arc<Agent>,
    address: SocketAddr,
    _stop: DropGuard,
}

impl AdminFixture {
    /// Starts one for this port.
    pub async fn start(port: Arc<PortContext>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut agent = agent(&port);
        agent.listeners.push(ListenerInfo {
            name: format!("port_{}", port.container_port),
            address,
            transport: "TCP",
        });
        let (agent, stop) = (Arc::new(agent), CancellationToken::new());
        tokio::spawn(server::serve(listener, Arc::clone(&agent), stop.clone()));
        Self {
            agent,
            address,
            _stop: stop.drop_guard(),
        }
    }

    /// Status, head and body of the answer; `extra` are header lines.
    pub async fn ask(&self, method: &str, path: &str, extra: &str) -> (u16, String, String) {
        let extra = format!("host: localhost\r\n{extra}");
        self.ask_host(method, path, &extra).await
    }

    /// The same, with whatever `extra` says about the host.
    pub async fn ask_host(&self, method: &str, path: &str, extra: &str) -> (u16, String, String) {
        ask_at(self.address, method, path, extra).await
    }

    /// The JSON that a path answers with status 200.
    pub async fn json(&self, path: &str) -> Value {
        let (status, head, body) = self.ask("GET", path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        assert!(head.contains("content-type: application/json"), "{head}");
        serde_json::from_str(&body).unwrap()
    }
}

/// Status, head and body of an HTTP server's answer; `extra` are header lines.
pub async fn ask_at(
    address: SocketAddr,
    method: &str,
    path: &str,
    extra: &str,
) -> (u16, String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{extra}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}
