//! Flavours of the iptables programs.

/// Implementation of the programs; each has tables of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Over nf_tables.
    Nft,
    /// Over x_tables.
    Legacy,
}

impl Flavour {
    /// Part of the programs' names.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}
