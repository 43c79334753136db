//! Classification of networks by privacy.

use std::net::IpAddr;

use ecs_torrent_protocol::prefix::{is_local, is_unicast, unwrapped};

/// Networks, the most private first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// This machine.
    Loopback,
    /// The local link, which includes the metadata services of clouds.
    LinkLocal,
    /// The local site.
    Private,
    /// The Internet.
    Global,
}

impl Scope {
    /// Returns the network of an address. An unspecified address stands for this machine. An IPv6 address that leads to
    /// an IPv4 address counts as that address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match unwrapped(ip) {
            ip if !is_local(ip) => Self::Global,
            IpAddr::V4(ip) if ip.is_loopback() || ip.octets()[0] == 0 => Self::Loopback,
            IpAddr::V4(ip) if ip.is_link_local() => Self::LinkLocal,
            IpAddr::V6(ip) if ip.is_loopback() || ip.is_unspecified() => Self::Loopback,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::LinkLocal,
            _ => Self::Private,
        }
    }

    /// Whether a request that began in this scope may go on to `ip`, and whether a host in this scope may name `ip`. It
    /// may not enter a more private scope, may reach the local link only from the local link, and may reach no group of
    /// hosts: multicast and broadcast.
    #[must_use]
    pub fn may_reach(self, ip: IpAddr) -> bool {
        let target = Self::of(ip);
        (is_unicast(ip) || target == Self::Loopback)
            && target >= self
            && (target != Self::LinkLocal || self == Self::LinkLocal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_their_scope() {
        let of = |text: &str| Scope::of(text.parse().unwrap());
        for ip in ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            assert_eq!(of(ip), Scope::Loopback, "{ip}");
        }
        assert_eq!(
            (of("169.254.169.254"), of("fe80::1")),
            (Scope::LinkLocal, Scope::LinkLocal)
        );
        for ip in ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"] {
            assert_eq!(of(ip), Scope::Private, "{ip}");
        }
        for ip in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2001:db8::1"] {
            assert_eq!(of(ip), Scope::Global, "{ip}");
        }
    }

    /// Fault 51.
    #[test]
    fn nothing_leads_inward() {
        let reach = |scope: Scope, ip: &str| scope.may_reach(ip.parse().unwrap());
        assert!(reach(Scope::Global, "8.8.8.8") && !reach(Scope::Global, "10.0.0.1"));
        assert!(!reach(Scope::Global, "127.0.0.1") && !reach(Scope::Private, "169.254.169.254"));
        assert!(!reach(Scope::Global, "64:ff9b::7f00:1") && !reach(Scope::Private, "2002:7f00::"));
        for group in ["224.0.0.1", "240.0.0.1", "255.255.255.255", "ff02::1"] {
            assert!(
                !reach(Scope::Global, group) && !reach(Scope::Loopback, group),
                "{group}"
            );
        }
        assert!(reach(Scope::Loopback, "0.0.0.0") && !reach(Scope::Global, "0.0.0.0"));
        assert!(reach(Scope::Loopback, "127.0.0.1") && reach(Scope::Loopback, "8.8.8.8"));
        assert!(!reach(Scope::Loopback, "169.254.169.254") && reach(Scope::LinkLocal, "169.254.0.1"));
    }
}
