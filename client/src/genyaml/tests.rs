use clap::Parser;
use serde_json::Value;

use super::flags::Genyaml;
use super::source::from_manifest;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    genyaml: Genyaml,
}

/// A workload with one port, and its Service.
fn manifest(target: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop, namespace: fruit}}
spec:
  selector: {{matchLabels: {{app: shop}}}}
  template:
    metadata: {{labels: {{app: shop}}}}
    spec:
      containers:
      - {{name: shop, image: 'shop:1', ports: [{{name: http, containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec: {{selector: {{app: shop}}, ports: [{{port: 80, targetPort: {target}}}]}}
"
    )
}

fn generated(part: &str, target: &str) -> Result<Value, String> {
    let words = ["genyaml", part, "--input=-", "--agent-image=r/agent:1"];
    let flags = Flags::try_parse_from(words).map_err(|error| error.to_string())?;
    let source = from_manifest(&manifest(target), "default")?;
    let text = super::generate(&flags.genyaml, &source).map_err(|error| error.to_string())?;
    serde_saphyr::from_str(&text).map_err(|error| format!("{error}\n{text}"))
}

#[test]
fn the_container_stands_on_the_port_that_the_service_names() {
    let container = generated("container", "http").unwrap();
    assert_eq!(container["name"], "traffic-agent");
    assert_eq!(container["image"], "r/agent:1");
    assert_eq!(container["ports"][0]["name"], "http");
    assert_eq!(container["ports"][0]["containerPort"], 9900);
}

#[test]
fn a_numeric_port_gets_an_init_container_and_a_named_one_does_not() {
    let init = generated("initcontainer", "8080").unwrap();
    assert_eq!(init["name"], "tel-agent-init");
    assert_eq!(
        init["securityContext"]["capabilities"]["add"][0],
        "NET_ADMIN"
    );
    let none = generated("initcontainer", "http").unwrap_err();
    assert!(
        none.contains("Deployment shop.fruit needs no init container"),
        "{none}"
    );
}

#[test]
fn the_configuration_is_marked_as_made_by_hand() {
    let config = generated("config", "http").unwrap();
    assert_eq!(config["manual"], true);
    assert_eq!(config["agentName"], "shop");
    assert_eq!(config["namespace"], "fruit");
    assert_eq!(config["managerHost"], "traffic-manager.ambassador");
    assert_eq!(
        config["containers"][0]["intercepts"][0]["containerPort"],
        8080
    );
}

#[test]
fn the_annotations_hold_the_configuration_and_keep_the_injector_away() {
    let annotations = generated("annotations", "http").unwrap();
    assert_eq!(annotations["telepresence.io/manually-injected"], "true");
    let config = annotations["telepresence.io/agent-config"]
        .as_str()
        .unwrap();
    assert!(config.contains("\"agentName\":\"shop\""), "{config}");
}

#[test]
fn volumes_are_those_that_the_template_lacks() {
    let volumes = generated("volume", "http").unwrap();
    let names: Vec<_> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].clone())
        .collect();
    assert!(names.contains(&"export-volume".into()), "{names:?}");
}

#[test]
fn the_whole_workload_has_the_agent_and_the_renamed_port() {
    let workload = generated("workload", "http").unwrap();
    let containers = &workload["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0]["ports"][0]["name"], "tm-http");
    assert_eq!(containers[1]["name"], "traffic-agent");
    assert_eq!(workload["metadata"]["name"], "shop");
}

#[test]
fn a_manifest_without_a_workload_is_refused() {
    let refused = from_manifest("kind: Service\nmetadata: {name: a}\nspec: {}\n", "default");
    assert!(refused.err().unwrap().contains("no Deployment"));
}
