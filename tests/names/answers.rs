//! Answers, record by record: what the stock agent would say, row by row.

use tonic::Code;

use crate::rig::{MANY, Rig, SEARCH, big_text, ips};

/// Name, type, and the records' data or the code.
const ROWS: &[(&str, &str, &str)] = &[
    // One label: the search list alone.
    ("web.", "A", "10.1.0.1"),
    ("web.", "AAAA", "fd01::1"),
    ("pods.", "A", "10.1.1.1, 10.1.1.2, 10.1.1.3"),
    ("corp.", "A", "NXDOMAIN"),
    // Two to four dots: the search list first, then as it is.
    ("web.other.", "A", "10.1.0.2"),
    ("web.shop.", "A", "10.1.0.1"),
    ("web.other.svc.", "A", "10.1.0.2"),
    ("pod-0.pods.", "A", "10.1.1.1"),
    ("corp.example.", "A", "10.2.0.1"),
    ("web.nowhere.", "A", "NXDOMAIN"),
    // More: as it is.
    ("web.other.svc.cluster.local.", "A", "10.1.0.2"),
    ("a.b.c.d.e.example.", "A", "10.2.0.5"),
    ("web.other.svc.cluster.nowhere.", "A", "NXDOMAIN"),
    // A name of the other family exists; one of neither does not, whatever else it has.
    ("web.other.", "AAAA", ""),
    ("only-v6.", "A", ""),
    ("only-v6.", "AAAA", "fd01::6"),
    ("text.corp.example.", "A", "NXDOMAIN"),
    ("nobody.corp.example.", "A", "NXDOMAIN"),
    ("web.", "TXT", "NXDOMAIN"),
    ("web.", "MX", "NXDOMAIN"),
    // Odd names, kept as they were asked.
    ("WEB.", "A", "10.1.0.1"),
    ("Web.Other.SVC.cluster.LOCAL.", "A", "10.1.0.2"),
    ("under_score.", "A", "10.1.0.4"),
    ("under_score.shop.svc.cluster.local.", "A", "10.1.0.4"),
    ("_dmarc.corp.example.", "TXT", "v=DMARC1; p=none"),
    // A datagram is not enough.
    ("big.corp.example.", "TXT", "*"),
    ("many.", "A", "*"),
    // Texts: all strings in one record, and as it is, without the search list.
    ("text.corp.example.", "TXT", "onetwo words"),
    ("texts.corp.example.", "TXT", "a=1b=2"),
    // Aliases: addresses at their end; of the name itself, the last of them.
    ("first.corp.example.", "A", "10.2.0.3"),
    ("first.corp.example.", "AAAA", "fd02::3"),
    ("external.", "A", "10.2.0.3"),
    ("external.", "CNAME", "third.corp.example."),
    ("first.corp.example.", "CNAME", "third.corp.example."),
    ("third.corp.example.", "CNAME", "third.corp.example."),
    ("web.", "CNAME", "web.shop.svc.cluster.local."),
    ("nobody.corp.example.", "CNAME", "NXDOMAIN"),
    ("dangling.corp.example.", "A", "NXDOMAIN"),
    ("dangling.corp.example.", "CNAME", "nobody.corp.example."),
    ("round.corp.example.", "A", "NXDOMAIN"),
    // Other types.
    (
        "corp.example.",
        "MX",
        "10 mx1.corp.example., 20 mx2.corp.example.",
    ),
    ("mail.", "MX", "10 in-cluster.example."),
    ("corp.example.", "NS", "ns.example., ns2.example."),
    (
        "_http._tcp.pods.",
        "SRV",
        "0 33 8080 pod-0.pods.shop.svc.cluster.local., 0 33 8081 pod-1.pods.shop.svc.cluster.local.",
    ),
    (
        "_http._tcp.pods.shop.svc.cluster.local.",
        "SRV",
        "0 33 8080 pod-0.pods.shop.svc.cluster.local., 0 33 8081 pod-1.pods.shop.svc.cluster.local.",
    ),
    ("_http._tcp.web.", "SRV", "NXDOMAIN"),
    ("_http._tcp.nobody.", "SRV", "NXDOMAIN"),
    // Pointers, by both notations.
    (
        "1.0.1.10.in-addr.arpa.",
        "PTR",
        "web.shop.svc.cluster.local.",
    ),
    (
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa.",
        "PTR",
        "web.shop.svc.cluster.local.",
    ),
    (
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.D.F.ip6.arpa.",
        "PTR",
        "web.shop.svc.cluster.local.",
    ),
    ("9.9.9.10.in-addr.arpa.", "PTR", "alias.of.the.pod."),
    ("8.9.9.10.in-addr.arpa.", "PTR", "NXDOMAIN"),
    // The pod's own file of hosts.
    ("web-1.", "A", "10.88.0.2"),
    ("alias.of.the.pod.", "A", "10.9.9.9"),
    ("localhost.", "A", "127.0.0.1"),
    ("localhost.", "AAAA", "::1"),
    ("brief.corp.example.", "A", "10.2.0.9"),
    ("ns.example.", "A", "10.88.0.1"),
    // Nothing that is looked up.
    ("web.", "NAPTR", "NOTIMP"),
    ("web.", "SOA", "NOTIMP"),
    // Failures: the agent says nothing, and the manager, which asks itself, has the same.
    ("corp.broken.example.", "A", "SERVFAIL"),
];

