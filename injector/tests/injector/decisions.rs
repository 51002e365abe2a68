//! Pods that get an agent, pods that do not, and what is said about it.

use injector::{InjectPolicy, OwnerOf, Settings, Skip, Verdict, Wanted, decide};
use serde_json::json;

use crate::rig::{
    annotated, apply, around, decided, patched_by, pod, settings, simple, to, workload,
};

const OLDER: &str = "telepresence.getambassador.io/inject-traffic-agent";
const NEWER: &str = "telepresence.io/inject-traffic-agent";

#[test]
fn annotation_and_policy_decide_before_anything_else() {
    use InjectPolicy::{Never, OnDemand, WhenEnabled};
    const INJECT: &str = "inject";
    const SKIP: &str = "skip";
    const REFUSE: &str = "refuse";
    for (value, on_demand, when_enabled, never) in [
        (Some("false"), SKIP, SKIP, SKIP),
        (Some("disabled"), SKIP, SKIP, SKIP),
        (None, INJECT, SKIP, SKIP),
        (Some(""), INJECT, SKIP, SKIP),
        (Some("enabled"), INJECT, INJECT, INJECT),
        (Some(" enabled "), INJECT, INJECT, INJECT),
        (Some("true"), REFUSE, REFUSE, REFUSE),
        (Some("Enabled"), REFUSE, REFUSE, REFUSE),
    ] {
        for (policy, expected) in [
            (OnDemand, on_demand),
            (WhenEnabled, when_enabled),
            (Never, never),
        ] {
            for key in [OLDER, NEWER] {
                let annotations: Vec<_> = value.iter().map(|it| (key, *it)).collect();
                let settings = Settings {
                    policy,
                    ..settings()
                };
                let template = annotated(&annotations);
                let decision = decided(&template, &[to(json!("http"))], &settings);
                let verdict = match decision.verdict {
                    Verdict::Inject => INJECT,
                    Verdict::Skip(_) => SKIP,
                    Verdict::Refuse(_) => REFUSE,
                };
                assert_eq!(verdict, expected, "{key}={value:?} with {policy:?}");
                assert!(!decision.reasons.is_empty());
            }
        }
    }
}

#[test]
fn who_owns_the_pod_decides_next() {
    let known = workload(&simple());
    let (no, manual) = (Wanted::No, Wanted::Manual);
    let foreign = |kind: &str| OwnerOf::Foreign {
        kind: kind.to_owned(),
        name: "x".to_owned(),
    };
    for (owner, said) in [
        (OwnerOf::Nobody, "a pod without a workload gets no agent"),
        (foreign("DaemonSet"), "pods of DaemonSet x get no agent"),
        (foreign("Job"), "pods of Job x get no agent"),
        (
            foreign("Rollout"),
            "workloads of kind Rollout are switched off",
        ),
        (
            OwnerOf::Unknown {
                kind: "ReplicaSet".to_owned(),
                name: "x".to_owned(),
            },
            "the owner ReplicaSet x is not known",
        ),
        (
            OwnerOf::Workload(&known, &no),
            "nobody intercepts Deployment shop.default",
        ),
        (
            OwnerOf::Workload(&known, &manual),
            "Deployment shop.default is injected by hand",
        ),
    ] {
        let decision = decide(
            &pod(&simple()),
            &owner,
            &around(&[to(json!("http"))]),
            &settings(),
        );
        assert!(matches!(decision.verdict, Verdict::Skip(_)), "{owner:?}");
        assert!(
            decision.reasons[0].starts_with(said),
            "{:?}",
            decision.reasons
        );
        assert_eq!(decision.patch.0, []);
    }
}

#[test]
fn an_enabled_pod_needs_nobody_to_ask_for_an_agent() {
    let template = annotated(&[(NEWER, "enabled")]);
    let (workload, wanted) = (workload(&template), Wanted::No);
    let owner = OwnerOf::Workload(&workload, &wanted);
    patched_by(
        &pod(&template),
        &owner,
        &around(&[to(json!("http"))]),
        &settings(),
    );
}

#[test]
fn a_pod_injected_by_hand_is_left_alone() {
    for key in [
        "telepresence.io/manually-injected",
        "telepresence.getambassador.io/manually-injected",
    ] {
        let decision = decided(
            &annotated(&[(key, "true"), (NEWER, "enabled")]),
            &[to(json!("http"))],
            &settings(),
        );
        assert!(
            matches!(decision.verdict, Verdict::Skip(Skip::Manual(_))),
            "{key}: {:?}",
            decision.verdict
        );
    }
}

#[test]
fn without_an_image_nothing_is_injected_and_that_is_a_warning() {
    let settings = Settings {
        image: String::new(),
        ..settings()
    };
    let decision = decided(&simple(), &[to(json!("http"))], &settings);
    assert_eq!(decision.verdict, Verdict::Skip(Skip::NoImage));
    assert_eq!(decision.warnings.len(), 1);
}

#[test]
fn what_another_webhook_does_to_the_agent_is_left_to_it() {
    let template = simple();
    let (workload, wanted) = (workload(&template), Wanted::agent());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let surroundings = around(&[to(json!("http"))]);
    let mut json = patched_by(&pod(&template), &owner, &surroundings, &settings());
    let agent = &mut json["spec"]["containers"][1];
    assert_eq!(agent["name"], "traffic-agent");
    agent["image"] = json!("mirror.example/traffic-agent:1.2.3");
    agent["env"] = json!([{"name": "AWS_ROLE", "value": "x"}]);
    agent["resources"] = json!({"limits": {"cpu": "1"}});
    json["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({"name": "istio-proxy"}));
    let edited = serde_json::from_value(json).unwrap();
    let decision = decide(&edited, &owner, &surroundings, &settings());
    assert_eq!(decision.verdict, Verdict::Skip(Skip::UpToDate));
    assert_eq!(decision.patch.0, []);
}

#[test]
fn other_inputs_make_another_agent_in_the_same_place() {
    let template = simple();
    let (workload, wanted) = (workload(&template), Wanted::agent());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let first = patched_by(
        &pod(&template),
        &owner,
        &around(&[to(json!("http"))]),
        &settings(),
    );
    let there = serde_json::from_value(first.clone()).unwrap();
    let newer = Settings {
        image: "registry.example/traffic-agent:1.2.4".to_owned(),
        ..settings()
    };
    let second = patched_by(&there, &owner, &around(&[to(json!("http"))]), &newer);
    assert_eq!(second["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(second["spec"]["containers"][1]["image"], newer.image);
    assert_eq!(second["spec"]["volumes"], first["spec"]["volumes"]);
    let digest = |pod: &serde_json::Value| {
        pod["metadata"]["annotations"]["telepresence.io/agent-digest"].clone()
    };
    assert_ne!(digest(&first), digest(&second));
}

#[test]
fn a_pod_that_lost_its_agent_gets_it_back() {
    let template = simple();
    let (workload, wanted) = (workload(&template), Wanted::agent());
    let owner = OwnerOf::Workload(&workload, &wanted);
    let surroundings = around(&[to(json!("http"))]);
    let mut json = patched_by(&pod(&template), &owner, &surroundings, &settings());
    json["spec"]["containers"].as_array_mut().unwrap().pop();
    let robbed = serde_json::from_value(json).unwrap();
    let decision = decide(&robbed, &owner, &surroundings, &settings());
    let mended = apply(&robbed, &decision);
    assert_eq!(mended["spec"]["containers"][1]["name"], "traffic-agent");
}
