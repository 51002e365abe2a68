//! All mistakes in a configuration, by their messages.

use super::*;

/// Returns the faults of an otherwise valid configuration, one per line.
fn faults(yaml: &str) -> Vec<String> {
    match from_yaml(yaml, "config.yaml", Role::Init) {
        Ok(sidecar) => panic!("no fault in {yaml}\n{sidecar:?}"),
        Err(faults) => faults.to_string().lines().map(str::to_owned).collect(),
    }
}

#[test]
fn each_fault_names_path_value_place_and_remedy() {
    for (yaml, fault) in [
        (
            "managerPort: 70000",
            "managerPort=70000: out of range (config.yaml line 1); write 1 to 65535",
        ),
        (
            "managerPort: -1",
            "managerPort=-1: out of range (config.yaml line 1); write 1 to 65535",
        ),
        (
            "apiPort: '80'",
            "apiPort=\"80\": not a port number (config.yaml line 1); write 1 to 65535, without \
            quotes",
        ),
        (
            "apiPort: 089",
            "apiPort=089: not a port number (config.yaml line 1); write 1 to 65535, without \
            quotes",
        ),
        (
            "apiPort: 80.5",
            "apiPort=80.5: not a port number (config.yaml line 1); write 1 to 65535, without \
            quotes",
        ),
        (
            "apiPort: [1]",
            "apiPort=[…]: not a port number (config.yaml line 1); write 1 to 65535, without \
            quotes",
        ),
        (
            "apiPort: 99999999999999999999999",
            "apiPort=99999999999999999999999: not a port number",
        ),
        (
            "agentName: [a]",
            "agentName=[…]: not a text (config.yaml line 1); write a text in quotes",
        ),
        (
            "enableMetrics: 1",
            "enableMetrics=1: neither true nor false (config.yaml line 1); write true or false",
        ),
        (
            "enableMetrics: 'yes'",
            "enableMetrics=\"yes\": neither true nor false",
        ),
        (
            "\n\nlogLevel: verbose",
            "logLevel=verbose: unknown log level (config.yaml line 3); write trace, debug,",
        ),
        ("logLevel: 5", "logLevel=5: unknown log level"),
        (
            "envoy: {logLevel: x}",
            "envoy.logLevel=x: unknown log level",
        ),
        (
            "envoy: on",
            "envoy=on: not a map (config.yaml line 1); write key: value pairs",
        ),
        (
            "drain: {grace: 30x}",
            "drain.grace=30x: unknown unit \"x\" (config.yaml line 1); write a number and a unit",
        ),
        (
            "drain: {grace: '30'}",
            "drain.grace=\"30\": no unit (config.yaml line 1); write a number and a unit",
        ),
        (
            "drain: {lameDuck: 1d}",
            "drain.lameDuck=1d: unknown unit \"d\"",
        ),
        (
            "sessionGrace: -1s",
            "sessionGrace=-1s: negative duration (config.yaml line 1); write 0s or more",
        ),
        ("sessionGrace: 1.5", "sessionGrace=1.5: not a duration"),
        ("sessionGrace: true", "sessionGrace=true: not a duration"),
        (
            "expiredNotifications: {deadline: 1h 2m}",
            "expiredNotifications.deadline=1h 2m: unknown unit",
        ),
        (
            "appProtocolStrategy: guess",
            "appProtocolStrategy=guess: unknown strategy (config.yaml line 1); write http2Probe",
        ),
        (
            "mountPolicies: {/tmp: Lokal}",
            "mountPolicies[\"/tmp\"]=Lokal: unknown mount policy",
        ),
        (
            "mountPolicies: {/tmp: 4}",
            "mountPolicies[\"/tmp\"]=4: unknown mount policy",
        ),
        ("mountPolicies: [/tmp]", "mountPolicies=[…]: not a map"),
        (
            "containers: {}",
            "containers={…}: not a list (config.yaml line 1); write a list",
        ),
        (
            "containers: [{}]",
            "containers[0].name: missing (config.yaml line 1); write the container's name",
        ),
        ("containers: [app]", "containers[0]=app: not a map"),
        (
            "containers: [{name: a, replace: 3}]",
            "containers[0].replace=3: unknown kind of replacement",
        ),
        (
            "containers: [{name: a, mounts: {/a: No}}]",
            "containers[0].mounts[\"/a\"]=No: unknown mount policy",
        ),
        (
            "containers: [{name: a, mounts: [[]]}]",
            "containers[0].mounts[0]=[…]: not a text",
        ),
        (
            "containers: [{name: a, mounts: /a}]",
            "containers[0].mounts=/a: not a map",
        ),
        ("[]", "config.yaml: a list, where a map is expected"),
        ("", "config.yaml: empty configuration"),
        ("a: [", "config.yaml: not valid YAML: "),
    ] {
        let found = faults(yaml);
        assert!(found[0].starts_with(fault), "{yaml}\n{found:?}");
        assert!(found[0].contains("; "), "no remedy in {found:?}");
    }
    for (json, fault) in [
        ("", "AGENT_CONFIG: not valid JSON: EOF while parsing"),
        ("null", "AGENT_CONFIG: empty configuration"),
        (
            r#"{"namespace": 5}"#,
            "namespace=5: not a text (AGENT_CONFIG); write a text in quotes",
        ),
        (
            r#"{"apiPort": "80"}"#,
            "apiPort=\"80\": not a port number (AGENT_CONFIG); write 1 to 65535, without quotes",
        ),
    ] {
        let found = from_json(json, "AGENT_CONFIG", Role::Init)
            .unwrap_err()
            .to_string();
        assert!(found.starts_with(fault), "{json}\n{found}");
    }
}

