//! Environment and mounts of the app containers, as a workstation receives them with its intercept.

use std::collections::BTreeMap;

use traffic_proto::sidecar::{Container, Generation, MountPolicy, Sidecar};

/// Prefix of the app containers' variables in the agent's environment, followed by the container's
/// own prefix.
const APP_PREFIX: &str = "_TEL_APP_";
/// End of the first variable that Kubernetes gives every container for each Service.
const SERVICE_HOST: &str = "_SERVICE_HOST";
/// End of the injector's lists of mounts.
const MOUNTS: &str = "_TELEPRESENCE_MOUNTS";

/// Environment and mounts of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedContainer {
    /// Container name.
    pub name: String,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Mount paths with their policy number.
    pub mounts: BTreeMap<String, i32>,
}

/// Returns environment and mounts of all containers. `environment` is the agent's own: of it the
/// variables are passed on that the injector marks as the container's, and those of Services, which
/// are the same in every container of a pod. All others are the agent's.
///
/// The mount point is left empty: the file service names it where it runs. `TELEPRESENCE_API_PORT` is there only if the
/// agent serves the REST API: a workstation starts a server of its own because of it.
#[must_use]
pub fn containers(
    sidecar: &Sidecar,
    environment: &BTreeMap<String, String>,
) -> Vec<SharedContainer> {
    let mut own = environment.clone();
    if sidecar.generation == Generation::Annotation {
        // Clients of the earlier generation expect the injector's lists of mounts.
        own.retain(|name, _| !name.contains(MOUNTS));
    }
    let share = |container: &Container| {
        let mounts = mounts(container, environment);
        SharedContainer {
            name: container.name.clone(),
            environment: container_environment(container, &own, &mounts, sidecar.api_port),
            mounts: mounts
                .iter()
                .map(|(path, policy)| (path.clone(), policy.number()))
                .collect(),
        }
    };
    sidecar.containers.iter().map(share).collect()
}

fn container_environment(
    container: &Container,
    own: &BTreeMap<String, String>,
    mounts: &[(String, MountPolicy)],
    api_port: Option<u16>,
) -> BTreeMap<String, String> {
    let wanted = |name: &str| is_of_service(name, own) || name.ends_with(MOUNTS);
    let mut result: BTreeMap<_, _> = own
        .iter()
        .filter(|(name, _)| !name.starts_with("_TEL_") && wanted(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let prefix = format!("{APP_PREFIX}{}", container.env_prefix);
    let apps = own
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)));
    result.extend(
        apps.filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.clone())),
    );
    result.insert("TELEPRESENCE_CONTAINER".to_owned(), container.name.clone());
    if let Some(port) = api_port {
        result.insert("TELEPRESENCE_API_HOST".to_owned(), "localhost".to_owned());
        result.insert("TELEPRESENCE_API_PORT".to_owned(), port.to_string());
    }
    for (variable, policies) in [
        (
            "TELEPRESENCE_MOUNTS",
            &[MountPolicy::Remote, MountPolicy::RemoteReadonly][..],
        ),
        ("TELEPRESENCE_LOCAL_MOUNTS", &[MountPolicy::Local]),
    ] {
        // In the pod's order, as a workstation mounts them: a path may lie below an earlier one.
        let paths: Vec<_> = mounts
            .iter()
            .filter(|(_, policy)| policies.contains(policy))
            .map(|(path, _)| path.as_str())
            .collect();
        if !paths.is_empty() {
            result.insert(variable.to_owned(), paths.join(":"));
        }
    }
    result
}

/// Returns true for a variable that tells where a Service is: `WEB_SERVICE_HOST`, `WEB_SERVICE_PORT…`,
/// `WEB_PORT…`.
fn is_of_service(name: &str, own: &BTreeMap<String, String>) -> bool {
    let services = own.keys().filter_map(|it| it.strip_suffix(SERVICE_HOST));
    let mut rests = services.filter_map(|service| name.strip_prefix(service));
    rests.any(|rest| {
        let parts = ["_SERVICE_PORT", "_PORT"].map(|part| rest.strip_prefix(part));
        let is_end = |rest: &str| rest.is_empty() || rest.starts_with('_');
        rest == SERVICE_HOST || parts.into_iter().flatten().any(is_end)
    })
}

