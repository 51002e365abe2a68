//! The agent's container, its init container and their volumes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, ExecAction, KeyToPath, ObjectFieldSelector, Pod,
    Probe, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
};
use traffic_proto::sidecar::MountPolicy;

use crate::annotations::{AGENT_CONFIG, REPLACED, Requests, SECRETS_DIR, TlsSecrets};
use crate::config::{ConfigContainer, Entry, mount_policy};
use crate::env::{self, field, literal};
use crate::facts::{AGENT_CONTAINER, INIT_CONTAINER, PodSecurity};
use crate::manager_token;
use crate::plan::{APP_MOUNTS, Plan};
use crate::settings::{AGENT_GROUP, Carrier, Settings};

const CONFIG_MAP: &str = "telepresence-agents";
/// Images of the original, which know no sub-command for readiness.
const STOCK_IMAGES: [&str; 3] = ["tel2", "telepresence", "ambassador-telepresence-agent"];

/// The containers of a configuration in a pod; those that are replaced already are found in the
/// annotation that keeps them.
pub(crate) fn apps<'a>(
    pod: &'a Pod,
    plan: &'a Plan,
) -> Vec<(&'a ConfigContainer, Cow<'a, Container>)> {
    let there = pod.spec.as_ref().map_or(&[][..], |it| &it.containers);
    let kept = pod.metadata.annotations.as_ref();
    let containers = plan.config.containers.iter();
    containers
        .filter_map(|config| {
            if let Some(found) = there.iter().find(|it| it.name == config.name) {
                return Some((config, Cow::Borrowed(found)));
            }
            let json = kept?.get(&format!("{REPLACED}{}", config.name))?;
            Some((config, Cow::Owned(serde_json::from_str(json).ok()?)))
        })
        .collect()
}

/// Inputs from which the parts of a pod are built.
pub(crate) struct Parts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) plan: &'a Plan,
    /// The configuration's containers as the pod has them, or had them before one was replaced.
    pub(crate) apps: Vec<(&'a ConfigContainer, Cow<'a, Container>)>,
    pub(crate) requests: &'a Requests,
    pub(crate) secrets: &'a TlsSecrets,
    pub(crate) settings: &'a Settings,
}

