//! Our traffic-manager in the cluster, installed by its chart.

use std::path::Path;

use harness::wait::until;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;

use crate::cluster::Cluster;
use crate::namespace::Namespace;

/// An installed manager. Dropping it uninstalls the chart.
#[derive(Debug)]
pub struct Manager<'a> {
    namespace: &'a Namespace<'a>,
}

impl<'a> Manager<'a> {
    /// Installs the chart in `namespace` for the workloads of `managed`, and waits until the manager
    /// is ready. A manager for the whole cluster would meet other tests' pods.
    pub fn install(
        namespace: &'a Namespace<'a>,
        managed: &[&Namespace<'_>],
        values: &serde_json::Value,
    ) -> Self {
        let names: Vec<&str> = managed.iter().map(|one| one.name()).collect();
        let scope = serde_json::json!({"managerRbac": {"namespaced": true, "namespaces": names}});
        let manager = Self { namespace };
        manager.upgrade(&[&scope, values]);
        manager
    }

    /// Installs it for the whole cluster, which has to be one that no other test uses.
    pub fn install_for_all(namespace: &'a Namespace<'a>, values: &serde_json::Value) -> Self {
        let manager = Self { namespace };
        manager.upgrade(&[values]);
        manager
    }

    /// Installs or changes it with these values; later ones win. Panics with Helm's words when that
    /// fails, as it does when the manager is not ready within a minute.
    pub fn upgrade(&self, values: &[&serde_json::Value]) {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../chart");
        let files = tempfile::tempdir().unwrap();
        let mut helm = self.namespace.cluster().helm();
        helm.args([
            "upgrade",
            "--install",
            "traffic-manager",
            "--wait",
            "--timeout",
            "60s",
        ])
        .args([
            "--reset-then-reuse-values",
            "--namespace",
            self.namespace.name(),
        ])
        .arg(chart);
        for (number, values) in values.iter().enumerate() {
            let file = files.path().join(format!("{number}.json"));
            std::fs::write(&file, values.to_string()).unwrap();
            helm.arg("--values").arg(file);
        }
        let output = helm.output().unwrap();
        assert!(
            output.status.success(),
            "helm: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.logs()
        );
    }

    /// Its cluster.
    pub fn cluster(&self) -> &'a Cluster {
        self.namespace.cluster()
    }

    /// Name of its namespace.
    pub fn namespace(&self) -> &'a str {
        self.namespace.name()
    }

    /// Name of a manager's pod.
    pub fn pod(&self) -> String {
        let mut pods = self.namespace.pods("app=traffic-manager");
        pods.pop().expect("a pod of the manager")
    }

    /// Name of the pod whose manager leads.
    pub fn leader(&self) -> String {
        let leases: Api<Lease> = self.namespace.api();
        until("a manager that leads", || {
            let lease = self.cluster().block_on(leases.get("traffic-manager"));
            let holder = lease.ok()?.spec?.holder_identity?;
            let (pod, _) = holder.rsplit_once('_')?;
            Some(pod.to_owned())
        })
    }

    /// Kills the manager's process as a crash would; the kubelet starts it again.
    pub fn kill(&self) {
        self.kill_in(&self.pod());
    }

    /// The same in one of its pods.
    pub fn kill_in(&self, pod: &str) {
        let pod = self.namespace.ready_pod(pod);
        let statuses = pod.status.unwrap().container_statuses.unwrap();
        let id = statuses[0].container_id.as_ref().unwrap();
        let id = id.trim_start_matches("containerd://");
        self.cluster().kill_container(id);
    }

    /// Deletes the manager's pod, and waits until another one is there.
    pub fn delete_pod(&self) {
        let pods: Api<Pod> = self.namespace.api();
        let name = self.pod();
        let deleted = self
            .cluster()
            .block_on(pods.delete(&name, &DeleteParams::default()));
        deleted.unwrap();
        until("another pod of the manager", || {
            let others = self.namespace.pods("app=traffic-manager");
            others.iter().any(|it| *it != name).then_some(())
        });
    }

    /// Waits until the manager is ready.
    pub fn is_ready(&self) {
        self.namespace.rolled_out("traffic-manager");
    }

    /// What its pods have printed.
    pub fn logs(&self) -> String {
        let pods = self.namespace.pods("app=traffic-manager");
        let logs = pods
            .iter()
            .map(|pod| self.namespace.try_logs(pod, "traffic-manager"));
        logs.map(|text| text.unwrap_or_else(|error| error.to_string()))
            .collect()
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the manager said:\n{}", self.logs());
        }
        let mut helm = self.namespace.cluster().helm();
        let arguments = ["uninstall", "traffic-manager", "--wait", "--namespace"];
        let _ = helm.args(arguments).arg(self.namespace.name()).output();
    }
}
