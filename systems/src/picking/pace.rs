//! The speed of the fastest peer of a torrent.

use std::time::Duration;

use ecs_torrent_protocol::time::Timestamp;

/// Time after which a peer that was fast no longer counts: it may have become slow, or be gone.
const MEMORY: Duration = Duration::from_secs(2);

/// The shortest time in which a peer of a torrent sends a requested block.
#[derive(Debug, Default)]
pub(super) struct Pace {
    best: Option<(Duration, Timestamp)>,
}

impl Pace {
    /// Records how long a peer takes for a block, and returns the shortest time.
    pub(super) fn record(&mut self, now: Timestamp, took: Duration) -> Duration {
        let best = self.best.filter(|(best, at)| *best < took && now.since(*at) < MEMORY);
        let (best, at) = best.unwrap_or((took, now));
        self.best = Some((best, at));
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_peer_counts_for_a_while() {
        let mut pace = Pace::default();
        let at = |millis| Timestamp::ZERO + Duration::from_millis(millis);
        let [fast, slow] = [100, 900].map(Duration::from_millis);
        assert_eq!(pace.record(at(0), slow), slow);
        assert_eq!(pace.record(at(1), fast), fast);
        assert_eq!(pace.record(at(2000), slow), fast);
        assert_eq!(pace.record(at(2001), slow), slow, "the fast one is gone");
    }
}
