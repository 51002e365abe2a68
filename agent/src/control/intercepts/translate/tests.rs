use super::*;
use traffic_proto::manager::SessionInfo;
use traffic_proto::manager::{InterceptInfo, InterceptSpec};
use traffic_proto::sidecar::{self, Role};

use std::sync::Arc;

use traffic_core::routing::{Decision, Request, State};

mod carried;
mod guard_rails;

struct Sent<'s>(&'s str, Vec<(&'s str, &'s str)>);

impl Request for Sent<'_> {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn target(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn visit_headers<'a>(&'a self, visit: &mut dyn FnMut(&'a [u8], &'a [u8])) {
        self.1
            .iter()
            .for_each(|(n, v)| visit(n.as_bytes(), v.as_bytes()));
    }
}

const CONFIG: &str = r"
agentName: web
namespace: shop
managerHost: traffic-manager.ambassador
containers:
- name: app
  envPrefix: A_
  mountPoint: /tel_app_mounts/app
  intercepts:
  - {containerPortName: http, serviceName: web, serviceUID: u1, servicePortName: http, servicePort: 80,
     protocol: TCP, containerPort: 8080, agentPort: 9900}
  - {containerPortName: http, serviceName: web, serviceUID: u1, servicePortName: alt, servicePort: 81,
     protocol: TCP, containerPort: 8080, agentPort: 9900}
  - {containerPortName: dns, serviceName: web, serviceUID: u1, servicePortName: dns, servicePort: 53,
     protocol: UDP, containerPort: 5353, agentPort: 9901}
- name: side
  envPrefix: B_
  mountPoint: /tel_app_mounts/side
  intercepts:
  - {containerPortName: grpc, protocol: TCP, containerPort: 9090, agentPort: 9902}
";

struct Bench {
    rules: Rules,
    tables: Vec<RouteTable>,
    readability: Vec<Readability>,
    now: Instant,
    wall: SystemTime,
}

impl Bench {
    fn new() -> Self {
        Self::remembering(None)
    }

    fn remembering(remember: Option<Duration>) -> Self {
        Self::of(CONFIG, remember)
    }

