//! `intercept check`: what an intercept takes, one line each, with the remedy where it is missing.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Cluster, is_ready, is_refused, manager_pods, unreachable};
use crate::Failure;
use crate::flags::cluster::ClusterFlags;
use crate::report::line;
use crate::session::{self, Way};

/// Result of one check.
enum Outcome {
    Fine(String),
    /// Doubtful: works less well, or is not known.
    Doubtful(String),
    Missing(String),
}

use Outcome::{Doubtful, Fine, Missing};

/// Prints a line for each check; fails when an intercept could not work.
pub(super) async fn check(flags: &ClusterFlags, namespace: Option<&str>) -> Result<(), Failure> {
    let mut report = Report::default();
    let cluster = match Cluster::open(flags).await {
        Ok(cluster) => cluster,
        Err(failure) => {
            report.add("cluster", Missing(failure.to_string()));
            return report.result();
        }
    };
    if !report.add("cluster", server(&cluster).await) {
        return report.result();
    }
    let namespace = namespace.unwrap_or(&cluster.namespace);
    report.add("rights", manager_rights(&cluster).await);
    report.add("agents", agent_rights(&cluster, namespace).await);
    // The version comes from the manager itself, so it needs one that is ready.
    if report.add("manager", manager(&cluster).await) {
        report.add("version", version(&cluster).await);
    }
    report.add("webhook", webhook(&cluster).await);
    report.add("sshfs", sshfs());
    report.result()
}

#[derive(Default)]
struct Report {
    missing: usize,
}

impl Report {
    /// Prints one line; did the check find what an intercept needs?
    fn add(&mut self, what: &str, outcome: Outcome) -> bool {
        let (word, text) = match &outcome {
            Fine(text) => ("ok", text),
            Doubtful(text) => ("note", text),
            Missing(text) => ("FAILED", text),
        };
        line(format_args!("{word:<7}{what:<9}{text}"));
        let is_there = !matches!(outcome, Missing(_));
        self.missing += usize::from(!is_there);
        is_there
    }

    fn result(self) -> Result<(), Failure> {
        match self.missing {
            0 => Ok(()),
            1 => Err(Failure::Failed("a check failed".into())),
            many => Err(Failure::Failed(format!("{many} checks failed"))),
        }
    }
}

async fn server(cluster: &Cluster) -> Outcome {
    match cluster.client.apiserver_version().await {
        Ok(version) => Fine(format!(
            "context {}, Kubernetes {}",
            cluster.context, version.git_version
        )),
        Err(error) => Missing(unreachable(&error).to_string()),
    }
}

/// The verbs on pods that lead to the manager.
async fn manager_rights(cluster: &Cluster) -> Outcome {
    let namespace = &cluster.manager_namespace;
    let needed = [
        ("list", "pods", ""),
        ("get", "pods", "portforward"),
        ("create", "pods", "portforward"),
    ];
    match denied(&cluster.client, namespace, &needed).await {
        Ok(denied) if denied.is_empty() => {
            Fine(format!("port-forward to pods in namespace {namespace}"))
        }
        Ok(denied) => Missing(format!(
            "you may not {} in namespace {namespace}; ask for Role traffic-manager-connect (chart \
            value clientRbac)",
            denied.join(", ")
        )),
        Err(error) => Doubtful(unreachable(&error).to_string()),
    }
}

/// The verbs that lead to agents past the manager; it works without, less directly.
async fn agent_rights(cluster: &Cluster, namespace: &str) -> Outcome {
    let needed = [
        ("get", "pods", "portforward"),
        ("create", "pods", "portforward"),
    ];
    match denied(&cluster.client, namespace, &needed).await {
        Ok(denied) if denied.is_empty() => {
            Fine(format!("direct way to agents in namespace {namespace}"))
        }
        Ok(denied) => Doubtful(format!(
            "you may not {} in namespace {namespace}: requests come through the manager instead of \
            straight from the agent",
            denied.join(", ")
        )),
        Err(error) => Doubtful(unreachable(&error).to_string()),
    }
}

/// Returns those of `needed` (verb, resource, sub-resource) that the API server would refuse.
async fn denied(
    client: &Client,
    namespace: &str,
    needed: &[(&str, &str, &str)],
) -> kube::Result<Vec<String>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut denied = Vec::new();
    for (verb, resource, subresource) in needed {
        let attributes = ResourceAttributes {
            namespace: Some(namespace.to_owned()),
            verb: Some((*verb).to_owned()),
            resource: Some((*resource).to_owned()),
            subresource: (!subresource.is_empty()).then(|| (*subresource).to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let slash = if subresource.is_empty() { "" } else { "/" };
            denied.push(format!("{verb} {resource}{slash}{subresource}"));
        }
    }
    Ok(denied)
}

async fn manager(cluster: &Cluster) -> Outcome {
    let namespace = &cluster.manager_namespace;
    let pods = match manager_pods(&cluster.client, namespace).await {
        Ok(pods) => pods,
        Err(error) => return Missing(unreachable(&error).to_string()),
    };
    let ready = pods.iter().filter(|pod| is_ready(pod)).count();
    match (pods.len(), ready) {
        (0, _) => Missing(format!(
            "no traffic-manager in namespace {namespace}; install one with intercept helm install, \
            or name its namespace with --manager-namespace"
        )),
        (_, 0) => Missing(format!(
            "the traffic-manager in namespace {namespace} is not ready; see kubectl -n {namespace} \
            get events"
        )),
        (all, ready) => Fine(format!(
            "{ready} of {all} pods ready in namespace {namespace}"
        )),
    }
}

async fn version(cluster: &Cluster) -> Outcome {
    let way = Way::Cluster(cluster.clone());
    match session::connect(&way, session::FIRST_CONTACT_TIMEOUT).await {
        Ok(_) => Fine(format!("this program is {}", env!("CARGO_PKG_VERSION"))),
        Err(failure) => Missing(failure.to_string()),
    }
}

async fn webhook(cluster: &Cluster) -> Outcome {
    let webhooks: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let name = format!("agent-injector-webhook-{}", cluster.manager_namespace);
    match webhooks.get_opt(&name).await {
        Ok(Some(found)) => {
            let mut hooks = found.webhooks.into_iter().flatten();
            let bundle = hooks.next().and_then(|it| it.client_config.ca_bundle);
            match bundle.filter(|bundle| !bundle.0.is_empty()) {
                Some(_) => Fine(format!("{name} has its CA")),
                None => Missing(format!(
                    "{name} has no caBundle, so the API server cannot trust the injector; see the \
                    manager's log"
                )),
            }
        }
        Ok(None) => Doubtful(format!(
            "there is no {name}: the injector is off or has another name; agents have to be \
            injected by hand then"
        )),
        // Webhook configurations are cluster-wide: few users may read them, and no intercept needs
        // it.
        Err(error) if is_refused(&error) => {
            Doubtful("you may not look at webhook configurations; an administrator can".into())
        }
        Err(error) => Doubtful(unreachable(&error).to_string()),
    }
}

/// Looks for sshfs, which mounts volumes.
fn sshfs() -> Outcome {
    let found = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("sshfs"))
        .find(|file| file.is_file());
    match found {
        Some(path) => Fine(path.display().to_string()),
        None => Doubtful(
            "no sshfs: volumes cannot be mounted; install your system's package sshfs".into(),
        ),
    }
}
