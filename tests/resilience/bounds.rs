//! Stalled readers: the agent's memory stays bounded and other callers keep their pace. When the
//! readers continue, they get everything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::apps::{field, raw, read_head};
use harness::caller::Caller;
use harness::process::Process;
use harness::system::System;
use harness::wait::{SetAtEnd, WAIT_TIMEOUT, until};

use crate::rig::{Way, memory_kib, scale, towards};

/// Maximum growth of the agent's memory, whatever is offered.
const MOST_KIB: u64 = 16 << 10;
const CHUNK: usize = 64 << 10;

/// Kind of data offered to a stalled reader.
#[derive(Clone, Copy, Debug)]
enum Offer {
    /// An answer of known length, to a caller.
    LengthDown,
    /// An answer in chunks, to a caller.
    ChunkedDown,
    /// A request of known length, to a server.
    LengthUp,
    /// A request in chunks, to a server.
    ChunkedUp,
    /// Opaque bytes, to a caller.
    OpaqueDown,
    /// Opaque bytes, to a server.
    OpaqueUp,
}

const HTTP: [Offer; 4] = [
    Offer::LengthDown,
    Offer::ChunkedDown,
    Offer::LengthUp,
    Offer::ChunkedUp,
];
const OPAQUE: [Offer; 2] = [Offer::OpaqueDown, Offer::OpaqueUp];

/// Parameters shared by all ends.
#[derive(Clone)]
struct Plan {
    /// Bytes in each offer.
    size: u64,
    /// Readers stall until it is set.
    go_on: Arc<AtomicBool>,
    /// Bytes that writers got rid of.
    written: Arc<AtomicU64>,
}

impl Plan {
    fn new(size: u64) -> Self {
        Self {
            size,
            go_on: Arc::default(),
            written: Arc::default(),
        }
    }

    fn stall(&self) {
        while !self.go_on.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write_body(&self, to: &mut TcpStream, chunked: bool) -> io::Result<()> {
        let block = vec![b'x'; CHUNK];
        let mut left = self.size;
        while left > 0 {
            let count = left.min(CHUNK as u64) as usize;
            if chunked {
                to.write_all(format!("{count:x}\r\n").as_bytes())?;
            }
            to.write_all(&block[..count])?;
            if chunked {
                to.write_all(b"\r\n")?;
            }
            left -= count as u64;
            self.written.fetch_add(count as u64, Ordering::Relaxed);
        }
        if chunked {
            to.write_all(b"0\r\n\r\n")
        } else {
            Ok(())
        }
    }
}

/// Counts a body that is too large to be kept.
fn count_body(from: &mut impl BufRead, head: &str) -> io::Result<u64> {
    if field(head, "transfer-encoding").is_none() {
        let length: u64 = field(head, "content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        return io::copy(&mut from.take(length), &mut io::sink());
    }
    let mut count = 0;
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(|_| io::ErrorKind::InvalidData)?;
        count += io::copy(&mut from.take(size), &mut io::sink())?;
        from.read_line(&mut line)?;
        if size == 0 {
            return Ok(count);
        }
    }
}

/// Serves all offers, and `/` at once.
fn server(plan: Plan) -> SocketAddr {
    raw(move |stream| {
        // However it ends, the other side tells.
        let _ = serve(&plan, stream);
    })
}

fn serve(plan: &Plan, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.as_str() {
            "FILL\n" => return plan.write_body(&mut stream, false),
            "SINK\n" => {
                plan.stall();
                let count = io::copy(&mut reader, &mut io::sink())?;
                return stream.write_all(count.to_string().as_bytes());
            }
            _ => {}
        }
        let head = line + &read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match head.split(' ').nth(1).unwrap_or_default() {
            "/length" => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n",
                    plan.size
                )?;
                plan.write_body(&mut stream, false)?;
            }
            "/chunked" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                plan.write_body(&mut stream, true)?;
            }
            "/sink" => {
                plan.stall();
                let count = count_body(&mut reader, &head)?.to_string();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{count}",
                    count.len()
                )?;
            }
            _ => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?,
        }
    }
}

