//! Putting rules into force, taking them away, and comparing them with what is in force: by the
//! backend asked for, or by the first one that this kernel and image have.
//!
//! A run that fails leaves no rule of ours behind, and one that succeeds leaves ours in one place
//! only.

use rustix::io::Errno;

use crate::args::BackendChoice;
use crate::error::{Error, REMEDIES};
use crate::failure::Failure;
use crate::iptables::{self, Flavour};
use crate::nft::{self, stale_rules};
use crate::rule::{Family, Rule};
use crate::{lock, permission};

/// Way to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Nft,
    Iptables(Flavour),
}

impl Backend {
    fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
        }
    }

    fn apply(self, rules: &[Rule]) -> Result<(), Failure> {
        match self {
            Self::Nft => nft::apply(rules).map_err(explained),
            Self::Iptables(flavour) => {
                permitted()?;
                permission::pass_capabilities();
                iptables::apply(flavour, rules)
            }
        }
    }

    /// Takes our rules away. Says whether there were any.
    fn remove(self) -> Result<bool, Failure> {
        match self {
            Self::Nft => nft::remove().map_err(explained),
            Self::Iptables(Flavour::Legacy) => {
                permitted()?;
                permission::pass_capabilities();
                iptables::remove(Flavour::Legacy)
            }
            Self::Iptables(Flavour::Nft) => Family::ALL
                .into_iter()
                .try_fold(false, |any, family| {
                    Ok(stale_rules::remove_from(family)? | any)
                })
                .map_err(explained),
        }
    }

    fn differences(self, rules: &[Rule]) -> Result<Vec<String>, Failure> {
        match self {
            Self::Nft => nft::differences(rules).map_err(explained),
            Self::Iptables(flavour) => {
                permitted()?;
                permission::pass_capabilities();
                iptables::differences(flavour, rules)
            }
        }
    }
}

const ALL: [Backend; 3] = [
    Backend::Nft,
    Backend::Iptables(Flavour::Nft),
    Backend::Iptables(Flavour::Legacy),
];

fn permitted() -> Result<(), Failure> {
    if permission::may_program() {
        Ok(())
    } else {
        Err(Failure::NotPermitted("no NET_ADMIN".to_owned()))
    }
}

/// Puts nf_tables' refusal into words: the rule, the kernel's answer, and what the kernel lacks when the
/// answer suggests it.
fn explained(failure: nft::Refused) -> Failure {
    let text = format!("the kernel refused {}: {}", failure.what, failure.errno);
    let absent = [
        Errno::NOENT,
        Errno::OPNOTSUPP,
        Errno::AFNOSUPPORT,
        Errno::PROTONOSUPPORT,
        Errno::INVAL,
    ];
    match (failure.errno, failure.option) {
        // The right to program is asked for once, at the door; later it is about the object.
        (Errno::PERM | Errno::ACCESS, _) if !failure.specific => Failure::NotPermitted(text),
        (errno, Some(option)) if absent.contains(&errno) => {
            Failure::Unusable(format!("{text}: it may lack {option}"))
        }
        _ => Failure::Unusable(text),
    }
}

/// Lists the backends to try, in order.
fn candidates(choice: BackendChoice) -> Vec<Backend> {
    let iptables = || match iptables::detect() {
        Flavour::Nft => [
            Backend::Iptables(Flavour::Nft),
            Backend::Iptables(Flavour::Legacy),
        ],
        Flavour::Legacy => [
            Backend::Iptables(Flavour::Legacy),
            Backend::Iptables(Flavour::Nft),
        ],
    };
    match choice {
        BackendChoice::Auto => vec![Backend::Nft],
        BackendChoice::Nft => vec![Backend::Nft],
        BackendChoice::Iptables => iptables().to_vec(),
        BackendChoice::IptablesNft => vec![Backend::Iptables(Flavour::Nft)],
        BackendChoice::IptablesLegacy => vec![Backend::Iptables(Flavour::Legacy)],
    }
}

/// Puts `rules` into force and says by which backend.
///
/// Errors: not permitted, or no backend took the rules; none of ours is in force then.
pub fn apply(rules: &[Rule], choice: BackendChoice) -> Result<&'static str, Error> {
    permission::may_program();
    let _lock = lock()?;
    let done = first_that_works(rules, choice).and_then(|backend| {
        for other in ALL.into_iter().filter(|other| *other != backend) {
            match other.remove() {
                Err(failure @ Failure::NotPermitted(_)) => {
                    return Err(not_permitted(failure));
                }
                // A backend that the kernel does not have holds nothing.
                Ok(_) | Err(Failure::Unusable(_)) => {}
            }
        }
        Ok(backend.word())
    });
    done.map_err(|error| match (error, clear()) {
        (Error::Backend(text), Some(left)) => Error::Backend(format!("{text}. {left}")),
        (error, _) => error,
    })
}

