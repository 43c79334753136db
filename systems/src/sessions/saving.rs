//! Saving a torrent, step by step.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::Candidates;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::Removed;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::hints::KeptHints;
use ecs_torrent_components::incomplete::CompleteRoot;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::messages::{
    BlockAccepted, BlockSent, FailTorrent, PieceStored, Remedy, TorrentCompleted, TorrentFailed, TorrentStarted,
};
use ecs_torrent_components::queue::{ForcedStart, QueueOrder};
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::seeding::{SeedingLimits, SeedingRecord, SeedingTime};
use ecs_torrent_components::session::{PartialPiece, Runs, Session, SessionTracker};
use ecs_torrent_components::settings::{Settings, seconds};
use ecs_torrent_components::torrent::{
    ActivePieces, Activity, Content, Counters, Dates, Have, Layout, Lifecycle, Partials, RequiresComplete, Stopping,
    Storage, Torrent, TorrentRates,
};
use ecs_torrent_components::tracker::{EditedTrackers, Tracker, TrackerTiers};
use ecs_torrent_components::unverified::{SkipsChecking, Unverified};
use ecs_torrent_components::wanted::FileChoice;
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, HeldPieces, SyncedFile, border_pieces};
use ecs_torrent_engine::ports::state::StateRequest;
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::files::FileEntry;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::time::Timestamp;

use super::spilling::{self, Spill, Spiller};
use super::{Job, LastSession, SaveTorrent, SessionState, SessionWritten, Summary};
use crate::ownership::{FileRegistry, FolderKeys};
use crate::picking::Supply;
use crate::stop_participants::StopDuty;
use crate::storage::fault;

pub(super) const SYNC: Purpose = purpose!("sync for session");
const SAVE: Purpose = purpose!("save session");

/// A scheduled save of a changed torrent.
#[derive(Debug)]
pub(super) struct SaveCheck(Entity);