/// Makes an offer, or takes one and stalls; returns how much arrived.
fn call(plan: &Plan, offer: Offer, address: SocketAddr, headers: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(address)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let head =
        |line: &str, more: &str| format!("{line} HTTP/1.1\r\nhost: x\r\n{headers}{more}\r\n");
    match offer {
        Offer::LengthDown | Offer::ChunkedDown => {
            let path = if matches!(offer, Offer::LengthDown) {
                "GET /length"
            } else {
                "GET /chunked"
            };
            stream.write_all(head(path, "").as_bytes())?;
            plan.stall();
            let head = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            count_body(&mut reader, &head)
        }
        Offer::LengthUp | Offer::ChunkedUp => {
            let chunked = matches!(offer, Offer::ChunkedUp);
            let length = format!("content-length: {}\r\n", plan.size);
            let framing = if chunked {
                "transfer-encoding: chunked\r\n"
            } else {
                &length
            };
            stream.write_all(head("POST /sink", framing).as_bytes())?;
            plan.write_body(&mut stream, chunked)?;
            let head = read_head(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let body = harness::apps::read_body(&mut reader, &head)?;
            String::from_utf8_lossy(&body)
                .parse()
                .map_err(|_| io::ErrorKind::InvalidData.into())
        }
        Offer::OpaqueDown => {
            stream.write_all(b"FILL\n")?;
            plan.stall();
            io::copy(&mut reader, &mut io::sink())
        }
        Offer::OpaqueUp => {
            stream.write_all(b"SINK\n")?;
            plan.write_body(&mut stream, false)?;
            stream.shutdown(Shutdown::Write)?;
            let mut count = String::new();
            reader.read_to_string(&mut count)?;
            count.parse().map_err(|_| io::ErrorKind::InvalidData.into())
        }
    }
}

/// Callers that ask on and on, each counting.
struct Pace {
    counts: Vec<AtomicU64>,
    stop: AtomicBool,
}

impl Pace {
    /// Requests until `stop`; every failure is one of the test.
    fn ask(&self, number: usize, address: SocketAddr, headers: &[(&str, &str)]) {
        let mut caller = Caller::connect(address).unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            let answer = caller
                .get("/", headers)
                .unwrap_or_else(|error| panic!("caller {number}: {error}"));
            assert_eq!(answer.status, 200);
            self.counts[number].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn now(&self) -> Vec<u64> {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect()
    }

    /// Requests a second during `time`, while `watch` is called again and again; every caller has
    /// to get on.
    fn during(&self, time: Duration, mut watch: impl FnMut()) -> f64 {
        let (before, begin) = (self.now(), Instant::now());
        let get_on = || {
            before
                .iter()
                .zip(self.now())
                .all(|(before, now)| now >= before + 5)
        };
        while begin.elapsed() < time || !get_on() {
            watch();
            std::thread::sleep(Duration::from_millis(50));
            assert!(
                begin.elapsed() < time + WAIT_TIMEOUT,
                "held up: {before:?} answers, later {:?}",
                self.now()
            );
        }
        let after = self.now();
        (after.iter().sum::<u64>() - before.iter().sum::<u64>()) as f64
            / begin.elapsed().as_secs_f64()
    }
}

/// Lets readers of all `offers` stall, several of each, and watches the agent and the other callers
/// meanwhile.
fn stall(way: Way, filter: &[&str], offers: &[Offer]) {
    let time = Duration::from_secs(scale("BOUNDED_SECONDS", 3));
    let plan = Plan::new(scale("BOUNDED_MIB", 64) << 20);
    let (system, _client): (System, Option<Process>) = towards(server(plan.clone()), way, filter);
    let address = system.address();
    let (headers, matching): (&str, &[_]) = if filter.is_empty() {
        ("", &[])
    } else {
        ("x-dev: a\r\n", &[("x-dev", "a")])
    };
    let pace = Pace {
        counts: (0..4).map(|_| AtomicU64::new(0)).collect(),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let pace = &pace;
            scope.spawn(move || {
                pace.ask(
                    number,
                    address,
                    if number % 2 == 0 { matching } else { &[] },
                )
            });
        }
        let _stop = SetAtEnd(&pace.stop);
        let _go_on = SetAtEnd(&plan.go_on);
        until("the callers", || {
            pace.now().iter().all(|count| *count > 20).then_some(())
        });
        let undisturbed = pace.during(Duration::from_secs(1), || {});
        let before = memory_kib(&system.agent.process);
        let calls: Vec<_> = offers
            .iter()
            .map(|offer| {
                let plan = &plan;
                (
                    offer,
                    scope.spawn(move || call(plan, *offer, address, headers)),
                )
            })
            .collect();
        let mut last = (0, Instant::now());
        until("the readers to be what everything waits for", || {
            let written = plan.written.load(Ordering::Relaxed);
            if written != last.0 {
                last = (written, Instant::now());
            }
            (written > 0 && last.1.elapsed() > Duration::from_millis(700)).then_some(())
        });
        let mut most = 0;
        let meanwhile = pace.during(time, || most = most.max(memory_kib(&system.agent.process)));
        let written = plan.written.load(Ordering::Relaxed);
        assert!(
            written < plan.size * offers.len() as u64 / 2,
            "{written} bytes were taken for readers that read nothing"
        );
        let grown = most.saturating_sub(before);
        eprintln!(
            "{way:?} {offers:?}: {} MiB offered in each, {} MiB taken in all, {time:?} stalled: \
            agent {before} KiB, at most {grown} KiB more; others {undisturbed:.0}/s before, \
            {meanwhile:.0}/s meanwhile ({:.2})",
            plan.size >> 20,
            written >> 20,
            meanwhile / undisturbed
        );
        assert!(
            grown < MOST_KIB,
            "the agent has grown from {before} KiB by {grown} KiB"
        );
        plan.go_on.store(true, Ordering::Relaxed);
        for (offer, call) in calls {
            let arrived = call
                .join()
                .unwrap()
                .unwrap_or_else(|error| panic!("{offer:?}: {error}"));
            assert_eq!(arrived, plan.size, "{offer:?}");
        }
    });
}

#[test]
fn stalled_callers_and_a_stalled_app_cost_a_few_buffers_and_slow_nobody_else() {
    stall(Way::App, &[], &[&HTTP[..], &OPAQUE].concat());
}

#[test]
fn a_workstation_that_stalls_at_its_own_tunnel_costs_a_few_buffers_and_slows_nobody_else() {
    stall(Way::Direct, &["--http-header=x-dev=a"], &HTTP);
    stall(Way::Direct, &[], &OPAQUE);
}

#[test]
fn a_workstation_that_stalls_behind_the_manager_costs_a_few_buffers_and_slows_nobody_else() {
    stall(Way::Manager, &["--http-header=x-dev=a"], &HTTP);
    stall(Way::Manager, &[], &OPAQUE);
}
