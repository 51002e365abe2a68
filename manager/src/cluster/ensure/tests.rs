use super::ports::{choose, choose_ports};
use super::*;
use injector::{Service, Settings, Surroundings, Template, Workload};
use serde_json::json;

fn config(services: serde_json::Value, annotations: serde_json::Value) -> Config {
    let template: k8s_openapi::api::core::v1::PodTemplateSpec = serde_json::from_value(json!({
        "metadata": {"labels": {"app": "web"}, "annotations": annotations},
        "spec": {"containers": [
            {"name": "app", "ports": [
                {"name": "http", "containerPort": 8080},
                {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
                {"name": "dns-tcp", "containerPort": 5353},
                {"name": "syslog", "containerPort": 5140, "protocol": "UDP"}]},
            {"name": "side", "ports": [{"name": "grpc", "containerPort": 9000}]},
        ]},
    }))
    .unwrap();
    let workload = Workload {
        kind: Kind::Deployment,
        name: "web".to_owned(),
        namespace: "n".to_owned(),
        template: Template::from(&template),
    };
    let services = services.as_object().unwrap().iter().map(|(name, ports)| {
        let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": "u"},
            "spec": {"selector": {"app": "web"}, "ports": ports},
        }))
        .unwrap();
        Arc::new(Service::from(&service))
    });
    let around = Surroundings {
        services: services.collect(),
        ..Surroundings::default()
    };
    injector::plan(&workload, &BTreeSet::new(), &around, &Settings::default())
        .unwrap()
        .config
}

fn chosen(config: &Config, service: &str, port: &str) -> Result<String, String> {
    let spec = InterceptSpec {
        service_name: service.to_owned(),
        port_identifier: port.to_owned(),
        ..InterceptSpec::default()
    };
    choose(config, &spec).map(|it| format!("{}:{}", it.container, it.entry.container_port))
}

