//! Tests that an engine without commands and events skips the systems of the lifecycle.

use ecs_torrent_components::commands::{AddOptions, AddTorrent, Reply, TorrentSource, UnfetchedTorrent};
use ecs_torrent_components::hints::LinkHints;
use ecs_torrent_components::messages::PiecesKnown;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::disk::{DiskEvent, DiskRequest};
use ecs_torrent_engine::ports::state::{StateEvent, StateRequest};
use ecs_torrent_engine::ports::{DiskPort, StatePort};
use ecs_torrent_protocol::hash::InfoHash;

use super::adds::{Adds, DecidingEvent, WaitingAdd};
use super::*;
use crate::ownership::OwnershipPlugin;
use crate::sessions::SessionsPlugin;
use crate::testing::Bed;

/// Returns an engine that has ticked before, with nothing to do.
fn bed() -> Bed {
    let mut bed = Bed::new((LifecyclePlugin, OwnershipPlugin, SessionsPlugin));
    bed.open_port::<StateRequest, StateEvent>(Vec::new());
    bed.open_port::<DiskRequest, DiskEvent>(Vec::new());
    bed.world.init_resource::<Messages<PiecesKnown>>();
    let opened = [opening::OPEN, opening::preparing::PREPARE, releasing::RELEASE];
    for purpose in opened.into_iter().chain(moving::PURPOSES) {
        open_inbox(&mut bed, purpose);
    }
    bed
}

fn open_inbox(bed: &mut Bed, purpose: Purpose) {
    bed.world.resource_mut::<DiskPort>().open_inbox(purpose);
    bed.world.resource_mut::<StatePort>().open_inbox(purpose);
}

#[test]
fn an_idle_engine_adds_opens_and_stops_nothing() {
    let mut bed = bed();
    let may_begin = bed.world.register_system(conditions::may_begin);
    assert!(
        bed.world.run_system(may_begin).unwrap(),
        "the first tick opens the inboxes"
    );
    assert!(!bed.world.run_system(may_begin).unwrap());
    assert!(!bed.holds(conditions::has_changed_facts));
    assert!(!bed.holds(stop_requests::has_stops));
    assert!(!bed.holds(pausing::has_commands));
    assert!(!bed.holds(|disk: Res<DiskPort>| opening::has_events(&disk)));
    let torrent = bed.torrent;
    bed.world.resource_mut::<ChangedFacts>().add(torrent);
    assert!(bed.holds(conditions::has_changed_facts));
}

#[test]
fn undecided_adds_are_seen() {
    let command = || AddTorrent {
        source: TorrentSource::InfoHash(UnfetchedTorrent {
            info_hash: InfoHash([1; 20]),
            name: None,
            trackers: Vec::new(),
            peers: Vec::new(),
            hints: LinkHints::default(),
        }),
        options: AddOptions::default(),
        is_resumed: false,
        reply: Reply::ignored(),
    };
    let mut adds = Adds::default();
    assert!(!adds.has_undecided());
    adds.waiting.push(WaitingAdd {
        command: command(),
        event: DecidingEvent::End,
    });
    assert!(adds.has_undecided());
    adds.waiting.clear();
    adds.joins.push((Entity::PLACEHOLDER, command()));
    assert!(adds.has_undecided());
}
