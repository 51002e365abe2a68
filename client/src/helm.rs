//! `intercept helm`: installs, upgrades and uninstalls the traffic-manager with the user's Helm and
//! the chart that is part of this program.

mod chart;
pub mod flags;
mod progress;
mod release;

use std::process::Stdio;

use tokio::process::Command;

use crate::Failure;
use crate::cluster::kubeconfig::DEFAULT_MANAGER_NAMESPACE;
use crate::report::line;
use chart::Chart;
use flags::{HelmCommand, HelmUninstall, Install, InstallTarget, Upgrade};
use progress::Watch;
use release::ReleaseState;

/// Name of the release.
const RELEASE: &str = "traffic-manager";
/// Variable that names another Helm than the one on the path.
const PROGRAM: &str = "HELM";

/// Runs one of the commands.
pub async fn run(command: &HelmCommand) -> Result<(), Failure> {
    match command {
        HelmCommand::Install(flags) => install(flags).await,
        HelmCommand::Upgrade(flags) => upgrade(flags).await,
        HelmCommand::Uninstall(flags) => uninstall(flags).await,
        HelmCommand::Lint(flags) => {
            let chart = Chart::unpack()?;
            let mut helm = helm();
            helm.args(["lint", "--strict"]).arg(chart.path());
            helm.args(flags.values.arguments());
            succeeded(helm, "lint").await
        }
        HelmCommand::Template(flags) => {
            let chart = Chart::unpack()?;
            let mut helm = helm();
            helm.args(["template", RELEASE]).arg(chart.path());
            helm.args(["--namespace", &flags.place.namespace_or_default()]);
            helm.args(flags.values.arguments());
            succeeded(helm, "template").await
        }
    }
}

async fn install(flags: &Install) -> Result<(), Failure> {
    flags.check_version()?;
    let namespace = namespace(&flags.place).await?;
    let state = release::settled(&flags.place, &namespace, flags.timeout).await?;
    let mut words = "installed";
    let chart = Chart::unpack()?;
    let mut helm = at(&flags.place, &namespace);
    match state {
        ReleaseState::None => {
            helm.args(["install", RELEASE]).arg(chart.path());
        }
        ReleaseState::Deployed { version } => {
            return Err(Failure::Failed(format!(
                "the traffic-manager {version} is already installed in namespace {namespace}; \
                 use intercept helm upgrade"
            )));
        }
        // What a failed or stuck install left behind is repaired, not removed.
        ReleaseState::Failed | ReleaseState::Stuck => {
            helm.args(["upgrade", "--install", RELEASE])
                .arg(chart.path());
            words = "repaired";
        }
    }
    if flags.create_namespace {
        helm.arg("--create-namespace");
    }
    helm.args(flags.common.arguments());
    helm.args(flags.values.arguments());
    apply(
        helm,
        &flags.place,
        &namespace,
        flags.common.dry_run,
        flags.timeout,
    )
    .await?;
    done(words, &namespace, flags.common.dry_run);
    Ok(())
}

async fn upgrade(flags: &Upgrade) -> Result<(), Failure> {
    flags.install.check_version()?;
    let install = &flags.install;
    let namespace = namespace(&install.place).await?;
    match release::settled(&install.place, &namespace, install.timeout).await? {
        ReleaseState::None => {
            return Err(Failure::Failed(format!(
                "no traffic-manager is installed in namespace {namespace}; use intercept helm \
                install, or name its namespace with --namespace"
            )));
        }
        ReleaseState::Stuck => {
            return Err(Failure::Failed(format!(
                "another Helm command on the traffic-manager in namespace {namespace} is under way \
                or was interrupted; wait for it, or take it back with helm rollback {RELEASE} -n \
                {namespace}"
            )));
        }
        ReleaseState::Deployed { .. } | ReleaseState::Failed => {}
    }
    let chart = Chart::unpack()?;
    let mut helm = at(&install.place, &namespace);
    helm.args(["upgrade", RELEASE]).arg(chart.path());
    if flags.reset_values {
        helm.arg("--reset-values");
    } else if flags.reuse_values || install.values.is_empty() {
        // Keeps what the user has set, and takes the new chart's defaults for what is new in it.
        helm.arg("--reset-then-reuse-values");
    }
    helm.args(install.common.arguments());
    helm.args(install.values.arguments());
    apply(
        helm,
        &install.place,
        &namespace,
        install.common.dry_run,
        install.timeout,
    )
    .await?;
    done("upgraded", &namespace, install.common.dry_run);
    Ok(())
}

