//! The manager for clients and agents up to 2.21 (`compatibility.version`): agents read their
//! configuration from the ConfigMap `telepresence-agents`, and whoever may change it asks for agents
//! and takes them out.

use cluster_tests::{Cluster, Manager, Namespace};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const MAP: &str = "telepresence-agents";

fn has_agent(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref().unwrap();
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    containers.into_iter().any(|it| it.name == "traffic-agent")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|it| it.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|it| it.type_ == "Ready" && it.status == "True")
}

fn entry(map: Option<&ConfigMap>, workload: &str) -> Option<Value> {
    let text = map?.data.as_ref()?.get(workload)?;
    serde_json::from_str(text).ok()
}

/// Waits for a pod that is ready with an agent, and returns its name.
fn pod_with_agent(shop: &Namespace<'_>, workload: &str) -> String {
    let found = |pod: &Pod| {
        let ours = pod.labels().get("app").is_some_and(|it| it == workload);
        (ours && pod.metadata.deletion_timestamp.is_none() && has_agent(pod) && is_ready(pod))
            .then(|| pod.name_any())
    };
    shop.cluster()
        .wait_for_any(shop.api(), "a pod with an agent", found)
}

#[test]
fn an_entry_of_the_agents_map_asks_for_an_agent_and_its_end_takes_it_out() {
    let cluster = Cluster::shared();
    let (own, shop) = (cluster.namespace("older-own"), cluster.namespace("older"));
    shop.deploy("named", 1, "http");
    shop.deploy("numbered", 1, "8080");
    // As a manager of that generation leaves it, and a user with an agent of the user's own.
    shop.apply(&format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: {MAP}}}
data:
  named: '{{agentName: named, namespace: other, containers: []}}'
  by-hand: 'manual: true'
"
    ));
    let values = json!({"compatibility": {"version": "2.20.2"}});
    let _manager = Manager::install(&own, &[&shop], &values);

    let first = pod_with_agent(&shop, "named");
    let config = shop.wait(MAP, "the entry", |map: Option<&ConfigMap>| {
        entry(map, "named").filter(|it| it["namespace"] == shop.name())
    });
    assert_eq!(config["containers"][0]["intercepts"][0]["agentPort"], 9900);

    // What a client of that generation reads and writes: by adding …
    let api = shop.api::<ConfigMap>();
    let write = |data: Value| {
        let patch = Patch::Merge(json!({ "data": data }));
        cluster
            .block_on(api.patch(MAP, &PatchParams::default(), &patch))
            .unwrap();
    };
    write(json!({"numbered": "{}"}));
    let second = pod_with_agent(&shop, "numbered");
    let answer = shop.caller().get("http://numbered/", &[]);
    assert_eq!(answer.by, "numbered");

    // … and by removing, as `telepresence uninstall` does.
    write(json!({"named": null, "numbered": null}));
    for (workload, pod) in [("named", first), ("numbered", second)] {
        shop.wait(&pod, "the pod to go", |pod: Option<&Pod>| {
            pod.is_none().then_some(())
        });
        shop.rolled_out(workload);
        for pod in shop.pods(&format!("app={workload}")) {
            assert!(!has_agent(&shop.ready_pod(&pod)), "{pod}");
        }
    }
    let map = cluster.block_on(api.get(MAP)).unwrap();
    let left: Vec<_> = map.data.unwrap_or_default().into_keys().collect();
    assert_eq!(left, ["by-hand"]);
}