impl Parts<'_> {
    fn present(&self) -> impl Iterator<Item = (&ConfigContainer, &Container)> {
        self.apps
            .iter()
            .map(|(config, app)| (*config, app.as_ref()))
    }

    /// The agent's container, with volumes by the names that `volumes` gives them.
    pub(crate) fn agent(&self, volumes: &Names) -> Container {
        let config = &self.plan.config;
        let sources: Vec<_> = self
            .present()
            .flat_map(|(config, app)| env::carried_sources(app, &config.env_prefix))
            .collect();
        Container {
            name: AGENT_CONTAINER.to_owned(),
            args: Some(vec!["agent".to_owned()]),
            image: Some(config.agent_image.clone()),
            image_pull_policy: some(&config.pull_policy),
            ports: Some(self.ports()).filter(|it| !it.is_empty()),
            env: Some(self.environment()),
            env_from: Some(sources).filter(|it| !it.is_empty()),
            volume_mounts: Some(self.mounts(volumes)),
            readiness_probe: Some(readiness(&config.agent_image)),
            resources: config.resources.clone(),
            security_context: Some(self.security_context()),
            restart_policy: self.plan.native.then(|| "Always".to_owned()),
            ..Container::default()
        }
    }

    /// Returns one port for each listener, named if it takes over a name.
    fn ports(&self) -> Vec<ContainerPort> {
        let mut ports: Vec<ContainerPort> = Vec::new();
        for (container, entry) in self.plan.config.entries() {
            let number = i32::from(container.listens_on(entry));
            let protocol = entry.protocol.name();
            let known = |it: &ContainerPort| {
                it.container_port == number && it.protocol.as_deref() == Some(protocol)
            };
            if ports.iter().any(known) {
                continue;
            }
            // A redirected port keeps its name at the app: the Service still names the app's port,
            // and the rules send its packets to the agent.
            let takes_name = container.is_replaced() || !self.is_redirected(container, entry);
            let name = takes_name.then(|| entry.container_port_name.clone());
            let name = name.filter(|name| {
                // A container may carry a port name once; the API server refuses the pod otherwise.
                let used = |it: &ContainerPort| it.name.as_ref() == Some(name);
                !name.is_empty() && !ports.iter().any(used)
            });
            ports.push(ContainerPort {
                name,
                container_port: number,
                protocol: Some(protocol.to_owned()),
                ..ContainerPort::default()
            });
        }
        ports
    }

    /// Returns true if any entry of the listener is redirected; then all its callers are.
    pub(crate) fn is_redirected(&self, container: &ConfigContainer, entry: &Entry) -> bool {
        container.intercepts.iter().any(|other| {
            (other.agent_port, other.protocol) == (entry.agent_port, entry.protocol)
                && other.is_redirected()
        })
    }

    fn environment(&self) -> Vec<k8s_openapi::api::core::v1::EnvVar> {
        let config = &self.plan.config;
        let mut variables: Vec<_> = self
            .present()
            .flat_map(|(config, app)| env::carried(app, &config.env_prefix))
            .collect();
        if config.api_port != 0 {
            variables.push(literal("TELEPRESENCE_API_HOST", "localhost"));
            variables.push(literal(
                "TELEPRESENCE_API_PORT",
                config.api_port.to_string(),
            ));
        }
        variables.push(field("_TEL_AGENT_POD_IP", "status.podIP"));
        variables.push(field("_TEL_AGENT_NAME", "metadata.name"));
        variables.push(field("_TEL_AGENT_POD_UID", "metadata.uid"));
        // The value is resolved when the container starts, from the annotation of the same patch.
        if self.settings.carrier == Carrier::Annotation {
            variables.push(field("AGENT_CONFIG", &annotation_field(AGENT_CONFIG)));
        }
        for (config, app) in self.present() {
            let paths: Vec<_> = self
                .shared_mounts(app)
                .map(|(mount, _)| mount.mount_path.clone())
                .collect();
            if !paths.is_empty() {
                let name = format!("{}TELEPRESENCE_MOUNTS", config.env_prefix);
                variables.push(literal(&name, paths.join(":")));
            }
        }
        variables
    }

    /// Mounts of an app container that the agent has as well.
    fn shared_mounts<'a>(
        &'a self,
        app: &'a Container,
    ) -> impl Iterator<Item = (&'a VolumeMount, MountPolicy)> {
        let rules = [
            &self.requests.mount_policies[..],
            &self.settings.mount_policies[..],
        ];
        let mounts = app.volume_mounts.iter().flatten();
        mounts.filter_map(move |mount| {
            let ignored = &self.requests.ignored_mounts;
            let policy = mount_policy(&mount.name, &mount.mount_path, ignored, &rules);
            matches!(policy, MountPolicy::Remote | MountPolicy::RemoteReadonly)
                .then_some((mount, policy))
        })
    }

    fn mounts(&self, volumes: &Names) -> Vec<VolumeMount> {
        let mut mounts = Vec::new();
        for (config, app) in self.present() {
            for (mount, policy) in self.shared_mounts(app) {
                mounts.push(carried_mount(mount, policy, config));
            }
        }
        for (volume, path) in self.own_mounts() {
            mounts.push(VolumeMount {
                name: volumes.of(&volume),
                mount_path: path,
                ..VolumeMount::default()
            });
        }
        mounts
    }

    /// Volumes of the agent's own, with the paths they are mounted at.
    fn own_mounts(&self) -> Vec<(String, String)> {
        let fixed: &[(&str, &str)] = match self.settings.carrier {
            Carrier::Annotation => &[("pod-info", "/etc/podinfo")],
            Carrier::ConfigMap => &[
                ("traffic-annotations", "/tel_pod_info"),
                ("traffic-config", "/etc/traffic-agent"),
            ],
        };
        let shared = [
            ("export-volume", "/tel_app_exports"),
            ("tel-agent-tmp", "/tmp"),
        ];
        let fixed = fixed.iter().chain(&shared);
        let mut mounts: Vec<_> = fixed
            .map(|(volume, path)| ((*volume).to_owned(), (*path).to_owned()))
            .collect();
        for (secret, volume, path) in [
            (
                &self.secrets.terminating,
                "traffic-terminating-tls",
                "/terminating_tls",
            ),
            (
                &self.secrets.originating,
                "traffic-originating-tls",
                "/originating_tls",
            ),
        ] {
            if secret.is_some() {
                mounts.push((volume.to_owned(), path.to_owned()));
            }
        }
        for secret in &self.secrets.of_ports {
            mounts.push((secret_volume(secret), format!("{SECRETS_DIR}/{secret}")));
        }
        if self.settings.manager_token {
            mounts.push(manager_token::mount());
        }
        mounts
    }

    /// The volumes that go with the agent, in order.
    pub(crate) fn volumes(&self) -> Vec<Volume> {
        let annotations = |name: &str| downward(name, "annotations", "metadata.annotations");
        let mut volumes = match self.settings.carrier {
            Carrier::Annotation => vec![annotations("pod-info")],
            Carrier::ConfigMap => vec![
                annotations("traffic-annotations"),
                config_volume(&self.plan.config.agent_name),
            ],
        };
        for name in ["export-volume", "tel-agent-tmp"] {
            volumes.push(Volume {
                name: name.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            });
        }
        let legacy = [
            ("traffic-terminating-tls", &self.secrets.terminating),
            ("traffic-originating-tls", &self.secrets.originating),
        ];
        for (name, secret) in legacy {
            volumes.extend(
                secret
                    .iter()
                    .map(|secret| secret_of(name.to_owned(), secret)),
            );
        }
        for secret in &self.secrets.of_ports {
            volumes.push(secret_of(secret_volume(secret), secret));
        }
        if self.settings.manager_token {
            volumes.push(manager_token::volume());
        }
        volumes
    }

    fn security_context(&self) -> SecurityContext {
        let own = self.plan.config.security_context.clone();
        let mut context = own.unwrap_or_else(|| self.app_context());
        if self
            .settings
            .security_context
            .as_ref()
            .and_then(|it| it.run_as_group)
            .is_none()
        {
            context.run_as_group = Some(AGENT_GROUP);
        }
        if self.plan.pod_security == PodSecurity::Restricted {
            self.restrict(&mut context);
        }
        context
    }

    /// Returns the context of the first app container that can be intercepted and has one, else of
    /// the first that has one.
    fn app_context(&self) -> SecurityContext {
        let with_ports = self.present().filter(|(it, _)| !it.intercepts.is_empty());
        let context = |app: &Container| app.security_context.clone();
        let found = with_ports.filter_map(|(_, app)| context(app)).next();
        let found = found.or_else(|| self.present().find_map(|(_, app)| context(app)));
        let mut found = found.unwrap_or_default();
        // Powers of the app's own, for which an agent has no use.
        found.privileged = None;
        if let Some(capabilities) = &mut found.capabilities {
            capabilities.add = None;
        }
        found
    }

    /// Fills in what the level `restricted` asks for and the pod does not say for all containers.
    fn restrict(&self, context: &mut SecurityContext) {
        let spec = self.pod.spec.as_ref();
        let pod = spec.and_then(|it| it.security_context.as_ref());
        context.allow_privilege_escalation = Some(false);
        context.privileged = None;
        let capabilities = context.capabilities.get_or_insert_default();
        capabilities.drop = Some(vec!["ALL".to_owned()]);
        capabilities.add = None;
        // Fields the pod sets already hold for every container; only missing ones are added.
        if pod.and_then(|it| it.run_as_non_root) != Some(true) {
            context.run_as_non_root = Some(true);
        }
        let has_user = context.run_as_user.or(pod.and_then(|it| it.run_as_user));
        if has_user.is_none() {
            context.run_as_user = Some(AGENT_GROUP);
        }
        let has_seccomp = pod.is_some_and(|it| it.seccomp_profile.is_some());
        if context.seccomp_profile.is_none() && !has_seccomp {
            context.seccomp_profile = Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            });
        }
    }

    /// The init container.
    pub(crate) fn init(&self) -> Container {
        let config = &self.plan.config;
        let mut variables = vec![
            field("POD_IP", "status.podIP"),
            field("POD_IPS", "status.podIPs"),
            literal("AGENT_GID", self.settings.agent_group().to_string()),
        ];
        if !config.log_level.is_empty() {
            variables.insert(0, literal("LOG_LEVEL", &config.log_level));
        }
        let mut mounts = None;
        match self.settings.carrier {
            Carrier::Annotation => {
                variables.push(field("AGENT_CONFIG", &annotation_field(AGENT_CONFIG)));
            }
            Carrier::ConfigMap => {
                mounts = Some(vec![VolumeMount {
                    name: "traffic-config".to_owned(),
                    mount_path: "/etc/traffic-agent".to_owned(),
                    ..VolumeMount::default()
                }]);
            }
        }
        Container {
            name: INIT_CONTAINER.to_owned(),
            args: Some(vec!["agent-init".to_owned()]),
            image: Some(config.agent_image.clone()),
            image_pull_policy: some(&config.pull_policy),
            env: Some(variables),
            volume_mounts: mounts,
            resources: config.init_resources.clone(),
            security_context: Some(self.init_context()),
            ..Container::default()
        }
    }

    fn init_context(&self) -> SecurityContext {
        if let Some(own) = &self.plan.config.init_security_context {
            return own.clone();
        }
        let spec = self.pod.spec.as_ref();
        let pod = spec.and_then(|it| it.security_context.as_ref());
        let non_root = pod.is_some_and(|it| it.run_as_non_root == Some(true));
        let has_user = pod.is_some_and(|it| it.run_as_user.is_some());
        SecurityContext {
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned()]),
                drop: None,
            }),
            // The image's user may be root, which the pod forbids; the program's file capability
            // serves any user.
            run_as_user: (non_root && !has_user).then_some(AGENT_GROUP),
            // The image's own group is the agent's, which marks traffic as the agent's alone.
            run_as_group: Some(self.settings.agent_group().saturating_add(1)),
            ..SecurityContext::default()
        }
    }

    /// Variables that app containers get.
    pub(crate) fn app_variables(&self) -> Vec<(&'static str, String)> {
        match self.plan.config.api_port {
            0 => Vec::new(),
            port => vec![
                ("TELEPRESENCE_API_HOST", "localhost".to_owned()),
                ("TELEPRESENCE_API_PORT", port.to_string()),
            ],
        }
    }
}

