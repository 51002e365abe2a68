//! Installing, changing and removing the manager, as operators type it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cluster_tests::{Cluster, HEADER, Manager, Namespace, Said, Workload, Workstation};
use serde_json::json;

use super::life::has_agent;

/// From nothing to the first request at a workstation.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Kinds whose objects come and go with every pod or rollout of anybody.
const PASSING: [&str; 6] = [
    "controllerrevision",
    "endpointslice",
    "endpoints",
    "event",
    "pod",
    "replicaset",
];

/// Names of all objects of the namespaces, and of the cluster's own that are named after one.
fn objects(cluster: &Cluster, namespaces: &[&Namespace<'_>]) -> BTreeSet<String> {
    let list = |arguments: &[&str]| -> Vec<String> {
        let output = cluster.kubectl().args(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    let kinds = |namespaced: &str| {
        let flag = format!("--namespaced={namespaced}");
        list(&["api-resources", "--verbs=list", "--output=name", &flag]).join(",")
    };
    let mut found = BTreeSet::new();
    for namespace in namespaces {
        let arguments = ["get", &kinds("true"), "--output=name", "--namespace"];
        let names = list(&[&arguments[..], &[namespace.name()]].concat());
        found.extend(
            names
                .iter()
                .map(|name| format!("{}: {name}", namespace.name())),
        );
    }
    let own = list(&["get", &kinds("false"), "--output=name"]);
    let home = namespaces[0].name();
    let ours = own.into_iter().filter(|it| it.contains(home));
    found.extend(ours.filter(|it| !it.starts_with("namespace/")));
    found.retain(|it| {
        let kind = it
            .split(": ")
            .last()
            .unwrap()
            .split(['/', '.'])
            .next()
            .unwrap();
        !PASSING.contains(&kind)
    });
    found
}

#[test]
fn installed_upgraded_rolled_back_and_uninstalled_without_a_trace() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("install"), cluster.namespace("app"));
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let caller = namespace.caller();
    harness::wait::until("the app", || caller.try_get("http://web", &[]).ok());
    let load = namespace.load("http://web", 100, &["-fresh"]);
    let before = objects(cluster, &[&home, &namespace]);
    let begin = Instant::now();
    let manager = Manager::install(&home, &[&namespace], &json!({}));
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    let mine = || caller.get("http://web", &["-H", HEADER]).by;
    harness::wait::until("the intercept", || {
        (mine() == served.answers_as).then_some(())
    });
    assert!(begin.elapsed() < INSTALL_TIMEOUT, "{:?}", begin.elapsed());
    // What agents are made of is different now: their pods are replaced, and the intercept goes on.
    let pods = namespace.pods("app=web");
    manager.upgrade(&[&json!({"agent": {"logLevel": "debug"}})]);
    harness::wait::until("new pods", || {
        (namespace.pods("app=web") != pods).then_some(())
    });
    namespace.settled("web", 1, has_agent);
    harness::wait::until("the intercept", || {
        (mine() == served.answers_as).then_some(())
    });
    let back = [
        "rollback",
        "traffic-manager",
        "1",
        "--wait",
        "--namespace",
        home.name(),
    ];
    let back = cluster.helm().args(back).output().unwrap();
    assert!(
        back.status.success(),
        "{}",
        String::from_utf8_lossy(&back.stderr)
    );
    served.leave();
    drop(manager);
    namespace.settled("web", 1, |pod| !has_agent(pod));
    let after = objects(cluster, &[&home, &namespace]);
    let left: Vec<_> = after.difference(&before).collect();
    assert!(left.is_empty(), "left behind: {left:#?}");
    let tally = load.stop();
    assert_eq!(
        (tally.failed(), tally.answered_by("web")),
        (0, tally.sent),
        "{tally:?}"
    );
}

/// Our client's `helm` commands, with the cluster's helm in the path.
pub(super) fn client(cluster: &Cluster, arguments: &[&str]) -> Said {
    let begin = Instant::now();
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new(harness::programs::path("intercept"));
    command
        .args(arguments)
        .env("KUBECONFIG", cluster.folder().join("admin.conf"))
        .env("PATH", format!("{}:{path}", cluster.folder().display()));
    let output = command.output().unwrap();
    let text = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    Said {
        text: text.concat(),
        code: output.status.code().unwrap_or(255),
        took: begin.elapsed(),
    }
}

/// The same where it has to work.
pub(super) fn client_works(cluster: &Cluster, arguments: &[&str]) -> String {
    let said = client(cluster, arguments);
    assert_eq!(said.code, 0, "{arguments:?}: {}", said.text);
    said.text
}

#[test]
fn the_clients_helm_commands_as_people_type_them() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("typed"), cluster.namespace("app"));
    let place = ["--namespace", home.name()];
    let managed = format!("managerRbac.namespaces={{{}}}", namespace.name());
    let scope = ["--set", "managerRbac.namespaced=true", "--set", &managed];
    let excluded = ["--set", "intercept.environment.excluded={SECRET,TOKEN}"];
    let install = [
        &["helm", "install", "--create-namespace=false"],
        &place[..],
        &scope,
        &excluded,
    ];
    client_works(cluster, &install.concat());
    let again = client(cluster, &install.concat());
    assert_ne!(again.code, 0);
    assert!(again.text.contains("already installed"), "{}", again.text);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "logLevel: debug\n").unwrap();
    let values = ["--reuse-values", "--values", file.path().to_str().unwrap()];
    client_works(
        cluster,
        &[&["helm", "upgrade"], &place[..], &values].concat(),
    );
    let mut web = Workload::new("Deployment", "web", 1, "http");
    web.container()["env"] = json!([
        {"name": "SECRET", "value": "s3cret"}, {"name": "TOKEN", "value": "t0ken"},
        {"name": "SHOWN", "value": "shown"},
    ]);
    web.start(&namespace);
    // The kubeconfig says where the manager is.
    let extended = extended_kubeconfig(&cluster.folder().join("admin.conf"), home.name());
    let workstation = Workstation::plain(cluster, extended.path());
    let env = tempfile::NamedTempFile::new().unwrap();
    let option = format!("--env-file={}", env.path().display());
    let served = workstation.intercept(namespace.name(), "web", &[&option]);
    let environment = std::fs::read_to_string(env.path()).unwrap();
    assert!(environment.contains("SHOWN=shown"), "{environment}");
    for kept in ["SECRET", "s3cret", "TOKEN", "t0ken"] {
        assert!(!environment.contains(kept), "{kept}: {environment}");
    }
    let listed = workstation.run(&["list"]);
    assert!(listed.text.contains(served.name()), "{}", listed.text);
    served.leave();
    client_works(cluster, &[&["helm", "uninstall"], &place[..]].concat());
    namespace.settled("web", 1, |pod| !has_agent(pod));
}

