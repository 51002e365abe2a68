//! Putting rules into force, taking them away, and comparing them with what is in force.
//!
//! A run that fails leaves no rule of ours behind, and one that succeeds leaves ours in one place
//! only. What could not be looked at is an error: nothing is reported that was not seen.

use crate::args::BackendChoice;
use crate::choice::{Backend, candidates};
use crate::error::{Error, REMEDIES};
use crate::failure::Failure;
use crate::iptables::{self, Flavour};
use crate::log::Log;
use crate::nft::{self, others};
use crate::permission::{self, Need};
use crate::plan::Lacks;
use crate::rule::{Family, Rule};
use crate::{lock, signals, xtables};

/// Plan as a function of what the kernel lacks.
pub type Planned<'a> = &'a dyn Fn(Lacks) -> Vec<Rule>;

/// Rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Name of the backend.
    pub backend: &'static str,
    /// True when they were not in force before.
    pub changed: bool,
    /// Tests that the kernel lacks.
    pub lacks: Lacks,
}

impl Backend {
    fn apply(self, rules: &[Rule], log: &Log<'_>) -> Result<bool, Failure> {
        match self {
            Self::Nft => nft::apply(rules),
            Self::Iptables(flavour) => iptables::apply(flavour, rules, log),
        }
    }

    /// Takes our rules away. Says whether there were any.
    fn remove(self, log: &Log<'_>) -> Result<bool, Failure> {
        let removed = match self {
            Self::Nft => nft::remove(),
            Self::Iptables(flavour) => iptables::remove(flavour, log),
        };
        match removed {
            // A backend that the kernel does not have holds nothing.
            Err(Failure::Absent(_)) => Ok(false),
            removed => removed,
        }
    }

    fn differences(self, rules: &[Rule]) -> Result<Vec<String>, Failure> {
        match self {
            Self::Nft => nft::differences(rules),
            Self::Iptables(flavour) => iptables::differences(flavour, rules),
        }
    }
}

/// Puts the planned rules into force.
///
/// Errors: not permitted, or no backend took the rules; none of ours is in force then, or the error
/// says which may be.
pub fn apply(planned: Planned<'_>, choice: BackendChoice, log: &Log<'_>) -> Result<Applied, Error> {
    let _lock = lock(log)?;
    let done = first_that_works(planned, choice, log).and_then(|(backend, applied)| {
        // A signal that came meanwhile has nothing left to stop but a second family.
        signals::received().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))?;
        let others = Backend::ALL.into_iter().filter(|other| *other != backend);
        let mut changed = applied.changed;
        for other in others {
            changed |= other.remove(log).map_err(|failure| left(other, failure))?;
        }
        Ok(Applied { changed, ..applied })
    });
    done.map_err(|error| match clear(log) {
        Some(left) => error.and(&left),
        None => error,
    })
}

fn lock(log: &Log<'_>) -> Result<lock::Lock, Error> {
    // Capabilities that are merely permitted are made effective.
    let _ = permission::check(Need::NetAdmin);
    Ok(lock::take(log)?)
}

fn first_that_works(
    planned: Planned<'_>,
    choice: BackendChoice,
    log: &Log<'_>,
) -> Result<(Backend, Applied), Error> {
    let (mut backends, line) = candidates(choice)?;
    line.iter().for_each(|line| log.info(line));
    let mut answers = Vec::new();
    let mut at = 0;
    while let Some(backend) = backends.get(at).copied() {
        match with_what_the_kernel_has(backend, planned, log) {
            Ok(applied) => return Ok((backend, applied)),
            Err(failure @ (Failure::NotPermitted(_) | Failure::Interrupted(_))) => {
                return Err(failure.into());
            }
            Err(failure) => answers.push(format!("{}: {}", backend.word(), failure.text())),
        }
        at += 1;
        if choice == BackendChoice::Auto && at == 1 {
            let (iptables, line) = candidates(BackendChoice::Iptables)?;
            line.iter().for_each(|line| log.info(line));
            backends.extend(iptables.into_iter().filter(|it| *it != Backend::Nft));
        }
    }
    Err(Error::Backend(format!(
        "the rules could not be programmed. {}. If the node cannot be helped, {REMEDIES}",
        answers.join(". ")
    )))
}

/// Combinations of tests to leave out, from none to all.
const LACKS: [Lacks; 4] = [
    Lacks {
        local: false,
        claimed: false,
    },
    Lacks {
        local: false,
        claimed: true,
    },
    Lacks {
        local: true,
        claimed: false,
    },
    Lacks {
        local: true,
        claimed: true,
    },
];

