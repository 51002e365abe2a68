//! Properties that hold for any pod: deciding never panics, a second patch is empty, what comes out
//! is valid for the API server, and agents accept the configuration.

use std::collections::BTreeSet;
use std::sync::Arc;

use injector::{
    Carrier, Kind, Mesh, NativeSidecar, OwnerOf, PodSecurity, Service, Settings, Surroundings,
    Template, Verdict, Wanted, Workload, decide, plan,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use proptest::prelude::*;
use serde_json::{Value, json};
use traffic_proto::sidecar::{self, Role};

use crate::rig::{apply, service, settings};

fn port_name() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        "http|grpc|dns|tm-http|a-long-name-one|a-long-name-two".prop_map(Value::from),
    ]
}

fn number() -> impl Strategy<Value = u16> {
    prop_oneof![9895..9920u16, 1..65535u16, Just(65535)]
}

/// Ports as the API server lets them pass: names and number-protocol pairs once.
fn container_ports() -> impl Strategy<Value = Value> {
    let port = (number(), port_name(), "TCP|UDP");
    proptest::collection::vec(port, 0..4).prop_map(|ports| {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        let list: Vec<_> = ports
            .into_iter()
            .filter(|(number, name, protocol)| {
                (name.is_null() || names.insert(name.to_string()))
                    && numbers.insert((*number, protocol.clone()))
            })
            .map(|(number, name, protocol)| {
                json!({"containerPort": number, "name": name, "protocol": protocol})
            })
            .collect();
        Value::from(list)
    })
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    let text = "[$()A-C]{0,8}|plain";
    let env = proptest::collection::vec(("[A-C]", text), 0..3);
    let mounts = proptest::sample::subsequence(
        vec![("data", "/data"), ("tmp", "/tmp"), ("pod-info", "/info")],
        0..=3,
    );
    let probe = prop_oneof![
        Just(Value::Null),
        "http|dns".prop_map(|port| json!({"httpGet": {"port": port}})),
        Just(json!({"exec": {"command": ["x"]}})),
    ];
    (container_ports(), env, mounts, probe, any::<bool>()).prop_map(
        move |(ports, env, mounts, probe, context)| {
            let env: Vec<_> = env
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            let mounts: Vec<_> = mounts
                .into_iter()
                .map(|(name, path)| json!({"name": name, "mountPath": path}))
                .collect();
            let context = if context {
                json!({"runAsUser": 1000})
            } else {
                Value::Null
            };
            json!({"name": name, "image": "x", "ports": ports, "env": env,
                "volumeMounts": mounts, "livenessProbe": probe, "securityContext": context})
        },
    )
}

fn annotations() -> impl Strategy<Value = Value> {
    let pair = |key: &'static str, value: &'static str| (Just(key), value);
    let pair = prop_oneof![
        pair(
            "telepresence.io/inject-container-ports",
            "(http|80|9901/UDP)(,9090)?|[!-~]{0,6}"
        ),
        pair(
            "telepresence.io/inject-service-ports",
            "(web|80)(,x)?|[!-~]{0,6}"
        ),
        pair(
            "telepresence.getambassador.io/inject-service-name",
            "s0|s1|gone"
        ),
        pair(
            "telepresence.io/inject-ignore-volume-mounts",
            "data|/tmp|[\\[\"a-z]{0,4}"
        ),
        pair(
            "telepresence.io/mount-policies",
            r#"\{"/data":"(Local|Remote|X)"\}"#
        ),
        pair(
            "telepresence.io/inject-traffic-agent",
            "enabled|disabled|maybe"
        ),
        pair(
            "telepresence.io/downstream-tls-secret.80",
            "a.b|c|c,d|[!-~]{0,4}"
        ),
        pair(
            "getambassador.io/inject-terminating-tls-secret",
            "t|\\$AGENT_NAME"
        ),
        pair("other.example/x", "y"),
    ];
    proptest::collection::vec(pair, 0..3).prop_map(|pairs| {
        let mut map = json!({});
        for (key, value) in pairs {
            map[key] = json!(value);
        }
        map
    })
}

