//! Network prefixes, by which the peers that one party can pretend to be are limited.

use std::net::{IpAddr, Ipv6Addr};

/// Returns the address range that a single host can be expected to own: an IPv4 address, or the first 64 bits of a
/// public IPv6 address. An IPv6 address that leads to an IPv4 address counts as that one: all hosts behind a NAT64
/// gateway share their /64.
///
/// A provider gives every customer at least a /64, so 2^64 addresses of it count as one. Hosts of a local network share
/// their /64, so local addresses count individually.
#[must_use]
pub fn site(ip: IpAddr) -> IpAddr {
    match unwrapped(ip) {
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
    match unwrapped(ip) {
        local if is_local(local) => local,
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, 0].into()
        }
        IpAddr::V6(v6) => masked(v6, 48),
    }
}

/// Whether an address belongs to this machine or to a local network: loopback, "this network", private, link-local, or
/// shared by a provider's customers (RFC 6598). An IPv6 address that leads to such an IPv4 address is local too.
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    match unwrapped(ip) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            a == 0 || v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Whether an address can be that of one host, to which connections and datagrams can be sent: neither unspecified nor
/// multicast, broadcast, or reserved (RFC 1112, 240.0.0.0/4).
#[must_use]
pub fn is_unicast(ip: IpAddr) -> bool {
    match unwrapped(ip) {
        IpAddr::V4(v4) => (1..224).contains(&v4.octets()[0]),
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_multicast(),
    }
}

/// Returns the IPv4 address to which an IPv6 address leads: by its notation (`::ffff:0:0/96`, `::/96`), through a NAT64
/// gateway (`64:ff9b::/96`, and RFC 8215), or through a 6to4 relay (`2002::/16`). Returns other addresses unchanged.
#[must_use]
pub fn unwrapped(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else {
        return ip.to_canonical();
    };
    let [a, b, c, d, e, f, ..] = v6.segments();
    let bits = v6.to_bits();
    let embedded = match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0] if bits > 1 => bits,
        [0x64, 0xff9b, 0, 0, 0, 0] | [0x64, 0xff9b, 1, ..] => bits,
        [0x2002, ..] => bits >> 80,
        _ => return ip,
    };
    IpAddr::from((embedded as u32).to_be_bytes())
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
        for through in ["::ffff:9.9.9.1", "64:ff9b::9.9.9.1", "2002:909:901:7::1"] {
            assert_eq!(site(ip(through)), ip("9.9.9.1"), "{through}");
            assert_eq!(subnet(ip(through)), ip("9.9.9.0"), "{through}");
        }
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
            ("0.0.0.1", "0.0.0.2"),
            ("64:ff9b::10.0.0.1", "64:ff9b::10.0.0.2"),
        ] {
            assert!(is_local(ip(one)) && !is_local(ip("9.9.9.9")));
            assert_ne!(subnet(ip(one)), subnet(ip(other)));
            assert_ne!(site(ip(one)), site(ip(other)));
        }
    }

    #[test]
    fn addresses_that_lead_to_ipv4_count_as_it() {
        for (text, inner) in [
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::127.0.0.1", "127.0.0.1"),
            ("64:ff9b::7f00:1", "127.0.0.1"),
            ("64:ff9b:1::7f00:1", "127.0.0.1"),
            ("2002:7f00:1::", "127.0.0.1"),
            ("2002:0a00:1:ffff::9", "10.0.0.1"),
            ("64:ff9b::8.8.8.8", "8.8.8.8"),
            ("::1", "::1"),
            ("::", "::"),
            ("2a01::7f00:1", "2a01::7f00:1"),
            ("9.9.9.9", "9.9.9.9"),
        ] {
            assert_eq!(unwrapped(ip(text)), ip(inner), "{text}");
            assert_eq!(is_local(ip(text)), is_local(ip(inner)), "{text}");
        }
        assert!(is_local(ip("2002:7f00::")) && !is_local(ip("64:ff9b::8.8.8.8")));
    }

    #[test]
    fn a_host_has_a_unicast_address() {
        for text in [
            "9.9.9.9",
            "127.0.0.1",
            "223.255.255.255",
            "::1",
            "fe80::1",
            "2a01::1",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(is_unicast(ip(text)), "{text}");
        }
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "239.192.152.143",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "ff02::1",
            "::ffff:224.0.0.1",
            "64:ff9b::e000:1",
            "2002:ffff:ffff::1",
            "::2",
        ] {
            assert!(!is_unicast(ip(text)), "{text}");
        }
    }
}
