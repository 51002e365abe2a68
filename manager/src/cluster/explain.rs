//! `explain-injection`: for each pod or workload of a manifest, whether it would get an agent, with
//! which ports, and why or why not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use injector::config::Entry;
use injector::{
    Decision, InjectPolicy, Kind, OwnerOf, PodSecurity, Service, Settings, Surroundings, Template,
    Verdict, Wanted, Workload, decide,
};
use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec, Service as KubeService};
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::Value;

use super::env::ClusterSettings;

/// Command that a manager without Kubernetes does not have.
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// Say for each pod or workload of a manifest if it would get an agent, and why
    ExplainInjection(Explain),
}

impl ClusterCommand {
    /// Runs the command; returns what to print.
    ///
    /// # Errors
    /// The reason, with a remedy.
    pub async fn run(&self) -> Result<String, String> {
        match self {
            Self::ExplainInjection(arguments) => explain(arguments).await,
        }
    }
}

/// Subject of an explanation.
#[derive(Debug, clap::Args)]
pub struct Explain {
    /// Manifest with pods, workloads and Services; - is the standard input
    #[arg(short, long, value_name = "MANIFEST")]
    file: PathBuf,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Take Services and the namespace's Pod Security level from the cluster of the kubeconfig as
    /// well
    #[arg(long)]
    live: bool,
}

/// Explains a manifest; fails if it cannot be read, or the cluster does not answer.
async fn explain(arguments: &Explain) -> Result<String, String> {
    let text = read(&arguments.file)?;
    let mut manifest = Manifest::parse(&text, &arguments.namespace)?;
    let mut settings = settings()?;
    // A manifest has no pods that an API server has made; what is asked is the usual case.
    settings.server_version.get_or_insert((1, 33));
    if arguments.live {
        manifest.look_around().await?;
    }
    if manifest.subjects.is_empty() {
        return Err(format!(
            "{}: no pod, Deployment, ReplicaSet, StatefulSet or Rollout in it",
            arguments.file.display()
        ));
    }
    Ok(manifest.explain(&settings))
}

