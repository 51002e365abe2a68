//! A tunnel lost during an exchange: the caller sees a break, never a truncated success; the app
//! never sees a request that a workstation has received; the next request is answered.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use harness::apps::{raw, read_head};
use harness::caller::get;
use harness::process::Process;
use harness::system::System;
use harness::wait::until;

use crate::rig::{Way, connect, each, patient, reset};

const MATCHING: &[(&str, &str)] = &[("x-dev", "a")];
const HALF: usize = 300_000;

/// Behaviour of a laptop after the first half of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Then {
    Wait = 0,
    GoOn = 1,
    End = 2,
    Reset = 3,
}

/// A developer's server that sends half of an answer and then waits for a word: `/length`,
/// `/chunked` and `/close` by how the answer ends; `/slow` reads a request's body slowly instead.
/// `/` is answered at once.
#[derive(Clone)]
struct Laptop {
    address: SocketAddr,
    then: Arc<AtomicU8>,
    requests: Arc<AtomicU64>,
    /// Bytes of bodies read.
    read: Arc<AtomicU64>,
}

impl Laptop {
    fn start() -> Self {
        let (then, requests, read) = (
            Arc::<AtomicU8>::default(),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicU64>::default(),
        );
        let state = (then.clone(), requests.clone(), read.clone());
        let address = raw(move |stream| {
            // However it ends, the caller tells.
            let _ = serve(stream, &state.0, &state.1, &state.2);
        });
        Self {
            address,
            then,
            requests,
            read,
        }
    }

    fn then(&self, what: Then) {
        self.then.store(what as u8, Ordering::SeqCst);
    }
}

fn serve(
    mut stream: TcpStream,
    then: &AtomicU8,
    requests: &AtomicU64,
    read: &AtomicU64,
) -> io::Result<()> {
    patient(&stream);
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(head) = read_head(&mut reader)? {
        requests.fetch_add(1, Ordering::SeqCst);
        let half = vec![b'x'; HALF];
        let chunk = [format!("{HALF:x}\r\n").as_bytes(), &half, b"\r\n"].concat();
        let (head, body, end): (String, &[u8], &[u8]) =
            match head.split(' ').nth(1).unwrap_or_default() {
                "/length" => (format!("content-length: {}\r\n", 2 * HALF), &half, b""),
                "/chunked" => (
                    "transfer-encoding: chunked\r\n".to_owned(),
                    &chunk,
                    b"0\r\n\r\n",
                ),
                "/close" => ("connection: close\r\n".to_owned(), &half, b""),
                "/slow" => {
                    let mut block = [0; 1000];
                    loop {
                        reader.read_exact(&mut block)?;
                        read.fetch_add(1000, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(10));
                        if then.load(Ordering::SeqCst) == Then::Reset as u8 {
                            reset(&stream);
                            return Ok(());
                        }
                    }
                }
                _ => {
                    stream.write_all(
                        b"HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\ncontent-length: 0\r\n\r\n",
                    )?;
                    continue;
                }
            };
        stream.write_all(
            format!("HTTP/1.1 200 OK\r\nx-answered-by: laptop\r\n{head}\r\n").as_bytes(),
        )?;
        stream.write_all(body)?;
        while then.load(Ordering::SeqCst) == Then::Wait as u8 {
            std::thread::sleep(Duration::from_millis(5));
        }
        match then.load(Ordering::SeqCst) {
            3 => {
                reset(&stream);
                return Ok(());
            }
            2 => return Ok(()),
            _ => stream.write_all(&[body, end].concat())?,
        }
        if end.is_empty() {
            return Ok(());
        }
    }
    Ok(())
}

/// An answer that has come half way.
struct HalfWay {
    stream: TcpStream,
    path: &'static str,
}

impl HalfWay {
    fn begin(address: SocketAddr, path: &'static str) -> Self {
        let mut stream = connect(address);
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-dev: a\r\n\r\n").as_bytes())
            .unwrap();
        let mut reader = BufReader::with_capacity(1, stream.try_clone().unwrap());
        let head = read_head(&mut reader).unwrap().unwrap();
        assert!(head.contains("x-answered-by: laptop"), "{head}");
        let mut some = vec![0; HALF / 2];
        stream.read_exact(&mut some).unwrap();
        Self { stream, path }
    }

    /// Reads to the end; whether it was a break.
    fn breaks(mut self) -> bool {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        assert!(rest.len() < 2 * HALF, "{}: a whole answer", self.path);
        end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    /// Reads to the end, which has to be a proper one.
    fn ends_whole(mut self) {
        let framing = if self.path == "/chunked" {
            2 * "493e0\r\n\r\n".len() + "0\r\n\r\n".len()
        } else {
            0
        };
        let mut rest = vec![0; 2 * HALF - HALF / 2 + framing];
        self.stream
            .read_exact(&mut rest)
            .unwrap_or_else(|error| panic!("{}: {error}", self.path));
        assert!(self.path != "/chunked" || rest.ends_with(b"x\r\n0\r\n\r\n"));
    }
}

const PATHS: [&str; 3] = ["/length", "/chunked", "/close"];

struct Scene {
    system: System,
    laptop: Laptop,
    client: Process,
}

impl Scene {
    fn set(way: Way) -> Self {
        let (system, laptop) = (System::start(), Laptop::start());
        let client = system.intercept(
            "mine",
            laptop.address,
            &way.flags(&["--http-header=x-dev=a"]),
        );
        Self {
            system,
            laptop,
            client,
        }
    }

