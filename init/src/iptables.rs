//! Backend that runs the iptables programs, for kernels without nf_tables and for those who want
//! it.
//!
//! For each family `iptables-save` shows which rules are ours, then one `iptables-restore
//! --noflush`, which the kernel takes as a whole or not at all, leads to the plan. Our rules are
//! taken away without any program.

mod file_lock;
pub(crate) mod flavour;
mod program;
mod saved;
mod words;

pub use flavour::Flavour;
pub use saved::{Document, Saved};

use crate::failure::Failure;
use crate::log::Log;
use crate::nft::stale_rules;
use crate::permission::{self, Need};
use crate::rule::{Family, Rule, of_family};
use crate::xtables;
use program::IptablesProgram;

/// Limit of attempts at a family whose table somebody else changed between our look and our
/// transaction.
const MAX_ATTEMPTS: usize = 3;

/// True when the image has the programs of this flavour.
pub fn has_programs(flavour: Flavour) -> bool {
    IptablesProgram::find(flavour, Family::V4, "restore").is_ok()
}

/// Puts `rules` into force with this flavour, one family after the other. Says whether anything had
/// to change.
///
/// Errors: the program's word on the rule it refused. Earlier families are in force then; the
/// caller takes them away.
pub fn apply(flavour: Flavour, rules: &[Rule], log: &Log<'_>) -> Result<bool, Failure> {
    permission::check(flavour.need()).map_err(Failure::NotPermitted)?;
    permission::pass_capabilities();
    let mut changed = false;
    for family in Family::ALL {
        let rules = of_family(rules, family);
        // A family without an address may be one the kernel does not even have.
        changed |= if rules.is_empty() {
            remove_family(flavour, family, log)?
        } else {
            attempt(flavour, family, &rules, log)?
        };
    }
    if flavour == Flavour::Nft {
        changed |= stale_rules::remove_original()?;
    }
    Ok(changed)
}

fn attempt(
    flavour: Flavour,
    family: Family,
    rules: &[&Rule],
    log: &Log<'_>,
) -> Result<bool, Failure> {
    let mut failure = None;
    for _ in 0..MAX_ATTEMPTS {
        match transition(flavour, family, rules, log) {
            Err(Failure::Refused(why)) => failure = Some(Failure::Refused(why)),
            done => return done,
        }
    }
    failure.map_or(Ok(false), Err)
}

fn transition(
    flavour: Flavour,
    family: Family,
    rules: &[&Rule],
    log: &Log<'_>,
) -> Result<bool, Failure> {
    let saved = save(flavour, family)?;
    let mark = match flavour {
        Flavour::Nft => stale_rules::mark(family)?,
        Flavour::Legacy => None,
    };
    match saved.transition(rules, mark.as_deref()) {
        Some(document) => restore(flavour, family, &document, log).map(|()| true),
        None => Ok(false),
    }
}

/// Takes what is ours out of this flavour's tables. Says whether there was any.
pub fn remove(flavour: Flavour, log: &Log<'_>) -> Result<bool, Failure> {
    match flavour {
        Flavour::Nft => stale_rules::remove(),
        Flavour::Legacy => {
            let mut any = false;
            for family in Family::ALL {
                any |= remove_family(flavour, family, log)?;
            }
            Ok(any)
        }
    }
}

fn remove_family(flavour: Flavour, family: Family, log: &Log<'_>) -> Result<bool, Failure> {
    match flavour {
        // The kernel tells and takes these without the program, and what the program created with
        // them.
        Flavour::Nft => stale_rules::remove_from(family),
        Flavour::Legacy => {
            if !has_ours(flavour, family)? {
                return Ok(false);
            }
            // A run that a signal ends has no time to wait, and the kernel refuses to replace a
            // table that has grown or shrunk since it was read.
            let _lock = match file_lock::take(log) {
                Err(Failure::Interrupted(_)) => None,
                lock => lock?,
            };
            xtables::remove(family)
        }
    }
}

/// True when this flavour's tables hold a chain or a rule of ours; asked without any program.
fn has_ours(flavour: Flavour, family: Family) -> Result<bool, Failure> {
    match flavour {
        Flavour::Nft => stale_rules::has_ours(family),
        Flavour::Legacy => Ok(xtables::read(family, "nat")?.is_some_and(|table| table.has_ours())),
    }
}

/// Compares `rules` with this flavour's tables: a line for each that is missing or not wanted.
pub fn differences(flavour: Flavour, rules: &[Rule]) -> Result<Vec<String>, Failure> {
    permission::check(Need::NetAdmin).map_err(Failure::NotPermitted)?;
    let mut lines = Vec::new();
    for family in Family::ALL {
        let rules = of_family(rules, family);
        // Looking with the program would create a table of x_tables that is not there, and the
        // image may not have it.
        let saved = if has_ours(flavour, family)? {
            permission::check(flavour.need()).map_err(Failure::NotPermitted)?;
            permission::pass_capabilities();
            save(flavour, family)?
        } else {
            Saved::default()
        };
        let mut differences = saved.differences(&rules);
        if differences.is_empty() && !rules.is_empty() {
            differences = saved.in_front();
        }
        let named = differences
            .into_iter()
            .map(|line| format!("{line} ({family})"));
        lines.extend(named);
    }
    Ok(lines)
}

fn save(flavour: Flavour, family: Family) -> Result<Saved, Failure> {
    let program = IptablesProgram::find(flavour, family, "save")?;
    let answer = program.run(&["-t", "nat"], "")?;
    if answer.ok {
        Ok(Saved::parse(&answer.output))
    } else {
        Err(refused(&program, &answer.complaint, family, None))
    }
}

fn restore(
    flavour: Flavour,
    family: Family,
    document: &Document,
    log: &Log<'_>,
) -> Result<(), Failure> {
    let program = IptablesProgram::find(flavour, family, "restore")?;
    if flavour == Flavour::Legacy {
        // The program would wait for the same lock without a word.
        drop(file_lock::take(log)?);
    }
    let wait = format!("--wait={}", file_lock::LOCK_TIMEOUT.as_secs());
    let answer = program.run(&["--noflush", &wait], &document.text())?;
    if answer.ok {
        return Ok(());
    }
    let rule = document.line_blamed_by(&answer.complaint);
    Err(refused(&program, &answer.complaint, family, rule))
}

fn refused(
    program: &IptablesProgram,
    complaint: &str,
    family: Family,
    rule: Option<String>,
) -> Failure {
    // A right may have been taken away meanwhile.
    if let Err(denied) = permission::check(program.flavour().need()) {
        return Failure::NotPermitted(denied);
    }
    let name = program.name();
    let complaint = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    let about = rule
        .map(|rule| format!(" refused rule {rule}"))
        .unwrap_or_default();
    let module = match family {
        Family::V4 => "CONFIG_IP_NF_NAT (module iptable_nat)",
        Family::V6 => "CONFIG_IP6_NF_NAT (module ip6table_nat)",
    };
    Failure::Refused(format!(
        "{name}{about}: {complaint}: the kernel may lack {module}, \
         CONFIG_NETFILTER_XT_TARGET_REDIRECT (module xt_REDIRECT), CONFIG_NETFILTER_XT_NAT (module \
         xt_nat) or CONFIG_NETFILTER_XT_MATCH_OWNER (module xt_owner)"
    ))
}
