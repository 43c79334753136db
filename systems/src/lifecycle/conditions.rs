//! Run conditions of adding, opening and deriving.

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::commands::{
    AddTorrent, CommandQueue, ListStopped, ResumeAll, ResumeTorrent, SupplyMetadata,
};
use ecs_torrent_components::lifecycle::ChangedFacts;
use ecs_torrent_components::messages::PiecesKnown;
use ecs_torrent_engine::ports::{DiskPort, StatePort};

use super::adds::Adds;
use super::{moving, opening};
use crate::sessions::SessionWritten;

/// Everything that adding and opening take.
#[derive(SystemParam)]
pub(super) struct Inputs<'w> {
    adds: Res<'w, CommandQueue<AddTorrent>>,
    resumes: Res<'w, CommandQueue<ResumeTorrent>>,
    resumes_of_all: Res<'w, CommandQueue<ResumeAll>>,
    lists: Res<'w, CommandQueue<ListStopped>>,
    supplies: Res<'w, CommandQueue<SupplyMetadata>>,
    pending: Res<'w, Adds>,
    arrived: Res<'w, opening::Arrived>,
    state: Res<'w, StatePort>,
    disk: Res<'w, DiskPort>,
    known: Res<'w, Messages<PiecesKnown>>,
    written: Res<'w, Messages<SessionWritten>>,
}

/// Returns whether a torrent may be added, opened or started in this tick. True in the first tick, in which the systems
/// open their inboxes.
pub(super) fn may_begin(inputs: Inputs, mut is_later: Local<bool>) -> bool {
    let has_commands = !inputs.adds.0.is_empty()
        || !inputs.resumes.0.is_empty()
        || !inputs.resumes_of_all.0.is_empty()
        || !inputs.lists.0.is_empty()
        || !inputs.supplies.0.is_empty();
    let has_events = inputs.state.has_events() || opening::has_events(&inputs.disk) || moving::has_events(&inputs.disk);
    let has_messages = !inputs.known.is_empty() || !inputs.written.is_empty();
    let is_first = !std::mem::replace(&mut *is_later, true);
    is_first
        || has_commands
        || has_events
        || has_messages
        || inputs.pending.has_undecided()
        || !inputs.arrived.is_empty()
}

/// Returns whether the state of a torrent may have changed.
pub(super) fn has_changed_facts(changed: Res<ChangedFacts>) -> bool {
    !changed.is_empty()
}
