//! Choice of the backend: the first that the kernel and the image have and that gives the right
//! order beside a mesh.
//!
//! A mesh's rules are in one of three places: tables of nf_tables of its own, the tables of the nft
//! flavour of iptables, or those of the legacy flavour. Within one table the order is that of the
//! rules. Between tables it is by priority, which the `nft` backend chooses, while iptables'
//! flavours have one and the same: rules of the other flavour are met in the wrong order.

use crate::args::BackendChoice;
use crate::failure::Failure;
use crate::iptables::{self, Flavour};
use crate::nft::others::{self, Others};
use crate::rule::Family;
use crate::xtables;

/// Way to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Netlink, without a program.
    Nft,
    /// Programs of this flavour.
    Iptables(Flavour),
}

impl Backend {
    /// Backends in the order in which they are asked.
    pub const ALL: [Self; 3] = [
        Self::Nft,
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
    ];

    /// Name on the command line and in messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables(Flavour::Nft) => "iptables-nft",
            Self::Iptables(Flavour::Legacy) => "iptables-legacy",
        }
    }
}

/// Rules of others that translate addresses, by place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Chain in a table of nf_tables that iptables does not know.
    pub native: Option<String>,
    /// Chain in a table of the nft flavour of iptables.
    pub nft: Option<String>,
    /// Number of rules in the tables of the legacy flavour.
    pub legacy: usize,
}

impl Neighbours {
    /// Reads them from the kernel.
    pub fn read() -> Result<Self, Failure> {
        let Others { chains, .. } = others::read()?;
        let chain = |of_iptables: bool| {
            let chain = chains.iter().find(|it| it.of_iptables == of_iptables);
            chain.map(|it| it.name.clone())
        };
        let mut legacy = 0;
        for family in Family::ALL {
            let table = xtables::read(family, "nat")?;
            legacy += table.map_or(0, |table| table.foreign_rules());
        }
        Ok(Self {
            native: chain(false),
            nft: chain(true),
            legacy,
        })
    }

    /// Describes the rules that a flavour of iptables would be in the wrong order with.
    fn in_the_way_of(&self, flavour: Flavour) -> Option<String> {
        let nft = |chain: &String| format!("chain {chain} of nf_tables");
        let other = match flavour {
            Flavour::Nft => {
                (self.legacy > 0).then(|| format!("{} rules in the legacy table nat", self.legacy))
            }
            Flavour::Legacy => self.nft.as_ref().map(nft),
        };
        self.native.as_ref().map(nft).or(other)
    }

    /// Flavour whose tables hold rules of others.
    fn flavour(&self) -> Option<Flavour> {
        match (&self.nft, self.legacy) {
            (_, 1..) => Some(Flavour::Legacy),
            (Some(_), 0) => Some(Flavour::Nft),
            (None, 0) => None,
        }
    }
}

/// Backends to try in order, and a line for the log when they are not those that were asked for.
pub type Candidates = (Vec<Backend>, Option<String>);

/// Lists the backends to try.
///
/// Errors: the one that was asked for would be in the wrong order with rules of others.
pub fn candidates(choice: BackendChoice) -> Result<Candidates, Failure> {
    Ok(match choice {
        // The iptables programs are looked for when this one fails.
        BackendChoice::Auto | BackendChoice::Nft => (vec![Backend::Nft], None),
        BackendChoice::Iptables => choose(&Neighbours::read()?, iptables::has_programs),
        BackendChoice::IptablesNft => (vec![asked(Flavour::Nft)?], None),
        BackendChoice::IptablesLegacy => (vec![asked(Flavour::Legacy)?], None),
    })
}

fn asked(flavour: Flavour) -> Result<Backend, Failure> {
    let backend = Backend::Iptables(flavour);
    match Neighbours::read()?.in_the_way_of(flavour) {
        None => Ok(backend),
        Some(rules) => Err(Failure::Refused(format!(
            "{}: others' rules are elsewhere ({rules}), and would be met in the wrong order: \
             callers would pass the mesh by, and it would capture the agent. Use --backend auto or \
             nft, which are right beside every mesh, or the programs that put those rules there",
            backend.word()
        ))),
    }
}

/// Chooses between the flavours and, where neither is right, `nft`.
fn choose(neighbours: &Neighbours, has_programs: impl Fn(Flavour) -> bool) -> Candidates {
    let first = neighbours.flavour().unwrap_or(Flavour::Nft);
    let usable =
        |flavour: &Flavour| has_programs(*flavour) && neighbours.in_the_way_of(*flavour).is_none();
    let flavours: Vec<Backend> = [first, first.other()]
        .into_iter()
        .filter(usable)
        .map(Backend::Iptables)
        .collect();
    if !flavours.is_empty() {
        return (flavours, None);
    }
    let Some(rules) = neighbours
        .in_the_way_of(first.other())
        .or(neighbours.in_the_way_of(first))
    else {
        // No programs at all: they will say what was looked for.
        let both = [first, first.other()].map(Backend::Iptables);
        return (both.to_vec(), None);
    };
    let line = format!(
        "no iptables programs of this image would be met in the right order with others' rules \
         ({rules}): using nft"
    );
    (vec![Backend::Nft], Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFT: Backend = Backend::Iptables(Flavour::Nft);
    const LEGACY: Backend = Backend::Iptables(Flavour::Legacy);

    fn chosen(native: bool, nft: bool, legacy: usize, programs: &[Flavour]) -> Vec<Backend> {
        let neighbours = Neighbours {
            native: native.then(|| "inet mesh out".to_owned()),
            nft: nft.then(|| "ip nat OUTPUT".to_owned()),
            legacy,
        };
        choose(&neighbours, |flavour| programs.contains(&flavour)).0
    }

    #[test]
    fn the_flavour_with_others_rules_is_used_and_nft_where_neither_is_right() {
        let both = [Flavour::Nft, Flavour::Legacy];
        for (native, nft, legacy, programs, backends) in [
            (false, false, 0, &both[..], &[NFT, LEGACY][..]),
            (false, true, 0, &both[..], &[NFT]),
            (false, false, 5, &both[..], &[LEGACY]),
            (false, false, 0, &both[1..], &[LEGACY]),
            (false, false, 5, &both[..1], &[Backend::Nft]),
            (false, true, 0, &both[1..], &[Backend::Nft]),
            (false, true, 5, &both[..], &[Backend::Nft]),
            (true, false, 0, &both[..], &[Backend::Nft]),
            (false, false, 0, &[], &[NFT, LEGACY]),
        ] {
            assert_eq!(
                chosen(native, nft, legacy, programs),
                backends,
                "{native} {nft} {legacy} {programs:?}"
            );
        }
    }
}
