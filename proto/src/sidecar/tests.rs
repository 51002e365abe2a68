//! Configurations of several generations, odd spellings, and every mistake by its message.

use super::*;
use proptest::prelude::*;

mod faults;

/// A configuration as written by a manager of 2.20.
const FILE: &str = r#"
agentImage: docker.io/datawire/tel2:2.20.2
agentName: echo
containers:
- Mounts:
  - /var/run/secrets/kubernetes.io/serviceaccount
  - /data
  envPrefix: A_
  intercepts:
  - agentPort: 9900
    appProtocol: http
    containerPort: 8080
    containerPortName: http
    protocol: TCP
    servicePort: 80
    servicePortName: http
    serviceName: echo
    serviceUID: 9a0a2a8c-e10c-4a33-8a5e-6bd5b6ff2a8b
  - agentPort: 9901
    containerPort: 5300
    protocol: UDP
    serviceName: echo
    servicePort: 53
    targetPortNumeric: true
  mountPoint: /tel_app_mounts/echo
  name: echo
  replace: 0
logLevel: debug
managerHost: traffic-manager.ambassador
managerPort: 8081
namespace: default
resources:
  limits: {cpu: 1, memory: 64Mi}
workloadKind: Deployment
workloadName: echo
"#;

/// A configuration as a later manager writes it into an annotation.
const JSON: &str = r#"{
  "agentName": "echo", "namespace": "default", "workloadName": "echo", "workloadKind": "Deployment",
  "managerHost": "traffic-manager.ambassador.svc.cluster.local", "logLevel": "INFO", "apiPort": 9980,
  "mountPolicies": {"/tmp": "Local", "cache": "Ignore"}, "clientConnectionTTL": "12h0m0s",
  "enableMetrics": true, "enableH2cProbing": false, "watchRetryInterval": 5000000000,
  "containers": [
    {"name": "echo", "envPrefix": "A_", "mountPoint": "/tel_app_mounts/echo", "replace": 1,
     "mounts": {"/data": "RemoteReadonly", "/Data": "Remote", "/tmp": "Local"},
     "intercepts": [{"containerPort": 8080, "agentPort": 9900, "protocol": "TCP", "targetPortNumeric": true,
                     "inactivePort": 9950, "servicePort": 443, "serviceName": "echo"}]},
    {"name": "side", "envPrefix": "B_"}]
}"#;

fn agent(yaml: &str) -> Result<Sidecar, Faults> {
    from_yaml(yaml, "config.yaml", Role::Agent)
}

fn init(yaml: &str) -> Sidecar {
    from_yaml(yaml, "config.yaml", Role::Init).unwrap()
}

fn warnings(yaml: &str) -> Vec<String> {
    init(yaml).warnings.iter().map(Fault::to_string).collect()
}

/// Builds a configuration of one container with these entries, each in flow style.
fn entries(entries: &[&str]) -> String {
    let entries: String = entries
        .iter()
        .map(|entry| format!("  - {{{entry}}}\n"))
        .collect();
    format!("containers:\n- name: app\n  intercepts:\n{entries}")
}

#[test]
fn a_file_of_an_older_manager_is_read_whole() {
    let sidecar = agent(FILE).unwrap();
    assert_eq!(sidecar.warnings, []);
    assert_eq!(
        (&*sidecar.agent_name, &*sidecar.namespace),
        ("echo", "default")
    );
    assert_eq!(
        (&*sidecar.workload_name, &*sidecar.workload_kind),
        ("echo", "Deployment")
    );
    assert_eq!(
        (&*sidecar.manager_host, sidecar.manager_port),
        ("traffic-manager.ambassador", 8081)
    );
    assert_eq!(sidecar.log_level, Some(LogLevel::Debug));
    let [container] = &sidecar.containers[..] else {
        panic!("{sidecar:?}")
    };
    assert_eq!((&*container.name, &*container.env_prefix), ("echo", "A_"));
    assert_eq!(container.mount_point, "/tel_app_mounts/echo");
    assert_eq!(container.mounts.len(), 2);
    assert_eq!(
        container.mounts[1],
        ("/data".to_owned(), MountPolicy::Remote)
    );
    assert_eq!(container.replace, Replace::Intercept);
    let http = &container.intercepts[0];
    assert_eq!(http.container_port, AppPort::new(8080).unwrap());
    assert_eq!(http.agent_port, AgentPort::new(9900).unwrap());
    assert_eq!(http.service_port, Some(80));
    assert_eq!(http.service_uid, "9a0a2a8c-e10c-4a33-8a5e-6bd5b6ff2a8b");
    assert_eq!(
        (http.transport, &*http.app_protocol),
        (Transport::Tcp, "http")
    );
    assert!(!http.target_port_numeric && !http.headless);
    let dns = &container.intercepts[1];
    assert_eq!(
        (dns.transport, &*dns.service_port_name),
        (Transport::Udp, "")
    );
    assert!(dns.target_port_numeric);
}