fn read(file: &std::path::Path) -> Result<String, String> {
    if file == std::path::Path::new("-") {
        return std::io::read_to_string(std::io::stdin()).map_err(|error| error.to_string());
    }
    std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// The manager's own where its environment is set, else a chart's defaults.
fn settings() -> Result<Settings, String> {
    let variable = |name: &str| std::env::var(name).ok();
    if variable("MANAGER_NAMESPACE").is_some() && variable("SERVER_PORT").is_some() {
        let read = ClusterSettings::read(variable).map_err(|faults| faults.to_string())?;
        return Ok(read.injector);
    }
    Ok(Settings {
        image: format!("traffic-agent:{}", env!("CARGO_PKG_VERSION")),
        policy: InjectPolicy::OnDemand,
        mount_policies: vec![(
            "/tmp".to_owned(),
            traffic_proto::sidecar::MountPolicy::Local,
        )],
        ..Settings::default()
    })
}

/// Objects of a manifest that matter here.
#[derive(Debug, Default)]
struct Manifest {
    subjects: Vec<Subject>,
    services: BTreeMap<String, Vec<Arc<Service>>>,
    pod_security: BTreeMap<String, PodSecurity>,
}

/// A pod, or a workload's pods.
#[derive(Debug)]
struct Subject {
    /// Kind and name, for the heading.
    title: String,
    namespace: String,
    pod: Pod,
    workload: Option<Workload>,
    /// Kind and name of something whose pods get no agent.
    foreign: Option<(String, String)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    kind: String,
    metadata: Meta,
    items: Vec<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

impl Manifest {
    fn parse(text: &str, namespace: &str) -> Result<Self, String> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| format!("no valid YAML: {error}"))?;
        let mut manifest = Self::default();
        for document in documents {
            manifest.add(document, namespace)?;
        }
        Ok(manifest)
    }

    fn add(&mut self, object: Value, namespace: &str) -> Result<(), String> {
        if object.is_null() {
            return Ok(());
        }
        let head: Head = serde_json::from_value(object.clone())
            .map_err(|error| format!("an object without kind and metadata: {error}"))?;
        if head.kind.ends_with("List") {
            let mut items = head.items.into_iter();
            return items.try_for_each(|item| self.add(item, namespace));
        }
        let name = head.metadata.name.clone().unwrap_or_default();
        let own = head.metadata.namespace.clone();
        let own = own.unwrap_or_else(|| namespace.to_owned());
        let wrong = |error: serde_json::Error| format!("{} {name}: {error}", head.kind);
        match head.kind.as_str() {
            "Service" => {
                let service: KubeService = serde_json::from_value(object).map_err(wrong)?;
                let services = self.services.entry(own).or_default();
                services.push(Arc::new(Service::from(&service)));
            }
            "Namespace" => {
                let labels = head.metadata.labels.unwrap_or_default();
                self.pod_security.insert(name, PodSecurity::of(&labels));
            }
            "Pod" => {
                let pod: Pod = serde_json::from_value(object).map_err(wrong)?;
                self.subjects.push(Subject {
                    title: format!("Pod {name}.{own}"),
                    namespace: own,
                    pod,
                    workload: None,
                    foreign: None,
                });
            }
            kind => {
                let template = &object["spec"]["template"];
                let template = match kind {
                    "CronJob" => &object["spec"]["jobTemplate"]["spec"]["template"],
                    _ => template,
                };
                if !template.is_null() {
                    let template = serde_json::from_value(template.clone()).map_err(wrong)?;
                    self.subjects.push(subject(kind, name, own, template));
                }
            }
        }
        Ok(())
    }

    /// Adds what the cluster has and the manifest has not.
    async fn look_around(&mut self) -> Result<(), String> {
        let client = super::client().await.map_err(|error| error.to_string())?;
        let namespaces: std::collections::BTreeSet<_> = self
            .subjects
            .iter()
            .map(|it| it.namespace.clone())
            .collect();
        for namespace in namespaces {
            let found = services(&client, &namespace).await?;
            let own = self.services.entry(namespace.clone()).or_default();
            for service in found {
                if !own.iter().any(|it| it.name == service.name) {
                    own.push(Arc::new(service));
                }
            }
            if self.pod_security.contains_key(&namespace) {
                continue;
            }
            let api: Api<Namespace> = Api::all(client.clone());
            if let Ok(Some(object)) = api.get_opt(&namespace).await {
                let labels = object.metadata.labels.unwrap_or_default();
                self.pod_security
                    .insert(namespace, PodSecurity::of(&labels));
            }
        }
        Ok(())
    }

    fn explain(&self, settings: &Settings) -> String {
        let mut text = String::new();
        for subject in &self.subjects {
            if !text.is_empty() {
                text.push('\n');
            }
            let around = Surroundings {
                services: self
                    .services
                    .get(&subject.namespace)
                    .cloned()
                    .unwrap_or_default(),
                pod_security: self
                    .pod_security
                    .get(&subject.namespace)
                    .copied()
                    .unwrap_or_default(),
                foreign_sidecar: None,
            };
            let wanted = Wanted::agent();
            let owner = match (&subject.workload, &subject.foreign) {
                (Some(workload), _) => OwnerOf::Workload(workload, &wanted),
                (None, Some((kind, name))) => OwnerOf::Foreign {
                    kind: kind.clone(),
                    name: name.clone(),
                },
                (None, None) => OwnerOf::Nobody,
            };
            let decision = decide(&subject.pod, &owner, &around, settings);
            describe(&mut text, subject, &decision, settings);
        }
        text
    }
}

fn subject(kind: &str, name: String, namespace: String, template: PodTemplateSpec) -> Subject {
    let workload = kind.parse::<Kind>().ok().map(|kind| Workload {
        kind,
        name: name.clone(),
        namespace: namespace.clone(),
        template: Template::from(&template),
    });
    Subject {
        title: format!("{kind} {name}.{namespace}"),
        foreign: workload.is_none().then(|| (kind.to_owned(), name)),
        namespace,
        pod: Pod {
            metadata: template.metadata.unwrap_or_default(),
            spec: template.spec,
            status: None,
        },
        workload,
    }
}

async fn services(client: &Client, namespace: &str) -> Result<Vec<Service>, String> {
    let api: Api<KubeService> = Api::namespaced(client.clone(), namespace);
    let list = api.list(&ListParams::default()).await;
    let list = list.map_err(|it| super::replacing::said(&it, "list", "services", namespace))?;
    Ok(list.items.iter().map(Service::from).collect())
}