    fn of(config: &str, remember: Option<Duration>) -> Self {
        let sidecar = sidecar::from_yaml(config, "test", Role::Agent).unwrap();
        let targets = sidecar.targets();
        let tables = targets.iter().map(|_| RouteTable::default()).collect();
        let containers = sidecar.containers.iter().map(|c| c.name.clone()).collect();
        let rules = Rules::new("web", "shop", containers, targets, remember);
        Self {
            rules,
            tables,
            readability: vec![Readability::Readable; 3],
            now: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn shown(&mut self, infos: &[InterceptInfo]) -> Translation {
        let shown = infos
            .iter()
            .map(|i| (i.id.clone(), Arc::new(Shown::from(i.clone()))));
        let snapshot = shown.collect();
        let mut outcome = self
            .rules
            .apply(&snapshot, &self.readability, (self.now, self.wall));
        self.take(std::mem::take(&mut outcome.tables));
        outcome
    }

    fn take(&mut self, tables: Vec<(usize, RouteTable)>) {
        for (index, table) in tables {
            self.tables[index] = table;
        }
    }

    fn routed(&self, port: usize) -> Vec<(&str, State)> {
        self.tables[port]
            .entries()
            .iter()
            .map(|e| (e.intercept.id.as_str(), e.state))
            .collect()
    }

    fn active(&self, port: usize) -> Vec<&str> {
        self.routed(port)
            .into_iter()
            .filter(|(_, s)| *s == State::Active)
            .map(|(id, _)| id)
            .collect()
    }
}

/// Builds an intercept; `spec` is `mechanism identifier clause…`: a clause with `=` is a header,
/// one with `/` a path.
fn info(id: &str, disposition: Disposition, spec: &str) -> InterceptInfo {
    let mut words = spec.split_whitespace();
    let mut spec = InterceptSpec {
        name: id.to_owned(),
        client: format!("{id}@box"),
        agent: "web".to_owned(),
        namespace: "shop".to_owned(),
        mechanism: words.next().unwrap_or("tcp").to_owned(),
        target_host: "127.0.0.1".to_owned(),
        target_port: 8000,
        service_uid: "u1".to_owned(),
        service_name: "web".to_owned(),
        port_identifier: words.next().unwrap_or("http").to_owned(),
        ..InterceptSpec::default()
    };
    for clause in words {
        match clause.split_once('=') {
            Some((name, value)) => {
                spec.header_filters
                    .insert(name.to_owned(), value.to_owned());
            }
            None => spec.path_filters.push(clause.to_owned()),
        }
    }
    let id = format!("session-{id}:{id}");
    let client_session = Some(SessionInfo {
        session_id: id.split(':').next().unwrap().to_owned(),
        ..Default::default()
    });
    InterceptInfo {
        id,
        disposition: disposition.into(),
        spec: Some(spec),
        client_session,
        ..Default::default()
    }
}

fn waiting(id: &str, spec: &str) -> InterceptInfo {
    info(id, Disposition::Waiting, spec)
}

fn active(id: &str, spec: &str) -> InterceptInfo {
    info(id, Disposition::Active, spec)
}

fn message(review: &Review) -> &str {
    match &review.verdict {
        Verdict::Accept { .. } => "accepted",
        Verdict::Refuse { message, .. } => message,
    }
}

fn only_message(outcome: &Translation) -> String {
    assert_eq!(outcome.reviews.len(), 1, "{:?}", outcome.reviews);
    message(&outcome.reviews[0]).to_owned()
}

#[test]
fn a_waiting_intercept_is_accepted_and_routed_only_once_it_is_shown_active() {
    let mut bench = Bench::new();
    let outcome = bench.shown(&[waiting("a", "http http x-dev=a")]);
    assert_eq!(only_message(&outcome), "accepted");
    assert_eq!(
        outcome.reviews[0].description,
        "HTTP requests with header x-dev: a"
    );
    assert!(bench.active(0).is_empty());
    let outcome = bench.shown(&[active("a", "http http x-dev=a")]);
    assert!(outcome.reviews.is_empty());
    assert_eq!(bench.active(0), ["session-a:a"]);
    let intercept = Arc::clone(&bench.tables[0].entries()[0].intercept);
    assert_eq!(
        (intercept.client_session.as_str(), intercept.target_port),
        ("session-a", 8000)
    );
    bench.shown(&[]);
    assert!(bench.active(0).is_empty());
}

#[test]
fn an_unchanged_snapshot_changes_no_table_and_keeps_the_counters() {
    let mut bench = Bench::new();
    bench.shown(&[active("a", "http http x-dev=a")]);
    let stats = Arc::clone(&bench.tables[0].entries()[0].intercept.stats);
    stats.hit(1);
    let snapshot = [active("a", "http http x-dev=a")]
        .into_iter()
        .map(|i| (i.id.clone(), Arc::new(Shown::from(i))))
        .collect();
    assert!(
        bench
            .rules
            .apply(&snapshot, &[], (bench.now, bench.wall))
            .tables
            .is_empty()
    );
    bench.shown(&[active("a", "http http x-dev=b")]);
    assert!(
        Arc::ptr_eq(&stats, &bench.tables[0].entries()[0].intercept.stats),
        "counters survive a changed spec"
    );
    let Decision::Client(_) = bench.tables[0].decide(&Sent("/", vec![("x-dev", "b")])) else {
        panic!("not routed")
    };
}

#[test]
fn several_developers_share_a_port() {
    let mut bench = Bench::new();
    let outcome = bench.shown(&[
        active("a", "http http x-dev=a"),
        active("b", "http http x-dev=b"),
        waiting("c", "http http :path-prefix:/c"),
        waiting("d", "http http x-dev=b"),
    ]);
    assert_eq!(bench.active(0), ["session-a:a", "session-b:b"]);
    let messages: Vec<_> = outcome.reviews.iter().map(message).collect();
    assert_eq!(
        messages,
        [
            "accepted",
            "Conflicts with the currently-served intercept \"session-b:b\" of b@box: the header \
            filters of one include those of the other (held for 0ns)"
        ]
    );
}

#[test]
fn every_waiting_order_gives_the_verdict_the_rules_ask_for() {
    let accepted = "accepted";
    let rows: &[(&[&str], &[&str])] = &[
        (
            &["tcp http", "tcp http"],
            &[
                accepted,
                "Conflicts with the currently-waiting-to-be-served intercept \"session-0:0\"",
            ],
        ),
        (&["tcp http", "tcp grpc"], &[accepted, accepted]),
        (
            &["http http x=a", "tcp http"],
            &[accepted, "without filters"],
        ),
        (
            &["tcp http", "http http x=a"],
            &[accepted, "it has no filters"],
        ),
        (&["http http x=a", "http http x=b"], &[accepted, accepted]),
        (
            &["http http x=^a", "http http x=^b"],
            &[accepted, "include those"],
        ),
        (
            &["http http x=a /p", "http http x=a /q"],
            &[accepted, accepted],
        ),
        (&["http http x=a", "http http /p"], &[accepted, accepted]),
        (
            &["http http /p", "http http :path-prefix:/"],
            &[accepted, "the paths overlap"],
        ),
        (
            &["http http x=a", "http alt x=a"],
            &[accepted, "include those"],
        ),
    ];
    for (specs, want) in rows {
        let mut bench = Bench::new();
        let infos: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                let mut info = waiting(&i.to_string(), spec);
                if spec.contains("grpc") {
                    let spec = info.spec.as_mut().unwrap();
                    (spec.service_name, spec.service_uid) = (String::new(), String::new());
                }
                info
            })
            .collect();
        let outcome = bench.shown(&infos);
        let messages: Vec<_> = outcome.reviews.iter().map(message).collect();
        assert_eq!(messages.len(), want.len(), "{specs:?}");
        for (got, want) in messages.iter().zip(*want) {
            assert!(got.contains(want), "{specs:?}: {got} should contain {want}");
        }
    }
}