/// Returns the configured mounts and those named by the injector in a variable with the container's
/// prefix.
pub(crate) fn mounts(
    container: &Container,
    own: &BTreeMap<String, String>,
) -> Vec<(String, MountPolicy)> {
    let mut mounts = container.mounts.clone();
    let listed = own
        .get(&format!("{}TELEPRESENCE_MOUNTS", container.env_prefix))
        .map_or("", String::as_str);
    for path in listed.split(':').filter(|p| !p.is_empty()) {
        if mounts.iter().all(|(known, _)| known != path) {
            mounts.push((path.to_owned(), MountPolicy::Remote));
        }
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic_proto::sidecar::{self, Role};

    #[test]
    fn a_container_shares_its_own_environment_over_the_agents() {
        let config = r#"{"agentName":"a","namespace":"n","managerHost":"m","containers":[
            {"name":"app","envPrefix":"A_","mountPoint":"/tel_app_mounts/app",
             "mounts":{"/data":"Remote","/etc/ro":"RemoteReadonly","/tmp":"Local","/no":"Ignore"}},
            {"name":"side","envPrefix":"B_","mountPoint":"/tel_app_mounts/side"}]}"#;
        let sidecar = sidecar::from_json(config, "test", Role::Agent).unwrap();
        let own = [
            ("HOME", "/root"),
            ("PATH", "/bin"),
            ("HOSTNAME", "pod"),
            ("_TEL_AGENT_POD_IP", "10.0.0.1"),
            ("AGENT_CONFIG", "{}"),
            ("TELEPRESENCE_API_PORT", "9980"),
            ("LOG_LEVEL", "debug"),
            ("AGENT_BIND", "all"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORTAL", "x"),
            ("OTHER_PORT", "80"),
            ("_TEL_APP_A_HOME", "/home/app"),
            ("_TEL_APP_A_COLOUR", "red"),
            ("COLOUR", "blue"),
            ("_TEL_APP_B_COLOUR", "green"),
            ("B_TELEPRESENCE_MOUNTS", "/b:/a:/b"),
        ];
        let own = own
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let shared = containers(&sidecar, &own);
        let text = |s: &SharedContainer| {
            s.environment
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            text(&shared[0]),
            "COLOUR=red HOME=/home/app KUBERNETES_PORT=443 \
             KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443 KUBERNETES_SERVICE_HOST=10.96.0.1 \
             TELEPRESENCE_CONTAINER=app TELEPRESENCE_LOCAL_MOUNTS=/tmp TELEPRESENCE_MOUNTS=/data:/etc/ro"
        );
        assert_eq!(
            text(&shared[1]),
            "COLOUR=green KUBERNETES_PORT=443 KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443 \
             KUBERNETES_SERVICE_HOST=10.96.0.1 TELEPRESENCE_CONTAINER=side TELEPRESENCE_MOUNTS=/b:/a"
        );
        assert_eq!(shared[0].mounts.get("/etc/ro"), Some(&1));

        // As a stock client 2.20 sees it: the pod's order, and the lists themselves.
        let older = "{agentName: a, namespace: n, managerHost: m, containers: [\
             {name: side, envPrefix: B_, mountPoint: /tel_app_mounts/side, Mounts: [/z, /b]}]}";
        let sidecar = sidecar::from_config_map(older, "test", Role::Agent).unwrap();
        assert_eq!(
            text(&containers(&sidecar, &own)[0]),
            "B_TELEPRESENCE_MOUNTS=/b:/a:/b COLOUR=green KUBERNETES_PORT=443 \
             KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443 KUBERNETES_SERVICE_HOST=10.96.0.1 \
             TELEPRESENCE_CONTAINER=side TELEPRESENCE_MOUNTS=/z:/b:/a"
        );
    }
}