async fn uninstall(flags: &HelmUninstall) -> Result<(), Failure> {
    let namespace = namespace(&flags.place).await?;
    if matches!(
        release::state(&flags.place, &namespace).await?,
        ReleaseState::None
    ) {
        line(format_args!(
            "No Traffic Manager is installed in namespace {namespace}"
        ));
        return Ok(());
    }
    let mut helm = at(&flags.place, &namespace);
    helm.args(["uninstall", RELEASE, "--wait"]);
    helm.args(flags.common.arguments());
    helm.args(["--timeout", &seconds(flags.timeout)]);
    succeeded(helm, "uninstall").await?;
    done("uninstalled", &namespace, flags.common.dry_run);
    Ok(())
}

/// Runs an install or upgrade, and tells how the manager's pods are doing meanwhile.
async fn apply(
    mut helm: Command,
    place: &InstallTarget,
    namespace: &str,
    dry_run: bool,
    timeout: std::time::Duration,
) -> Result<(), Failure> {
    if dry_run {
        return succeeded(helm, "--dry-run").await;
    }
    helm.args(["--wait", "--timeout", &seconds(timeout)]);
    let watch = Watch::of_manager(&place.cluster, namespace).await;
    let output = helm.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::select! {
        output = output => output.map_err(|error| not_started(&error))?,
        never = watch.tell() => match never {},
    };
    if output.status.success() {
        return Ok(());
    }
    let mut message = words_of(&output.stderr);
    if let Some(reason) = watch.reason().await {
        message = format!("{message}\n{reason}");
    }
    Err(Failure::Failed(message))
}

/// Helm, spoken to about a release.
fn at(place: &InstallTarget, namespace: &str) -> Command {
    let mut helm = helm();
    if let Some(context) = &place.cluster.context {
        helm.args(["--kube-context", context]);
    }
    if let Some(path) = &place.cluster.kubeconfig {
        helm.arg("--kubeconfig").arg(path);
    }
    helm.args(["--namespace", namespace]);
    helm
}

fn helm() -> Command {
    Command::new(std::env::var_os(PROGRAM).unwrap_or_else(|| "helm".into()))
}

/// Flag, kubeconfig extension or the usual one.
async fn namespace(place: &InstallTarget) -> Result<String, Failure> {
    if let Some(namespace) = place.named() {
        return Ok(namespace);
    }
    let chosen = place.cluster.choose().await?;
    Ok(chosen
        .manager_namespace
        .unwrap_or_else(|| DEFAULT_MANAGER_NAMESPACE.into()))
}

/// Runs Helm with its output on ours.
async fn succeeded(mut helm: Command, what: &str) -> Result<(), Failure> {
    // Not `output`, which would take standard output for itself.
    let helm = helm
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_started(&error))?;
    let output = helm
        .wait_with_output()
        .await
        .map_err(|error| not_started(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let words = words_of(&output.stderr);
    Err(Failure::Failed(if words.is_empty() {
        format!("helm {what} failed; its output says why")
    } else {
        words
    }))
}

fn not_started(error: &std::io::Error) -> Failure {
    Failure::Failed(format!(
        "helm cannot be started: {error}; install Helm 3.14 or newer (package helm of your system, \
        brew install helm), or name one with {PROGRAM}=PROGRAM"
    ))
}

/// Message of Helm, without its own prefix.
fn words_of(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    text.trim().trim_start_matches("Error: ").to_owned()
}

fn done(what: &str, namespace: &str, dry_run: bool) {
    if !dry_run {
        line(format_args!(
            "Traffic Manager {what} successfully in namespace {namespace}"
        ));
    }
}

fn seconds(duration: std::time::Duration) -> String {
    format!("{}s", duration.as_secs())
}
