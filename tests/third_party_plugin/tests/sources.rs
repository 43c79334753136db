//! Sources from outside in a running engine: a source of peers, and a source of blocks.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ecs_torrent::components::candidates::Candidates;
use ecs_torrent::components::peer::Requests;
use ecs_torrent::events::Event;
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::prelude::*;
use ecs_torrent::{EngineBuilder, Source};
use third_party_plugin::peer_list::PeerListPlugin;
use third_party_plugin::{ShelfPlugin, Shelves};

fn builder() -> EngineBuilder {
    Engine::builder().plugins(TorrentPlugins).settings(settings())
}

fn settings() -> Settings {
    let mut settings = crate::swarm::settings();
    settings.peers.keep_redundant = true;
    settings
}

/// A folder with the content of a torrent and an empty folder; removed in the end.
struct Place {
    base: PathBuf,
    data: Vec<u8>,
    torrent: PathBuf,
}

impl Place {
    fn new(name: &str, private: bool) -> Self {
        let base = std::env::temp_dir().join(format!("plugin-sources-{name}-{}", std::process::id()));
        std::fs::create_dir_all(base.join("there")).unwrap();
        std::fs::create_dir_all(base.join("here")).unwrap();
        let data: Vec<u8> = (0..200_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
        std::fs::write(base.join("there/data"), &data).unwrap();
        let options = MakeOptions {
            private,
            ..MakeOptions::default()
        };
        let plan = Plan::new(&base.join("there/data"), options).unwrap();
        let torrent = base.join("it.torrent");
        std::fs::write(&torrent, plan.make(&|_| {}).unwrap()).unwrap();
        Self { base, data, torrent }
    }

    fn add(&self, engine: &Engine, folder: &str) {
        let options = AddOptions {
            root: Some(self.base.join(folder)),
            ..AddOptions::default()
        };
        let source = Source::from(self.torrent.clone());
        engine.torrents().blocking().download_with(source, options).unwrap();
    }

    fn downloaded(&self) -> Vec<u8> {
        std::fs::read(self.base.join("here").join("data")).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

/// Returns the candidates of the only torrent, once for each of their sources.
fn candidates(engine: &Engine) -> Vec<(SocketAddr, &'static str, CandidateFlags)> {
    let read = |world: &mut World| {
        let mut torrents = world.query::<&Candidates>();
        let known = torrents.single(world).unwrap();
        let sources = world.resource::<CandidateSources>();
        let named = |address| {
            let (found_by, flags) = known.get(address).unwrap();
            found_by
                .iter()
                .map(move |source| (address, sources.name_of(source), flags))
        };
        known.iter().flat_map(named).collect()
    };
    engine.torrents().blocking().with_world(read).unwrap()
}

#[test]
fn peers_of_a_plugins_source_are_dialed() {
    for is_before_the_engines_own in [false, true] {
        let place = Place::new("public", false);
        let seeder = builder().start().unwrap();
        let list = PeerListPlugin {
            name: "list",
            serves_private: false,
            peers: vec![seeder.local_addresses()[0]],
        };
        let builder = match is_before_the_engines_own {
            true => Engine::builder()
                .plugins(list)
                .plugins(TorrentPlugins)
                .settings(settings()),
            false => builder().plugins(list),
        };
        let leecher = builder.start().unwrap();
        let mut events = leecher.torrents().subscribe();
        place.add(&seeder, "there");
        place.add(&leecher, "here");
        while !matches!(events.next_blocking(), Some(Event::Completed(_)) | None) {}
        let known = candidates(&leecher);
        let expected = (seeder.local_addresses()[0], "list", CandidateFlags::SEED);
        assert!(known.contains(&expected), "{known:?}");
        assert!(place.downloaded() == place.data);
    }
}

#[test]
fn a_private_torrent_has_no_peers_of_a_public_source() {
    let place = Place::new("private", true);
    let [open, closed]: [SocketAddr; 2] = [1, 2].map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let plugin = |name, serves_private, address| PeerListPlugin {
        name,
        serves_private,
        peers: vec![address],
    };
    let engine = builder()
        .plugins(plugin("list", false, open))
        .plugins(plugin("office", true, closed))
        .start()
        .unwrap();
    place.add(&engine, "here");
    // Both sources name their peers in the same tick, the public one first.
    let known = loop {
        match candidates(&engine) {
            known if known.is_empty() => {}
            known => break known,
        }
    };
    assert_eq!(known, [(closed, "office", CandidateFlags::SEED)]);
}

#[test]
fn a_source_that_is_no_connection_completes_a_download() {
    let place = Place::new("shelf", false);
    let engine = builder()
        .plugins(ShelfPlugin {
            data: place.data.clone(),
            withheld: None,
        })
        .start()
        .unwrap();
    let mut events = engine.torrents().subscribe();
    place.add(&engine, "here");
    while !matches!(events.next_blocking(), Some(Event::Completed(_)) | None) {}
    assert!(place.downloaded() == place.data);
}

#[test]
fn a_stop_cancels_the_requests_to_a_source_that_is_no_connection() {
    let place = Place::new("cancel", false);
    let engine = builder()
        .plugins(ShelfPlugin {
            data: place.data.clone(),
            withheld: Some(3),
        })
        .start()
        .unwrap();
    let owed = |world: &mut World| {
        let have = world.query::<&Have>().single(world).map(|have| have.count());
        let mut requests = world.query::<&Requests>();
        let pending: Vec<_> = requests.iter(world).flat_map(Requests::pending).collect();
        (have.ok() == Some(12)).then(|| pending.iter().map(|pending| pending.request).collect::<Vec<_>>())
    };
    place.add(&engine, "here");
    let owed = loop {
        if let Some(owed) = engine.torrents().blocking().with_world(owed).unwrap() {
            break owed;
        }
    };
    assert!(
        !owed.is_empty() && owed.iter().all(|request| request.piece == 3),
        "{owed:?}"
    );
    engine.torrents().blocking().stop_all_and_serialize().unwrap();
    let shelves = |world: &mut World| world.resource::<Shelves>().clone();
    let shelves = engine.torrents().blocking().with_world(shelves).unwrap();
    assert_eq!(shelves.canceled, owed);
    assert!(shelves.unanswered.is_empty());
}