/// A heading with the verdict, the ports, and the reasons.
fn describe(text: &mut String, subject: &Subject, decision: &Decision, settings: &Settings) {
    let enabled = subject
        .pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|it| injector::annotations::inject(it) == Ok(injector::Inject::Enabled));
    let verdict = match &decision.verdict {
        Verdict::Inject if enabled => "gets an agent at once (annotated)",
        Verdict::Inject if settings.policy == InjectPolicy::OnDemand => {
            "gets an agent with the first intercept"
        }
        Verdict::Inject => "gets an agent",
        Verdict::Skip(_) => "gets no agent",
        Verdict::Refuse(_) => "gets no agent, and cannot be intercepted",
    };
    // Writing to a text does not fail.
    let _ = writeln!(text, "{}: {verdict}", subject.title);
    if let Some(plan) = &decision.plan {
        for (container, entry) in plan.config.entries() {
            let _ = writeln!(text, "  {}", port(&container.name, entry));
        }
        let kind = if plan.native {
            "a native sidecar"
        } else {
            "an ordinary container"
        };
        let init = if plan.init {
            ", with an init container (NET_ADMIN)"
        } else {
            ""
        };
        let _ = writeln!(text, "  the agent is {kind}{init}");
    }
    let notes = decision
        .reasons
        .iter()
        .filter(|it| !it.starts_with("container "));
    for reason in notes {
        let mark = if decision.warnings.contains(reason) {
            "!"
        } else {
            "-"
        };
        let _ = writeln!(text, "  {mark} {reason}");
    }
}

fn port(container: &str, entry: &Entry) -> String {
    let Entry {
        container_port,
        protocol,
        agent_port,
        ..
    } = entry;
    let via = match entry.service_name.as_str() {
        "" => "no Service".to_owned(),
        name => format!("Service {name} port {}", entry.service_port),
    };
    let way = match (entry.is_redirected(), entry.headless) {
        (true, true) => "redirected, the Service is headless".to_owned(),
        (true, false) => "redirected, the port is named by number".to_owned(),
        (false, _) => format!("by taking over the name {:?}", entry.container_port_name),
    };
    format!("{via} -> {container}:{container_port}/{protocol}, agent port {agent_port}: {way}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(yaml: &str) -> String {
        let settings = Settings {
            image: "agent:1".to_owned(),
            policy: InjectPolicy::OnDemand,
            server_version: Some((1, 33)),
            ..Settings::default()
        };
        Manifest::parse(yaml, "team").unwrap().explain(&settings)
    }

    #[test]
    fn ports_verdict_and_reasons_are_told_for_each_object() {
        let text = explained(
            "
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: app, ports: [{containerPort: 8080}]}]}
---
kind: DaemonSet
metadata: {name: log}
spec: {template: {spec: {containers: [{name: app}]}}}
---
kind: Pod
metadata: {name: alone}
spec: {containers: [{name: app}]}
",
        );
        assert_eq!(
            text,
            "\
Deployment web.team: gets an agent with the first intercept
  Service web port 80 -> app:8080/TCP, agent port 9900: redirected, the port is named by number
  the agent is a native sidecar, with an init container (NET_ADMIN)

DaemonSet log.team: gets no agent
  - pods of DaemonSet log get no agent; only those of a Deployment, ReplicaSet, StatefulSet or (where enabled) Rollout do

Pod alone.team: gets no agent
  - a pod without a workload gets no agent; use a Deployment or StatefulSet
"
        );
    }

    #[test]
    fn what_a_namespace_refuses_is_told_with_the_way_out() {
        let text = explained(
            "
kind: Namespace
metadata: {name: team, labels: {pod-security.kubernetes.io/enforce: baseline}}
---
kind: List
items:
- kind: StatefulSet
  metadata: {name: db}
  spec:
    template:
      metadata: {labels: {app: db}}
      spec: {containers: [{name: app, ports: [{containerPort: 5432}]}]}
- kind: Service
  metadata: {name: db}
  spec: {selector: {app: db}, ports: [{port: 5432}]}
",
        );
        assert!(
            text.starts_with("StatefulSet db.team: gets no agent, and cannot be intercepted\n")
        );
        assert!(text.contains("  ! StatefulSet db.team: container app port 5432 needs an init"));
        assert!(text.contains("give the port a name"), "{text}");
    }

    #[test]
    fn a_manifest_that_is_none_is_refused_with_the_reason() {
        let parse = |yaml| Manifest::parse(yaml, "team").unwrap_err();
        assert!(parse("a: [").contains("no valid YAML"));
        assert!(parse("kind: Pod\nmetadata: {name: x}\nspec: 1\n").starts_with("Pod x: "));
    }
}