/// The parts of a torrent that its session contains.
#[derive(bevy_ecs::query::QueryData)]
#[query_data(mutable)]
pub(super) struct Saved {
    pub(super) entity: Entity,
    pub(super) torrent: &'static Torrent,
    lifecycle: &'static Lifecycle,
    pub(super) storage: &'static Storage,
    /// The torrent's metadata and pieces. `None` while the metadata is not known.
    pub(super) known: Option<(&'static Layout, &'static Content, &'static Have)>,
    partials: &'static mut Partials,
    counters: &'static Counters,
    activity: &'static Activity,
    dates: &'static Dates,
    rates: &'static TorrentRates,
    candidates: &'static Candidates,
    tiers: Option<&'static TrackerTiers>,
    has_edited_trackers: Has<EditedTrackers>,
    choice: Option<&'static FileChoice>,
    limits: Option<&'static TransferLimits>,
    labels: Option<&'static Labels>,
    complete_root: Option<&'static CompleteRoot>,
    hints: Option<&'static KeptHints>,
    seeding: (
        Option<&'static SeedingLimits>,
        Option<&'static SeedingRecord>,
        Option<&'static SeedingTime>,
    ),
    queue: (Option<&'static QueueOrder>, Has<ForcedStart>),
    unverified: (Option<&'static Unverified>, Has<SkipsChecking>),
    requires_complete: Has<RequiresComplete>,
    active: Option<&'static ActivePieces>,
    pub(super) stopping: Option<&'static Stopping>,
    pub(super) state: &'static mut SessionState,
}

/// Parameters for saving, apart from the torrent.
#[derive(SystemParam)]
pub(super) struct SessionWriter<'w, 's> {
    pub(super) clock: Res<'w, Clock>,
    pub(super) wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    pub(super) disk: ResMut<'w, DiskPort>,
    pub(super) port: ResMut<'w, StatePort>,
    pub(super) duty: StopDuty<'w, LastSession>,
    pub(super) registry: ResMut<'w, FileRegistry>,
    written: MessageWriter<'w, SessionWritten>,
    trackers: Query<'w, 's, &'static Tracker>,
}

/// Schedules a save a while after the first change; requests a save at once for complete or checked torrents.
pub(super) fn record_changes(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut checks: ResMut<Deadlines<SaveCheck>>,
    mut accepted: MessageReader<BlockAccepted>,
    mut sent: MessageReader<BlockSent>,
    mut stored: MessageReader<PieceStored>,
    mut started: MessageReader<TorrentStarted>,
    mut completed: MessageReader<TorrentCompleted>,
    mut failed: MessageReader<TorrentFailed>,
    mut save: MessageWriter<SaveTorrent>,
    mut states: Query<&mut SessionState>,
) {
    let at = clock.now() + seconds(settings.session.checkpoint_interval_s);
    let accepted = accepted.read().map(|message| message.torrent);
    let sent = sent.read().map(|message| message.torrent);
    for &PieceStored { torrent, index, len } in stored.read() {
        if let Ok(mut state) = states.get_mut(torrent) {
            state.durability.record_written(index);
            state.has_written = true;
            state.unsaved_bytes += u64::from(len);
            if state.unsaved_bytes >= settings.session.checkpoint_bytes {
                state.unsaved_bytes = 0;
                save.write(SaveTorrent { torrent });
            }
        }
    }
    let mut last = None;
    for torrent in accepted.chain(sent) {
        // Blocks come in runs, mostly of one torrent.
        if last.replace(torrent) == Some(torrent) {
            continue;
        }
        if let Ok(mut state) = states.get_mut(torrent)
            && !std::mem::replace(&mut state.has_deadline, true)
        {
            checks.set(at, SaveCheck(torrent));
        }
    }
    let started = started.read().map(|message| message.torrent);
    let completed = completed.read().map(|message| message.torrent);
    let failed = failed.read().map(|message| message.torrent);
    for torrent in started.chain(completed).chain(failed) {
        save.write(SaveTorrent { torrent });
    }
    while let Some(SaveCheck(torrent)) = checks.pop_due(clock.now()) {
        if let Ok(mut state) = states.get_mut(torrent) {
            state.has_deadline = false;
            save.write(SaveTorrent { torrent });
        }
    }
    wakeup.at_next(checks.next());
}

pub(super) fn begin_saves(
    mut wanted: MessageReader<SaveTorrent>,
    mut writer: SessionWriter,
    mut spiller: Spiller,
    mut torrents: Query<Saved>,
) {
    for &SaveTorrent { torrent } in wanted.read() {
        if let Ok(mut saved) = torrents.get_mut(torrent) {
            writer.begin(&mut saved, &mut spiller);
        }
    }
}

impl SessionWriter<'_, '_> {
    /// Begins to save a torrent, if there is anything to save.
    pub(super) fn begin(&mut self, saved: &mut SavedItem<'_, '_>, spiller: &mut Spiller) {
        if !matches!(saved.state.job, Job::None) {
            saved.state.is_wanted_again = true;
            return;
        }
        if !saved.state.is_loaded {
            self.end(saved, Ok(()));
            return;
        }
        // While the held pieces are unknown, the existing session is the best information.
        if !saved.is_certain() && saved.state.saved.is_some_and(|saved| saved.has_metadata) {
            self.save_intent(saved);
            return;
        }
        let summary = saved.summary(self.clock.now());
        let is_changed = saved
            .state
            .saved
            .is_none_or(|last| summary.differs_from(&last, self.settings.session.max_unsaved_active_s));
        let lacks_metainfo = saved.known.is_some() && !saved.state.has_metainfo;
        let is_changed = is_changed || lacks_metainfo || !saved.state.may_create() || saved.state.is_damaged;
        let is_changed = is_changed || !saved.state.has_saved_additions();
        let is_changed = is_changed || (saved.state.is_last && saved.state.has_absent_claims());
        // Of a torrent without metadata, only the peers are worth saving.
        let is_changed = is_changed || (saved.state.is_last && saved.known.is_none());
        let is_filling = saved.active.is_some_and(|active| !active.all.is_empty());
        if !(is_changed || is_filling) {
            self.end(saved, Ok(()));
            return;
        }
        saved.state.job = Job::Spilling;
        saved.state.unsaved_bytes = 0;
        if let (Some(active), true) = (saved.active, saved.is_certain()) {
            let pieces = (active, &*saved.partials);
            let count = spiller.spill(&mut self.disk, saved.entity, saved.storage, pieces, false);
            saved.state.spill_count += count;
        }
        self.sync_when_spilled(saved);
    }

    /// Replaces a session whose pieces are not known to be right any more or yet, if a user has changed the intent or
    /// added something, or if the session is damaged.
    fn save_intent(&mut self, saved: &mut SavedItem<'_, '_>) {
        let intent = saved.state.intent;
        let must_replace = !saved.state.has_saved_additions() || saved.state.is_damaged;
        let Some(last) = saved.state.saved.filter(|last| last.intent != intent || must_replace) else {
            self.end(saved, Ok(()));
            return;
        };
        // A session that was loaded before the metadata was known would lose the metadata.
        let loaded = saved.state.loaded.clone().filter(|loaded| !loaded.lacks_metadata);
        saved.state.job = Job::Writing(Box::new(Summary { intent, ..last }));
        let Some(mut session) = loaded else {
            let session = Box::new(self.session(saved));
            self.submit(saved, session);
            return;
        };
        (session.paused, session.stopped) = (intent.is_paused, intent.is_stopped);
        session.recheck = intent.needs_check;
        session.recheck_pieces = saved.state.check_runs();
        session.moving.clone_from(&saved.state.moving);
        session.trackers = self.trackers_of(saved);
        saved.save_choice(&mut session);
        // The session makes the same claims as the last one.
        saved.state.claims.submitted = saved.state.claims.durable;
        saved.state.additions.submitted = saved.state.additions.current;
        self.push(saved, session);
    }

    /// Begins the second step, the sync, once the first is over.
    fn sync_when_spilled(&mut self, saved: &mut SavedItem<'_, '_>) {
        if !matches!(saved.state.job, Job::Spilling) || saved.state.spill_count > 0 {
            return;
        }
        let summary = Box::new(saved.summary(self.clock.now()));
        let session = Box::new(self.session(saved));
        if !saved.state.has_result || saved.state.is_closed {
            // Nothing has been written since the last sync, and the files may not even be open.
            self.write(saved, session, summary);
            return;
        }
        let held = saved
            .known
            .filter(|_| saved.state.part_suffix)
            .map(|(layout, _, have)| {
                Box::new(HeldPieces {
                    held: Bitfield::clone(have),
                    piece_length: layout.0.piece_length(),
                })
            });
        saved.state.job = Job::Syncing(session, summary);
        self.disk.push(DiskRequest::Sync {
            tag: saved.tag(SYNC),
            storage: saved.storage.id,
            is_for_all: std::mem::take(&mut saved.state.has_checked),
            held,
        });
    }

    /// Records the pieces lost by a failed sync, before pieces that exist only in the page cache are hashed again.
    /// Pieces in flight may have been written too.
    fn record_lost_pieces(&mut self, saved: &mut SavedItem<'_, '_>, mut session: Box<Session>, reason: Arc<str>) {
        let in_flight = saved.active.into_iter().flat_map(|active| active.all.keys().copied());
        let held = saved.known.into_iter().flat_map(|(.., have)| have.iter());
        let written = held.chain(in_flight);
        saved.state.has_failed_sync = true;
        saved.state.durability.record_failed(written, session.pieces);
        saved.state.durability.record_lost_pieces(&mut session);
        session.files.clone_from(&saved.state.stamps);
        saved.state.job = Job::RecordingLoss(reason);
        self.submit(saved, session);
    }

    /// Begins the last step.
    fn write(&mut self, saved: &mut SavedItem<'_, '_>, session: Box<Session>, summary: Box<Summary>) {
        saved.state.job = Job::Writing(summary);
        self.submit(saved, session);
    }

    /// Submits a session with the current trackers and the current state of the files: files created since the save
    /// began belong to the torrent.
    fn submit(&mut self, saved: &mut SavedItem<'_, '_>, mut session: Box<Session>) {
        if let Some((Layout(geometry), content, _)) = saved.known {
            let mut have = session.have.to_set(session.pieces).unwrap_or_default();
            // A file may have to be changed as long as it is not known to be complete.
            if let Some(Unverified(pieces)) = saved.unverified.0 {
                have = have.without(pieces);
            }
            saved.state.drop_permissions(&have, &content.0.info.files, geometry);
        }
        session.created = Runs::of(saved.state.created.keys().copied());
        session.permitted = Runs::of(saved.state.permitted.keys().copied());
        session.ids = saved.state.known_ids();
        session.trackers = self.trackers_of(saved);
        // A choice that was made during the sync counts as submitted below, and so does a move that was requested.
        saved.save_choice(&mut session);
        session.moving.clone_from(&saved.state.moving);
        saved.state.claims.submitted = saved.state.claims.current;
        saved.state.additions.submitted = saved.state.additions.current;
        self.push(saved, session);
    }

    fn push(&mut self, saved: &SavedItem<'_, '_>, session: Box<Session>) {
        let unsaved = saved.known.filter(|_| !saved.state.has_metainfo);
        let metainfo = unsaved.map(|(_, content, _)| content.0.bytes.clone());
        self.port.push(StateRequest::Save {
            tag: saved.tag(SAVE),
            session,
            metainfo,
        });
    }

    /// Returns the trackers of a torrent for its session.
    fn trackers_of(&self, saved: &SavedItem<'_, '_>) -> Vec<SessionTracker> {
        let entities = saved.tiers.into_iter().flat_map(|tiers| tiers.0.numbered());
        let trackers = entities.filter_map(|(tier, entity)| {
            let tracker = self.trackers.get(entity).ok()?;
            Some(SessionTracker {
                url: tracker.url.to_string(),
                tier,
                was_completed: Family::ALL.iter().any(|family| tracker.route(*family).was_completed),
                seeders: tracker.seeders,
                leechers: tracker.leechers,
            })
        });
        trackers.collect()
    }

    fn session(&self, saved: &SavedItem<'_, '_>) -> Session {
        let geometry = saved.known.map(|(Layout(geometry), ..)| geometry);
        let partials = saved.partials.0.iter();
        let mut session = Session {
            name: saved.torrent.name.to_string(),
            renamed: saved.state.renamed.clone(),
            file_names: saved.state.file_names.clone(),
            part_suffix: saved.state.part_suffix,
            root: saved.storage.root.clone(),
            resolved: saved.state.resolved().map(Into::into),
            folder: saved.state.folders().and_then(|folders| folders.above.first().cloned()),
            volume: saved.state.volume.as_ref().map(|volume| volume.mount_point.clone()),
            volume_id: saved.state.volume.as_ref().and_then(|volume| volume.id.clone()),
            lacks_metadata: saved.known.is_none(),
            private: saved.torrent.private,
            total_size: geometry.map_or(0, Geometry::total_size),
            piece_length: geometry.map_or(0, Geometry::piece_length),
            pieces: geometry.map_or(0, Geometry::piece_count),
            have: saved
                .known
                .map_or_else(Runs::default, |(.., have)| saved.state.durability.runs_of(have)),
            partial: partials
                .map(|(piece, blocks)| PartialPiece {
                    piece: *piece,
                    blocks: Runs::of(blocks.iter()),
                })
                .collect(),
            uploaded: saved.counters.uploaded,
            downloaded: saved.counters.downloaded,
            corrupt: saved.counters.corrupt,
            dropped: saved.counters.dropped,
            wasted: saved.counters.wasted,
            seconds_active: saved.activity.total(self.clock.now()).as_secs(),
            seconds_seeding: saved
                .seeding
                .2
                .map_or(0, |time| time.0.total(self.clock.now()).as_secs()),
            added_at: Some(saved.dates.added),
            completed_at: saved.dates.completed,
            active_at: saved.dates.active(saved.rates, &self.clock),
            require_complete: saved.requires_complete,
            // A sync reports the states of open files.
            files: match saved.state.is_closed && saved.state.has_result {
                true => saved.state.stamps.clone(),
                false => Vec::new(),
            },
            owner_key: Some(saved.state.key),
            overwrite: saved.state.wants_overwrite && saved.state.resolved.is_none(),
            overwrite_ns: saved.state.overwrite_ns.filter(|_| saved.state.wants_overwrite),
            paused: saved.state.intent.is_paused,
            stopped: saved.state.intent.is_stopped,
            recheck: saved.state.intent.needs_check,
            recheck_pieces: saved.state.check_runs(),
            moving: saved.state.moving.clone(),
            lost: Runs::of(saved.state.durability.lost().iter()),
            unverified: saved
                .unverified
                .0
                .map_or_else(Runs::default, |pieces| Runs::of(pieces.0.iter())),
            skip_checking: saved.unverified.1,
            peers: saved.candidates.best(self.settings.session.max_peers),
            are_trackers_edited: saved.has_edited_trackers,
            ..Session::new(saved.torrent.id())
        };
        saved.save_choice(&mut session);
        session
    }

    /// Ends a save, successful or not.
    pub(super) fn end(&mut self, saved: &mut SavedItem<'_, '_>, result: Result<(), Arc<str>>) {
        self.end_with(saved, result, Removed::default());
    }

    /// Ends a save or a removal, successful or not.
    pub(super) fn end_with(&mut self, saved: &mut SavedItem<'_, '_>, result: Result<(), Arc<str>>, removed: Removed) {
        saved.state.job = Job::None;
        if let Err(reason) = &result {
            tracing::warn!(torrent = %saved.torrent.label(), %reason, "session not saved");
            self.publish(saved, result.clone());
        }
        if std::mem::take(&mut saved.state.is_last) {
            self.duty.finish_with(saved.entity, result.map(|()| removed));
        }
    }
}

impl SessionWriter<'_, '_> {
    /// Publishes the result of a save to features that wait for it.
    fn publish(&mut self, saved: &SavedItem<'_, '_>, result: Result<(), Arc<str>>) {
        let torrent = saved.entity;
        self.written.write(SessionWritten { torrent, result });
        self.wakeup.at(self.clock.now());
    }
}

impl SavedItem<'_, '_> {
    fn tag(&self, purpose: Purpose) -> JobTag {
        JobTag {
            number: self.state.generation,
            ..JobTag::new(purpose, self.entity)
        }
    }

    /// Whether the bytes of a file in pieces of other files are in the part file.
    fn is_parted(&self, index: usize) -> bool {
        self.state.is_parted(index, self.choice)
    }

    /// Removes the pieces that have bytes in the part file from a session.
    fn forget_parted(&self, session: &mut Session, files: &[FileEntry], geometry: &Geometry) {
        let parted = files.iter().enumerate().filter(|(index, _)| self.is_parted(*index));
        let length = geometry.piece_length().into();
        let pieces: Vec<u32> = parted
            .flat_map(|(_, file)| border_pieces(file, length, geometry.total_size()))
            .collect();
        forget_pieces(session, pieces.into_iter());
    }

    /// Writes the user's choice of files, limits and labels, and the hints of magnet links into a session.
    fn save_choice(&self, session: &mut Session) {
        if let Some(choice) = self.choice {
            choice.save(session);
        }
        session.limits = self.limits.copied().unwrap_or_default();
        let labels = self.labels.cloned().unwrap_or_default();
        session.labels = labels.labels.into_iter().collect();
        session.category = labels.category;
        session.complete_root = self.complete_root.map(|complete| complete.root.clone());
        let hints = self.hints.filter(|_| self.known.is_none());
        session.hints = hints.map(|hints| hints.0.clone()).unwrap_or_default();
        let (order, is_forced) = self.queue;
        (session.queue_order, session.is_forced) = (order.map(|order| order.0), is_forced);
        let (seeding, record, _) = self.seeding;
        session.seeding = seeding.copied().unwrap_or_default();
        let record = record.copied().unwrap_or_default();
        session.seeding_record = record.to_save(session.paused, *self.lifecycle == Lifecycle::Paused);
        session.parted = Runs::of(self.state.parted.iter().copied());
    }

    /// Whether the held pieces are known for certain; a failed torrent may have been wrong about them.
    fn is_certain(&self) -> bool {
        self.state.has_result && !matches!(self.lifecycle, Lifecycle::Failed { .. })
    }

    fn summary(&self, now: Timestamp) -> Summary {
        Summary {
            counters: *self.counters,
            has_metadata: self.known.is_some(),
            have_count: self.known.map_or(0, |(.., have)| have.count()),
            unverified_count: self.unverified.0.map_or(0, |unverified| unverified.0.count()),
            partial_count: self.partials.0.values().map(Bitfield::count).sum(),
            seconds_active: self.activity.total(now).as_secs(),
            added_at: Some(self.dates.added),
            completed_at: self.dates.completed,
            has_result: self.is_certain(),
            intent: self.state.intent,
        }
    }
}

pub(super) fn collect_spilled(
    mut writer: SessionWriter,
    mut spills: ResMut<Jobs<Spill>>,
    mut supply: ResMut<Supply>,
    mut torrents: Query<Saved>,
) {
    let events: Vec<_> = writer.disk.take(spilling::SPILL).collect();
    for event in events {
        let Some(Spill { torrent, run, is_last }) = spills.take(event.tag) else {
            continue;
        };
        let Ok(mut saved) = torrents.get_mut(torrent) else {
            continue;
        };
        saved.state.spill_count = saved.state.spill_count.saturating_sub(1);
        match event.outcome {
            Ok(_) => {
                if let Some((Layout(geometry), _, have)) = saved.known {
                    spilling::record_run(&mut saved.partials, have, geometry, run);
                }
            }
            Err(error) => {
                tracing::debug!(torrent = %saved.torrent.label(), %error, "unfinished pieces are not saved");
                // Otherwise the blocks are still in memory, and the write of their piece will report a full disk.
                if let (true, Some((Layout(geometry), ..))) = (is_last, saved.known) {
                    supply.record_dropped(torrent, run.span(geometry.piece_span(run.piece)).len.into());
                }
            }
        }
        writer.sync_when_spilled(&mut saved);
    }
}

pub(super) fn collect_synced(
    mut writer: SessionWriter,
    mut failed: MessageWriter<FailTorrent>,
    mut torrents: Query<Saved>,
) {
    let events: Vec<_> = writer.disk.take(SYNC).collect();
    for event in events {
        let Ok(mut saved) = torrents.get_mut(event.tag.owner) else {
            continue;
        };
        if event.tag != saved.tag(SYNC) {
            continue;
        }
        let (mut session, summary) = match std::mem::take(&mut saved.state.job) {
            Job::Syncing(session, summary) => (session, summary),
            other => {
                // The torrent was stopped or opened again meanwhile.
                saved.state.job = other;
                continue;
            }
        };
        let written = match event.outcome {
            Ok(DiskDone::Synced(written)) => written,
            Ok(_) => continue,
            Err(error) => {
                failed.write(fault(saved.entity, &error));
                writer.record_lost_pieces(&mut saved, session, error.to_string().into());
                continue;
            }
        };
        if let Some(fault) = writer.apply_synced(&mut saved, &mut session, &written) {
            failed.write(fault);
        }
        writer.write(&mut saved, session, summary);
    }
}

impl SessionWriter<'_, '_> {
    /// Updates a session by the stamps of its torrent's synced files. Returns the torrent's fault if another program
    /// has changed one of them.
    fn apply_synced(
        &mut self,
        saved: &mut SavedItem<'_, '_>,
        session: &mut Session,
        written: &[SyncedFile],
    ) -> Option<FailTorrent> {
        // Only files that are known are synced.
        let (Layout(geometry), content, _) = saved.known?;
        let files = content.0.info.files.files();
        // Pieces held when the sync was requested; later pieces may have made a file longer than its stamp.
        let had = session.have.to_set(session.pieces).unwrap_or_default();
        let mut lost = Vec::new();
        let mut has_new_files = false;
        for file in written {
            // The part file has no length of its own.
            let entry = files.get(file.index);
            let least = entry.map_or(0, |entry| least_len(entry, geometry, &had, saved.is_parted(file.index)));
            let whole = file.stamp.filter(|stamp| stamp.len >= least);
            lost.extend(whole.is_none().then_some(file.index));
            saved.state.record_stamp(file.index, whole);
            has_new_files |= saved.state.record_synced(file);
        }
        if has_new_files {
            self.register(saved);
        }
        // Fault 73: the session lists no piece of the file as held, and a running torrent checks the rest of the file.
        for &index in &lost {
            match files.get(index) {
                Some(file) => forget_pieces(session, geometry.pieces_of(file.offset..file.end())),
                None => saved.forget_parted(session, files, geometry),
            }
        }
        saved
            .state
            .durability
            .record_synced(&session.have.to_set(session.pieces).unwrap_or_default());
        if saved.is_certain() {
            session.files.clone_from(&saved.state.stamps);
        }
        if saved.state.is_last {
            saved.state.drop_absent_claims();
        }
        let index = *lost.first().filter(|_| !saved.state.is_last)?;
        Some(FailTorrent {
            torrent: saved.entity,
            reason: match files.get(index) {
                Some(file) => format!("{} was changed, cut or deleted by somebody else", file.path).into(),
                None => "its part file was changed, cut or deleted by somebody else".into(),
            },
            remedy: Remedy::Restart,
        })
    }

    /// Registers the current identities of the torrent's files.
    fn register(&mut self, saved: &SavedItem<'_, '_>) {
        let Some((_, content, _)) = saved.known else { return };
        let root = saved.state.resolved().unwrap_or(&saved.storage.root);
        let files = &content.0.info.files;
        let keys = FolderKeys::new(root).with_folders(saved.state.folders());
        let keys = keys.of_table(files, |index| saved.state.id(index));
        self.registry.set(saved.torrent.id(), &saved.torrent.name, keys);
        if let Some(complete) = saved.complete_root {
            self.registry.add_folder(saved.torrent, &complete.root, files);
        }
    }
}

/// Removes pieces from a session.
fn forget_pieces(session: &mut Session, pieces: impl Iterator<Item = u32> + Clone) {
    let mut have = session.have.to_set(session.pieces).unwrap_or_default();
    for piece in pieces.clone() {
        have.remove(piece);
    }
    session.have = Runs::of(have.iter());
    session
        .partial
        .retain(|partial| !pieces.clone().any(|piece| piece == partial.piece));
}

/// Returns the length that a file must have for the held pieces: a truncated file is not trusted. The bytes of a parted
/// file in border pieces are elsewhere.
fn least_len(file: &FileEntry, geometry: &Geometry, have: &Bitfield, is_parted: bool) -> u64 {
    let borders = || border_pieces(file, geometry.piece_length().into(), geometry.total_size());
    let is_here = |piece: u32| !is_parted || !borders().any(|border| border == piece);
    let last = geometry
        .pieces_of(file.offset..file.end())
        .rev()
        .find(|piece| have.contains(*piece) && is_here(*piece));
    last.map_or(0, |piece| {
        geometry.piece_span(piece).end().min(file.end()) - file.offset
    })
}

pub(super) fn collect_saved(
    mut writer: SessionWriter,
    mut save: MessageWriter<SaveTorrent>,
    mut checks: ResMut<Deadlines<SaveCheck>>,
    mut torrents: Query<Saved>,
) {
    let events: Vec<_> = writer.port.take(SAVE).collect();
    for event in events {
        let Ok(mut saved) = torrents.get_mut(event.tag.owner) else {
            continue;
        };
        if event.tag != saved.tag(SAVE) {
            continue;
        }
        let result = event.outcome.map(drop).map_err(|error| error.0);
        let summary = match &saved.state.job {
            Job::Writing(summary) => **summary,
            Job::RecordingLoss(reason) => {
                let reason = reason.clone();
                if result.is_ok() {
                    saved.state.record_saved();
                }
                writer.end(&mut saved, Err(reason));
                continue;
            }
            _ => continue,
        };
        if result.is_ok() {
            saved.state.saved = Some(summary);
            saved.state.has_metainfo |= summary.has_metadata;
            saved.state.record_saved();
            writer.publish(&saved, Ok(()));
        } else if !std::mem::replace(&mut saved.state.has_deadline, true) {
            let wait = seconds(writer.settings.session.checkpoint_interval_s);
            checks.set(writer.clock.now() + wait, SaveCheck(saved.entity));
        }
        if std::mem::take(&mut saved.state.is_wanted_again) && result.is_ok() {
            saved.state.job = Job::None;
            let torrent = saved.entity;
            save.write(SaveTorrent { torrent });
        } else {
            writer.end(&mut saved, result);
        }
    }
}
