//! Commands of `intercept helm` as the manuals of the original write them, and what comes of each.

use std::collections::BTreeSet;

use cluster_tests::{Cluster, HEADER, Namespace, Said, User, Workload, Workstation};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::install::{client, client_works, extended_kubeconfig};
use super::life::has_agent;

/// A line as one types it; `HOME`, `APP` and `FILE` stand for this test's.
fn typed(cluster: &Cluster, home: &Namespace<'_>, app: &Namespace<'_>, line: &str) -> Said {
    let words = words(home, app, line);
    client(
        cluster,
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn works(cluster: &Cluster, home: &Namespace<'_>, app: &Namespace<'_>, line: &str) -> String {
    let words = words(home, app, line);
    client_works(
        cluster,
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn words(home: &Namespace<'_>, app: &Namespace<'_>, line: &str) -> Vec<String> {
    let filled = line.replace("HOME", home.name()).replace("APP", app.name());
    filled.split(' ').map(str::to_owned).collect()
}

/// A values file.
fn file(values: &serde_json::Value) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), values.to_string()).unwrap();
    file
}

fn deployments(namespace: &Namespace<'_>) -> Vec<Deployment> {
    let api: Api<Deployment> = namespace.api();
    let all = namespace
        .cluster()
        .block_on(api.list(&ListParams::default()));
    all.unwrap().items
}

#[test]
fn a_second_manager_that_claims_a_namespace_is_refused_by_its_owner() {
    let cluster = Cluster::shared();
    let (first, second) = (cluster.namespace("first"), cluster.namespace("second"));
    let app = cluster.namespace("claimed");
    let install = "helm install --namespace HOME --set managerRbac.namespaced=true \
                   --set managerRbac.namespaces={HOME,APP}";
    works(cluster, &first, &app, install);
    let refused = typed(cluster, &second, &app, install);
    assert_ne!(refused.code, 0);
    for words in [
        "ConfigMap \"traffic-manager-claim\" in namespace",
        app.name(),
        "invalid ownership metadata",
        "meta.helm.sh/release-namespace",
        first.name(),
    ] {
        assert!(refused.text.contains(words), "{words}: {}", refused.text);
    }
    assert!(deployments(&second).is_empty(), "something was installed");
    // Once the first one gives the namespace up, the second takes it.
    let less = "helm upgrade --namespace HOME --reuse-values --set managerRbac.namespaces={HOME}";
    works(cluster, &first, &app, less);
    works(cluster, &second, &app, install);
    for home in [&first, &second] {
        works(cluster, home, &app, "helm uninstall --namespace HOME");
    }
}

fn developer(cluster: &Cluster, name: &str, app: &Namespace<'_>) -> User {
    cluster.user(&format!("{name}-of-{}", app.name()), &[])
}

#[test]
fn a_values_file_gives_a_user_what_an_intercept_needs() {
    let cluster = Cluster::shared();
    let (home, app) = (cluster.namespace("home"), cluster.namespace("app"));
    let (jane, joe) = (
        developer(cluster, "jane", &app),
        developer(cluster, "joe", &app),
    );
    let values = file(&json!({
        "managerRbac": {"create": true, "namespaced": true, "namespaces": [app.name()]},
        "clientRbac": {
            "create": true, "namespaced": true, "namespaces": [app.name()],
            "subjects": [{
                "kind": "User", "name": jane.name, "apiGroup": "rbac.authorization.k8s.io",
            }],
        },
    }));
    let install = format!(
        "helm install --namespace HOME --values {}",
        values.path().display()
    );
    works(cluster, &home, &app, &install);
    Workload::new("Deployment", "web", 1, "http").start(&app);
    let at_home = |user: &User| extended_kubeconfig(&user.kubeconfig, home.name());
    let (hers, his) = (at_home(&jane), at_home(&joe));
    let workstation = Workstation::plain(cluster, hers.path());
    let served = workstation.intercept(app.name(), "web", &[]);
    let caller = app.caller();
    harness::wait::until("the intercept", || {
        (caller.get("http://web", &["-H", HEADER]).by == served.answers_as).then_some(())
    });
    served.leave();
    let refused = Workstation::plain(cluster, his.path()).start(app.name(), "web", &[]);
    assert_ne!(refused.process().exit().code(), Some(0));
    refused.process().line(&joe.name);
    works(cluster, &home, &app, "helm uninstall --namespace HOME");
    app.settled("web", 1, |pod| !has_agent(pod));
}

#[test]
fn rights_only_makes_rights_and_nothing_that_runs() {
    let cluster = Cluster::shared();
    let (home, app) = (cluster.namespace("rights"), cluster.namespace("app"));
    let values = file(&json!({
        "rbac": {"only": true},
        "managerRbac": {"create": true, "namespaced": true, "namespaces": [app.name()]},
        "clientRbac": {
            "create": true, "namespaced": true, "namespaces": [app.name()],
            "subjects": [{
                "kind": "Group", "name": "team", "apiGroup": "rbac.authorization.k8s.io",
            }],
        },
    }));
    let install = format!(
        "helm install --namespace HOME -f {}",
        values.path().display()
    );
    works(cluster, &home, &app, &install);
    let names = |namespace: &Namespace<'_>| -> BTreeSet<String> {
        let (roles, bindings): (Api<Role>, Api<RoleBinding>) = (namespace.api(), namespace.api());
        let all = ListParams::default();
        let found = cluster.block_on(async { (roles.list(&all).await, bindings.list(&all).await) });
        let roles = found.0.unwrap().items.into_iter().map(|it| it.name_any());
        let bindings = found.1.unwrap().items.into_iter().map(|it| it.name_any());
        roles.chain(bindings).collect()
    };
    assert!(names(&app).contains("traffic-manager"), "{:?}", names(&app));
    assert!(
        names(&home).contains("traffic-manager-connect"),
        "{:?}",
        names(&home)
    );
    assert!(deployments(&home).is_empty(), "something runs");
    works(cluster, &home, &app, "helm uninstall --namespace HOME");
    assert!(names(&app).is_empty() && names(&home).is_empty());
}

