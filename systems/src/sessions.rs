//! Sessions: saves the state of each torrent, so that the next run continues where this one ended.
//!
//! A torrent is saved a while after its first change, when it is complete, and when it stops. The steps run one after
//! another: blocks of unfinished pieces are written to their places in the files; the files are synced; then the new
//! session replaces the old one. So a session never claims more than the disk has.

mod durability;
mod ending;
mod restoring;
mod saving;
mod spilling;
mod state;

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::session::{OwnerKey, Salvage, Session};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Partials, StopPhase};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::ports::disk::{DiskEvent, DiskRequest};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Geometry;

pub(crate) use self::state::SessionState;
use self::state::{Job, Summary};
use crate::conditions::{has_events, has_messages};
use crate::stop_participants::AddStopParticipant;
use crate::{AssembleSet, DecideSet};

/// Saves torrents, and restores blocks of unfinished pieces.
pub struct SessionsPlugin;

impl Plugin for SessionsPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<SaveTorrent>()
            .add_message::<SessionWritten>()
            .init_resource::<Deadlines<saving::SaveCheck>>()
            .add_stop_participant::<ending::UnfinishedBlocks>(StopPhase::HaltDownloads, None)
            .add_stop_participant::<LastSession>(StopPhase::WriteSession, None)
            .init_resource::<Jobs<spilling::Spill>>()
            .init_resource::<Jobs<restoring::Restore>>()
            .init_resource::<restoring::Restores>()
            .init_resource::<ending::AwaitingAnswers>()
            .add_observer(apply_options)
            .add_systems(
                Tick,
                (
                    restoring::collect_restored
                        .run_if(has_events::<DiskRequest, DiskEvent>(restoring::RESTORE))
                        .in_set(AssembleSet::Restored),
                    (
                        spilling::forget_partials,
                        saving::record_changes,
                        (
                            saving::collect_spilled,
                            ending::spill_stopped,
                            saving::collect_synced,
                            saving::collect_saved,
                            ending::end_sessions,
                            ending::collect_forgotten,
                        )
                            .chain()
                            .run_if(ending::has_steps),
                        saving::begin_saves.run_if(has_messages::<SaveTorrent>),
                        restoring::restore_pieces.run_if(restoring::has_restores),
                    )
                        .chain()
                        .in_set(DecideSet::Sessions),
                ),
            );
    }
}

/// A user has added a torrent, or has added a failed one again.
#[derive(EntityEvent, Debug, Clone)]
pub(crate) struct OptionsGiven {
    /// The torrent.
    #[event_target]
    pub(crate) torrent: Entity,
    /// The name that the user gave in place of the metainfo's.
    pub(crate) name: Option<String>,
    /// Whether files that exist may be changed.
    pub(crate) overwrite: bool,
    /// Time of that permission in nanoseconds since 1970, if known.
    pub(crate) overwrite_ns: Option<i64>,
    /// Whether the download folder is another one than before.
    pub(crate) has_moved: bool,
    /// Whether a new torrent is to be paused.
    pub(crate) is_paused: bool,
}

/// Gives a torrent its saved state, or changes the options in it.
fn apply_options(
    given: On<OptionsGiven>,
    mut commands: Commands,
    mut random: ResMut<Random>,
    settings: Res<Settings>,
    mut torrents: Query<&mut SessionState>,
) {
    let name = given.name.clone();
    if let Ok(mut state) = torrents.get_mut(given.torrent) {
        state.renew(name, given.overwrite, given.has_moved);
        state.overwrite_ns = given.overwrite_ns;
    } else {
        let key = OwnerKey(random.bytes());
        let mut state = SessionState::new(key, name, given.overwrite);
        state.overwrite_ns = given.overwrite_ns;
        state.part_suffix = settings.storage.part_suffix;
        state.set_paused(given.is_paused);
        commands.entity(given.torrent).insert(state);
    }
}

/// The saved parts of a torrent, which its opening determines.
#[derive(QueryData)]
#[query_data(mutable)]
pub(crate) struct SavedParts {
    pub(crate) state: &'static mut SessionState,
    partials: &'static mut Partials,
}

impl SavedPartsItem<'_, '_> {
    /// Restarts from the data found in the state folder: the session, if it is usable, or else the files that a damaged
    /// session still claims.
    pub(crate) fn record_loaded(
        &mut self,
        session: Option<&Session>,
        salvaged: Option<Salvage>,
        is_known: bool,
        geometry: Option<&Geometry>,
    ) {
        self.state.record_loaded(session, salvaged, is_known);
        let known = session.filter(|session| !session.lacks_metadata).zip(geometry);
        self.partials.0 = known
            .map(|(session, geometry)| spilling::partial_blocks(session, geometry))
            .unwrap_or_default();
    }

    /// Records that the held pieces are known.
    pub(crate) fn record_result(&mut self, have: &Bitfield) {
        self.state.record_result(have);
        self.partials.0.retain(|piece, _| !have.contains(*piece));
    }
}

/// The stop participant that writes or deletes the session.
struct LastSession;

/// Requests a save of a torrent soon, whether the usual interval has passed or not.
#[derive(Message, Debug, Clone)]
pub struct SaveTorrent {
    /// The torrent.
    pub torrent: Entity,
}

/// A save has ended: the session is durable, or could not be written.
#[derive(Message, Debug, Clone)]
pub(crate) struct SessionWritten {
    /// The torrent.
    pub(crate) torrent: Entity,
    /// The result of the save.
    pub(crate) result: Result<(), Arc<str>>,
}
