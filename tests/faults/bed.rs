//! An engine under test and a record of its actions.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::commands::{AddTorrent, CommandQueue, Reply, TorrentSource};
use ecs_torrent::components::messages::{
    PeerConnected, PeerDisconnected, PieceRejected, TorrentCompleted, TorrentFailed, TorrentStarted, TrackerAnswered,
    TrackerFailed,
};
use ecs_torrent::components::peer::{CloseReason, Peer};
use ecs_torrent::components::session::Session;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::systems::ReapSet;
use ecs_torrent::{AddOptions, Engine, InfoHash, Settings, Tick, TorrentPlugins, TorrentState, TorrentStats, Torrents};

use crate::content::{make_torrent, noise};

/// Time limit of every wait.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// One recorded action of the engine.
#[derive(Debug, Clone)]
pub enum Seen {
    Started,
    Completed,
    Failed(Arc<str>),
    Connected(SocketAddr),
    Disconnected(SocketAddr, CloseReason),
    Rejected,
    TrackerAnswered(usize),
    TrackerFailed(Arc<str>),
}

/// Plugin that records the engine's actions.
#[derive(Clone)]
struct Recorder(Sender<Seen>);

#[derive(Resource)]
struct Recording(std::sync::Mutex<Sender<Seen>>);

impl Plugin for Recorder {
    fn build(&self, app: &mut App) {
        app.insert_resource(Recording(std::sync::Mutex::new(self.0.clone())));
        app.add_systems(Tick, record.after(ReapSet::Publish).before(ReapSet::Despawn));
    }
}

fn record(
    recording: Res<Recording>,
    peers: Query<&Peer>,
    mut started: MessageReader<TorrentStarted>,
    mut completed: MessageReader<TorrentCompleted>,
    mut failed: MessageReader<TorrentFailed>,
    mut connected: MessageReader<PeerConnected>,
    mut disconnected: MessageReader<PeerDisconnected>,
    mut rejected: MessageReader<PieceRejected>,
    mut answered: MessageReader<TrackerAnswered>,
    mut tracker_failed: MessageReader<TrackerFailed>,
    mut addresses: Local<std::collections::HashMap<Entity, SocketAddr>>,
) {
    let mut seen = Vec::new();
    seen.extend(started.read().map(|_| Seen::Started));
    for message in connected.read() {
        if let Some(address) = peers.get(message.peer).ok().and_then(|peer| peer.endpoint.address()) {
            addresses.insert(message.peer, address);
            seen.push(Seen::Connected(address));
        }
    }
    seen.extend(rejected.read().map(|_| Seen::Rejected));
    seen.extend(completed.read().map(|_| Seen::Completed));
    seen.extend(failed.read().map(|message| Seen::Failed(message.reason.clone())));
    for message in disconnected.read() {
        let address = peers.get(message.peer).ok().and_then(|peer| peer.endpoint.address());
        if let Some(address) = address.or(addresses.remove(&message.peer)) {
            seen.push(Seen::Disconnected(address, message.reason.clone()));
        }
    }
    seen.extend(answered.read().map(|message| Seen::TrackerAnswered(message.peer_count)));
    seen.extend(
        tracker_failed
            .read()
            .map(|message| Seen::TrackerFailed(message.reason.clone())),
    );
    let recording = recording.0.lock().unwrap();
    for event in seen {
        let _ = recording.send(event);
    }
}

/// An engine on a loopback address with its own folder.
pub struct Bed {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    seen: Receiver<Seen>,
    past: Vec<Seen>,
    folder: tempfile::TempDir,
    state: tempfile::TempDir,
}

/// A plugin that does nothing.
#[derive(Clone)]
struct Nothing;

impl Plugin for Nothing {
    fn build(&self, _: &mut App) {}
}

