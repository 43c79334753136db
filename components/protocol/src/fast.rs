//! The allowed-fast set (BEP 6): pieces that a peer may request while choked, so that a new peer gets something to
//! trade.

use std::net::Ipv4Addr;

use crate::hash::{InfoHash, sha1};

/// Computes the `count` pieces, of `piece_count`, that a peer at `ip` may request while choked.
///
/// Follows BEP 6, so that every member of the swarm names the same pieces to a given peer. The BEP defines the set for
/// IPv4 only.
#[must_use]
pub fn allowed_fast_set(ip: Ipv4Addr, info_hash: InfoHash, piece_count: u32, count: usize) -> Vec<u32> {
    let count = count.min(piece_count as usize);
    let mut set = Vec::with_capacity(count);
    // BEP 6, canonical algorithm: hash the address with its last byte cleared and the info-hash; rehash for more.
    let [a, b, c, _] = ip.octets();
    let mut digest = sha1([&[a, b, c, 0][..], &info_hash.0]);
    while set.len() < count {
        for word in digest.chunks_exact(4) {
            let value = word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
            let piece = value % piece_count;
            if set.len() < count && !set.contains(&piece) {
                set.push(piece);
            }
        }
        digest = sha1([&digest[..]]);
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of BEP 6: 80.4.4.200, an info-hash of 20 bytes 0xaa, 1313 pieces.
    #[test]
    fn matches_the_vectors() {
        let set = |count| allowed_fast_set(Ipv4Addr::new(80, 4, 4, 200), InfoHash([0xaa; 20]), 1313, count);
        assert_eq!(set(7), [1059, 431, 808, 1217, 287, 376, 1188]);
        assert_eq!(set(9), [1059, 431, 808, 1217, 287, 376, 1188, 353, 508]);
    }

    #[test]
    fn the_allowed_fast_set_of_a_small_torrent_is_every_piece() {
        let mut set = allowed_fast_set(Ipv4Addr::LOCALHOST, InfoHash([1; 20]), 3, 10);
        set.sort_unstable();
        assert_eq!(set, [0, 1, 2]);
        assert!(allowed_fast_set(Ipv4Addr::LOCALHOST, InfoHash([1; 20]), 0, 10).is_empty());
    }
}
