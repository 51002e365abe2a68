//! Datagrams through the real agent: sizes, many flows, a workstation that comes, goes and dies.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use harness::apps::App;
use harness::ports;
use harness::process::Process;
use harness::sidecar::Port;
use harness::system::{Agent, System, sidecar, start_manager_with};
use harness::wait::until;

/// Puts a letter before every datagram it sends back.
fn echo(letter: u8) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&[&[letter], &buffer[..count]].concat(), from);
        }
    });
    address
}

struct Caller(UdpSocket);

impl Caller {
    fn of(agent: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(agent).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        Self(socket)
    }

    /// Sends, again while nothing comes back; says which letter the answer begins with.
    fn ask(&self, datagram: &[u8]) -> char {
        until("an answer", || {
            self.0.send(datagram).ok()?;
            let mut buffer = vec![0; 70_000];
            loop {
                let count = self.0.recv(&mut buffer).ok()?;
                if &buffer[1..count] == datagram {
                    return Some(char::from(buffer[0]));
                }
            }
        })
    }
}

fn sizes(caller: &Caller, letter: char) {
    // A tunnel has no message for a datagram of nothing.
    let smallest = if letter == 'A' { 0 } else { 1 };
    for size in [smallest, 2, 511, 512, 1472, 1473, 9000, 32_000, 65_000] {
        let datagram: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        assert_eq!(caller.ask(&datagram), letter, "{size} bytes");
    }
}

#[test]
fn datagrams_of_every_size_reach_whoever_has_the_port_and_the_app_has_it_when_the_workstation_dies()
{
    let (app, laptop) = (echo(b'A'), echo(b'L'));
    let (manager, manager_address) = start_manager_with(0, &["--client-ttl=7s"]);
    let port = Port {
        protocol: "UDP",
        ..Port::tcp(app.port(), ports::free())
    };
    let agent = Agent::start(&sidecar(manager_address, vec![port]), |_| {});
    agent.ready();
    let system = System {
        manager,
        manager_address,
        agent,
        app: App::start("unused"),
    };
    let old = Caller::of(system.address());
    sizes(&old, 'A');
    // The second run of the same user takes the place of the one that was killed.
    for flags in [&[][..], &["--no-direct"]] {
        let client: Process = system.begin_intercept(
            "dns",
            &format!("{}:{}/UDP", laptop.port(), app.port()),
            flags,
        );
        client.line("state=ACTIVE");
        system.agent.serves("dns");
        if flags.is_empty() {
            client.line("direct=connected");
        }
        until("the laptop to have the port", || {
            (old.ask(b"who") == 'L').then_some(())
        });
        let callers: Vec<Caller> = (0..50).map(|_| Caller::of(system.address())).collect();
        for caller in &callers {
            assert_eq!(caller.ask(b"hello"), 'L');
        }
        sizes(&callers[0], 'L');
        // Until that is noticed, datagrams are lost on the way to it.
        client.kill();
        until("the app to have it again", || {
            (Caller::of(system.address()).ask(b"who") == 'A').then_some(())
        });
        sizes(&Caller::of(system.address()), 'A');
        until("an old flow to go there too", || {
            (callers[0].ask(b"who") == 'A').then_some(())
        });
    }
}
