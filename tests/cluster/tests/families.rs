//! The complete values files of all three families of charts, installed: what they say shows in what
//! runs, and an intercept works under each. That each value reaches its field is in `tests/chart`.

use cluster_tests::{Cluster, HEADER, Workload, Workstation};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::chart::{helm_works, root};
use super::install::extended_kubeconfig;
use super::life::has_agent;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A complete values file.
struct Family {
    file: &'static str,
    /// Values for what this cluster has otherwise: where images come from, certificates, placement.
    here: fn(&str) -> Value,
    /// Variables of the app that the file keeps from workstations.
    excluded: &'static [&'static str],
    /// What the file makes of the manager's pod and of the app's.
    shows: fn(&Pod, &Pod),
}

fn image(name: &str) -> Value {
    json!({"registry": "localhost", "name": name, "tag": VERSION, "pullPolicy": "Never"})
}

fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let mut all = spec.containers.iter().chain(inits);
    all.find(|it| it.name == name)
}

fn memory_of(pod: &Pod, name: &str) -> Option<String> {
    let resources = container(pod, name)?.resources.as_ref()?;
    Some(resources.limits.as_ref()?.get("memory")?.0.clone())
}

fn is_honoured(family: &Family) {
    let cluster = Cluster::shared();
    let home = cluster.namespace("family");
    let app = cluster.namespace_with("app", &[("inject", "yes")]);
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().join("here.json");
    std::fs::write(&here, (family.here)(app.name()).to_string()).unwrap();
    let file = root().join("tests/chart/families").join(family.file);
    let files = [file, here].map(|it| format!("--values={}", it.display()));
    let mut flags: Vec<&str> = files.iter().map(String::as_str).collect();
    flags.extend(["--wait", "--timeout=150s"]);
    helm_works(cluster, "install", "traffic-manager", home.name(), &flags);
    let mut web = Workload::new("Deployment", "web", 1, "http")
        .annotated("telepresence.io/inject-traffic-agent", "enabled");
    web.template()["metadata"]["labels"]["inject"] = "yes".into();
    let hidden = family.excluded.iter().chain(&["SHOWN"]);
    let variables = hidden.map(|name| json!({"name": name, "value": format!("value-of-{name}")}));
    web.container()["env"] = variables.collect();
    web.start(&app);
    let kubeconfig = extended_kubeconfig(&cluster.folder().join("admin.conf"), home.name());
    let env = folder.path().join("env");
    let option = format!("--env-file={}", env.display());
    let workstation = Workstation::plain(cluster, kubeconfig.path());
    let served = workstation.intercept(app.name(), "web", &[&option]);
    app.settled("web", 1, has_agent);
    let caller = app.caller();
    harness::wait::until("the intercept", || {
        let answer = caller.try_get("http://web", &["-H", HEADER]).ok()?;
        (answer.by == served.answers_as).then_some(())
    });
    assert_eq!(caller.get("http://web", &[]).by, "web");
    let environment = std::fs::read_to_string(&env).unwrap();
    assert!(environment.contains("value-of-SHOWN"), "{environment}");
    for name in family.excluded {
        let value = format!("value-of-{name}");
        assert!(!environment.contains(&value), "{environment}");
    }
    let managers = home.pods_with("app=traffic-manager");
    let pods = app.pods_with("app=web");
    (family.shows)(&managers[0], &pods[0]);
    served.leave();
    helm_works(cluster, "uninstall", "traffic-manager", home.name(), &[]);
    app.settled("web", 1, |pod| !has_agent(pod));
}

#[test]
fn values_of_2_20_are_honoured() {
    let cluster = Cluster::shared();
    cluster.apply_in(
        "default",
        "{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: high}, value: 1000}",
    );
    let labelled = cluster
        .kubectl()
        .args(["label", "--overwrite", "node/node1", "disk=fast"])
        .output();
    assert!(labelled.unwrap().status.success());
    is_honoured(&Family {
        file: "2.20.yaml",
        here: |app| {
            json!({
                "image": image("traffic-manager"), "schedulerName": "default-scheduler",
                "agentInjector": {"agentImage": image("traffic-agent")},
                "agent": {"image": image("traffic-agent")},
                "managerRbac": {"namespaces": [app]}, "clientRbac": {"namespaces": [app]},
            })
        },
        excluded: &["DATABASE_PASSWORD", "TOKEN"],
        shows: |manager, web| {
            let spec = manager.spec.as_ref().unwrap();
            assert_eq!(spec.priority_class_name.as_deref(), Some("high"));
            let context = spec.containers[0].security_context.as_ref().unwrap();
            assert_eq!(context.run_as_user, Some(7777));
            assert_eq!(memory_of(web, "traffic-agent").as_deref(), Some("77Mi"));
        },
    });
}

#[test]
fn values_of_2_31_are_honoured() {
    is_honoured(&Family {
        file: "2.31.yaml",
        here: |app| {
            json!({
                "global": {"imageRegistry": "localhost"},
                "agentInjector": {"certificate": {"method": "manager"}},
                "namespaces": [app], "managerRbac": {"namespaces": [app]},
                "clientRbac": {"namespaces": [app]},
            })
        },
        excluded: &["TOKEN"],
        shows: |manager, web| {
            let spec = manager.spec.as_ref().unwrap();
            assert_eq!(spec.host_network, Some(true));
            assert!(container(web, "tel-agent-init").is_none(), "{web:?}");
        },
    });
}

#[test]
fn values_of_the_vendor_are_honoured() {
    is_honoured(&Family {
        file: "vendor.yaml",
        here: |app| {
            json!({
                "image": image("traffic-manager"), "agent": {"image": image("traffic-agent")},
                "namespaces": [app],
            })
        },
        excluded: &["A", "B"],
        shows: |_, web| {
            assert_eq!(memory_of(web, "traffic-agent").as_deref(), Some("300Mi"));
        },
    });
}
