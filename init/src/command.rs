//! Run of the program, from the command line to the exit code.

use std::ffi::OsString;
use std::io::{Read, Write};

use traffic_proto::build_info;
use traffic_proto::log_level::LogLevel;

use crate::apply;
use crate::args::{self, Args, Form, Mode};
use crate::cni::install::Install;
use crate::env::Env;
use crate::error::Error;
use crate::log::Log;
use crate::task::{self, Checked};
use crate::wanted::{self, Wanted};
use crate::{cni, namespace, render};

/// Runs the command line `words` and gives the exit code: 0, 1 when `--check` found a difference,
/// or an [`Error::exit_code`]. Results go to `out`, the log to `log`, one line each. Called as a
/// CNI plugin, without words, it takes its task from the environment and from `input`.
pub fn run(
    words: impl IntoIterator<Item = OsString>,
    env: Env<'_>,
    input: &mut dyn Read,
    out: &mut dyn Write,
    log: &mut dyn Write,
) -> u8 {
    let log = Log::new(log);
    let words: Vec<OsString> = words.into_iter().collect();
    if words.is_empty() && cni::is_called(env) {
        return cni::run(env, input, out, &log);
    }
    let done = log.obey(env).and_then(|()| match installation(&words)? {
        Some(words) => install(words, out, &log),
        None => dispatch(&args::parse(words.iter().cloned())?, env, out, &log),
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            for line in error.to_string().lines() {
                log.line(LogLevel::Error, line);
            }
            error.exit_code()
        }
    }
}

/// Words behind the name of the installation, when they begin with it.
fn installation(words: &[OsString]) -> Result<Option<Vec<String>>, Error> {
    let role = usize::from(words.first().is_some_and(|word| word == "agent-init"));
    match words.get(role) {
        Some(word) if word == "cni-install" => args::texts(&words[role + 1..]).map(Some),
        _ => Ok(None),
    }
}

fn install(words: Vec<String>, out: &mut dyn Write, log: &Log<'_>) -> Result<u8, Error> {
    match Install::parse(&words)? {
        Some(install) => install.run(log),
        None => print(out, Install::help()),
    }
}

fn dispatch(args: &Args, env: Env<'_>, out: &mut dyn Write, log: &Log<'_>) -> Result<u8, Error> {
    if let (Some(path), Mode::Apply | Mode::Check | Mode::Remove) = (&args.netns, args.mode) {
        namespace::enter(path)?;
    }
    match args.mode {
        Mode::Help => print(out, args::HELP),
        Mode::Version => print(out, &format!("agent-init {}\n", build_info::LONG)),
        Mode::Remove => remove(log),
        Mode::DryRun(form) => match wanted::gather(args, env, log)? {
            Some(wanted) => dry_run(&wanted, form, out),
            None => print(out, render::nothing(form == Form::Json)),
        },
        Mode::Check => check(args, env, out, log),
        Mode::Apply => put_into_force(args, env, log).map_err(|error| match &error {
            // A failed run must not leave what an earlier one did: nobody would know which rules
            // hold.
            Error::Config(_) => match apply::remove_quietly(log) {
                Some(left) => error.and(&left),
                None => error,
            },
            _ => error,
        }),
    }
}

fn remove(log: &Log<'_>) -> Result<u8, Error> {
    let from = apply::remove(log)?;
    log.info(&match from.as_slice() {
        [] => "there was no rule of ours".to_owned(),
        from => format!("took our rules away ({})", from.join(", ")),
    });
    Ok(0)
}

fn dry_run(wanted: &Wanted, form: Form, out: &mut dyn Write) -> Result<u8, Error> {
    let rules = wanted.rules(Default::default());
    let text = match form {
        Form::Iptables => render::iptables_text(&rules),
        Form::Nft => render::nft_text(&rules),
        Form::Json => render::json_text(&rules, &wanted.pod),
    };
    print(out, &text)
}

fn check(args: &Args, env: Env<'_>, out: &mut dyn Write, log: &Log<'_>) -> Result<u8, Error> {
    let wanted = wanted::gather(args, env, log)?;
    let Checked { lines, words } = task::check(wanted.as_ref(), args, log)?;
    for line in &lines {
        print(out, &format!("{line}\n"))?;
    }
    match lines.len() {
        0 => print(out, &format!("in force ({words})\n")),
        _ => print(out, &format!("not in force ({words})\n")).map(|_| 1),
    }
}

fn put_into_force(args: &Args, env: Env<'_>, log: &Log<'_>) -> Result<u8, Error> {
    let wanted = wanted::gather(args, env, log)?;
    task::put_into_force(wanted.as_ref(), args, log)?;
    Ok(0)
}

fn print(out: &mut dyn Write, text: &str) -> Result<u8, Error> {
    // A reader that closed our output does not want it.
    let _ = out.write_all(text.as_bytes());
    Ok(0)
}
