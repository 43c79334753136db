//! Merkle trees over a file's blocks (BEP 52): leaves are the SHA-256 of 16 KiB blocks, and leaves beyond the end of
//! the file are zero.

use crate::hash::{Sha256Digest, sha256};

/// The leaf of a block beyond the end of the file.
const ZERO_LEAF: Sha256Digest = [0; 32];

/// Computes the root of a subtree with `2^height` leaves, all beyond the end of the file.
#[must_use]
pub fn zero_root(height: u32) -> Sha256Digest {
    (0..height).fold(ZERO_LEAF, |child, _| sha256([&child[..], &child]))
}

/// Computes the root over `layer`, nodes with `2^height` leaves each. The layer is filled up with subtrees beyond the
/// end of the file to `width` nodes, and in any case to a power of two. `None` for an empty layer.
#[must_use]
pub fn root(mut layer: Vec<Sha256Digest>, height: u32, width: u32) -> Option<Sha256Digest> {
    if layer.is_empty() {
        return None;
    }
    let mut width = (width as usize).max(layer.len()).next_power_of_two();
    let mut padding = zero_root(height);
    while width > 1 {
        for pair in 0..layer.len().div_ceil(2) {
            let right = layer.get(2 * pair + 1).unwrap_or(&padding);
            layer[pair] = sha256([&layer[2 * pair][..], right]);
        }
        layer.truncate(layer.len().div_ceil(2));
        padding = sha256([&padding[..], &padding]);
        width /= 2;
    }
    layer.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(left: Sha256Digest, right: Sha256Digest) -> Sha256Digest {
        sha256([&left[..], &right])
    }

    #[test]
    fn layers_are_filled_up_with_zeros() {
        let [a, b, c] = [[1; 32], [2; 32], [3; 32]];
        let zero = ZERO_LEAF;
        assert_eq!(root(vec![], 0, 4), None);
        assert_eq!(root(vec![a], 0, 1), Some(a), "a file of one block");
        assert_eq!(root(vec![a, b, c], 0, 0), Some(pair(pair(a, b), pair(c, zero))));
        let wide = pair(pair(pair(a, b), pair(c, zero)), zero_root(2));
        assert_eq!(root(vec![a, b, c], 0, 8), Some(wide), "the last piece of a longer file");
        assert_eq!(root(vec![a, b, c], 1, 4), Some(pair(pair(a, b), pair(c, zero_root(1)))));
    }

    #[test]
    fn a_tree_is_the_tree_of_its_piece_layer() {
        let leaves: Vec<Sha256Digest> = (0..11).map(|leaf| [leaf; 32]).collect();
        let pieces = leaves.chunks(4).map(|piece| root(piece.to_vec(), 0, 4).unwrap());
        assert_eq!(root(pieces.collect(), 2, 0), root(leaves, 0, 0));
    }
}
