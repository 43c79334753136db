//! Answers to user queries: the list of torrents, and the state of each.

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{CandidateSource, CandidateSources, Candidates, SourceCounts};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{CommandQueue, GetFiles, GetStats, ListTorrents, TorrentNotFound};
use ecs_torrent_components::incomplete::CompleteRoot;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::lifecycle::{Moving, Readiness};
use ecs_torrent_components::peer::{Direction, Peer, PeerPieces, PeerRates, PeerState, Transport};
use ecs_torrent_components::queue::{ForcedStart, QueueOrder, QueueStats, SlowTransfer};
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::seeding::{SeedingLimits, SeedingRecord, SeedingTime};
use ecs_torrent_components::stats::{
    FileStats, MetadataProgress, MoveStats, PeerStats, PieceCounts, SourceStats, Speed, TorrentStats, TrackerStats,
};
use ecs_torrent_components::torrent::{
    Activity, Content, Counters, Dates, Have, Layout, Lifecycle, Storage, Torrent, TorrentIndex, TorrentPeers,
    TorrentRates,
};
use ecs_torrent_components::tracker::{Tracker, TrackerStatus, TrackerTiers};
use ecs_torrent_components::unverified::Unverified;
use ecs_torrent_components::wanted::{FileChoice, WantedPieces, unneeded};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileEntry;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::redacted;

use crate::checking::Check;
use crate::metadata::MetadataFetch;
use crate::picking::Picker;

/// Answers queries about torrents.
pub struct StatsPlugin;

impl Plugin for StatsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<CommandQueue<ListTorrents>>()
            .init_resource::<CommandQueue<GetStats>>()
            .init_resource::<CommandQueue<GetFiles>>()
            .add_systems(
                Tick,
                (list_torrents, answer_stats, answer_files)
                    .chain()
                    .run_if(has_queries)
                    .in_set(crate::DecideSet::Stats),
            );
    }
}

/// Returns whether there are queries to answer.
fn has_queries(
    lists: Res<CommandQueue<ListTorrents>>,
    stats: Res<CommandQueue<GetStats>>,
    files: Res<CommandQueue<GetFiles>>,
) -> bool {
    !lists.0.is_empty() || !stats.0.is_empty() || !files.0.is_empty()
}

fn list_torrents(mut commands: ResMut<CommandQueue<ListTorrents>>, torrents: Query<&Torrent>) {
    for ListTorrents { reply } in commands.0.drain(..) {
        let mut all: Vec<&Torrent> = torrents.iter().collect();
        all.sort_by_key(|torrent| (torrent.added, torrent.id()));
        reply.send(all.into_iter().map(Torrent::id).collect());
    }
}

