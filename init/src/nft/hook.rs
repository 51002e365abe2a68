//! Name of our tables in nftables, and hooks and priorities of their base chains.

use crate::rule::Chain;

/// Name of our table, in each family that has rules.
pub(crate) const TABLE: &str = "tel_agent";

/// Hook of nftables and priority of a chain that the kernel calls.
///
/// Inbound `-99`: a mesh's redirect at `-100` wins, the caller meets the mesh first. Outbound
/// `-101`: before a mesh, so that it neither captures the agent nor hides the pod's own port from
/// us.
pub(crate) fn hook(chain: Chain) -> Option<(&'static str, i32)> {
    match chain {
        Chain::Prerouting => Some(("prerouting", -99)),
        Chain::Output => Some(("output", -101)),
        _ => None,
    }
}

/// Number of the hook in the kernel.
pub(crate) fn hook_number(chain: Chain) -> u32 {
    if chain == Chain::Output { 3 } else { 0 }
}