    fn half_way(&self) -> Vec<HalfWay> {
        PATHS
            .map(|path| HalfWay::begin(self.system.address(), path))
            .into()
    }

    /// Checks that every response breaks, and that no request went to the app.
    fn all_break(&self, answers: Vec<HalfWay>, why: &str) {
        for answer in answers {
            let path = answer.path;
            assert!(answer.breaks(), "{path}: {why}");
        }
        assert_eq!(
            (
                self.system.app.served(),
                self.laptop.requests.load(Ordering::SeqCst)
            ),
            (0, 3),
            "{why}"
        );
        until("lost tunnels to be counted", || {
            (self.system.agent.stat(".tunnel_failures") >= 3).then_some(())
        });
    }

    fn next_is_answered_by(&self, name: &str) {
        until(&format!("{name} to answer"), || {
            (get(self.system.address(), "/", MATCHING).unwrap().by() == name).then_some(())
        });
    }
}

#[test]
fn a_client_that_is_killed_amid_an_answer_breaks_it_and_the_app_has_the_next_request() {
    each(&[Way::Direct, Way::Manager], |way| {
        let scene = Scene::set(way);
        let answers = scene.half_way();
        scene.client.kill();
        scene.all_break(answers, &format!("killed, {way:?}"));
        scene.next_is_answered_by("app");
    });
}

#[test]
fn a_client_that_is_killed_amid_a_request_breaks_it_and_nothing_is_sent_twice() {
    each(&[Way::Direct, Way::Manager], |way| {
        let scene = Scene::set(way);
        for framing in ["content-length: 100000000", "transfer-encoding: chunked"] {
            let mut stream = connect(scene.system.address());
            let before = scene.laptop.read.load(Ordering::SeqCst);
            stream
                .write_all(
                    format!("POST /slow HTTP/1.1\r\nx-dev: a\r\n{framing}\r\n\r\n").as_bytes(),
                )
                .unwrap();
            if framing.ends_with("chunked") {
                stream.write_all(b"5f5e100\r\n").unwrap();
            }
            let mut writer = stream.try_clone().unwrap();
            // Goes on until it breaks.
            let writing = std::thread::spawn(move || {
                let block = vec![b'x'; 10_000];
                (0..10_000)
                    .try_for_each(|_| writer.write_all(&block))
                    .unwrap_err()
                    .kind()
            });
            until("some of it to arrive", || {
                (scene.laptop.read.load(Ordering::SeqCst) > before + 5000).then_some(())
            });
            if framing.ends_with("chunked") {
                scene.client.kill();
            } else {
                // For the caller it is the same when only the developer's server goes.
                scene.laptop.then(Then::Reset);
            }
            let written = writing.join().unwrap();
            assert!(
                matches!(written, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "{written:?} {way:?} {framing}"
            );
            let mut rest = Vec::new();
            // The reset may have been told to the writing half already.
            let _ = stream.read_to_end(&mut rest);
            assert_eq!(String::from_utf8_lossy(&rest), "", "no answer, {way:?}");
            scene.laptop.then(Then::Wait);
        }
        assert_eq!(
            (
                scene.system.app.served(),
                scene.laptop.requests.load(Ordering::SeqCst)
            ),
            (0, 2)
        );
        assert_eq!(
            scene.system.app.failures(),
            [""; 0],
            "nor has the app seen a part of it"
        );
        scene.next_is_answered_by("app");
    });
}

#[test]
fn a_local_server_that_dies_amid_an_answer_breaks_it() {
    each(&[Way::Direct, Way::Manager], |way| {
        for then in [Then::Reset, Then::End] {
            let scene = Scene::set(way);
            let mut answers = scene.half_way();
            scene.laptop.then(then);
            if then == Then::End {
                // Its close is the proper end of the one that has no other.
                let until_close = answers.pop().unwrap();
                assert!(!until_close.breaks(), "{way:?}");
                for answer in answers {
                    let path = answer.path;
                    assert!(answer.breaks(), "{path}: {then:?}, {way:?}");
                }
            } else {
                scene.all_break(answers, &format!("{then:?}, {way:?}"));
            }
            assert_eq!(
                (
                    scene.system.app.served(),
                    scene.laptop.requests.load(Ordering::SeqCst)
                ),
                (0, 3)
            );
            scene.next_is_answered_by("laptop");
        }
    });
}

#[test]
fn a_manager_that_is_killed_breaks_what_it_carries_and_nothing_else() {
    let scene = Scene::set(Way::Manager);
    let answers = scene.half_way();
    scene.system.manager.kill();
    scene.all_break(answers, "the manager was killed");
    scene.next_is_answered_by("app");

    let scene = Scene::set(Way::Direct);
    let answers = scene.half_way();
    scene.system.manager.kill();
    scene.client.line("manager=lost");
    scene.laptop.then(Then::GoOn);
    answers.into_iter().for_each(HalfWay::ends_whole);
    assert_eq!(scene.system.agent.stat(".tunnel_failures"), 0);
    scene.next_is_answered_by("laptop");
}