#[test]
fn json_of_a_later_manager_is_read_whole() {
    let sidecar = from_json(JSON, "AGENT_CONFIG", Role::Agent).unwrap();
    assert_eq!(sidecar.warnings, []);
    assert_eq!((sidecar.manager_port, sidecar.api_port), (8081, Some(9980)));
    assert_eq!(
        sidecar.client_connection_ttl,
        Duration::from_secs(12 * 3600)
    );
    assert_eq!(sidecar.watch_retry_interval, Duration::from_secs(5));
    assert!(sidecar.enable_metrics && !sidecar.enable_h2c_probing);
    let policies: Vec<_> = sidecar
        .mount_policies
        .iter()
        .map(|(key, policy)| (&**key, policy.number()))
        .collect();
    assert_eq!(policies, [("/tmp", 2), ("cache", 3)]);
    let [echo, side] = &sidecar.containers[..] else {
        panic!("{sidecar:?}")
    };
    let mounts: Vec<_> = echo
        .mounts
        .iter()
        .map(|(path, policy)| (&**path, policy.name()))
        .collect();
    assert_eq!(
        mounts,
        [
            ("/data", "RemoteReadonly"),
            ("/Data", "Remote"),
            ("/tmp", "Local")
        ]
    );
    assert_eq!(echo.replace, Replace::Container);
    assert_eq!(echo.intercepts[0].inactive_port, ProxyPort::new(9950));
    assert!(side.intercepts.is_empty());
}

#[test]
fn mesh_dial_subnets_are_a_list_or_one_text() {
    for (written, read) in [
        (
            "[10.1.0.0/16, \"fd00::/8\"]",
            &["10.1.0.0/16", "fd00::/8"][..],
        ),
        ("10.1.0.0/16, 10.2.0.0/16", &["10.1.0.0/16", "10.2.0.0/16"]),
        ("", &[]),
    ] {
        let sidecar = init(&format!("meshDialSubnets: {written}\n"));
        assert_eq!(sidecar.mesh_dial_subnets, read, "{written}");
    }
}

#[test]
fn what_is_not_written_has_the_documented_defaults() {
    let sidecar = agent("agentName: a\nnamespace: n\nmanagerHost: m\n").unwrap();
    assert_eq!(sidecar.manager_port, 8081);
    assert_eq!(
        sidecar.client_connection_ttl,
        Duration::from_secs(24 * 3600)
    );
    assert_eq!(sidecar.watch_retry_interval, Duration::from_secs(10));
    assert!(sidecar.enable_h2c_probing && !sidecar.enable_metrics);
    assert_eq!(
        sidecar.app_protocol_strategy,
        AppProtocolStrategy::Http2Probe
    );
    assert_eq!(sidecar.envoy, Envoy::default());
    let expired = ExpiredNotifications {
        enabled: false,
        deadline: Duration::from_secs(24 * 3600),
    };
    assert_eq!(sidecar.expired_notifications, expired);
    assert_eq!(sidecar.session_grace, Duration::from_secs(60));
    assert_eq!(
        sidecar.drain,
        Drain {
            lame_duck: Duration::from_secs(5),
            grace: Duration::from_secs(20)
        }
    );
    assert_eq!(
        (sidecar.log_level, sidecar.api_port, sidecar.tracing_port),
        (None, None, None)
    );
    assert_eq!(
        (&sidecar.containers[..], &sidecar.warnings[..]),
        (&[][..], &[][..])
    );
}

