//! The table of components in the plugin guide: the components of each kind of entity in each state, as simulated
//! engines have them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bevy_app::App;
use bevy_ecs::prelude::*;
use bevy_ecs::world::EntityRef;
use ecs_torrent::Settings;
use ecs_torrent::TorrentPlugins;
use ecs_torrent::TorrentState;
use ecs_torrent::components::commands::{
    AddOptions, AddTorrent, CommandQueue, Reply, SupplyMetadata, TorrentSource, UnfetchedTorrent,
};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::components::peer::{Peer, UncheckedPieces};
use ecs_torrent::components::piece::ActivePiece;
use ecs_torrent::components::selection::FileSelection;
use ecs_torrent::components::torrent::{Lifecycle, Torrent};
use ecs_torrent::components::tracker::Tracker;
use ecs_torrent::engine::schedule::{Tick, TickSet};
use ecs_torrent::engine::sim::{DiskFault, DiskOperation, Lasting, NewContent, NodeId, Simulation, TrackerMode};
use ecs_torrent::protocol::time::Timestamp;
use ecs_torrent::sim::{Act, Link, Scenario, When, Who};

/// The components that were on every entity of a kind in a state, and those that were on some.
#[derive(Debug, Clone, Default)]
struct Seen {
    always: Option<BTreeSet<String>>,
    ever: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, components: &BTreeSet<String>) {
        self.ever.extend(components.iter().cloned());
        self.always = Some(match self.always.take() {
            Some(always) => &always & components,
            None => components.clone(),
        });
    }
}

