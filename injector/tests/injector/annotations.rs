//! Every annotation in every spelling, good and bad.

use injector::annotations::{DOMAIN, Inject, OLDER_DOMAIN, read, tls_secrets};
use traffic_proto::sidecar::MountPolicy;

fn map(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn both(name: &str) -> [String; 2] {
    [format!("{DOMAIN}{name}"), format!("{OLDER_DOMAIN}{name}")]
}

#[test]
fn every_annotation_is_read_in_both_domains() {
    for at in 0..2 {
        let key = |name: &str| both(name)[at].clone();
        let texts = [
            ("inject-traffic-agent", "enabled"),
            ("inject-service-name", "shop"),
            ("inject-service-ports", "web, 80 ,53/UDP"),
            ("inject-container-ports", "8080,dns/UDP"),
            ("inject-ignore-volume-mounts", " data ,,/var/run "),
            (
                "mount-policies",
                r#"{"/tmp":"Local","data":"RemoteReadOnly"}"#,
            ),
            ("manually-injected", "true"),
        ];
        let annotations = texts
            .iter()
            .map(|(name, value)| (key(name), (*value).to_owned()));
        let requests = read(&annotations.collect()).unwrap();
        assert_eq!(requests.inject, Inject::Enabled);
        assert_eq!(requests.service_name.as_deref(), Some("shop"));
        let ports = |list: &[_]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ports(&requests.service_ports), ["web", "80", "53/UDP"]);
        assert_eq!(ports(&requests.container_ports), ["8080", "dns/UDP"]);
        assert_eq!(requests.ignored_mounts, ["data", "/var/run"]);
        let policies = [
            ("/tmp".to_owned(), MountPolicy::Local),
            ("data".to_owned(), MountPolicy::RemoteReadonly),
        ];
        assert_eq!(requests.mount_policies, policies);
        assert!(requests.manual);
        assert_eq!(requests.warnings, []);
    }
}

#[test]
fn the_singular_counts_only_without_the_plural_and_is_warned_about() {
    let singular = both("inject-service-port");
    let requests = read(&map(&[(&singular[1], "web")])).unwrap();
    assert_eq!(requests.service_ports.len(), 1);
    assert!(requests.warnings[0].to_string().contains("deprecated"));
    let plural = both("inject-service-ports");
    let requests = read(&map(&[(&singular[1], "web"), (&plural[1], "grpc")])).unwrap();
    assert_eq!(requests.service_ports[0].to_string(), "grpc");
    assert_eq!(requests.warnings, []);
}

