//! Name servers that fail, keep silent, or are several.

use std::time::{Duration, Instant};

use harness::wait::until;

use crate::rig::{NOBODY, NOBODY6, Rig, SEARCH};

/// Time in which the manager has an answer of agents, and some for a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);

/// Tries of a question, because a busy machine may be late once.
const MAX_TRIES: usize = 3;
/// Time in which an agent forgets an answer.
const FORGOTTEN_DELAY: Duration = Duration::from_secs(5);

/// Asks until an answer comes so soon that it is an agent's: the manager asks itself after a second.
fn by_agent(rig: &Rig, name: &str, kind: &str) -> String {
    rig.workstation(async |workstation| {
        let mut late = Vec::new();
        while late.len() < MAX_TRIES {
            let begin = Instant::now();
            let answer = workstation.text(name, kind).await;
            if begin.elapsed() < ANSWER_TIMEOUT {
                return answer;
            }
            late.push(begin.elapsed());
            tokio::time::sleep(FORGOTTEN_DELAY).await;
        }
        panic!("{name}: {late:?}")
    })
}

#[test]
fn another_name_server_takes_over_from_one_that_is_silent() {
    let servers = [
        format!("nameserver {NOBODY}\nnameserver 10.88.0.1\n"),
        format!("nameserver 10.88.0.1\nnameserver {NOBODY6}\n"),
        format!("nameserver {NOBODY}\nnameserver {NOBODY6}\nnameserver fd88::1\n"),
    ];
    for servers in servers {
        let rig = Rig::start(&format!("{servers}{SEARCH}"));
        assert_eq!(
            by_agent(&rig, "web.other.svc.cluster.local.", "A"),
            "10.1.0.2",
            "{servers}"
        );
        assert_eq!(by_agent(&rig, "web.", "AAAA"), "fd01::1", "{servers}");
        assert_eq!(
            by_agent(&rig, "nobody.corp.example.", "A"),
            "NXDOMAIN",
            "{servers}"
        );
        assert_eq!(
            by_agent(&rig, "text.corp.example.", "TXT"),
            "onetwo words",
            "{servers}"
        );
    }
}

#[test]
fn another_name_server_is_asked_where_one_fails() {
    for servers in [["10.88.0.3", "10.88.0.1"], ["fd88::1", "fd88::3"]] {
        let [one, two] = servers;
        let rig = Rig::start(&format!("nameserver {one}\nnameserver {two}\n{SEARCH}"));
        for name in ["web.", "web.other.", "a.b.c.d.e.example."] {
            let expected = match name {
                "web." => "10.1.0.1",
                "web.other." => "10.1.0.2",
                _ => "10.2.0.5",
            };
            assert_eq!(by_agent(&rig, name, "A"), expected, "{name} by {servers:?}");
        }
        assert_eq!(
            by_agent(&rig, "nobody.corp.example.", "MX"),
            "NXDOMAIN",
            "{servers:?}"
        );
    }
}

/// A name whose server is silent has its time and its place, and no other name waits for it.
#[test]
fn a_silent_server_holds_up_its_own_names_alone() {
    let rig = Rig::start(&format!("nameserver 10.88.0.1\n{SEARCH}"));
    rig.workstation(async |workstation| {
        // Fewer than the agent has places for.
        let silent = (0..40).map(|n| {
            let workstation = workstation.clone();
            async move {
                let name = format!("name-{n}.silent.example.");
                workstation.text(&name, "A").await
            }
        });
        let silent = tokio::spawn(futures_util::future::join_all(silent));
        let mut times = Vec::new();
        while !silent.is_finished() {
            let begin = Instant::now();
            // Not in a cache, whatever was asked before.
            let name = format!("pod-{}.web.other.svc.cluster.local.", times.len());
            let answer = workstation.text(&name, "A").await;
            assert_eq!(answer, "NXDOMAIN", "{name}");
            times.push(begin.elapsed());
        }
        // A busy machine may be late once; behind silent questions each one would be.
        times.sort();
        assert!(times[times.len() / 2] < ANSWER_TIMEOUT, "{times:?}");
        let all = silent.await.unwrap();
        assert!(all.iter().all(|answer| answer == "SERVFAIL"), "{all:?}");
    });
}

/// An answer with a TTL of 0 is asked for again each time.
#[test]
fn an_answer_without_a_ttl_is_not_remembered() {
    let rig = Rig::start(&format!("nameserver 10.88.0.1\n{SEARCH}"));
    let brief = "brief.corp.example. A";
    for n in 1..=3 {
        assert_eq!(by_agent(&rig, "lasting.a.b.c.example.", "A"), "10.2.0.6");
        assert_eq!(by_agent(&rig, "brief.corp.example.", "A"), "10.2.0.9");
        until("the server's log", || (rig.asked(brief) >= n).then_some(()));
        assert_eq!(rig.asked(brief), n);
    }
    assert_eq!(rig.asked("lasting.a.b.c.example. A"), 1);
}