/// Observed components, by kind of entity and state.
#[derive(Resource, Debug, Clone, Default)]
struct Census(Arc<Mutex<BTreeMap<(&'static str, String), Seen>>>);

impl Census {
    /// Looks at every entity where plugins do: before Decide, and at the end of the tick.
    fn plugin(self) -> impl Fn(&mut App) + Clone + 'static {
        move |app: &mut App| {
            let before_decide = look.after(TickSet::Announce).before(TickSet::Decide);
            app.insert_resource(self.clone())
                .add_systems(Tick, (before_decide, look.after(TickSet::Reap)));
        }
    }
}

fn look(world: &mut World) {
    let census = world.resource::<Census>().clone();
    let mut census = census.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mut entities = world.query::<EntityRef>();
    for entity in entities.iter(world) {
        let Some((kind, state)) = kind_and_state(entity) else {
            continue;
        };
        let components = entity.archetype().components().iter();
        let names = components
            .filter_map(|id| world.components().get_name(*id))
            .map(|name| name.to_string());
        let ours = names.filter(|name| name.starts_with("ecs_torrent"));
        let short = ours.map(|name| name.rsplit("::").next().unwrap_or_default().to_owned());
        census.entry((kind, state)).or_default().add(&short.collect());
    }
}

fn kind_and_state(entity: EntityRef) -> Option<(&'static str, String)> {
    if entity.contains::<Torrent>() {
        // A torrent's first tick ends before it has a state.
        return Some(("torrent", variant(entity.get::<Lifecycle>()?)));
    }
    if let Some(peer) = entity.get::<Peer>() {
        return Some(("peer", variant(&peer.stage)));
    }
    if let Some(piece) = entity.get::<ActivePiece>() {
        return Some(("piece", variant(&piece.phase)));
    }
    entity.contains::<Tracker>().then(|| ("tracker", "any state".into()))
}

/// Returns the name of an enum's variant.
fn variant(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let end = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
    text[..end].to_owned()
}

/// Swarms in which torrents, peers and pieces come into every state that they have.
fn census() -> BTreeMap<(&'static str, String), Seen> {
    let census = Census::default();
    let link = Link::symmetric(256 << 10);
    let (who, second) = (Who::Leech(0), Duration::from_secs(1));
    let base = |name| {
        Scenario::new(name)
            .seeds(1, link)
            .leeches(2, link)
            .plugins(census.clone().plugin())
            .may_fail()
    };
    let mut waiting = Settings::default();
    (waiting.dht.enabled, waiting.queue.max_seeds) = (false, 1);
    let scenarios = [
        base("stopped and resumed")
            .when(When::Has(who, 0.3), Act::Stops(who))
            .at(second * 10, Act::Starts(who)),
        base("killed")
            .when(When::Has(who, 0.3), Act::Killed(who))
            .at(second * 10, Act::Starts(who)),
        base("a full disk")
            .when(When::Has(who, 0.3), Act::DiskFills(who))
            .at(second * 10, Act::DiskHasRoom(who)),
        base("a broken disk").when(When::Has(who, 0.3), Act::DiskFails(who, second * 30)),
        base("paused and started")
            .when(When::Has(who, 0.3), Act::Pauses(who))
            .at(second * 10, Act::Unpauses(who)),
        // Large pieces: the stop finds some of each, and its blocks are read back.
        base("pieces in parts")
            .torrent(NewContent {
                piece_length: 256 << 10,
                ..NewContent::default()
            })
            .at(second * 3, Act::Stops(who))
            .at(second * 10, Act::Starts(who)),
        base("queued").idle_torrents(2).settings(waiting),
        base("moved").when(When::Has(who, 0.3), Act::MovesFiles(who, 1)),
        base("a tracker that is gone").at(Duration::ZERO, Act::Tracker(TrackerMode::Down)),
    ];
    for scenario in scenarios {
        let _ = scenario.run();
    }
    fetch_metadata(&census);
    choose_files(&census, Some(100_000));
    choose_files(&census, None);
    meet_faults(&census);
    let seen = census.0.lock().unwrap_or_else(PoisonError::into_inner);
    seen.clone()
}

/// Lets an engine connect to a seed of a torrent of which it knows the info-hash only, and then supplies the metadata.
fn fetch_metadata(census: &Census) {
    let trackers = vec![vec!["http://10.0.0.9/announce".to_owned()]];
    let new = NewContent {
        trackers: trackers.clone(),
        ..NewContent::default()
    };
    let content = new.make();
    let mut sim = Simulation::new(1, Duration::ZERO);
    let plugins = (TorrentPlugins, census.clone().plugin());
    let [seed, other] = [1, 2].map(|last| sim.add_node([10, 0, 0, last].into(), Settings::default(), plugins.clone()));
    sim.put(seed, "downloads", &content);
    let unfetched = UnfetchedTorrent {
        info_hash: content.info_hash(),
        name: None,
        trackers,
        peers: Vec::new(),
        hints: LinkHints::default(),
    };
    let sources = [content.metainfo().clone().into(), TorrentSource::InfoHash(unfetched)];
    for (node, source) in [seed, other].into_iter().zip(sources) {
        let add = AddTorrent {
            source,
            options: AddOptions {
                root: Some("downloads".into()),
                peers: vec![sim.net().addresses(seed)[0]],
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        };
        send(&mut sim, node, add);
    }
    let is_connected = |sim: &mut Simulation| {
        let world = sim.node(other).world_mut();
        world.query::<&UncheckedPieces>().iter(world).count() > 0
    };
    let limit = Timestamp::ZERO + Duration::from_secs(60);
    assert!(sim.run_until(limit, is_connected));
    let supply = SupplyMetadata {
        torrent: content.info_hash(),
        info: content.metainfo().info_bytes.clone(),
        reply: Reply::ignored(),
    };
    send(&mut sim, other, supply);
    assert!(sim.run_until(limit, |sim| sim.has(other, "downloads", &content)));
}

/// Lets an engine download one of two files, possibly within a limit on its rate, and seed it.
fn choose_files(census: &Census, limit: Option<u64>) {
    let new = NewContent {
        file_count: 2,
        ..NewContent::default()
    };
    let content = new.make();
    let mut sim = Simulation::new(2, Duration::ZERO);
    let plugins = (TorrentPlugins, census.clone().plugin());
    let [seed, other] = [1, 2].map(|last| sim.add_node([10, 0, 0, last].into(), Settings::default(), plugins.clone()));
    sim.put(seed, "downloads", &content);
    for (node, is_choosy) in [(seed, false), (other, true)] {
        let mut options = AddOptions {
            root: Some("downloads".into()),
            peers: vec![sim.net().addresses(seed)[0]],
            ..AddOptions::default()
        };
        if is_choosy {
            options.select = FileSelection::new([0..=0], []).unwrap();
            options.limits.download_bytes_per_s = limit;
        }
        let add = AddTorrent {
            source: content.metainfo().clone().into(),
            options,
            is_resumed: false,
            reply: Reply::ignored(),
        };
        send(&mut sim, node, add);
    }
    let is_finished = |sim: &mut Simulation| {
        let world = sim.node(other).world_mut();
        let mut states = world.query::<&Lifecycle>();
        states.iter(world).any(|state| *state == Lifecycle::Finished)
    };
    assert!(sim.run_until(Timestamp::ZERO + Duration::from_secs(60), is_finished));
    sim.run_for(Duration::from_secs(5));
}

/// Lets the files of an engine be out of reach before they are opened, and while they are downloaded: the volume is not
/// mounted, or the disk fails.
fn meet_faults(census: &Census) {
    let content = NewContent::default().make();
    let mut sim = Simulation::new(3, Duration::ZERO);
    let plugins = (TorrentPlugins, census.clone().plugin());
    let [seed, other] = [1, 2].map(|last| sim.add_node([10, 0, 0, last].into(), Settings::default(), plugins.clone()));
    sim.put(seed, "downloads", &content);
    let is_blocked = |state: &Lifecycle| matches!(state, Lifecycle::Blocked { .. });
    let is_failed = |state: &Lifecycle| matches!(state, Lifecycle::Failed { .. });
    let until = |sim: &mut Simulation, is_it: &dyn Fn(&Lifecycle) -> bool| {
        let limit = sim.now() + Duration::from_secs(60);
        let holds = |sim: &mut Simulation| {
            let world = sim.node(other).world_mut();
            world.query::<&Lifecycle>().iter(world).any(is_it)
        };
        assert!(sim.run_until(limit, holds));
    };
    sim.disk(other).set_mounted(false);
    for node in [seed, other] {
        let add = AddTorrent {
            source: content.metainfo().clone().into(),
            options: AddOptions {
                root: Some("downloads".into()),
                peers: vec![sim.net().addresses(seed)[0]],
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        };
        send(&mut sim, node, add);
    }
    until(&mut sim, &is_blocked);
    sim.disk(other)
        .fail(DiskOperation::Look, DiskFault::Io, Lasting::Next(1));
    sim.disk(other).set_mounted(true);
    until(&mut sim, &is_failed);
    until(&mut sim, &|state| *state == Lifecycle::Downloading);
    sim.disk(other).set_mounted(false);
    until(&mut sim, &is_blocked);
    sim.disk(other).set_mounted(true);
    until(&mut sim, &|state| *state == Lifecycle::Seeding);
}

fn send<C: Send + Sync + 'static>(sim: &mut Simulation, node: NodeId, command: C) {
    let world = sim.node(node).world_mut();
    world.resource_mut::<CommandQueue<C>>().0.push_back(command);
    sim.nudge(node);
}

fn list(names: impl IntoIterator<Item = String>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(" ")
}

/// Writes a row for the components of every entity of a kind, and a row for each state with the additional ones.
fn table() -> String {
    let seen = census();
    let order = order();
    // The simulated engines come into every state.
    let occurring: BTreeSet<String> = seen.keys().map(|(_, state)| state.clone()).collect();
    assert_eq!(occurring, order.iter().cloned().collect());
    let mut text = "\
<!-- Written by `UPDATE=1 cargo test --test workspace` from simulated engines. -->

| entity | state | always has | may have |
|---|---|---|---|
"
    .to_owned();
    for kind in ["torrent", "peer", "piece", "tracker"] {
        let states: Vec<(&String, &Seen)> = seen
            .iter()
            .filter(|((of, _), _)| *of == kind)
            .map(|((_, state), seen)| (state, seen))
            .collect();
        let always = |seen: &Seen| seen.always.clone().unwrap_or_default();
        let common = states.iter().map(|(_, seen)| always(seen)).reduce(|a, b| &a & &b);
        let common = common.unwrap_or_default();
        if states.len() > 1 {
            text += &format!("| {kind} | every state | {} | |\n", list(common.clone()));
        }
        let mut states: Vec<_> = states.into_iter().collect();
        states.sort_by_key(|(state, _)| order.iter().position(|name| name == *state));
        let is_single = states.len() == 1;
        for (state, seen) in states {
            let always = always(seen);
            let in_addition = if is_single { always.clone() } else { &always - &common };
            let sometimes = &seen.ever - &always;
            text += &format!("| {kind} | {state} | {} | {} |\n", list(in_addition), list(sometimes));
        }
    }
    text
}

/// Returns the states in the order in which entities pass through them.
fn order() -> Vec<String> {
    let mut states: Vec<String> = TorrentState::ALL.iter().map(variant).collect();
    // A stop has one row for all of its phases.
    states.dedup();
    let others = [
        "Connecting",
        "Handshaking",
        "Connected",
        "Restoring",
        "Filling",
        "Hashing",
        "Writing",
        "any state",
    ];
    states.extend(others.map(String::from));
    states
}

#[test]
fn the_table_of_components_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/app/guide/components.md");
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, table).unwrap();
    } else {
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == table,
            "run it with UPDATE=1, and read what has changed\nwritten:\n{written}\ntrue:\n{table}"
        );
    }
}
