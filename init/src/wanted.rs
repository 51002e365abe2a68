//! Rules that a run wants: ports of the configuration, facts of the pod, and exceptions.

use crate::args::Args;
use crate::env::Env;
use crate::error::Error;
use crate::exceptions;
use crate::facts::{self, Place, Process};
use crate::log::Log;
use crate::plan::{self, Lacks, Options, Pod, PortPlan};
use crate::rule::Rule;
use crate::settings::{self, Settings};

/// Input of the plan.
pub struct Wanted {
    /// Ports of the configuration.
    pub ports: Vec<PortPlan>,
    /// Pod.
    pub pod: Pod,
    /// Exceptions.
    pub options: Options,
}

/// Gathers the input of the plan; none when no port is asked for by number. Oddities go to the log.
pub fn gather(args: &Args, env: Env<'_>, log: &Log<'_>) -> Result<Option<Wanted>, Error> {
    let settings = settings::read(args.config.as_deref(), env, args.root.as_deref())?;
    let place = match args.netns {
        Some(_) => Place::Node,
        None => Place::Pod(Process::current()),
    };
    complete(settings, place, args, env, log)
}

/// Completes the ports of a configuration with the facts of the pod.
pub fn complete(
    settings: Settings,
    place: Place,
    args: &Args,
    env: Env<'_>,
    log: &Log<'_>,
) -> Result<Option<Wanted>, Error> {
    log.configured(settings.log_level);
    for warning in &settings.warnings {
        log.warning(warning);
    }
    let options = exceptions::read(&args.lists, env, &settings.mesh_subnets)?;
    let ports = settings.ports;
    if ports.iter().all(|port| !port.numeric) {
        return Ok(None);
    }
    let families = args.families.as_deref();
    let (pod, warning) = facts::gather(env, facts::interfaces(), place, families)?;
    if let Some(warning) = warning {
        log.warning(&warning);
    }
    if options.excluded_owners.contains(&pod.agent) {
        return Err(Error::Config(format!(
            "{} is excluded from the redirect, and is the agent's own: it would not reach the app; \
             take it out of the list",
            pod.agent
        )));
    }
    Ok(Some(Wanted {
        ports,
        pod,
        options,
    }))
}

impl Wanted {
    /// Rules for a kernel that lacks these tests.
    pub fn rules(&self, lacks: Lacks) -> Vec<Rule> {
        let options = Options {
            lacks,
            ..self.options.clone()
        };
        plan::plan(&self.ports, &self.pod, &options)
    }

    /// Ports whose callers are led to the agent.
    pub fn redirected(&self) -> Vec<&PortPlan> {
        let redirected = |port: &&PortPlan| port.numeric && !self.options.excludes(port);
        self.ports.iter().filter(redirected).collect()
    }

    /// Describes in one line what became of a port.
    pub fn told(&self, port: &PortPlan, backend: &str) -> String {
        let PortPlan {
            container,
            container_port,
            agent_port,
            proxy_port,
            transport,
            ..
        } = port;
        if !port.numeric {
            return format!(
                "{transport} {container_port} ({container}): named target port, not redirected"
            );
        }
        if self.options.excludes(port) {
            return format!(
                "{transport} {container_port} ({container}): excluded, callers reach the app \
                 directly"
            );
        }
        let addresses: Vec<String> = self.pod.addresses.iter().map(ToString::to_string).collect();
        format!(
            "{transport} {container_port} ({container}): callers reach the agent at {agent_port}, \
             the agent ({}) reaches the app by {proxy_port}; {backend}, {}",
            self.pod.agent,
            addresses.join(" ")
        )
    }
}