#[test]
fn every_row_is_answered_as_the_stock_agent_answers() {
    let rig = Rig::start(&format!("nameserver 10.88.0.1\n{SEARCH}"));
    let wrong = rig.workstation(async |workstation| {
        let mut wrong = Vec::new();
        for &(name, kind, expected) in ROWS {
            let expected = match name {
                "big.corp.example." => big_text().collect(),
                "many." => many(),
                _ => expected.to_owned(),
            };
            let answer = workstation.text(name, kind).await;
            if answer != expected {
                wrong.push(format!("{name} {kind}: {answer:?}, expected {expected:?}"));
            }
        }
        wrong
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn many() -> String {
    let mut all: Vec<_> = (1..=MANY).map(|n| format!("10.3.0.{n}")).collect();
    all.sort();
    all.join(", ")
}

/// Addresses for newer clients: of the agent by the pod's search list, of the manager without one.
#[test]
fn addresses_alone_are_answered_by_the_agent_and_by_the_manager() {
    let rig = Rig::start(&format!("nameserver fd88::1\n{SEARCH}"));
    let found = |all: &[&str]| Ok(all.iter().map(|ip| (*ip).to_owned()).collect::<Vec<_>>());
    let agent = |name: &str| ips(rig.asked_directly(name));
    assert_eq!(agent("web."), found(&["10.1.0.1", "fd01::1"]));
    assert_eq!(agent("WEB.Other."), found(&["10.1.0.2"]));
    assert_eq!(
        agent("first.corp.example."),
        found(&["10.2.0.3", "fd02::3"])
    );
    assert_eq!(agent("under_score."), found(&["10.1.0.4"]));
    assert_eq!(agent("nobody."), Err(Code::NotFound));
    assert_eq!(agent("text.corp.example."), Err(Code::NotFound));
    assert_eq!(agent("web.broken.example."), Err(Code::Unavailable));
    assert_eq!(agent("web.silent.example."), Err(Code::DeadlineExceeded));
    for name in ["web", "", "."] {
        assert_eq!(agent(name), Err(Code::InvalidArgument), "{name:?}");
    }
    rig.workstation(async |workstation| {
        let manager = async |name: &str| ips(workstation.addresses(name).await);
        assert_eq!(
            manager("web.shop.svc.cluster.local.").await,
            found(&["10.1.0.1", "fd01::1"])
        );
        assert_eq!(
            manager("under_score.shop.svc.cluster.local.").await,
            found(&["10.1.0.4"])
        );
        assert_eq!(manager("web.").await, Err(Code::NotFound));
        assert_eq!(manager("web.broken.example.").await, Err(Code::Unavailable));
        assert_eq!(
            manager("web.silent.example.").await,
            Err(Code::DeadlineExceeded)
        );
    });
}

/// Before agents, as in a namespace without one.
#[test]
fn the_manager_answers_every_type_itself_where_no_agent_is() {
    let rig = Rig::without_agent();
    let rows = [
        ("web.shop.svc.cluster.local.", "AAAA", "fd01::1"),
        ("web.other.svc.cluster.local.", "AAAA", ""),
        ("first.corp.example.", "CNAME", "third.corp.example."),
        ("corp.example.", "NS", "ns.example., ns2.example."),
        ("text.corp.example.", "TXT", "onetwo words"),
        (
            "1.0.1.10.in-addr.arpa.",
            "PTR",
            "web.shop.svc.cluster.local.",
        ),
        ("nobody.corp.example.", "MX", "NXDOMAIN"),
        ("corp.broken.example.", "A", "SERVFAIL"),
        ("corp.silent.example.", "A", "SERVFAIL"),
    ];
    rig.workstation(async |workstation| {
        for (name, kind, expected) in rows {
            assert_eq!(
                workstation.text(name, kind).await,
                expected,
                "{name} {kind}"
            );
        }
    });
}
