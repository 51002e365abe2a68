//! Who the agent runs as, and what namespaces refuse.

use std::sync::Arc;

use injector::{Mesh, PodSecurity, Refusal, Settings, Surroundings, Verdict};
use k8s_openapi::api::core::v1::SecurityContext;
use serde_json::{Value, json};

use crate::rig::{
    around, container, decided_in, entries, patched, patched_in, service, settings, simple,
    template, to,
};

fn app_with(context: Value) -> Value {
    template(json!([
        {"name": "helper", "securityContext": {"runAsUser": 1}},
        {"name": "shop", "ports": [{"name": "http", "containerPort": 8080}],
         "securityContext": context},
    ]))
}

fn agent_context(template: &Value, settings: &Settings) -> Value {
    let pod = patched(template, &[to(json!("http"))], settings);
    container(&pod, "traffic-agent")["securityContext"].clone()
}

#[test]
fn the_agent_runs_like_its_app_but_in_a_group_of_its_own() {
    let app = app_with(json!({"runAsUser": 1000, "runAsGroup": 1000,
        "readOnlyRootFilesystem": true, "privileged": true,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}));
    assert_eq!(
        agent_context(&app, &settings()),
        json!({"runAsUser": 1000, "runAsGroup": 7439, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}})
    );
    assert_eq!(
        agent_context(&simple(), &settings()),
        json!({"runAsGroup": 7439})
    );
}

#[test]
fn a_configured_context_counts_also_an_empty_one() {
    let app = app_with(json!({"runAsUser": 1000}));
    let own = |context: Value| Settings {
        security_context: Some(serde_json::from_value::<SecurityContext>(context).unwrap()),
        ..settings()
    };
    assert_eq!(
        agent_context(&app, &own(json!({}))),
        json!({"runAsGroup": 7439})
    );
    let configured = json!({"runAsUser": 5, "runAsGroup": 6});
    let settings = own(configured.clone());
    assert_eq!(agent_context(&app, &settings), configured);
    let pod = patched(&app, &[to(json!(8080))], &settings);
    let init = crate::rig::variables(container(&pod, "tel-agent-init"));
    assert_eq!(init["AGENT_GID"], "6");
}

#[test]
fn init_gets_a_user_where_the_pod_forbids_root_and_names_none() {
    for (pod_context, user) in [
        (json!({"runAsNonRoot": true}), json!(7439)),
        (
            json!({"runAsNonRoot": true, "runAsUser": 1000}),
            Value::Null,
        ),
        (json!({"runAsUser": 1000}), Value::Null),
        (json!({}), Value::Null),
    ] {
        let mut template = simple();
        template["spec"]["securityContext"] = pod_context.clone();
        let pod = patched(&template, &[to(json!(8080))], &settings());
        let init = container(&pod, "tel-agent-init");
        assert_eq!(init["securityContext"]["runAsUser"], user, "{pod_context}");
    }
}

#[test]
fn the_levels_of_namespaces_are_read_from_their_label() {
    for (value, level) in [
        ("privileged", PodSecurity::Privileged),
        ("baseline", PodSecurity::Baseline),
        ("restricted", PodSecurity::Restricted),
        ("other", PodSecurity::Privileged),
    ] {
        let labels = [(PodSecurity::LABEL.to_owned(), value.to_owned())];
        assert_eq!(PodSecurity::of(&labels.into()), level);
    }
}

fn in_level(pod_security: PodSecurity, target: Value) -> Surroundings {
    Surroundings {
        pod_security,
        ..around(&[to(target)])
    }
}

