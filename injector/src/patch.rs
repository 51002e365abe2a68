//! The operations that turn a pod into one with an agent, in a fixed order.
//!
//! Every operation adds or replaces a whole member, so that each works whether the pod has the
//! member or not.

use std::collections::BTreeMap;

use json_patch::jsonptr::{PointerBuf, Token};
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::Value;

use crate::agent::{Names, Parts};
use crate::annotations::{AGENT_CONFIG, DIGEST, DOMAIN, INJECT, OLDER_DOMAIN, REPLACED};
use crate::facts::{AGENT_CONTAINER, INIT_CONTAINER};
use crate::settings::Carrier;

/// Longest name of a container port.
const MAX_PORT_NAME: usize = 15;
/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// Returns true if the pod was made by the plan and is complete; other changes of webhooks to our
/// containers are accepted.
pub(crate) fn is_applied(pod: &Pod, digest: &str, init: bool, native: bool) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let same = annotations
        .and_then(|it| it.get(DIGEST))
        .map(String::as_str)
        == Some(digest);
    let Some(spec) = &pod.spec else { return false };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let ordinary = spec.containers.iter().any(|it| it.name == AGENT_CONTAINER);
    let restarted = inits
        .iter()
        .any(|it| it.name == AGENT_CONTAINER && it.restart_policy.as_deref() == Some("Always"));
    let agent = if native {
        restarted || ordinary
    } else {
        ordinary
    };
    same && agent && inits.iter().any(|it| it.name == INIT_CONTAINER) == init
}

/// The patch for a pod.
pub(crate) fn patch(parts: &Parts<'_>) -> Patch {
    let mut draft = PatchDraft {
        parts,
        operations: Vec::new(),
    };
    let volumes = parts.volumes();
    let there = draft.spec().volumes.as_deref().unwrap_or_default();
    let names = Names::new(&volumes, there);
    draft.init_containers(&names);
    draft.agent_container(&names);
    draft.pull_secrets();
    draft.volumes(volumes, &names);
    draft.hide_ports();
    draft.annotations();
    draft.labels();
    draft.app_variables();
    draft.remove_replaced();
    Patch(draft.operations)
}

struct PatchDraft<'a> {
    parts: &'a Parts<'a>,
    operations: Vec<PatchOperation>,
}

