//! Canonical peer priority (BEP 40): all clients rank a pair of addresses alike, so the connections of a swarm settle
//! into a graph from which no party can displace other peers.

use std::net::{IpAddr, SocketAddr};

/// The priority of a connection between `ours`, our external address, and `theirs`; higher is preferred. Addresses of
/// different families rank lowest, since BEP 40 does not compare them.
#[must_use]
pub fn peer_priority(ours: SocketAddr, theirs: SocketAddr) -> u32 {
    match (ours.ip().to_canonical(), theirs.ip().to_canonical()) {
        (a, b) if a == b => of_pair(&ours.port().to_be_bytes(), &theirs.port().to_be_bytes()),
        (IpAddr::V4(a), IpAddr::V4(b)) => masked(a.octets(), b.octets(), 2),
        (IpAddr::V6(a), IpAddr::V6(b)) => masked(a.octets(), b.octets(), 6),
        _ => 0,
    }
}

/// Computes the masked priority of BEP 40. The first bytes count in full, up to one byte past the common prefix if that
/// is longer; the remaining bytes are masked with `0x55`.
fn masked<const N: usize>(mut a: [u8; N], mut b: [u8; N], first: usize) -> u32 {
    let agreeing = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let whole = if agreeing < first { first } else { agreeing + 1 };
    for address in [&mut a, &mut b] {
        address.iter_mut().skip(whole).for_each(|byte| *byte &= 0x55);
    }
    of_pair(&a, &b)
}

fn of_pair(a: &[u8], b: &[u8]) -> u32 {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    crc32c::crc32c_append(crc32c::crc32c(low), high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priority(a: &str, b: &str) -> u32 {
        let forth = peer_priority(a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(
            forth,
            peer_priority(b.parse().unwrap(), a.parse().unwrap()),
            "both sides agree"
        );
        forth
    }

    /// The examples of BEP 40.
    #[test]
    fn matches_the_vectors() {
        assert_eq!(priority("123.213.32.10:1", "98.76.54.32:2"), 0xec2d_7224);
        assert_eq!(priority("123.213.32.10:1", "123.213.32.234:2"), 0x9956_8189);
    }

    #[test]
    fn masks_grow_with_the_common_network() {
        let of = |hex: &[u8]| crc32c::crc32c(hex);
        // Same /16: three whole bytes.
        assert_eq!(
            priority("10.20.30.255:1", "10.20.40.255:1"),
            of(&[10, 20, 30, 0x55, 10, 20, 40, 0x55])
        );
        // Equal addresses: the ports.
        assert_eq!(priority("1.2.3.4:513", "1.2.3.4:258"), of(&[1, 2, 2, 1]));
        let v6 = |a: [u8; 16], b: [u8; 16]| of(&[a, b].concat());
        let tail = [0x55; 10];
        let build = |head: [u8; 6]| -> [u8; 16] { [&head[..], &tail].concat().try_into().unwrap() };
        assert_eq!(
            priority(
                "[2001:db8:1:ffff:ffff:ffff:ffff:ffff]:1",
                "[2001:db8:2:ffff:ffff:ffff:ffff:ffff]:1"
            ),
            v6(
                build([0x20, 0x01, 0x0d, 0xb8, 0, 1]),
                build([0x20, 0x01, 0x0d, 0xb8, 0, 2])
            )
        );
        assert_eq!(priority("1.2.3.4:1", "[2001:db8::1]:1"), 0);
        assert_eq!(
            priority("[::ffff:123.213.32.10]:1", "98.76.54.32:2"),
            0xec2d_7224,
            "mapped addresses are IPv4"
        );
    }
}