/// Applies the rules, without the tests that this kernel lacks if need be.
///
/// Errors: the first refusal; and a mesh in TPROXY mode, beside which one of the tests is needed.
fn with_what_the_kernel_has(
    backend: Backend,
    planned: Planned<'_>,
    log: &Log<'_>,
) -> Result<Applied, Failure> {
    let mut first = None;
    for lacks in LACKS {
        match backend.apply(&planned(lacks), log) {
            Ok(changed) => {
                if lacks.claimed && has_transparent_proxy()? {
                    let refusal = first.map(|it: Failure| it.text()).unwrap_or_default();
                    return Err(Failure::Refused(format!(
                        "a mesh in TPROXY mode takes the pod's callers, and the rules cannot leave \
                         them to it: {refusal}. Give the node that module, or set the mesh to mode \
                         REDIRECT"
                    )));
                }
                return Ok(Applied {
                    backend: backend.word(),
                    changed,
                    lacks,
                });
            }
            Err(refusal @ Failure::Refused(_)) if signals::received().is_none() => {
                first = first.or(Some(refusal));
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(first.unwrap_or_else(|| Failure::Refused("the kernel refused the rules".to_owned())))
}

fn has_transparent_proxy() -> Result<bool, Failure> {
    if others::read()?.has_transparent_proxy {
        return Ok(true);
    }
    for family in Family::ALL {
        let table = xtables::read(family, "mangle")?;
        if table.is_some_and(|table| table.has_target("TPROXY")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Compares the planned rules with what is in force: a line for each difference, none when all is
/// well; and the backend looked at.
pub fn differences(
    planned: Planned<'_>,
    choice: BackendChoice,
    log: &Log<'_>,
) -> Result<(Vec<String>, Backend), Error> {
    let _lock = lock(log)?;
    let backends = match choice {
        BackendChoice::Auto => Backend::ALL.to_vec(),
        BackendChoice::Nft => vec![Backend::Nft],
        BackendChoice::Iptables => Backend::ALL[1..].to_vec(),
        BackendChoice::IptablesNft => vec![Backend::Iptables(Flavour::Nft)],
        BackendChoice::IptablesLegacy => vec![Backend::Iptables(Flavour::Legacy)],
    };
    let mut nearest: Option<(Vec<String>, Backend)> = None;
    let mut answers = Vec::new();
    for backend in backends {
        match nearest_plan(backend, planned) {
            // The others cannot be nearer, and their programs may be missing.
            Ok(lines) if lines.is_empty() => return Ok((lines, backend)),
            Ok(lines) => {
                if nearest
                    .as_ref()
                    .is_none_or(|(best, _)| lines.len() < best.len())
                {
                    nearest = Some((lines, backend));
                }
            }
            Err(Failure::Absent(why)) => answers.push(format!("{}: {why}", backend.word())),
            Err(failure) => return Err(failure.into()),
        }
    }
    nearest.ok_or_else(|| Error::Backend(answers.join(". ")))
}

/// Differences from the plan for a kernel that has all tests, or from that for one that lacks some.
fn nearest_plan(backend: Backend, planned: Planned<'_>) -> Result<Vec<String>, Failure> {
    let first = backend.differences(&planned(Lacks::default()))?;
    if first.is_empty() {
        return Ok(first);
    }
    for lacks in &LACKS[1..] {
        if backend.differences(&planned(*lacks))?.is_empty() {
            return Ok(Vec::new());
        }
    }
    Ok(first)
}

/// Takes every rule of ours away, whichever backend it came by, and says from where.
pub fn remove(log: &Log<'_>) -> Result<Vec<&'static str>, Error> {
    let _lock = lock(log)?;
    let mut from = Vec::new();
    let mut first = None;
    for backend in Backend::ALL {
        match backend.remove(log) {
            Ok(true) => from.push(backend.word()),
            Ok(false) => {}
            // The others are taken away all the same.
            Err(failure) => {
                first.get_or_insert((backend, failure));
            }
        }
    }
    match first {
        None => Ok(from),
        Some((backend, failure)) => Err(left(backend, failure)),
    }
}

/// Removes our rules after a failure elsewhere, as far as that can be had, and says what may be
/// left.
pub fn remove_quietly(log: &Log<'_>) -> Option<String> {
    // Without the lock another run would lose what it is about to put into force.
    let _lock = lock(log);
    clear(log)
}

/// Removes our rules, and says what may have stayed all the same.
fn clear(log: &Log<'_>) -> Option<String> {
    let left = Backend::ALL.into_iter().filter_map(|backend| {
        match backend.remove(log).err()? {
            // The error that led here says so already.
            Failure::NotPermitted(_) => None,
            failure => Some(left(backend, failure).to_string()),
        }
    });
    left.reduce(|all, one| format!("{all}. {one}"))
}

/// Error of a removal that failed.
fn left(backend: Backend, failure: Failure) -> Error {
    let text = format!(
        "rules of an earlier run may be left in {}: {}",
        backend.word(),
        failure.text()
    );
    match failure {
        Failure::NotPermitted(_) | Failure::Interrupted(_) => failure.into(),
        Failure::Absent(_) | Failure::Refused(_) | Failure::Busy(_) => Error::Backend(text),
        Failure::Unanswered(_) => Error::Unanswered(text),
    }
}
