//! Network prefixes: limits on how many peers one party can pretend to be.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address range that a single host can be expected to own: an IPv4 address, or the first 64 bits of a
/// public IPv6 address.
///
/// A provider gives every customer at least a /64, so 2^64 addresses of it count as one. Hosts of a local network share
/// their /64, so local addresses count individually.
#[must_use]
pub fn site(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !is_local(ip) => masked(v6, 64),
        other => other,
    }
}

/// Returns the address range that a party with several hosts can be expected to own: the /24 of a public IPv4 address,
/// or the /48 of a public IPv6 address.
///
/// Local addresses (loopback, private, link-local, behind a provider's gateway) are their own subnet, because the hosts
/// of a local network are not one party.
#[must_use]
pub fn subnet(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        local if is_local(local) => local,
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, 0].into()
        }
        IpAddr::V6(v6) => masked(v6, 48),
    }
}

/// Whether an address belongs to a local network: loopback, private, link-local, or shared by a provider's customers
/// (RFC 6598).
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn masked(v6: Ipv6Addr, bits: u32) -> IpAddr {
    Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - bits))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_slash_64_is_one_site() {
        assert_eq!(site(ip("2a01:1:2:3:4::5")), site(ip("2a01:1:2:3:ffff:1:2:3")));
        assert_ne!(site(ip("2a01:1:2:3::5")), site(ip("2a01:1:2:4::5")));
        assert_ne!(site(ip("9.9.9.1")), site(ip("9.9.9.2")));
        assert_eq!(site(ip("::ffff:9.9.9.1")), ip("9.9.9.1"), "IPv4 in IPv6");
    }

    #[test]
    fn a_subnet_is_a_slash_24_or_a_slash_48() {
        assert_eq!(subnet(ip("9.9.9.1")), subnet(ip("9.9.9.200")));
        assert_ne!(subnet(ip("9.9.9.1")), subnet(ip("9.9.8.1")));
        assert_eq!(subnet(ip("2a01:1:2:3::1")), subnet(ip("2a01:1:2:9::1")));
        assert_ne!(subnet(ip("2a01:1:2:3::1")), subnet(ip("2a01:1:3:3::1")));
    }

    #[test]
    fn local_hosts_are_not_one_group() {
        for (one, other) in [
            ("127.0.0.1", "127.0.0.2"),
            ("192.168.1.1", "192.168.1.2"),
            ("10.0.0.1", "10.0.0.2"),
            ("100.64.0.1", "100.64.0.2"),
            ("fe80::1", "fe80::2"),
            ("fd00::1", "fd00::2"),
        ] {
            assert!(is_local(ip(one)) && !is_local(ip("9.9.9.9")));
            assert_ne!(subnet(ip(one)), subnet(ip(other)));
            assert_ne!(site(ip(one)), site(ip(other)));
        }
    }
}
