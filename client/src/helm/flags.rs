//! Flags of `intercept helm`, spelled as the stock client's and Helm's own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use traffic_proto::duration::GoDuration;

use crate::Failure;
use crate::cluster::kubeconfig::DEFAULT_MANAGER_NAMESPACE;
use crate::flags::cluster::ClusterFlags;

/// Commands on the release.
#[derive(Debug, Subcommand)]
pub enum HelmCommand {
    /// Install the traffic-manager
    Install(Install),
    /// Upgrade it, or change its values
    Upgrade(Upgrade),
    /// Uninstall it and remove all agents
    Uninstall(HelmUninstall),
    /// Check values against the chart
    Lint(Lint),
    /// Print the objects that an install makes
    Template(Template),
}

/// Cluster and namespace of the release.
#[derive(Debug, Args)]
pub struct InstallTarget {
    /// Namespace of the release; --manager-namespace wins
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterFlags,
}

impl InstallTarget {
    /// The namespace that flags name.
    pub(crate) fn named(&self) -> Option<String> {
        let flags = [&self.cluster.manager_namespace, &self.namespace];
        flags.into_iter().flatten().next().cloned()
    }

    pub(crate) fn namespace_or_default(&self) -> String {
        self.named()
            .unwrap_or_else(|| DEFAULT_MANAGER_NAMESPACE.into())
    }
}

/// Values for the chart.
#[derive(Debug, Args)]
pub struct Values {
    /// File with values; may be repeated, the last one wins
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A value: KEY=VALUE, or several, comma separated; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A value that is text whatever it looks like
    #[arg(long, value_name = "KEY=VALUE")]
    pub set_string: Vec<String>,
    /// A value as JSON
    #[arg(long, value_name = "KEY=JSON")]
    pub set_json: Vec<String>,
    /// A value that is a file's content
    #[arg(long, value_name = "KEY=FILE")]
    pub set_file: Vec<String>,
}

impl Values {
    pub(crate) fn is_empty(&self) -> bool {
        self.arguments().is_empty()
    }

    /// The same for Helm.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let files = self.files.iter().map(|file| ("--values", file.into()));
        let sets = [
            ("--set", &self.set),
            ("--set-string", &self.set_string),
            ("--set-json", &self.set_json),
            ("--set-file", &self.set_file),
        ];
        let sets = sets
            .into_iter()
            .flat_map(|(flag, values)| values.iter().map(move |value| (flag, value.into())));
        files
            .chain(sets)
            .flat_map(|(flag, value): (&str, OsString)| [flag.into(), value])
            .collect()
    }
}

/// Flags of every command that changes the release.
#[derive(Debug, Args)]
pub struct Common {
    /// Leave hooks out; agents then stay after an uninstall
    #[arg(long)]
    pub no_hooks: bool,
    /// Show what would be done
    #[arg(long)]
    pub dry_run: bool,
}

impl Common {
    pub(crate) fn arguments(&self) -> Vec<&'static str> {
        let flags = [(self.no_hooks, "--no-hooks"), (self.dry_run, "--dry-run")];
        flags
            .into_iter()
            .filter_map(|(is_set, flag)| is_set.then_some(flag))
            .collect()
    }
}

