//! Place of the cluster and its manager, by flags, environment and kubeconfig.

use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::Deserialize;

use crate::Failure;
use crate::flags::cluster::ClusterFlags;

/// Namespace of the manager, where nothing else is said.
pub(crate) const DEFAULT_MANAGER_NAMESPACE: &str = "ambassador";
/// Name of the kubeconfig extension that says where a cluster's manager is.
const EXTENSION: &str = "telepresence.io";

/// Result of flags and kubeconfig.
pub(crate) struct Chosen {
    /// Access to the API server.
    pub(crate) config: kube::Config,
    /// Name of the context.
    pub(crate) context: String,
    /// Namespace of the context.
    pub(crate) namespace: String,
    /// Namespace of the manager, where flag, environment or extension name one.
    pub(crate) manager_namespace: Option<String>,
}

/// Part of the extension that this client reads; others share it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Extension {
    manager: ManagerPlace,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ManagerPlace {
    namespace: Option<String>,
}

impl ClusterFlags {
    /// Reads the kubeconfig and chooses.
    pub(crate) async fn choose(&self) -> Result<Chosen, Failure> {
        let kubeconfig = self.read()?;
        let context = self
            .context
            .clone()
            .or_else(|| kubeconfig.current_context.clone())
            .filter(|name| !name.is_empty())
            .ok_or_else(|| {
                Failure::Failed(
                    "the kubeconfig has no current context; name one with --context, or reach a \
                    manager with --manager HOST:PORT"
                        .into(),
                )
            })?;
        let entry = kubeconfig.contexts.iter().find(|it| it.name == context);
        let Some(entry) = entry.and_then(|it| it.context.as_ref()) else {
            let known: Vec<_> = kubeconfig
                .contexts
                .iter()
                .map(|it| it.name.as_str())
                .collect();
            return Err(Failure::Failed(format!(
                "--context {context:?} is not in the kubeconfig; it has {}",
                list_or_none(&known)
            )));
        };
        let namespace = entry.namespace.clone().filter(|name| !name.is_empty());
        let extension = extension(&kubeconfig, &entry.cluster)?;
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            ..KubeConfigOptions::default()
        };
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .map_err(|error| {
                Failure::Failed(format!("context {context:?} of the kubeconfig: {error}"))
            })?;
        Ok(Chosen {
            config,
            context,
            namespace: namespace.unwrap_or_else(|| "default".into()),
            manager_namespace: self
                .manager_namespace
                .clone()
                .or(extension.manager.namespace)
                .filter(|name| !name.is_empty()),
        })
    }

    fn read(&self) -> Result<Kubeconfig, Failure> {
        let (read, place) = match &self.kubeconfig {
            Some(path) => (Kubeconfig::read_from(path), path.display().to_string()),
            None => (
                Kubeconfig::read(),
                "$KUBECONFIG or ~/.kube/config".to_owned(),
            ),
        };
        read.map_err(|error| {
            Failure::Failed(format!(
                "no kubeconfig at {place}: {error}; name one with --kubeconfig, or reach a manager \
                with --manager HOST:PORT"
            ))
        })
    }
}

/// The extension of a cluster's entry; the default where there is none.
fn extension(kubeconfig: &Kubeconfig, cluster: &str) -> Result<Extension, Failure> {
    let extensions = kubeconfig
        .clusters
        .iter()
        .find(|it| it.name == cluster)
        .and_then(|it| it.cluster.as_ref())
        .and_then(|it| it.extensions.as_ref());
    let ours = extensions
        .into_iter()
        .flatten()
        .find(|it| it.name == EXTENSION);
    ours.map_or_else(
        || Ok(Extension::default()),
        |it| {
            serde_json::from_value(it.extension.clone()).map_err(|error| {
                Failure::Failed(format!(
                    "extension {EXTENSION} of cluster {cluster:?} in the kubeconfig: {error}; \
                     write manager: {{namespace: NAME}}"
                ))
            })
        },
    )
}

fn list_or_none(names: &[&str]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: here
clusters:
- name: plain
  cluster: {server: "https://127.0.0.1:1"}
- name: extended
  cluster:
    server: https://127.0.0.1:1
    extensions:
    - name: telepresence.io
      extension: {manager: {namespace: staging}, never-proxy: [10.0.0.0/8]}
- name: broken
  cluster:
    server: https://127.0.0.1:1
    extensions:
    - {name: telepresence.io, extension: {manager: staging}}
users:
- {name: me, user: {token: t}}
contexts:
- {name: here, context: {cluster: plain, user: me, namespace: shop}}
- {name: there, context: {cluster: extended, user: me}}
- {name: wrong, context: {cluster: broken, user: me}}
"#;

    async fn choose(context: Option<&str>, manager: Option<&str>) -> Result<Chosen, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), CONFIG).unwrap();
        let flags = ClusterFlags {
            context: context.map(str::to_owned),
            kubeconfig: Some(file.path().to_owned()),
            manager_namespace: manager.map(str::to_owned),
        };
        flags.choose().await
    }

    #[tokio::test]
    async fn the_current_context_says_the_namespace_and_nothing_of_the_manager() {
        let chosen = choose(None, None).await.unwrap();
        assert_eq!(
            (chosen.context.as_str(), chosen.namespace.as_str()),
            ("here", "shop")
        );
        assert_eq!(chosen.manager_namespace, None);
    }

    #[tokio::test]
    async fn the_extension_says_where_the_manager_is_and_a_flag_wins() {
        let chosen = choose(Some("there"), None).await.unwrap();
        assert_eq!(chosen.manager_namespace.as_deref(), Some("staging"));
        assert_eq!(chosen.namespace, "default");
        let chosen = choose(Some("there"), Some("mine")).await.unwrap();
        assert_eq!(chosen.manager_namespace.as_deref(), Some("mine"));
    }

    #[tokio::test]
    async fn mistakes_are_named() {
        let status_text = |result: Result<Chosen, Failure>| result.err().unwrap().to_string();
        let unknown = status_text(choose(Some("nowhere"), None).await);
        assert!(unknown.contains("it has here, there, wrong"), "{unknown}");
        let broken = status_text(choose(Some("wrong"), None).await);
        assert!(broken.contains("manager: {namespace: NAME}"), "{broken}");
        let flags = ClusterFlags {
            kubeconfig: Some("/nowhere/config".into()),
            ..ClusterFlags::default()
        };
        let missing = status_text(flags.choose().await);
        assert!(
            missing.contains("no kubeconfig at /nowhere/config"),
            "{missing}"
        );
    }
}