fn two_services() -> Config {
    config(
        json!({
            "api": [{"name": "grpc", "port": 90, "targetPort": "grpc"}],
            "web": [
                {"name": "web", "port": 80, "targetPort": "http"},
                {"name": "tls", "port": 443, "targetPort": "http"},
                {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"}],
        }),
        json!({}),
    )
}

#[test]
fn service_and_port_find_the_entry() {
    let config = two_services();
    for (service, port, found) in [
        ("", "web", "app:8080"),
        ("", "80", "app:8080"),
        ("", "443/TCP", "app:8080"),
        ("web", "53/UDP", "app:5353"),
        ("api", "", "side:9000"),
        // By the container's own port where no Service's is called that.
        ("", "http", "app:8080"),
        ("", "8080", "app:8080"),
        ("web", "8080", "app:8080"),
    ] {
        assert_eq!(
            chosen(&config, service, port).unwrap(),
            found,
            "{service} {port}"
        );
    }
}

#[test]
fn what_does_not_fit_is_answered_with_what_would() {
    let config = two_services();
    for (service, port, said) in [
        ("", "", "several ports that fit"),
        ("web", "", "choose one with --port"),
        (
            "",
            "99",
            "has no port \"99\"; there are web web (80/TCP), web tls (443/TCP)",
        ),
        ("web", "99", "no port \"99\" of Service \"web\""),
        ("gone", "", "no port of Service \"gone\""),
        ("", "53/TCP", "has no port \"53/TCP\""),
        ("", "80/SCTP", "unknown protocol"),
    ] {
        let error = chosen(&config, service, port).unwrap_err();
        assert!(error.contains(said), "{service} {port}: {error}");
    }
}

fn both_transports() -> Config {
    config(
        json!({
            "dns": [
                {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "targetPort": 5353, "protocol": "TCP"},
                {"name": "web", "port": 80, "targetPort": "http"},
                {"name": "syslog", "port": 514, "targetPort": 5140, "protocol": "UDP"}],
        }),
        json!({}),
    )
}

/// The main port with its transport, and the further ones.
fn ports(config: &Config, spec: InterceptSpec) -> Result<Vec<String>, String> {
    let chosen = choose_ports(config, &spec)?;
    let main = chosen.main.map(|it| it.entry);
    let main = main.map(|it| format!("{}/{}", it.container_port, it.protocol));
    Ok(main.into_iter().chain(chosen.further).collect())
}

fn spec(port: &str, further: &[&str]) -> InterceptSpec {
    InterceptSpec {
        port_identifier: port.to_owned(),
        pod_ports: further.iter().map(|it| (*it).to_owned()).collect(),
        ..InterceptSpec::default()
    }
}

#[test]
fn a_port_of_one_transport_needs_none_written_and_of_both_tcp_is_taken() {
    let config = both_transports();
    for (port, further, found) in [
        ("53", &[][..], &["5353/TCP"][..]),
        ("53/UDP", &[], &["5353/UDP"]),
        ("53/udp", &[], &["5353/UDP"]),
        ("dns", &[], &["5353/UDP"]),
        ("dns-tcp", &[], &["5353/TCP"]),
        ("514", &[], &["5140/UDP"]),
        // Further ones are told to the agent as ports of their container.
        (
            "web",
            &["dns:5300", "53:5301", "514:9000", "514"],
            &[
                "8080/TCP",
                "dns:5300/UDP",
                "5353:5301/TCP",
                "5140:9000/UDP",
                "5140:514/UDP",
            ],
        ),
    ] {
        assert_eq!(
            ports(&config, spec(port, further)).unwrap(),
            found,
            "{port}"
        );
    }
    let only = |protocol: &str| InterceptSpec {
        service_name: "dns".to_owned(),
        protocol: protocol.to_owned(),
        ..InterceptSpec::default()
    };
    let said = ports(&config, only("UDP")).unwrap_err();
    for port in ["dns dns (53/UDP)", "dns syslog (514/UDP)"] {
        assert!(said.contains(port), "{said}");
    }
    assert!(!said.contains("TCP"), "{said}");
    let config = two_services();
    let udp = InterceptSpec {
        protocol: "UDP".to_owned(),
        ..InterceptSpec::default()
    };
    assert_eq!(ports(&config, udp).unwrap(), ["5353/UDP"]);
}

#[test]
fn each_further_port_has_to_be_there_and_filters_need_ports_of_requests() {
    let config = both_transports();
    let said = ports(&config, spec("web", &["nosuch:1"])).unwrap_err();
    assert!(
        said.contains("no port \"nosuch\"; there are dns dns (53/UDP)"),
        "{said}"
    );
    for (port, further, said) in [
        ("dns", &[][..], "port dns dns (53/UDP) carries datagrams"),
        ("web", &["514:1"], "port 5140/UDP carries datagrams"),
    ] {
        let mut filtered = spec(port, further);
        filtered
            .header_filters
            .insert("x-dev".to_owned(), "me".to_owned());
        let refusal = ports(&config, filtered).unwrap_err();
        assert!(
            refusal.contains(said) && refusal.contains("--http-header x-dev"),
            "{refusal}"
        );
    }
}

#[test]
fn two_ways_to_one_port_are_one_port() {
    let config = config(
        json!({
            "one": [{"port": 80, "targetPort": "http"}],
            "two": [{"port": 80, "targetPort": 8080}],
        }),
        json!({}),
    );
    assert_eq!(chosen(&config, "", "").unwrap(), "app:8080");
    assert_eq!(chosen(&config, "two", "80").unwrap(), "app:8080");
}

#[test]
fn a_port_without_a_service_is_named_by_the_containers() {
    let config = config(
        json!({}),
        json!({"telepresence.io/inject-container-ports": "http,9000"}),
    );
    assert_eq!(chosen(&config, "", "http").unwrap(), "app:8080");
    assert_eq!(chosen(&config, "", "9000").unwrap(), "side:9000");
    let error = chosen(&config, "", "").unwrap_err();
    assert!(
        error.contains("container port 8080/TCP, container port 9000/TCP"),
        "{error}"
    );
}