#[test]
fn where_net_admin_is_refused_a_numeric_port_is_said_to_be_out_of_reach() {
    for level in [PodSecurity::Baseline, PodSecurity::Restricted] {
        let decision = decided_in(&simple(), &in_level(level, json!(8080)), &settings());
        assert!(matches!(
            decision.verdict,
            Verdict::Refuse(Refusal::NoRedirect { .. })
        ));
        assert_eq!(decision.patch.0, []);
        let said = &decision.warnings[0];
        let expected = format!(
            "Deployment shop.default: container shop port 8080 needs an init container with \
             NET_ADMIN, and the namespace's Pod Security level {} refuses that; give the port a \
             name and let the Service's targetPort use it",
            level.name()
        );
        assert_eq!(*said, expected);
    }
}

#[test]
fn named_ports_stay_in_reach_beside_numeric_ones_that_are_not() {
    let ports = json!([
        {"name": "a", "port": 80, "targetPort": "http"},
        {"name": "b", "port": 81, "targetPort": 9090},
    ]);
    let template = template(json!([{"name": "shop", "ports": [
        {"name": "http", "containerPort": 8080}, {"containerPort": 9090}]}]));
    let surroundings = Surroundings {
        pod_security: PodSecurity::Baseline,
        ..around(&[service("s", ports)])
    };
    let decision = decided_in(&template, &surroundings, &settings());
    assert_eq!(entries(&decision), ["s:80 shop:8080/TCP>9900"]);
    assert!(decision.warnings[0].contains("port 9090 needs an init container"));
}

#[test]
fn a_headless_service_by_name_falls_back_to_the_name() {
    let mut surroundings = in_level(PodSecurity::Baseline, json!("http"));
    Arc::make_mut(&mut surroundings.services[0]).headless = true;
    let decision = decided_in(&simple(), &surroundings, &settings());
    assert_eq!(entries(&decision), ["shop:80 shop:8080/TCP>9900"]);
    assert!(decision.warnings[0].contains("is headless"));
}

#[test]
fn an_init_container_that_is_switched_off_is_named_as_the_reason() {
    let settings = Settings {
        init_container: false,
        ..settings()
    };
    let surroundings = in_level(PodSecurity::Privileged, json!(8080));
    let decision = decided_in(&simple(), &surroundings, &settings);
    assert!(decision.warnings[0].contains("agent.initContainer.enabled is false"));
}

#[test]
fn a_restricted_namespace_gets_an_agent_it_accepts() {
    let surroundings = in_level(PodSecurity::Restricted, json!("http"));
    let pod = patched_in(&simple(), &surroundings, &settings());
    let full = json!({"runAsUser": 7439, "runAsGroup": 7439, "runAsNonRoot": true,
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(container(&pod, "traffic-agent")["securityContext"], full);
    let mut template = simple();
    template["spec"]["securityContext"] = json!({"runAsNonRoot": true, "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"}});
    let pod = patched_in(&template, &surroundings, &settings());
    assert_eq!(
        container(&pod, "traffic-agent")["securityContext"],
        json!({"runAsGroup": 7439, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}})
    );
}

#[test]
fn istio_redirects_instead_of_an_init_container() {
    let settings = Settings {
        mesh: Mesh::Istio,
        ..settings()
    };
    for level in [PodSecurity::Privileged, PodSecurity::Baseline] {
        let surroundings = in_level(level, json!(8080));
        let pod = patched_in(&simple(), &surroundings, &settings);
        assert!(container(&pod, "tel-agent-init").is_null());
        let decision = decided_in(&simple(), &surroundings, &settings);
        assert!(decision.plan.unwrap().mesh);
    }
    let mut surroundings = in_level(PodSecurity::Privileged, json!(8080));
    surroundings.foreign_sidecar = Some("theirs".to_owned());
    let decision = decided_in(&simple(), &surroundings, &settings);
    assert!(matches!(
        decision.verdict,
        Verdict::Refuse(Refusal::ForeignSidecar { .. })
    ));
    assert!(decision.warnings[0].contains("Istio Sidecar \"theirs\" selects it already"));
    surroundings.services[0] = Arc::new(to(json!("http")));
    let decision = decided_in(&simple(), &surroundings, &settings);
    assert_eq!(decision.verdict, Verdict::Inject);
}
