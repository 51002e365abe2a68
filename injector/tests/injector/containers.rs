//! The containers a patch adds, what it takes from the app's, and the worked example.

use std::collections::BTreeSet;

use injector::{Carrier, NativeSidecar, OwnerOf, Settings, Verdict, Wanted, decide};
use serde_json::{Value, json};

use crate::rig::{
    around, container, decided, names, patched, patched_by, pod, service, settings, simple,
    template, to, variables, workload,
};

#[test]
fn the_operations_come_in_a_fixed_order() {
    let template = template(json!([{"name": "shop", "image": "shop:1",
        "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]));
    let mut template = template;
    template["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let paths = |target: Value| -> Vec<String> {
        let decision = decided(&template, &[to(target)], &settings());
        let patch = serde_json::to_value(&decision.patch).unwrap();
        let operations = patch.as_array().unwrap().iter();
        let word = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
        operations
            .map(|it| format!("{} {}", word(it, "op"), word(it, "path")))
            .collect()
    };
    let named = [
        "add /spec/containers/-",
        "add /spec/volumes/-",
        "add /spec/volumes/-",
        "add /spec/volumes/-",
        "replace /spec/containers/0/ports/0/name",
        "replace /spec/containers/0/livenessProbe/httpGet/port",
        "add /metadata/annotations",
        "add /metadata/labels/telepresence.io~1workloadEnabled",
        "add /metadata/labels/telepresence.io~1workloadKind",
        "add /metadata/labels/telepresence.io~1workloadName",
    ];
    assert_eq!(paths(json!("http")), named);
    let numeric: Vec<_> = ["add /spec/initContainers"]
        .into_iter()
        .chain(named.into_iter().filter(|it| !it.starts_with("replace")))
        .collect();
    assert_eq!(paths(json!(8080)), numeric);
}

#[test]
fn the_agent_takes_over_the_ports_name() {
    let template = template(json!([{"name": "shop", "ports": [
            {"name": "http", "containerPort": 8080}, {"name": "other", "containerPort": 1}],
        "livenessProbe": {"httpGet": {"port": "http"}},
        "readinessProbe": {"tcpSocket": {"port": "http"}},
        "startupProbe": {"httpGet": {"port": 8080}},
        "lifecycle": {"preStop": {"httpGet": {"port": "http"}},
                      "postStart": {"tcpSocket": {"port": "other"}}}}]));
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let app = container(&pod, "shop");
    assert_eq!(names(&app["ports"]), ["tm-http", "other"]);
    assert_eq!(app["ports"][0]["containerPort"], 8080);
    assert_eq!(app["livenessProbe"]["httpGet"]["port"], "tm-http");
    assert_eq!(app["readinessProbe"]["tcpSocket"]["port"], "tm-http");
    assert_eq!(app["startupProbe"]["httpGet"]["port"], 8080);
    assert_eq!(app["lifecycle"]["preStop"]["httpGet"]["port"], "tm-http");
    assert_eq!(app["lifecycle"]["postStart"]["tcpSocket"]["port"], "other");
    let agent = container(&pod, "traffic-agent");
    assert_eq!(
        agent["ports"],
        json!([{"name": "http", "containerPort": 9900, "protocol": "TCP"}])
    );
    assert!(container(&pod, "tel-agent-init").is_null());
}

#[test]
fn hidden_names_stay_short_and_different() {
    let template = template(json!([{"name": "shop", "ports": [
        {"name": "a-long-name-web", "containerPort": 1},
        {"name": "a-long-name-api", "containerPort": 2},
        {"name": "tm-http", "containerPort": 3},
        {"name": "http", "containerPort": 4},
    ]}]));
    let ports = json!([
        {"name": "a", "port": 1, "targetPort": "a-long-name-web"},
        {"name": "b", "port": 2, "targetPort": "a-long-name-api"},
        {"name": "c", "port": 4, "targetPort": "http"},
    ]);
    let pod = patched(&template, &[service("s", ports)], &settings());
    assert_eq!(
        names(&container(&pod, "shop")["ports"]),
        ["tm-a-long-name", "tm-a-long-nam-1", "tm-http", "tm-http-1"]
    );
}

#[test]
fn the_same_name_in_another_container_is_hidden_as_well() {
    let template = template(json!([
        {"name": "a", "ports": [{"name": "http", "containerPort": 1}]},
        {"name": "b", "ports": [{"name": "http", "containerPort": 2}],
         "livenessProbe": {"httpGet": {"port": "http"}}},
    ]));
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let other = container(&pod, "b");
    assert_eq!(names(&other["ports"]), ["tm-http"]);
    assert_eq!(other["livenessProbe"]["httpGet"]["port"], "tm-http");
}

#[test]
fn a_numeric_port_gets_an_init_container() {
    let mut template = simple();
    template["spec"]["initContainers"] = json!([{"name": "migrate"}]);
    let pod = patched(&template, &[to(json!(8080))], &settings());
    assert_eq!(
        names(&pod["spec"]["initContainers"]),
        ["migrate", "tel-agent-init"]
    );
    let init = container(&pod, "tel-agent-init");
    assert_eq!(init["args"], json!(["agent-init"]));
    assert_eq!(init["image"], settings().image);
    assert_eq!(
        init["securityContext"],
        json!({"capabilities": {"add": ["NET_ADMIN"]}, "runAsGroup": 7440})
    );
    let variables = variables(init);
    assert_eq!(variables["AGENT_GID"], "7439");
    assert_eq!(variables["LOG_LEVEL"], "info");
    assert!(variables["POD_IP"].contains("status.podIP"));
    assert!(variables["POD_IPS"].contains("status.podIPs"));
    assert!(
        variables["AGENT_CONFIG"].contains("metadata.annotations['telepresence.io/agent-config']")
    );
    let app = container(&pod, "shop");
    assert_eq!(names(&app["ports"]), ["http"]);
    let agent = container(&pod, "traffic-agent");
    assert_eq!(
        agent["ports"],
        json!([{"containerPort": 9900, "protocol": "TCP"}])
    );
}

#[test]
fn a_port_both_named_and_numbered_is_redirected_only() {
    let ports = json!([
        {"name": "a", "port": 80, "targetPort": "http"},
        {"name": "b", "port": 81, "targetPort": 8080},
    ]);
    let pod = patched(&simple(), &[service("s", ports)], &settings());
    assert_eq!(names(&container(&pod, "shop")["ports"]), ["http"]);
    assert_eq!(
        container(&pod, "traffic-agent")["ports"][0]["name"],
        Value::Null
    );
}

#[test]
fn the_agents_environment_is_the_apps_under_a_prefix() {
    let template = template(json!([
        {"name": "shop", "ports": [{"name": "http", "containerPort": 8080}], "env": [
            {"name": "HOST", "value": "db"},
            {"name": "URL", "value": "http://$(HOST):$$(PORT)/$(KUBERNETES_PORT)"},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ]},
        {"name": "side", "env": [{"name": "HOST", "value": "$(FROM_MAP)"}], "envFrom": [
            {"configMapRef": {"name": "m"}}, {"prefix": "P_", "secretRef": {"name": "s"}}]},
    ]));
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let agent = container(&pod, "traffic-agent");
    let variables = variables(agent);
    assert_eq!(variables["_TEL_APP_A_HOST"], "db");
    assert_eq!(
        variables["_TEL_APP_A_URL"],
        "http://$(_TEL_APP_A_HOST):$$(PORT)/$(KUBERNETES_PORT)"
    );
    assert!(variables["_TEL_APP_A_CPU"].contains(r#""containerName":"shop""#));
    assert!(variables["_TEL_APP_A_PASSWORD"].contains("secretKeyRef"));
    assert_eq!(variables["_TEL_APP_B_HOST"], "$(_TEL_APP_B_FROM_MAP)");
    assert_eq!(
        agent["envFrom"],
        json!([
            {"prefix": "_TEL_APP_B_", "configMapRef": {"name": "m"}},
            {"prefix": "_TEL_APP_B_P_", "secretRef": {"name": "s"}},
        ])
    );
    for (name, field) in [
        ("_TEL_AGENT_POD_IP", "status.podIP"),
        ("_TEL_AGENT_NAME", "metadata.name"),
        ("_TEL_AGENT_POD_UID", "metadata.uid"),
        ("AGENT_CONFIG", "telepresence.io/agent-config"),
    ] {
        assert!(variables[name].contains(field), "{name}");
    }
    assert!(!variables.contains_key("TELEPRESENCE_API_PORT"));
}

#[test]
fn the_rest_api_is_told_to_every_container() {
    let settings = Settings {
        api_port: 9980,
        ..settings()
    };
    let template = template(json!([
        {"name": "a", "env": [{"name": "X", "value": "1"}], "ports": [
            {"name": "http", "containerPort": 1}]},
        {"name": "b", "env": [{"name": "TELEPRESENCE_API_PORT", "value": "9980"}]},
        {"name": "c"},
    ]));
    let pod = patched(&template, &[to(json!("http"))], &settings);
    for name in ["a", "b", "c", "traffic-agent"] {
        let variables = variables(container(&pod, name));
        assert_eq!(variables["TELEPRESENCE_API_PORT"], "9980", "{name}");
        assert_eq!(variables["TELEPRESENCE_API_HOST"], "localhost", "{name}");
    }
}

#[test]
fn readiness_is_asked_in_the_way_the_image_knows() {
    for (image, command) in [
        (
            "r.example/traffic-agent:1",
            json!(["traffic-agent", "ready"]),
        ),
        (
            "ghcr.io/telepresenceio/tel2:2.20.2",
            json!(["/bin/stat", "/tmp/agent/ready"]),
        ),
        ("tel2@sha256:00", json!(["/bin/stat", "/tmp/agent/ready"])),
    ] {
        let settings = Settings {
            image: image.to_owned(),
            ..settings()
        };
        let pod = patched(&simple(), &[to(json!("http"))], &settings);
        let agent = container(&pod, "traffic-agent");
        assert_eq!(
            agent["readinessProbe"],
            json!({"exec": {"command": command}}),
            "{image}"
        );
        assert_eq!(agent["image"], image);
        assert_eq!(agent["imagePullPolicy"], "IfNotPresent");
        assert_eq!(agent["args"], json!(["agent"]));
    }
}

#[test]
fn a_native_sidecar_is_an_init_container_behind_all_others() {
    use NativeSidecar::{Always, Auto, Never};
    for (choice, version, native) in [
        (Auto, Some((1, 31)), false),
        (Auto, Some((1, 32)), true),
        (Auto, Some((2, 0)), true),
        (Auto, None, false),
        (Always, Some((1, 28)), false),
        (Always, Some((1, 29)), true),
        (Always, None, true),
        (Never, Some((1, 34)), false),
    ] {
        let settings = Settings {
            native_sidecar: choice,
            server_version: version,
            ..settings()
        };
        let mut template = simple();
        template["spec"]["initContainers"] = json!([{"name": "migrate"}]);
        let pod = patched(&template, &[to(json!(8080))], &settings);
        let inits = names(&pod["spec"]["initContainers"]);
        if native {
            assert_eq!(inits, ["migrate", "tel-agent-init", "traffic-agent"]);
            assert_eq!(names(&pod["spec"]["containers"]), ["shop"]);
            assert_eq!(container(&pod, "traffic-agent")["restartPolicy"], "Always");
        } else {
            assert_eq!(
                inits,
                ["migrate", "tel-agent-init"],
                "{choice:?} {version:?}"
            );
            assert_eq!(names(&pod["spec"]["containers"]), ["shop", "traffic-agent"]);
        }
    }
}

#[test]
fn a_native_sidecar_whose_mark_was_dropped_becomes_an_ordinary_container() {
    let settings = Settings {
        native_sidecar: NativeSidecar::Always,
        ..settings()
    };
    let (workload, wanted) = (workload(&simple()), Wanted::agent());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let surroundings = around(&[to(json!("http"))]);
    let mut json = patched_by(&pod(&simple()), &owner, &surroundings, &settings);
    let agent = json["spec"]["initContainers"][0].as_object_mut().unwrap();
    assert_eq!(agent["name"], "traffic-agent");
    agent.remove("restartPolicy");
    let marred = serde_json::from_value(json).unwrap();
    let mended = patched_by(&marred, &owner, &surroundings, &settings);
    assert_eq!(
        names(&mended["spec"]["containers"]),
        ["shop", "traffic-agent"]
    );
    assert_eq!(mended["spec"]["initContainers"], json!([]));
}

#[test]
fn a_replaced_container_leaves_and_the_agent_stands_in_its_place() {
    let template = template(json!([
        {"name": "shop", "image": "shop:1", "ports": [{"name": "http", "containerPort": 8080}],
         "env": [{"name": "X", "value": "1"}]},
        {"name": "side"},
    ]));
    // Agents up to 2.21, which read a ConfigMap, listen on their own port and nowhere else.
    for (target, carrier, listens_on, redirected) in [
        (json!("http"), Carrier::Annotation, 8080, false),
        (json!(8080), Carrier::Annotation, 8080, false),
        (json!("http"), Carrier::ConfigMap, 9900, false),
        (json!(8080), Carrier::ConfigMap, 9900, true),
    ] {
        let settings = Settings {
            carrier,
            ..settings()
        };
        let wanted = Wanted::Yes {
            replaced: BTreeSet::from(["shop".to_owned()]),
        };
        let workload = workload(&template);
        let owner = OwnerOf::Workload(&workload, &wanted);
        let pod = patched_by(&pod(&template), &owner, &around(&[to(target)]), &settings);
        assert_eq!(names(&pod["spec"]["containers"]), ["side", "traffic-agent"]);
        let init = pod["spec"]["initContainers"].as_array();
        assert_eq!(init.is_some_and(|it| !it.is_empty()), redirected);
        let kept = &pod["metadata"]["annotations"]["telepresence.io/replaced-container.shop"];
        let kept: Value = serde_json::from_str(kept.as_str().unwrap()).unwrap();
        assert_eq!(kept["image"], "shop:1");
        let agent = container(&pod, "traffic-agent");
        assert_eq!(
            agent["ports"],
            json!([{"name": "http", "containerPort": listens_on, "protocol": "TCP"}])
        );
        assert_eq!(variables(agent)["_TEL_APP_A_X"], "1");
    }
}

#[test]
fn a_pod_whose_only_container_is_replaced_keeps_an_ordinary_one() {
    let settings = Settings {
        native_sidecar: NativeSidecar::Always,
        ..settings()
    };
    let wanted = Wanted::Yes {
        replaced: BTreeSet::from(["shop".to_owned()]),
    };
    let workload = workload(&simple());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let pod = patched_by(
        &pod(&simple()),
        &owner,
        &around(&[to(json!("http"))]),
        &settings,
    );
    assert_eq!(names(&pod["spec"]["containers"]), ["traffic-agent"]);
}

#[test]
fn labels_and_annotations_say_what_was_done() {
    let pod = patched(&simple(), &[to(json!("http"))], &settings());
    assert_eq!(
        pod["metadata"]["labels"],
        json!({
            "app": "shop",
            "telepresence.io/workloadEnabled": "true",
            "telepresence.io/workloadKind": "Deployment",
            "telepresence.io/workloadName": "shop",
        })
    );
    let annotations = pod["metadata"]["annotations"].as_object().unwrap();
    let keys: Vec<_> = annotations.keys().collect();
    assert_eq!(
        keys,
        [
            "telepresence.io/agent-config",
            "telepresence.io/agent-digest",
            "telepresence.io/inject-traffic-agent",
        ]
    );
    let older = Settings {
        carrier: Carrier::ConfigMap,
        ..settings()
    };
    let pod = patched(&simple(), &[to(json!("http"))], &older);
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(
        annotations["telepresence.getambassador.io/inject-traffic-agent"],
        "enabled"
    );
    assert_eq!(annotations["telepresence.io/agent-config"], Value::Null);
}

#[test]
fn a_name_too_long_for_a_label_is_left_out() {
    let mut long = workload(&simple());
    long.name = "x".repeat(64);
    let wanted = Wanted::agent();
    let owner = OwnerOf::Workload(&long, &wanted);
    let pod = patched_by(
        &pod(&simple()),
        &owner,
        &around(&[to(json!("http"))]),
        &settings(),
    );
    assert_eq!(
        pod["metadata"]["labels"]["telepresence.io/workloadName"],
        Value::Null
    );
    assert_eq!(
        pod["metadata"]["labels"]["telepresence.io/workloadEnabled"],
        "true"
    );
}

#[test]
fn missing_pull_secrets_are_added() {
    let settings = Settings {
        pull_secrets: vec!["one".to_owned(), "two".to_owned()],
        ..settings()
    };
    let pod = patched(&simple(), &[to(json!("http"))], &settings);
    assert_eq!(names(&pod["spec"]["imagePullSecrets"]), ["one", "two"]);
    let mut template = simple();
    template["spec"]["imagePullSecrets"] = json!([{"name": "two"}, {"name": "three"}]);
    let pod = patched(&template, &[to(json!("http"))], &settings);
    assert_eq!(
        names(&pod["spec"]["imagePullSecrets"]),
        ["two", "three", "one"]
    );
}

#[test]
fn linkerd_is_told_to_let_the_managers_port_pass_where_asked() {
    let key = "config.linkerd.io/skip-outbound-ports";
    let settings = Settings {
        linkerd_skip_ports: true,
        ..settings()
    };
    let pod = patched(&simple(), &[to(json!("http"))], &settings);
    assert_eq!(pod["metadata"]["annotations"][key], "8081");
    let own = crate::rig::annotated(&[(key, "5432")]);
    let pod = patched(&own, &[to(json!("http"))], &settings);
    assert_eq!(pod["metadata"]["annotations"][key], "5432");
}

#[test]
fn a_pod_without_containers_of_its_own_is_refused() {
    let template = template(json!([]));
    let (workload, wanted) = (workload(&template), Wanted::agent());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let decision = decide(&pod(&template), &owner, &around(&[]), &settings());
    assert!(matches!(decision.verdict, Verdict::Refuse(_)));
}
