//! Sidecar configuration: its sources, and the part of it that concerns the redirect.

use std::path::Path;

use traffic_proto::fault::Faults;
use traffic_proto::log_level::LogLevel;
use traffic_proto::sidecar::{self, Role, Sidecar};

use crate::env::{Env, value};
use crate::error::Error;
use crate::plan::PortPlan;

/// Path at which the injector mounts the configuration.
pub const FILE: &str = "/etc/traffic-agent/config.yaml";
const VARIABLE: &str = "AGENT_CONFIG";

/// Part of the configuration that this program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Ports that can be intercepted, numeric or named.
    pub ports: Vec<PortPlan>,
    /// Subnets that the agent dials through a mesh, as they were written.
    pub mesh_subnets: Vec<String>,
    /// Log level, if the configuration has one.
    pub log_level: Option<LogLevel>,
    /// Oddities of the configuration, one line each.
    pub warnings: Vec<String>,
}

/// Reads the configuration: the file named on the command line, else `AGENT_CONFIG`, else [`FILE`];
/// `root` stands before every path.
///
/// Errors: no configuration, or every fault of it on a line of its own.
pub fn read(named: Option<&Path>, env: Env<'_>, root: Option<&Path>) -> Result<Settings, Error> {
    let inline = value(env, VARIABLE)?;
    let parsed = match (named, inline) {
        (Some(path), _) => from_file(path, root, sidecar::from_yaml)?,
        (None, Some(text)) => sidecar::from_json(&text, VARIABLE, Role::Init),
        (None, None) => from_file(Path::new(FILE), root, sidecar::from_config_map)?,
    };
    checked(parsed)
}

/// Reads the configuration in `text`, JSON; `source` is where it came from, for messages.
pub fn read_text(text: &str, source: &str) -> Result<Settings, Error> {
    checked(sidecar::from_json(text, source, Role::Init))
}

fn checked(parsed: Result<Sidecar, Faults>) -> Result<Settings, Error> {
    let sidecar = parsed.map_err(|faults| Error::Config(faults.to_string()))?;
    let settings = settings(&sidecar);
    check_ports(&settings.ports)?;
    Ok(settings)
}

/// Checks that no container port has two redirects: the second would never be reached.
fn check_ports(ports: &[PortPlan]) -> Result<(), Error> {
    let numeric: Vec<_> = ports.iter().filter(|port| port.numeric).collect();
    let mut faults = Vec::new();
    for (at, port) in numeric.iter().enumerate() {
        let same = |it: &&&PortPlan| {
            (it.container_port, it.transport) == (port.container_port, port.transport)
        };
        if let Some(first) = numeric[..at].iter().find(same) {
            faults.push(format!(
                "containerPort {} {} of container {}: agentPort {} and agentPort {} both stand for \
                 it, and only the first redirect would be reached; give one container port one \
                 agentPort",
                port.container_port,
                port.transport,
                port.container,
                first.agent_port,
                port.agent_port
            ));
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Error::Config(faults.join("\n")))
    }
}

/// Reader of a document: its text, its origin for messages, and the reading program.
type Read = fn(&str, &str, Role) -> Result<Sidecar, Faults>;

fn from_file(
    path: &Path,
    root: Option<&Path>,
    read: Read,
) -> Result<Result<Sidecar, Faults>, Error> {
    let path = match root {
        Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        None => path.to_owned(),
    };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::Config(format!(
            "{}: {error}; mount the sidecar configuration there, name its file with --config, or \
             put it into {VARIABLE}",
            path.display()
        ))
    })?;
    // YAML is read as well where JSON is meant: every JSON document is one.
    Ok(read(&text, &path.display().to_string(), Role::Init))
}

