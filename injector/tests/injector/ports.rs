//! Ports: which are found, by which Service, and which agent port stands for them.

use injector::{Refusal, Service, Settings, Verdict};
use serde_json::{Value, json};
use traffic_proto::sidecar::AppProtocolStrategy;

use crate::rig::{annotated, decided, entries, patched, service, settings, simple, template, to};

/// Entries of a workload with these containers behind these Services.
fn found(containers: Value, services: &[Service]) -> Vec<String> {
    entries(&decided(&template(containers), services, &settings()))
}

fn two_containers() -> Value {
    json!([
        {"name": "shop", "ports": [
            {"name": "http", "containerPort": 8080},
            {"name": "dns", "containerPort": 5353, "protocol": "UDP"},
        ]},
        {"name": "side", "ports": [{"name": "grpc", "containerPort": 9000}]},
        {"name": "silent"},
    ])
}

#[test]
fn service_ports_find_container_ports_by_name_and_number() {
    for (ports, expected) in [
        (
            json!([{"port": 80, "targetPort": "http"}]),
            &["s:80 shop:8080/TCP>9900"][..],
        ),
        (
            json!([{"port": 80, "targetPort": 8080}]),
            &["s:80 shop:8080/TCP>9900 numeric"],
        ),
        (
            json!([{"port": 8080}]),
            &["s:8080 shop:8080/TCP>9900 numeric"],
        ),
        (
            json!([{"port": 9000, "targetPort": 0}]),
            &["s:9000 side:9000/TCP>9900 numeric"],
        ),
        (
            json!([{"port": 1, "targetPort": "grpc"}]),
            &["s:1 side:9000/TCP>9900"],
        ),
        (
            json!([{"port": 53, "targetPort": "dns", "protocol": "UDP"}]),
            &["s:53 shop:5353/UDP>9900"],
        ),
        // Declared by nobody: the first container that declares nothing may listen there.
        (
            json!([{"port": 80, "targetPort": 7000}]),
            &["s:80 silent:7000/TCP>9900 numeric"],
        ),
        (
            json!([{"port": 80, "targetPort": "http"}, {"port": 1, "targetPort": "grpc"}]),
            &["s:80 shop:8080/TCP>9900", "s:1 side:9000/TCP>9901"],
        ),
        // Two Service ports on one container port share the agent port.
        (
            json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": "http"}]),
            &["s:80 shop:8080/TCP>9900", "s:81 shop:8080/TCP>9900"],
        ),
        // What names no port is left out, silently for callers and with a note for people.
        (
            json!([{"port": 80, "targetPort": "http"}, {"port": 1, "targetPort": "nope"}]),
            &["s:80 shop:8080/TCP>9900"],
        ),
        // Only TCP and UDP can be carried.
        (
            json!([
                {"port": 80, "targetPort": "http"},
                {"port": 81, "targetPort": "http", "protocol": "SCTP"},
            ]),
            &["s:80 shop:8080/TCP>9900"],
        ),
    ] {
        assert_eq!(
            found(two_containers(), &[service("s", ports.clone())]),
            expected,
            "{ports}"
        );
    }
}

#[test]
fn services_are_taken_by_selector_and_in_order_of_their_names() {
    let of = |name: &str, selector: &[(&str, &str)]| {
        let mut service = service(name, json!([{"port": 80, "targetPort": "http"}]));
        service.selector = selector
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        service
    };
    let services = [
        of("z", &[("app", "shop")]),
        of("a", &[("app", "shop")]),
        of("other", &[("app", "other")]),
        of("more", &[("app", "shop"), ("tier", "web")]),
        of("none", &[]),
    ];
    assert_eq!(
        entries(&decided(&simple(), &services, &settings())),
        ["a:80 shop:8080/TCP>9900", "z:80 shop:8080/TCP>9900"]
    );
}

#[test]
fn an_external_service_leads_nowhere() {
    let service: k8s_openapi::api::core::v1::Service = serde_json::from_value(json!({
        "metadata": {"name": "s"},
        "spec": {"type": "ExternalName", "selector": {"app": "shop"}, "ports": [{"port": 8080}]},
    }))
    .unwrap();
    let decision = decided(&simple(), &[Service::from(&service)], &settings());
    assert_eq!(entries(&decision), ["- shop:8080/TCP>9900 numeric"]);
}

