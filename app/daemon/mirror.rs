//! A copy of the engine's list of torrents, from which lists, totals and changes are answered.
//!
//! Each answer first gets the changes since the last one from the engine, which costs the engine nothing for torrents
//! that have not changed. Sorting and filtering take place here, and do not hold up the engine.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ecs_torrent_components::changes::{Changes, GetChanges, RemovedTorrents, Revision};
use ecs_torrent_components::stats::{Speed, TorrentStats};
use ecs_torrent_protocol::hash::InfoHash;
use serde::Serialize;
use tokio::sync::Mutex;

use crate::Error;
use crate::torrents::Torrents;

/// Torrents that the engine describes in one tick. A description takes about a microsecond.
const BATCH: usize = 1000;

/// The copy, and the state that keeps it up to date.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    listing: RwLock<Listing>,
    readings: Readings,
}

impl Mirror {
    /// Reads the changes until now. Callers that wait at the same time share a reading.
    pub(super) async fn refresh(&self, torrents: &Torrents) -> Result<(), Error> {
        self.readings.share(|| self.read(torrents)).await
    }

    async fn read(&self, torrents: &Torrents) -> Result<(), Error> {
        loop {
            let since = self.listing().engine;
            let get = |reply| GetChanges {
                since,
                max_count: BATCH,
                reply,
            };
            let changes = torrents.ask(get).await?;
            let has_more = changes.has_more;
            self.listing
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .apply(changes);
            if !has_more {
                return Ok(());
            }
        }
    }

    /// Returns the listing. It must not be held across an `await`.
    pub(super) fn listing(&self) -> RwLockReadGuard<'_, Listing> {
        self.listing.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readings that take place one after another.
#[derive(Debug, Default)]
struct Readings {
    /// Number of readings that have begun.
    begun: AtomicU64,
    /// The number of the latest reading that has succeeded. Held during a reading.
    succeeded: Mutex<u64>,
}

impl Readings {
    /// Returns once a reading that began after this call has succeeded: another caller's, or this one.
    async fn share<E>(&self, read: impl AsyncFnOnce() -> Result<(), E>) -> Result<(), E> {
        let before = self.begun.load(Ordering::SeqCst);
        let mut succeeded = self.succeeded.lock().await;
        if *succeeded <= before {
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            read().await?;
            *succeeded = number;
        }
        Ok(())
    }
}

/// A torrent of the listing.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) stats: Arc<TorrentStats>,
    /// The name in lower case, by which lists are sorted and searched.
    pub(super) lower_name: Box<str>,
    /// The number of the latest change.
    number: u64,
}

/// The torrents, as last read.
#[derive(Debug, Default)]
pub(super) struct Listing {
    rows: HashMap<InfoHash, Row>,
    by_number: BTreeMap<u64, InfoHash>,
    removed: RemovedTorrents,
    /// The number of the latest change.
    latest: u64,
    totals: Totals,
    /// The engine's revision of the latest reading.
    engine: Option<Revision>,
}

/// Sums over all listed torrents.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(super) struct Totals {
    torrents: u64,
    /// Number of torrents by state.
    pub(super) states: BTreeMap<&'static str, u64>,
    pub(super) size: u64,
    pub(super) completed: u64,
    pub(super) left: u64,
    downloaded: u64,
    uploaded: u64,
    corrupt: u64,
    wasted: u64,
    speed: Speed,
    pub(super) peer_count: u64,
}

impl Totals {
    /// Adds a torrent. The counters of torrents come from files that a user can edit, so sums may overflow; since they
    /// wrap, subtracting the torrent later gives the right sum again.
    fn add(&mut self, stats: &TorrentStats) {
        *self.states.entry(stats.state.name()).or_default() += 1;
        self.change(stats, u64::wrapping_add);
    }

    fn subtract(&mut self, stats: &TorrentStats) {
        if let Some(count) = self.states.get_mut(stats.state.name()) {
            *count -= 1;
            if *count == 0 {
                self.states.remove(stats.state.name());
            }
        }
        self.change(stats, u64::wrapping_sub);
    }

    fn change(&mut self, stats: &TorrentStats, change: fn(u64, u64) -> u64) {
        let sums = [
            (&mut self.torrents, 1),
            (&mut self.size, stats.size.unwrap_or_default()),
            (&mut self.completed, stats.completed),
            (&mut self.left, stats.left.unwrap_or_default()),
            (&mut self.downloaded, stats.downloaded),
            (&mut self.uploaded, stats.uploaded),
            (&mut self.corrupt, stats.corrupt),
            (&mut self.wasted, stats.wasted),
            (&mut self.speed.download, stats.speed.download),
            (&mut self.speed.upload, stats.speed.upload),
            (&mut self.peer_count, stats.peer_count.into()),
        ];
        for (sum, value) in sums {
            *sum = change(*sum, value);
        }
    }
}

/// Changes of the copy after a mark.
pub(super) struct Difference {
    pub(super) mark: Revision,
    /// Whether the mark was not known, so that this is the whole list.
    pub(super) is_reset: bool,
    pub(super) removed: Vec<InfoHash>,
    pub(super) changed: Vec<Arc<TorrentStats>>,
    pub(super) has_more: bool,
}

