//! Random numbers of a simulation: one stream per purpose, so that the draws of one fault do not shift another.

use ecs_torrent_components::random::Random;
use rand::RngExt;

use super::NodeId;

/// The stream of random numbers for `purpose` at `node`, in the simulation with this seed.
pub(super) fn stream(seed: u64, purpose: &[u8; 8], node: NodeId) -> Random {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(node.0 as u64).to_le_bytes());
    key[16..24].copy_from_slice(purpose);
    Random::from_seed(key)
}

/// Whether an event of this probability happens now.
pub(super) fn happens(random: &mut Random, probability: f64) -> bool {
    // An impossible event draws nothing, so that a fault that is off shifts nothing.
    if probability <= 0.0 {
        return false;
    }
    random.generator().random_bool(probability.min(1.0))
}

/// A random number from 0 to `most`.
pub(super) fn up_to(random: &mut Random, most: u64) -> u64 {
    // The only number draws nothing.
    if most == 0 {
        return 0;
    }
    random.generator().random_range(0..=most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_purpose_and_node() {
        let first = |seed, purpose, node| stream(seed, purpose, NodeId(node)).bytes::<8>();
        let drawn = [
            first(1, b"jitter  ", 0),
            first(2, b"jitter  ", 0),
            first(1, b"loss    ", 0),
            first(1, b"jitter  ", 1),
        ];
        for (position, one) in drawn.iter().enumerate() {
            assert!(!drawn[..position].contains(one));
        }
        assert_eq!(drawn[0], first(1, b"jitter  ", 0));
    }

    #[test]
    fn chances_match_their_probability() {
        let mut random = stream(1, b"test    ", NodeId(0));
        let count = (0..10_000).filter(|_| happens(&mut random, 0.25)).count();
        assert!((2300..2700).contains(&count), "{count}");
        assert!(!happens(&mut random, 0.0) && happens(&mut random, 1.1));
        let most = (0..1000).map(|_| up_to(&mut random, 3)).max();
        assert_eq!(most, Some(3));
    }
}