#[test]
fn annotations_narrow_services_and_ports_down() {
    let services = [
        service(
            "a",
            json!([
                {"name": "web", "port": 80, "targetPort": "http"},
                {"name": "alt", "port": 81, "targetPort": 8080},
            ]),
        ),
        service(
            "b",
            json!([{"name": "web", "port": 82, "targetPort": "http"}]),
        ),
    ];
    for (key, value, expected) in [
        ("inject-service-name", "b", &["b:82 shop:8080/TCP>9900"][..]),
        (
            "inject-service-ports",
            "web",
            &["a:80 shop:8080/TCP>9900", "b:82 shop:8080/TCP>9900"],
        ),
        // A number is the target's where that is a number, else the Service's own.
        (
            "inject-service-ports",
            "8080",
            &["a:81 shop:8080/TCP>9900 numeric"],
        ),
        ("inject-service-ports", "80", &["a:80 shop:8080/TCP>9900"]),
        ("inject-service-ports", "81", &[]),
        ("inject-service-ports", "80/UDP", &[]),
        (
            "inject-service-ports",
            "82,web",
            &["a:80 shop:8080/TCP>9900", "b:82 shop:8080/TCP>9900"],
        ),
    ] {
        for domain in ["telepresence.io", "telepresence.getambassador.io"] {
            let template = annotated(&[(&format!("{domain}/{key}"), value)]);
            let decision = decided(&template, &services, &settings());
            assert_eq!(entries(&decision), expected, "{key}={value}");
        }
    }
}

#[test]
fn a_named_service_that_is_not_there_is_said_to_be() {
    let template = annotated(&[("telepresence.io/inject-service-name", "gone")]);
    let decision = decided(&template, &[to(json!("http"))], &settings());
    assert!(matches!(
        decision.verdict,
        Verdict::Refuse(Refusal::NoSuchService { .. })
    ));
    let said = &decision.warnings[0];
    assert!(
        said.contains("inject-service-name=\"gone\": no such Service"),
        "{said}"
    );
}

#[test]
fn ports_of_an_annotation_need_no_service() {
    for (value, expected) in [
        ("http", &["- shop:8080/TCP>9900 numeric"][..]),
        ("8080", &["- shop:8080/TCP>9900 numeric"]),
        ("8080/TCP", &["- shop:8080/TCP>9900 numeric"]),
        (
            "9090,9091",
            &[
                "- shop:9090/TCP>9900 numeric",
                "- shop:9091/TCP>9901 numeric",
            ],
        ),
        ("8080/UDP", &["- shop:8080/UDP>9900 numeric"]),
    ] {
        let template = annotated(&[("telepresence.io/inject-container-ports", value)]);
        assert_eq!(
            entries(&decided(&template, &[], &settings())),
            expected,
            "{value}"
        );
    }
    let template = annotated(&[("telepresence.io/inject-container-ports", "9090,9091")]);
    let plan = decided(&template, &[], &settings()).plan.unwrap();
    let names: Vec<_> = plan
        .config
        .entries()
        .map(|(_, it)| it.container_port_name.clone())
        .collect();
    assert_eq!(names, ["port-a", "port-b"]);
}

#[test]
fn a_port_that_a_service_leads_to_is_not_taken_twice() {
    let template = annotated(&[("telepresence.io/inject-container-ports", "8080,9090")]);
    assert_eq!(
        entries(&decided(&template, &[to(json!("http"))], &settings())),
        ["shop:80 shop:8080/TCP>9900", "- shop:9090/TCP>9901 numeric"]
    );
}

#[test]
fn a_named_port_that_no_container_has_is_refused() {
    let template = annotated(&[("telepresence.io/inject-container-ports", "metrics")]);
    let decision = decided(&template, &[to(json!("http"))], &settings());
    let said = &decision.warnings[0];
    assert!(
        said.contains("inject-container-ports=\"metrics\"")
            && said.contains("no container of Deployment shop.default has a port of this name"),
        "{said}"
    );
}

#[test]
fn without_a_service_every_declared_port_can_be_intercepted() {
    let decision = decided(&template(two_containers()), &[], &settings());
    assert_eq!(
        entries(&decision),
        [
            "- shop:8080/TCP>9900 numeric",
            "- shop:5353/UDP>9901 numeric",
            "- side:9000/TCP>9902 numeric",
        ]
    );
    assert!(decision.reasons[0].starts_with("no Service selects the pod"));
}

#[test]
fn a_workload_without_any_port_gets_an_agent_and_a_warning() {
    let decision = decided(&template(json!([{"name": "shop"}])), &[], &settings());
    assert_eq!(decision.verdict, Verdict::Inject);
    assert!(decision.warnings[0].contains("has no port to intercept"));
}

#[test]
fn a_headless_service_is_served_by_a_redirect() {
    let mut headless = to(json!("http"));
    headless.headless = true;
    let decision = decided(&simple(), &[headless], &settings());
    assert_eq!(entries(&decision), ["shop:80 shop:8080/TCP>9900 headless"]);
    assert!(decision.plan.unwrap().init);
}

#[test]
fn tcp_and_udp_of_one_number_share_the_agent_port() {
    let containers = json!([{"name": "dns", "ports": [
        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "containerPort": 53},
    ]}]);
    let ports = json!([
        {"name": "u", "port": 53, "targetPort": 53, "protocol": "UDP"},
        {"name": "t", "port": 53, "targetPort": 53},
    ]);
    assert_eq!(
        found(containers, &[service("s", ports)]),
        [
            "s:53 dns:53/UDP>9900 numeric",
            "s:53 dns:53/TCP>9900 numeric"
        ]
    );
}