#[test]
fn settings_of_our_own_are_read() {
    let sidecar = init(
        "appProtocolStrategy: PORTNAME
envoy: {logLevel: warning, serverPort: 15001, adminPort: 15000}
metrics: {port: 15020}
expiredNotifications: {enabled: yes, deadline: 1h30m}
sessionGrace: 0s
drain:
  lameDuck: .5s
  grace: 2m
",
    );
    assert_eq!(sidecar.app_protocol_strategy, AppProtocolStrategy::PortName);
    let envoy = Envoy {
        log_level: Some(LogLevel::Warning),
        server_port: Some(15001),
        admin_port: Some(15000),
    };
    assert_eq!(sidecar.envoy, envoy);
    assert_eq!(sidecar.metrics_port, Some(15020));
    assert_eq!(init("metrics: {port: 0}\n").metrics_port, None);
    assert!(sidecar.expired_notifications.enabled);
    assert_eq!(
        sidecar.expired_notifications.deadline,
        Duration::from_secs(5400)
    );
    assert_eq!(sidecar.session_grace, Duration::ZERO);
    assert_eq!(
        sidecar.drain,
        Drain {
            lame_duck: Duration::from_millis(500),
            grace: Duration::from_secs(120)
        }
    );
    assert_eq!(sidecar.warnings, []);
}

#[test]
fn keys_match_in_any_case_and_the_last_of_two_spellings_counts() {
    let sidecar = init("AGENTNAME: a\nagentname: b\nCONTAINERS: [{NAME: c, ENVPREFIX: A_}]\n");
    assert_eq!(sidecar.agent_name, "b");
    assert_eq!(sidecar.containers[0].env_prefix, "A_");
    let [warning] = &sidecar.warnings[..] else {
        panic!("{:?}", sidecar.warnings)
    };
    assert_eq!(
        warning.to_string(),
        "agentname: given twice, first as AGENTNAME, the last one counts (config.yaml line 2); \
        remove one"
    );
}

#[test]
fn of_a_key_given_twice_the_last_one_counts_in_both_notations() {
    let warning = "agentName: given twice, the last one counts";
    for sidecar in [
        init("agentName: a\nagentName: b\n"),
        from_json(
            r#"{"agentName": "a", "agentName": "b"}"#,
            "AGENT_CONFIG",
            Role::Init,
        )
        .unwrap(),
    ] {
        assert_eq!(sidecar.agent_name, "b");
        assert!(
            sidecar.warnings[0].to_string().starts_with(warning),
            "{:?}",
            sidecar.warnings
        );
        assert_eq!(sidecar.warnings.len(), 1);
    }
}

#[test]
fn keys_without_a_value_count_as_absent() {
    let yaml = "managerPort:\nlogLevel: ~\nenableH2cProbing: \
        null\ncontainers:\ndrain:\nmountPolicies:\nsessionGrace:\n";
    let sidecar = init(yaml);
    assert_eq!(sidecar.manager_port, 8081);
    assert!(sidecar.enable_h2c_probing);
    assert_eq!(sidecar.warnings, []);
    assert_eq!(sidecar, init("{}"));
    // Nor does it count as a second spelling.
    assert_eq!(init("agentName: a\nAGENTNAME:\n").agent_name, "a");
    assert_eq!(warnings("agentName: a\nAGENTNAME:\n"), [""; 0]);
}

#[test]
fn zero_values_count_as_absent_where_a_zero_makes_no_sense() {
    let sidecar = init(
        "managerPort: 0\napiPort: 0\ntracingPort: 0\nlogLevel: ''\nappProtocolStrategy: ''\n\
         clientConnectionTTL: 0\nwatchRetryInterval: 0s\nenvoy: {serverPort: 0}\n",
    );
    assert_eq!(sidecar, init("{}"));
}

#[test]
fn unknown_keys_are_ignored_with_one_warning_each() {
    let yaml = "agentNaem: x\nquicPort: 1\ncontainers:\n- name: app\n  future: {a: [1, {b: 2}]}\n";
    assert_eq!(
        warnings(yaml),
        [
            "containers[0].future: unknown key, ignored (config.yaml line 5); check the spelling, \
            or remove it",
            "agentNaem: unknown key, ignored (config.yaml line 1); did you mean agentName?",
        ]
    );
}

#[test]
fn a_list_or_a_value_instead_of_a_map_is_one_fault() {
    for (yaml, what) in [
        ("- agentName: x\n", "a list"),
        ("just words", "a single value"),
    ] {
        let faults = from_yaml(yaml, "config.yaml", Role::Agent).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults}");
        let text = faults.to_string();
        assert!(
            text.starts_with(&format!("config.yaml: {what}, where a map")),
            "{text}"
        );
    }
}

