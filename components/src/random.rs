//! Randomness, as systems see it: one seeded stream, so that a run can be repeated with its seed.

use bevy_ecs::prelude::*;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The engine's random number generator: ChaCha with 8 rounds. Its output cannot be predicted from earlier output, so
/// that no outsider can guess transaction ids, and `rand_chacha` guarantees the same stream on every platform and in
/// every version, which `rand`'s own `StdRng` does not. The operating system seeds a real engine; the scenario seeds a
/// simulated one.
///
/// ```
/// use ecs_torrent_components::random::Random;
///
/// let mut random = Random::from_seed([7; 32]);
/// let mut pieces = [0, 1, 2, 3];
/// random.shuffle(&mut pieces);
/// assert!(random.below(4) < 4);
/// // The same seed gives the same order on every machine.
/// let mut again = [0, 1, 2, 3];
/// Random::from_seed([7; 32]).shuffle(&mut again);
/// assert_eq!(pieces, again);
/// ```
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
        match bound {
            0 => 0,
            _ => self.0.random_range(..bound),
        }
    }

    /// Returns random bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Shuffles `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }

    /// Returns the generator itself, for the distributions of the `rand` crate.
    pub fn generator(&mut self) -> &mut impl Rng {
        &mut self.0
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
