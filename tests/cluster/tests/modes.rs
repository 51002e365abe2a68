//! Every way to install the chart, linted by Helm and rendered for a real API server, which says
//! what it would refuse or warn of.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use cluster_tests::Cluster;

use super::chart::{helm, root, text};

/// Kinds of other projects that the chart can render; their owners' checks are not ours.
const FOREIGN_KINDS: [(&str, &str, &str, &str); 6] = [
    (
        "cert-manager.io",
        "Certificate",
        "certificates",
        "Namespaced",
    ),
    ("cert-manager.io", "Issuer", "issuers", "Namespaced"),
    (
        "cert-manager.io",
        "ClusterIssuer",
        "clusterissuers",
        "Cluster",
    ),
    (
        "monitoring.coreos.com",
        "PodMonitor",
        "podmonitors",
        "Namespaced",
    ),
    (
        "monitoring.coreos.com",
        "ServiceMonitor",
        "servicemonitors",
        "Namespaced",
    ),
    (
        "monitoring.coreos.com",
        "PrometheusRule",
        "prometheusrules",
        "Namespaced",
    ),
];

fn install_foreign_kinds(cluster: &Cluster) {
    for (group, kind, plural, scope) in FOREIGN_KINDS {
        let versions = "{type: object, x-kubernetes-preserve-unknown-fields: true}";
        cluster.apply_in(
            "default",
            &format!(
                "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {{name: {plural}.{group}}}
spec:
  group: {group}
  scope: {scope}
  names: {{kind: {kind}, plural: {plural}, singular: {}}}
  versions: [{{name: v1, served: true, storage: true, schema: {{openAPIV3Schema: {versions}}}}}]
",
                kind.to_lowercase()
            ),
        );
        // kubectl does not wait for a status that is not there yet, but fails.
        let what = format!("{plural}.{group} to be established");
        harness::wait::until(&what, || {
            let waited = cluster
                .kubectl()
                .args(["wait", "--for=condition=Established", "--timeout=5s"])
                .arg(format!("crd/{plural}.{group}"))
                .output()
                .unwrap();
            waited.status.success().then_some(())
        });
    }
}

/// Ways to install that are tried on the API server: what each sets beside the default values.
/// `ONE` and `TWO` stand for namespaces, `FAMILY` for the folder of complete values files.
const MODES: [(&str, &[&str]); 25] = [
    ("default", &[]),
    (
        "values of 2.20",
        &[
            "--values=FAMILY/2.20.yaml",
            "--set=managerRbac.namespaces={ONE,TWO}",
            "--set=clientRbac.namespaces={TWO}",
        ],
    ),
    (
        "values of 2.31",
        &[
            "--values=FAMILY/2.31.yaml",
            "--set=namespaces={ONE,TWO}",
            "--set=clientRbac.namespaces={TWO}",
        ],
    ),
    ("the vendor's values", &["--values=FAMILY/vendor.yaml"]),
    (
        "namespaced",
        &["--set=managerRbac.namespaced=true,managerRbac.namespaces={ONE,TWO}"],
    ),
    (
        "namespaced without any right on the cluster",
        &[
            "--set=managerRbac.namespaced=true,managerRbac.namespaces={ONE,TWO}",
            "--set=managerRbac.clusterRole=false",
        ],
    ),
    ("namespaces by a list", &["--set=namespaces={ONE,TWO}"]),
    (
        "namespaces by label",
        &["--set=namespaceSelector.matchLabels.team=a"],
    ),
    ("rights only", &["--set=rbac.only=true", CLIENTS]),
    (
        "rights only, namespaced, with the webhook",
        &[
            "--set=managerRbac.namespaced=true,managerRbac.namespaces={ONE,TWO}",
            "--set=rbac.only=true,rbac.webhook=true",
            CLIENTS,
            "--set=clientRbac.namespaced=true,clientRbac.namespaces={TWO}",
        ],
    ),
    (
        "all but rights",
        &["--set=managerRbac.create=false,clientRbac.create=false"],
    ),
    ("people", &[CLIENTS]),
    (
        "people without the rights of older clients",
        &[CLIENTS, "--set=clientRbac.legacyAccess=false"],
    ),
    (
        "several replicas",
        &[
            "--set=replicaCount=3,podDisruptionBudget.enabled=true",
            "--set=priorityClassName=system-cluster-critical",
            "--set-json=topologySpreadConstraints=[{\"maxSkew\":1,\"topologyKey\":\"zone\",\"whenUnsatisfiable\":\"ScheduleAnyway\"}]",
        ],
    ),
    (
        "certificates by helm",
        &["--set=agentInjector.certificate.method=helm"],
    ),
    (
        "certificates supplied",
        &[
            "--set=agentInjector.certificate.method=supplied",
            "--set-file=agentInjector.certificate.caBundle=AUTHORITY",
        ],
    ),
    (
        "certificates by cert-manager",
        &["--set=agentInjector.certificate.method=certmanager"],
    ),
    (
        "certificates by cert-manager, of an issuer of the cluster",
        &[
            "--set=agentInjector.certificate.method=certmanager",
            "--set=agentInjector.certificate.certmanager.issuerRef.kind=ClusterIssuer",
        ],
    ),
    (
        "certificates mounted",
        &["--set=agentInjector.certificate.accessMethod=mount"],
    ),
    ("no injector", &["--set=agentInjector.enabled=false"]),
    (
        "a webhook by address",
        &["--set=agentInjector.webhook.url=https://injector.example/"],
    ),
    (
        "a mesh",
        &["--set=trafficManager.serviceMesh.type=istio,workloads.argoRollouts.enabled=true"],
    ),
    (
        "on the node's network",
        &["--set=hostNetwork=true,agentInjector.service.type=NodePort"],
    ),
    (
        "watched",
        &[
            "--set=prometheus.port=9090,prometheus.podMonitor.enabled=true",
            "--set=prometheus.serviceMonitor.enabled=true,prometheus.rules.enabled=true",
            "--set=dashboard.enabled=true,networkPolicy.enabled=true",
        ],
    ),
    ("for linting", &["--set=isCI=true"]),
];
const CLIENTS: &str = "--set=clientRbac.create=true,clientRbac.subjects[0].kind=Group,\
    clientRbac.subjects[0].name=developers";