/// The components of a torrent that lists report.
type TorrentData = (
    &'static Torrent,
    (&'static Lifecycle, &'static Readiness),
    (
        &'static Counters,
        &'static Activity,
        &'static Dates,
        &'static TorrentRates,
    ),
    (&'static Storage, Option<&'static CompleteRoot>),
    Option<(&'static Layout, &'static Have)>,
    (
        Option<&'static WantedPieces>,
        Option<&'static FileChoice>,
        Option<&'static TransferLimits>,
        Option<&'static Labels>,
    ),
    (
        Option<&'static SeedingLimits>,
        Option<&'static SeedingRecord>,
        Option<&'static SeedingTime>,
        (Option<&'static QueueOrder>, Has<ForcedStart>, Has<SlowTransfer>),
    ),
    (
        Option<&'static Check>,
        Option<&'static Moving>,
        Option<&'static Unverified>,
    ),
    Option<&'static MetadataFetch>,
    Option<&'static TorrentPeers>,
);

/// The components that only queries about a single torrent report.
type Details = (
    &'static Lifecycle,
    Option<&'static Layout>,
    Option<&'static Picker>,
    &'static Candidates,
    Option<&'static TorrentPeers>,
    Option<&'static TrackerTiers>,
);

/// Parameters that describe torrents for users.
#[derive(SystemParam)]
pub(crate) struct StatsParams<'w, 's> {
    clock: Res<'w, Clock>,
    index: Res<'w, TorrentIndex>,
    sources: Res<'w, CandidateSources>,
    torrents: Query<'w, 's, TorrentData>,
    details: Query<'w, 's, Details>,
    peers: Query<
        'w,
        's,
        (
            &'static Peer,
            &'static PeerState,
            &'static PeerRates,
            &'static PeerPieces,
        ),
    >,
    trackers: Query<'w, 's, &'static Tracker>,
}

fn answer_stats(mut commands: ResMut<CommandQueue<GetStats>>, params: StatsParams) {
    for GetStats { torrent, reply } in commands.0.drain(..) {
        reply.send(params.stats(torrent).ok_or(TorrentNotFound(torrent)));
    }
}

impl StatsParams<'_, '_> {
    /// Returns everything about a torrent.
    fn stats(&self, info_hash: InfoHash) -> Option<TorrentStats> {
        let entity = self.index.get(info_hash)?;
        let (lifecycle, layout, picker, candidates, peers, trackers) = self.details.get(entity).ok()?;
        let peers = peers.into_iter().flat_map(RelationshipTarget::iter);
        let trackers = trackers.into_iter().flat_map(|tiers| tiers.0.numbered());
        let tracker = |(tier, entity)| self.tracker(tier, entity, lifecycle);
        Some(TorrentStats {
            availability: picker
                .filter(|_| lifecycle.wants_peers())
                .map(|picker| picker.order.copies()),
            peers: peers.filter_map(|peer| self.peer(peer, layout)).collect(),
            trackers: trackers.filter_map(tracker).collect(),
            sources: candidates
                .counts()
                .map(|(source, counts)| self.source(source, counts))
                .collect(),
            ..self.row(entity)?
        })
    }

    /// Returns what lists show about a torrent: everything but availability, peers, trackers and sources.
    pub(crate) fn row(&self, entity: Entity) -> Option<TorrentStats> {
        let now = self.clock.now();
        let (
            torrent,
            (lifecycle, readiness),
            (counters, activity, dates, rates),
            (storage, complete_root),
            sizes,
            (wanted, choice, limits, labels),
            (seeding, record, seeding_time, (order_in_queue, forced, slow)),
            (check, moving, unverified),
            fetch,
            peers,
        ) = self.torrents.get(entity).ok()?;
        let order = choice.map(|choice| choice.order).unwrap_or_default();
        Some(TorrentStats {
            info_hash: torrent.id(),
            name: torrent.name.to_string(),
            state: lifecycle.state(),
            error: match lifecycle {
                Lifecycle::Failed { reason, .. } | Lifecycle::Blocked { resource: reason } => Some(reason.to_string()),
                _ => None,
            },
            private: torrent.private,
            added_at: dates.added,
            completed_at: dates.completed,
            active_at: dates.active(rates, &self.clock),
            speed: speed_of(lifecycle, *readiness, rates, now),
            downloaded: counters.downloaded,
            uploaded: counters.uploaded,
            corrupt: counters.corrupt,
            wasted: counters.wasted + counters.dropped,
            size: sizes.map(|(layout, _)| layout.0.pieces_size()),
            completed: sizes.map_or(0, |(layout, have)| layout.0.size_of(have)),
            unverified: unverified_size(sizes, unverified),
            wanted: sizes.map(|(layout, _)| wanted_size(&layout.0, wanted)),
            left: sizes.map(|(layout, have)| layout.0.pieces_size() - layout.0.size_of(unneeded(have, wanted))),
            checked: checked_size(sizes, check),
            moving: moving.map(MoveStats::from),
            pieces: sizes.map(|(Layout(geometry), have)| PieceCounts {
                total: geometry.piece_count(),
                held: have.count(),
                size: geometry.piece_length(),
            }),
            metadata: fetch.and_then(metadata_progress),
            labels: labels.map_or_else(Vec::new, |labels| labels.labels.iter().cloned().collect()),
            category: labels.and_then(|labels| labels.category.clone()),
            limits: limits.copied().unwrap_or_default(),
            seeding: seeding.copied().unwrap_or_default(),
            limit_reached: record.and_then(|record| record.reached),
            queue: QueueStats {
                order: order_in_queue.map_or(0, |order| order.0),
                forced,
                slow,
            },
            seconds_active: activity.total(now).as_secs(),
            seconds_seeding: seeding_time.map_or(0, |time| time.0.total(now).as_secs()),
            sequential: order.sequential,
            ends_first: order.ends_first,
            root: storage.root.clone(),
            complete_root: complete_root.map(|complete| complete.root.clone()),
            peer_count: peers.map_or(0, RelationshipTarget::len).try_into().unwrap_or(u32::MAX),
            order: torrent.added,
            availability: None,
            peers: Vec::new(),
            trackers: Vec::new(),
            sources: Vec::new(),
        })
    }

    fn peer(&self, entity: Entity, layout: Option<&Layout>) -> Option<PeerStats> {
        let now = self.clock.now();
        let (peer, state, rates, pieces) = self.peers.get(entity).ok()?;
        Some(PeerStats {
            address: peer.endpoint.address(),
            transport: peer.transport.map(Transport::name),
            is_incoming: peer.direction == Direction::Inbound,
            client: peer.client.to_string(),
            pieces: pieces.count(),
            progress: layout.map(|layout| f64::from(pieces.count()) / f64::from(layout.0.piece_count().max(1))),
            downloaded: rates.downloaded,
            uploaded: rates.uploaded,
            speed: Speed {
                download: rates.download.at(now),
                upload: rates.upload.at(now),
            },
            am_choking: state.am_choking,
            peer_choking: state.peer_choking,
            am_interested: state.am_interested,
            peer_interested: state.peer_interested,
        })
    }

    fn source(&self, source: CandidateSource, counts: SourceCounts) -> SourceStats {
        SourceStats {
            source: self.sources.name_of(source),
            found: counts.found,
            refused: counts.refused,
            connected: counts.connected,
        }
    }

    fn tracker(&self, tier: usize, entity: Entity, lifecycle: &Lifecycle) -> Option<TrackerStats> {
        let tracker = self.trackers.get(entity).ok()?;
        let route = tracker.best_route();
        let is_due =
            lifecycle.is_running() && matches!(route.status, TrackerStatus::Working | TrackerStatus::Failed(_));
        let (status, message): (_, Option<&Arc<str>>) = match tracker.status() {
            TrackerStatus::Idle => ("idle", None),
            TrackerStatus::Announcing => ("announcing", None),
            TrackerStatus::Working => ("working", None),
            TrackerStatus::Failed(reason) => ("failed", Some(reason)),
            TrackerStatus::Disabled(reason) => ("disabled", Some(reason)),
        };
        Some(TrackerStats {
            url: redacted(&tracker.url),
            tier,
            status,
            message: message.map(ToString::to_string).or(tracker.warning.clone()),
            seeders: tracker.seeders,
            leechers: tracker.leechers,
            completed: tracker.completed,
            peers: tracker.peers,
            next_announce_seconds: is_due.then(|| route.next_announce.since(self.clock.now()).as_secs()),
            failures: route.failures,
        })
    }
}

/// A torrent's sizes and held pieces, once the metadata is known.
type Sizes<'t> = Option<(&'t Layout, &'t Have)>;

/// Returns the number of bytes that a check has hashed, or did not need to hash.
fn checked_size(sizes: Sizes<'_>, check: Option<&Check>) -> u64 {
    let Some(((Layout(geometry), _), check)) = sizes.zip(check) else {
        return 0;
    };
    let checked = u64::from(check.checked_count()) * u64::from(geometry.piece_length());
    checked.min(geometry.pieces_size())
}

/// Returns the number of bytes that are held without a check.
fn unverified_size(sizes: Sizes<'_>, unverified: Option<&Unverified>) -> u64 {
    let found = sizes.zip(unverified);
    found.map_or(0, |((Layout(geometry), _), Unverified(pieces))| {
        geometry.size_of(pieces)
    })
}

/// Returns how much of the metadata has arrived.
fn metadata_progress(fetch: &MetadataFetch) -> Option<MetadataProgress> {
    let (received, pieces) = fetch.progress()?;
    Some(MetadataProgress { received, pieces })
}

/// Returns a torrent's speeds. Its rates decay for some seconds after the last byte.
fn speed_of(lifecycle: &Lifecycle, readiness: Readiness, rates: &TorrentRates, now: Timestamp) -> Speed {
    let is_receiving = lifecycle.is_receiving();
    // A torrent that is blocked by a full disk serves, one that is blocked by its volume does not.
    let is_sending = readiness == Readiness::Ready && lifecycle.is_sending();
    Speed {
        download: if is_receiving { rates.download(now) } else { 0 },
        upload: if is_sending { rates.upload(now) } else { 0 },
    }
}

/// Returns the size of all wanted pieces.
fn wanted_size(geometry: &Geometry, wanted: Option<&WantedPieces>) -> u64 {
    wanted.map_or(geometry.pieces_size(), |wanted| {
        wanted.iter().map(|piece| u64::from(geometry.piece_size(piece))).sum()
    })
}

fn answer_files(
    mut commands: ResMut<CommandQueue<GetFiles>>,
    index: Res<TorrentIndex>,
    torrents: Query<(Option<(&Content, &Layout, &Have)>, Option<&FileChoice>), With<Torrent>>,
) {
    for GetFiles { torrent, reply } in commands.0.drain(..) {
        let found = index.get(torrent).and_then(|entity| torrents.get(entity).ok());
        let files = found.map(|(known, choice)| {
            // The files are not known before the metadata is.
            let Some((content, Layout(geometry), have)) = known else {
                return Vec::new();
            };
            let files = (0u32..).zip(content.0.info.files.files());
            let stored = files.filter(|(_, file)| file.is_stored());
            let stats = stored.map(|(index, file)| FileStats {
                index,
                path: file.path.to_string(),
                length: file.len,
                completed: completed_bytes(file, geometry, have),
                priority: choice.map(|choice| choice.priority(index as usize)).unwrap_or_default(),
            });
            stats.collect()
        });
        reply.send(files.ok_or(TorrentNotFound(torrent)));
    }
}

/// Returns the number of bytes of a file that lie in held pieces.
fn completed_bytes(file: &FileEntry, geometry: &Geometry, have: &Bitfield) -> u64 {
    let pieces = geometry.pieces_of(file.offset..file.end());
    let here = pieces.filter(|piece| have.contains(*piece));
    let overlap = |piece| {
        let span = geometry.piece_span(piece);
        span.end().min(file.end()) - span.offset.max(file.offset)
    };
    here.map(overlap).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_progress_counts_its_share_of_each_piece() {
        let geometry = Geometry::new(100, 10).unwrap();
        let file = FileEntry {
            path: "x".into(),
            len: 25,
            offset: 7,
            attributes: Default::default(),
        };
        let mut have = Bitfield::new(10);
        assert_eq!(completed_bytes(&file, &geometry, &have), 0);
        have.insert(0);
        assert_eq!(completed_bytes(&file, &geometry, &have), 3);
        have.insert(3);
        assert_eq!(completed_bytes(&file, &geometry, &have), 3 + 2);
        have = Bitfield::full(10);
        assert_eq!(completed_bytes(&file, &geometry, &have), 25);
    }

    #[test]
    fn nothing_runs_without_queries() {
        let mut bed = crate::testing::Bed::new(());
        bed.world.init_resource::<CommandQueue<ListTorrents>>();
        bed.world.init_resource::<CommandQueue<GetStats>>();
        bed.world.init_resource::<CommandQueue<GetFiles>>();
        assert!(!bed.holds(has_queries));
    }

    #[test]
    fn the_bytes_of_checked_pieces_are_reported() {
        let mut bed = crate::testing::Bed::new(());
        let torrent = crate::testing::torrent();
        let id = torrent.id();
        let mut index = TorrentIndex::default();
        index.insert(&torrent.hashes, bed.torrent);
        bed.world.insert_resource(index);
        bed.world.init_resource::<CandidateSources>();
        let storage = Storage {
            id: ecs_torrent_components::ids::StorageId(1),
            root: "/".into(),
        };
        let check = Check::new(&crate::checking::CheckPieces {
            torrent: bed.torrent,
            doubtful: vec![1],
            good: Bitfield::new(3),
            rewrite: Bitfield::new(3),
        });
        bed.world.entity_mut(bed.torrent).insert((torrent, storage, check));
        bed.world.entity_mut(bed.torrent).insert(Candidates::default());
        let mut state = bevy_ecs::system::SystemState::<StatsParams>::new(&mut bed.world);
        let stats = state.get(&bed.world).unwrap().stats(id).unwrap();
        assert_eq!((stats.checked, stats.size), (2 * 32768, Some(98304)));
    }
}
