//! Rules into force, out of force, or compared with what is in force: by the backend asked for, or
//! by the first one that this kernel and image have.
//!
//! Whatever ends badly leaves no rule of ours behind, and whatever ends well leaves ours in one
//! place only.

use rustix::io::Errno;

use crate::args::Backend;
use crate::error::Error;
use crate::iptables::{self, Flavour};
use crate::nft::{self, leftovers};
use crate::rule::{Family, Rule};
use crate::{lock, permission};

/// What remains to those whose nodes cannot redirect.
pub const WAYS_OUT: &str = "there are two ways out: give the Service a named target port, which needs no redirect, or \
                            inject the agent without the init container";

/// A way to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Nft,
    Iptables(Flavour),
}

impl Means {
    fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
        }
    }

    fn apply(self, rules: &[Rule]) -> Result<(), iptables::Failure> {
        match self {
            Self::Nft => nft::apply(rules).map_err(explained),
            Self::Iptables(flavour) => {
                permitted()?;
                permission::hand_down();
                iptables::apply(flavour, rules)
            }
        }
    }

    /// Takes our rules away. Says whether there were any.
    fn remove(self) -> Result<bool, iptables::Failure> {
        match self {
            Self::Nft => nft::remove().map_err(explained),
            Self::Iptables(Flavour::Legacy) => {
                permitted()?;
                permission::hand_down();
                iptables::remove(Flavour::Legacy)
            }
            Self::Iptables(Flavour::Nft) => Family::ALL
                .into_iter()
                .try_fold(false, |any, family| {
                    Ok(leftovers::remove_from(family)? | any)
                })
                .map_err(explained),
        }
    }

    fn differences(self, rules: &[Rule]) -> Result<Vec<String>, iptables::Failure> {
        match self {
            Self::Nft => nft::differences(rules).map_err(explained),
            Self::Iptables(flavour) => {
                permitted()?;
                permission::hand_down();
                iptables::differences(flavour, rules)
            }
        }
    }
}

const ALL: [Means; 3] = [
    Means::Nft,
    Means::Iptables(Flavour::Nft),
    Means::Iptables(Flavour::Legacy),
];

fn permitted() -> Result<(), iptables::Failure> {
    if permission::may_program() {
        Ok(())
    } else {
        Err(iptables::Failure::NotPermitted("no NET_ADMIN".to_owned()))
    }
}

/// nf_tables' refusal in words: the rule, the kernel's answer, and what the kernel lacks when the
/// answer suggests it.
fn explained(failure: nft::Failure) -> iptables::Failure {
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
        (Errno::PERM | Errno::ACCESS, _) if !failure.specific => {
            iptables::Failure::NotPermitted(text)
        }
        (errno, Some(option)) if absent.contains(&errno) => {
            iptables::Failure::Unusable(format!("{text}: it may lack {option}"))
        }
        _ => iptables::Failure::Unusable(text),
    }
}

/// The ways to try, in order.
fn candidates(backend: Backend) -> Vec<Means> {
    let iptables = || match iptables::detect() {
        Flavour::Nft => [
            Means::Iptables(Flavour::Nft),
            Means::Iptables(Flavour::Legacy),
        ],
        Flavour::Legacy => [
            Means::Iptables(Flavour::Legacy),
            Means::Iptables(Flavour::Nft),
        ],
    };
    match backend {
        Backend::Auto => vec![Means::Nft],
        Backend::Nft => vec![Means::Nft],
        Backend::Iptables => iptables().to_vec(),
        Backend::IptablesNft => vec![Means::Iptables(Flavour::Nft)],
        Backend::IptablesLegacy => vec![Means::Iptables(Flavour::Legacy)],
    }
}

/// Puts `rules` into force and says by which backend.
///
/// Errors: not permitted, or no backend took the rules; none of ours is in force then.
pub fn apply(rules: &[Rule], backend: Backend) -> Result<&'static str, Error> {
    permission::may_program();
    let _lock = lock()?;
    let done = first_that_works(rules, backend).and_then(|means| {
        for other in ALL.into_iter().filter(|other| *other != means) {
            match other.remove() {
                Err(failure @ iptables::Failure::NotPermitted(_)) => {
                    return Err(not_permitted(failure));
                }
                // A backend that the kernel does not have holds nothing.
                Ok(_) | Err(iptables::Failure::Unusable(_)) => {}
            }
        }
        Ok(means.word())
    });
    done.map_err(|error| match (error, clear()) {
        (Error::Backend(text), Some(left)) => Error::Backend(format!("{text}. {left}")),
        (error, _) => error,
    })
}