/// The names that volumes get in a pod, where an app has a volume of the usual name.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// Names that do not clash with volumes the pod has, unless those are the very same.
    pub(crate) fn new(wanted: &[Volume], there: &[Volume]) -> Self {
        let mut names = BTreeMap::new();
        for volume in wanted {
            // A volume of this name and source is the one an earlier injection added; any other
            // belongs to the app and must keep its name.
            let same_name = there.iter().find(|it| it.name == volume.name);
            if same_name.is_none_or(|it| is_same(it, volume)) {
                continue;
            }
            let free = (2..).map(|n| format!("{}-{n}", volume.name));
            let taken_by_other = |name: &String| {
                let other = there.iter().find(|it| it.name == *name);
                other.is_some_and(|it| {
                    let renamed = Volume {
                        name: name.clone(),
                        ..volume.clone()
                    };
                    !is_same(it, &renamed)
                })
            };
            if let Some(name) = free.take(1000).find(|name| !taken_by_other(name)) {
                names.insert(volume.name.clone(), name);
            }
        }
        Self(names)
    }

    /// The name of a volume in this pod.
    pub(crate) fn of(&self, volume: &str) -> String {
        self.0
            .get(volume)
            .cloned()
            .unwrap_or_else(|| volume.to_owned())
    }
}

