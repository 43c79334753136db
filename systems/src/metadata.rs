//! Exchange of metadata with peers (BEP 9): a torrent that was added by its info-hash fetches its info dictionary, and
//! a public torrent serves its own.

mod fetching;
mod serving;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::CandidateSource;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::messages::{
    ExtensionHandshakeReceived, ExtensionReceived, LifecycleChanged, MetadataKnown, OutboxDrained,
};
use ecs_torrent_components::peer::ExtensionRegistry;
use ecs_torrent_components::work_list::WorkList;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::metadata::METADATA;

pub use self::fetching::MetadataFetch;
use self::fetching::{FetchTimer, begin_fetches, find_sources, receive_metadata, release_sources, request_metadata};
pub(crate) use self::serving::metadata_size;
use self::serving::{MetadataServer, announce_metadata, release_requests, serve_metadata};
use crate::conditions::{has_due, has_messages};
use crate::extensions::read_dont_have;
use crate::{DecideSet, ReapSet};

/// Fetches and serves metadata.
pub struct MetadataPlugin;

impl Plugin for MetadataPlugin {
    fn build(&self, app: &mut App) {
        app.world_mut()
            .resource_mut::<ExtensionRegistry>()
            .register_for_source(METADATA, CandidateSource::MAGNET);
        app.init_resource::<WorkList<MetadataFetch>>()
            .init_resource::<Deadlines<FetchTimer>>()
            .init_resource::<MetadataServer>()
            .add_systems(
                Tick,
                (
                    (
                        begin_fetches.run_if(has_messages::<LifecycleChanged>),
                        find_sources.run_if(has_messages::<ExtensionHandshakeReceived>),
                        receive_metadata.run_if(has_messages::<ExtensionReceived>),
                        request_metadata.run_if(has_requests),
                        announce_metadata.run_if(has_messages::<MetadataKnown>),
                        serve_metadata.run_if(has_requested.or_else(has_messages::<OutboxDrained>)),
                    )
                        .chain()
                        .after(read_dont_have)
                        .in_set(DecideSet::Extensions),
                    (release_sources, release_requests).in_set(ReapSet::Release),
                ),
            );
    }
}

fn has_requested(server: Res<MetadataServer>) -> bool {
    server.has_work()
}

/// Returns whether a fetch may have requests to send. If not, requests a tick at the next time-out.
fn has_requests(
    queue: Res<WorkList<MetadataFetch>>,
    timers: Res<Deadlines<FetchTimer>>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    has_due(timers, clock, wakeup) || !queue.is_empty()
}
