//! Rights: the manager has those that it uses, and a user of one namespace intercepts there.

use std::collections::BTreeSet;

use cluster_tests::audit::Log;
use cluster_tests::{Cluster, HEADER, Kind, Manager, Namespace, Workload, Workstation};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::life::has_agent;

/// Group, resource with its sub-resource, verb.
type Right = (String, String, String);

/// Rights for what happens rarely: a failing container's log, a Service network that the API server
/// does not tell, a Lease or an owner that is not there yet, and a change of what was there at first.
const RARE: [(&str, &str, &str); 8] = [
    ("apps", "replicasets", "get"),
    ("apps", "statefulsets", "get"),
    ("", "pods/log", "get"),
    ("", "services", "create"),
    ("", "services", "get"),
    ("coordination.k8s.io", "leases", "create"),
    ("coordination.k8s.io", "leases", "update"),
    ("events.k8s.io", "events", "patch"),
];

fn rights_of(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    rights.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    rights
}

/// Rights that the chart gave to a manager.
fn granted(home: &Namespace<'_>, managed: &Namespace<'_>) -> BTreeSet<Right> {
    let cluster = home.cluster();
    let ours = ListParams::default().labels("app=traffic-manager");
    let mut rights = BTreeSet::new();
    for namespace in [home, managed] {
        let roles: Api<Role> = namespace.api();
        for role in cluster.block_on(roles.list(&ours)).unwrap() {
            rights.extend(rights_of(&role.rules.unwrap_or_default()));
        }
    }
    let name = format!("traffic-manager-{}", home.name());
    let roles: Api<ClusterRole> = Api::all(cluster.client());
    if let Some(role) = cluster.block_on(roles.get_opt(&name)).unwrap() {
        rights.extend(rights_of(&role.rules.unwrap_or_default()));
    }
    rights
}

/// What a manager asked for, and what of that was refused.
fn asked(log: &mut Log, home: &Namespace<'_>) -> (BTreeSet<Right>, Vec<String>) {
    let account = format!("system:serviceaccount:{}:traffic-manager", home.name());
    let (mut used, mut refused) = (BTreeSet::new(), Vec::new());
    for request in log.read() {
        let Some(object) = &request.object else {
            continue;
        };
        if request.user.username != account {
            continue;
        }
        if request.is_refused() {
            refused.push(format!("{} {}", request.verb, request.uri));
        }
        let resource = match object.subresource.as_str() {
            "" => object.resource.clone(),
            sub => format!("{}/{sub}", object.resource),
        };
        used.insert((object.api_group.clone(), resource, request.verb));
    }
    (used, refused)
}

/// Intercepts that make the manager do all that it can.
fn all_that_a_manager_does(manager: &Manager<'_>, namespace: &Namespace<'_>) {
    let rows = [
        Workload::new("Deployment", "one", 1, "http"),
        Workload::new("Deployment", "two", 2, "8080"),
        Workload::new("StatefulSet", "set", 1, "http"),
        Workload::new("ReplicaSet", "bare", 1, "http"),
    ];
    std::thread::scope(|scope| {
        for row in &rows {
            scope.spawn(move || {
                row.start(namespace);
                let workstation = Workstation::new(manager);
                workstation
                    .intercept(namespace.name(), &row.name, &[])
                    .leave();
                let arguments = ["uninstall", &row.name, "--namespace", namespace.name()];
                let removed = workstation.run(&arguments);
                assert_eq!(removed.code, 0, "{}", removed.text);
            });
        }
    });
}

fn exactly_the_rights_used(
    cluster: &Cluster,
    install: impl for<'a> Fn(&'a Namespace<'a>, &'a Namespace<'a>) -> Manager<'a>,
) {
    let (home, namespace) = (cluster.namespace("manager"), cluster.namespace("rights"));
    let mut log = Log::from_now(cluster);
    let manager = install(&home, &namespace);
    let granted = granted(&home, &namespace);
    assert!(granted.len() > 15, "{granted:?}");
    all_that_a_manager_does(&manager, &namespace);
    // Another manager asks the one that leads to hand over.
    manager.upgrade(&[&json!({"logLevel": "debug"})]);
    let (used, refused) = asked(&mut log, &home);
    assert!(refused.is_empty(), "refused: {refused:#?}");
    let unknown: Vec<_> = used.difference(&granted).collect();
    assert!(
        unknown.is_empty(),
        "used, and no rule of the chart: {unknown:?}"
    );
    let is_rare = |right: &&Right| {
        let (group, resource, verb) = right;
        RARE.contains(&(group.as_str(), resource.as_str(), verb.as_str()))
    };
    let idle = granted.difference(&used).filter(|it| !is_rare(it));
    let idle: Vec<_> = idle.collect();
    assert!(idle.is_empty(), "granted, and never used: {idle:?}");
}