/// The API server fills in defaults that are not compared.
fn is_same(one: &Volume, other: &Volume) -> bool {
    let kind = |it: &Volume| {
        (
            it.name.clone(),
            it.empty_dir.is_some(),
            it.secret.as_ref().map(|it| it.secret_name.clone()),
            it.config_map.as_ref().map(|it| it.name.clone()),
            it.downward_api.as_ref().map(|it| {
                let items = it.items.iter().flatten();
                let paths = items.map(|it| it.path.clone());
                paths.collect::<Vec<_>>()
            }),
        )
    };
    kind(one) == kind(other)
}

fn carried_mount(
    mount: &VolumeMount,
    policy: MountPolicy,
    config: &ConfigContainer,
) -> VolumeMount {
    let path = mount.mount_path.trim_start_matches('/');
    let mut carried = VolumeMount {
        mount_path: format!("{APP_MOUNTS}/{}/{path}", config.name),
        sub_path_expr: mount
            .sub_path_expr
            .as_ref()
            .map(|it| env::prefix_app_references(it, &config.env_prefix)),
        ..mount.clone()
    };
    // It needs a privileged container, which the agent is not.
    if carried.mount_propagation.as_deref() == Some("Bidirectional") {
        carried.mount_propagation = None;
    }
    if policy == MountPolicy::RemoteReadonly {
        carried.read_only = Some(true);
        // Submounts stay writable with `readOnly` alone. Kubernetes allows it only without
        // propagation.
        carried.recursive_read_only = Some("IfPossible".to_owned());
        carried.mount_propagation = None;
    }
    carried
}