/// A kubeconfig with the extension that names the manager's namespace.
pub(super) fn extended_kubeconfig(kubeconfig: &Path, home: &str) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    let mut config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    config["clusters"][0]["cluster"]["extensions"] =
        json!([{"name": "telepresence.io", "extension": {"manager": {"namespace": home}}}]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    file
}

#[test]
fn metrics_tell_who_is_there() {
    let cluster = Cluster::shared();
    let (home, namespace) = (cluster.namespace("figures"), cluster.namespace("app"));
    let values = json!({"prometheus": {"port": 9090}});
    let manager = Manager::install(&home, &[&namespace], &values);
    Workload::new("Deployment", "web", 1, "http").start(&namespace);
    let workstation = Workstation::new(&manager);
    let served = workstation.intercept(namespace.name(), "web", &[]);
    let url = format!("http://telepresence-prometheus.{}/metrics", home.name());
    let caller = namespace.caller();
    let text = caller.get(&url, &[]).body;
    for line in [
        "telepresence_agent_count 1",
        "telepresence_client_count 1",
        "telepresence_active_intercept_count 1",
        "workload=\"web\"} 1",
        "traffic_manager_webhook_reviews_total{verdict=\"injected\"} 1",
        "traffic_manager_workloads_with_agent 1",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    served.leave();
    harness::wait::until("the end of the intercept", || {
        let text = caller.get(&url, &[]).body;
        text.contains("workload=\"web\"} 0").then_some(())
    });
}