/// The flags of a mode with what its words stand for.
fn filled(cluster: &Cluster, namespaces: [&str; 2], flags: &[&str]) -> Vec<String> {
    let authority = cluster.folder().join("pki/ca.crt");
    let families = root().join("tests/chart/families");
    let fill = |flag: &&str| {
        flag.replace("ONE", namespaces[0])
            .replace("TWO", namespaces[1])
            .replace("FAMILY", families.to_str().unwrap())
            .replace("AUTHORITY", authority.to_str().unwrap())
    };
    flags.iter().map(fill).collect()
}

/// Renders one mode, and returns what the API server has against it.
fn complaint(cluster: &Cluster, namespaces: [&str; 2], flags: &[&str]) -> Option<String> {
    let flags = filled(cluster, namespaces, flags);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let rendered = helm(
        cluster,
        "template",
        "traffic-manager",
        namespaces[0],
        &flags,
    );
    if !rendered.status.success() {
        return Some(text(&rendered));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &rendered.stdout).unwrap();
    let mut kubectl = cluster.kubectl();
    kubectl.args(["apply", "--dry-run=server", "--validate=strict", "-f"]);
    let applied = kubectl.arg(file.path()).output().unwrap();
    let said = text(&applied);
    let is_good = applied.status.success() && !said.contains("Warning");
    (!is_good).then_some(said)
}

#[test]
fn every_object_of_every_way_to_install_is_accepted_by_the_api_server() {
    let cluster = Cluster::shared();
    install_foreign_kinds(cluster);
    let (one, two) = (cluster.namespace("modes"), cluster.namespace("modes"));
    // Linting renders for this one.
    cluster.apply_in(
        "default",
        "{apiVersion: v1, kind: Namespace, metadata: {name: ambassador}}",
    );
    let (complaints, next) = (Mutex::default(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((mode, flags)) = MODES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(said) = complaint(cluster, [one.name(), two.name()], flags) {
                        let mut complaints: MutexGuard<'_, Vec<_>> = complaints.lock().unwrap();
                        complaints.push(format!("{mode}: {said}"));
                    }
                }
            });
        }
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_way_to_install_is_linted_strictly() {
    let cluster = Cluster::shared();
    for (mode, flags) in MODES {
        let mut helm = cluster.helm();
        helm.args(["lint", "--strict", "--quiet"])
            .arg(root().join("chart"));
        helm.args(filled(cluster, ["ambassador", "shop"], flags));
        let linted = helm.args(["--namespace", "ambassador"]).output().unwrap();
        assert!(linted.status.success(), "{mode}: {}", text(&linted));
    }
}
