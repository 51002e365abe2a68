//! Workloads of the test app, of every kind that can have an agent, with and without a Service.

use serde_json::{Value, json};

use crate::namespace::{Namespace, is_ready};

/// A workload with its Service, to be changed before it is applied.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its name, that of its Service, and what the app answers as.
    pub name: String,
    /// The workload itself.
    pub object: Value,
    /// The Service.
    pub service: Option<Value>,
}

impl Workload {
    /// A workload of this kind whose Service targets a port by name, `http`, or number, `8080`.
    pub fn new(kind: &str, name: &str, replicas: usize, target: &str) -> Self {
        let container = json!({
            "name": "app", "image": "localhost/rig/app:1", "imagePullPolicy": "Never",
            "args": ["serve", name],
            "ports": [{"name": "http", "containerPort": 8080}],
            // A machine that is busy with many pods takes longer than the second that is usual.
            "readinessProbe":
                {"httpGet": {"port": "http"}, "periodSeconds": 1, "timeoutSeconds": 10},
            "livenessProbe":
                {"httpGet": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10},
        });
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"terminationGracePeriodSeconds": 10, "containers": [container]},
                },
            },
        });
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = name.into();
        }
        let target = target.parse::<u16>().map_or(json!(target), |it| json!(it));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {
                "selector": {"app": name},
                "ports": [{"name": "http", "port": 80, "targetPort": target}],
            },
        });
        Self {
            name: name.to_owned(),
            object,
            service: Some(service),
        }
    }

    /// The same without cluster address: callers connect to the pods themselves.
    #[must_use]
    pub fn headless(mut self) -> Self {
        if let Some(service) = &mut self.service {
            service["spec"]["clusterIP"] = "None".into();
            service["spec"]["ports"][0]["port"] = 8080.into();
        }
        self
    }

    /// The same without a Service.
    #[must_use]
    pub fn without_service(mut self) -> Self {
        self.service = None;
        self
    }

    /// The same with an annotation on the template.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.template()["metadata"]["annotations"][key] = value.into();
        self
    }

    /// Its pod template.
    pub fn template(&mut self) -> &mut Value {
        &mut self.object["spec"]["template"]
    }

    /// Its app container.
    pub fn container(&mut self) -> &mut Value {
        &mut self.template()["spec"]["containers"][0]
    }

    /// Applies it, and returns without waiting for its pods.
    pub fn apply(&self, namespace: &Namespace<'_>) {
        if let Some(service) = &self.service {
            namespace.apply(&service.to_string());
        }
        namespace.apply(&self.object.to_string());
    }

    /// Applies it and waits until all its pods are ready.
    pub fn start(&self, namespace: &Namespace<'_>) {
        self.apply(namespace);
        let replicas = self.object["spec"]["replicas"].as_u64().unwrap_or(1);
        namespace.settled(&self.name, usize::try_from(replicas).unwrap(), |_| true);
    }
}

impl Namespace<'_> {
    /// Waits until a workload has so many ready pods, all of them as `is_good` says, and no other.
    pub fn settled(
        &self,
        name: &str,
        count: usize,
        is_good: impl Fn(&k8s_openapi::api::core::v1::Pod) -> bool,
    ) {
        let what = format!("{count} good pods of {name}");
        harness::wait::until_within(crate::cluster::WAIT_TIMEOUT, &what, || {
            let pods = self.pods_with(&format!("app={name}"));
            let good = |pod| is_ready(pod) && is_good(pod);
            (pods.len() == count && pods.iter().all(good)).then_some(())
        });
    }
}
