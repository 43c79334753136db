//! An engine without its optional features publishes the events of those that it has.

use ecs_torrent::bevy_app::{PluginGroup, PluginGroupBuilder};
use ecs_torrent::events::Event;
use ecs_torrent::systems::{dht::DhtPlugin, following::FollowingPlugin};
use ecs_torrent::{Engine, TorrentPlugins};

use crate::bed::settings;

#[derive(Clone)]
struct WithoutDht;

impl PluginGroup for WithoutDht {
    fn build(self) -> PluginGroupBuilder {
        let all = TorrentPlugins.build();
        all.disable::<DhtPlugin>().disable::<FollowingPlugin>()
    }
}

#[test]
fn an_engine_without_the_dht_publishes_its_other_events() {
    let temporary = tempfile::tempdir().unwrap();
    let settings = settings(Some(temporary.path()));
    let engine = Engine::builder()
        .plugins(WithoutDht)
        .settings(settings)
        .start()
        .unwrap();
    let mut events = engine.torrents().subscribe();
    let torrents = engine.torrents().blocking();
    let id = torrents
        .download("magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567")
        .unwrap();
    assert_eq!(events.next_blocking(), Some(Event::Added(id)));
    engine.torrents().blocking().stop_all_and_serialize().unwrap();
}