#[test]
fn faulty_ports_of_an_entry_are_named() {
    for (entry, fault) in [
        (
            "agentPort: 9900",
            "containers[0].intercepts[0].containerPort: missing (config.yaml line 4); write the \
            port the app",
        ),
        (
            "containerPort: 80",
            "containers[0].intercepts[0].agentPort: missing (config.yaml line 4); write the port \
            the agent",
        ),
        (
            "containerPort: 0, agentPort: 9900",
            "containers[0].intercepts[0].containerPort=0: 0 is not a port number",
        ),
        (
            "containerPort: 80, agentPort: 65536",
            "containers[0].intercepts[0].agentPort=65536: out of range",
        ),
        (
            "containerPort: http, agentPort: 1",
            "containers[0].intercepts[0].containerPort=http: not a port number",
        ),
        (
            "containerPort: 80, agentPort: 1, protocol: SCTP",
            "containers[0].intercepts[0].protocol=SCTP: unknown transport",
        ),
        (
            "containerPort: 80, agentPort: 1, inactivePort: x",
            "containers[0].intercepts[0].inactivePort=x: not a port number",
        ),
        (
            "containerPort: 80, agentPort: 1, headless: 2",
            "containers[0].intercepts[0].headless=2: neither true nor false",
        ),
    ] {
        let found = faults(&entries(&[entry]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(fault), "{entry}\n{found:?}");
    }
}

#[test]
fn all_faults_are_reported_together() {
    let yaml = "
logLevel: loud
managerPort: 99999
sessionGrace: 10
drain: {grace: soon}
containers:
- name: app
  intercepts:
  - {agentPort: 0, containerPort: 80, protocol: TCP}
  - {agentPort: 9900, containerPort: 9900, protocol: TCP}
- replace: maybe
";
    let found = agent(yaml).unwrap_err().to_string();
    let keys: Vec<_> = found
        .lines()
        .map(|line| line.split([':', '=']).next().unwrap())
        .collect();
    assert_eq!(
        keys,
        [
            "agentName",
            "namespace",
            "managerHost",
            "managerPort",
            "logLevel",
            "drain.grace",
            "containers[0].intercepts[0].agentPort",
            "containers[1].name",
            "containers[1].replace",
            "containers[0].intercepts[1].agentPort",
        ],
        "{found}"
    );
}

#[test]
fn only_the_agent_needs_names_and_a_manager() {
    let found = agent("{}").unwrap_err().to_string();
    assert_eq!(found.lines().count(), 3);
    assert!(
        found.starts_with("agentName: missing (config.yaml line 1); write the workload's name\n"),
        "{found}"
    );
    let sidecar = init("{}");
    assert_eq!((&*sidecar.agent_name, &*sidecar.manager_host), ("", ""));
}

#[test]
fn ports_in_each_others_way_are_faults() {
    let numeric = |container: u32, agent: u32| {
        format!(
            "containerPort: {container}, agentPort: {agent}, protocol: TCP, targetPortNumeric: \
            true"
        )
    };
    let named = |container: u32, agent: u32| {
        format!("containerPort: {container}, agentPort: {agent}, protocol: TCP")
    };
    let udp = |container: u32, agent: u32| {
        format!("containerPort: {container}, agentPort: {agent}, protocol: UDP")
    };
    let path = |index: usize, key: &str| format!("containers[0].intercepts[{index}].{key}");
    for (list, fault) in [
        // One listener for two ports of the app.
        (
            vec![named(80, 9900), named(81, 9900)],
            format!(
                "{}=9900: 9900/TCP leads to container port 81 here and to 80 in containers[0]",
                path(1, "agentPort")
            ),
        ),
        // The agent would listen where an app does.
        (
            vec![named(80, 9900), named(9900, 9901)],
            format!(
                "{}=9900: is also the containerPort of {}",
                path(0, "agentPort"),
                path(1, "")
            )
            .replace(". ", " "),
        ),
        (
            vec![named(80, 80)],
            format!("{}=80: is also the containerPort of", path(0, "agentPort")),
        ),
        // 65525 + 11 is 65536 even without counting the entry.
        (
            vec![numeric(80, 65525)],
            format!(
                "{}=65525: the proxy port 65537 (agentPort + 11 + 1 entries) is above 65535",
                path(0, "agentPort")
            ),
        ),
        // 9900 + 11 + 2 entries is 9913.
        (
            vec![numeric(80, 9900), named(9913, 9901)],
            format!(
                "{}=9900: the proxy port 9913 (agentPort + 11 + 2 entries) is also containerPort \
                9913",
                path(0, "agentPort")
            ),
        ),
        (
            vec![numeric(80, 9900), named(81, 9913)],
            format!(
                "{}=9900: the proxy port 9913 (agentPort + 11 + 2 entries) is also agentPort 9913",
                path(0, "agentPort")
            ),
        ),
        (
            vec![
                numeric(80, 9900),
                format!("{}, inactivePort: 9913", numeric(81, 9901)),
            ],
            format!(
                "{}=9913: the proxy port is also the proxy port of agentPort 9900",
                path(1, "inactivePort")
            ),
        ),
        (
            vec![
                format!("{}, inactivePort: 1000", numeric(80, 9900)),
                format!("{}, inactivePort: 1001", numeric(80, 9900)),
            ],
            format!("{}=1001: differs from 1000", path(1, "inactivePort")),
        ),
    ] {
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        let found = faults(&entries(&list));
        let fault = fault
            .replace("intercepts[1].:", "intercepts[1]")
            .trim_end_matches('.')
            .to_owned();
        assert!(
            found.iter().any(|line| line.starts_with(&fault)),
            "{list:?}\n{fault}\n{found:#?}"
        );
    }
    // Fine: names need no proxy port, and another transport is another port.
    for list in [
        vec![named(80, 65530)],
        vec![numeric(80, 9900), udp(9900, 9901)],
        vec![numeric(80, 9900), udp(9913, 9901)],
        vec![numeric(80, 9900), numeric(80, 9900), udp(80, 9900)],
        vec![named(80, 9900), named(9911, 9912), named(9913, 9914)],
    ] {
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        assert_eq!(warnings(&entries(&list)), [""; 0], "{list:?}");
    }
}

#[test]
fn deep_documents_are_refused() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(from_yaml(&deep, "config.yaml", Role::Init).is_err());
    assert!(from_json(&deep, "AGENT_CONFIG", Role::Init).is_err());
}