#[test]
fn ignored_mounts_may_be_a_json_array() {
    let key = &both("inject-ignore-volume-mounts")[0];
    let requests = read(&map(&[(key, r#"["data", " /var/run ", ""]"#)])).unwrap();
    assert_eq!(requests.ignored_mounts, ["data", "/var/run"]);
}

#[test]
fn of_two_domains_the_newer_one_counts() {
    let [newer, older] = both("inject-service-name");
    let requests = read(&map(&[(&older, "old"), (&newer, "new")])).unwrap();
    assert_eq!(requests.service_name.as_deref(), Some("new"));
    let warning = requests.warnings[0].to_string();
    assert!(
        warning.contains(&older) && warning.contains("which counts"),
        "{warning}"
    );
    let requests = read(&map(&[(&older, "same"), (&newer, "same")])).unwrap();
    assert_eq!(requests.warnings, []);
}

#[test]
fn bad_values_are_named_with_their_annotation_and_all_at_once() {
    let bad = [
        (
            "inject-traffic-agent",
            "yes",
            "invalid value; write enabled or disabled",
        ),
        ("inject-service-ports", "80/SCTP", "unknown protocol"),
        ("inject-service-ports", "Web", "no name of a port"),
        ("inject-container-ports", "0", "out of range"),
        ("inject-container-ports", "65536", "out of range"),
        ("inject-container-ports", "a_b", "no name of a port"),
        (
            "inject-ignore-volume-mounts",
            "[1]",
            "no JSON array of texts",
        ),
        ("mount-policies", "Local", "no JSON object of texts"),
        (
            "mount-policies",
            r#"{"/tmp":"Locally"}"#,
            "unknown mount policy",
        ),
        ("manually-injected", "yes", "neither true nor false"),
    ];
    for (name, value, problem) in bad {
        for key in both(name) {
            let faults = read(&map(&[(&key, value)])).unwrap_err().to_string();
            assert!(
                faults.contains(&key) && faults.contains(problem),
                "{faults}"
            );
        }
    }
    let all = map(&[
        (&both("inject-traffic-agent")[0], "yes"),
        (&both("inject-container-ports")[1], "0,1,99999"),
    ]);
    assert_eq!(read(&all).unwrap_err().len(), 3);
}

#[test]
fn empty_values_count_as_absent() {
    let keys: Vec<_> = [
        "inject-traffic-agent",
        "inject-service-name",
        "inject-service-ports",
        "inject-container-ports",
        "inject-ignore-volume-mounts",
        "mount-policies",
        "manually-injected",
    ]
    .iter()
    .flat_map(|name| both(name))
    .collect();
    let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), " ")).collect();
    assert_eq!(read(&map(&pairs)).unwrap(), read(&map(&[])).unwrap());
}

#[test]
fn an_annotation_that_is_not_followed_is_said_so() {
    let key = &both("inject-inactive-port")[0];
    let requests = read(&map(&[(key, "8081")])).unwrap();
    assert!(requests.warnings[0].to_string().contains("is not followed"));
}

#[test]
fn secrets_are_found_in_every_spelling() {
    const TERMINATING: &str = "inject-terminating-tls-secret";
    const ORIGINATING: &str = "inject-originating-tls-secret";
    for domain in [DOMAIN, OLDER_DOMAIN, "getambassador.io/"] {
        let secrets = tls_secrets(
            &map(&[
                (&format!("{domain}{TERMINATING}"), "$AGENT_NAME-server"),
                (
                    &format!("{domain}{ORIGINATING}"),
                    "${AGENT_NAME}-$_TEL_AGENT_NAME",
                ),
            ]),
            "shop",
        );
        assert_eq!(
            secrets.terminating.as_deref(),
            Some("shop-server"),
            "{domain}"
        );
        assert_eq!(
            secrets.originating.as_deref(),
            Some("shop-shop"),
            "{domain}"
        );
    }
}

#[test]
fn the_oldest_spelling_counts_only_where_no_later_one_names_a_secret() {
    let newer = format!("{OLDER_DOMAIN}inject-terminating-tls-secret");
    let secrets = tls_secrets(
        &map(&[
            (&newer, "new"),
            ("getambassador.io/inject-terminating-tls-secret", "old"),
            ("getambassador.io/inject-originating-tls-secret", "old"),
        ]),
        "shop",
    );
    assert_eq!(secrets.terminating.as_deref(), Some("new"));
    assert_eq!(secrets.originating, None);
}

#[test]
fn secrets_of_ports_are_mounted_once_and_their_directory_is_told() {
    let secrets = tls_secrets(
        &map(&[
            ("telepresence.io/downstream-tls-secret.8443", "one, two"),
            ("telepresence.io/downstream-cert-secret.9443", "two"),
            ("telepresence.io/upstream-tls-secret.8443", "client.tls"),
            ("telepresence.io/downstream-client-ca-secret.8443", "ca"),
            ("telepresence.io/downstream-tls-secret.1", "../etc"),
            ("telepresence.io/downstream-tls-secret", "no-port"),
        ]),
        "shop",
    );
    let mut found = secrets.of_ports.clone();
    found.sort();
    assert_eq!(found, ["ca", "client.tls", "one", "two"]);
    let paths: Vec<_> = secrets.path_annotations.into_iter().collect();
    let path = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        paths,
        [
            path(
                "telepresence.io/downstream-tls-path.8443",
                "/downstream-tls/one"
            ),
            path(
                "telepresence.io/upstream-tls-path.8443",
                "/downstream-tls/client.tls"
            ),
        ]
    );
}
