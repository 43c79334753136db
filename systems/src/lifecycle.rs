//! The lifecycle of a torrent: adding, opening, starting, failing, stopping and removing.

mod adding;
mod adds;
mod conditions;
mod deriving;
mod failing;
#[cfg(test)]
mod idle_tests;
mod joining;
mod metadata;
mod moving;
mod naming;
mod opening;
mod pausing;
mod releasing;
mod removing;
mod resuming;
mod resuming_all;
mod starting;
mod stop_requests;
mod stopped;
mod stopping;
#[cfg(test)]
mod tests;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::{
    AddTorrent, CommandQueue, ListStopped, PauseOrStart, RemoveTorrent, ResumeAll, ResumeTorrent, StopAll, StopTorrent,
    SupplyMetadata,
};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::{
    FailTorrent, FilesSettled, LifecycleChanged, MetadataKnown, MetadataSaved, RequestStop, TorrentAdded,
    TorrentBlocked, TorrentCompleted, TorrentFailed, TorrentPaused, TorrentRestarting, TorrentStarted, TorrentStopped,
    WantedChanged,
};
use ecs_torrent_components::torrent::{StopPhase, TorrentIndex};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::schedule::Tick;

pub(crate) use self::adds::Adds;
use crate::conditions::{has_due, has_messages, has_messages_of_two};
use crate::stop_participants::AddStopParticipant;
use crate::storage::{WriteBlocked, WritesFreed};
use crate::{AnnounceSet, DecideSet};

/// Adds, opens, starts, fails, pauses, stops and removes torrents.
pub struct LifecyclePlugin;

impl Plugin for LifecyclePlugin {
    fn build(&self, app: &mut App) {
        add_messages(app);
        add_commands(app);
        init_resources(app);
        app.add_stop_participant::<releasing::OpenFiles>(StopPhase::Release, None)
            .add_systems(
                Tick,
                (
                    (
                        removing::add_removed,
                        stopped::list_stopped,
                        adding::add_torrents,
                        joining::join_listed,
                        resuming_all::find_saved,
                        resuming::list_resumed,
                        resuming::load_resumed,
                        moving::collect_checked,
                        opening::loading::collect_loaded,
                        moving::settle_switches,
                        moving::settle_relocations,
                        moving::collect_moved,
                        metadata::supply_metadata,
                        metadata::open_supplied,
                        metadata::publish_saved,
                        opening::finding::collect_opened,
                        opening::preparing::start_torrents,
                        adding::settle_adds,
                        starting::settle_starts,
                        opening::preparing::collect_prepared,
                    )
                        .chain()
                        .run_if(conditions::may_begin)
                        .in_set(AnnounceSet::Begin),
                    opening::preparing::prepare_wanted
                        .run_if(has_messages::<WantedChanged>)
                        .in_set(AnnounceSet::Prepare),
                    deriving::derive_lifecycle
                        .run_if(conditions::has_changed_facts)
                        .in_set(AnnounceSet::Lifecycle),
                    (
                        failing::fail_torrents.run_if(has_messages::<FailTorrent>),
                        failing::block_writers.run_if(has_messages_of_two::<WriteBlocked, WritesFreed>),
                        failing::retry_torrents.run_if(has_due::<failing::Retry>),
                        pausing::take_pauses_and_starts.run_if(pausing::has_commands),
                        (
                            removing::load_removed,
                            releasing::release_files,
                            stopping::begin_stops,
                            stopping::advance_stops,
                        )
                            .chain()
                            .run_if(stop_requests::has_stops),
                        deriving::derive_lifecycle.run_if(conditions::has_changed_facts),
                    )
                        .chain()
                        .in_set(DecideSet::Lifecycle),
                ),
            );
    }
}

/// Registers the messages of a torrent's life.
fn add_messages(app: &mut App) {
    app.add_message::<TorrentAdded>()
        .add_message::<LifecycleChanged>()
        .add_message::<TorrentStarted>()
        .add_message::<TorrentCompleted>()
        .add_message::<FilesSettled>()
        .add_message::<TorrentBlocked>()
        .add_message::<TorrentRestarting>()
        .add_message::<TorrentFailed>()
        .add_message::<TorrentPaused>()
        .add_message::<TorrentStopped>()
        .add_message::<FailTorrent>()
        .add_message::<RequestStop>()
        .add_message::<MetadataKnown>()
        .add_message::<MetadataSaved>();
}

/// Registers the commands that this feature takes.
fn add_commands(app: &mut App) {
    app.init_resource::<CommandQueue<AddTorrent>>()
        .init_resource::<CommandQueue<ResumeAll>>()
        .init_resource::<CommandQueue<ResumeTorrent>>()
        .init_resource::<CommandQueue<ListStopped>>()
        .init_resource::<CommandQueue<SupplyMetadata>>()
        .init_resource::<CommandQueue<RemoveTorrent>>()
        .init_resource::<CommandQueue<StopTorrent>>()
        .init_resource::<CommandQueue<StopAll>>()
        .init_resource::<CommandQueue<PauseOrStart>>()
        .init_resource::<CommandQueue<pausing::ForTorrent>>();
}

/// Initializes the state that the systems keep between ticks.
fn init_resources(app: &mut App) {
    app.init_resource::<TorrentIndex>()
        .init_resource::<ChangedFacts>()
        .init_resource::<opening::StorageIds>()
        .init_resource::<resuming_all::ResumingAll>()
        .init_resource::<Adds>()
        .init_resource::<opening::preparing::AwaitingClaims>()
        .init_resource::<Jobs<RemoveTorrent>>()
        .init_resource::<opening::Arrived>()
        .init_resource::<Deadlines<failing::Retry>>()
        .init_resource::<stop_requests::StopsInOrder>()
        .init_resource::<Jobs<resuming::Resumption>>()
        .init_resource::<Jobs<resuming::Unstopping>>()
        .init_resource::<stopped::Listings>()
        .init_resource::<starting::Starts>()
        .init_resource::<moving::Moves>()
        .init_resource::<metadata::UnsavedMetadata>();
}
