//! The chart on a real API server: what it accepts, refuses and keeps. Nothing has to run for that;
//! `install` has the tests with running pods.

use std::path::PathBuf;
use std::process::Output;

use cluster_tests::{Cluster, Namespace};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{Patch, PatchParams};

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|it| String::from_utf8_lossy(it)).concat()
}

/// Helm with the chart: `helm("install", "name", namespace, flags)`.
pub(crate) fn helm(
    cluster: &Cluster,
    verb: &str,
    release: &str,
    namespace: &str,
    flags: &[&str],
) -> Output {
    let mut helm = cluster.helm();
    helm.args([verb, release]);
    if verb != "uninstall" {
        helm.arg(root().join("chart"));
    }
    helm.args(["--namespace", namespace]).args(flags);
    helm.output().unwrap()
}

/// The same, where it has to work.
pub(crate) fn helm_works(
    cluster: &Cluster,
    verb: &str,
    release: &str,
    namespace: &str,
    flags: &[&str],
) -> String {
    let output = helm(cluster, verb, release, namespace, flags);
    assert!(output.status.success(), "helm {verb}: {}", text(&output));
    text(&output)
}

/// Flags of an install that manages these namespaces only.
fn managing(namespaces: &[&str]) -> [String; 2] {
    [
        "--set=managerRbac.namespaced=true".into(),
        format!("--set=managerRbac.namespaces={{{}}}", namespaces.join(",")),
    ]
}

#[test]
fn a_second_manager_of_a_namespace_is_refused_by_the_claim() {
    let cluster = Cluster::shared();
    let (first, second, shared) = (
        cluster.namespace("claim"),
        cluster.namespace("claim"),
        cluster.namespace("claim"),
    );
    let flags = managing(&[first.name(), shared.name()]);
    helm_works(
        cluster,
        "install",
        "traffic-manager",
        first.name(),
        &flags.each_ref().map(String::as_str),
    );
    let flags = managing(&[second.name(), shared.name()]);
    let refused = helm(
        cluster,
        "install",
        "traffic-manager",
        second.name(),
        &flags.each_ref().map(String::as_str),
    );
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    for part in [
        format!(
            "ConfigMap \"traffic-manager-claim\" in namespace \"{}\"",
            shared.name()
        ),
        "meta.helm.sh/release-namespace".into(),
        format!("current value is \"{}\"", first.name()),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    helm_works(
        cluster,
        "uninstall",
        "traffic-manager",
        first.name(),
        &["--no-hooks"],
    );
}

#[test]
fn what_the_manager_wrote_outlives_upgrade_and_rollback() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("kept");
    let name = namespace.name();
    let flags = managing(&[name]);
    let flags = flags.each_ref().map(String::as_str);
    helm_works(cluster, "install", "traffic-manager", name, &flags);
    write_as_the_manager(&namespace);
    let changed = [
        &flags[..],
        &["--set=agentInjector.webhook.timeoutSeconds=7"],
    ]
    .concat();
    helm_works(cluster, "upgrade", "traffic-manager", name, &changed);
    assert_eq!(written(&namespace), (true, true, true, Some(7)));
    let back = cluster
        .helm()
        .args(["rollback", "traffic-manager", "1", "-n", name])
        .output()
        .unwrap();
    assert!(back.status.success(), "{}", text(&back));
    assert_eq!(written(&namespace), (true, true, true, Some(5)));
    helm_works(
        cluster,
        "uninstall",
        "traffic-manager",
        name,
        &["--no-hooks"],
    );
}

fn webhook_name(namespace: &Namespace<'_>) -> String {
    format!("agent-injector-webhook-{}", namespace.name())
}

/// Certificate, CA and state, as a manager leaves them in the chart's objects.
fn write_as_the_manager(namespace: &Namespace<'_>) {
    let cluster = namespace.cluster();
    let authority = std::fs::read(cluster.folder().join("pki/ca.crt")).unwrap();
    let bundle = k8s_openapi::ByteString(authority);
    let params = PatchParams::default();
    cluster.block_on(async {
        let secrets: Api<Secret> = namespace.api();
        let data = serde_json::json!({"data": {"ca.crt": bundle}});
        secrets
            .patch("mutator-webhook-tls", &params, &Patch::Merge(data))
            .await
            .unwrap();
        let maps: Api<ConfigMap> = namespace.api();
        let data = serde_json::json!({"data": {"agent-state.yaml": "{}"}});
        maps.patch("traffic-manager", &params, &Patch::Merge(data))
            .await
            .unwrap();
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client());
        let name = webhook_name(namespace);
        let mut webhook = webhooks.get(&name).await.unwrap();
        webhook.webhooks.as_mut().unwrap()[0]
            .client_config
            .ca_bundle = Some(bundle);
        webhooks
            .replace(&name, &Default::default(), &webhook)
            .await
            .unwrap();
    });
}

/// Is what `write_as_the_manager` wrote there, and what is the webhook's timeout?
fn written(namespace: &Namespace<'_>) -> (bool, bool, bool, Option<i32>) {
    let cluster = namespace.cluster();
    cluster.block_on(async {
        let secrets: Api<Secret> = namespace.api();
        let secret = secrets.get("mutator-webhook-tls").await.unwrap();
        let maps: Api<ConfigMap> = namespace.api();
        let map = maps.get("traffic-manager").await.unwrap();
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client());
        let webhook = webhooks.get(&webhook_name(namespace)).await.unwrap();
        let webhook = webhook.webhooks.unwrap().remove(0);
        (
            secret.data.is_some_and(|data| data.contains_key("ca.crt")),
            map.data
                .is_some_and(|data| data.contains_key("agent-state.yaml")),
            webhook.client_config.ca_bundle.is_some(),
            webhook.timeout_seconds,
        )
    })
}

#[test]
fn rights_by_an_administrator_and_the_rest_by_a_user_of_one_namespace() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("passes");
    let name = namespace.name();
    let user = cluster.user("tenant", &[]);
    namespace.apply(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects: [{kind: User, name: tenant, apiGroup: rbac.authorization.k8s.io}]
",
    );
    let selection = managing(&[name]);
    let selection = selection.each_ref().map(String::as_str);
    let kubeconfig = format!("--kubeconfig={}", user.kubeconfig.display());
    let rights = ["--set=rbac.only=true", "--set=rbac.webhook=true"];
    let rest = ["--set=managerRbac.create=false", kubeconfig.as_str()];
    // Without the first pass the webhook configuration, a cluster's object, stands in the way.
    let alone = helm(
        cluster,
        "install",
        "alone",
        name,
        &[&selection[..], &rest].concat(),
    );
    let said = text(&alone);
    assert!(said.contains("mutatingwebhookconfigurations"), "{said}");
    helm_works(
        cluster,
        "install",
        "rights",
        name,
        &[&selection[..], &rights].concat(),
    );
    helm_works(
        cluster,
        "install",
        "rest",
        name,
        &[&selection[..], &rest, &["--set=rbac.webhook=true"]].concat(),
    );
    helm_works(
        cluster,
        "uninstall",
        "rest",
        name,
        &["--no-hooks", &kubeconfig],
    );
    helm_works(cluster, "uninstall", "rights", name, &[]);
}