#[test]
fn flat_keys_of_the_vendor_build_stand_in_for_envoys_own() {
    let flat = "EnvoyLogLevel: debug\nEnvoyServerPort: 18001\nEnvoyAdminPort: 19001\n\
                envoyHttpIdleTimeout: {seconds: 70, nanos: 5}\n";
    assert_eq!(warnings(flat), [""; 0]);
    let envoy = init(flat).envoy;
    assert_eq!(envoy.log_level, Some(LogLevel::Debug));
    assert_eq!(
        (envoy.server_port, envoy.admin_port),
        (Some(18001), Some(19001))
    );
    let both = format!("{flat}envoy: {{serverPort: 18002}}\n");
    let envoy = init(&both).envoy;
    assert_eq!(
        (envoy.server_port, envoy.admin_port),
        (Some(18002), Some(19001))
    );
}

#[test]
fn numbers_are_read_in_every_notation_yaml_knows() {
    for (written, port) in [
        ("511", 511),
        ("0777", 511),
        ("0o777", 511),
        ("0x1ff", 511),
        ("1e3", 1000),
        ("1_000", 1000),
        ("+80", 80),
        ("80.0", 80),
    ] {
        assert_eq!(
            init(&format!("apiPort: {written}\n")).api_port,
            Some(port),
            "{written}"
        );
    }
}

#[test]
fn unquoted_texts_are_what_is_spelled() {
    let sidecar =
        init("agentName: 1.10\nnamespace: no\nworkloadName: 0123\nworkloadKind: 'null'\n");
    assert_eq!((&*sidecar.agent_name, &*sidecar.namespace), ("1.10", "no"));
    assert_eq!(
        (&*sidecar.workload_name, &*sidecar.workload_kind),
        ("0123", "null")
    );
}

#[test]
fn aliases_and_merges_are_followed() {
    let yaml = "containers:\n- &a\n  name: app\n  envPrefix: A_\n- {<<: *a, name: other}\n";
    let sidecar = init(yaml);
    assert_eq!(
        (
            &*sidecar.containers[1].name,
            &*sidecar.containers[1].env_prefix
        ),
        ("other", "A_")
    );
    assert_eq!(sidecar.warnings, []);
}

#[test]
fn mounts_are_a_list_or_a_map_and_the_map_wins() {
    for yaml in [
        "containers: [{name: app, Mounts: [/a, /b], mounts: {/a: Local, /c: 1}}]",
        "containers: [{name: app, mounts: {/a: Local, /c: 1}, Mounts: [/a, /b]}]",
    ] {
        let sidecar = init(yaml);
        let mounts = [
            ("/a".to_owned(), MountPolicy::Local),
            ("/c".to_owned(), MountPolicy::RemoteReadonly),
        ];
        assert_eq!(sidecar.containers[0].mounts, mounts, "{yaml}");
        assert_eq!(sidecar.warnings, []);
    }
    let sidecar = init("containers: [{name: app, mounts: {/a: RemoteReadOnly, /b: }}]");
    assert_eq!(
        sidecar.containers[0].mounts[0].1,
        MountPolicy::RemoteReadonly
    );
    assert_eq!(sidecar.containers[0].mounts[1].1, MountPolicy::Remote);
}

#[test]
fn replace_is_a_number_or_a_boolean() {
    for (written, replace) in [
        ("0", Replace::Intercept),
        ("false", Replace::Intercept),
        ("", Replace::Intercept),
        ("1", Replace::Container),
        ("true", Replace::Container),
        ("2", Replace::Inactive),
    ] {
        let sidecar = init(&format!("containers:\n- name: app\n  replace: {written}\n"));
        assert_eq!(sidecar.containers[0].replace, replace, "{written}");
    }
}