fn settings(sidecar: &Sidecar) -> Settings {
    let ports = sidecar.targets().into_iter().map(|target| PortPlan {
        container: target.container.clone(),
        container_port: target.container_port.get(),
        agent_port: target.listen_port(),
        proxy_port: target.proxy_port.map_or(0, |port| port.get()),
        transport: target.transport,
        numeric: target.proxy_port.is_some(),
    });
    Settings {
        ports: ports.collect(),
        mesh_subnets: sidecar.mesh_dial_subnets.clone(),
        log_level: sidecar.log_level,
        warnings: sidecar.warnings.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"agentName":"echo","logLevel":"debug","containers":[
        {"name":"app","intercepts":[
            {"targetPortNumeric":true,"protocol":"TCP","containerPort":8080,"agentPort":9900},
            {"targetPortNumeric":false,"containerPort":7070,"agentPort":9901}]},
        {"name":"side","intercepts":[{"headless":true,"protocol":"UDP","containerPort":5353,"agentPort":9902}]}]}"#;

    fn numbers(settings: &Settings) -> Vec<(u16, u16, u16, bool)> {
        let of = |it: &PortPlan| (it.container_port, it.agent_port, it.proxy_port, it.numeric);
        settings.ports.iter().map(of).collect()
    }

    #[test]
    fn the_proxy_port_counts_all_entries_and_named_ports_have_none() {
        let settings = read(None, &|key| (key == VARIABLE).then(|| CONFIG.into()), None).unwrap();
        let ports = [
            (8080, 9900, 9914, true),
            (7070, 9901, 0, false),
            (5353, 9902, 9916, true),
        ];
        assert_eq!(numbers(&settings), ports);
        assert_eq!(settings.log_level, Some(LogLevel::Debug));
        assert!(
            settings.warnings.iter().any(|it| it.contains("protocol")),
            "{:?}",
            settings.warnings
        );
    }

    #[test]
    fn the_named_file_wins_over_the_variable_and_that_over_the_usual_file() {
        let dir = tempfile::tempdir().unwrap();
        let usual = dir.path().join("etc/traffic-agent");
        std::fs::create_dir_all(&usual).unwrap();
        std::fs::write(usual.join("config.yaml"), CONFIG.replace("8080", "1111")).unwrap();
        std::fs::write(
            dir.path().join("named.yaml"),
            CONFIG.replace("8080", "2222"),
        )
        .unwrap();
        let inline = |key: &str| (key == VARIABLE).then(|| CONFIG.replace("8080", "3333").into());
        let first = |named: Option<&str>, env: Env<'_>, root| {
            numbers(&read(named.map(Path::new), env, root).unwrap())[0].0
        };
        let root = Some(dir.path());
        assert_eq!(first(Some("/named.yaml"), &inline, root), 2222);
        assert_eq!(
            first(
                Some(dir.path().join("named.yaml").to_str().unwrap()),
                &inline,
                None
            ),
            2222
        );
        assert_eq!(first(None, &inline, root), 3333);
        assert_eq!(first(None, &|_| None, root), 1111);
    }

    #[test]
    fn a_replaced_container_is_redirected_up_to_2_21() {
        let dir = tempfile::tempdir().unwrap();
        let usual = dir.path().join("etc/traffic-agent");
        std::fs::create_dir_all(&usual).unwrap();
        let replaced = CONFIG.replace(r#""name":"app","#, r#""name":"app","replace":1,"#);
        std::fs::write(usual.join("config.yaml"), &replaced).unwrap();
        let older = read(None, &|_| None, Some(dir.path())).unwrap();
        assert_eq!(numbers(&older)[0], (8080, 9900, 9914, true));
        let newer = |key: &str| (key == VARIABLE).then(|| replaced.clone().into());
        let newer = read(None, &newer, Some(dir.path())).unwrap();
        assert_eq!(numbers(&newer)[0], (8080, 8080, 0, false));
        assert_eq!(numbers(&newer)[2], (5353, 9902, 9916, true));
    }

    #[test]
    fn faults_name_their_keys_one_on_each_line() {
        let bad = r#"{"containers":[{"name":"app","intercepts":[
            {"targetPortNumeric":true,"protocol":"TCP","containerPort":9900,"agentPort":9900},
            {"targetPortNumeric":true,"protocol":"SCTP","containerPort":0,"agentPort":9901}]}]}"#;
        let error = read(None, &|key| (key == VARIABLE).then(|| bad.into()), None).unwrap_err();
        let text = error.to_string();
        for words in ["9900", "SCTP", "containerPort"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(
            text.lines().count() >= 3 && error.exit_code() == 64,
            "{text}"
        );
    }

    #[test]
    fn one_container_port_with_two_agent_ports_is_refused() {
        let config = |second: &str| {
            format!(
                r#"{{"containers":[{{"name":"app","intercepts":[
                {{"targetPortNumeric":true,"protocol":"TCP","containerPort":8080,"agentPort":9900}},
                {{"targetPortNumeric":{second},"protocol":"TCP","containerPort":8080,"agentPort":9901}}]}}]}}"#
            )
        };
        let run = |second| {
            let env = |key: &str| (key == VARIABLE).then(|| config(second).into());
            read(None, &env, None)
        };
        let error = run("true").unwrap_err();
        for words in ["8080", "9900", "9901", "one agentPort"] {
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        assert_eq!(error.exit_code(), 64);
        // A named port needs no redirect, so none is hidden.
        assert!(run("false").is_ok());
    }
}
