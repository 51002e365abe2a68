//! A running cluster.

use std::fmt::{self, Debug};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{self, Scope};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::rig::{self, Kind};

/// How long a cluster may take for anything: pods start in seconds, but many do at once.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

/// Name under which objects are applied.
const FIELD_MANAGER: &str = "cluster-tests";

/// A real Kubernetes.
pub struct Cluster {
    folder: PathBuf,
    facts: Facts,
    client: Client,
    runtime: Runtime,
    owned: bool,
}

/// Addresses of one cluster.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The machine beside the cluster, as pods and the API server reach it.
    pub host: Ipv4Addr,
    /// The node, and with it the API server.
    pub node: Ipv4Addr,
    /// Folder of the programs `kube`, `helm` and `app`.
    pub programs: PathBuf,
    /// Network namespace of the node.
    pub network: String,
}

/// Somebody with a kubeconfig, and no rights but those that a binding gives.
pub struct User {
    /// Name, as bindings know it.
    pub name: String,
    /// Path of the kubeconfig.
    pub kubeconfig: PathBuf,
    /// Client with this user's rights.
    pub client: Client,
}

impl Cluster {
    /// The cluster that `make test-cluster` started and the variable CLUSTER names.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let folder = std::env::var_os("CLUSTER").expect(
                "CLUSTER is not set; it is the folder of a running cluster. `make test-cluster` \
                 starts one and runs the tests",
            );
            Self::attach(folder.into(), false)
        })
    }

    /// A cluster for one test that would disturb the others; it ends with the value.
    pub fn start(kind: Kind) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("cluster-tests-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        rig::up(&folder, kind);
        Self::attach(folder, true)
    }

    fn attach(folder: PathBuf, owned: bool) -> Self {
        let facts = Facts::read(&folder);
        let runtime = Runtime::new().unwrap();
        let client = runtime.block_on(client(&folder.join("admin.conf")));
        Self {
            folder,
            facts,
            client,
            runtime,
            owned,
        }
    }

    /// Folder of its state and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its addresses.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Client with every right.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs a future on the runtime of the cluster's clients.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Starts a task on it.
    pub(crate) fn spawn(
        &self,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        self.runtime.spawn(future)
    }

    /// kubectl with every right.
    pub fn kubectl(&self) -> Command {
        Command::new(self.folder.join("kubectl"))
    }

    /// helm with every right.
    pub fn helm(&self) -> Command {
        Command::new(self.folder.join("helm"))
    }

    /// A command in the node's network: it reaches pods and Services by their addresses.
    pub fn on_node(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.facts.network])
            .arg(program);
        command
    }

    /// Gives the images of our programs to the node, as `tests/cluster/test` does for the shared
    /// cluster.
    pub fn load_our_images(&self) {
        let debug = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images-debug");
        let folder = std::env::var_os("IMAGES").map_or_else(debug, PathBuf::from);
        let architectures = std::fs::read_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}; tests/cluster/test makes it", folder.display())
        });
        for architecture in architectures {
            let folder = architecture.unwrap().path();
            for image in ["traffic-agent.tar", "traffic-manager.tar"] {
                self.load_image(&folder.join(image));
            }
        }
    }

    /// Sends SIGKILL to the first process of a container.
    pub(crate) fn kill_container(&self, id: &str) {
        let socket = self.folder.join("run/containerd.sock");
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(socket);
        ctr.args([
            "--namespace",
            "k8s.io",
            "tasks",
            "kill",
            "--signal",
            "SIGKILL",
            id,
        ]);
        let killed = ctr.output().unwrap();
        let said = String::from_utf8_lossy(&killed.stderr);
        assert!(killed.status.success(), "ctr: {said}");
    }

    /// Gives an image archive to the node. Pods use it with `imagePullPolicy: Never`.
    pub fn load_image(&self, archive: &Path) {
        rig::run(&self.folder, &["load", archive.to_str().unwrap()]);
    }

    /// A user of this name in these groups.
    pub fn user(&self, name: &str, groups: &[&str]) -> User {
        let arguments: Vec<&str> = ["kubeconfig", name].iter().chain(groups).copied().collect();
        let text = rig::run(&self.folder, &arguments);
        let kubeconfig = self.folder.join(format!("{name}.conf"));
        std::fs::write(&kubeconfig, text).unwrap();
        User {
            name: name.to_owned(),
            client: self.block_on(client(&kubeconfig)),
            kubeconfig,
        }
    }

    /// The same for a user who logs in with a token.
    pub fn user_with(&self, name: &str, token: &str) -> User {
        let admin = std::fs::read_to_string(self.folder.join("admin.conf")).unwrap();
        let mut config: serde_json::Value = serde_saphyr::from_str(&admin).unwrap();
        config["users"][0]["user"] = serde_json::json!({"token": token});
        let file = format!("{}.conf", name.replace(':', "-"));
        let kubeconfig = self.folder.join(file);
        // JSON is YAML.
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        User {
            name: name.to_owned(),
            client: self.block_on(client(&kubeconfig)),
            kubeconfig,
        }
    }

    /// Creates or changes the objects of a YAML text; those of a namespaced kind that name no
    /// namespace go to `namespace`. Panics with the API server's answer when it refuses one.
    pub fn apply_in(&self, namespace: &str, yaml: &str) {
        for object in objects(yaml) {
            let name = object.name_any();
            let applied = self.block_on(apply(self.client(), namespace, &object));
            if let Err(error) = applied {
                panic!("{} {name} is refused: {error}", kind_of(&object));
            }
        }
    }

    /// Error with which the API server refuses the one object of a YAML text.
    pub fn refusal_in(&self, namespace: &str, yaml: &str) -> kube::Error {
        let object = objects(yaml).pop().expect("an object");
        match self.block_on(apply(self.client(), namespace, &object)) {
            Ok(_) => panic!("{} {} is not refused", kind_of(&object), object.name_any()),
            Err(error) => error,
        }
    }

    /// Watches an object until `check` gives an answer; `None` stands for an object that is not
    /// there. Panics with the object's last state when that takes too long.
    pub fn wait_for<K, T>(
        &self,
        api: Api<K>,
        name: &str,
        what: &str,
        mut check: impl FnMut(Option<&K>) -> Option<T>,
    ) -> T
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let mut last = None;
        let watched = async {
            let states = watcher::watch_object(api, name);
            pin_mut!(states);
            while let Some(state) = states.next().await {
                // The watch goes on by itself after an error.
                let Ok(state) = state else { continue };
                if let Some(answer) = check(state.as_ref()) {
                    return answer;
                }
                last = state;
            }
            unreachable!("a watch has no end")
        };
        let done = self.block_on(async { tokio::time::timeout(WAIT_TIMEOUT, watched).await.ok() });
        done.unwrap_or_else(|| {
            panic!("{name}: waited {WAIT_TIMEOUT:?} for {what}; it is {last:#?}")
        })
    }

    /// Watches all objects of an API until `check` gives an answer for one that came or changed.
    pub fn wait_for_any<K, T>(
        &self,
        api: Api<K>,
        what: &str,
        mut check: impl FnMut(&K) -> Option<T>,
    ) -> T
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let watched = async {
            let events = watcher(api, watcher::Config::default());
            pin_mut!(events);
            while let Some(event) = events.next().await {
                if let Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) = event
                    && let Some(answer) = check(&object)
                {
                    return answer;
                }
            }
            unreachable!("a watch has no end")
        };
        let done = self.block_on(async { tokio::time::timeout(WAIT_TIMEOUT, watched).await.ok() });
        done.unwrap_or_else(|| panic!("waited {WAIT_TIMEOUT:?} for {what}"))
    }
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            eprintln!(
                "--- the cluster's logs are in {}",
                self.folder.join("log").display()
            );
            rig::run(&self.folder, &["down"]);
        } else {
            rig::run(&self.folder, &["down"]);
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

impl Facts {
    fn read(folder: &Path) -> Self {
        let lines = rig::facts(folder);
        let get = |name: &str| {
            lines
                .get(name)
                .unwrap_or_else(|| panic!("facts have no {name}"))
        };
        Self {
            host: get("HOST4").parse().unwrap(),
            node: get("NODE4").parse().unwrap(),
            programs: get("PROGRAMS").into(),
            network: format!("rig{}", get("NUMBER")),
        }
    }
}

async fn client(kubeconfig: &Path) -> Client {
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

fn objects(yaml: &str) -> Vec<DynamicObject> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("YAML: {error}\n{yaml}"))
}

fn kind_of(object: &DynamicObject) -> &str {
    object.types.as_ref().map_or("object", |types| &types.kind)
}

async fn apply(
    client: Client,
    namespace: &str,
    object: &DynamicObject,
) -> kube::Result<DynamicObject> {
    let types = object.types.as_ref().expect("apiVersion and kind");
    let kind = types
        .try_into()
        .expect("an apiVersion of the form GROUP/VERSION");
    let (resource, capabilities) = discovery::pinned_kind(&client, &kind).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client, &resource),
        Scope::Namespaced => {
            let named = object.namespace();
            Api::namespaced_with(client, named.as_deref().unwrap_or(namespace), &resource)
        }
    };
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(object))
        .await
}
