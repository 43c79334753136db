//! The Hash port: digests over memory, computed off the world's thread.

use bytes::Bytes;
use ecs_torrent_protocol::hash::Sha1Digest;
use ecs_torrent_protocol::sha1_pair::sha1_pair;

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
    /// From the request.
    pub tag: JobTag,
    /// The digests. `None` if the job panicked.
    pub digests: Option<Digests>,
    /// The bytes, given back.
    pub spans: Vec<Bytes>,
}

/// The digests of a piece or of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digests {
    /// The digest of a piece.
    Piece(Sha1Digest),
    /// The digests of blocks, in order.
    Blocks(Vec<Sha1Digest>),
}

impl PortEvent for HashEvent {
    fn purpose(&self) -> Purpose {
        self.tag.purpose
    }
}

/// Computes a request. For backends.
#[must_use]
pub fn compute(kind: HashKind, spans: &[Bytes]) -> Digests {
    use sha1::{Digest as _, Sha1};
    match kind {
        HashKind::Sha1Piece => {
            let mut hasher = Sha1::new();
            spans.iter().for_each(|span| hasher.update(span));
            Digests::Piece(hasher.finalize().into())
        }
        HashKind::Sha1Blocks(len) => {
            let mut digests = Vec::new();
            let (mut hasher, mut filled) = (Sha1::new(), 0);
            for span in spans {
                let mut rest = &span[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min((len - filled) as usize));
                    hasher.update(now);
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
            Digests::Blocks(digests)
        }
    }
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
    use ecs_torrent_protocol::hash::sha1;

    use super::*;

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
    fn digests_do_not_depend_on_other_blocks_of_the_batch() {
        let kinds = [HashKind::Sha1Piece, HashKind::Sha1Piece, HashKind::Sha1Blocks(100)];
        for count in 0..=3 {
            for first in 0..3 {
                let requests: Vec<_> = (0..count)
                    .map(|number| HashRequest {
                        tag: JobTag::new(Purpose("test"), Entity::PLACEHOLDER),
                        kind: kinds[(first + number) % 3],
                        spans: vec![Bytes::from(vec![number as u8; 1000 + 17 * number])],
                    })
                    .collect();
                let alone: Vec<_> = requests.iter().map(|r| compute(r.kind, &r.spans)).collect();
                assert_eq!(compute_all(&requests), alone);
            }
        }
    }
}
