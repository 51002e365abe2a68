//! `intercept genyaml`: the agent of a workload as YAML, for people who put it into their manifests by
//! hand. The decision is the injector's own, so what comes out is what an injection would make.

pub mod flags;
mod source;

use std::collections::BTreeMap;
use std::io::Write;

use injector::{
    AGENT_CONTAINER, Decision, INIT_CONTAINER, OwnerOf, Settings, Verdict, Wanted, decide,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use serde::Serialize;
use serde_json::{Value, json};

use crate::Failure;
use flags::{Genyaml, Part};
use source::Source;

/// Annotation that keeps the injector away.
const MANUALLY_INJECTED: &str = "telepresence.io/manually-injected";

/// Prints the part asked for.
pub async fn run(flags: &Genyaml) -> Result<(), Failure> {
    let source = Source::read(flags).await?;
    let text = generate(flags, &source)?;
    match flags.output.to_str() {
        Some("-") => std::io::stdout().write_all(text.as_bytes()),
        _ => std::fs::write(&flags.output, text),
    }
    .map_err(|error| Failure::Failed(format!("--output {}: {error}", flags.output.display())))
}

/// YAML of the part.
fn generate(flags: &Genyaml, source: &Source) -> Result<String, Failure> {
    let pod = Pod {
        metadata: source.template.metadata.clone().unwrap_or_default(),
        spec: source.template.spec.clone(),
        status: None,
    };
    let settings = settings(flags);
    let wanted = Wanted::agent();
    let owner = OwnerOf::Workload(&source.workload, &wanted);
    let decision = decide(&pod, &owner, &source.around, &settings);
    for warning in &decision.warnings {
        eprintln!("intercept: {warning}");
    }
    let made = Made::of(&pod, &decision)?;
    match flags.part {
        Part::Config => yaml(&made.config(&decision)?),
        Part::Container => yaml(&made.container()?),
        Part::Initcontainer => yaml(&made.init_container(&source.workload.to_string())?),
        Part::Volume => yaml(&made.new_volumes(&pod)),
        Part::Annotations => yaml(&made.annotations()),
        Part::Workload => yaml(&made.manifest(source)),
    }
}

fn settings(flags: &Genyaml) -> Settings {
    Settings {
        image: flags.agent_image.clone(),
        policy: injector::InjectPolicy::OnDemand,
        first_port: flags.agent_port,
        manager_host: format!("traffic-manager.{}", flags.manager_namespace()),
        manager_port: flags.manager_port,
        log_level: flags.loglevel.clone(),
        // Only an ordinary container can be put into every template.
        native_sidecar: injector::NativeSidecar::Never,
        ..Settings::default()
    }
}

/// The pod with its agent.
struct Made(Pod);

impl Made {
    fn of(pod: &Pod, decision: &Decision) -> Result<Self, Failure> {
        match &decision.verdict {
            Verdict::Inject => {}
            Verdict::Skip(skip) => return Err(Failure::Failed(skip.to_string())),
            Verdict::Refuse(refusal) => return Err(Failure::Failed(refusal.to_string())),
        }
        let internal = |error: &dyn std::fmt::Display| {
            Failure::Failed(format!(
                "the injector's patch does not fit the template: {error}"
            ))
        };
        let mut value = serde_json::to_value(pod).map_err(|it| internal(&it))?;
        json_patch::patch(&mut value, &decision.patch).map_err(|it| internal(&it))?;
        serde_json::from_value(value)
            .map(Self)
            .map_err(|it| internal(&it))
    }

    /// Entry for the ConfigMap `telepresence-agents`.
    fn config(&self, decision: &Decision) -> Result<Value, Failure> {
        let plan = decision.plan.as_ref().map(|plan| &plan.config);
        let config = serde_json::to_value(plan);
        let mut config = config.map_err(|error| Failure::Failed(error.to_string()))?;
        config["manual"] = json!(true);
        Ok(config)
    }

    fn container(&self) -> Result<Value, Failure> {
        let containers = self.0.spec.iter().flat_map(|it| &it.containers);
        let mut named = containers.filter(|it| it.name == AGENT_CONTAINER);
        let found = named.next().map(|it| json!(it));
        found.ok_or_else(|| Failure::Failed("the workload gets no agent container".into()))
    }

    fn init_container(&self, workload: &str) -> Result<Value, Failure> {
        let containers = self.0.spec.iter().flat_map(|it| &it.init_containers);
        let mut named = containers.flatten().filter(|it| it.name == INIT_CONTAINER);
        let found = named.next().map(|it| json!(it));
        found.ok_or_else(|| {
            Failure::Failed(format!(
                "{workload} needs no init container: all of its ports are taken over by name"
            ))
        })
    }

    /// Volumes that the template lacks.
    fn new_volumes(&self, before: &Pod) -> Value {
        let of = |pod: &Pod| pod.spec.as_ref().and_then(|it| it.volumes.clone());
        let old = of(before).unwrap_or_default();
        let new = of(&self.0).unwrap_or_default();
        let added = new.iter().filter(|volume| !old.contains(volume));
        json!(added.collect::<Vec<_>>())
    }

    /// Annotations of the template, with the agent's configuration among them.
    fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = self.0.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|name, _| !name.contains("inject-traffic-agent"));
        annotations.insert(MANUALLY_INJECTED.into(), "true".into());
        annotations
    }

    /// The whole workload, with the agent in its template.
    fn manifest(&self, source: &Source) -> Value {
        let mut metadata = self.0.metadata.clone();
        metadata.annotations = Some(self.annotations());
        let template = PodTemplateSpec {
            metadata: Some(metadata),
            spec: self.0.spec.clone(),
        };
        let mut manifest = source.manifest.clone();
        manifest["spec"]["template"] = json!(template);
        manifest
    }
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(value)
        .map_err(|error| Failure::Failed(format!("this cannot be written as YAML: {error}")))
}

#[cfg(test)]
mod tests;
