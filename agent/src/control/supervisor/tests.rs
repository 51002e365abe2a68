//! Tests of version checks and texts of the session.

use super::*;
use crate::control::config::{AgentIdentity, Container};
use traffic_proto::manager::agent_info;
use traffic_proto::manager::workload_info::Kind;

#[test]
fn versions_are_read_leniently() {
    for good in [
        "2.20.2",
        "v2.20.2",
        "v2.28.0-rc.1",
        "2.21.0-test.3+abc",
        "v2.25",
        "3",
        "v2.20.2-gotest.z",
    ] {
        assert!(is_version(good), "{good}");
    }
    for bad in [
        "",
        "v",
        "latest",
        "2.x",
        "v2.20.2.1",
        "vv2.0.0",
        "2..1",
        "-1",
        "2.20.2-",
    ] {
        assert!(!is_version(bad), "{bad}");
    }
}

#[test]
fn pauses_stay_within_their_bounds() {
    for _ in 0..100 {
        let pause = jittered(Duration::from_secs(4));
        assert!(
            (Duration::from_secs(2)..=Duration::from_secs(4)).contains(&pause),
            "{pause:?}"
        );
    }
}

#[test]
fn everything_that_managers_of_any_age_want_to_know_is_told() {
    let identity = AgentIdentity {
        name: "web".to_owned(),
        workload_kind: "StatefulSet".to_owned(),
        pod_uid: "uid-1".to_owned(),
        api_port: 18_000,
        containers: vec![Container {
            name: "app".to_owned(),
            ..Container::default()
        }],
        ports: vec![agent_info::Port {
            name: "http".to_owned(),
            number: 8080,
            protocol: "TCP".to_owned(),
        }],
        ..AgentIdentity::default()
    };
    let info = identity.info();
    assert_eq!(info.ports, identity.ports);
    let mechanisms: Vec<_> = info
        .mechanisms
        .iter()
        .map(|m| (m.name.as_str(), m.product.as_str()))
        .collect();
    assert_eq!(
        mechanisms,
        [("tcp", "telepresence"), ("http", "telepresence")]
    );
    assert_eq!(
        (info.pod_uid.as_str(), info.api_port, info.kind()),
        ("uid-1", 18_000, Kind::Statefulset)
    );
    assert!(info.version.starts_with('v') && info.containers.contains_key("app"));
}
