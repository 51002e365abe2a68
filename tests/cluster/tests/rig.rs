//! The rig itself: what tests on it may rely on.

use cluster_tests::audit::Log;
use cluster_tests::{Cluster, Kind};
use harness::certs::Authority;
use harness::ports;
use harness::process::Process;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};

/// A pod that nothing has to run.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  containers: [{name: app, image: 'localhost/rig/app:1', imagePullPolicy: Never}]
";

#[test]
fn a_service_is_reached_by_its_name_from_a_pod() {
    let namespace = Cluster::shared().namespace("service");
    namespace.deploy("web", 2, "http");
    let answer = namespace
        .caller()
        .get("http://web/some/path", &["-H", "x-dev: me"]);
    assert_eq!((answer.status, answer.by.as_str()), (200, "web"));
    assert!(
        namespace.pods("app=web").contains(&answer.pod),
        "{answer:?}"
    );
    assert!(
        answer.body.contains("GET /some/path HTTP/1.1"),
        "{answer:?}"
    );
    assert!(answer.body.contains("X-Dev: me"), "{answer:?}");
}

#[test]
fn a_steady_load_tells_who_answered_and_what_failed() {
    let namespace = Cluster::shared().namespace("load");
    namespace.deploy("web", 1, "8080");
    let good = namespace.load("http://web", 100, &[]);
    let bad = namespace.load("http://missing", 50, &[]);
    good.goes_on_for(100);
    bad.goes_on_for(20);
    let (good, bad) = (good.stop(), bad.stop());
    assert_eq!((good.failed(), good.answered_by("web")), (0, good.sent));
    assert_eq!((bad.failed(), bad.answers.len()), (bad.sent, 0));
    let reason = bad.failures.keys().next().unwrap();
    assert!(reason.contains("no such host"), "{reason}");
}

#[test]
fn a_datagram_to_a_service_is_answered() {
    let namespace = Cluster::shared().namespace("datagram");
    namespace.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  containers:
    - name: app
      image: localhost/rig/app:1
      imagePullPolicy: Never
      args: [serve, echo, -udp, ':5000']
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: echo}, ports: [{port: 53, targetPort: 5000, protocol: UDP}]}
",
    );
    namespace.ready_pod("echo");
    let caller = namespace.caller();
    // The proxy hears of the pod a little later than the test does.
    let answer = harness::wait::until("the answer", || {
        let asked = caller.run(&["app", "datagram", "echo:53", "hello"]);
        asked.success.then_some(asked.stdout)
    });
    assert_eq!(answer, "echo hello\n");
}

#[test]
fn nothing_outside_is_reached_from_a_pod() {
    let namespace = Cluster::shared().namespace("outside");
    // An address for documentation (RFC 5737): it would be routed like any other of the world's.
    let refused = namespace
        .caller()
        .try_get("http://198.51.100.1", &[])
        .unwrap_err();
    assert!(refused.contains("Couldn't connect"), "{refused}");
}

#[test]
fn a_command_in_a_pod_gives_its_output_and_its_result() {
    let namespace = Cluster::shared().namespace("exec");
    let caller = namespace.caller();
    let good = caller.run(&["echo", "said"]);
    assert!(good.success && good.stdout == "said\n", "{good:?}");
    let bad = caller.run(&["ls", "/missing"]);
    assert!(!bad.success && bad.stderr.contains("/missing"), "{bad:?}");
}

#[test]
fn a_pod_reaches_a_server_beside_the_cluster() {
    let cluster = Cluster::shared();
    let address = format!("{}:{}", cluster.facts().host, ports::free());
    let mut server = std::process::Command::new(cluster.facts().programs.join("app"));
    let _server = Process::start("app", server.args(["serve", "beside", "-http", &address]));
    let namespace = cluster.namespace("beside");
    let retried = ["--retry", "5", "--retry-connrefused"];
    let answer = namespace
        .caller()
        .get(&format!("http://{address}"), &retried);
    assert_eq!(answer.by, "beside");
}

