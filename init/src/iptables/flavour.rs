//! Flavours of the iptables programs.

use crate::permission::Need;

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

    /// Flavour that is not this one.
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// Rights that its programs need.
    pub fn need(self) -> Need {
        match self {
            Self::Nft => Need::NetAdmin,
            Self::Legacy => Need::NetAdminAndRaw,
        }
    }
}
