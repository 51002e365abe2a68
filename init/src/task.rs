//! Tasks on the rules that a run wants: putting them into force, and checking them.

use traffic_proto::log_level::LogLevel;

use crate::apply::{self, Applied};
use crate::args::Args;
use crate::choice::Backend;
use crate::error::Error;
use crate::log::Log;
use crate::nft::others;
use crate::permission::{self, Need};
use crate::probe::{self, Probe};
use crate::wanted::Wanted;
use crate::{conntrack, host};

/// Puts the rules into force; none take those of an earlier run away.
///
/// Errors: none of ours is in force then, or the error says which may be.
pub fn put_into_force(wanted: Option<&Wanted>, args: &Args, log: &Log<'_>) -> Result<(), Error> {
    let Some(wanted) = wanted else {
        log.info("no port is asked for by number: nothing to redirect");
        if let Some(left) = apply::remove_quietly(log) {
            log.warning(&left);
        }
        return Ok(());
    };
    // A capability that is merely permitted, as that of a file, is made effective.
    let _ = permission::check(Need::NetAdmin);
    refuse_the_nodes_network(args)?;
    let applied = apply::apply(&|lacks| wanted.rules(lacks), args.backend, log)?;
    report(wanted, applied, log);
    if applied.changed {
        drop_tracked(wanted, log);
    }
    if args.validate {
        validate(wanted, log)?;
    }
    Ok(())
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Line for each difference and each connection that went elsewhere; none when the rules are in
    /// force.
    pub lines: Vec<String>,
    /// Backend, and what became of the probe.
    pub words: String,
}

/// Compares the rules with what is in force, looks for rules in front of ours, and tries
/// connections.
pub fn check(wanted: Option<&Wanted>, args: &Args, log: &Log<'_>) -> Result<Checked, Error> {
    let planned = |lacks| wanted.map_or_else(Vec::new, |it| it.rules(lacks));
    let (mut lines, backend) = apply::differences(&planned, args.backend, log)?;
    let mut words = backend.word().to_owned();
    if let (Some(wanted), true) = (wanted, lines.is_empty()) {
        lines.extend(earlier_chains(backend)?);
        match probe::probe(&wanted.ports, &wanted.pod, &wanted.options) {
            Probe::Passed(count) => words += &format!(", {count} connections went right"),
            Probe::Failed(failed) => lines.extend(failed),
            Probe::Impossible(why) => words += &format!(", not tried: {why}"),
        }
    }
    Ok(Checked { lines, words })
}

/// Chains of others that the kernel calls before ours, a mesh's at its usual priority left out: a
/// line for each.
fn earlier_chains(backend: Backend) -> Result<Vec<String>, Error> {
    const MESH: i32 = -100;
    let chains = others::read()?.chains;
    let is_earlier = |it: &&others::OtherChain| {
        let ours = match (backend, it.output) {
            (Backend::Nft, true) => MESH - 1,
            _ => MESH,
        };
        it.priority < ours
    };
    let line = |it: &others::OtherChain| {
        format!(
            "in front of ours: chain {} at priority {}",
            it.name, it.priority
        )
    };
    Ok(chains.iter().filter(is_earlier).map(line).collect())
}

fn refuse_the_nodes_network(args: &Args) -> Result<(), Error> {
    if args.allow_host_network {
        return Ok(());
    }
    match host::signs_of_a_node()? {
        None => Ok(()),
        Some(sign) => Err(Error::Config(format!(
            "this network namespace is the node's own ({sign}): a redirect here would catch the \
             traffic of everybody on the node. Remove hostNetwork: true from the pod, give its \
             Service a named target port, which needs no redirect, or allow it with \
             --allow-host-network"
        ))),
    }
}

fn report(wanted: &Wanted, applied: Applied, log: &Log<'_>) {
    for port in &wanted.ports {
        log.info(&wanted.told(port, applied.backend));
    }
    if applied.lacks.local {
        log.warning(
            "the kernel cannot tell local destinations: traffic to these ports that is only routed \
             through the pod is redirected as well",
        );
    }
    if applied.lacks.claimed {
        log.warning(
            "the kernel cannot tell packets of a transparent proxy: a mesh in TPROXY mode would \
             not work beside these rules",
        );
    }
    let count = wanted.rules(applied.lacks).len();
    let state = if applied.changed {
        "are"
    } else {
        "were already"
    };
    log.line(LogLevel::Debug, &format!("{count} rules {state} in force"));
}

/// Translation looks at the first packet of a connection, so that open ones would go on past the
/// agent.
fn drop_tracked(wanted: &Wanted, log: &Log<'_>) {
    match conntrack::drop_entries(&wanted.redirected(), &wanted.pod) {
        Ok(0) => {}
        Ok(count) => log.info(&format!(
            "dropped {count} tracked connections to the redirected ports: their next packets meet \
             the rules"
        )),
        Err(errno) => log.line(
            LogLevel::Debug,
            &format!(
                "tracked connections cannot be dropped ({errno}): open ones go on as they are"
            ),
        ),
    }
}

/// Connects to see that the rules work.
///
/// Errors: a connection went elsewhere; the rules are taken away then.
fn validate(wanted: &Wanted, log: &Log<'_>) -> Result<(), Error> {
    match probe::probe(&wanted.ports, &wanted.pod, &wanted.options) {
        Probe::Passed(count) => log.info(&format!("{count} connections went where they should")),
        Probe::Impossible(why) => log.warning(&format!("the rules are not validated: {why}")),
        Probe::Failed(lines) => {
            let error = Error::Backend(format!(
                "the rules are in place and do not work: other rules of this pod are in their way. \
                 {}",
                lines.join(". ")
            ));
            return Err(match apply::remove_quietly(log) {
                Some(left) => error.and(&left),
                None => error,
            });
        }
    }
    Ok(())
}
