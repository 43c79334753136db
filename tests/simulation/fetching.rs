//! Torrents that are added by their info-hash, before their metadata is known.

use std::net::SocketAddr;
use std::sync::mpsc::Receiver;

use ecs_torrent::bevy_ecs::prelude::{Entity, With};
use ecs_torrent::components::candidates::{CandidateSource, Candidates, CandidatesFound};
use ecs_torrent::components::commands::{
    ListStopped, PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, Removed, ResumeAll, StartTorrent,
    StopTorrent, SupplyError, SupplyMetadata, TorrentSource, UnfetchedTorrent,
};
use ecs_torrent::components::hints::LinkHints;
use ecs_torrent::components::messages::PeerConnected;
use ecs_torrent::components::peer::{Peer, PeerPieces, UncheckedPieces};
use ecs_torrent::engine::sim::{Crash, DiskFault, Lasting, StateOperation};
use ecs_torrent::prelude::{App, Plugin, Query, Res, ResMut, Resource, Tick, TickSet, Torrent, World};
use ecs_torrent::prelude::{IntoScheduleConfigs, Lifecycle, MessageReader};
use ecs_torrent::protocol::bitfield::Bitfield;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};
use ecs_torrent::{AddError, InfoHash, TorrentState};

use super::*;

pub const TRACKER: &str = "http://10.0.0.9:80/announce";
pub const WEB_SEED: &str = "http://10.0.0.8/files/";
const LIMIT: Duration = Duration::from_secs(600);

/// The metadata that [`SupplierPlugin`] has.
#[derive(Resource, Clone, Default)]
struct Metadata(Option<Bytes>);

/// A plugin that supplies metadata when a peer connects, as one that fetches it from peers does (BEP 9).
#[derive(Clone)]
struct SupplierPlugin;

impl Plugin for SupplierPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Metadata>()
            .add_systems(Tick, supply.in_set(TickSet::Decide));
    }
}

fn supply(
    mut connected: MessageReader<PeerConnected>,
    metadata: Res<Metadata>,
    torrents: Query<&Torrent>,
    mut queue: ResMut<CommandQueue<SupplyMetadata>>,
) {
    for PeerConnected { torrent, .. } in connected.read() {
        if let (Some(info), Ok(torrent)) = (&metadata.0, torrents.get(*torrent)) {
            queue.0.push_back(SupplyMetadata {
                torrent: torrent.id(),
                info: info.clone(),
                reply: Reply::ignored(),
            });
        }
    }
}

/// A seed, and an engine that knows the torrent's hash.
pub struct Bed {
    pub sim: Simulation,
    pub content: Content,
    pub leecher: NodeId,
}

impl Bed {
    pub fn new(seed: u64) -> Self {
        let content = torrent(600_001, 32768);
        let mut sim = Simulation::new(seed, Duration::from_millis(10));
        let plugins = (without_metadata(), InvariantsPlugin);
        // The node of the DHT also reads from the state folder, in which tests make reads fail.
        let mut settings = Settings::default();
        settings.dht.enabled = false;
        let seeder = sim.add_node(ip(1), settings.clone(), plugins);
        let leecher = sim.add_node(ip(2), settings, (plugins, SupplierPlugin));
        sim.put(seeder, "downloads", &content);
        add(&mut sim, seeder, &content, vec![]);
        Self { sim, content, leecher }
    }

