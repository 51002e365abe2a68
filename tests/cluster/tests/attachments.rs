//! What a workstation gets besides requests that match: a container's place, or a container's
//! environment without its traffic.

use cluster_tests::{Cluster, HEADER, Manager, Workload, Workstation};
use harness::wait::until;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::life::has_agent;

fn has_app(pod: &Pod) -> bool {
    let containers = &pod.spec.as_ref().unwrap().containers;
    containers.iter().any(|container| container.name == "app")
}

#[test]
fn a_replaced_container_is_away_until_its_workstation_leaves() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("replace"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let workstation = Workstation::new(&manager);
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let caller = namespace.caller();
    let answered_by = |name: &str| {
        for options in [&["-H", HEADER][..], &[]] {
            until(&format!("{name} to answer {options:?}"), || {
                let answer = caller.try_get("http://web", options).ok()?;
                (answer.by == name).then_some(())
            });
        }
    };
    answered_by("web");
    let served = workstation.replace(namespace.name(), "web", &["--port=:http"]);
    namespace.settled("web", 1, |pod| has_agent(pod) && !has_app(pod));
    answered_by(&served.answers_as);
    let listed = workstation.run(&["list"]);
    assert!(listed.text.contains("(yours, replace)"), "{}", listed.text);
    served.leave();
    namespace.settled("web", 1, has_app);
    answered_by("web");
}

#[test]
fn an_ingest_brings_a_container_here_and_its_agent_on_demand() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("ingest"));
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let workstation = Workstation::new(&manager);
    let mut workload = Workload::new("Deployment", "web", 1, "http");
    workload.container()["env"] = json!([{"name": "COLOUR", "value": "blue"}]);
    let second = json!({
        "name": "second", "image": "localhost/rig/app:1", "imagePullPolicy": "Never",
        "args": ["pause"], "env": [{"name": "COLOUR", "value": "green"}],
    });
    let containers = &mut workload.template()["spec"]["containers"];
    containers.as_array_mut().unwrap().push(second);
    workload.start(&namespace);

    let ingest = |options: &[&str]| {
        let place = [
            "ingest",
            "web",
            "--namespace",
            namespace.name(),
            "--timeout=60",
        ];
        workstation.run(&[&place[..], options].concat())
    };
    let refused = ingest(&[]);
    assert!(
        refused.code == 64 && refused.text.contains("several containers: app, second"),
        "{}",
        refused.text
    );
    namespace.settled("web", 1, has_agent);
    for (container, colour) in [("app", "blue"), ("second", "green")] {
        let flag = format!("--container={container}");
        let script = "echo colour=$COLOUR; exit 7";
        let said = ingest(&[&flag, "--", "sh", "-c", script]);
        assert_eq!(said.code, 7, "{}", said.text);
        assert!(
            said.text.contains(&format!("colour={colour}")),
            "{}",
            said.text
        );
    }
    let answer = namespace.caller().get("http://web", &["-H", HEADER]);
    assert_eq!(answer.by, "web");
}