/// Flags of `install`.
#[derive(Debug, Args)]
pub struct Install {
    /// Values.
    #[command(flatten)]
    pub values: Values,
    /// Create the namespace if it is not there
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub create_namespace: bool,
    /// Version of the chart; there is one in the program, its own
    #[arg(long, value_name = "VERSION")]
    pub version: Option<String>,
    /// Time for the manager to get ready
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
    /// Cluster and namespace.
    #[command(flatten)]
    pub place: InstallTarget,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

impl Install {
    /// Chart, manager and client of one version belong together.
    pub(crate) fn check_version(&self) -> Result<(), Failure> {
        let own = env!("CARGO_PKG_VERSION");
        match self.version.as_deref() {
            Some(asked) if asked.trim_start_matches('v') != own => Err(Failure::Usage(format!(
                "--version {asked}: this program carries chart {own}; take the intercept program \
                of version {asked}"
            ))),
            _ => Ok(()),
        }
    }
}

/// Flags of `upgrade`.
#[derive(Debug, Args)]
pub struct Upgrade {
    /// Flags shared with an install.
    #[command(flatten)]
    pub install: Install,
    /// Keep the values of the release and lay the new ones over them
    #[arg(long, conflicts_with = "reset_values")]
    pub reuse_values: bool,
    /// Forget the values of the release
    #[arg(long)]
    pub reset_values: bool,
}

/// Flags of `uninstall`.
#[derive(Debug, Args)]
pub struct HelmUninstall {
    /// Time for the agents to go
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// Cluster and namespace.
    #[command(flatten)]
    pub place: InstallTarget,
    /// Flags of every command.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `lint`.
#[derive(Debug, Args)]
pub struct Lint {
    /// Values.
    #[command(flatten)]
    pub values: Values,
}

/// Flags of `template`.
#[derive(Debug, Args)]
pub struct Template {
    /// Values.
    #[command(flatten)]
    pub values: Values,
    /// Cluster and namespace.
    #[command(flatten)]
    pub place: InstallTarget,
}

/// A duration as Go writes it, of a second at least.
fn duration(text: &str) -> Result<Duration, String> {
    let duration: GoDuration = text
        .parse()
        .map_err(|error| format!("{error}; write 90s or 5m"))?;
    duration
        .to_std()
        .filter(|duration| duration.as_secs() > 0)
        .ok_or_else(|| "less than a second; write 90s or 5m".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(subcommand)]
        command: HelmCommand,
    }

    fn parsed(flags: &[&str]) -> Result<HelmCommand, String> {
        let flags = Flags::try_parse_from([&["helm"], flags].concat());
        flags
            .map(|flags| flags.command)
            .map_err(|error| error.to_string())
    }

    fn install(flags: &[&str]) -> Install {
        match parsed(&[&["install"], flags].concat()).unwrap() {
            HelmCommand::Install(install) => install,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn values_are_handed_on_in_helms_order() {
        let install = install(&[
            "--set",
            "intercept.environment.excluded={A,B}",
            "-f",
            "one.yaml",
            "--values=two.yaml",
            "--set-string=prometheus.port=9090",
        ]);
        let words = [
            "--values",
            "one.yaml",
            "--values",
            "two.yaml",
            "--set",
            "intercept.environment.excluded={A,B}",
            "--set-string",
            "prometheus.port=9090",
        ];
        assert_eq!(install.values.arguments(), words.map(OsString::from));
    }

    #[test]
    fn the_namespace_is_created_unless_told_otherwise() {
        assert!(install(&[]).create_namespace);
        assert!(install(&["--create-namespace"]).create_namespace);
        assert!(!install(&["--create-namespace=false"]).create_namespace);
    }

    #[test]
    fn the_managers_namespace_wins_over_the_other_flag() {
        let place = install(&["-n", "a", "--manager-namespace", "b"]).place;
        assert_eq!(place.named().as_deref(), Some("b"));
        assert_eq!(install(&["-n", "a"]).place.named().as_deref(), Some("a"));
        assert_eq!(install(&[]).place.namespace_or_default(), "ambassador");
    }

    #[test]
    fn another_version_is_refused_with_the_way_out() {
        assert!(
            install(&["--version", env!("CARGO_PKG_VERSION")])
                .check_version()
                .is_ok()
        );
        let error = install(&["--version", "v9.9.9"])
            .check_version()
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("take the intercept program of version v9.9.9")
        );
    }

    #[test]
    fn reusing_and_resetting_exclude_each_other() {
        let error = parsed(&["upgrade", "--reuse-values", "--reset-values"]).unwrap_err();
        assert!(error.contains("cannot be used with"), "{error}");
    }
}