impl Listing {
    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &Row> {
        self.rows.values()
    }

    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns the mark of the latest change.
    pub(super) fn mark(&self) -> Revision {
        Revision {
            run: self.engine.map_or(0, |revision| revision.run),
            number: self.latest,
        }
    }

    /// Returns at most `max_count` torrents that have changed after `since`, the earliest change first.
    pub(super) fn after(&self, since: Option<Revision>, max_count: usize) -> Difference {
        let now = self.mark();
        let is_known = |since: &Revision| {
            since.run == now.run && since.number <= now.number && self.removed.is_complete_after(since.number)
        };
        let known = since.filter(is_known);
        let from = known.map_or(0, |since| since.number);
        let mut newer = self.by_number.range(from.saturating_add(1)..);
        let changed: Vec<_> = newer.by_ref().take(max_count).collect();
        let has_more = newer.next().is_some();
        let until = match changed.last() {
            Some((number, _)) if has_more => **number,
            _ => self.latest,
        };
        let stats = |hash: &InfoHash| self.rows.get(hash).map(|row| row.stats.clone());
        Difference {
            mark: Revision { number: until, ..now },
            is_reset: known.is_none(),
            removed: match known {
                Some(_) => self.removed.between(from, until),
                None => Vec::new(),
            },
            changed: changed.into_iter().filter_map(|(_, hash)| stats(hash)).collect(),
            has_more,
        }
    }

    fn apply(&mut self, changes: Changes) {
        if changes.is_reset {
            // Every earlier mark becomes unknown, because the removed torrents are not known.
            let latest = self.latest + 1;
            *self = Self {
                latest,
                removed: RemovedTorrents::since(latest),
                ..Self::default()
            };
        }
        for hash in changes.removed {
            self.remove(hash);
        }
        for stats in changes.changed {
            self.set(stats);
        }
        self.engine = Some(changes.revision);
    }

    fn remove(&mut self, hash: InfoHash) {
        let Some(row) = self.rows.remove(&hash) else {
            return;
        };
        self.by_number.remove(&row.number);
        self.totals.subtract(&row.stats);
        self.latest += 1;
        self.removed.push(self.latest, hash);
    }

    fn set(&mut self, stats: TorrentStats) {
        let hash = stats.info_hash;
        if self.rows.get(&hash).is_some_and(|row| *row.stats == stats) {
            return;
        }
        self.latest += 1;
        self.totals.add(&stats);
        let lower_name = match self.rows.get_mut(&hash) {
            Some(row) if row.stats.name == stats.name => std::mem::take(&mut row.lower_name),
            _ => stats.name.to_lowercase().into(),
        };
        let row = Row {
            stats: stats.into(),
            lower_name,
            number: self.latest,
        };
        self.by_number.insert(self.latest, hash);
        if let Some(last) = self.rows.insert(hash, row) {
            self.by_number.remove(&last.number);
            self.totals.subtract(&last.stats);
        }
    }
}

/// Samples for tests.
#[cfg(test)]
pub(super) mod samples {
    use ecs_torrent_components::lifecycle::TorrentState;

    use super::*;

    /// Returns the state of a torrent that is named after a number.
    pub(in crate::daemon) fn stats(number: u32) -> TorrentStats {
        let mut hash = [0; 20];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        TorrentStats {
            info_hash: InfoHash(hash),
            name: format!("Torrent {number}"),
            state: TorrentState::Downloading,
            error: None,
            private: false,
            added_at: 1_700_000_000 + u64::from(number),
            completed_at: None,
            active_at: None,
            speed: Speed::default(),
            downloaded: 0,
            uploaded: 0,
            corrupt: 0,
            wasted: 0,
            size: Some(100),
            completed: 0,
            unverified: 0,
            wanted: Some(100),
            left: Some(100),
            checked: 0,
            pieces: None,
            metadata: None,
            moving: None,
            labels: Vec::new(),
            category: None,
            limits: Default::default(),
            seeding: Default::default(),
            limit_reached: None,
            queue: Default::default(),
            seconds_active: 0,
            seconds_seeding: 0,
            sequential: false,
            ends_first: false,
            root: "/".into(),
            complete_root: None,
            peer_count: 0,
            order: ecs_torrent_protocol::time::Timestamp::ZERO,
            availability: None,
            peers: Vec::new(),
            trackers: Vec::new(),
            sources: Vec::new(),
        }
    }

    /// Creates a copy of these torrents.
    pub(in crate::daemon) fn listing_of(torrents: impl IntoIterator<Item = TorrentStats>) -> Listing {
        let mut listing = Listing::default();
        listing.apply(changes(1, true, [], torrents));
        listing
    }

