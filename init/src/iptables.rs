//! Backend that runs the iptables programs, for kernels without nf_tables and for those who want it.
//!
//! For each family: `iptables-save` to see what is ours, then one `iptables-restore --noflush`,
//! which the kernel takes as a whole or not at all.

pub(crate) mod flavour;
mod program;
mod saved;

pub use flavour::Flavour;
pub use saved::{Document, Saved};

use crate::failure::Failure;
use crate::nft::stale_rules;
use crate::rule::{Family, Rule, by_family};
use program::IptablesProgram;

/// Limit of attempts at a family whose table somebody else changed between our look and our
/// transaction.
const MAX_ATTEMPTS: usize = 3;

/// Puts `rules` into force with this flavour, one family after the other.
///
/// Errors: the program's word on the rule it refused. Earlier families are in force then; the
/// caller takes them away.
pub fn apply(flavour: Flavour, rules: &[Rule]) -> Result<(), Failure> {
    let wanted = by_family(rules);
    for family in Family::ALL {
        let rules = wanted
            .iter()
            .find(|(it, _)| *it == family)
            .map_or(&[][..], |(_, rules)| rules);
        // A family without an address may be one the kernel does not even have.
        if rules.is_empty() {
            remove_family(flavour, family)?;
        } else {
            attempt(flavour, family, rules)?;
        }
    }
    Ok(())
}

fn attempt(flavour: Flavour, family: Family, rules: &[&Rule]) -> Result<(), Failure> {
    let mut failure = None;
    for _ in 0..MAX_ATTEMPTS {
        match transition(flavour, family, rules) {
            Err(Failure::Unusable(why)) => failure = Some(Failure::Unusable(why)),
            done => return done,
        }
    }
    failure.map_or(Ok(()), Err)
}

fn transition(flavour: Flavour, family: Family, rules: &[&Rule]) -> Result<(), Failure> {
    let saved = save(flavour, family)?;
    let mark = match flavour {
        Flavour::Nft => stale_rules::mark(family)
            .map_err(|it| Failure::Unusable(format!("{}: {}", it.what, it.errno)))?,
        Flavour::Legacy => None,
    };
    match saved.transition(rules, mark.as_deref()) {
        Some(document) => restore(flavour, family, &document),
        None => Ok(()),
    }
}

/// Takes what is ours out of this flavour's tables. Says whether there was any.
pub fn remove(flavour: Flavour) -> Result<bool, Failure> {
    let mut any = false;
    for family in Family::ALL {
        any |= remove_family(flavour, family)?;
    }
    Ok(any)
}

fn remove_family(flavour: Flavour, family: Family) -> Result<bool, Failure> {
    match flavour {
        // The kernel tells and takes these without the program, and what the program created with
        // them.
        Flavour::Nft => stale_rules::remove_from(family)
            .map_err(|it| Failure::Unusable(format!("{}: {}", it.what, it.errno))),
        Flavour::Legacy => match (
            legacy_in_use(family),
            IptablesProgram::find(flavour, family, "save"),
        ) {
            // No such table, or none that a program of this image could have filled.
            (Use::No, _) | (_, Err(_)) => Ok(false),
            (in_use, Ok(_)) => match (save(flavour, family), in_use) {
                (Ok(saved), _) => saved.transition(&[], None).map_or(Ok(false), |document| {
                    restore(flavour, family, &document).map(|()| true)
                }),
                (Err(_), Use::Unknown) => Ok(false),
                (Err(failure), _) => Err(failure),
            },
        },
    }
}

/// Compares `rules` with this flavour's tables: a line for each that is missing or not wanted.
pub fn differences(flavour: Flavour, rules: &[Rule]) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let wanted = by_family(rules);
    for family in Family::ALL {
        let rules = wanted
            .iter()
            .find(|(it, _)| *it == family)
            .map_or(&[][..], |(_, rules)| rules);
        let in_use = flavour == Flavour::Nft || legacy_in_use(family) != Use::No;
        let saved = if in_use {
            save(flavour, family)?
        } else {
            Saved::default()
        };
        let differences = saved.differences(rules);
        lines.extend(
            differences
                .into_iter()
                .map(|line| format!("{line} ({family})")),
        );
    }
    Ok(lines)
}

/// Finds the flavour whose tables hold the most rules; the nft flavour when none hold any and the
/// kernel has it.
pub fn detect() -> Flavour {
    let Ok(nft) = stale_rules::rule_count() else {
        return Flavour::Legacy;
    };
    let count = |family| save(Flavour::Legacy, family).map_or(0, |saved| saved.rule_count());
    let legacy: usize = Family::ALL
        .into_iter()
        .filter(|it| legacy_in_use(*it) != Use::No)
        .map(count)
        .sum();
    if legacy > nft {
        Flavour::Legacy
    } else {
        Flavour::Nft
    }
}

/// Presence of a `nat` table of x_tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Yes,
    No,
    /// Known to root only; anybody else has to ask the program.
    Unknown,
}

/// Looking with the program instead would create a table.
fn legacy_in_use(family: Family) -> Use {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    match std::fs::read_to_string(path) {
        Ok(names) if names.lines().any(|name| name == "nat") => Use::Yes,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Use::Unknown,
        _ => Use::No,
    }
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

fn restore(flavour: Flavour, family: Family, document: &Document) -> Result<(), Failure> {
    let program = IptablesProgram::find(flavour, family, "restore")?;
    let answer = program.run(&["--noflush", "--wait"], &document.text())?;
    if answer.ok {
        return Ok(());
    }
    Err(refused(
        &program,
        &answer.complaint,
        family,
        document.line_blamed_by(&answer.complaint),
    ))
}

fn refused(
    program: &IptablesProgram,
    complaint: &str,
    family: Family,
    rule: Option<String>,
) -> Failure {
    let name = program.name();
    let complaint = complaint.split_whitespace().collect::<Vec<_>>().join(" ");
    if [
        "Permission denied",
        "Operation not permitted",
        "must be root",
    ]
    .iter()
    .any(|it| complaint.contains(it))
    {
        return Failure::NotPermitted(format!("{name}: {complaint}"));
    }
    let about = rule
        .map(|rule| format!(" refused rule {rule}"))
        .unwrap_or_default();
    let module = match family {
        Family::V4 => "CONFIG_IP_NF_NAT (module iptable_nat)",
        Family::V6 => "CONFIG_IP6_NF_NAT (module ip6table_nat)",
    };
    Failure::Unusable(format!(
        "{name}{about}: {complaint}: the kernel may lack {module}, CONFIG_NETFILTER_XT_TARGET_REDIRECT (module \
         xt_REDIRECT), CONFIG_NETFILTER_XT_NAT (module xt_nat) or CONFIG_NETFILTER_XT_MATCH_OWNER (module xt_owner)"
    ))
}
