//! Clients that are gone without a word, while many callers use the port that they have taken whole:
//! killed, or asleep and awake again. Callers pay once, and little.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::{App, raw};
use harness::caller::{Caller, get};
use harness::ports;
use harness::process::Process;
use harness::system::System;
use harness::wait::until;
use rustix::process::Signal;

use crate::rig::{Way, each, in_front_of, scale};

const CALLERS: usize = 64;
/// Pause of a caller between two connections.
const THINK_DELAY: Duration = Duration::from_millis(50);
/// Bound of what a caller waits for a workstation that has fallen asleep with its request: half a
/// second of silence, one for its sign of life, and what a busy machine adds.
const ASLEEP_TIMEOUT: Duration = Duration::from_secs(4);
/// Delay that is more than what a busy machine adds.
const LONG_DELAY: Duration = Duration::from_millis(500);

fn greeting(word: &'static [u8]) -> SocketAddr {
    raw(move |mut stream| {
        let _ = stream.write_all(word);
    })
}

fn whole_port(way: Way) -> (System, Process) {
    let system = in_front_of(greeting(b"app"), |_| {});
    let client = system.intercept("mine", greeting(b"laptop"), &way.flags(&[]));
    assert_eq!(greeted(system.address()), "laptop");
    (system, client)
}

fn greeted(address: SocketAddr) -> String {
    let mut said = String::new();
    let mut stream = TcpStream::connect(address).unwrap();
    // A connection that was under way may break.
    let _ = stream.read_to_string(&mut said);
    said
}

/// What callers met, in microseconds.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    /// The longest connection so far.
    longest: AtomicU64,
    limit: AtomicU64,
    /// What connections took beyond the limit.
    delays: Mutex<Vec<Duration>>,
}

impl Load {
    fn call(&self, address: SocketAddr) {
        while !self.over.load(Ordering::SeqCst) {
            let began = Instant::now();
            greeted(address);
            let took = u64::try_from(began.elapsed().as_micros()).unwrap();
            self.longest.fetch_max(took, Ordering::SeqCst);
            let limit = self.limit.load(Ordering::SeqCst);
            if limit > 0 && took > limit {
                let delay = Duration::from_micros(took - limit);
                self.delays.lock().unwrap().push(delay);
            }
            std::thread::sleep(THINK_DELAY);
        }
    }

    /// Counts from now on what is longer than all connections so far.
    fn count(&self) {
        self.limit
            .store(self.longest.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// Runs `work` while callers use the system; returns their delays since `work` began.
fn under_load(system: &System, work: impl FnOnce()) -> Vec<Duration> {
    let load = Load::default();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| load.call(system.address()));
        }
        // Every caller has been there some times.
        std::thread::sleep(Duration::from_secs(2));
        load.count();
        work();
        load.over.store(true, Ordering::SeqCst);
    });
    load.delays.into_inner().unwrap()
}

/// Checks that callers paid once, and little. What all of them paid together is a figure of the
/// machine as well: the slower it is, the more of them are with the workstation when it falls
/// silent. So its limit counts where nothing else runs (`QUIET_MACHINE=1`).
fn cost_little(what: &str, delays: &[Duration]) {
    let total: Duration = delays.iter().sum();
    let longest = delays.iter().max().copied().unwrap_or_default();
    let long = delays.iter().filter(|&&delay| delay > LONG_DELAY).count();
    eprintln!(
        "{what}: {CALLERS} callers waited {total:?} more in all, {long} of them for long, \
         {longest:?} at most"
    );
    assert!(longest < ASLEEP_TIMEOUT, "{longest:?}");
    assert!(long <= CALLERS, "{long} long delays of {CALLERS} callers");
    if scale("QUIET_MACHINE", 0) == 1 {
        assert!(total < Duration::from_secs(10), "{total:?}");
    }
}