fn first_that_works(rules: &[Rule], choice: BackendChoice) -> Result<Backend, Error> {
    let mut candidates = candidates(choice);
    let mut answers = Vec::new();
    let mut at = 0;
    while let Some(backend) = candidates.get(at).copied() {
        match backend.apply(rules) {
            Ok(()) => return Ok(backend),
            Err(failure @ Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(Failure::Unusable(why)) => answers.push(format!("{}: {why}", backend.word())),
        }
        at += 1;
        if choice == BackendChoice::Auto && at == 1 {
            candidates.extend(self::candidates(BackendChoice::Iptables));
        }
    }
    Err(Error::Backend(format!(
        "the rules could not be programmed. {}. If the node cannot be helped, {REMEDIES}",
        answers.join(". ")
    )))
}

/// Compares `rules` with what is in force: a line for each difference, none when all is well; and
/// the backend looked at.
pub fn differences(
    rules: &[Rule],
    choice: BackendChoice,
) -> Result<(Vec<String>, &'static str), Error> {
    permission::may_program();
    let candidates = if choice == BackendChoice::Auto {
        ALL.to_vec()
    } else {
        candidates(choice)
    };
    let mut nearest: Option<(Vec<String>, &'static str)> = None;
    let mut answers = Vec::new();
    for backend in candidates {
        match backend.differences(rules) {
            Ok(lines)
                if nearest
                    .as_ref()
                    .is_none_or(|(best, _)| lines.len() < best.len()) =>
            {
                nearest = Some((lines, backend.word()));
            }
            Ok(_) => {}
            Err(failure @ Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(Failure::Unusable(why)) => answers.push(format!("{}: {why}", backend.word())),
        }
    }
    nearest.ok_or_else(|| Error::Backend(answers.join(". ")))
}

/// Takes every rule of ours away, whichever backend it came by, and says from where.
pub fn remove() -> Result<Vec<&'static str>, Error> {
    permission::may_program();
    let _lock = lock()?;
    let mut from = Vec::new();
    for backend in ALL {
        match backend.remove() {
            Ok(true) => from.push(backend.word()),
            Ok(false) => {}
            Err(failure @ Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(failure) => {
                left_behind(backend, &failure).map_or(Ok(()), |left| Err(Error::Backend(left)))?
            }
        }
    }
    Ok(from)
}

/// Removes our rules after a failure elsewhere, as far as that can be had.
pub fn remove_quietly() {
    // Without the lock another run would lose what it is about to put into force.
    let _lock = lock();
    clear();
}

/// Removes our rules, and says what may have stayed all the same.
fn clear() -> Option<String> {
    let left = ALL
        .into_iter()
        .filter_map(|backend| left_behind(backend, &backend.remove().err()?));
    left.reduce(|all, one| format!("{all}. {one}"))
}

/// Describes what a removal that failed leaves. A kernel without nf_tables holds nothing in it; tables of
/// x_tables that are there and cannot be read may hold rules of an earlier run.
fn left_behind(backend: Backend, failure: &Failure) -> Option<String> {
    match (backend, failure) {
        (Backend::Iptables(Flavour::Legacy), Failure::Unusable(why)) => Some(format!(
            "Rules of an earlier run may be left in {}: {why}",
            backend.word()
        )),
        _ => None,
    }
}

fn lock() -> Result<lock::Lock, Error> {
    lock::take().map_err(|lock::Busy| {
        Error::Backend(
            "another agent-init has been programming rules in this pod for a minute; see what it waits for, or end it"
                .to_owned(),
        )
    })
}

fn not_permitted(failure: Failure) -> Error {
    let (Failure::NotPermitted(answer) | Failure::Unusable(answer)) = failure;
    let mut text = format!("{answer}. {}", permission::explanation());
    if answer.contains("legacy") {
        text += ". The legacy programs of iptables also need NET_RAW when they do not run as root";
    }
    Error::NotPermitted(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: Errno, specific: bool) -> Failure {
        let what = "rule ip TEL_PREROUTING_TCP: tcp dport 8080 redirect to :9900".to_owned();
        explained(nft::Refused {
            what,
            errno,
            option: Some("CONFIG_NFT_REDIR (module nft_redir)"),
            specific,
        })
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_the_rule_and_its_answer() {
        let Failure::Unusable(text) = failure(Errno::NOENT, true) else {
            panic!("it is about the kernel")
        };
        for words in [
            "tcp dport 8080 redirect to :9900",
            "No such file",
            "CONFIG_NFT_REDIR",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        // An answer that says nothing about options makes no guess at one.
        let Failure::Unusable(text) = failure(Errno::BUSY, true) else {
            panic!("it is about the kernel")
        };
        assert!(!text.contains("CONFIG"), "{text}");
    }

    #[test]
    fn a_missing_right_is_told_from_an_object_that_refuses() {
        assert!(matches!(
            failure(Errno::PERM, false),
            Failure::NotPermitted(_)
        ));
        assert!(matches!(failure(Errno::PERM, true), Failure::Unusable(_)));
    }
}