#[test]
fn the_machine_beside_the_cluster_reaches_no_pod() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("unreached");
    let pod = namespace.ready_pod(namespace.caller().pod());
    let address = pod.status.unwrap().pod_ip.unwrap();
    let route = std::process::Command::new("ip")
        .args(["route", "get", &address])
        .output()
        .unwrap();
    let route = String::from_utf8(route.stdout).unwrap();
    assert!(!route.contains(&cluster.facts().network), "{route}");
}

#[test]
fn a_webhook_beside_the_cluster_is_called_by_url() {
    let cluster = Cluster::shared();
    let folder = tempfile::tempdir().unwrap();
    let host = cluster.facts().host.to_string();
    let authority = Authority::new("webhook authority");
    authority.write_secret(folder.path(), &authority.sign(&[&host]));
    let address = format!("{host}:{}", ports::free());
    let _hook = Process::start(
        "hook",
        std::process::Command::new(cluster.facts().programs.join("app"))
            .args(["hook", "-https", &address, "-value", "by url", "-cert"])
            .arg(folder.path().join("tls.crt"))
            .arg("-key")
            .arg(folder.path().join("tls.key")),
    );
    let namespace = cluster.namespace_with("by-url", &[("hooked", "by-url")]);
    let webhook = Webhook::new(
        &namespace,
        &authority,
        &format!("url: 'https://{address}/'"),
    );
    assert_eq!(webhook.annotation(), "by url");
}

#[test]
fn a_webhook_in_a_pod_is_called_by_its_service() {
    let cluster = Cluster::shared();
    let hooks = cluster.namespace("hooks");
    let authority = Authority::new("webhook authority");
    let signed = authority.sign(&[&format!("hook.{}.svc", hooks.name())]);
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "hook"},
        "stringData": {"tls.crt": signed.cert, "tls.key": signed.key},
    });
    hooks.apply(&secret.to_string());
    hooks.apply(HOOK);
    hooks.rolled_out("hook");
    let namespace = cluster.namespace_with("by-service", &[("hooked", "by-service")]);
    let service = format!("service: {{name: hook, namespace: {}}}", hooks.name());
    let webhook = Webhook::new(&namespace, &authority, &service);
    assert_eq!(webhook.annotation(), "by service");
}

const HOOK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: hook}
spec:
  selector: {matchLabels: {app: hook}}
  template:
    metadata: {labels: {app: hook}}
    spec:
      containers:
        - name: hook
          image: localhost/rig/app:1
          imagePullPolicy: Never
          args: [hook, -value, by service]
          readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
          volumeMounts: [{name: tls, mountPath: /tls, readOnly: true}]
      volumes: [{name: tls, secret: {secretName: hook}}]
---
apiVersion: v1
kind: Service
metadata: {name: hook}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 8443}]}
";

/// A webhook configuration that selects one namespace by its label `hooked`; deleted when dropped.
struct Webhook<'a> {
    namespace: &'a cluster_tests::Namespace<'a>,
}

impl<'a> Webhook<'a> {
    fn new(
        namespace: &'a cluster_tests::Namespace<'a>,
        authority: &Authority,
        called: &str,
    ) -> Self {
        let bundle = serde_json::to_value(k8s_openapi::ByteString(authority.pem().into())).unwrap();
        namespace.apply(&format!(
            "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
  - name: hook.example.test
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Fail
    clientConfig: {{{called}, caBundle: {bundle}}}
    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {name}}}}}
    rules: [{{operations: [CREATE], apiGroups: [''], apiVersions: [v1], resources: [pods]}}]
",
            name = namespace.name()
        ));
        Self { namespace }
    }

    /// What the webhook wrote on a pod. The API server hears of a new webhook a little later than
    /// the caller does, so pods are asked for, without making them, until one is annotated.
    fn annotation(&self) -> String {
        let pods: Api<Pod> = self.namespace.api();
        let pod: Pod = serde_saphyr::from_str(POD).unwrap();
        let rehearsal = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        harness::wait::until("the webhook to be called", || {
            let made = self
                .namespace
                .cluster()
                .block_on(pods.create(&rehearsal, &pod))
                .ok()?;
            made.metadata.annotations?.remove("rig/hooked")
        })
    }
}