impl<'a> PatchDraft<'a> {
    fn spec(&self) -> &'a k8s_openapi::api::core::v1::PodSpec {
        static NONE: std::sync::LazyLock<k8s_openapi::api::core::v1::PodSpec> =
            std::sync::LazyLock::new(Default::default);
        self.parts.pod.spec.as_ref().unwrap_or(&NONE)
    }

    fn add(&mut self, path: &[&str], value: impl Serialize) {
        // Typed objects with text keys always serialize.
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        let path = pointer(path);
        self.operations
            .push(PatchOperation::Add(AddOperation { path, value }));
    }

    fn replace(&mut self, path: &[&str], value: impl Serialize) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        let path = pointer(path);
        self.operations
            .push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    fn remove(&mut self, path: &[&str]) {
        let path = pointer(path);
        self.operations
            .push(PatchOperation::Remove(RemoveOperation { path }));
    }

    /// Adds to the end of a list that may be absent.
    fn append<T: Serialize>(&mut self, path: &[&str], exists: bool, items: Vec<T>) {
        if items.is_empty() {
            return;
        }
        if !exists {
            // RFC 6902, 4.1: the parent of an added element must exist, so a missing list is added
            // whole.
            return self.add(path, items);
        }
        for item in items {
            // RFC 6901, 4: "-" is the element after the last one.
            let end: Vec<_> = path.iter().copied().chain(["-"]).collect();
            self.add(&end, item);
        }
    }

    /// Redirecting first, then a native agent, both behind what other webhooks and the app itself
    /// put there.
    fn init_containers(&mut self, names: &Names) {
        let (spec, plan) = (self.spec(), self.parts.plan);
        let there = spec.init_containers.as_deref().unwrap_or_default();
        let mut wanted = Vec::new();
        if plan.init {
            let mut init = self.parts.init();
            for mount in init.volume_mounts.iter_mut().flatten() {
                mount.name = names.of(&mount.name);
            }
            wanted.push(init);
        }
        let fell_back = there
            .iter()
            .any(|it| it.name == AGENT_CONTAINER && it.restart_policy.as_deref() != Some("Always"));
        if plan.native && !fell_back {
            wanted.push(self.parts.agent(names));
        }
        let ours = |it: &&Container| [INIT_CONTAINER, AGENT_CONTAINER].contains(&&*it.name);
        let same_places = there
            .iter()
            .filter(ours)
            .map(|it| &it.name)
            .eq(wanted.iter().map(|it| &it.name));
        let path = ["spec", "initContainers"];
        if same_places {
            for container in wanted {
                let at = there.iter().position(|it| it.name == container.name);
                if let Some(at) = at {
                    self.replace(&[path[0], path[1], &at.to_string()], container);
                }
            }
            return;
        }
        // From the end: a removal moves every later element down by one.
        for (at, _) in there.iter().enumerate().rev().filter(|(_, it)| ours(it)) {
            self.remove(&[path[0], path[1], &at.to_string()]);
        }
        self.append(&path, !there.is_empty(), wanted);
    }

    fn agent_container(&mut self, names: &Names) {
        let spec = self.spec();
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        // Somebody who does not know native sidecars took away what makes it one: it would keep
        // the pod from starting.
        let fell_back = inits
            .iter()
            .any(|it| it.name == AGENT_CONTAINER && it.restart_policy.as_deref() != Some("Always"));
        let native = self.parts.plan.native && !fell_back;
        let at = spec
            .containers
            .iter()
            .position(|it| it.name == AGENT_CONTAINER);
        let mut agent = self.parts.agent(names);
        // Clusters refuse a restart policy of an ordinary container (allowed from 1.34 on).
        agent.restart_policy = None;
        match (at, native) {
            (Some(at), true) => self.remove(&["spec", "containers", &at.to_string()]),
            (Some(at), false) => self.replace(&["spec", "containers", &at.to_string()], agent),
            (None, true) => {}
            (None, false) => self.append(&["spec", "containers"], true, vec![agent]),
        }
    }

    fn pull_secrets(&mut self) {
        let there = self.spec().image_pull_secrets.as_deref();
        let known = |name: &String| there.is_some_and(|it| it.iter().any(|it| it.name == *name));
        let secrets = &self.parts.plan.config.pull_secrets;
        let missing = secrets.iter().filter(|it| !known(&it.name));
        let missing = missing.cloned().collect();
        self.append(
            &["spec", "imagePullSecrets"],
            there.is_some_and(|it| !it.is_empty()),
            missing,
        );
    }

    fn volumes(&mut self, volumes: Vec<k8s_openapi::api::core::v1::Volume>, names: &Names) {
        let there = self.spec().volumes.as_deref().unwrap_or_default();
        let mut missing = Vec::new();
        for mut volume in volumes {
            volume.name = names.of(&volume.name);
            if !there.iter().any(|it| it.name == volume.name) {
                missing.push(volume);
            }
        }
        self.append(&["spec", "volumes"], !there.is_empty(), missing);
    }

    /// Takes the names of ports away from the app, so that Services find the agent by them.
    fn hide_ports(&mut self) {
        let mut taken_over: Vec<(&str, &str)> = Vec::new();
        for (container, entry) in self.parts.plan.config.entries() {
            let name = entry.container_port_name.as_str();
            // A Service finds its port by name; the agent takes the name, so the app's port gets
            // another.
            let hidden = !container.is_replaced() && !self.parts.is_redirected(container, entry);
            let port = (name, entry.protocol.name());
            if hidden && !name.is_empty() && !taken_over.contains(&port) {
                taken_over.push(port);
            }
        }
        for (at, container) in self.spec().containers.iter().enumerate() {
            if container.name == AGENT_CONTAINER {
                continue;
            }
            let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
            for (index, port) in container.ports.iter().flatten().enumerate() {
                let protocol = port.protocol.as_deref().filter(|it| !it.is_empty());
                let Some(name) = port.name.as_deref() else {
                    continue;
                };
                if !taken_over.contains(&(name, protocol.unwrap_or("TCP"))) {
                    continue;
                }
                let hidden = hidden_name(name, container, &renamed);
                let place = [&at.to_string(), "ports", &index.to_string(), "name"];
                let place: Vec<&str> = ["spec", "containers"].into_iter().chain(place).collect();
                self.replace(&place, &hidden);
                renamed.insert(name, hidden);
            }
            // Probes and hooks name ports as well, and mean the app, not the agent.
            self.rename_references(at, container, &renamed);
        }
    }

    /// Probes and hooks of the container that use a port's name.
    fn rename_references(
        &mut self,
        at: usize,
        container: &Container,
        renamed: &BTreeMap<&str, String>,
    ) {
        let at = at.to_string();
        let new = |port: &IntOrString| match port {
            IntOrString::String(name) => renamed.get(name.as_str()).cloned(),
            IntOrString::Int(_) => None,
        };
        for (member, probe) in [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ] {
            for (action, port) in probe.iter().flat_map(probe_ports) {
                if let Some(name) = new(port) {
                    self.replace(&["spec", "containers", &at, member, action, "port"], name);
                }
            }
        }
        let Some(lifecycle) = &container.lifecycle else {
            return;
        };
        for (member, handler) in [
            ("postStart", &lifecycle.post_start),
            ("preStop", &lifecycle.pre_stop),
        ] {
            let Some(handler) = handler else { continue };
            let http = handler.http_get.as_ref().map(|it| ("httpGet", &it.port));
            let tcp = handler
                .tcp_socket
                .as_ref()
                .map(|it| ("tcpSocket", &it.port));
            for (action, port) in http.into_iter().chain(tcp) {
                if let Some(name) = new(port) {
                    let path = [
                        "spec",
                        "containers",
                        &at,
                        "lifecycle",
                        member,
                        action,
                        "port",
                    ];
                    self.replace(&path, name);
                }
            }
        }
    }

    fn annotations(&mut self) {
        let mut wanted = BTreeMap::new();
        let there = self.parts.pod.metadata.annotations.as_ref();
        let has_inject = [DOMAIN, OLDER_DOMAIN]
            .iter()
            .any(|domain| there.is_some_and(|it| it.contains_key(&format!("{domain}{INJECT}"))));
        let newer = self.parts.settings.carrier == Carrier::Annotation;
        if !has_inject {
            let domain = if newer { DOMAIN } else { OLDER_DOMAIN };
            wanted.insert(format!("{domain}{INJECT}"), "enabled".to_owned());
        }
        let plan = self.parts.plan;
        wanted.insert(DIGEST.to_owned(), plan.digest.clone());
        if newer {
            wanted.insert(AGENT_CONFIG.to_owned(), plan.config.for_agent().to_json());
            wanted.extend(self.parts.secrets.path_annotations.clone());
        }
        for container in plan.config.containers.iter().filter(|it| it.is_replaced()) {
            let key = format!("{REPLACED}{}", container.name);
            let found = self
                .spec()
                .containers
                .iter()
                .find(|it| it.name == container.name);
            // The container leaves the pod below; this annotation is what a second injection reads
            // it from.
            if let Some(json) = found.and_then(|it| serde_json::to_string(it).ok()) {
                wanted.insert(key, json);
            }
        }
        if self.parts.settings.linkerd_skip_ports {
            let key = "config.linkerd.io/skip-outbound-ports";
            // A value the workload's owner chose stays.
            if there.is_none_or(|it| !it.contains_key(key)) {
                wanted.insert(key.to_owned(), plan.config.manager_port.to_string());
            }
        }
        self.members(&["metadata", "annotations"], there, &wanted);
    }

    fn labels(&mut self) {
        let config = &self.parts.plan.config;
        let mut wanted = BTreeMap::new();
        // A workload's name may be longer than a label's value.
        if config.workload_name.len() <= MAX_LABEL {
            let name = config.workload_name.clone();
            wanted.insert("telepresence.io/workloadName".to_owned(), name);
        }
        let kind = config.workload_kind.clone();
        wanted.insert("telepresence.io/workloadKind".to_owned(), kind);
        wanted.insert(
            "telepresence.io/workloadEnabled".to_owned(),
            "true".to_owned(),
        );
        let there = self.parts.pod.metadata.labels.as_ref();
        self.members(&["metadata", "labels"], there, &wanted);
    }

    /// Adds members to a map that may be absent.
    fn members(
        &mut self,
        path: &[&str],
        there: Option<&BTreeMap<String, String>>,
        wanted: &BTreeMap<String, String>,
    ) {
        let Some(there) = there else {
            return self.add(path, wanted);
        };
        for (key, value) in wanted
            .iter()
            .filter(|(key, value)| there.get(*key) != Some(value))
        {
            let member: Vec<_> = path.iter().copied().chain([key.as_str()]).collect();
            self.add(&member, value);
        }
    }

    fn app_variables(&mut self) {
        let wanted = self.parts.app_variables();
        if wanted.is_empty() {
            return;
        }
        for (at, container) in self.spec().containers.iter().enumerate() {
            let configured = &self.parts.plan.config.containers;
            if !configured.iter().any(|it| it.name == container.name) {
                continue;
            }
            let there = container.env.as_deref().unwrap_or_default();
            let has = |name: &str, value: &String| {
                there
                    .iter()
                    .any(|it| it.name == name && it.value.as_ref() == Some(value))
            };
            let missing = wanted.iter().filter(|(name, value)| !has(name, value));
            let missing = missing.map(|(name, value)| crate::env::literal(name, value));
            let missing = missing.collect();
            let path = ["spec", "containers", &at.to_string(), "env"];
            self.append(&path, !there.is_empty(), missing);
        }
    }

    fn remove_replaced(&mut self) {
        let configured = &self.parts.plan.config.containers;
        let replaced = |it: &Container| {
            configured
                .iter()
                .any(|config| config.is_replaced() && config.name == it.name)
        };
        let there = self.spec().containers.iter().enumerate();
        let positions: Vec<_> = there
            .filter(|(_, it)| replaced(it))
            .map(|(at, _)| at)
            .collect();
        // Last operation of the patch: the positions of the operations before stay valid.
        for at in positions.into_iter().rev() {
            self.remove(&["spec", "containers", &at.to_string()]);
        }
    }
}