#[test]
fn flags_do_what_the_manuals_say() {
    let cluster = Cluster::shared();
    let (home, app) = (cluster.namespace("flags"), cluster.namespace("app"));
    let scope = "--set managerRbac.namespaced=true --set managerRbac.namespaces={APP}";
    let run = |line: &str| works(cluster, &home, &app, &line.replace("SCOPE", scope));
    let fails = |line: &str| {
        let said = typed(cluster, &home, &app, &line.replace("SCOPE", scope));
        assert_ne!(said.code, 0, "{line}: {}", said.text);
        said.text
    };
    let level = || {
        let found = deployments(&home);
        let container = found
            .first()?
            .spec
            .clone()?
            .template
            .spec?
            .containers
            .pop()?;
        let mut env = container.env?.into_iter();
        env.find(|it| it.name == "LOG_LEVEL")?.value
    };
    let level = || level().unwrap_or_default();
    run("helm lint --set logLevel=debug");
    let shown = run("helm template --namespace HOME");
    assert!(shown.contains("kind: Deployment"), "{shown}");
    assert!(fails("helm upgrade --namespace HOME").contains("use intercept helm install"));
    let shown = run("helm install --namespace HOME SCOPE --dry-run");
    assert!(shown.contains("kind: Deployment"), "{shown}");
    assert!(
        deployments(&home).is_empty(),
        "a dry run installed something"
    );
    assert!(fails("helm install --namespace HOME SCOPE --version 9.9.9").contains("9.9.9"));
    let nowhere = "helm install --namespace not-HOME --create-namespace=false SCOPE";
    assert!(fails(nowhere).contains("not found"));
    run("helm install --namespace HOME SCOPE --set logLevel=debug");
    assert_eq!(level(), "debug");
    run("helm upgrade --namespace HOME");
    assert_eq!(level(), "debug", "without values the old ones are kept");
    run("helm upgrade --namespace HOME --reuse-values --set agent.logLevel=trace");
    assert_eq!(level(), "debug");
    run("helm upgrade --namespace HOME --reset-values SCOPE");
    assert_eq!(level(), "info");
    assert!(
        fails("helm upgrade --namespace HOME --reset-values --reuse-values")
            .contains("cannot be used with")
    );
    assert!(run("helm uninstall --namespace HOME").contains("uninstalled"));
    assert!(run("helm uninstall --namespace HOME").contains("No Traffic Manager is installed"));
    // The licence and cloud of the original: taken, and nothing comes of them.
    let vendor = "helm install --namespace HOME SCOPE --set licenseKey.create=true \
                  --set ambassador-agent.enabled=false --set systemaHost=app.example";
    run(vendor);
    run("helm uninstall --namespace HOME");
}