#[test]
fn agent_ports_go_around_the_apps_own() {
    let containers = json!([{"name": "shop", "ports": [
        {"name": "http", "containerPort": 9900},
        {"name": "grpc", "containerPort": 9901},
        {"name": "more", "containerPort": 9902},
    ]}]);
    let ports = json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 9901}]);
    let decision = decided(&template(containers), &[service("s", ports)], &settings());
    assert_eq!(
        entries(&decision),
        ["s:80 shop:9900/TCP>9903", "s:81 shop:9901/TCP>9904 numeric"]
    );
    assert!(
        decision
            .reasons
            .iter()
            .any(|it| it.contains("agent port 9900 is taken")),
        "{:?}",
        decision.reasons
    );
}

#[test]
fn a_proxy_port_that_is_taken_is_replaced_and_written_down() {
    // 9900 + 11 + one entry.
    let containers = json!([{"name": "shop", "ports": [
        {"containerPort": 8080}, {"containerPort": 9912},
    ]}]);
    let decision = decided(&template(containers), &[to(json!(8080))], &settings());
    let plan = decision.plan.unwrap();
    let (_, entry) = plan.config.entries().next().unwrap();
    assert_eq!(entry.inactive_port, Some(9913));
    let plan = decided(&simple(), &[to(json!(8080))], &settings())
        .plan
        .unwrap();
    let (_, entry) = plan.config.entries().next().unwrap();
    assert_eq!(entry.inactive_port, None);
}

#[test]
fn one_number_in_two_containers_is_one_port() {
    let containers = json!([
        {"name": "a", "ports": [{"containerPort": 8080}]},
        {"name": "b", "ports": [{"name": "http", "containerPort": 8080}]},
    ]);
    let ports = json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8080}]);
    assert_eq!(
        found(containers, &[service("s", ports)]),
        ["s:80 b:8080/TCP>9900", "s:81 b:8080/TCP>9900 numeric"]
    );
}

#[test]
fn one_name_in_two_containers_is_taken_over_once() {
    let containers = json!([
        {"name": "a", "ports": [{"name": "dns", "containerPort": 53}]},
        {"name": "b", "ports": [{"name": "dns", "containerPort": 5353, "protocol": "UDP"}]},
    ]);
    let ports = json!([
        {"name": "t", "port": 53, "targetPort": "dns"},
        {"name": "u", "port": 53, "targetPort": "dns", "protocol": "UDP"},
    ]);
    assert_eq!(
        found(containers, &[service("s", ports)]),
        ["s:53 a:53/TCP>9900", "s:53 b:5353/UDP>9901 headless"]
    );
}

#[test]
fn the_app_protocol_is_declared_or_found_by_strategy() {
    use AppProtocolStrategy::{Http, Http2, Http2Probe, PortName};
    for (name, declared, probe, by_name, http, http2) in [
        ("web", "", "", "", "http", "http2"),
        ("web", "grpc", "grpc", "grpc", "grpc", "grpc"),
        ("http", "", "", "http", "http", "http2"),
        ("http-api", "", "", "http", "http", "http2"),
        ("https-api", "", "", "https", "http", "http2"),
        ("grpc-x-y", "", "", "grpc", "http", "http2"),
        ("http2", "", "", "http2", "http", "http2"),
        ("h2c", "", "", "http2", "http", "http2"),
        ("h2", "", "", "https", "http", "http2"),
        ("tls-x", "", "", "https", "http", "http2"),
    ] {
        for (strategy, expected) in [
            (Http2Probe, probe),
            (PortName, by_name),
            (Http, http),
            (Http2, http2),
        ] {
            let ports = json!([
                {"name": name, "port": 80, "targetPort": "http", "appProtocol": declared},
            ]);
            let settings = Settings {
                strategy,
                ..settings()
            };
            let plan = decided(&simple(), &[service("s", ports)], &settings)
                .plan
                .unwrap();
            let (_, entry) = plan.config.entries().next().unwrap();
            assert_eq!(entry.app_protocol, expected, "{name} {declared} {strategy}");
        }
    }
}

#[test]
fn the_configuration_is_what_agents_read() {
    let pod = patched(&simple(), &[to(json!(8080))], &settings());
    let config = crate::rig::config(&pod);
    assert_eq!(
        config,
        json!({
            "agentName": "shop",
            "containers": [{
                "envPrefix": "A_",
                "intercepts": [{
                    "agentPort": 9900, "containerPort": 8080, "containerPortName": "http",
                    "protocol": "TCP", "serviceName": "shop", "servicePort": 80,
                    "servicePortName": "web", "serviceUID": "uid-shop", "targetPortNumeric": true,
                }],
                "mountPoint": "/tel_app_mounts/shop",
                "name": "shop",
            }],
            "logLevel": "info",
            "managerHost": "traffic-manager.ambassador",
            "managerPort": 8081,
            "namespace": "default",
            "workloadKind": "Deployment",
            "workloadName": "shop",
        })
    );
}