/// Managers up to 2.21 leave a program that does nothing in the container, and everything else as
/// it was; later ones remove the container, and the agent takes its ports.
#[test]
fn the_agent_takes_the_ports_of_a_replaced_container_from_2_22_on() {
    let yaml = "{containers: [\
        {name: app, replace: 1, intercepts: [\
          {containerPort: 8080, agentPort: 9900, protocol: TCP, targetPortNumeric: true},\
          {containerPort: 8443, agentPort: 9901, protocol: TCP}]},\
        {name: side, intercepts: [\
          {containerPort: 7000, agentPort: 9902, protocol: TCP, headless: true}]}]}";
    let listeners = |sidecar: Sidecar| -> Vec<_> {
        let targets = sidecar.targets();
        let seen = targets.iter().map(|target| {
            assert_eq!(target.is_redirected(), target.proxy_port.is_some());
            (target.listen_port(), target.proxy_port.map(ProxyPort::get))
        });
        seen.collect()
    };
    assert_eq!(
        listeners(from_config_map(yaml, "config.yaml", Role::Init).unwrap()),
        [(9900, Some(9914)), (9901, None), (9902, Some(9916))]
    );
    assert_eq!(
        listeners(init(yaml)),
        [(8080, None), (8443, None), (9902, Some(9916))]
    );
}

#[test]
fn durations_are_texts_or_nanoseconds() {
    for (written, nanos) in [
        ("1h30m", 5_400_000_000_000),
        ("'10s'", 10_000_000_000),
        ("2000000000", 2_000_000_000),
        ("0", 0),
    ] {
        let sidecar = init(&format!("sessionGrace: {written}\n"));
        assert_eq!(
            sidecar.session_grace,
            Duration::from_nanos(nanos),
            "{written}"
        );
        assert_eq!(sidecar.warnings, []);
    }
    assert_eq!(
        warnings("drain: {grace: 30}\n"),
        [
            "drain.grace: 30 is 30 nanoseconds (config.yaml line 1); write a unit, such as 30s, if \
            that is not meant"
        ]
    );
}

#[test]
fn a_missing_protocol_is_tcp_with_a_warning() {
    for written in ["", ", protocol: ''", ", protocol: "] {
        let yaml = entries(&[&format!("containerPort: 80, agentPort: 9900{written}")]);
        let sidecar = init(&yaml);
        assert_eq!(
            sidecar.containers[0].intercepts[0].transport,
            Transport::Tcp
        );
        assert_eq!(
            sidecar.warnings[0].to_string(),
            "containers[0].intercepts[0].protocol: no protocol, taken as TCP (config.yaml line 4); \
            write TCP or UDP"
        );
    }
    let sidecar = init(&entries(&[
        "containerPort: 80, agentPort: 9900, protocol: udp",
    ]));
    assert_eq!(
        sidecar.containers[0].intercepts[0].transport,
        Transport::Udp
    );
}

#[test]
fn entries_on_one_listener_make_one_target() {
    let yaml = "
containers:
- name: app
  intercepts:
  - {containerPort: 8080, agentPort: 9900, protocol: TCP, servicePort: 80}
  - {containerPort: 8080, agentPort: 9900, protocol: TCP, servicePort: 443, targetPortNumeric: true, appProtocol: http2}
  - {containerPort: 8080, agentPort: 9900, protocol: UDP}
- name: other
  intercepts:
  - {containerPort: 9090, agentPort: 9901, protocol: TCP, headless: true, inactivePort: 12000}
";
    let sidecar = init(yaml);
    assert_eq!(sidecar.warnings, []);
    let [both, udp, headless] = &sidecar.targets()[..] else {
        panic!("{:?}", sidecar.targets())
    };
    assert_eq!(
        (
            &*both.container,
            both.container_port.get(),
            both.agent_port.get()
        ),
        ("app", 8080, 9900)
    );
    assert!(both.numeric && !both.headless && both.is_redirected());
    assert_eq!((&*both.app_protocol, both.entries.len()), ("http2", 2));
    // 9900 + 11 + four entries in all containers.
    assert_eq!(both.proxy_port, ProxyPort::new(9915));
    assert_eq!(
        (udp.transport, udp.is_redirected(), udp.proxy_port),
        (Transport::Udp, false, None)
    );
    assert_eq!(
        (&*headless.container, headless.proxy_port),
        ("other", ProxyPort::new(12000))
    );
}