fn template() -> impl Strategy<Value = Value> {
    let names: [&'static str; 3] = ["app", "side", "third"];
    let containers = (1..=3usize).prop_flat_map(move |count| {
        names
            .iter()
            .take(count)
            .map(|name| container(name))
            .collect::<Vec<_>>()
    });
    let volumes = proptest::sample::subsequence(
        vec![
            json!({"name": "data", "emptyDir": {}}),
            json!({"name": "tmp", "emptyDir": {}}),
            json!({"name": "pod-info", "configMap": {"name": "own"}}),
            json!({"name": "export-volume", "emptyDir": {}}),
        ],
        0..=4,
    );
    let inits = proptest::sample::subsequence(
        vec![
            json!({"name": "migrate"}),
            json!({"name": "native", "restartPolicy": "Always"}),
        ],
        0..=2,
    );
    (containers, volumes, inits, annotations()).prop_map(
        |(containers, volumes, inits, annotations)| {
            json!({
                "metadata": {"labels": {"app": "shop"}, "annotations": annotations},
                "spec": {"containers": containers, "volumes": volumes, "initContainers": inits},
            })
        },
    )
}

fn services() -> impl Strategy<Value = Vec<Service>> {
    let target = prop_oneof![
        "http|grpc|dns".prop_map(Value::from),
        number().prop_map(Value::from),
    ];
    let port = (number(), target, "TCP|UDP|SCTP");
    let ports = proptest::collection::vec(port, 1..4);
    proptest::collection::vec((ports, any::<bool>()), 0..3).prop_map(|services| {
        let services = services.into_iter().enumerate();
        services
            .map(|(at, (ports, headless))| {
                let ports: Vec<_> = ports
                    .into_iter()
                    .map(|(port, target, protocol)| {
                        json!({"name": "web", "port": port, "targetPort": target,
                            "protocol": protocol})
                    })
                    .collect();
                let mut service = service(&format!("s{at}"), Value::from(ports));
                service.headless = headless;
                service
            })
            .collect()
    })
}

fn surroundings() -> impl Strategy<Value = Surroundings> {
    let level = prop_oneof![
        4 => Just(PodSecurity::Privileged),
        1 => Just(PodSecurity::Baseline),
        1 => Just(PodSecurity::Restricted),
    ];
    (services(), level).prop_map(|(services, pod_security)| Surroundings {
        services: services.into_iter().map(Arc::new).collect(),
        pod_security,
        foreign_sidecar: None,
    })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let first = prop_oneof![Just(9900u16), Just(65530), Just(8080), Just(0)];
    let choices = (any::<[bool; 5]>(), first);
    choices.prop_map(
        |([older, istio, native, init, linkerd], first_port)| Settings {
            carrier: if older {
                Carrier::ConfigMap
            } else {
                Carrier::Annotation
            },
            mesh: if istio { Mesh::Istio } else { Mesh::None },
            native_sidecar: if native {
                NativeSidecar::Always
            } else {
                NativeSidecar::Never
            },
            init_container: init || !istio,
            linkerd_skip_ports: linkerd,
            first_port,
            pull_secrets: vec!["pull".to_owned()],
            ..settings()
        },
    )
}

fn wanted() -> impl Strategy<Value = Wanted> {
    proptest::sample::subsequence(vec!["app", "side"], 0..=2).prop_map(|replaced| Wanted::Yes {
        replaced: replaced.into_iter().map(str::to_owned).collect(),
    })
}

fn workload(template: &Value) -> Workload {
    let template: PodTemplateSpec = serde_json::from_value(template.clone()).unwrap();
    Workload {
        kind: Kind::StatefulSet,
        name: "shop".to_owned(),
        namespace: "default".to_owned(),
        template: Template::from(&template),
    }
}

/// What an API server would refuse about the pod.
fn invalid(pod: &Value) -> Option<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let unique = |what: &str, items: Vec<String>| {
        let set: BTreeSet<_> = items.iter().collect();
        (set.len() != items.len()).then(|| format!("{what} twice: {items:?}"))
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let volumes: Vec<_> = list(&pod["spec"]["volumes"])
        .iter()
        .filter_map(|it| text(&it["name"]))
        .collect();
    let all: Vec<_> = list(&pod["spec"]["initContainers"])
        .into_iter()
        .chain(list(&pod["spec"]["containers"]))
        .collect();
    if list(&pod["spec"]["containers"]).is_empty() {
        return Some("no ordinary container".to_owned());
    }
    let names = all.iter().filter_map(|it| text(&it["name"])).collect();
    let mut wrong = unique("container", names).or_else(|| unique("volume", volumes.clone()));
    for container in &all {
        let ports = list(&container["ports"]);
        let port_names: Vec<_> = ports.iter().filter_map(|it| text(&it["name"])).collect();
        if let Some(long) = port_names
            .iter()
            .find(|it| it.len() > 15 || it.ends_with('-'))
        {
            return Some(format!("port name {long:?}"));
        }
        let numbers = ports
            .iter()
            .map(|it| format!("{}/{}", it["containerPort"], it["protocol"]))
            .collect();
        let mounts = list(&container["volumeMounts"]);
        let paths = mounts
            .iter()
            .filter_map(|it| text(&it["mountPath"]))
            .collect();
        wrong = wrong
            .or_else(|| unique("port name", port_names))
            .or_else(|| unique("port", numbers))
            .or_else(|| unique("mount path", paths));
    }
    let agent = all.iter().find(|it| it["name"] == "traffic-agent")?;
    let own = list(&agent["volumeMounts"]).into_iter();
    let own = own.filter(|it| {
        !it["mountPath"]
            .as_str()
            .unwrap()
            .starts_with("/tel_app_mounts")
    });
    let missing = own
        .filter_map(|it| text(&it["name"]))
        .find(|it| !volumes.contains(it));
    wrong.or_else(|| missing.map(|it| format!("no volume {it}")))
}

/// The port that a Service's named target is, as the API server finds it.
fn port_named(pod: &Value, name: &str, protocol: &str) -> Option<u16> {
    let lists = ["containers", "initContainers"];
    let all = lists
        .iter()
        .filter_map(|list| pod["spec"][*list].as_array());
    let ports = all
        .flatten()
        .filter_map(|it| it["ports"].as_array())
        .flatten();
    let mut named = ports.filter(|it| it["name"] == name && it["protocol"] == protocol);
    let number = named.next()?["containerPort"].as_u64()?;
    u16::try_from(number).ok()
}

/// The number that each app container's liveness probe by name leads to.
fn probe_targets(pod: &Value) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().unwrap().iter();
    let apps = containers.filter(|it| it["name"] != "traffic-agent");
    apps.map(|container| {
        let name = &container["livenessProbe"]["httpGet"]["port"];
        let ports = container["ports"].as_array();
        let found = ports.and_then(|it| it.iter().find(|it| it["name"] == *name));
        found.map_or(Value::Null, |it| it["containerPort"].clone())
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_patched_pod_is_valid_and_a_second_patch_is_empty(
        template in template(),
        around in surroundings(),
        settings in any_settings(),
        wanted in wanted(),
    ) {
        let mut pod = template.clone();
        pod["metadata"]["generateName"] = json!("shop-");
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let workload = workload(&template);
        let owner = OwnerOf::Workload(&workload, &wanted);
        let decision = decide(&pod, &owner, &around, &settings);
        prop_assert!(!decision.reasons.is_empty() || decision.plan.is_some());
        if decision.verdict != Verdict::Inject {
            prop_assert_eq!(decision.patch.0, []);
            return Ok(());
        }
        let before = invalid(&serde_json::to_value(&pod).unwrap());
        prop_assert_eq!(before, None, "the generator makes valid pods");
        let result = apply(&pod, &decision);
        prop_assert_eq!(invalid(&result), None, "{}", result);
        let again: Pod = serde_json::from_value(result).unwrap();
        prop_assert_eq!(decide(&again, &owner, &around, &settings).patch.0, []);
    }

    #[test]
    fn services_and_probes_find_the_ports_they_are_meant_to(
        template in template(),
        around in surroundings(),
        settings in any_settings(),
    ) {
        let wanted = Wanted::agent();
        let workload = workload(&template);
        let owner = OwnerOf::Workload(&workload, &wanted);
        let pod: Pod = serde_json::from_value(template.clone()).unwrap();
        let decision = decide(&pod, &owner, &around, &settings);
        if decision.verdict != Verdict::Inject {
            return Ok(());
        }
        let result = apply(&pod, &decision);
        for (_, entry) in decision.plan.unwrap().config.entries() {
            let named = !entry.service_name.is_empty() && !entry.target_port_numeric;
            if named {
                let found = port_named(&result, &entry.container_port_name, entry.protocol.name());
                let expected = [entry.container_port, entry.agent_port];
                let redirected = entry.headless || found == Some(entry.container_port);
                prop_assert!(expected.map(Some).contains(&found), "{result}");
                prop_assert!(redirected || found == Some(entry.agent_port));
            }
        }
        let before = probe_targets(&serde_json::to_value(&pod).unwrap());
        prop_assert_eq!(before, probe_targets(&result));
    }

    #[test]
    fn agents_and_init_accept_every_configuration(
        template in template(),
        around in surroundings(),
        settings in any_settings(),
        wanted in wanted(),
    ) {
        let Wanted::Yes { replaced } = wanted else { unreachable!() };
        let Ok(plan) = plan(&workload(&template), &replaced, &around, &settings) else {
            return Ok(());
        };
        let json = plan.config.for_agent().to_json();
        let read = sidecar::from_json(&json, "test", Role::Agent);
        let sidecar = read.map_err(|faults| TestCaseError::fail(format!("{faults}\n{json}")))?;
        prop_assert_eq!(&sidecar.warnings, &[], "{}", json);
        let entries: usize = sidecar.containers.iter().map(|it| it.intercepts.len()).sum();
        prop_assert_eq!(entries, plan.config.entries().count());
    }

    #[test]
    fn equal_inputs_make_equal_digests_and_a_pods_own_spec_has_no_say(
        template in template(),
        around in surroundings(),
        settings in any_settings(),
        other in container("foreign"),
    ) {
        let wanted = Wanted::agent();
        let workload = workload(&template);
        let owner = OwnerOf::Workload(&workload, &wanted);
        let digest = |pod: Value| {
            let pod: Pod = serde_json::from_value(pod).unwrap();
            decide(&pod, &owner, &around, &settings).plan.map(|it| it.digest)
        };
        let mut edited = template.clone();
        edited["spec"]["containers"].as_array_mut().unwrap().insert(0, other);
        edited["metadata"]["labels"]["more"] = json!("x");
        prop_assert_eq!(digest(template.clone()), digest(edited));
    }

    #[test]
    fn any_pod_of_any_owner_is_decided_about(
        template in template(),
        kind in "DaemonSet|Job|Rollout|.*",
        image in "|x",
    ) {
        let pod: Pod = serde_json::from_value(template).unwrap();
        let settings = Settings { image, ..settings() };
        let name = "x".to_owned();
        for owner in [
            OwnerOf::Nobody,
            OwnerOf::Foreign { kind: kind.clone(), name: name.clone() },
            OwnerOf::Unknown { kind: kind.clone(), name: name.clone() },
        ] {
            let decision = decide(&pod, &owner, &Surroundings::default(), &settings);
            prop_assert_ne!(decision.verdict, Verdict::Inject);
            prop_assert_eq!(decision.reasons.len(), 1);
        }
    }
}