#[test]
fn a_manager_of_some_namespaces_uses_its_rights_and_asks_for_no_other() {
    exactly_the_rights_used(Cluster::shared(), |home, namespace| {
        Manager::install(home, &[namespace], &json!({}))
    });
}

#[test]
fn a_manager_of_the_whole_cluster_uses_its_rights_and_asks_for_no_other() {
    let cluster = Cluster::start(Kind::Node);
    cluster.load_our_images();
    exactly_the_rights_used(&cluster, |home, _| {
        Manager::install_for_all(home, &json!({}))
    });
}

#[test]
fn a_user_of_one_namespace_intercepts_there_and_is_told_elsewhere() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let (mine, other) = (cluster.namespace("mine"), cluster.namespace("other"));
    let user = cluster.user(&format!("dev-of-{}", mine.name()), &[]);
    let subject =
        json!({"kind": "User", "name": user.name, "apiGroup": "rbac.authorization.k8s.io"});
    let rights = json!({"clientRbac": {
        "create": true, "namespaced": true, "namespaces": [mine.name()], "subjects": [subject],
    }});
    let manager = Manager::install(&home, &[&mine], &rights);
    for namespace in [&mine, &other] {
        Workload::new("Deployment", "web", 1, "http").start(namespace);
    }
    let workstation = Workstation::of(&manager, &user);
    let served = workstation.intercept(mine.name(), "web", &[]);
    mine.settled("web", 1, has_agent);
    let caller = mine.caller();
    let answers = || caller.get("http://web", &["-H", HEADER]).by;
    harness::wait::until("the intercept", || {
        (answers() == served.answers_as).then_some(())
    });
    let refused = workstation.start(other.name(), "web", &[]);
    assert_eq!(refused.process().exit().code(), Some(1));
    refused.process().line(&format!(
        "namespace {:?} is not managed by this",
        other.name()
    ));
    refused.process().line("connect to its own manager");
    let checked = workstation.run_plainly(&["check", "--namespace", mine.name()]);
    assert_eq!(checked.code, 0, "{}", checked.text);
    served.leave();
}

#[test]
fn a_user_is_told_in_which_namespaces_rights_are_missing() {
    let cluster = Cluster::shared();
    let home = cluster.namespace("manager");
    let (mine, other) = (cluster.namespace("mine"), cluster.namespace("other"));
    let user = cluster.user(&format!("dev-of-{}", mine.name()), &[]);
    let subject =
        json!({"kind": "User", "name": user.name, "apiGroup": "rbac.authorization.k8s.io"});
    let rights = json!({"clientRbac": {
        "create": true, "namespaced": true, "namespaces": [mine.name()], "subjects": [subject],
    }});
    // The manager manages both; the user has rights in one of them.
    let manager = Manager::install(&home, &[&mine, &other], &rights);
    let workstation = Workstation::of(&manager, &user);
    let checked = |namespace: &Namespace<'_>| {
        let said = workstation.run_plainly(&["check", "--namespace", namespace.name()]);
        assert_eq!(said.code, 0, "{}", said.text);
        said.text
    };
    let (here, there) = (checked(&mine), checked(&other));
    let fine = format!("direct way to agents in namespace {}", mine.name());
    assert!(here.contains(&fine), "{here}");
    let missing = format!(
        "you may not get pods/portforward, create pods/portforward in namespace {}",
        other.name()
    );
    assert!(there.contains(&missing), "{there}");
    // Somebody without any rights does not come as far as the manager.
    let stranger = cluster.user(&format!("nobody-of-{}", mine.name()), &[]);
    let workstation = Workstation::of(&manager, &stranger);
    let said = workstation.run_plainly(&["check", "--namespace", mine.name()]);
    assert_ne!(said.code, 0, "{}", said.text);
    let role = "ask for Role traffic-manager-connect (chart value clientRbac)";
    assert!(said.text.contains(role), "{}", said.text);
    let refused = workstation.start(mine.name(), "web", &[]);
    assert_eq!(refused.process().exit().code(), Some(1));
    refused.process().line(&stranger.name);
}
