//! Bloom filters that count the peers of a torrent over several nodes (BEP 33).

use std::net::IpAddr;

use super::krpc::BLOOM_BYTES;
use crate::hash::sha1;

/// Bits of a filter.
const BITS: usize = BLOOM_BYTES * 8;

/// A set of IP addresses: 2048 bits, of which each address sets two.
#[derive(Clone, PartialEq, Eq)]
pub struct BloomFilter([u8; BLOOM_BYTES]);

impl Default for BloomFilter {
    fn default() -> Self {
        Self([0; BLOOM_BYTES])
    }
}

impl std::fmt::Debug for BloomFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BloomFilter(about {})", self.estimate())
    }
}

impl BloomFilter {
    /// A filter as a node has sent it.
    #[must_use]
    pub fn from_bytes(bytes: [u8; BLOOM_BYTES]) -> Self {
        Self(bytes)
    }

    /// The filter's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; BLOOM_BYTES] {
        &self.0
    }

    /// Adds an address.
    pub fn insert(&mut self, ip: IpAddr) {
        for bit in bits(ip) {
            self.0[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Whether the address may be in the set; false means that it is not.
    #[must_use]
    pub fn may_contain(&self, ip: IpAddr) -> bool {
        bits(ip).into_iter().all(|bit| self.0[bit / 8] & (1 << (bit % 8)) != 0)
    }

    /// Adds all addresses of another filter.
    pub fn union(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(byte, other)| *byte |= other);
    }

    /// The estimated number of addresses (BEP 33, "Calculating the estimate").
    #[must_use]
    pub fn estimate(&self) -> f64 {
        let zeros: u32 = self.0.iter().map(|byte| byte.count_zeros()).sum();
        let m = BITS as f64;
        // A full filter would be the logarithm of zero.
        let zeros = f64::from(zeros.max(1)).min(m - 1.0);
        if self.0 == [0; BLOOM_BYTES] {
            return 0.0;
        }
        (zeros / m).ln() / (2.0 * (1.0 - 1.0 / m).ln())
    }
}

fn bits(ip: IpAddr) -> [usize; 2] {
    let hash = match ip {
        IpAddr::V4(v4) => sha1([&v4.octets()[..]]),
        IpAddr::V6(v6) => sha1([&v6.octets()[..]]),
    };
    [
        usize::from(u16::from_le_bytes([hash[0], hash[1]])) % BITS,
        usize::from(u16::from_le_bytes([hash[2], hash[3]])) % BITS,
    ]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// BEP 33, "Test Vectors".
    const VECTOR: &str = "F6C3F5EAA07FFD91BDE89F777F26FB2BFF37BDB8FB2BBAA2FD3DDDE7BACFFF75EE7CCBAE\
        FE5EEDB1FBFAFF67F6ABFF5E43DDBCA3FD9B9FFDF4FFD3E9DFF12D1BDF59DB53DBE9FA5B\
        7FF3B8FDFCDE1AFB8BEDD7BE2F3EE71EBBBFE93BCDEEFE148246C2BC5DBFF7E7EFDCF24F\
        D8DC7ADFFD8FFFDFDDFFF7A4BBEEDF5CB95CE81FC7FCFF1FF4FFFFDFE5F7FDCBB7FD79B3\
        FA1FC77BFE07FFF905B7B7FFC7FEFEFFE0B8370BB0CD3F5B7F2BD93FEB4386CFDD6F7FD5\
        BFAF2E9EBFFFFEECD67ADBF7C67F17EFD5D75EBA6FFEBA7FFF47A91EB1BFBB53E8ABFB57\
        62ABE8FF237279BFEFBFEEF5FFC5FEBFDFE5ADFFADFEE1FB737FFFFBFD9F6AEFFEEE76B6\
        FD8F72EF";

    #[test]
    fn bep_33_vector() {
        let mut filter = BloomFilter::default();
        let v4 = (0..=255).map(|last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last)));
        let v6 = (0..=0x3e7).map(|last| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last)));
        for ip in v4.chain(v6) {
            filter.insert(ip);
            assert!(filter.may_contain(ip));
        }
        assert_eq!(const_hex::encode_upper(filter.as_bytes()), VECTOR);
        assert!((filter.estimate() - 1224.9308).abs() < 0.0001, "{}", filter.estimate());
    }

    #[test]
    fn unions_and_extremes() {
        let [mut one, mut other, mut both] = [const { BloomFilter([0; BLOOM_BYTES]) }; 3];
        assert_eq!(one.estimate(), 0.0);
        for (index, ip) in (1..100).map(|last| IpAddr::from([9, 9, 9, last])).enumerate() {
            if index % 2 == 0 {
                one.insert(ip);
            } else {
                other.insert(ip);
            }
            both.insert(ip);
        }
        one.union(&other);
        assert_eq!(one, both);
        assert!((one.estimate() - 99.0).abs() < 10.0);
        assert!(BloomFilter([255; BLOOM_BYTES]).estimate().is_finite());
    }
}
