//! Volumes and mounts.

use injector::{Carrier, Settings};
use serde_json::{Value, json};
use traffic_proto::sidecar::MountPolicy;

use crate::rig::{
    annotated, config, container, names, patched, settings, simple, template, to, variables,
};

/// Name and path of each mount of the agent.
fn mounts(pod: &Value) -> Vec<(String, String)> {
    let agent = container(pod, "traffic-agent");
    let list = agent["volumeMounts"].as_array().unwrap().iter();
    let word = |it: &Value| it.as_str().unwrap().to_owned();
    list.map(|it| (word(&it["name"]), word(&it["mountPath"])))
        .collect()
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(one, other)| ((*one).to_owned(), (*other).to_owned()))
        .collect()
}

#[test]
fn each_generation_has_its_volumes() {
    let pod = patched(&simple(), &[to(json!("http"))], &settings());
    assert_eq!(
        pod["spec"]["volumes"],
        json!([
            {"name": "pod-info", "downwardAPI": {"items": [{"path": "annotations",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations"}}]}},
            {"name": "export-volume", "emptyDir": {}},
            {"name": "tel-agent-tmp", "emptyDir": {}},
        ])
    );
    assert_eq!(
        mounts(&pod),
        pairs(&[
            ("pod-info", "/etc/podinfo"),
            ("export-volume", "/tel_app_exports"),
            ("tel-agent-tmp", "/tmp"),
        ])
    );
    let older = Settings {
        carrier: Carrier::ConfigMap,
        ..settings()
    };
    let pod = patched(&simple(), &[to(json!(8080))], &older);
    assert_eq!(
        names(&pod["spec"]["volumes"]),
        [
            "traffic-annotations",
            "traffic-config",
            "export-volume",
            "tel-agent-tmp"
        ]
    );
    assert_eq!(
        pod["spec"]["volumes"][1]["configMap"],
        json!({"name": "telepresence-agents", "items": [{"key": "shop", "path": "config.yaml"}]})
    );
    assert_eq!(
        mounts(&pod),
        pairs(&[
            ("traffic-annotations", "/tel_pod_info"),
            ("traffic-config", "/etc/traffic-agent"),
            ("export-volume", "/tel_app_exports"),
            ("tel-agent-tmp", "/tmp"),
        ])
    );
    let init = container(&pod, "tel-agent-init");
    assert_eq!(names(&init["volumeMounts"]), ["traffic-config"]);
}

fn with_mounts(mounts: Value) -> Value {
    template(
        json!([{"name": "shop", "ports": [{"name": "http", "containerPort": 8080}],
        "volumeMounts": mounts}]),
    )
}

#[test]
fn the_apps_mounts_are_carried_over() {
    let template = with_mounts(json!([
        {"name": "data", "mountPath": "/srv/data", "readOnly": true, "subPath": "x/$(Y)"},
        {"name": "logs", "mountPath": "/logs", "subPathExpr": "$(POD)/$$(X)"},
        {"name": "host", "mountPath": "/host", "mountPropagation": "Bidirectional"},
        {"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
    ]));
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let agent = container(&pod, "traffic-agent");
    let root = "/tel_app_mounts/shop";
    assert_eq!(
        agent["volumeMounts"].as_array().unwrap()[..4],
        [
            json!({"name": "data", "mountPath": format!("{root}/srv/data"), "readOnly": true,
                "subPath": "x/$(Y)"}),
            json!({"name": "logs", "mountPath": format!("{root}/logs"),
                "subPathExpr": "$(_TEL_APP_A_POD)/$$(X)"}),
            json!({"name": "host", "mountPath": format!("{root}/host")}),
            json!({"name": "kube-api-access-x",
                "mountPath": format!("{root}/var/run/secrets/kubernetes.io/serviceaccount")}),
        ]
    );
    assert_eq!(
        variables(agent)["A_TELEPRESENCE_MOUNTS"],
        "/srv/data:/logs:/host:/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(
        config(&pod)["containers"][0]["mounts"],
        json!({"/srv/data": "Remote", "/logs": "Remote", "/host": "Remote",
            "/var/run/secrets/kubernetes.io/serviceaccount": "Remote"})
    );
}

#[test]
fn ignored_mounts_are_not_mentioned_at_all() {
    let mut template = with_mounts(json!([
        {"name": "data", "mountPath": "/srv/data"},
        {"name": "secret", "mountPath": "/etc/secret"},
        {"name": "more", "mountPath": "/var/run/more"},
    ]));
    for key in [
        "telepresence.io/inject-ignore-volume-mounts",
        "telepresence.getambassador.io/inject-ignore-volume-mounts",
    ] {
        template["metadata"]["annotations"] = json!({key: "secret, /var/run"});
        for carrier in [Carrier::Annotation, Carrier::ConfigMap] {
            let settings = Settings {
                carrier,
                ..settings()
            };
            let pod = patched(&template, &[to(json!("http"))], &settings);
            let own = |(_, path): &(String, String)| path.starts_with("/tel_app_mounts");
            let carried: Vec<_> = mounts(&pod).into_iter().filter(own).collect();
            assert_eq!(carried, pairs(&[("data", "/tel_app_mounts/shop/srv/data")]));
            let agent = container(&pod, "traffic-agent");
            assert_eq!(variables(agent)["A_TELEPRESENCE_MOUNTS"], "/srv/data");
        }
    }
}

#[test]
fn policies_say_what_is_mounted_and_how() {
    let settings = Settings {
        mount_policies: vec![("/tmp".to_owned(), MountPolicy::Local)],
        ..settings()
    };
    let mut template = with_mounts(json!([
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "data", "mountPath": "/srv/data", "mountPropagation": "HostToContainer"},
        {"name": "none", "mountPath": "/none"},
    ]));
    template["metadata"]["annotations"] = json!({
        "telepresence.io/mount-policies": r#"{"data":"RemoteReadOnly","/none":"Ignore"}"#,
    });
    let pod = patched(&template, &[to(json!("http"))], &settings);
    assert_eq!(
        container(&pod, "traffic-agent")["volumeMounts"][0],
        json!({"name": "data", "mountPath": "/tel_app_mounts/shop/srv/data", "readOnly": true,
            "recursiveReadOnly": "IfPossible"})
    );
    assert_eq!(mounts(&pod).len(), 4);
    assert_eq!(
        config(&pod)["containers"][0]["mounts"],
        json!({"/srv/data": "RemoteReadonly", "/tmp": "Local"})
    );
    assert_eq!(config(&pod)["mountPolicies"], json!({"/tmp": "Local"}));
}

#[test]
fn secrets_are_mounted_once_and_may_come_later() {
    let template = annotated(&[
        (
            "telepresence.getambassador.io/inject-terminating-tls-secret",
            "$AGENT_NAME-tls",
        ),
        ("getambassador.io/inject-terminating-tls-secret", "old"),
        ("telepresence.io/inject-originating-tls-secret", "client"),
        ("telepresence.io/downstream-tls-secret.8080", "dotted.name"),
        ("telepresence.io/upstream-tls-secret.8080", "plain"),
    ]);
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let secrets: Vec<_> = volumes
        .iter()
        .filter(|it| it["secret"]["optional"] == true)
        .map(|it| it["secret"]["secretName"].as_str().unwrap())
        .collect();
    assert_eq!(secrets, ["shop-tls", "client", "dotted.name", "plain"]);
    let paths: Vec<_> = mounts(&pod).into_iter().map(|(_, path)| path).collect();
    for path in [
        "/terminating_tls",
        "/originating_tls",
        "/downstream-tls/dotted.name",
        "/downstream-tls/plain",
    ] {
        assert_eq!(paths.iter().filter(|it| *it == path).count(), 1, "{path}");
    }
    assert!(names(&pod["spec"]["volumes"]).contains(&"plain-vol"));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(
        annotations["telepresence.io/downstream-tls-path.8080"],
        "/downstream-tls/dotted.name"
    );
}

#[test]
fn a_volume_of_the_apps_keeps_its_name() {
    let mut template = with_mounts(json!([{"name": "pod-info", "mountPath": "/info"}]));
    template["spec"]["volumes"] = json!([
        {"name": "pod-info", "configMap": {"name": "mine"}},
        {"name": "tel-agent-tmp", "emptyDir": {"medium": "Memory"}},
    ]);
    let pod = patched(&template, &[to(json!("http"))], &settings());
    assert_eq!(
        names(&pod["spec"]["volumes"]),
        ["pod-info", "tel-agent-tmp", "pod-info-2", "export-volume"]
    );
    assert_eq!(pod["spec"]["volumes"][0]["configMap"]["name"], "mine");
    assert!(mounts(&pod).contains(&("pod-info-2".to_owned(), "/etc/podinfo".to_owned())));
}

#[test]
fn containers_without_ports_share_what_they_have() {
    let template = template(json!([
        {"name": "shop", "ports": [{"name": "http", "containerPort": 8080}]},
        {"name": "side", "volumeMounts": [{"name": "x", "mountPath": "/x"}]},
    ]));
    let pod = patched(&template, &[to(json!("http"))], &settings());
    let side = &config(&pod)["containers"][1];
    assert_eq!(side["envPrefix"], "B_");
    assert_eq!(side["mountPoint"], "/tel_app_mounts/side");
    assert_eq!(
        variables(container(&pod, "traffic-agent"))["B_TELEPRESENCE_MOUNTS"],
        "/x"
    );
}

#[test]
fn a_manager_that_asks_for_proofs_gives_agents_a_token() {
    let asking = Settings {
        manager_token: true,
        ..settings()
    };
    let carriers = [Carrier::Annotation, Carrier::ConfigMap];
    for carrier in carriers {
        let settings = Settings {
            carrier,
            ..asking.clone()
        };
        let pod = patched(&simple(), &[to(json!("http"))], &settings);
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let token = volumes
            .iter()
            .find(|it| it["name"] == "traffic-manager-token");
        assert_eq!(
            token.unwrap(),
            &json!({"name": "traffic-manager-token", "projected": {"sources": [
                {"serviceAccountToken": {"audience": "traffic-manager", "expirationSeconds": 3600, "path": "token"}},
            ]}})
        );
        let mounts = mounts(&pod);
        let path = "/var/run/secrets/traffic-manager".to_owned();
        assert!(mounts.contains(&("traffic-manager-token".to_owned(), path)));
        // The app gets none of it.
        let app = container(&pod, "shop");
        assert!(
            !app["volumeMounts"]
                .to_string()
                .contains("traffic-manager-token")
        );
    }
    // Pods without one are to be replaced.
    let digest = |settings: &Settings| {
        let pod = patched(&simple(), &[to(json!("http"))], settings);
        pod["metadata"]["annotations"]["telepresence.io/agent-digest"].to_string()
    };
    assert_ne!(digest(&asking), digest(&settings()));
}
