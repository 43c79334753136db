//! Networks of IP addresses, and the set of those that the user blocks.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A network: an IP address, or an address with the length of its prefix.
///
/// ```
/// use ecs_torrent_components::networks::Network;
///
/// let network: Network = "192.0.2.7/24".parse().unwrap();
/// assert_eq!(network.to_string(), "192.0.2.0/24");
/// assert_eq!("2001:db8::1".parse::<Network>().unwrap().to_string(), "2001:db8::1");
/// assert!("192.0.2.7/33".parse::<Network>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

/// The text is not a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IP address, nor a network such as 192.0.2.0/24")]
pub struct NotANetwork(String);

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let host = text.parse::<IpAddr>().map(|ip| Self::from(ip.to_canonical()));
        let network = || text.parse::<IpNet>().map(|network| Self(network.trunc()));
        host.or_else(|_| network()).map_err(|_| NotANetwork(text.to_owned()))
    }
}

impl From<IpAddr> for Network {
    fn from(ip: IpAddr) -> Self {
        Self(ip.into())
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;

    fn try_from(text: String) -> Result<Self, NotANetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

/// A set of addresses, given as networks. A search takes time in proportion to the logarithm of their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// First and last address of each range, in order and apart from each other.
    ranges: Vec<(Ipv6Addr, Ipv6Addr)>,
}

impl AddressSet {
    /// Creates the set of all addresses in the networks.
    #[must_use]
    pub fn new(networks: &[Network]) -> Self {
        let bounds = |network: &Network| (mapped(network.0.network()), mapped(network.0.broadcast()));
        let mut all: Vec<_> = networks.iter().map(bounds).collect();
        all.sort_unstable();
        let mut ranges: Vec<(Ipv6Addr, Ipv6Addr)> = Vec::new();
        for (first, last) in all {
            match ranges.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => ranges.push((first, last)),
            }
        }
        Self { ranges }
    }

    /// Whether the set contains an address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = mapped(ip);
        let position = self.ranges.partition_point(|(first, _)| *first <= ip);
        let range = position.checked_sub(1).and_then(|position| self.ranges.get(position));
        range.is_some_and(|(_, last)| ip <= *last)
    }
}

/// Returns an address as IPv6, so that both families have one order.
fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(networks: &[&str]) -> AddressSet {
        let networks: Vec<Network> = networks.iter().map(|network| network.parse().unwrap()).collect();
        AddressSet::new(&networks)
    }

    #[test]
    fn addresses_in_overlapping_networks_are_found() {
        let set = set(&[
            "192.0.2.0/25",
            "192.0.2.0/30",
            "192.0.2.64/24",
            "198.51.100.7",
            "2001:db8::/32",
        ]);
        assert_eq!(set.ranges.len(), 3);
        for (ip, is_in) in [
            ("192.0.1.255", false),
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("198.51.100.6", false),
            ("198.51.100.7", true),
            ("::ffff:198.51.100.7", true),
            ("198.51.100.8", false),
            ("2001:db7:ffff::1", false),
            ("2001:db8:1::1", true),
            ("2001:db9::", false),
            ("::", false),
        ] {
            assert_eq!(set.contains(ip.parse().unwrap()), is_in, "{ip}");
        }
        assert!(!AddressSet::default().contains(IpAddr::from([1, 2, 3, 4])));
    }

    #[test]
    fn networks_are_written_as_they_are_read() {
        for text in ["192.0.2.7", "10.0.0.0/8", "0.0.0.0/0", "::1", "2001:db8::/32"] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.to_string(), text);
            assert_eq!(serde_json::from_str::<Network>(&format!("{text:?}")).unwrap(), network);
        }
        assert_eq!("::ffff:192.0.2.7".parse::<Network>().unwrap().to_string(), "192.0.2.7");
        for text in [
            "",
            "x",
            "192.0.2",
            "192.0.2.1/",
            "192.0.2.1/-1",
            "::1/129",
            "192.0.2.1:80",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