#[test]
fn a_tcp_intercept_is_chosen_as_the_stock_agent_chooses() {
    let mut bench = Bench::new();
    bench.shown(&[waiting("b", "tcp")]);
    let outcome = bench.shown(&[waiting("a", "tcp"), active("b", "tcp")]);
    assert_eq!(
        only_message(&outcome),
        "Conflicts with the currently-served intercept \"session-b:b\""
    );
    assert_eq!(bench.active(0), ["session-b:b"]);
    // Another replica refused the chosen one: it keeps its place, unrouted.
    let outcome = bench.shown(&[
        waiting("a", "tcp"),
        info("b", Disposition::AgentError, "tcp"),
    ]);
    assert_eq!(
        only_message(&outcome),
        "Conflicts with the currently-waiting-to-be-served intercept \"session-b:b\""
    );
    assert!(bench.active(0).is_empty());
    // The snapshot that drops it adopts no other active one; the next does.
    bench.shown(&[active("a", "tcp")]);
    assert!(bench.active(0).is_empty());
    bench.shown(&[active("a", "tcp")]);
    assert_eq!(bench.active(0), ["session-a:a"]);
}

#[test]
fn what_another_replica_accepted_is_served_here_too() {
    let mut bench = Bench::new();
    bench.shown(&[waiting("b", "http http x=a")]);
    bench.shown(&[
        active("a", "http http x=a"),
        info("b", Disposition::AgentError, "http http x=a"),
    ]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    let mut bench = Bench::new();
    bench.shown(&[waiting("b", "http http x=a")]);
    let outcome = bench.shown(&[active("a", "http http x=a"), waiting("b", "http http x=a")]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    assert!(
        only_message(&outcome)
            .starts_with("Conflicts with the currently-served intercept \"session-a:a\"")
    );
}

#[test]
fn intercepts_in_error_or_removed_are_neither_routed_nor_reviewed() {
    for disposition in [
        Disposition::AgentError,
        Disposition::Removed,
        Disposition::NoAgent,
    ] {
        let mut bench = Bench::new();
        let outcome = bench.shown(&[
            info("a", disposition, "tcp"),
            info("b", disposition, "http http x=a"),
        ]);
        assert!(
            outcome.reviews.is_empty() && bench.active(0).is_empty(),
            "{disposition:?}"
        );
    }
}

#[test]
fn what_cannot_be_served_is_refused_with_what_to_do() {
    let grpc = |info: &mut InterceptInfo| info.spec.as_mut().unwrap().service_name.clear();
    type Change<'c> = &'c dyn Fn(&mut InterceptInfo);
    let rows: &[(&str, Change<'_>, bool, &str)] = &[
        (
            "tcp nosuch",
            &|_| {},
            false,
            "no port nosuch of service web in this agent's configuration; it has \
            8080/TCP (web:http) (web:alt), 5353/UDP (web:dns), 9090/TCP (grpc)",
        ),
        (
            "tcp http/UDP",
            &|_| {},
            false,
            "no port http/UDP of service web in this agent's configuration; it has 8080/TCP",
        ),
        (
            "tcp dns/UDP",
            &|i| i.spec.as_mut().unwrap().wiretap = true,
            false,
            "port 5353/UDP: a wiretap copies TCP connections and HTTP requests, no datagrams",
        ),
        (
            "tcp http",
            &|i| i.spec.as_mut().unwrap().container_name = "nope".to_owned(),
            false,
            "No match for container \"nope\"",
        ),
        (
            "quic http",
            &|_| {},
            false,
            "mechanism \"quic\" is not known to this agent; it offers tcp and http",
        ),
        (
            "http dns/UDP x=a",
            &|_| {},
            false,
            "port 5353/UDP carries no HTTP requests",
        ),
        (
            "http http :path-regex:(",
            &|_| {},
            true,
            "path filter \":path-regex:(\": error parsing regexp: missing closing ): `(`",
        ),
        (
            "tcp http",
            &|i| i.spec.as_mut().unwrap().target_port = 0,
            true,
            "0 is not a port number of a workstation",
        ),
        (
            "http http",
            &|i| i.spec.as_mut().unwrap().mechanism_args = vec!["--colour=red".to_owned()],
            true,
            "\"--colour=red\" is not known",
        ),
        ("tcp http", &grpc, false, "accepted"),
    ];
    for (spec, change, bad, want) in rows {
        let mut info = waiting("a", spec);
        change(&mut info);
        let mut bench = Bench::new();
        let mut outcome = bench.shown(&[info.clone()]);
        if outcome.reviews.is_empty() {
            // Perhaps another pod of the workload knows the port.
            bench.now += STRANGER_GRACE;
            outcome = bench.shown(&[info]);
        }
        let got = only_message(&outcome);
        assert!(got.contains(want), "{spec}: {got}");
        if let Verdict::Refuse { bad_args, .. } = &outcome.reviews[0].verdict {
            assert_eq!(bad_args, bad, "{spec}: {got}");
        }
    }
    let huge = format!("x={}", "(a|b).".repeat(2000));
    let outcome = Bench::new().shown(&[waiting("a", &format!("http http {huge}"))]);
    assert!(only_message(&outcome).contains("the limit is 8192 bytes"));
}

#[test]
fn an_intercept_about_a_port_of_other_pods_is_left_to_them_for_a_while() {
    let stranger = waiting("a", "tcp nosuch");
    let mut bench = Bench::new();
    let start = bench.now;
    let first = bench.shown(std::slice::from_ref(&stranger));
    assert!(first.reviews.is_empty());
    assert_eq!(first.look_again, Some(start + STRANGER_GRACE));
    bench.now += STRANGER_GRACE / 2;
    assert!(
        bench
            .shown(std::slice::from_ref(&stranger))
            .reviews
            .is_empty()
    );
    // Another pod has accepted it; the next one of that name starts anew.
    bench.shown(&[active("a", "tcp nosuch")]);
    bench.now += STRANGER_GRACE;
    assert!(
        bench
            .shown(std::slice::from_ref(&stranger))
            .reviews
            .is_empty()
    );
    bench.now += STRANGER_GRACE;
    let message = only_message(&bench.shown(&[stranger]));
    assert!(message.starts_with("no port nosuch"), "{message}");
}

#[test]
fn a_port_that_nobody_names_is_the_only_one() {
    let unnamed = || {
        let mut info = active("a", "http http x=a");
        let spec = info.spec.as_mut().unwrap();
        spec.port_identifier.clear();
        spec.service_name.clear();
        spec.service_uid.clear();
        info
    };
    let (several, _) = CONFIG.split_once("  - {containerPortName: dns").unwrap();
    let (one, _) = several.rsplit_once("  - {").unwrap();
    let mut bench = Bench::of(one, None);
    bench.shown(&[unnamed()]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    let mut waiting = unnamed();
    waiting.set_disposition(Disposition::Waiting);
    let mut bench = Bench::new();
    bench.shown(std::slice::from_ref(&waiting));
    bench.now += STRANGER_GRACE;
    let message = only_message(&bench.shown(&[waiting]));
    assert!(
        message.starts_with("which port is meant?") && message.contains("9090/TCP (grpc)"),
        "{message}"
    );
}

#[test]
fn a_review_that_needs_a_probe_waits_alone() {
    let mut bench = Bench::new();
    bench.readability[0] = Readability::Unknown;
    let outcome = bench.shown(&[
        active("served", "http http x=s"),
        waiting("filtered", "http http x=a"),
        waiting("grpc", "http grpc"),
        waiting("bad", "http http :path-regex:("),
    ]);
    let reviewed: Vec<_> = outcome.reviews.iter().map(|r| r.id.as_str()).collect();
    assert!(
        reviewed.iter().all(|id| !id.contains("filtered")),
        "{reviewed:?}"
    );
    assert!(reviewed.iter().any(|id| id.contains("bad")), "{reviewed:?}");
    assert_eq!(outcome.probes, [0].into());
    assert_eq!(bench.active(0).len(), 1, "snapshots apply at once");
    bench.readability[0] = Readability::Readable;
    let outcome = bench.shown(&[waiting("filtered", "http http x=a")]);
    assert_eq!(only_message(&outcome), "accepted");
    assert!(outcome.probes.is_empty());
}

#[test]
fn an_intercept_that_waits_is_reviewed_again_after_a_while() {
    let mut bench = Bench::new();
    let outcome = bench.shown(&[waiting("a", "tcp")]);
    assert_eq!(outcome.look_again, Some(bench.now + REVIEW_INTERVAL));
    assert_eq!(bench.shown(&[active("a", "tcp")]).look_again, None);
}

#[test]
fn a_tls_port_without_certificate_refuses_filters_but_not_whole_connections() {
    let mut bench = Bench::new();
    bench.readability[0] = Readability::Unreadable("port 8080 speaks TLS; annotate".to_owned());
    assert_eq!(
        only_message(&bench.shown(&[waiting("a", "http http x=a")])),
        "port 8080 speaks TLS; annotate"
    );
    assert_eq!(
        only_message(&bench.shown(&[waiting("b", "tcp")])),
        "accepted"
    );
    bench.shown(&[active("c", "http http x=a")]);
    assert!(bench.active(0).is_empty());
}

#[test]
fn ports_are_found_by_service_port_by_container_port_and_by_number() {
    let plain = |i: &mut InterceptSpec| {
        i.service_uid.clear();
        i.service_name.clear();
    };
    type Change<'c> = &'c dyn Fn(&mut InterceptSpec);
    let rows: &[(&str, Change<'_>, &[usize])] = &[
        ("http", &|_| {}, &[0]),
        ("80", &|_| {}, &[0]),
        ("81/TCP", &|_| {}, &[0]),
        ("80/UDP", &|_| {}, &[]),
        ("8080", &|_| {}, &[]),
        ("53/UDP", &|_| {}, &[1]),
        // Where a port has one transport only, that need not be written.
        ("53", &|_| {}, &[1]),
        ("dns", &|s| s.protocol = "TCP".to_owned(), &[1]),
        (
            "http",
            &|s| s.pod_ports = vec!["dns:7070".to_owned()],
            &[0, 1],
        ),
        ("", &|s| s.protocol = "UDP".to_owned(), &[1]),
        ("", &|s| s.protocol = "TCP".to_owned(), &[]),
        ("", &|_| {}, &[]),
        ("8080", &plain, &[0]),
        ("grpc", &plain, &[2]),
        ("grpc", &|_| {}, &[]),
        ("", &|s| s.container_port = 8080, &[0]),
        (
            "",
            &|s| (s.container_port, s.protocol) = (5353, "UDP".to_owned()),
            &[1],
        ),
        (
            "",
            &|s| (s.container_port, s.protocol) = (5353, "TCP".to_owned()),
            &[],
        ),
        (
            "http",
            &|s| s.pod_ports = vec!["9090:7070".to_owned(), "5353/udp".to_owned()],
            &[0, 1, 2],
        ),
        (
            "http",
            &|s| (s.no_default_port, s.pod_ports) = (true, vec!["grpc".to_owned()]),
            &[2],
        ),
    ];
    for (identifier, change, want) in rows {
        let mut wanted = active("a", "tcp");
        let spec = wanted.spec.as_mut().unwrap();
        spec.port_identifier = (*identifier).to_owned();
        change(spec);
        let mut bench = Bench::new();
        bench.shown(&[wanted]);
        let got: Vec<_> = (0..3).filter(|p| !bench.active(*p).is_empty()).collect();
        assert_eq!(got, *want, "{identifier}");
    }
}

/// A number that serves TCP and UDP, and the two of them under two names.
const BOTH: &str = r"
agentName: web
namespace: shop
managerHost: traffic-manager.ambassador
containers:
- name: app
  intercepts:
  - {containerPortName: dns-tcp, serviceName: web, serviceUID: u1, servicePortName: dns-tcp, servicePort: 53,
     protocol: TCP, containerPort: 5353, agentPort: 9900}
  - {containerPortName: dns, serviceName: web, serviceUID: u1, servicePortName: dns, servicePort: 53,
     protocol: UDP, containerPort: 5353, agentPort: 9900}
";

#[test]
fn of_both_transports_tcp_is_taken_unless_udp_is_written() {
    let rows: &[(&str, &str, &[&str], &[usize])] = &[
        ("53", "", &[], &[0]),
        ("53/UDP", "", &[], &[1]),
        ("53/TCP", "", &["5353:7070/UDP"], &[0, 1]),
        ("dns", "", &[], &[1]),
        ("dns", "", &["5353:7070"], &[0, 1]),
        ("53", "", &["dns:7070"], &[0, 1]),
        ("", "", &[], &[0]),
        ("", "UDP", &[], &[1]),
        ("", "TCP", &[], &[0]),
    ];
    for (identifier, protocol, further, want) in rows {
        let mut wanted = active("a", "tcp");
        let spec = wanted.spec.as_mut().unwrap();
        spec.port_identifier = (*identifier).to_owned();
        spec.protocol = (*protocol).to_owned();
        spec.pod_ports = further.iter().map(|it| (*it).to_owned()).collect();
        let mut bench = Bench::of(BOTH, None);
        bench.shown(&[wanted]);
        let got: Vec<_> = (0..2).filter(|p| !bench.active(*p).is_empty()).collect();
        assert_eq!(got, *want, "{identifier}/{protocol} {further:?}");
    }
}

#[test]
fn what_is_taken_is_said_by_transport() {
    for (spec, further, said) in [
        ("tcp http", None, "all TCP connections"),
        ("tcp dns", None, "all UDP datagrams"),
        ("tcp http", Some("9090:1"), "all TCP connections"),
        (
            "tcp http",
            Some("dns:1"),
            "all TCP connections and all UDP datagrams",
        ),
    ] {
        let mut wanted = waiting("a", spec);
        let pod_ports = &mut wanted.spec.as_mut().unwrap().pod_ports;
        pod_ports.extend(further.map(str::to_owned));
        let outcome = Bench::new().shown(&[wanted]);
        assert_eq!(outcome.reviews[0].description, said, "{spec} {further:?}");
    }
}

#[test]
fn an_extra_port_is_delivered_where_it_says() {
    let mut wanted = active("a", "tcp");
    wanted.spec.as_mut().unwrap().pod_ports = vec!["9090:7070".to_owned(), "5353/UDP".to_owned()];
    let mut bench = Bench::new();
    bench.shown(&[wanted]);
    let delivered: Vec<_> = bench
        .tables
        .iter()
        .map(|t| t.entries()[0].intercept.target_port)
        .collect();
    assert_eq!(delivered, [8000, 5353, 7070]);
}

#[test]
fn flags_of_the_older_generation_are_understood() {
    let rows: &[(&[&str], &str)] = &[
        (&["--header=x-dev=a"], "HTTP requests with header x-dev: a"),
        (
            &["--match", "x-dev=a", "--plaintext"],
            "HTTP requests with header x-dev: a",
        ),
        (
            &["--header=auto"],
            "HTTP requests with header x-telepresence-intercept-id: session-a:a",
        ),
        (&["--header=all"], "all TCP connections"),
        (
            &["--header=y=2", "--header=x=1", "--path-prefix=/api"],
            "HTTP requests with header x: 1 and header y: 2 and path prefix /api",
        ),
        (
            &["--path-equal=/a", "--meta=k=v"],
            "HTTP requests with path /a",
        ),
        (
            &["--header=all", "--path-regex=/a|/b"],
            "HTTP requests with path regex /a|/b",
        ),
    ];
    for (args, want) in rows {
        let mut wanted = waiting("a", "http");
        wanted.spec.as_mut().unwrap().mechanism_args =
            args.iter().map(|a| (*a).to_owned()).collect();
        let outcome = Bench::new().shown(&[wanted]);
        assert_eq!(
            (
                only_message(&outcome).as_str(),
                outcome.reviews[0].description.as_str()
            ),
            ("accepted", *want)
        );
    }
    let mut whole = active("a", "http");
    whole.spec.as_mut().unwrap().mechanism_args = vec!["--path-regex=/a|/b".to_owned()];
    let mut bench = Bench::new();
    bench.shown(&[whole]);
    assert!(matches!(
        bench.tables[0].decide(&Sent("/b", vec![])),
        Decision::Client(_)
    ));
    assert!(
        matches!(bench.tables[0].decide(&Sent("/bc", vec![])), Decision::App),
        "matched from end to end"
    );
}

#[test]
fn an_ended_intercept_is_remembered_until_its_deadline() {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[active("a", "http http x=a"), active("t", "tcp dns/UDP")]);
    bench.shown(&[]);
    assert_eq!(bench.routed(0), [("session-a:a", State::Expired)]);
    assert!(bench.routed(1).is_empty(), "connections are not requests");
    let cleared = bench.rules.clear();
    assert!(
        cleared.is_empty(),
        "losing the manager does not make it forget"
    );
    assert_eq!(
        bench.rules.next_expiry(),
        Some(bench.now + Duration::from_secs(60))
    );
    assert!(
        bench
            .rules
            .expire(bench.now + Duration::from_secs(59))
            .is_empty()
    );
    let tables = bench.rules.expire(bench.now + Duration::from_secs(60));
    bench.take(tables);
    assert!(bench.routed(0).is_empty());
}

#[test]
fn one_that_is_shown_as_removed_before_it_is_gone_is_remembered_as_well() {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[active("a", "http http x=a")]);
    for shown in [&[info("a", Disposition::Removed, "http http x=a")][..], &[]] {
        bench.shown(shown);
        assert_eq!(bench.routed(0), [("session-a:a", State::Expired)]);
    }
}

#[test]
fn one_that_is_suspended_before_it_is_gone_is_remembered_as_well() {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[active("a", "http http x=a")]);
    for _ in 0..2 {
        bench.shown(&[waiting("a", "http http x=a")]);
        assert!(bench.routed(0).is_empty());
    }
    bench.shown(&[]);
    assert_eq!(bench.routed(0), [("session-a:a", State::Expired)]);
}

#[test]
fn a_suspended_intercept_gives_way_to_another_users_and_is_told_so_when_its_client_is_back() {
    for spec in ["tcp", "http http x=a"] {
        let mut bench = Bench::new();
        bench.shown(&[active("a", spec)]);
        let mut ghost = waiting("a", spec);
        ghost.message = traffic_proto::suspension::message("dev", "noon");
        let outcome = bench.shown(std::slice::from_ref(&ghost));
        assert!(outcome.reviews.is_empty(), "it was reviewed before");
        let outcome = bench.shown(&[ghost.clone(), waiting("b", spec)]);
        let accepted: Vec<_> = outcome.reviews.iter().map(message).collect();
        assert_eq!(accepted, ["accepted"], "{spec}");
        assert!(bench.shown(&[ghost, active("b", spec)]).reviews.is_empty());
        assert_eq!(bench.active(0), ["session-b:b"]);
        let outcome = bench.shown(&[waiting("a", spec), active("b", spec)]);
        let told = outcome.reviews.iter().map(message).next().unwrap();
        assert!(
            told.contains("Conflicts with the currently-served"),
            "{told}"
        );
        assert_eq!(bench.active(0), ["session-b:b"]);
    }
}

#[test]
fn an_intercept_that_returns_is_remembered_no_longer() {
    let mut bench = Bench::remembering(Some(Duration::from_secs(60)));
    bench.shown(&[active("a", "http http x=a")]);
    bench.shown(&[waiting("a", "http http x=a")]);
    assert!(bench.routed(0).is_empty(), "waiting again is not ended");
    bench.shown(&[active("a", "http http x=a")]);
    bench.shown(&[]);
    bench.shown(&[active("a", "http http x=a")]);
    assert_eq!(bench.routed(0), [("session-a:a", State::Active)]);
}

#[test]
fn a_lost_session_keeps_the_table_and_a_new_one_adopts_what_is_active() {
    let mut bench = Bench::new();
    bench.shown(&[active("a", "tcp")]);
    bench.rules.drop_promises();
    assert_eq!(bench.active(0), ["session-a:a"]);
    bench.shown(&[active("a", "tcp")]);
    assert_eq!(bench.active(0), ["session-a:a"]);
    bench.rules.drop_promises();
    bench.shown(&[]);
    assert!(bench.active(0).is_empty());
    bench.shown(&[active("a", "tcp")]);
    let tables = bench.rules.clear();
    bench.take(tables);
    assert!(bench.active(0).is_empty());
}

#[test]
fn intercepts_of_other_workloads_are_ignored() {
    let mut other = waiting("a", "tcp");
    other.spec.as_mut().unwrap().namespace = "elsewhere".to_owned();
    assert!(Bench::new().shown(&[other]).reviews.is_empty());
}

mod wiretaps;