fn costs_all_callers_together_a_few_seconds_when_killed(way: Way) {
    let (system, client) = whole_port(way);
    let delays = under_load(&system, || {
        client.kill();
        until("the app to have the port", || {
            (greeted(system.address()) == "app").then_some(())
        });
        // Longer than it takes until the intercept is suspended.
        std::thread::sleep(Duration::from_secs(8));
    });
    cost_little(&format!("killed, {way:?}"), &delays);
    let began = Instant::now();
    assert_eq!(greeted(system.address()), "app");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_client_that_is_killed_costs_all_callers_together_a_few_seconds() {
    costs_all_callers_together_a_few_seconds_when_killed(Way::Direct);
}

#[test]
fn a_client_that_is_killed_behind_the_manager_costs_a_few_seconds_too() {
    costs_all_callers_together_a_few_seconds_when_killed(Way::Manager);
}

fn is_served_again_when_awake(way: Way) {
    let asleep = Duration::from_secs(scale("ASLEEP_SECONDS", 20));
    let (system, client) = whole_port(way);
    let delays = under_load(&system, || {
        client.signal(Signal::STOP);
        until("the app to have the port", || {
            (greeted(system.address()) == "app").then_some(())
        });
        std::thread::sleep(asleep);
    });
    cost_little(&format!("asleep, {way:?}"), &delays);
    client.signal(Signal::CONT);
    until("the laptop to have the port again", || {
        (greeted(system.address()) == "laptop").then_some(())
    });
}

#[test]
fn a_client_that_sleeps_costs_little_and_is_served_again_when_it_is_awake() {
    is_served_again_when_awake(Way::Direct);
}

#[test]
fn a_client_that_sleeps_behind_the_manager_costs_little_too() {
    is_served_again_when_awake(Way::Manager);
}

#[test]
fn requests_on_kept_connections_do_not_wait_for_a_sleeping_client() {
    each(&[Way::Direct, Way::Manager], |way| {
        let laptop = App::start("laptop");
        let system = System::start();
        let client = system.intercept("mine", laptop.address(), &way.flags(&[]));
        let mut callers = Vec::new();
        for _ in 0..8 {
            let mut caller = Caller::connect(system.address()).unwrap();
            assert_eq!(caller.get("/", &[]).unwrap().by(), "laptop");
            callers.push(caller);
        }
        client.signal(Signal::STOP);
        std::thread::scope(|scope| {
            for mut caller in callers {
                scope.spawn(move || {
                    let began = Instant::now();
                    // It is with the laptop, so nobody else may answer.
                    caller.get("/", &[]).unwrap_err();
                    let took = began.elapsed();
                    assert!(took < ASLEEP_TIMEOUT, "{way:?}: {took:?}");
                });
            }
        });
        assert_eq!(get(system.address(), "/", &[]).unwrap().by(), "app");
        client.signal(Signal::CONT);
        until("the laptop to have the port again", || {
            (get(system.address(), "/", &[]).unwrap().by() == "laptop").then_some(())
        });
    });
}

#[test]
fn what_does_not_reach_the_local_server_is_told_to_its_developer() {
    each(&[Way::Direct, Way::Manager], |way| {
        let system = System::start();
        let port = ports::free();
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let client = system.intercept("mine", nobody, &way.flags(&["--http-header=x-dev=a"]));
        for _ in 0..3 {
            let answer = get(system.address(), "/", &[("x-dev", "a")]).unwrap();
            assert_eq!(answer.by(), "app");
        }
        let warning = format!("warning: nothing listens on {nobody}; ");
        client.line(&warning);
        until("the count of all three", || {
            let all = client.lines(&format!("{warning}3 requests went to the app"));
            (!all.is_empty()).then_some(())
        });
        let admin = |path: &str| {
            let page = get(system.agent.admin(), path, &[]).unwrap();
            String::from_utf8(page.body).unwrap()
        };
        let page = admin("/intercepts");
        assert!(page.contains("\"failedOpen\": 3"), "{page}");
        assert!(page.contains("nothing listens on"), "{page}");
        let page = admin("/explain?header=x-dev:a");
        assert!(page.contains("\"decision\": \"app\""), "{page}");
        assert!(page.contains("\"failedOpen\": 3"), "{page}");
        let page = admin("/stats/prometheus?filter=intercept");
        let line = page
            .lines()
            .find(|line| line.starts_with("traffic_agent_intercept_failed_open_total{"));
        assert!(line.is_some_and(|line| line.ends_with(" 3")), "{page}");
        // Somebody listens: all is well again.
        let laptop = App::on("laptop", std::net::TcpListener::bind(nobody).unwrap());
        until("the laptop to answer", || {
            let answer = get(system.address(), "/", &[("x-dev", "a")]).unwrap();
            (answer.by() == "laptop").then_some(())
        });
        drop(laptop);
    });
}

#[test]
fn two_interrupts_at_once_leave_no_intercept_behind() {
    let (system, laptop) = (System::start(), App::start("laptop"));
    for round in 0..5 {
        let name = format!("mine-{round}");
        let client = system.intercept(&name, laptop.address(), &["--http-header=x-dev=a"]);
        client.signal(Signal::INT);
        client.signal(Signal::INT);
        client.exit();
        until("the agent to serve it no more", || {
            let page = get(system.agent.admin(), "/intercepts", &[]).unwrap();
            let page = String::from_utf8(page.body).unwrap();
            (!page.contains(&name)).then_some(())
        });
    }
    let departed = system.manager.lines("session departed").len();
    assert_eq!(departed, 5, "{:?}", system.manager.lines("session"));
}
