//! Subnets in CIDR notation.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use crate::family::Family;

/// Subnet: an address without host bits and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    length: u8,
}

/// Error: the text is no subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no subnet; write it like 10.1.0.0/16 or fd00::/8")]
pub struct NoSubnet;

impl Cidr {
    /// Family of the addresses in it.
    pub fn family(self) -> Family {
        Family::of(self.network)
    }

    /// First address.
    pub fn network(self) -> IpAddr {
        self.network
    }

    /// Mask of the prefix, as long as an address.
    pub fn mask(self) -> Vec<u8> {
        let bits = u128::MAX
            .checked_shl(128 - u32::from(self.length))
            .unwrap_or(0);
        match self.family() {
            Family::V4 => bits.to_be_bytes()[..4].to_vec(),
            Family::V6 => bits.to_be_bytes().to_vec(),
        }
    }

    /// True when `address` is in the subnet.
    pub fn contains(self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && cut(address, self.length) == self.network
    }
}

impl FromStr for Cidr {
    type Err = NoSubnet;

    /// Reads `address/length`, or an address that stands for itself. Host bits are dropped.
    fn from_str(text: &str) -> Result<Self, NoSubnet> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NoSubnet)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(text) if text.bytes().all(|it| it.is_ascii_digit()) => {
                text.parse().map_err(|_| NoSubnet)?
            }
            Some(_) => return Err(NoSubnet),
            None => longest,
        };
        if length > longest {
            return Err(NoSubnet);
        }
        let network = cut(address, length);
        Ok(Self { network, length })
    }
}

/// Clears the host bits.
fn cut(address: IpAddr, length: u8) -> IpAddr {
    let keep = |bits: u32| u32::from(length).min(bits);
    match address {
        IpAddr::V4(it) => {
            let mask = u32::MAX.checked_shl(32 - keep(32)).unwrap_or(0);
            IpAddr::V4((it.to_bits() & mask).into())
        }
        IpAddr::V6(it) => {
            let mask = u128::MAX.checked_shl(128 - keep(128)).unwrap_or(0);
            IpAddr::V6((it.to_bits() & mask).into())
        }
    }
}

impl Display for Cidr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_bits_are_dropped_and_an_address_stands_for_itself() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd12::1/8", "fd00::/8"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10/8",
            "fd00::/129",
            "10.0.0.0/+8",
            "x/8",
        ] {
            assert_eq!(bad.parse::<Cidr>(), Err(NoSubnet), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_address_is_in_its_own_subnet_whatever_the_length(bits: u32, length in 0u8..=32) {
            let address = IpAddr::V4(bits.into());
            let subnet: Cidr = format!("{address}/{length}").parse().unwrap();
            prop_assert!(subnet.contains(address));
            let flipped = IpAddr::V4((bits ^ (1 << 31)).into());
            prop_assert_eq!(subnet.contains(flipped), length == 0);
        }

        #[test]
        fn any_text_is_read_without_harm(text in "[0-9a-f:./]{0,24}") {
            if let Ok(subnet) = text.parse::<Cidr>() {
                prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
                prop_assert_eq!(subnet.mask().len(), if subnet.network().is_ipv4() { 4 } else { 16 });
            }
        }
    }
}