/// Ready once the manager has been reached for the first time; original images have no program
/// that says so.
fn readiness(image: &str) -> Probe {
    // REGISTRY/REPOSITORY/NAME:TAG@DIGEST: the registry's own port is before the last slash.
    let name = image.rsplit('/').next().unwrap_or_default();
    let name = name.split(['@', ':']).next().unwrap_or_default();
    let command: &[&str] = match STOCK_IMAGES.contains(&name) {
        true => &["/bin/stat", "/tmp/agent/ready"],
        false => &["traffic-agent", "ready"],
    };
    let command = command.iter().map(|it| (*it).to_owned()).collect();
    Probe {
        exec: Some(ExecAction {
            command: Some(command),
        }),
        ..Probe::default()
    }
}

fn annotation_field(key: &str) -> String {
    format!("metadata.annotations['{key}']")
}

fn downward(name: &str, path: &str, field: &str) -> Volume {
    let file = DownwardAPIVolumeFile {
        path: path.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            api_version: Some("v1".to_owned()),
            field_path: field.to_owned(),
        }),
        ..DownwardAPIVolumeFile::default()
    };
    Volume {
        name: name.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            items: Some(vec![file]),
            ..DownwardAPIVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn config_volume(agent_name: &str) -> Volume {
    Volume {
        name: "traffic-config".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: CONFIG_MAP.to_owned(),
            items: Some(vec![KeyToPath {
                key: agent_name.to_owned(),
                path: "config.yaml".to_owned(),
                mode: None,
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A Secret that is not there yet does not keep the pod from starting; the agent waits for it.
fn secret_of(name: String, secret: &str) -> Volume {
    Volume {
        name,
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            optional: Some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A Secret's name may be longer than a volume's and has dots.
fn secret_volume(secret: &str) -> String {
    const MAX_NAME: usize = 63;
    let name = format!("{}-vol", secret.replace('.', "-"));
    if name.len() <= MAX_NAME && !secret.contains('.') {
        return name;
    }
    let hash = crate::plan::short_hash(secret.as_bytes());
    let start: String = secret.replace('.', "-").chars().take(40).collect();
    format!("{}-{hash}-vol", start.trim_end_matches('-'))
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