/// Returns the name of a hidden port: `tm-` and the old name, cut, with a number if that is taken.
fn hidden_name(name: &str, container: &Container, renamed: &BTreeMap<&str, String>) -> String {
    let names = container.ports.iter().flatten();
    let used: Vec<_> = names.filter_map(|it| it.name.as_deref()).collect();
    let is_free = |name: &String| {
        !used.contains(&name.as_str()) && !renamed.values().any(|other| other == name)
    };
    let cut = |end: &str| {
        // `end` is at most "-999", so the length cannot be negative.
        let length = MAX_PORT_NAME - end.len();
        let start: String = format!("tm-{name}").chars().take(length).collect();
        format!("{}{end}", start.trim_end_matches('-'))
    };
    let numbered = (1..1000).map(|n| cut(&format!("-{n}")));
    let mut names = std::iter::once(cut("")).chain(numbered);
    names.find(is_free).unwrap_or_else(|| cut(""))
}

fn probe_ports(probe: &Probe) -> impl Iterator<Item = (&'static str, &IntOrString)> {
    let http = probe.http_get.as_ref().map(|it| ("httpGet", &it.port));
    let tcp = probe.tcp_socket.as_ref().map(|it| ("tcpSocket", &it.port));
    http.into_iter().chain(tcp)
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().map(|part| Token::new(*part)))
}