    /// Returns changes as the engine reports them.
    pub(super) fn changes(
        number: u64,
        is_reset: bool,
        removed: impl IntoIterator<Item = InfoHash>,
        changed: impl IntoIterator<Item = TorrentStats>,
    ) -> Changes {
        Changes {
            revision: Revision { run: 0xab, number },
            is_reset,
            removed: removed.into_iter().collect(),
            changed: changed.into_iter().collect(),
            has_more: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::lifecycle::TorrentState;

    use super::samples::{changes, listing_of, stats};
    use super::*;

    /// Callers that wait share a reading that has succeeded, never one that has failed.
    #[tokio::test]
    async fn only_readings_that_succeed_are_shared() {
        let readings = Readings::default();
        let count = AtomicU64::new(0);
        // The first reading began before the others ask, the second fails.
        let read = async || {
            tokio::task::yield_now().await;
            match count.fetch_add(1, Ordering::SeqCst) {
                1 => Err("the engine is busy"),
                _ => Ok(()),
            }
        };
        let ask = || readings.share(&read);
        let answers = tokio::join!(ask(), ask(), ask(), ask());
        assert_eq!(answers, (Ok(()), Err("the engine is busy"), Ok(()), Ok(())));
        assert_eq!(
            count.into_inner(),
            3,
            "the fourth caller shares the reading of the third"
        );
    }

    fn names(difference: &Difference) -> Vec<&str> {
        difference.changed.iter().map(|stats| &*stats.name).collect()
    }

    #[test]
    fn a_difference_has_what_changed_and_what_went() {
        let mut listing = listing_of((0..4).map(stats));
        let first = listing.after(None, usize::MAX);
        assert_eq!((first.is_reset, first.changed.len(), first.has_more), (true, 4, false));
        let nothing = listing.after(Some(first.mark), usize::MAX);
        assert_eq!(
            (nothing.is_reset, nothing.changed.len(), nothing.mark),
            (false, 0, first.mark)
        );

        let faster = TorrentStats {
            speed: Speed { download: 7, upload: 0 },
            ..stats(2)
        };
        // A torrent that is reported as changed but equals its copy is not a change for clients.
        listing.apply(changes(2, false, [stats(0).info_hash], [stats(1), faster]));
        let next = listing.after(Some(first.mark), usize::MAX);
        assert_eq!(
            (names(&next), next.removed.clone()),
            (vec!["Torrent 2"], vec![stats(0).info_hash])
        );
        let known: Revision = first.mark.to_string().parse().unwrap();
        assert_eq!(known, first.mark);
    }

    #[test]
    fn a_difference_comes_in_parts() {
        let listing = listing_of((0..5).map(stats));
        let mut since = None;
        let mut seen = Vec::new();
        loop {
            let part = listing.after(since, 2);
            assert_eq!(part.is_reset, since.is_none());
            seen.extend(names(&part).into_iter().map(str::to_owned));
            since = Some(part.mark);
            if !part.has_more {
                break;
            }
        }
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn unknown_and_old_marks_get_everything() {
        let mut listing = listing_of([stats(0)]);
        let mark = listing.mark();
        listing.apply(changes(9, true, [], [stats(0)]));
        assert!(
            listing.after(Some(mark), 9).is_reset,
            "the engine has forgotten what went"
        );
        let mark = listing.mark();
        let other_run = Revision { run: 1, ..mark };
        let future = Revision {
            number: mark.number + 1,
            ..mark
        };
        for unknown in [other_run, future] {
            assert!(listing.after(Some(unknown), 9).is_reset);
        }
        for number in 0..=RemovedTorrents::MAX as u32 {
            listing.apply(changes(2, false, [], [stats(1 + number)]));
            listing.apply(changes(2, false, [stats(1 + number).info_hash], []));
        }
        assert_eq!(
            (listing.removed.len(), listing.by_number.len()),
            (RemovedTorrents::MAX, 1)
        );
        assert!(listing.after(Some(mark), 9).is_reset);
        // An engine that was rebuilt has another run.
        let mark = listing.mark();
        let rebuilt = Changes {
            revision: Revision { run: 2, number: 1 },
            ..changes(1, true, [], [stats(5)])
        };
        listing.apply(rebuilt);
        let difference = listing.after(Some(mark), 9);
        assert_eq!((difference.is_reset, names(&difference)), (true, vec!["Torrent 5"]));
        for text in ["", "-", "x-1", "1-x", "1", "1-1-1", "1-99999999999999999999"] {
            assert!(text.parse::<Revision>().is_err(), "{text}");
        }
    }

    /// The sums follow changes and removals, whatever the counters of a torrent are.
    #[test]
    fn totals_are_sums() {
        let huge = TorrentStats {
            uploaded: u64::MAX,
            state: TorrentState::Seeding,
            ..stats(1)
        };
        let mut listing = listing_of([stats(0), huge]);
        assert_eq!((listing.totals.torrents, listing.totals.size), (2, 200));
        assert_eq!(
            listing.totals.states,
            BTreeMap::from([("downloading", 1), ("seeding", 1)])
        );
        let one = TorrentStats {
            uploaded: 5,
            peer_count: 3,
            ..stats(0)
        };
        listing.apply(changes(2, false, [stats(1).info_hash], [one]));
        let totals = &listing.totals;
        assert_eq!((totals.torrents, totals.uploaded, totals.peer_count), (1, 5, 3));
        assert_eq!(totals.states, BTreeMap::from([("downloading", 1)]));
    }
}
