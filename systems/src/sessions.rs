//! Sessions: what a torrent has is saved, so that the next run goes on where this one ended.
//!
//! A torrent is saved a while after it began to change, when it is complete, and when it stops, in steps that each
//! wait for the one before: blocks of unfinished pieces are written where they belong; what was written is brought to
//! the platter; then the session is put in the place of the old one. So a session never says more than the disk has.

mod ending;
mod platter;
mod restoring;
mod saving;
mod spilling;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::session::{FileStamp, Runs, Session};
use ecs_torrent_components::torrent::Counters;
use ecs_torrent_engine::ports::disk::{FileClaims, FoundFiles, Provenance};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;

pub(crate) use self::ending::{Ending, Endings};
use self::platter::Platter;
pub(crate) use self::spilling::Spiller;
use crate::{AssembleSet, DecideSet};

/// Saves torrents, and brings back blocks of unfinished pieces.
pub struct SessionsPlugin;

impl Plugin for SessionsPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<SaveTorrent>()
            .init_resource::<Deadlines<saving::SaveCheck>>()
            .init_resource::<Endings>()
            .init_resource::<restoring::Restores>()
            .add_systems(
                Tick,
                (
                    restoring::collect_restored.in_set(AssembleSet::Restored),
                    (
                        spilling::forget_partials,
                        saving::note_changes,
                        saving::collect_spilled,
                        saving::collect_synced,
                        saving::collect_saved,
                        ending::end_sessions,
                        saving::begin_saves,
                        restoring::restore_pieces,
                    )
                        .chain()
                        .in_set(DecideSet::Sessions),
                ),
            );
    }
}

/// Saves a torrent soon, whether a while has passed or not.
#[derive(Message, Debug, Clone)]
pub struct SaveTorrent {
    /// The torrent.
    pub torrent: Entity,
}

/// What of a torrent is saved, and what is being.
#[derive(Component, Debug, Default)]
pub(crate) struct SessionState {
    /// The files as they were when they were found, or last written by us.
    stamps: Vec<Option<FileStamp>>,
    volume: Option<PathBuf>,
    /// The files that this torrent created, by index.
    written: BTreeSet<u32>,
    /// What the state folder has of it is known.
    is_loaded: bool,
    /// Which pieces are here is known: the files have been looked at and what was in doubt is hashed.
    has_result: bool,
    /// Some of it was known by hashing only: who wrote that may not have brought it to the platter.
    has_checked: bool,
    /// There is a `.torrent` in the state folder.
    has_metainfo: bool,
    /// What the session on the disk says; nothing where there is none.
    saved: Option<Summary>,
    job: Job,
    /// Writes of blocks of unfinished pieces under way.
    spill_count: usize,
    has_deadline: bool,
    platter: Platter,
    /// Bytes of pieces written since the last saving began.
    unsaved_bytes: u64,
    /// Something came up while a job was under way.
    is_wanted_again: bool,
    /// Somebody waits for this session to end.
    is_last: bool,
    /// How often it has been loaded: answers to what was asked before are nobody's.
    generation: u64,
}

/// What decides whether a torrent has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    counters: Counters,
    have_count: u32,
    partial_count: u32,
    seconds_active: u64,
    has_result: bool,
}

/// Where a saving stands.
#[derive(Debug, Default)]
enum Job {
    #[default]
    None,
    /// Blocks are being written.
    Spilling,
    /// What was written is being brought to the platter; the session is as of the beginning of that.
    Syncing(Box<Session>, Summary),
    /// The session is being written.
    Writing(Summary),
    /// So is one that confesses what a failed sync has lost: why it failed.
    Confessing(Arc<str>),
    /// The session, and maybe the data, is being deleted.
    Forgetting { left: usize, error: Option<Arc<str>> },
}

impl SessionState {
    /// Begins anew with what was found in the state folder.
    pub(crate) fn note_loaded(&mut self, session: Option<&Session>, has_metainfo: bool) {
        let mut written = std::mem::take(&mut self.written);
        let mut platter = std::mem::take(&mut self.platter);
        platter.load(session);
        let known = session.and_then(|session| session.written.to_set(session.files.len() as u32));
        written.extend(known.iter().flat_map(Bitfield::iter));
        *self = Self {
            is_loaded: true,
            has_metainfo,
            written,
            platter,
            saved: session.map(Summary::of_session),
            has_deadline: self.has_deadline,
            is_last: self.is_last,
            generation: self.generation + 1,
            ..Self::default()
        };
    }

    /// What the disk is told of the files.
    pub(crate) fn claims(&self, session: Option<&Session>) -> FileClaims {
        FileClaims {
            created: self.written.iter().map(|index| (*index as usize, None)).collect(),
            stamps: session.map(|session| session.files.clone()).unwrap_or_default(),
            may_overwrite: true,
        }
    }

    /// Takes in how the files were found.
    pub(crate) fn note_found(&mut self, found: FoundFiles) {
        for (index, file) in (0..).zip(&found.files) {
            if let Some(file) = file {
                self.note_provenance(index, file.provenance);
            }
        }
        self.stamps = found
            .files
            .into_iter()
            .map(|file| file.map(|file| file.stamp))
            .collect();
        self.volume = Some(found.volume);
    }

    /// Notes whose a file is.
    fn note_provenance(&mut self, index: u32, provenance: Provenance) {
        match provenance {
            Provenance::Created => self.written.insert(index),
            Provenance::Found => self.written.remove(&index),
        };
    }

    /// Notes that what is here will be known by hashing.
    pub(crate) fn note_check(&mut self) {
        self.has_checked = true;
    }

    /// Notes that it is known which pieces are here.
    pub(crate) fn note_result(&mut self, have: &Bitfield) {
        self.has_result = true;
        self.platter.keep(have);
    }

    /// Pieces that have to be written again before they count, though they can be read.
    pub(crate) fn lost(&self) -> &Bitfield {
        self.platter.lost()
    }

    /// Notes that one of them has been.
    pub(crate) fn note_rewritten(&mut self, piece: u32) {
        self.platter.note_written(piece);
    }

    /// Notes writes of blocks of unfinished pieces.
    pub(crate) fn add_spills(&mut self, count: usize) {
        self.spill_count += count;
    }

    /// Whether blocks of unfinished pieces are still being written.
    pub(crate) fn is_spilling(&self) -> bool {
        self.spill_count > 0
    }
}

impl Summary {
    fn of_session(session: &Session) -> Self {
        let count = |runs: &Runs, len| runs.to_set(len).map_or(0, |set| set.count());
        let partial = session
            .partial
            .iter()
            .map(|partial| count(&partial.blocks, u32::from(u16::MAX)));
        Self {
            counters: Counters {
                uploaded: session.uploaded,
                downloaded: session.downloaded,
                corrupt: session.corrupt,
                dropped: session.dropped,
                wasted: session.wasted,
            },
            have_count: count(&session.have, session.pieces),
            partial_count: partial.sum(),
            seconds_active: session.seconds_active,
            has_result: !session.files.is_empty(),
        }
    }

    /// Whether what has happened since `earlier` is worth a saving.
    fn differs_from(&self, earlier: &Self, max_unsaved_active_s: u64) -> bool {
        let unsaved = self.seconds_active.saturating_sub(earlier.seconds_active);
        let same_time = Self {
            seconds_active: earlier.seconds_active,
            ..*self
        };
        same_time != *earlier || unsaved >= max_unsaved_active_s
    }
}
