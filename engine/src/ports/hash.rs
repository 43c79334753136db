//! The Hash port: digests over memory, computed off the world's thread.

use bytes::Bytes;
use ecs_torrent_protocol::geometry::BLOCK_SIZE;
use ecs_torrent_protocol::hash::{ExpectedDigest, Sha1Digest, Sha256Digest};
use ecs_torrent_protocol::merkle;
use ecs_torrent_protocol::sha1_pair::sha1_pair;
use sha1::digest::{FixedOutputReset, Output};
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::port::{JobTag, Port, PortEvent, Purpose};

/// The Hash port.
pub type HashPort = Port<HashRequest, HashEvent>;

/// The digests to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashKind {
    /// One SHA-1 over all bytes, for a piece.
    Sha1Piece,
    /// One SHA-1 for each run of this many bytes, for the blocks of a piece. The last run may be shorter.
    Sha1Blocks(u32),
    /// The SHA-256 of each block of 16 KiB, the leaves of a Merkle tree (BEP 52). The last block may be shorter.
    MerkleLeaves,
    /// The root of the Merkle tree over the blocks of a piece (BEP 52), filled up to this many leaves.
    MerkleRoot {
        /// Leaves of the tree.
        leaf_count: u32,
    },
}

impl From<ExpectedDigest<'_>> for HashKind {
    /// Returns the kind of digest to compare with the expected one.
    fn from(expected: ExpectedDigest<'_>) -> Self {
        match expected {
            ExpectedDigest::Sha1(_) => Self::Sha1Piece,
            ExpectedDigest::Merkle { leaf_count, .. } => Self::MerkleRoot { leaf_count },
        }
    }
}

/// A request from a world to hash bytes.
#[derive(Debug)]
pub struct HashRequest {
    /// Returned with the digests.
    pub tag: JobTag,
    /// The digests to compute.
    pub kind: HashKind,
    /// The bytes, in any number of slices.
    pub spans: Vec<Bytes>,
}

/// A completed hash request.
#[derive(Debug)]
pub struct HashEvent {
    /// The tag of the request.
    pub tag: JobTag,
    /// The digests. `None` if the job panicked.
    pub digests: Option<Digests>,
    /// The bytes, given back.
    pub spans: Vec<Bytes>,
}

/// The digests of a piece or of its blocks, by the kind of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digests {
    /// The digest of a piece.
    Piece(Sha1Digest),
    /// The digests of blocks, in order.
    Blocks(Vec<Sha1Digest>),
    /// The leaves of a Merkle tree, in order.
    Leaves(Vec<Sha256Digest>),
    /// The root of a Merkle tree. `None` for no bytes.
    Root(Option<Sha256Digest>),
}

impl Digests {
    /// Whether these are the digest that a piece must have.
    #[must_use]
    pub fn is(&self, expected: ExpectedDigest<'_>) -> bool {
        match (self, expected) {
            (Self::Piece(found), ExpectedDigest::Sha1(expected)) => found == expected,
            (Self::Root(found), ExpectedDigest::Merkle { root, .. }) => found.as_ref() == Some(root),
            _ => false,
        }
    }
}

impl PortEvent for HashEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

/// Computes a request. For backends.
#[must_use]
pub fn compute(kind: HashKind, spans: &[Bytes]) -> Digests {
    match kind {
        HashKind::Sha1Piece => {
            let mut hasher = Sha1::new();
            spans.iter().for_each(|span| hasher.update(span));
            Digests::Piece(hasher.finalize().into())
        }
        HashKind::Sha1Blocks(len) => Digests::Blocks(runs::<Sha1, _>(len, spans)),
        HashKind::MerkleLeaves => Digests::Leaves(runs::<Sha256, _>(BLOCK_SIZE, spans)),
        HashKind::MerkleRoot { leaf_count } => {
            Digests::Root(merkle::root(runs::<Sha256, _>(BLOCK_SIZE, spans), 0, leaf_count))
        }
    }
}

/// Returns a digest for each run of `len` bytes; the last run may be shorter.
fn runs<H: Digest + FixedOutputReset, D: From<Output<H>>>(len: u32, spans: &[Bytes]) -> Vec<D> {
    let mut digests = Vec::new();
    let (mut hasher, mut filled) = (H::new(), 0);
    for span in spans {
        let mut rest = &span[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min((len - filled) as usize));
            Digest::update(&mut hasher, now);
            filled += now.len() as u32;
            rest = later;
            if filled == len {
                digests.push(hasher.finalize_reset().into());
                filled = 0;
            }
        }
    }
    if filled > 0 {
        digests.push(hasher.finalize().into());
    }
    digests
}

