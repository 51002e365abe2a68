use super::*;
use std::fs;

const GOOD: &str = "agentName: web\nnamespace: shop\nmanagerHost: tm\ncontainers:\n- name: app\n  envPrefix: A_\n  \
                    mountPoint: /tel_app_mounts/app\n  intercepts:\n  - {protocol: TCP, containerPort: 8080, agentPort: 9900}\n";

struct Pod(tempfile::TempDir);

impl Pod {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, path: &str, text: &str) -> Self {
        let path = below(self.0.path(), path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn load(&self, env: &[(&str, &str)]) -> Result<Settings, Faults> {
        let args = cli::AgentArgs {
            root: Some(self.0.path().to_owned()),
            ..Default::default()
        };
        Settings::load(&args, &Env::of(env))
    }
}

fn annotation(name: &str) -> String {
    let json =
        format!(r#"{{"agentName":"{name}","namespace":"n","managerHost":"m","containers":[]}}"#);
    format!("a=\"b\"\n{}={json:?}\n", annotations::AGENT_CONFIG)
}

fn json(name: &str) -> String {
    format!(r#"{{"agentName":"{name}","namespace":"n","managerHost":"m"}}"#)
}

#[test]
fn the_documented_order_of_sources_holds() {
    let pod = Pod::new().with(CONFIG_FILE, GOOD);
    assert_eq!(pod.load(&[]).unwrap().source, CONFIG_FILE);
    let settings = pod.load(&[("AGENT_CONFIG", &json("from-env"))]).unwrap();
    assert_eq!(
        (
            settings.source.as_str(),
            settings.sidecar.agent_name.as_str()
        ),
        ("AGENT_CONFIG", "from-env")
    );
    let pod = pod.with(PODINFO_ANNOTATIONS, &annotation("from-annotation"));
    let settings = pod.load(&[("AGENT_CONFIG", &json("from-env"))]).unwrap();
    assert_eq!(settings.sidecar.agent_name, "from-annotation");
    assert_eq!(settings.annotations.get("a").map(String::as_str), Some("b"));
    let file = pod.0.path().join("explicit.yaml");
    fs::write(&file, GOOD.replace("web", "explicit")).unwrap();
    let args = cli::AgentArgs {
        root: Some(pod.0.path().to_owned()),
        config: Some(file),
        ..Default::default()
    };
    assert_eq!(
        Settings::load(&args, &Env::default())
            .unwrap()
            .sidecar
            .agent_name,
        "explicit"
    );
}

/// Up to 2.21 the agent stays on its port, with the redirect; from 2.22 on it takes the container's.
#[test]
fn the_source_of_the_configuration_says_what_a_replacement_is() {
    let replaced = GOOD
        .replace("- name: app", "- name: app\n  replace: 1")
        .replace("{protocol", "{targetPortNumeric: true, protocol");
    let listener = |settings: Settings| {
        let target = &settings.targets[0];
        (target.listen_port(), settings.app_port(target))
    };
    let older = Pod::new().with(CONFIG_FILE, &replaced);
    assert_eq!(listener(older.load(&[]).unwrap()), (9900, 9912));
    let json = r#"{"agentName":"web","namespace":"shop","managerHost":"tm","containers":[
        {"name":"app","envPrefix":"A_","mountPoint":"/tel_app_mounts/app","replace":1,"intercepts":[
        {"targetPortNumeric":true,"protocol":"TCP","containerPort":8080,"agentPort":9900}]}]}"#;
    let newer = older.load(&[("AGENT_CONFIG", json)]).unwrap();
    assert_eq!(listener(newer), (8080, 8080));
}

#[test]
fn annotations_without_a_configuration_lead_on_to_the_next_source() {
    let pod = Pod::new()
        .with(PODINFO_ANNOTATIONS, "a=\"b\"\n")
        .with(CONFIG_FILE, GOOD);
    let settings = pod.load(&[]).unwrap();
    assert_eq!(
        (settings.source.as_str(), settings.annotations.len()),
        (CONFIG_FILE, 1)
    );
    let pod = Pod::new()
        .with(TEL_POD_INFO_ANNOTATIONS, "old=\"1\"\n")
        .with(CONFIG_FILE, GOOD);
    assert_eq!(
        pod.load(&[])
            .unwrap()
            .annotations
            .get("old")
            .map(String::as_str),
        Some("1")
    );
}

#[test]
fn every_fault_of_every_source_is_reported_at_once() {
    let bad = "agentName: web\ncontainers:\n- name: app\n  intercepts:\n  - {containerPort: 0, \
        agentPort: 70000}\n";
    let faults = Pod::new()
        .with(CONFIG_FILE, bad)
        .load(&[
            ("AGENT_BIND", "everywhere"),
            ("AGENT_DRAIN_GRACE", "30"),
            ("AGENT_SESSION_GRACE", "-1s"),
            ("AGENT_ENVOY_ADMIN_PORT", "99999"),
            ("AGENT_EXPIRED_NOTIFICATIONS", "perhaps"),
            ("AGENT_APP_PROTOCOL_STRATEGY", "guess"),
            ("AGENT_ENVOY_LOG_LEVEL", "loud"),
            ("AGENT_WORKERS", "0"),
            ("AGENT_ACCESS_LOG", "%NOSUCH%"),
            ("_TEL_AGENT_POD_IP", "10.1.2"),
        ])
        .unwrap_err();
    let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
    let named = |start: &str| lines.iter().filter(|l| l.starts_with(start)).count();
    for start in [
        "AGENT_BIND=\"everywhere\": unknown value; use pod or all",
        "AGENT_DRAIN_GRACE=\"30\": ",
        "AGENT_SESSION_GRACE=\"-1s\": negative duration; ",
        "AGENT_ENVOY_ADMIN_PORT=\"99999\": no port; use 1 to 65535",
        "AGENT_EXPIRED_NOTIFICATIONS=\"perhaps\": unknown value; use true or false",
        "AGENT_APP_PROTOCOL_STRATEGY=\"guess\": unknown strategy; use http2Probe, portName, http \
        or http2",
        "AGENT_ENVOY_LOG_LEVEL=\"loud\": unknown level; ",
        "AGENT_WORKERS=\"0\": not a number in range; use a whole number from 1 to 64",
        "AGENT_ACCESS_LOG=\"%NOSUCH%\": ",
        "_TEL_AGENT_POD_IP=\"10.1.2\": no IP address; pass status.podIP",
    ] {
        assert_eq!(named(start), 1, "{start} in {lines:#?}");
    }
    assert!(
        lines.len() >= 14,
        "the file's own faults are there too: {lines:#?}"
    );
}

#[test]
fn the_environment_wins_over_the_configuration() {
    let config = format!(
        "{GOOD}logLevel: debug\nsessionGrace: 5s\ndrain: {{lameDuck: 1s, grace: 2s}}\nenvoy: \
        {{adminPort: 1234}}\nmetrics: {{port: 15020}}\n"
    );
    let pod = Pod::new().with(CONFIG_FILE, &config);
    let settings = pod.load(&[("LOG_LEVEL", "error")]).unwrap();
    assert_eq!(
        settings.log_level,
        LogLevel::Debug,
        "the configuration's level governs"
    );
    assert_eq!((settings.admin_port, settings.server_port), (1234, 18_000));
    assert_eq!(settings.metrics_port, Some(15_020));
    assert_eq!(settings.remember(), None);
    let settings = pod.load(&[("AGENT_METRICS_PORT", "15021")]).unwrap();
    assert_eq!(settings.metrics_port, Some(15_021));
    let settings = pod
        .load(&[
            ("AGENT_METRICS_PORT", "0"),
            ("AGENT_SESSION_GRACE", "7s"),
            ("AGENT_DRAIN_GRACE", "9s"),
            ("AGENT_ENVOY_ADMIN_PORT", "0"),
            ("AGENT_EXPIRED_NOTIFICATIONS", "true"),
            ("AGENT_EXPIRED_DEADLINE", "1h"),
            ("AGENT_ACCESS_LOG_HEADERS", "x-dev, x-request-id,"),
            ("_TEL_AGENT_POD_IP", "10.1.2.3"),
        ])
        .unwrap();
    assert_eq!(settings.sidecar.session_grace, Duration::from_secs(7));
    assert_eq!(settings.sidecar.drain.lame_duck, Duration::from_secs(1));
    assert_eq!(settings.sidecar.drain.grace, Duration::from_secs(9));
    assert_eq!(settings.admin_port, 0);
    assert_eq!(settings.metrics_port, None);
    assert_eq!(settings.remember(), Some(Duration::from_secs(3600)));
    assert_eq!(settings.access_log_headers, ["x-dev", "x-request-id"]);
    assert_eq!(settings.pod_ip, Some("10.1.2.3".parse().unwrap()));
}

#[test]
fn no_configuration_is_one_fault_that_names_every_place() {
    let faults = Pod::new().load(&[]).unwrap_err();
    let text = faults.to_string();
    assert_eq!(faults.len(), 1);
    for place in [PODINFO_ANNOTATIONS, "AGENT_CONFIG", CONFIG_FILE, "--config"] {
        assert!(text.contains(place), "{place}: {text}");
    }
}

#[test]
fn help_lists_every_variable() {
    let help = cli::parse(["traffic-agent", "--help"].map(Into::into))
        .unwrap_err()
        .to_string();
    for (name, _) in env::TABLE {
        assert!(help.contains(name), "{name}");
    }
    let cli =
        cli::parse(["traffic-agent", "agent", "--root", "/x", "--check"].map(Into::into)).unwrap();
    assert!(cli.agent.check && cli.agent.root == Some(PathBuf::from("/x")));
    let cli =
        cli::parse(["traffic-agent", "agent-init", "--dry-run", "--help"].map(Into::into)).unwrap();
    assert!(
        matches!(cli.command, Some(cli::Command::AgentInit { args }) if args == ["--dry-run", "--help"])
    );
}

#[test]
fn what_cannot_be_meant_is_said_by_the_check() {
    let rows: [(&str, &str, &[&str]); 6] = [
        (
            "managerHost: tm",
            "managerHost: 127.0.0.1:8081",
            &["managerHost", "managerPort"],
        ),
        (
            "managerHost: tm",
            "managerHost: http://tm",
            &["managerHost", "a URL is no host"],
        ),
        ("managerHost: tm", "managerHost: '::1'", &[]),
        (
            "agentPort: 9900",
            "agentPort: 18000",
            &["agentPort=18000", "gRPC API"],
        ),
        (
            "agentPort: 9900",
            "agentPort: 19000",
            &["agentPort=19000", "admin"],
        ),
        (
            "containers:",
            "containers:\n- name: app",
            &["containers[].name=\"app\""],
        ),
    ];
    for (good, bad, said) in rows {
        let pod = Pod::new().with(CONFIG_FILE, &GOOD.replace(good, bad));
        let faults = check::faults(&pod.load(&[]).unwrap());
        assert_eq!(faults.is_empty(), said.is_empty(), "{bad}: {faults}");
        for part in said {
            assert!(faults.to_string().contains(part), "{bad}: {faults}");
        }
    }
}

#[test]
fn likely_misspellings_are_warnings_with_what_was_meant() {
    let config = GOOD.replace("{protocol", "{appProtocol: htttp, protocol");
    let pod = Pod::new().with(CONFIG_FILE, &config);
    let env = [
        ("AGENT_ACCESSLOG", "json"),
        ("AGENT_FOO", "1"),
        ("AGENT_UID", "1000"),
        ("AGENT_SERVICE_HOST", "10.0.0.1"),
    ];
    let warnings = pod.load(&env).unwrap().warnings;
    let said: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "appProtocol=\"htttp\": unknown protocol: each connection's first bytes decide; did you mean http?",
            "AGENT_ACCESSLOG=\"json\": unknown variable, ignored; did you mean AGENT_ACCESS_LOG?",
            "AGENT_FOO=\"1\": unknown variable, ignored; check the spelling, or remove it; --help lists all variables",
        ]
    );
}

#[test]
fn a_file_that_is_no_utf8_text_is_named_with_the_way_out() {
    let utf16: Vec<u8> = [0xfeff_u16]
        .into_iter()
        .chain(GOOD.encode_utf16())
        .flat_map(u16::to_le_bytes)
        .collect();
    for (bytes, problem) in [
        (utf16, "is UTF-16 text"),
        (vec![0x7f, b'E', 0xff, 0], "is no text"),
    ] {
        let pod = Pod::new().with(CONFIG_FILE, "");
        fs::write(below(pod.0.path(), CONFIG_FILE), bytes).unwrap();
        let text = pod.load(&[]).unwrap_err().to_string();
        assert!(text.contains(problem) && text.contains("UTF-8"), "{text}");
        assert!(!text.contains("permissions"), "{text}");
    }
    let marked = format!("\u{feff}{GOOD}");
    assert!(Pod::new().with(CONFIG_FILE, &marked).load(&[]).is_ok());
}
