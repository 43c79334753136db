//! Randomness, as systems see it: one seeded stream, so that a run can be repeated with its seed.

use bevy_ecs::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The engine's random number generator. The operating system seeds a real engine, so that no outsider can guess
/// transaction ids; the scenario seeds a simulated one.
#[derive(Resource, Debug, Clone)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// Creates the stream of `seed`.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(seed))
    }

    /// Returns a random number.
    pub fn number(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Returns a random number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The high half of the product: as uniform as 32 random bits allow over so small a range.
        ((u64::from(self.number()) * bound as u64) >> 32) as usize
    }

    /// Returns random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Shuffles `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_stream() {
        let run = |seed| {
            let mut random = Random::from_seed([seed; 32]);
            (random.number(), random.bytes::<12>(), random.below(1000))
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_it() {
        let mut random = Random::from_seed([3; 32]);
        let mut seen = [false; 7];
        (0..200).for_each(|_| seen[random.below(7)] = true);
        assert_eq!(seen, [true; 7]);
        assert_eq!(random.below(0), 0);
    }
}