fn first_that_works(rules: &[Rule], backend: Backend) -> Result<Means, Error> {
    let mut candidates = candidates(backend);
    let mut answers = Vec::new();
    let mut at = 0;
    while let Some(means) = candidates.get(at).copied() {
        match means.apply(rules) {
            Ok(()) => return Ok(means),
            Err(failure @ iptables::Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(iptables::Failure::Unusable(why)) => {
                answers.push(format!("{}: {why}", means.word()))
            }
        }
        at += 1;
        if backend == Backend::Auto && at == 1 {
            candidates.extend(self::candidates(Backend::Iptables));
        }
    }
    Err(Error::Backend(format!(
        "the rules could not be programmed. {}. If the node cannot be helped, {WAYS_OUT}",
        answers.join(". ")
    )))
}

/// What of `rules` is not in force: a line for each difference, none when all is well; and the
/// backend looked at.
pub fn differences(rules: &[Rule], backend: Backend) -> Result<(Vec<String>, &'static str), Error> {
    permission::may_program();
    let candidates = if backend == Backend::Auto {
        ALL.to_vec()
    } else {
        candidates(backend)
    };
    let mut nearest: Option<(Vec<String>, &'static str)> = None;
    let mut answers = Vec::new();
    for means in candidates {
        match means.differences(rules) {
            Ok(lines)
                if nearest
                    .as_ref()
                    .is_none_or(|(best, _)| lines.len() < best.len()) =>
            {
                nearest = Some((lines, means.word()));
            }
            Ok(_) => {}
            Err(failure @ iptables::Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(iptables::Failure::Unusable(why)) => {
                answers.push(format!("{}: {why}", means.word()))
            }
        }
    }
    nearest.ok_or_else(|| Error::Backend(answers.join(". ")))
}

/// Takes every rule of ours away, whichever backend it came by, and says from where.
pub fn remove() -> Result<Vec<&'static str>, Error> {
    permission::may_program();
    let _lock = lock()?;
    let mut from = Vec::new();
    for means in ALL {
        match means.remove() {
            Ok(true) => from.push(means.word()),
            Ok(false) => {}
            Err(failure @ iptables::Failure::NotPermitted(_)) => {
                return Err(not_permitted(failure));
            }
            Err(failure) => {
                left_behind(means, &failure).map_or(Ok(()), |left| Err(Error::Backend(left)))?
            }
        }
    }
    Ok(from)
}

/// After a failure elsewhere: nothing of ours stays, as far as that can be had.
pub fn give_up() {
    // Without the lock another run would lose what it is about to put into force.
    let _lock = lock();
    clear();
}

/// Nothing of ours stays. Says what may have stayed all the same.
fn clear() -> Option<String> {
    let left = ALL
        .into_iter()
        .filter_map(|means| left_behind(means, &means.remove().err()?));
    left.reduce(|all, one| format!("{all}. {one}"))
}

/// What a removal that failed leaves. A kernel without nf_tables holds nothing in it; tables of
/// x_tables that are there and cannot be read may hold rules of an earlier run.
fn left_behind(means: Means, failure: &iptables::Failure) -> Option<String> {
    match (means, failure) {
        (Means::Iptables(Flavour::Legacy), iptables::Failure::Unusable(why)) => Some(format!(
            "Rules of an earlier run may be left in {}: {why}",
            means.word()
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

fn not_permitted(failure: iptables::Failure) -> Error {
    let (iptables::Failure::NotPermitted(answer) | iptables::Failure::Unusable(answer)) = failure;
    let mut text = format!("{answer}. {}", permission::explanation());
    if answer.contains("legacy") {
        text += ". The legacy programs of iptables also need NET_RAW when they do not run as root";
    }
    Error::NotPermitted(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(errno: Errno, specific: bool) -> iptables::Failure {
        let what = "rule ip TEL_PREROUTING_TCP: tcp dport 8080 redirect to :9900".to_owned();
        explained(nft::Failure {
            what,
            errno,
            option: Some("CONFIG_NFT_REDIR (module nft_redir)"),
            specific,
        })
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_the_rule_and_its_answer() {
        let iptables::Failure::Unusable(text) = failure(Errno::NOENT, true) else {
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
        let iptables::Failure::Unusable(text) = failure(Errno::BUSY, true) else {
            panic!("it is about the kernel")
        };
        assert!(!text.contains("CONFIG"), "{text}");
    }

    #[test]
    fn a_missing_right_is_told_from_an_object_that_refuses() {
        assert!(matches!(
            failure(Errno::PERM, false),
            iptables::Failure::NotPermitted(_)
        ));
        assert!(matches!(
            failure(Errno::PERM, true),
            iptables::Failure::Unusable(_)
        ));
    }
}