/// Computes requests, pieces in pairs, which is faster than one after the other. For backends.
#[must_use]
pub fn compute_all(requests: &[HashRequest]) -> Vec<Digests> {
    let mut digests = Vec::with_capacity(requests.len());
    for two in requests.chunks(2) {
        match two {
            [a, b] if a.kind == HashKind::Sha1Piece && b.kind == HashKind::Sha1Piece => {
                let slices = [a, b].map(|request| request.spans.iter().map(|span| &span[..]));
                digests.extend(sha1_pair(slices).map(Digests::Piece));
            }
            _ => digests.extend(two.iter().map(|request| compute(request.kind, &request.spans))),
        }
    }
    digests
}

#[cfg(test)]
mod tests {
    use bevy_ecs::entity::Entity;
    use ecs_torrent_protocol::hash::{sha1, sha256};

    use super::*;
    use crate::purpose;

    #[test]
    fn digests_do_not_depend_on_the_slicing() {
        let data: Vec<u8> = (0..100u8).collect();
        for cut in [0, 1, 30, 64, 99] {
            let spans = [
                Bytes::copy_from_slice(&data[..cut]),
                Bytes::copy_from_slice(&data[cut..]),
            ];
            assert_eq!(compute(HashKind::Sha1Piece, &spans), Digests::Piece(sha1([&data[..]])));
            let blocks: Vec<_> = data.chunks(30).map(|block| sha1([block])).collect();
            assert_eq!(compute(HashKind::Sha1Blocks(30), &spans), Digests::Blocks(blocks));
        }
        assert_eq!(compute(HashKind::Sha1Blocks(30), &[]), Digests::Blocks(vec![]));
    }

    #[test]
    fn merkle_trees_are_over_blocks_whatever_the_slicing() {
        let data: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        let leaves: Vec<_> = data.chunks(BLOCK_SIZE as usize).map(|block| sha256([block])).collect();
        let pair = |left: Sha256Digest, right: Sha256Digest| sha256([&left[..], &right]);
        let root = pair(pair(leaves[0], leaves[1]), pair(leaves[2], [0; 32]));
        for cut in [0, 1, 16_384, 16_385, 39_999] {
            let spans = [
                Bytes::copy_from_slice(&data[..cut]),
                Bytes::copy_from_slice(&data[cut..]),
            ];
            assert_eq!(compute(HashKind::MerkleLeaves, &spans), Digests::Leaves(leaves.clone()));
            let found = compute(HashKind::MerkleRoot { leaf_count: 4 }, &spans);
            assert_eq!(found, Digests::Root(Some(root)));
            let wide = compute(HashKind::MerkleRoot { leaf_count: 8 }, &spans);
            assert_eq!(wide, Digests::Root(Some(pair(root, merkle::zero_root(2)))));
        }
        assert_eq!(
            compute(HashKind::MerkleRoot { leaf_count: 4 }, &[]),
            Digests::Root(None)
        );
    }

    #[test]
    fn a_digest_is_only_the_expected_one_of_its_kind() {
        let spans = [Bytes::from_static(b"piece")];
        let (sha1, leaf) = (sha1([&b"piece"[..]]), sha256([&b"piece"[..]]));
        let merkle = ExpectedDigest::Merkle {
            root: &leaf,
            leaf_count: 1,
        };
        let [by_sha1, by_merkle] = [ExpectedDigest::Sha1(&sha1), merkle].map(HashKind::from);
        let [piece, root] = [by_sha1, by_merkle].map(|kind| compute(kind, &spans));
        assert!(piece.is(ExpectedDigest::Sha1(&sha1)) && root.is(merkle));
        assert!(!piece.is(merkle) && !root.is(ExpectedDigest::Sha1(&sha1)));
        assert!(!piece.is(ExpectedDigest::Sha1(&[7; 20])) && !Digests::Root(None).is(merkle));
    }

    #[test]
    fn digests_do_not_depend_on_other_blocks_of_the_batch() {
        let kinds = [
            HashKind::Sha1Piece,
            HashKind::Sha1Piece,
            HashKind::Sha1Blocks(100),
            HashKind::MerkleRoot { leaf_count: 1 },
        ];
        for count in 0..=4 {
            for first in 0..4 {
                let requests: Vec<_> = (0..count)
                    .map(|number| HashRequest {
                        tag: JobTag::new(purpose!("test"), Entity::PLACEHOLDER),
                        kind: kinds[(first + number) % 4],
                        spans: vec![Bytes::from(vec![number as u8; 1000 + 17 * number])],
                    })
                    .collect();
                let alone: Vec<_> = requests.iter().map(|r| compute(r.kind, &r.spans)).collect();
                assert_eq!(compute_all(&requests), alone);
            }
        }
    }
}
