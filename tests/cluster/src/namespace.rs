//! A namespace of one test.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{self, Pod, ServiceAccount};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, LogParams, ObjectMeta, PostParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;

use crate::cluster::Cluster;

/// A namespace. Dropping it deletes all that is in it, and prints its state if the test is failing.
#[derive(Debug)]
pub struct Namespace<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// What a command in a pod did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// True for exit code 0.
    pub success: bool,
}

impl Cluster {
    /// A namespace for one test, with a name that begins with `name`.
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        Namespace::create(self, name, &[])
    }

    /// The same with labels, which webhooks and Pod Security select by.
    pub fn namespace_with(&self, name: &str, labels: &[(&str, &str)]) -> Namespace<'_> {
        Namespace::create(self, name, labels)
    }
}

impl<'a> Namespace<'a> {
    fn create(cluster: &'a Cluster, begins: &str, labels: &[(&str, &str)]) -> Self {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        // A cluster that stays up sees many processes of tests.
        let name = format!("{begins}-{}-{number}", std::process::id());
        let labels: BTreeMap<String, String> = labels
            .iter()
            .map(|&(key, value)| (key.into(), value.into()))
            .collect();
        let object = v1::Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            ..v1::Namespace::default()
        };
        let api: Api<v1::Namespace> = Api::all(cluster.client());
        cluster
            .block_on(api.create(&PostParams::default(), &object))
            .unwrap();
        let namespace = Self { cluster, name };
        // Bare pods are refused until the controller has made it.
        namespace.wait(
            "default",
            "the account",
            |account: Option<&ServiceAccount>| account.map(drop),
        );
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it is in.
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// The API of one kind in this namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), &self.name)
    }

    /// Creates or changes the objects of a YAML text, here unless they say otherwise.
    pub fn apply(&self, yaml: &str) {
        self.cluster.apply_in(&self.name, yaml);
    }

    /// Error with which the API server refuses the one object of a YAML text.
    pub fn refusal(&self, yaml: &str) -> kube::Error {
        self.cluster.refusal_in(&self.name, yaml)
    }

    /// Watches an object until `check` gives an answer; see [`Cluster::wait_for`].
    pub fn wait<K, T>(
        &self,
        name: &str,
        what: &str,
        check: impl FnMut(Option<&K>) -> Option<T>,
    ) -> T
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
    {
        self.cluster.wait_for(self.api(), name, what, check)
    }

    /// Waits until a pod is ready, and returns it.
    pub fn ready_pod(&self, name: &str) -> Pod {
        self.wait(name, "the pod to be ready", |pod: Option<&Pod>| {
            pod.filter(|pod| is_ready(pod)).cloned()
        })
    }

    /// Waits until every replica of a Deployment is of its newest template and available, and no
    /// other is left.
    pub fn rolled_out(&self, name: &str) -> Deployment {
        self.wait(name, "the rollout", |deployment: Option<&Deployment>| {
            deployment
                .filter(|deployment| is_rolled_out(deployment))
                .cloned()
        })
    }

    /// Names of the pods with a label, such as `app=web`, that are not ending.
    pub fn pods(&self, labels: &str) -> Vec<String> {
        let pods = self.pods_with(labels).into_iter();
        pods.filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(|pod| pod.name_any())
            .collect()
    }

    /// All pods with a label, those that are ending as well.
    pub fn pods_with(&self, labels: &str) -> Vec<Pod> {
        let (api, chosen) = (self.api::<Pod>(), ListParams::default().labels(labels));
        self.cluster.block_on(api.list(&chosen)).unwrap().items
    }

    /// A Deployment of the test app and a Service of the same name, port 80; waits until it is up.
    /// `target` is the Service's target port: `http` or `8080`.
    pub fn deploy(&self, name: &str, replicas: usize, target: &str) {
        self.apply(&format!(
            "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
        - name: app
          image: localhost/rig/app:1
          imagePullPolicy: Never
          args: [serve, {name}]
          ports: [{{name: http, containerPort: 8080}}]
          readinessProbe: {{httpGet: {{port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: {target}}}]}}
"
        ));
        self.rolled_out(name);
    }

    /// Runs a command in a pod's container, or in its default one.
    pub fn exec(&self, pod: &str, container: Option<&str>, command: &[&str]) -> Output {
        let parameters = AttachParams {
            container: container.map(str::to_owned),
            ..AttachParams::default().stderr(true)
        };
        let api: Api<Pod> = self.api();
        let run = async {
            let mut process = api.exec(pod, command.iter().copied(), &parameters).await?;
            let mut stdout = process.stdout().expect("attached");
            let mut stderr = process.stderr().expect("attached");
            let status = process.take_status().expect("not taken before");
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (status, _, _) = tokio::join!(
                status,
                stdout.read_to_end(&mut out),
                stderr.read_to_end(&mut err)
            );
            let success = status.and_then(|status| status.status);
            Ok::<_, kube::Error>(Output {
                stdout: String::from_utf8_lossy(&out).into_owned(),
                stderr: String::from_utf8_lossy(&err).into_owned(),
                success: success.as_deref() == Some("Success"),
            })
        };
        self.cluster
            .block_on(run)
            .unwrap_or_else(|error| panic!("{command:?} does not run in {pod}: {error}"))
    }

    /// All that a container has printed so far.
    pub fn logs(&self, pod: &str, container: &str) -> String {
        self.try_logs(pod, container).unwrap()
    }

    /// The same; an error while the container has not started.
    pub fn try_logs(&self, pod: &str, container: &str) -> kube::Result<String> {
        let parameters = LogParams {
            container: Some(container.to_owned()),
            ..LogParams::default()
        };
        let api: Api<Pod> = self.api();
        self.cluster.block_on(api.logs(pod, &parameters))
    }

    fn print(&self) {
        let described = self
            .cluster
            .kubectl()
            .args([
                "--namespace",
                &self.name,
                "get",
                "deployments,statefulsets,pods,events",
            ])
            .output();
        if let Ok(described) = described {
            let text = String::from_utf8_lossy(&described.stdout);
            eprintln!("--- namespace {}:\n{text}", self.name);
        }
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print();
        }
        let api: Api<v1::Namespace> = Api::all(self.cluster.client());
        // The cluster may be gone already, and then so is the namespace.
        let _ = self
            .cluster
            .block_on(api.delete(&self.name, &DeleteParams::default()));
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .any(|one| one.type_ == "Ready" && one.status == "True")
}

fn is_rolled_out(deployment: &Deployment) -> bool {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let Some(status) = &deployment.status else {
        return false;
    };
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
}
