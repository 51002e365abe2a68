//! Environment and mounts of the app containers, as a workstation receives them with its intercept.

use std::collections::BTreeMap;

use traffic_proto::sidecar::{Container, MountPolicy, Sidecar};

/// Prefix of the app containers' variables in the agent's environment, followed by the container's
/// own prefix.
const APP_PREFIX: &str = "_TEL_APP_";
/// Variables of the agent itself, which mean nothing on a workstation.
const LEFT_OUT: [&str; 6] = [
    "HOME",
    "PATH",
    "HOSTNAME",
    "AGENT_CONFIG",
    "TELEPRESENCE_API_PORT",
    "TELEPRESENCE_API_HOST",
];

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

/// Returns environment and mounts of all containers. `environment` is the agent's own.
///
/// The mount point is left empty: the file service names it where it runs. `TELEPRESENCE_API_PORT` stays out: a workstation
/// would start a server because of it.
#[must_use]
pub fn containers(
    sidecar: &Sidecar,
    environment: &BTreeMap<String, String>,
) -> Vec<SharedContainer> {
    let share = |container: &Container| {
        let mounts = mounts(container, environment);
        SharedContainer {
            name: container.name.clone(),
            environment: container_environment(container, environment, &mounts),
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
) -> BTreeMap<String, String> {
    let wanted = |name: &str| {
        !LEFT_OUT.contains(&name)
            && !name.starts_with("_TEL_")
            && !name.contains("_TELEPRESENCE_MOUNTS")
    };
    let mut result: BTreeMap<_, _> = own
        .iter()
        .filter(|(name, _)| wanted(name))
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
    for (variable, policies) in [
        (
            "TELEPRESENCE_MOUNTS",
            &[MountPolicy::Remote, MountPolicy::RemoteReadonly][..],
        ),
        ("TELEPRESENCE_LOCAL_MOUNTS", &[MountPolicy::Local]),
    ] {
        let mut paths: Vec<_> = mounts
            .iter()
            .filter(|(_, policy)| policies.contains(policy))
            .map(|(path, _)| path.as_str())
            .collect();
        paths.sort_unstable();
        if !paths.is_empty() {
            result.insert(variable.to_owned(), paths.join(":"));
        }
    }
    result
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
            ("KUBERNETES_PORT", "443"),
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
            "COLOUR=red HOME=/home/app KUBERNETES_PORT=443 TELEPRESENCE_CONTAINER=app \
             TELEPRESENCE_LOCAL_MOUNTS=/tmp TELEPRESENCE_MOUNTS=/data:/etc/ro"
        );
        assert_eq!(
            text(&shared[1]),
            "COLOUR=green KUBERNETES_PORT=443 TELEPRESENCE_CONTAINER=side TELEPRESENCE_MOUNTS=/a:/b"
        );
        assert_eq!(shared[0].mounts.get("/etc/ro"), Some(&1));
    }
}
