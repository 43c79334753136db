//! The diary in a running engine: its component is updated, and its stop request is carried out.

use ecs_torrent::events::Event;
use ecs_torrent::prelude::World;
use third_party_plugin::{CloseDiaryPlugin, ClosedDiaries, Diary, DiaryPlugin};

use crate::swarm::{Swarm, engine, settings, wait_for};

#[test]
fn a_plugin_from_outside_sees_pieces_and_stops_torrents() {
    let swarm = Swarm::new(200_000);
    // The seed stops when it has uploaded the torrent once; the leecher never does.
    let seed = engine(DiaryPlugin { stop_at_ratio: 1.0 }, settings());
    let leecher = engine(DiaryPlugin { stop_at_ratio: 9.0 }, settings());
    let stopped = seed.torrents().subscribe();
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    wait_for(stopped, |event| matches!(event, Event::Stopped(_)));
    assert!(
        seed.torrents().blocking().list().unwrap().is_empty(),
        "the plugin stopped it"
    );
    let diaries = |world: &mut World| world.query::<&Diary>().iter(world).cloned().collect::<Vec<_>>();
    let diaries = leecher.torrents().blocking().with_world(diaries).unwrap();
    let [Diary { pieces }] = &diaries[..] else {
        panic!("{diaries:?}")
    };
    let mut sorted = pieces.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..13).collect::<Vec<_>>(), "every piece once");
}

/// A plugin from outside joins a phase of the stop: the caller of the stop is answered after the plugin has finished.
#[test]
fn a_stop_waits_for_a_participant_from_outside() {
    let swarm = Swarm::new(200_000);
    let seed = engine((DiaryPlugin { stop_at_ratio: 9.0 }, CloseDiaryPlugin), settings());
    swarm.seed(&seed);
    let torrents = seed.torrents().blocking();
    let listed = torrents.list().unwrap();
    torrents.stop_and_serialize(listed[0]).unwrap();
    let closed = |world: &mut World| world.resource::<ClosedDiaries>().0.clone();
    assert_eq!(
        torrents.with_world(closed).unwrap(),
        [0],
        "no piece was downloaded, since all were there"
    );
}
