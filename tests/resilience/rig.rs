//! Shared helpers: systems in front of unusual apps, ways to a workstation, observation of
//! processes.

use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use harness::apps::App;
use harness::ports;
use harness::process::Process;
use harness::sidecar::{Port, Sidecar};
use harness::system::{Agent, System, sidecar, start_manager_with};
use harness::wait::{WAIT_TIMEOUT, until};

/// Size of a run: from the environment, else the short form.
pub(crate) fn scale(variable: &str, short: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(short)
}

/// A system in front of an app that is none of ours.
pub(crate) fn in_front_of(app: SocketAddr, configure: impl FnOnce(&mut Sidecar)) -> System {
    managed(app, &[], configure)
}

/// The same with flags for the manager.
pub(crate) fn managed(
    app: SocketAddr,
    manager_flags: &[&str],
    configure: impl FnOnce(&mut Sidecar),
) -> System {
    let (manager, manager_address) = start_manager_with(0, manager_flags);
    let mut sidecar = sidecar(manager_address, vec![Port::tcp(app.port(), ports::free())]);
    configure(&mut sidecar);
    let agent = Agent::start(&sidecar, |_| {});
    agent.ready();
    System {
        manager,
        manager_address,
        agent,
        app: App::start("unused"),
    }
}

/// Path of a connection to its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the app, without an intercept.
    App,
    /// An intercept is active and does not match.
    Beside,
    /// A tunnel that the workstation opened to the agent.
    Direct,
    /// A tunnel through the manager.
    Manager,
}

impl Way {
    /// Flags of the client for a tunnel of this kind, behind those that say what is taken.
    pub(crate) fn flags<'a>(self, filter: &[&'a str]) -> Vec<&'a str> {
        let mut flags = filter.to_vec();
        flags.extend((self == Self::Manager).then_some("--no-direct"));
        flags
    }

    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Self::Direct | Self::Manager)
    }
}

/// Tries every way at the same time: most of it is waiting.
pub(crate) fn each(ways: &[Way], work: impl Fn(Way) + Sync) {
    std::thread::scope(|scope| {
        for way in ways {
            let work = &work;
            std::thread::Builder::new()
                .name(format!("{way:?}"))
                .spawn_scoped(scope, move || work(*way))
                .unwrap();
        }
    });
}

/// Starts a system in front of `server`; if the way is a tunnel, `server` is the workstation's
/// local one and the app must not be reached. `filter` holds the intercept's flags. The client ends
/// with its process.
pub(crate) fn towards(server: SocketAddr, way: Way, filter: &[&str]) -> (System, Option<Process>) {
    if way.is_tunnel() {
        let system = System::start();
        let client = system.intercept("mine", server, &way.flags(filter));
        return (system, Some(client));
    }
    let system = in_front_of(server, |_| {});
    let client = (way == Way::Beside).then(|| {
        let nobody = App::start("nobody");
        system.intercept("other", nobody.address(), &["--http-header=x-dev=nobody"])
    });
    (system, client)
}

/// Connects with a deadline for every read and write.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, WAIT_TIMEOUT).unwrap();
    patient(&stream);
    stream
}

/// Sets generous deadlines.
pub(crate) fn patient(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(WAIT_TIMEOUT)).unwrap();
}

/// Makes the coming drop a reset.
pub(crate) fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Reads to the end, whichever it is: what came, and the error if there was one.
pub(crate) fn read_out(stream: &mut TcpStream) -> (Vec<u8>, Option<io::ErrorKind>) {
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).err().map(|error| error.kind());
    (all, error)
}

/// Reads a number of `/proc/PID/status`, in KiB.
pub(crate) fn memory_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time used so far.
pub(crate) fn cpu(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Waits until the agent has counted so much under a name.
pub(crate) fn counted(system: &System, name: &str, at_least: u64) {
    until(&format!("{name} to be {at_least}"), || {
        (system.agent.stat(name) >= at_least).then_some(())
    });
}
