//! The order in which a torrent's trackers are used (BEP 12).

/// Trackers in tiers, each tracker identified by a `T`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiers<T> {
    tiers: Vec<Vec<T>>,
}

impl<T> Default for Tiers<T> {
    fn default() -> Self {
        Self { tiers: Vec::new() }
    }
}

/// The set of trackers that receive each announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AnnounceReach {
    /// One tracker of all tiers: the next is tried only if all previous trackers failed (BEP 12).
    #[default]
    FirstWorking,
    /// One tracker of each tier.
    EachTier,
    /// Every tracker.
    EachTracker,
}

impl<T: Copy + PartialEq> Tiers<T> {
    /// Appends a tier, unless it is empty. `shuffle` puts it into a random order, as BEP 12 requires when a list is
    /// first read.
    pub fn push(&mut self, mut tier: Vec<T>, shuffle: impl FnOnce(&mut [T])) {
        if !tier.is_empty() {
            shuffle(&mut tier);
            self.tiers.push(tier);
        }
    }

    /// Number of tiers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tiers.len()
    }

    /// Whether there is no tracker.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tiers.is_empty()
    }

    /// Moves a tracker that answered to the front of its tier (BEP 12).
    pub fn promote(&mut self, tracker: T) {
        for tier in &mut self.tiers {
            if let Some(position) = tier.iter().position(|&other| other == tracker) {
                tier[..=position].rotate_right(1);
            }
        }
    }

    /// The chains of trackers that receive announces independently: in each chain, the first successful tracker is
    /// enough.
    #[must_use]
    pub fn chains(&self, reach: AnnounceReach) -> Vec<Vec<T>> {
        match reach {
            AnnounceReach::FirstWorking => match self.tiers.is_empty() {
                true => Vec::new(),
                false => vec![self.iter().collect()],
            },
            AnnounceReach::EachTier => self.tiers.clone(),
            AnnounceReach::EachTracker => self.iter().map(|tracker| vec![tracker]).collect(),
        }
    }

    /// The tiers, in the order in which they are tried.
    pub fn tiers(&self) -> impl Iterator<Item = &[T]> {
        self.tiers.iter().map(Vec::as_slice)
    }

    /// All trackers in the order in which they are tried, each with the number of its tier.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, T)> + '_ {
        let tiers = self.tiers.iter().enumerate();
        tiers.flat_map(|(number, tier)| tier.iter().map(move |tracker| (number, *tracker)))
    }

    /// All trackers in the order in which they are tried.
    pub fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.tiers.iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(list: &[&[&'static str]]) -> Tiers<&'static str> {
        let mut tiers = Tiers::default();
        list.iter().for_each(|tier| tiers.push(tier.to_vec(), |_| {}));
        tiers
    }

    /// The second example of BEP 12.
    #[test]
    fn an_answering_tracker_moves_to_the_front_of_its_tier() {
        let mut list = tiers(&[&["tracker1", "tracker2", "tracker3"], &["backup"]]);
        list.promote("tracker2");
        assert_eq!(
            list.iter().collect::<Vec<_>>(),
            ["tracker2", "tracker1", "tracker3", "backup"]
        );
        list.promote("tracker3");
        assert_eq!(
            list.iter().collect::<Vec<_>>(),
            ["tracker3", "tracker2", "tracker1", "backup"]
        );
        list.promote("backup");
        assert_eq!(list.iter().last(), Some("backup"), "tiers keep their order");
        let numbered: Vec<_> = list.numbered().collect();
        assert_eq!(
            numbered,
            [(0, "tracker3"), (0, "tracker2"), (0, "tracker1"), (1, "backup")]
        );
        assert!(list.tiers().map(<[_]>::len).eq([3, 1]));
    }

    #[test]
    fn shuffling_stays_within_tiers() {
        let mut shuffled = Tiers::default();
        for tier in [(0..10).collect::<Vec<u32>>(), Vec::new(), (10..12).collect()] {
            shuffled.push(tier, <[u32]>::reverse);
        }
        assert_eq!(shuffled.len(), 2);
        assert!(shuffled.iter().eq((0..10).rev().chain([11, 10])));
    }

    #[test]
    fn reach_decides_which_trackers_are_alternatives() {
        let list = tiers(&[&["a", "b"], &["c"]]);
        assert_eq!(list.chains(AnnounceReach::FirstWorking), [["a", "b", "c"]]);
        assert_eq!(list.chains(AnnounceReach::EachTier), [vec!["a", "b"], vec!["c"]]);
        assert_eq!(list.chains(AnnounceReach::EachTracker), [["a"], ["b"], ["c"]]);
    }
}