#[test]
fn differing_protocols_on_one_listener_are_a_warning_and_the_first_counts() {
    let yaml = entries(&[
        "containerPort: 80, agentPort: 9900, protocol: TCP",
        "containerPort: 80, agentPort: 9900, protocol: TCP, appProtocol: http",
        "containerPort: 80, agentPort: 9900, protocol: TCP, appProtocol: HTTP",
        "containerPort: 80, agentPort: 9900, protocol: TCP, appProtocol: grpc",
    ]);
    assert_eq!(
        warnings(&yaml),
        [
            "containers[0].intercepts[3].appProtocol: grpc on a port that an earlier entry \
            declares http (config.yaml line 7); declare one protocol for one port; the first one \
            counts"
        ]
    );
    assert_eq!(init(&yaml).targets()[0].app_protocol, "http");
}

#[test]
fn one_app_port_behind_two_redirects_is_a_warning() {
    let yaml = entries(&[
        "containerPort: 80, agentPort: 9900, protocol: TCP, targetPortNumeric: true",
        "containerPort: 80, agentPort: 9901, protocol: TCP, targetPortNumeric: true",
    ]);
    assert_eq!(
        warnings(&yaml),
        [
            "containers[0].intercepts[1]: containerPort 80 is redirected to agentPort 9900 already \
            (config.yaml line 5); give one container port one agentPort"
        ]
    );
}

#[test]
fn annotations_hold_the_configuration_or_not() {
    let file = "/etc/podinfo/annotations";
    let quoted = format!("{JSON:?}");
    let text = format!("a=\"b\"\ntelepresence.io/agent-config={quoted}\n");
    let sidecar = from_annotations(&text, file, Role::Agent).unwrap().unwrap();
    assert_eq!(sidecar, from_json(JSON, "", Role::Agent).unwrap());

    assert_eq!(
        from_annotations("a=\"b\"\nc=d\n", file, Role::Agent),
        Ok(None)
    );
    let broken =
        from_annotations("telepresence.io/agent-config=\"{", file, Role::Agent).unwrap_err();
    assert_eq!(
        broken.to_string(),
        "telepresence.io/agent-config=\"\\\"{\": value without a closing quote \
        (/etc/podinfo/annotations line 1); quote the value as Go quotes strings"
    );
    let faulty = from_annotations(
        "telepresence.io/agent-config=\"{\\\"apiPort\\\":-1}\"",
        file,
        Role::Init,
    )
    .unwrap_err();
    assert_eq!(
        faulty.to_string(),
        "apiPort=-1: out of range (/etc/podinfo/annotations: telepresence.io/agent-config); write \
        1 to 65535"
    );
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "(?s:.*)") {
        let _ = from_yaml(&text, "config.yaml", Role::Agent);
        let _ = from_json(&text, "AGENT_CONFIG", Role::Agent);
    }

    #[test]
    fn no_damage_to_a_configuration_makes_reading_panic(
        at in any::<prop::sample::Index>(),
        length in 0..20usize,
        by in "[-\\[\\]{}:,'\"&*!|>0-9a-z \n]{0,6}",
    ) {
        for text in [FILE, JSON] {
            let at = at.index(text.len());
            let mut damaged = text.to_owned();
            damaged.replace_range(at..(at + length).min(text.len()), &by);
            for result in [
                from_yaml(&damaged, "config.yaml", Role::Agent),
                from_json(&damaged, "AGENT_CONFIG", Role::Agent),
            ] {
                match result {
                    Ok(sidecar) => {
                        let total: usize = sidecar.targets().iter().map(|target| target.entries.len()).sum();
                        prop_assert_eq!(total, sidecar.containers.iter().map(|container| container.intercepts.len()).sum::<usize>());
                    }
                    Err(faults) => prop_assert!(!faults.is_empty()),
                }
            }
        }
    }

    #[test]
    fn any_value_under_any_key_is_read_or_refused(
        key in prop::sample::select(vec![
            "agentName", "managerPort", "logLevel", "sessionGrace", "drain", "envoy", "expiredNotifications",
            "mountPolicies", "containers", "enableMetrics", "appProtocolStrategy", "clientConnectionTTL",
        ]),
        value in prop::sample::select(vec![
            "null", "true", "-1", "1e400", "1e300", ".nan", "18446744073709551616", "-9223372036854775809", "[[]]", "[null]",
            "{a: b}", "'x'", "0x", "08", "[{intercepts: [null]}]", "[{mounts: 5, replace: [1]}]",
            "!!int 'x'", "2001-01-01",
        ]),
    ) {
        let _ = from_yaml(&format!("{key}: {value}\n"), "config.yaml", Role::Agent);
    }
}