impl Bed {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Starts an engine with settings changed by `change`.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::build(false, change, Nothing)
    }

    /// Starts an engine that keeps its sessions in [`Bed::state`].
    pub fn keeping(change: impl FnOnce(&mut Settings)) -> Self {
        Self::build(true, change, Nothing)
    }

    /// Like [`Bed::keeping`], with an additional plugin of the test.
    pub fn with_plugin(change: impl FnOnce(&mut Settings), plugin: impl Plugin + Clone) -> Self {
        Self::build(true, change, plugin)
    }

    fn build(keeps: bool, change: impl FnOnce(&mut Settings), plugin: impl Plugin + Clone) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut settings = Settings::default();
        settings.session.state_dir = keeps.then(|| state.path().to_owned());
        settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
        // Peers and trackers may hang in these tests. The machine may only be slow, which ends no phase.
        let patience = DEADLINE.as_millis() as u64;
        settings.lifecycle.halt_timeout_ms = patience;
        settings.lifecycle.save_timeout_ms = patience;
        settings.lifecycle.release_timeout_ms = patience;
        change(&mut settings);
        let (sender, seen) = channel();
        let engine = Engine::builder()
            .plugins(TorrentPlugins)
            .plugins(Recorder(sender))
            .plugins(plugin)
            .settings(settings)
            .start();
        Self {
            engine: engine.unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            seen,
            past: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
            state,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.engine.local_addresses()[0]
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the state folder, which holds the sessions if they are kept.
    pub fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// Returns a torrent's session as it is on disk now.
    pub fn session(&self, id: InfoHash) -> Option<Session> {
        let bytes = std::fs::read(self.state().join(format!("{id}.ron"))).ok()?;
        Some(Session::parse(&bytes, id).unwrap())
    }

    pub fn torrents(&self) -> Torrents {
        self.engine.torrents()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Adds a torrent to be downloaded from `peers` and waits until it has started.
    pub fn download(&mut self, torrent: &Torrent, peers: &[SocketAddr]) -> InfoHash {
        let id = self.add(torrent, "", peers);
        self.wait_for("the start", |seen| matches!(seen, Seen::Started));
        id
    }

    /// Adds a torrent whose data belongs in `subfolder`.
    pub fn add(&self, torrent: &Torrent, subfolder: &str, peers: &[SocketAddr]) -> InfoHash {
        let options = AddOptions {
            root: Some(self.folder.path().join(subfolder)),
            peers: peers.to_vec(),
            ..AddOptions::default()
        };
        let torrents = self.torrents();
        let added = self.block_on(torrents.download_with(torrent.metainfo.clone(), options));
        added.unwrap().0
    }

    /// Adds a torrent of which only the info-hash may be known, and waits until that is durable.
    pub fn add_source(&self, source: TorrentSource, peers: &[SocketAddr]) {
        let (sender, answers) = channel();
        let add = AddTorrent {
            source,
            options: AddOptions {
                root: Some(self.folder.path().to_owned()),
                peers: peers.to_vec(),
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::new(move |answer| drop(sender.send(answer))),
        };
        let push = |world: &mut World| world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(add);
        self.block_on(self.torrents().with_world(push)).unwrap();
        answers.recv_timeout(DEADLINE).unwrap().unwrap();
    }

    /// Puts a torrent's data into the folder, adds the torrent, and waits until it seeds.
    pub fn seed(&mut self, torrent: &Torrent) -> InfoHash {
        std::fs::write(self.folder.path().join("data"), &torrent.data).unwrap();
        let id = self.download(torrent, &[]);
        assert_eq!(self.stats(id).state, TorrentState::Seeding);
        id
    }

    pub fn stats(&self, id: InfoHash) -> TorrentStats {
        self.block_on(self.torrents().stats(id)).unwrap()
    }

    /// Polls until a condition holds that no event reports.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "waited for {what}, saw {:#?}", self.past);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for an engine action that `wanted` accepts. All earlier actions stay available in [`Bed::has_seen`].
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self
                .seen
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(seen) => {
                    self.past.push(seen.clone());
                    if wanted(&seen) {
                        return seen;
                    }
                }
                Err(error) => panic!("waited for {what} ({error}), saw {:#?}", self.past),
            }
        }
    }

    /// Like [`Bed::wait_for`], but also accepts actions that were recorded earlier.
    pub fn wait_for_in_past(&mut self, what: &str, wanted: impl Fn(&Seen) -> bool) {
        if !self.has_seen().iter().any(&wanted) {
            self.wait_for(what, wanted);
        }
    }

    /// Waits until the connection with the peer at `address` has ended and returns the reason.
    pub fn reason(&mut self, address: SocketAddr) -> CloseReason {
        let what = format!("the end of {address}");
        match self.wait_for(
            &what,
            |seen| matches!(seen, Seen::Disconnected(other, _) if *other == address),
        ) {
            Seen::Disconnected(_, reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_complete(&mut self, torrent: &Torrent) {
        self.wait_for("completion", |seen| matches!(seen, Seen::Completed));
        assert!(
            std::fs::read(self.folder.path().join("data")).unwrap() == torrent.data,
            "the data is right"
        );
    }

    /// Returns all actions recorded so far.
    pub fn has_seen(&mut self) -> &[Seen] {
        self.past.extend(self.seen.try_iter());
        &self.past
    }
}

/// A torrent of one file named `data`.
pub struct Torrent {
    pub metainfo: Arc<Metainfo>,
    pub data: Vec<u8>,
}

impl Torrent {
    pub fn new(len: usize, piece_length: u32) -> Self {
        Self::with_trackers(len, piece_length, &[])
    }

    pub fn with_trackers(len: usize, piece_length: u32, trackers: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = noise(len as u64, len);
        std::fs::write(folder.path().join("data"), &data).unwrap();
        let options = ecs_torrent::making::MakeOptions {
            piece_length: Some(piece_length),
            trackers: trackers.to_vec(),
            ..Default::default()
        };
        let bytes = Bytes::from(make_torrent(&folder.path().join("data"), options));
        let metainfo = Arc::new(Metainfo::parse(&bytes, &MetainfoLimits::default()).unwrap());
        Self { metainfo, data }
    }

    pub fn info_hash(&self) -> InfoHash {
        self.metainfo.hashes.primary()
    }
}

/// A loopback address other than 127.0.0.1.
pub fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}
