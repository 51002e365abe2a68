//! One intercept of several ports of the same pods.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use harness::apps::App;
use harness::caller::get;
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager};
use harness::wait::until;
use harness::{ports, programs};

#[test]
fn one_intercept_takes_several_ports_each_to_its_own_place() {
    let (web, admin) = (App::start("web"), App::start("admin"));
    let (local_web, local_admin) = (App::start("local web"), App::start("local admin"));
    let agent_ports = [ports::free(), ports::free()];
    let (manager, manager_address) = start_manager(0);
    let both = vec![
        Port::tcp(web.address().port(), agent_ports[0]),
        Port::tcp(admin.address().port(), agent_ports[1]),
    ];
    let agent = Agent::start(&sidecar(manager_address, both), |_| {});
    agent.ready();
    let port = |local: &App, app: &App| {
        let (local, app) = (local.address().port(), app.address().port());
        format!("{local}:{app}")
    };
    let (first, second) = (port(&local_web, &web), port(&local_admin, &admin));
    let system = System {
        manager,
        manager_address,
        agent,
        app: web,
    };
    let flags = ["--port", &second, "--http-header=x-dev=me"];
    let intercept = system.begin_intercept("mine", &first, &flags);
    intercept.line("state=ACTIVE");
    let [at_web, at_admin] = agent_ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let who =
        |address, headers: &[(&str, &str)]| get(address, "/", headers).unwrap().by().to_owned();
    let mine = [("x-dev", "me")];
    until("both ports to be taken", || {
        (who(at_web, &mine) == "local web" && who(at_admin, &mine) == "local admin").then_some(())
    });
    assert_eq!([who(at_web, &[]), who(at_admin, &[])], ["web", "admin"]);
    assert!(intercept.terminate().success());
    until("both ports to be the app's", || {
        (who(at_web, &mine) == "web" && who(at_admin, &mine) == "admin").then_some(())
    });

    // One that is not there is said at once, with those that are.
    let intercept = system.begin_intercept("mine", &first, &["--port", "3000:adm", flags[2]]);
    intercept.line("no port adm in the agents of workload \"hello\"; they have ");
    assert_eq!(intercept.exit().code(), Some(1));

    // Where nothing listens at one of them its requests go to the app, and the warning names it.
    let nobody = ports::free();
    let second = format!("{nobody}:{}", admin.address().port());
    let intercept = system.begin_intercept("closed", &first, &["--port", &second, flags[2]]);
    intercept.line("state=ACTIVE");
    until("the first port to be taken", || {
        (who(at_web, &mine) == "local web").then_some(())
    });
    assert_eq!(who(at_admin, &mine), "admin");
    intercept.line(&format!("warning: nothing listens on 127.0.0.1:{nobody}; "));
}

/// A UDP server that answers with its name.
fn udp_server(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    address
}

/// Asks until there is an answer.
fn ask_udp(address: SocketAddr) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(address).unwrap();
    let short = Some(Duration::from_millis(500));
    socket.set_read_timeout(short).unwrap();
    until("an answer by UDP", || {
        socket.send(b"who").ok()?;
        let mut buffer = [0; 64];
        let count = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
    })
}

#[test]
fn one_intercept_takes_a_tcp_and_a_udp_port_and_says_where_each_goes() {
    let (web, local_web) = (App::start("web"), App::start("local web"));
    let (dns, local_dns) = (udp_server("dns"), udp_server("local dns"));
    let agent_ports = [ports::free(), ports::free()];
    let (manager, manager_address) = start_manager(0);
    let named = |name: &str, port: Port| Port {
        name: name.to_owned(),
        ..port
    };
    let both = vec![
        named("http", Port::tcp(web.address().port(), agent_ports[0])),
        Port {
            protocol: "UDP",
            ..named("dns", Port::tcp(dns.port(), agent_ports[1]))
        },
    ];
    let agent = Agent::start(&sidecar(manager_address, both), |_| {});
    agent.ready();
    let system = System {
        manager,
        manager_address,
        agent,
        app: web,
    };
    let (local_web_port, local_dns_port) = (local_web.address().port(), local_dns.port());
    let first = format!("{local_web_port}:http");
    let second = format!("{local_dns_port}:dns/udp");
    let intercept = system.begin_intercept("mine", &first, &["--port", &second]);
    intercept.line(&format!(
        "Intercepting hello: all TCP connections and all UDP datagrams: http -> \
         127.0.0.1:{local_web_port}, dns/UDP -> 127.0.0.1:{local_dns_port}."
    ));
    let [at_web, at_dns] = agent_ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    until("both ports to be taken", || {
        let by = get(at_web, "/", &[]).unwrap().by().to_owned();
        (by == "local web" && ask_udp(at_dns) == "local dns").then_some(())
    });
    let mut list = Command::new(programs::path("intercept"));
    list.args(["list", "--manager", &manager_address.to_string()]);
    let list = Process::start("intercept list", &mut list);
    list.line(&format!("and ports dns/UDP -> 127.0.0.1:{local_dns_port}"));
    assert!(intercept.terminate().success());
    until("both ports to be the app's", || {
        let by = get(at_web, "/", &[]).unwrap().by().to_owned();
        (by == "web" && ask_udp(at_dns) == "dns").then_some(())
    });
}
