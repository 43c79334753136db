//! Node ids, distances between them, and ids that depend on the external address (BEP 5, BEP 42).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rand::Rng;

use crate::hash::{InfoHash, InfoHashError};
use crate::prefix::is_local;

/// The id of a node, or a key: info-hashes and the targets of items share the ids' space of 160 bits (BEP 5,
/// "Overview").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 20]);

/// The distance between two ids: their XOR, compared as a big-endian number (BEP 5, "Overview").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Distance([u8; 20]);

impl NodeId {
    /// Returns a random id.
    pub fn random(rng: &mut impl Rng) -> Self {
        let mut bytes = [0; 20];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Returns a random id that a node at `ip` may use (BEP 42); any random id if the address is local.
    pub fn random_for(ip: IpAddr, rng: &mut impl Rng) -> Self {
        Self::variant_for(ip, None, rng)
    }

    /// Like [`NodeId::random_for`]. The ids of two variants, numbers modulo 8, are far apart, so that several nodes
    /// behind one address have different neighbors (BEP 45).
    pub fn variant_for(ip: IpAddr, variant: Option<u8>, rng: &mut impl Rng) -> Self {
        let mut id = Self::random(rng);
        if let Some(variant) = variant {
            id.0[19] = (id.0[19] & !0x07) | (variant & 0x07);
        }
        if !is_local(ip) {
            let [a, b, c, _] = prefix(ip, id.0[19]).to_be_bytes();
            id.0[0] = a;
            id.0[1] = b;
            id.0[2] = (c & 0xf8) | (id.0[2] & 0x07);
        }
        id
    }

    /// Whether a node at `ip` may use this id (BEP 42). A node of a local network may use any id ("Enforcement").
    #[must_use]
    pub fn fits(self, ip: IpAddr) -> bool {
        let [a, b, c, _] = prefix(ip, self.0[19]).to_be_bytes();
        (self.0[0] == a && self.0[1] == b && (self.0[2] ^ c) & 0xf8 == 0) || is_local(ip)
    }

    /// Whether the address proves that a node did not choose this id freely (BEP 42): a public address allows eight
    /// ids in two million.
    #[must_use]
    pub fn is_bound_to(self, ip: IpAddr) -> bool {
        !is_local(ip) && self.fits(ip)
    }

    /// The distance to another id.
    #[must_use]
    pub fn distance(self, other: Self) -> Distance {
        let mut bytes = self.0;
        bytes.iter_mut().zip(other.0).for_each(|(byte, other)| *byte ^= other);
        Distance(bytes)
    }

    /// The number of leading bits that both ids share: 160 if they are equal.
    #[must_use]
    pub fn shared_bits(self, other: Self) -> usize {
        self.distance(other).leading_zeros()
    }

    /// Returns a random id that shares exactly `bits` leading bits with this one, or this one for 160.
    #[must_use]
    pub fn neighbor(self, bits: usize, rng: &mut impl Rng) -> Self {
        let mut id = Self::random(rng);
        for bit in 0..=bits.min(159) {
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let kept = if bit == bits { !self.0[byte] } else { self.0[byte] };
            id.0[byte] = (id.0[byte] & !mask) | (kept & mask);
        }
        if bits >= 160 { self } else { id }
    }

    /// Returns the key of `map` that is farthest from this id, in a few range queries.
    #[must_use]
    pub(super) fn farthest_key<T>(self, map: &BTreeMap<Self, T>) -> Option<Self> {
        let (mut first, mut last) = (Self([0; 20]), Self([0xff; 20]));
        for bit in 0..160 {
            let mut keys = map.range(first..=last).map(|(key, _)| *key);
            let (low, high) = (keys.next()?, keys.next_back());
            let Some(high) = high else { return Some(low) };
            // All keys from `low` to `high` share the bits before this one.
            let (byte, mask) = (bit / 8, 0x80 >> (bit % 8));
            let wants_one = self.0[byte] & mask == 0;
            let is_split = (low.0[byte] ^ high.0[byte]) & mask != 0;
            let takes_one = if is_split { wants_one } else { low.0[byte] & mask != 0 };
            if takes_one {
                first.0[byte] |= mask;
            } else {
                last.0[byte] &= !mask;
            }
        }
        Some(first)
    }
}

impl Distance {
    /// The number of leading zero bits.
    #[must_use]
    pub fn leading_zeros(self) -> usize {
        let bytes = self.0.iter().take_while(|byte| **byte == 0).count();
        bytes * 8 + self.0.get(bytes).map_or(0, |byte| byte.leading_zeros() as usize)
    }
}

impl From<InfoHash> for NodeId {
    fn from(hash: InfoHash) -> Self {
        Self(hash.0)
    }
}

impl From<NodeId> for InfoHash {
    fn from(id: NodeId) -> Self {
        Self(id.0)
    }
}

impl FromStr for NodeId {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<Self, InfoHashError> {
        text.parse().map(|hash: InfoHash| Self(hash.0))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        InfoHash(self.0).fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Distance({})", InfoHash(self.0))
    }
}

/// The checksum whose first 21 bits an id at `ip` begins with (BEP 42, "Node ID restriction"). Only the low three bits
/// of `r` count.
fn prefix(ip: IpAddr, r: u8) -> u32 {
    let mut bytes = [0; 8];
    let len = match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let masked = v4.to_bits() & 0x030f_3fff;
            bytes[..4].copy_from_slice(&masked.to_be_bytes());
            4
        }
        IpAddr::V6(v6) => {
            let high = (v6.to_bits() >> 64) as u64;
            bytes = (high & 0x0103_070f_1f3f_7fff).to_be_bytes();
            8
        }
    };
    bytes[0] |= (r & 7) << 5;
    crc32c::crc32c(&bytes[..len])
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// BEP 42, "test vectors".
    #[test]
    fn bep_42_vectors() {
        for (ip, rand, id) in [
            ("124.31.75.21", 1, "5fbfbff10c5d6a4ec8a88e4c6ab4c28b95eee401"),
            ("21.75.31.124", 86, "5a3ce9c14e7a08645677bbd1cfe7d8f956d53256"),
            ("65.23.51.170", 22, "a5d43220bc8f112a3d426c84764f8c2a1150e616"),
            ("84.124.73.14", 65, "1b0321dd1bb1fe518101ceef99462b947a01ff41"),
            ("43.213.53.83", 90, "e56f6cbf5b7c4be0237986d5243b87aa6d51305a"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut id: NodeId = id.parse().unwrap();
            assert_eq!(id.0[19], rand);
            assert!(id.fits(ip), "{ip}");
            assert!(!id.fits("8.8.8.8".parse().unwrap()));
            // Bits 0 to 20 and the last byte count; bits 21 to 23 do not.
            id.0[2] ^= 0x07;
            assert!(id.fits(ip));
            id.0[2] ^= 0x08;
            assert!(!id.fits(ip));
        }
    }

    #[test]
    fn own_ids_fit_their_address() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        for ip in ["9.8.7.6", "2a01:4f8:1:2::3", "10.0.0.1", "fd00::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            for _ in 0..50 {
                assert!(NodeId::random_for(ip, &mut rng).fits(ip), "{ip}");
            }
        }
        // An IPv6 /64 decides, not the host's part; a random id fits a public address once in 2^21 times.
        let ip: IpAddr = "2a01:4f8:1:2::3".parse().unwrap();
        let id = NodeId::random_for(ip, &mut rng);
        assert!(id.fits("2a01:4f8:1:2:aaaa::9".parse().unwrap()));
        assert!(!id.fits("2a01:4f8:1:3::3".parse().unwrap()));
        assert!(NodeId::random(&mut rng).fits("192.168.1.1".parse().unwrap()));
    }

    #[test]
    fn distances_order_ids_by_their_leading_bits() {
        let mut rng = ChaCha8Rng::from_seed([2; 32]);
        let id = NodeId::random(&mut rng);
        assert_eq!(id.shared_bits(id), 160);
        let mut last = id.distance(id);
        for bits in (0..160).rev() {
            let neighbor = id.neighbor(bits, &mut rng);
            assert_eq!(id.shared_bits(neighbor), bits);
            assert!(id.distance(neighbor) > last);
            last = id.distance(neighbor);
        }
        assert_eq!(id.neighbor(160, &mut rng), id);
    }

    #[test]
    fn the_farthest_key_has_the_greatest_distance() {
        let mut rng = ChaCha8Rng::from_seed([3; 32]);
        for len in 0..60 {
            let id = NodeId::random(&mut rng);
            let keys = (0..len).map(|n| {
                if n % 2 == 0 {
                    NodeId::random(&mut rng)
                } else {
                    id.neighbor(n, &mut rng)
                }
            });
            let map: BTreeMap<NodeId, ()> = keys.map(|key| (key, ())).collect();
            let expected = map.keys().copied().max_by_key(|key| key.distance(id));
            assert_eq!(id.farthest_key(&map), expected);
        }
    }
}
