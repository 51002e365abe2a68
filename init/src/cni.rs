//! CNI plugin, chained behind the one that makes the pod's network: the rules come from the node,
//! so that the pod needs no init container and no capability.
//!
//! The runtime hands over the pod's annotations (capability `io.kubernetes.cri.pod-annotations`),
//! in which the injector puts the sidecar configuration; pods without it are passed on untouched.

mod call;
pub mod install;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;

use traffic_proto::log_level::LogLevel;
use traffic_proto::sidecar::annotations::AGENT_CONFIG;

use crate::args::Args;
use crate::env::{Env, value};
use crate::error::Error;
use crate::facts::Place;
use crate::log::Log;
use crate::wanted::{self, Wanted};
use crate::{namespace, settings, task};
use call::{Call, Fault};

/// Variable in which the runtime names the task.
const COMMAND: &str = "CNI_COMMAND";

/// True when a container runtime calls the program.
pub fn is_called(env: Env<'_>) -> bool {
    env(COMMAND).is_some()
}

/// Runs one call: the result, or a fault as the specification wants it, goes to `out`.
pub fn run(env: Env<'_>, input: &mut dyn Read, out: &mut dyn Write, log: &Log<'_>) -> u8 {
    let mut text = String::new();
    let read = input.read_to_string(&mut text);
    let answered = log
        .obey(env)
        .map_err(Fault::from)
        .and_then(|()| read.map_err(|error| Fault::input(&error)))
        .and_then(|_| answer(env, &text, log));
    let (answer, code) = match answered {
        Ok(answer) => (answer, 0),
        Err(fault) => {
            for line in fault.text().lines() {
                log.line(LogLevel::Error, line);
            }
            (fault.json(&text), 1)
        }
    };
    // A runtime that closed our output does not want it.
    let _ = out.write_all(answer.as_bytes());
    code
}

fn answer(env: Env<'_>, text: &str, log: &Log<'_>) -> Result<String, Fault> {
    let command = value(env, COMMAND)?.unwrap_or_default();
    if command == "VERSION" {
        return Ok(call::versions(text));
    }
    let call = Call::parse(text)?;
    match command.as_str() {
        "ADD" => {
            add(&call, env, log)?;
            Ok(call.result())
        }
        "CHECK" => check(&call, env, log).map(|()| String::new()),
        // The rules go with the namespace, and there is nothing else to keep or to tell.
        "DEL" | "GC" | "STATUS" => Ok(String::new()),
        _ => Err(Fault::variable(COMMAND, &command)),
    }
}

fn add(call: &Call, env: Env<'_>, log: &Log<'_>) -> Result<(), Fault> {
    let args = arguments(call, env)?;
    match wanted(call, &args, env, log)? {
        Some(wanted) => Ok(task::put_into_force(Some(&wanted), &args, log)?),
        None => Ok(()),
    }
}

fn check(call: &Call, env: Env<'_>, log: &Log<'_>) -> Result<(), Fault> {
    let args = arguments(call, env)?;
    let Some(wanted) = wanted(call, &args, env, log)? else {
        return Ok(());
    };
    let checked = task::check(Some(&wanted), &args, log)?;
    if checked.lines.is_empty() {
        return Ok(());
    }
    let text = format!("the rules are not in force: {}", checked.lines.join(". "));
    Err(Fault::from(Error::Backend(text)))
}

fn arguments(call: &Call, env: Env<'_>) -> Result<Args, Fault> {
    let netns = value(env, "CNI_NETNS")?;
    Ok(Args {
        backend: call.backend()?,
        lists: call.lists()?,
        netns: netns.map(PathBuf::from),
        ..Args::default()
    })
}

/// Enters the pod's namespace and gathers what the rules depend on; none for a pod that needs no
/// rules.
fn wanted(call: &Call, args: &Args, env: Env<'_>, log: &Log<'_>) -> Result<Option<Wanted>, Fault> {
    let Some(config) = call.annotation(AGENT_CONFIG) else {
        return Ok(None);
    };
    let settings = settings::read_text(config, AGENT_CONFIG)?;
    if settings.ports.iter().all(|port| !port.numeric) {
        return Ok(None);
    }
    let Some(path) = &args.netns else {
        return Err(Fault::variable("CNI_NETNS", ""));
    };
    namespace::enter(path)?;
    let addresses = call.addresses();
    let agent = call.agent_group()?;
    // The pod's facts are those of the call, not of the runtime's environment.
    let facts = |key: &str| -> Option<OsString> {
        match key {
            "POD_IPS" => Some(addresses.clone().into()),
            "AGENT_GID" => agent.clone().map(OsString::from),
            key if key.starts_with("POD_") || key.starts_with("AGENT_") => None,
            key => env(key),
        }
    };
    Ok(wanted::complete(settings, Place::Node, args, &facts, log)?)
}