impl Drop for Webhook<'_> {
    fn drop(&mut self) {
        let mut kubectl = self.namespace.cluster().kubectl();
        let kind = "mutatingwebhookconfiguration";
        let _ = kubectl
            .args(["delete", kind, self.namespace.name()])
            .output();
    }
}

#[test]
fn a_user_has_no_rights_but_those_of_a_binding() {
    let cluster = Cluster::shared();
    let (mine, other) = (cluster.namespace("mine"), cluster.namespace("other"));
    let user = cluster.user(&format!("reader-of-{}", mine.name()), &[]);
    mine.apply(&format!(
        "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: reader}}
rules: [{{apiGroups: [''], resources: [pods], verbs: [list]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: reader}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {}}}]
",
        user.name
    ));
    let list = |namespace: &str| {
        let pods: Api<Pod> = Api::namespaced(user.client.clone(), namespace);
        cluster.block_on(async move { pods.list(&ListParams::default()).await })
    };
    // The authorizer hears of a new binding a little later than the caller does.
    harness::wait::until("the binding", || list(mine.name()).ok());
    let refused = list(other.name()).unwrap_err().to_string();
    let reason = format!(
        "User \"{}\" cannot list resource \"pods\" in API group \"\" in the namespace \"{}\"",
        user.name,
        other.name()
    );
    assert!(refused.contains(&reason), "{refused}");
}

#[test]
fn the_audit_log_names_caller_verb_object_and_answer() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("audit");
    let user = cluster.user(&format!("asker-of-{}", namespace.name()), &["dev"]);
    let mut log = Log::from_now(cluster);
    let maps: Api<ConfigMap> = Api::namespaced(user.client.clone(), namespace.name());
    cluster
        .block_on(async { maps.get("some").await })
        .unwrap_err();
    let asked = log.wait("the refusal", |request| request.user.username == user.name);
    let object = asked.object.clone().unwrap();
    assert_eq!(asked.verb, "get");
    assert_eq!(
        (object.resource.as_str(), object.name.as_str()),
        ("configmaps", "some")
    );
    assert_eq!(object.namespace, namespace.name());
    assert!(asked.user.groups.contains(&"dev".to_owned()), "{asked:?}");
    assert!(asked.is_refused(), "{asked:?}");
}

#[test]
fn a_control_plane_alone_takes_objects_and_runs_no_pod() {
    let cluster = Cluster::start(Kind::ControlPlane);
    let namespace = cluster.namespace("alone");
    namespace.apply(POD);
    namespace.wait("one", "the scheduler's verdict", |pod: Option<&Pod>| {
        let conditions = pod?.status.as_ref()?.conditions.as_ref()?;
        let refused = conditions
            .iter()
            .find(|one| one.reason.as_deref() == Some("Unschedulable"))?;
        refused
            .message
            .as_ref()?
            .contains("no nodes available")
            .then_some(())
    });
}

#[test]
fn helm_installs_a_chart_and_knows_the_version_of_the_cluster() {
    let namespace = Cluster::shared().namespace("helm");
    let chart = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(chart.path().join(name), text).unwrap();
    std::fs::create_dir(chart.path().join("templates")).unwrap();
    write(
        "Chart.yaml",
        "{apiVersion: v2, name: tiny, version: 0.1.0, kubeVersion: '>=1.33.0-0'}",
    );
    write(
        "templates/map.yaml",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: tiny}, \
         data: {version: '{{ .Capabilities.KubeVersion }}'}}",
    );
    let mut helm = namespace.cluster().helm();
    helm.args(["install", "tiny", "--wait", "--namespace", namespace.name()])
        .arg(chart.path());
    let installed = helm.output().unwrap();
    assert!(
        installed.status.success(),
        "{}",
        String::from_utf8_lossy(&installed.stderr)
    );
    let maps: Api<ConfigMap> = namespace.api();
    let map = namespace.cluster().block_on(maps.get("tiny")).unwrap();
    let version = map.data.unwrap().remove("version").unwrap();
    assert!(version.starts_with("v1.3"), "{version}");
}
