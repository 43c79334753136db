//! An engine under test, and the lifecycle stages of its torrents.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::session::Session;
use ecs_torrent::components::torrent::{Have, Lifecycle, TorrentIndex};
use ecs_torrent::engine::backends::StartError;
use ecs_torrent::making::MakeOptions;
use ecs_torrent::protocol::geometry::{Geometry, Span};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent::systems::ReapSet;
use ecs_torrent::{AddOptions, Engine, Error, InfoHash, Settings, Tick, TorrentPlugins, TorrentStats, Torrents};

use crate::content::{make_torrent, write_file};

/// Time limit of every wait.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// Settings for a loopback address, with intervals that suit a test.
pub fn settings(state_dir: Option<&Path>) -> Settings {
    let mut settings = Settings::default();
    settings.session.state_dir = state_dir.map(Path::to_owned);
    settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    settings.lifecycle.blocked_retry_ms = 200;
    settings.lifecycle.restart_delay_ms = 100;
    settings.peers.reconnect_backoff_s = 1;
    settings
}

/// Polls until `is_so` returns true, for conditions without an event.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns one word for a stage. A failure that is retried is "restarting", a permanent one is "failed".
pub fn word(life: &Lifecycle) -> &'static str {
    match life {
        Lifecycle::Adding => "adding",
        Lifecycle::Checking => "checking",
        Lifecycle::Downloading => "downloading",
        Lifecycle::Seeding => "seeding",
        Lifecycle::Blocked { .. } => "blocked",
        Lifecycle::Failed { retry_at: Some(_), .. } => "restarting",
        Lifecycle::Failed { .. } => "failed",
        Lifecycle::Stopping { .. } => "stopping",
        other => other.state().name(),
    }
}

/// Returns the reason why a torrent is blocked or has failed.
pub fn reason(life: &Lifecycle) -> Option<&str> {
    match life {
        Lifecycle::Blocked { resource: reason } | Lifecycle::Failed { reason, .. } => Some(reason),
        _ => None,
    }
}

/// A torrent and the lifecycle stage that it entered.
type Seen = (InfoHash, Lifecycle);

#[derive(Clone)]
struct Recorder(Sender<Seen>);

#[derive(Resource)]
struct Recording(Mutex<Sender<Seen>>);

impl Plugin for Recorder {
    fn build(&self, app: &mut App) {
        app.insert_resource(Recording(Mutex::new(self.0.clone())));
        app.add_systems(Tick, record.after(ReapSet::Publish).before(ReapSet::Despawn));
    }
}

fn record(
    recording: Res<Recording>,
    lives: Query<(&ecs_torrent::components::torrent::Torrent, &Lifecycle), Changed<Lifecycle>>,
) {
    let recording = recording.0.lock().unwrap();
    for (torrent, life) in &lives {
        let _ = recording.send((torrent.id(), life.clone()));
    }
}

/// A running engine.
pub struct Bed {
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    seen: Receiver<Seen>,
    lives: HashMap<InfoHash, Vec<Lifecycle>>,
    /// Number of each torrent's stages that earlier waits have consumed.
    waited: HashMap<InfoHash, usize>,
}

impl Bed {
    /// Starts an engine that keeps sessions in `state_dir`.
    pub fn start(state_dir: &Path) -> Self {
        Self::start_with(settings(Some(state_dir)))
    }

    /// Starts an engine as [`Bed::with`] does, but waits for the lock of an engine that this process has just dropped.
    pub fn start_with(settings: Settings) -> Self {
        let mut bed = None;
        wait_until("the state folder", || match Self::with(settings.clone()) {
            Err(StartError::StateDirInUse { .. }) => false,
            result => {
                bed = Some(result.unwrap());
                true
            }
        });
        bed.unwrap()
    }