    /// Sends a command and returns where its answer arrives.
    pub fn send<C: Send + Sync + 'static, T: Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> C,
    ) -> Receiver<T> {
        send(&mut self.sim, self.leecher, command)
    }

    pub fn wait<T>(&mut self, answers: &Receiver<T>) -> T {
        let mut answer = None;
        self.until("an answer", |_| {
            answer = answers.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    pub fn until(&mut self, what: &str, mut is_done: impl FnMut(&mut Simulation) -> bool) {
        let limit = self.sim.now() + LIMIT;
        assert!(self.sim.run_until(limit, &mut is_done), "{what}: {:?}", self.stats());
        let violations: Vec<_> = self.sim.nodes().collect();
        for node in violations
            .into_iter()
            .filter(|node| self.sim.is_up(*node))
            .collect::<Vec<_>>()
        {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{what}: {found:?}");
        }
    }

    /// Adds the torrent by its hash, and waits until that is durable.
    pub fn add(&mut self) {
        assert_eq!(self.try_add(), Ok(self.content.info_hash()));
    }

    fn try_add(&mut self) -> Result<InfoHash, AddError> {
        let source = TorrentSource::InfoHash(UnfetchedTorrent {
            info_hash: self.content.info_hash(),
            name: Some("a name/of a link".to_owned()),
            trackers: vec![vec![TRACKER.to_owned()]],
            peers: Vec::new(),
            hints: LinkHints {
                web_seeds: vec![WEB_SEED.to_owned()],
                ..LinkHints::default()
            },
        });
        let added = self.send(|reply| AddTorrent {
            source,
            options: AddOptions {
                root: Some("downloads".into()),
                peers: vec![(ip(1), 6881).into()],
                ..AddOptions::default()
            },
            is_resumed: false,
            reply,
        });
        self.wait(&added)
    }

    /// Waits until the seed has announced its pieces.
    fn wait_for_peer(&mut self) {
        let leecher = self.leecher;
        self.until("a peer", |sim| peer(sim.node(leecher).world_mut()).is_some());
    }

    pub fn stats(&mut self) -> Option<TorrentStats> {
        stats(&mut self.sim, self.leecher, &self.content)
    }

    pub fn info(&self) -> Bytes {
        self.content.metainfo().info_bytes.clone()
    }

    pub fn supply(&mut self, info: Bytes) -> Result<(), SupplyError> {
        let torrent = self.content.info_hash();
        let answer = self.send(|reply| SupplyMetadata { torrent, info, reply });
        self.wait(&answer)
    }

    pub fn complete(&mut self) {
        let (leecher, content) = (self.leecher, self.content.clone());
        self.until("a download", |sim| sim.has(leecher, "downloads", &content));
        let now = self.sim.now() + Duration::from_secs(5);
        self.sim.run_until(now, |_| false);
        assert_eq!(self.stats().unwrap().state, TorrentState::Seeding);
    }

    /// Resumes all torrents that are not listed; there have to be `count`.
    fn resume_exactly(&mut self, count: usize) {
        let resumed = self.send(|reply| ResumeAll {
            include_stopped: true,
            reply,
        });
        assert_eq!(self.wait(&resumed), Ok(count));
    }

    fn resume_all(&mut self) {
        self.resume_exactly(1);
        self.wait_for_state(&Lifecycle::FetchingMetadata);
    }

    pub fn wait_for_state(&mut self, expected: &Lifecycle) {
        let leecher = self.leecher;
        self.until("a state", |sim| {
            let world = sim.node(leecher).world_mut();
            let mut states = world.query::<&Lifecycle>();
            states.iter(world).all(|state| state == expected)
        });
    }

    fn assert_fetching(&mut self) {
        let stats = self.stats().unwrap();
        assert_eq!(
            (stats.state, &*stats.name),
            (TorrentState::FetchingMetadata, "a name_of a link")
        );
        assert_eq!((stats.size, stats.pieces, stats.progress()), (None, None, 0.0));
        assert!(!stats.is_complete());
        let trackers: Vec<_> = stats.trackers.iter().map(|tracker| &*tracker.url).collect();
        assert_eq!(trackers, ["http://10.0.0.9/announce"], "a path that holds no key");
    }
}

/// The unchecked pieces of the peer, once it has sent them.
fn peer(world: &mut World) -> Option<UncheckedPieces> {
    let mut peers = world.query::<&UncheckedPieces>();
    peers.iter(world).find(|pieces| pieces.0 != Default::default()).cloned()
}

#[test]
fn a_torrent_added_by_its_hash_completes_once_its_metadata_is_known() {
    let mut bed = Bed::new(1);
    bed.add();
    bed.wait_for_peer();
    bed.assert_fetching();
    let session = bed.sim.state(bed.leecher).session(bed.content.info_hash()).unwrap();
    assert!(session.lacks_metadata && session.files.is_empty());
    let other = torrent(5, 32768).metainfo().info_bytes.clone();
    let wrong = SupplyError::WrongHash(bed.content.info_hash());
    assert_eq!(bed.supply(other), Err(wrong));
    bed.assert_fetching();
    bed.supply(bed.info()).unwrap();
    let leecher = bed.leecher;
    let raw = |world: &mut World| world.query::<&UncheckedPieces>().iter(world).count();
    bed.until("checked pieces", |sim| {
        let world = sim.node(leecher).world_mut();
        raw(world) == 0 && world.query::<&PeerPieces>().iter(world).any(PeerPieces::is_complete)
    });
    let hash = bed.content.info_hash();
    bed.until("a session", |sim| {
        sim.state(leecher)
            .session(hash)
            .is_some_and(|saved| !saved.lacks_metadata)
    });
    assert_eq!(
        bed.sim.state(leecher).torrents(),
        [hash],
        "the .torrent is stored with it"
    );
    bed.complete();
    let again = bed.supply(bed.info());
    assert_eq!(again, Err(SupplyError::NotNeeded(hash)));
    // A kill right after the completion: the torrent is found as any other.
    bed.sim.restart(leecher);
    bed.resume_exactly(1);
    bed.complete();
}

/// The way of a plugin that fetches metadata from peers (BEP 9).
#[test]
fn a_plugin_supplies_metadata_when_a_peer_connects() {
    for seed in 1..=4 {
        let mut bed = Bed::new(seed);
        let metadata = Metadata(Some(bed.info()));
        bed.sim.node(bed.leecher).world_mut().insert_resource(metadata);
        bed.add();
        bed.complete();
        assert_eq!(bed.stats().unwrap().downloaded, 600_001);
    }
}

/// Stop, kill, restart and removal before the metadata is known.
#[test]
fn a_torrent_without_metadata_is_stopped_saved_and_resumed_by_its_session_alone() {
    let mut bed = Bed::new(2);
    let hash = bed.content.info_hash();
    bed.add();
    bed.wait_for_peer();
    let stopped = bed.send(|reply| StopTorrent { torrent: hash, reply });
    assert_eq!(bed.wait(&stopped), Ok(()));
    assert_eq!(bed.stats(), None);
    let session = bed.sim.state(bed.leecher).session(hash).unwrap();
    assert!(session.lacks_metadata);
    assert_eq!(
        (&*session.name, &*session.trackers[0].url, &session.hints.web_seeds[..]),
        ("a name_of a link", TRACKER, &[WEB_SEED.to_owned()][..])
    );
    assert_eq!(session.peers, [SocketAddr::from((ip(1), 6881))]);
    let listed = bed.send(|reply| ListStopped { reply });
    let listed: Vec<_> = bed
        .wait(&listed)
        .unwrap()
        .iter()
        .map(|stopped| stopped.info_hash)
        .collect();
    assert_eq!(listed, [hash]);
    bed.resume_all();
    bed.wait_for_peer();
    bed.assert_fetching();
    // Killed, and then without power.
    for crash in [Crash::Process, Crash::Power] {
        bed.sim.crash(bed.leecher, crash);
        bed.sim.restart(bed.leecher);
        bed.resume_all();
        bed.wait_for_peer();
        bed.assert_fetching();
    }
    bed.supply(bed.info()).unwrap();
    bed.complete();
    let leecher = bed.leecher;
    let web_seeds = |sim: &mut Simulation| {
        let world = sim.node(leecher).world_mut();
        let mut contents = world.query::<&ecs_torrent::components::torrent::Content>();
        contents.single(world).unwrap().0.web_seeds.clone()
    };
    assert_eq!(web_seeds(&mut bed.sim), [WEB_SEED]);
    // The next run has them from the torrent file, and the session no longer repeats them.
    bed.until("a session", |sim| {
        let session = sim.state(leecher).session(hash);
        session.is_some_and(|session| session.have.to_set(session.pieces).is_some_and(|have| have.is_full()))
    });
    assert!(bed.sim.state(leecher).session(hash).unwrap().hints.is_empty());
    bed.sim.restart(leecher);
    bed.resume_exactly(1);
    bed.complete();
    assert_eq!(web_seeds(&mut bed.sim), [WEB_SEED]);
}

#[test]
fn a_torrent_without_metadata_is_removed_listed_or_not() {
    for is_stopped in [false, true] {
        let mut bed = Bed::new(3);
        let (torrent, options) = (bed.content.info_hash(), RemoveOptions { delete_data: true });
        bed.add();
        bed.wait_for_peer();
        if is_stopped {
            let stopped = bed.send(|reply| StopTorrent { torrent, reply });
            assert_eq!(bed.wait(&stopped), Ok(()));
        }
        let removed = bed.send(|reply| RemoveTorrent {
            torrent,
            options,
            reply,
        });
        assert_eq!(bed.wait(&removed), Ok(Removed::default()));
        assert_eq!(bed.stats(), None);
        assert_eq!(bed.sim.state(bed.leecher).session(torrent), None);
        bed.resume_exactly(0);
    }
}

/// Peers that connected earlier do not know of the pieces that are found when the metadata comes.
#[test]
fn data_that_was_there_before_the_metadata_is_announced() {
    let content = torrent(300_001, 32768);
    let mut sim = Simulation::new(6, Duration::from_millis(10));
    let plugins = (without_metadata(), InvariantsPlugin);
    let other = sim.add_node(ip(1), Settings::default(), plugins);
    let leecher = sim.add_node(ip(2), Settings::default(), (plugins, SupplierPlugin));
    sim.put(leecher, "downloads", &content);
    add(&mut sim, other, &content, vec![]);
    let mut bed = Bed { sim, content, leecher };
    bed.add();
    bed.until("a peer", |sim| {
        let world = sim.node(leecher).world_mut();
        world.query::<&UncheckedPieces>().iter(world).count() == 1
    });
    bed.supply(bed.info()).unwrap();
    let content = bed.content.clone();
    bed.until("an upload", |sim| sim.has(other, "downloads", &content));
}

/// A state folder that cannot be read for a while holds up the torrent, and does not end it.
#[test]
fn a_torrent_without_metadata_continues_when_its_state_can_be_read_again() {
    let mut bed = Bed::new(7);
    // The engine has read its followed links, so the fault hits the torrent's session.
    bed.sim.run_for(Duration::from_secs(1));
    bed.sim
        .state(bed.leecher)
        .fail(StateOperation::Load, DiskFault::Io, Lasting::Next(1));
    let added = bed.try_add();
    assert!(matches!(added, Err(AddError::Unsaved { .. })), "{added:?}");
    bed.wait_for_state(&Lifecycle::FetchingMetadata);
    bed.wait_for_peer();
    bed.supply(bed.info()).unwrap();
    bed.complete();
}

/// A `.torrent` of a torrent that fetches its metadata is its metadata.
#[test]
fn a_torrent_that_is_added_again_with_its_metadata_fetches_no_more() {
    let mut bed = Bed::new(8);
    bed.add();
    let (sim, leecher, content) = (&mut bed.sim, bed.leecher, bed.content.clone());
    add(sim, leecher, &content, vec![]);
    bed.complete();
}

/// A pause outlasts a kill, and the torrent fetches its metadata when it is started again.
#[test]
fn a_torrent_without_metadata_is_paused_and_started() {
    let mut bed = Bed::new(9);
    let torrent = bed.content.info_hash();
    bed.add();
    bed.wait_for_peer();
    let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
    assert_eq!(bed.wait(&paused), Ok(()));
    bed.wait_for_state(&Lifecycle::Paused);
    let leecher = bed.leecher;
    assert!(peer(bed.sim.node(leecher).world_mut()).is_none());
    bed.sim.restart(leecher);
    bed.resume_exactly(1);
    bed.wait_for_state(&Lifecycle::Paused);
    let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
    assert_eq!(bed.wait(&started), Ok(()));
    bed.wait_for_peer();
    bed.assert_fetching();
    bed.supply(bed.info()).unwrap();
    bed.complete();
}

/// A pause outlasts a state folder that cannot be read for a while. Before the session is loaded, the torrent contacts
/// nobody.
#[test]
fn a_paused_torrent_stays_paused_when_its_state_can_be_read_again() {
    let mut bed = Bed::new(10);
    let torrent = bed.content.info_hash();
    bed.add();
    let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
    assert_eq!(bed.wait(&paused), Ok(()));
    let leecher = bed.leecher;
    bed.sim.restart(leecher);
    bed.sim
        .state(leecher)
        .fail(StateOperation::Load, DiskFault::Io, Lasting::Next(1));
    let source = TorrentSource::InfoHash(UnfetchedTorrent {
        info_hash: torrent,
        name: None,
        trackers: vec![],
        peers: Vec::new(),
        hints: LinkHints::default(),
    });
    let added = bed.send(|reply| AddTorrent {
        source,
        options: AddOptions::default(),
        is_resumed: true,
        reply,
    });
    let added = bed.wait(&added);
    assert!(matches!(added, Err(AddError::Unsaved { .. })), "{added:?}");
    bed.until("the retry", |sim| {
        let world = sim.node(leecher).world_mut();
        let mut states = world.query::<&Lifecycle>();
        states.iter(world).all(|state| *state == Lifecycle::Paused)
    });
}

/// A torrent that is paused at any moment of its add runs after a start, without a failure.
#[test]
fn a_pause_at_any_moment_of_an_add() {
    for ticks in 0..24 {
        let mut bed = Bed::new(11);
        let torrent = bed.content.info_hash();
        let (sim, leecher, content) = (&mut bed.sim, bed.leecher, bed.content.clone());
        add(sim, leecher, &content, vec![(ip(1), 6881).into()]);
        let (limit, mut past) = (sim.now() + LIMIT, 0);
        sim.run_until(limit, |_| {
            past += 1;
            past > ticks
        });
        let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
        assert_eq!(bed.wait(&paused), Ok(()), "after {ticks} ticks");
        let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
        assert_eq!(bed.wait(&started), Ok(()), "after {ticks} ticks");
        bed.until("a download", |sim| {
            let world = sim.node(leecher).world_mut();
            let mut states = world.query::<&Lifecycle>();
            let has_failed = states
                .iter(world)
                .any(|state| matches!(state, Lifecycle::Failed { .. }));
            assert!(!has_failed, "after {ticks} ticks");
            sim.has(leecher, "downloads", &content)
        });
    }
}

/// Peers of a torrent whose metadata says that it is private are left, unless their source serves private torrents
/// (BEP 27).
#[test]
fn peers_of_other_sources_are_left_when_the_metadata_says_private() {
    let content = NewContent {
        is_private: true,
        ..NewContent::default()
    }
    .make();
    let mut sim = Simulation::new(12, Duration::from_millis(10));
    let plugins = (without_metadata(), InvariantsPlugin);
    for number in [1, 3] {
        let seeder = sim.add_node(ip(number), Settings::default(), plugins);
        sim.put(seeder, "downloads", &content);
        add(&mut sim, seeder, &content, vec![]);
    }
    let leecher = sim.add_node(ip(2), Settings::default(), (plugins, SupplierPlugin));
    let mut bed = Bed { sim, content, leecher };
    bed.add();
    bed.wait_for_peer();
    let world = bed.sim.node(leecher).world_mut();
    let torrent = world.query_filtered::<Entity, With<Torrent>>().single(world).unwrap();
    let strange = SocketAddr::from((ip(3), 6881));
    world.write_message(CandidatesFound {
        torrent,
        peers: vec![strange.into()],
        source: CandidateSource::DHT,
        informant: None,
    });
    bed.sim.nudge(leecher);
    let connected = |sim: &mut Simulation| {
        let world = sim.node(leecher).world_mut();
        let mut peers = world.query::<(&Peer, &UncheckedPieces)>();
        let peers = peers.iter(world).filter(|(_, pieces)| pieces.0 != Default::default());
        peers.filter_map(|(peer, _)| peer.listens_at).collect::<Vec<_>>()
    };
    bed.until("both peers", |sim| connected(sim).len() == 2);
    bed.supply(bed.info()).unwrap();
    bed.until("the next ticks", |sim| !connected(sim).contains(&strange));
    let world = bed.sim.node(leecher).world_mut();
    assert!(world.get::<Candidates>(torrent).unwrap().get(strange).is_none());
    let mut peers = world.query::<&Peer>();
    assert!(peers.iter(world).all(|peer| peer.listens_at != Some(strange)));
    bed.complete();
}

/// A peer whose pieces do not fit the metadata is closed, and the others are not.
#[test]
fn a_peer_with_pieces_that_do_not_exist_is_closed_when_the_metadata_is_known() {
    let mut bed = Bed::new(4);
    bed.add();
    bed.wait_for_peer();
    // The seed's pieces become one byte more than the torrent has.
    let count = bed.content.metainfo().info.geometry.piece_count();
    let world = bed.sim.node(bed.leecher).world_mut();
    let mut bits = Vec::new();
    Bitfield::full(count + 8).write_wire(&mut bits);
    for mut pieces in world.query::<&mut UncheckedPieces>().iter_mut(world) {
        pieces.0.set_bitfield(&bits, 1000).unwrap();
    }
    bed.supply(bed.info()).unwrap();
    let leecher = bed.leecher;
    bed.until("a close", |sim| {
        let world = sim.node(leecher).world_mut();
        world.query::<&PeerPieces>().iter(world).count() == 0
    });
    // The seed is dialed again, announces its pieces, and serves.
    bed.complete();
}
