//! Counts by key.

use std::collections::BTreeMap;

/// Counts by key, of which only those above zero take memory. Every operation is O(log n).
///
/// ```
/// use ecs_torrent_protocol::tally::Tally;
///
/// let mut tally = Tally::default();
/// tally.add("a");
/// tally.add("a");
/// assert!(tally.remove(&"a") && !tally.remove(&"b"));
/// assert_eq!((tally.of(&"a"), tally.of(&"b")), (1, 0));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally<K>(BTreeMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Tally<K> {
    /// Counts one more.
    pub fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    /// Counts one less; false if the count is zero already.
    pub fn remove(&mut self, key: &K) -> bool {
        match self.0.get_mut(key) {
            Some(1) => self.0.remove(key).is_some(),
            Some(count) => {
                *count -= 1;
                true
            }
            None => false,
        }
    }

    /// Returns the count of a key.
    #[must_use]
    pub fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    /// Returns the keys whose counts are above zero, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// Returns the number of keys whose counts are above zero.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all counts are zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