    /// Starts an engine, and restores the only torrent of its state folder.
    pub fn restored(settings: Settings) -> Self {
        let bed = Self::start_with(settings);
        assert_eq!(bed.block_on(bed.torrents().restore()).unwrap(), 1);
        bed
    }

    pub fn with(settings: Settings) -> Result<Self, StartError> {
        let (sender, seen) = channel();
        let engine = Engine::builder()
            .plugins(TorrentPlugins)
            .plugins(Recorder(sender))
            .settings(settings)
            .start()?;
        Ok(Self {
            engine,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            seen,
            lives: HashMap::new(),
            waited: HashMap::new(),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.engine.local_addresses()[0]
    }

    pub fn torrents(&self) -> Torrents {
        self.engine.torrents()
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Adds a torrent whose data lies below `root` or is downloaded from `peers`.
    pub fn add(&self, torrent: &Torrent, root: &Path, peers: &[SocketAddr]) -> InfoHash {
        let options = AddOptions {
            root: Some(root.to_owned()),
            peers: peers.to_vec(),
            ..AddOptions::default()
        };
        self.add_with(torrent, options)
    }

    /// Adds a torrent as [`Bed::add`] does, but permits changes to existing files.
    pub fn add_over(&self, torrent: &Torrent, root: &Path, peers: &[SocketAddr]) -> InfoHash {
        let options = AddOptions {
            root: Some(root.to_owned()),
            overwrite: true,
            peers: peers.to_vec(),
            ..AddOptions::default()
        };
        self.add_with(torrent, options)
    }

    pub fn add_with(&self, torrent: &Torrent, options: AddOptions) -> InfoHash {
        let metainfo = torrent.metainfo.clone();
        self.block_on(self.torrents().download_with(metainfo, options))
            .unwrap()
            .0
    }

    pub fn add_peer(&self, id: InfoHash, peer: SocketAddr) {
        self.block_on(self.torrents().add_peers(id, vec![peer])).unwrap();
    }

    pub fn stats(&self, id: InfoHash) -> TorrentStats {
        self.block_on(self.torrents().stats(id)).unwrap()
    }

    pub fn list(&self) -> Vec<InfoHash> {
        let listed = self.block_on(self.torrents().list()).unwrap();
        listed.into_iter().map(InfoHash::from).collect()
    }

    pub fn resume_all(&self) -> usize {
        self.block_on(self.torrents().resume_all()).unwrap()
    }

    pub fn stop(&self, id: InfoHash) -> Result<(), Error> {
        self.block_on(self.torrents().stop_and_serialize(id))
    }

    pub fn stop_all(&self) -> Result<(), Error> {
        self.block_on(self.torrents().stop_all_and_serialize())
    }

    /// Returns the torrent's verified pieces, as the engine reports them.
    pub fn have(&self, id: InfoHash) -> Vec<u32> {
        let look = move |world: &mut World| {
            let entity = world.resource::<TorrentIndex>().get(id).unwrap();
            world.get::<Have>(entity).unwrap().iter().collect()
        };
        self.block_on(self.torrents().with_world(look)).unwrap()
    }

    /// Waits until a torrent enters a stage that `wanted` accepts. Consumes the stages before it.
    pub fn wait(&mut self, id: InfoHash, what: &str, wanted: impl Fn(&Lifecycle) -> bool) -> Lifecycle {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let past = self.lives.entry(id).or_default();
            let position = self.waited.entry(id).or_default();
            while *position < past.len() {
                *position += 1;
                if wanted(&past[*position - 1]) {
                    return past[*position - 1].clone();
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.seen.recv_timeout(left) {
                Ok(seen) => self.note(seen),
                Err(error) => panic!("waited for {what} ({error}), {id} went through {:#?}", self.past(id)),
            }
        }
    }

    pub fn wait_downloading(&mut self, id: InfoHash) {
        self.wait(id, "the download", |life| *life == Lifecycle::Downloading);
    }

    pub fn wait_seeding(&mut self, id: InfoHash) {
        self.wait(id, "completion", |life| *life == Lifecycle::Seeding);
    }

    /// Waits until a torrent is blocked, and returns the reason.
    pub fn wait_blocked(&mut self, id: InfoHash) -> String {
        let is_blocked = |life: &Lifecycle| matches!(life, Lifecycle::Blocked { .. });
        match self.wait(id, "it to be blocked", is_blocked) {
            Lifecycle::Blocked { resource } => resource.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a torrent has failed permanently, and returns the reason.
    pub fn wait_failed(&mut self, id: InfoHash) -> String {
        let is_failed = |life: &Lifecycle| matches!(life, Lifecycle::Failed { retry_at: None, .. });
        match self.wait(id, "the failure", is_failed) {
            Lifecycle::Failed { reason, .. } => reason.to_string(),
            other => panic!("{other:?}"),
        }
    }

    /// Returns all stages that a torrent went through in this run.
    pub fn past(&mut self, id: InfoHash) -> &[Lifecycle] {
        let seen: Vec<Seen> = self.seen.try_iter().collect();
        seen.into_iter().for_each(|seen| self.note(seen));
        self.lives.entry(id).or_default()
    }

    pub fn has_checked(&mut self, id: InfoHash) -> bool {
        self.past(id).contains(&Lifecycle::Checking)
    }

    /// Returns how often a torrent failed and was scheduled for a restart.
    pub fn restart_count(&mut self, id: InfoHash) -> usize {
        let is_restart = |life: &&Lifecycle| matches!(life, Lifecycle::Failed { retry_at: Some(_), .. });
        self.past(id).iter().filter(is_restart).count()
    }

    /// Returns the next stage that any torrent enters, if it does so in time.
    pub fn next_life(&mut self, time: Duration) -> Option<Seen> {
        self.seen.recv_timeout(time).ok()
    }

    fn note(&mut self, (id, life): Seen) {
        let past = self.lives.entry(id).or_default();
        if past.last() != Some(&life) {
            past.push(life);
        }
    }
}

/// A torrent, and a folder that holds its data.
pub struct Torrent {
    pub metainfo: Arc<Metainfo>,
    /// The bytes of all files, concatenated.
    pub data: Vec<u8>,
    source: tempfile::TempDir,
}

impl Torrent {
    /// Creates a torrent of one file called `data`.
    pub fn single(seed: u64, len: usize, piece_length: u32) -> Self {
        Self::make(seed, "data", &[("", len)], piece_length, &[])
    }

    /// Creates a torrent of a folder `name` with `files`, given by path and length.
    pub fn album(seed: u64, name: &str, files: &[(&str, usize)], piece_length: u32) -> Self {
        Self::make(seed, name, files, piece_length, &[])
    }

    pub fn make(seed: u64, name: &str, files: &[(&str, usize)], piece_length: u32, trackers: &[String]) -> Self {
        let source = tempfile::tempdir().unwrap();
        for (number, (path, len)) in (0..).zip(files) {
            let path = Path::new(name).join(path);
            // Joining an empty path leaves a trailing slash.
            let path = path.components().as_path().to_str().unwrap();
            write_file(source.path(), path, seed * 1000 + number, *len);
        }
        let options = MakeOptions {
            piece_length: Some(piece_length),
            trackers: trackers.to_vec(),
            ..MakeOptions::default()
        };
        let bytes = make_torrent(&source.path().join(name), options);
        fs::write(source.path().join("a.torrent"), &bytes).unwrap();
        let metainfo = Metainfo::parse(&bytes.into(), &MetainfoLimits::default()).unwrap();
        // The engine stores a hidden file under another name.
        let read = |entry: &ecs_torrent::protocol::files::FileEntry| match entry.path.split_once('/') {
            Some((_, rest)) => fs::read(source.path().join(name).join(rest)),
            None => fs::read(source.path().join(name)),
        };
        let data = metainfo.info.files.files().iter().map(|entry| read(entry).unwrap());
        Self {
            data: data.collect::<Vec<_>>().concat(),
            metainfo: Arc::new(metainfo),
            source,
        }
    }

    pub fn info_hash(&self) -> InfoHash {
        self.metainfo.hashes.primary()
    }

    pub fn geometry(&self) -> &Geometry {
        &self.metainfo.info.geometry
    }

    /// Returns the path of the `.torrent` file.
    pub fn file(&self) -> PathBuf {
        self.source.path().join("a.torrent")
    }

    /// Writes the torrent's data below `root`.
    pub fn place(&self, root: &Path) {
        for entry in self.metainfo.info.files.files() {
            let target = root.join(&*entry.path);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(self.source.path().join(&*entry.path), target).unwrap();
        }
    }

    /// Asserts that all of the torrent's data is below `root`.
    pub fn assert_whole(&self, root: &Path) {
        let name = self.metainfo.info.name.as_str();
        assert_eq!(
            crate::content::compare(&self.source.path().join(name), &root.join(name)),
            Ok(())
        );
    }

    /// Reads the bytes in `span` from the files below `root`; `None` if some are missing.
    pub fn read(&self, root: &Path, span: Span) -> Option<Vec<u8>> {
        let files = &self.metainfo.info.files;
        let mut bytes = Vec::with_capacity(span.len as usize);
        for slice in files.slices(span) {
            let mut part = vec![0; slice.len as usize];
            if let Some(place) = slice.place {
                let file = fs::File::open(root.join(&*files.files()[place.file].path)).ok()?;
                file.read_exact_at(&mut part, place.offset).ok()?;
            }
            bytes.extend(part);
        }
        Some(bytes)
    }

    /// Returns the pieces in `claimed` that are missing below `root` or have a wrong hash.
    pub fn false_pieces(&self, root: &Path, claimed: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let is_good = |piece: &u32| {
            let bytes = self.read(root, self.geometry().piece_span(*piece));
            bytes.is_some_and(|bytes| self.metainfo.info.pieces.get(*piece) == Some(&sha1([&bytes[..]])))
        };
        claimed.into_iter().filter(|piece| !is_good(piece)).collect()
    }

    /// Returns the path of the torrent's session file in a state folder.
    pub fn session_path(&self, state_dir: &Path) -> PathBuf {
        state_dir.join("state").join(format!("{}.ron", self.info_hash()))
    }

    /// Reads the torrent's session; `None` if there is none.
    pub fn session(&self, state_dir: &Path) -> Option<Session> {
        let bytes = fs::read(self.session_path(state_dir)).ok()?;
        match Session::parse(&bytes, self.info_hash()) {
            Ok(session) => Some(session),
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// Waits until the saved session has all pieces.
    pub fn wait_saved_complete(&self, state_dir: &Path) {
        let is_full = |session: Session| session.have.to_set(session.pieces).unwrap().is_full();
        wait_until("the session", || self.session(state_dir).is_some_and(is_full));
    }

    /// Fault 96: asserts that all data listed in a session is below `root`: pieces by their hash, single blocks byte
    /// for byte.
    pub fn assert_true(&self, session: &Session, root: &Path) {
        let have = session.have.to_set(session.pieces).unwrap();
        assert_eq!(self.false_pieces(root, have.iter()), Vec::<u32>::new(), "false pieces");
        for partial in &session.partial {
            let blocks = partial
                .blocks
                .to_set(self.geometry().block_count(partial.piece))
                .unwrap();
            for block in blocks.iter() {
                let span = self.geometry().span(self.geometry().block(partial.piece, block));
                let expected = &self.data[span.offset as usize..span.end() as usize];
                let is_there = self.read(root, span).is_some_and(|bytes| bytes == expected);
                assert!(is_there, "block {block} of piece {} is not there", partial.piece);
            }
        }
    }
}
