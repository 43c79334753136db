//! Readers of files that are being downloaded.

use ecs_torrent::bevy_ecs::world::World;
use ecs_torrent::components::commands::{PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, SetFiles};
use ecs_torrent::components::lifecycle::TorrentState;
use ecs_torrent::components::readers::{
    OpenReader, OpenedReader, PieceDeadlines, ReadError, ReadFile, ReaderCommand, ReaderId,
};
use ecs_torrent::components::settings::ReaderSettings;
use ecs_torrent::components::torrent::{Counters, Lifecycle};
use ecs_torrent::components::wanted::{FilePriority, PieceOrderChange};
use ecs_torrent::engine::sim::{Access, NewNode};
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};
use ecs_torrent::systems::readers::Readers;

use super::*;

const LIMIT: Duration = Duration::from_secs(600);

/// The one-way latency of all paths.
pub const LATENCY: Duration = Duration::from_millis(50);

/// Bytes per second of a link with as many megabits per second.
pub const fn megabits(count: u64) -> u64 {
    count * 1_000_000 / 8
}

/// Some seeds, and a leecher that has connected to all of them.
pub struct Bed {
    pub sim: Simulation,
    pub content: Content,
    leecher: NodeId,
}

impl Bed {
    /// Creates seeds with these uplinks, in bytes per second.
    pub fn new(seed: u64, content: Content, uplinks: &[u64]) -> Self {
        Self::with(seed, content, uplinks, ReaderSettings::default())
    }

    fn with(seed: u64, content: Content, uplinks: &[u64], readers: ReaderSettings) -> Self {
        Self::over(Simulation::new(seed, LATENCY), content, uplinks, readers)
    }

    /// As [`Bed::new`], with another one-way latency.
    pub fn apart(seed: u64, content: Content, uplinks: &[u64], latency: Duration) -> Self {
        Self::over(
            Simulation::new(seed, latency),
            content,
            uplinks,
            ReaderSettings::default(),
        )
    }

    fn over(mut sim: Simulation, content: Content, uplinks: &[u64], readers: ReaderSettings) -> Self {
        let mut settings = Settings::default();
        settings.dht.enabled = false;
        settings.lsd.enabled = false;
        settings.readers = readers;
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let mut peers: Vec<std::net::SocketAddr> = Vec::new();
        for (number, &uplink) in (1..).zip(uplinks) {
            let access = Access::asymmetric(uplink, megabits(100));
            let node = sim.add(NewNode::new(ip(number), settings.clone(), plugins).access(access));
            sim.put(node, "downloads", &content);
            add(&mut sim, node, &content, vec![]);
            peers.push((ip(number), 6881).into());
        }
        sim.run_for(Duration::from_secs(1));
        let leecher = NewNode::new(ip(200), settings, plugins).access(Access::symmetric(megabits(100)));
        let leecher = sim.add(leecher);
        add(&mut sim, leecher, &content, peers);
        let mut bed = Self { sim, content, leecher };
        bed.until("a download", |sim| {
            let world = sim.node(leecher).world_mut();
            let state = world.query::<&Lifecycle>().iter(world).next();
            state == Some(&Lifecycle::Downloading)
        });
        bed
    }

    fn send<C: Send + Sync + 'static, T: Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> C,
    ) -> Receiver<T> {
        send(&mut self.sim, self.leecher, command)
    }

    pub fn until(&mut self, what: &str, mut is_done: impl FnMut(&mut Simulation) -> bool) {
        let limit = self.sim.now() + LIMIT;
        let is_reached = self.sim.run_until(limit, &mut is_done);
        assert!(
            is_reached,
            "{what}: {:?}",
            stats(&mut self.sim, self.leecher, &self.content)
        );
        self.check(what);
    }

    /// Asserts that no invariant was broken.
    pub fn check(&mut self, what: &str) {
        for node in self.sim.nodes().collect::<Vec<_>>() {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{what}: {found:?}");
        }
    }

    /// Returns the world of the leecher.
    pub fn leecher_world(&mut self) -> &mut World {
        self.sim.node(self.leecher).world_mut()
    }

    pub fn wait<T>(&mut self, answers: &Receiver<T>) -> T {
        let mut answer = None;
        self.until("an answer", |_| {
            answer = answers.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    pub fn open(&mut self, file: u32) -> Result<OpenedReader, ReadError> {
        let torrent = self.content.info_hash();
        let answer = self.send(|reply| ReaderCommand::Open(OpenReader { torrent, file, reply }));
        self.wait(&answer)
    }

    pub fn close(&mut self, reader: ReaderId) {
        let world = self.sim.node(self.leecher).world_mut();
        let mut queue = world.resource_mut::<CommandQueue<ReaderCommand>>();
        queue.0.push_back(ReaderCommand::Close(reader));
        self.sim.nudge(self.leecher);
    }

    pub fn begin(&mut self, reader: ReaderId, offset: u64, len: u32) -> Receiver<Result<Bytes, ReadError>> {
        self.send(|reply| {
            ReaderCommand::Read(ReadFile {
                reader,
                offset,
                len,
                reply,
            })
        })
    }

    /// Reads some bytes, and asserts that they are right.
    fn read(&mut self, reader: &OpenedReader, offset: u64, len: u32) -> usize {
        let answer = self.begin(reader.id, offset, len);
        let bytes = self.wait(&answer).unwrap();
        let files = self.content.files().files();
        let file = files.iter().find(|file| *file.path == *reader.path).unwrap();
        let start = (file.offset + offset.min(file.len)) as usize;
        assert_eq!(bytes, self.content.bytes().slice(start..start + bytes.len()));
        assert!(!bytes.is_empty() || offset >= file.len);
        bytes.len()
    }

    fn held(&mut self) -> Vec<u32> {
        let world = self.sim.node(self.leecher).world_mut();
        world.query::<&Have>().single(world).unwrap().iter().collect()
    }

    /// The pieces that have deadlines.
    fn deadlines(&mut self) -> Vec<u32> {
        let world = self.sim.node(self.leecher).world_mut();
        let found = world.query::<&PieceDeadlines>().single(world);
        found.map_or_else(|_| Vec::new(), |found| found.iter().map(|(_, piece)| piece).collect())
    }

    fn reader_count(&mut self) -> usize {
        self.sim.node(self.leecher).world().resource::<Readers>().len()
    }

    pub fn counters(&mut self) -> Counters {
        let world = self.sim.node(self.leecher).world_mut();
        *world.query::<&Counters>().single(world).unwrap()
    }

    /// Waits until the leecher has received some bytes from its peers.
    pub fn warm_up(&mut self, bytes: u64) {
        let leecher = self.leecher;
        self.until("the first bytes", |sim| {
            let world = sim.node(leecher).world_mut();
            let counters = world.query::<&Counters>().single(world);
            counters.is_ok_and(|counters| counters.downloaded >= bytes)
        });
    }
}

/// A torrent of seven files, whose borders lie within pieces. The fourth file is empty.
fn album() -> Content {
    let new = NewContent {
        len: 8_000_001,
        piece_length: 32 << 10,
        file_count: 7,
        ..NewContent::default()
    };
    new.make()
}

/// The bytes are right at every offset, before and after their pieces arrive, and across pieces.
#[test]
fn a_file_is_read_while_it_is_downloaded() {
    let mut bed = Bed::new(1, album(), &[megabits(4), megabits(4)]);
    let file = bed.content.files().files()[2].clone();
    let reader = bed.open(2).unwrap();
    assert_eq!((&*reader.path, reader.length), (&*file.path, file.len));
    // The end comes before the beginning.
    let last = bed.read(&reader, file.len - 10, 100);
    assert_eq!(last, 10);
    assert_eq!(bed.read(&reader, file.len, 100), 0, "the end of the file");
    assert_eq!(bed.read(&reader, u64::MAX, 100), 0);
    assert!(bed.held().len() < 100, "most of the torrent is missing");
    let mut offset = 0;
    while offset < file.len {
        offset += bed.read(&reader, offset, 100_000) as u64;
    }
    let empty = bed.open(3).unwrap();
    assert_eq!((empty.length, bed.read(&empty, 0, 1)), (0, 0));
    assert!(matches!(bed.open(7), Err(ReadError::NoSuchFile { file: 7, .. })));
    // A torrent that completes can still be read.
    let answer = bed.begin(reader.id, 0, 50);
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.until("the rest", |sim| sim.has(leecher, "downloads", &content));
    assert_eq!(bed.wait(&answer).unwrap().len(), 50);
    assert_eq!(
        bed.read(&reader, 70_000, 1 << 20),
        512 << 10,
        "as much as one read returns"
    );
    assert!(bed.deadlines().is_empty());
    assert_eq!(bed.counters().wasted, 0);
}

/// The pieces arrive in the order of the reader, from the place of a seek on, and not before the reader has read.
#[test]
fn the_pieces_follow_the_reader() {
    let settings = ReaderSettings {
        window_bytes: 320 << 10,
        ..ReaderSettings::default()
    };
    let content = NewContent {
        len: 8 << 20,
        piece_length: 32 << 10,
        ..NewContent::default()
    };
    let mut bed = Bed::with(2, content.make(), &[megabits(4)], settings);
    let reader = bed.open(0).unwrap();
    bed.sim.run_for(Duration::from_millis(500));
    assert_eq!(bed.deadlines(), [0; 0], "a reader that never reads changes nothing");
    for place in [100, 30, 220] {
        let before = bed.held();
        let answer = bed.begin(reader.id, u64::from(place) * (32 << 10) + 5, 1);
        bed.sim.run_for(Duration::from_millis(1));
        let deadlines = bed.deadlines();
        let window: Vec<u32> = (place..place + 11).filter(|piece| !before.contains(piece)).collect();
        assert_eq!(deadlines, window, "the pieces from {place} on, in their order");
        assert_eq!(bed.wait(&answer).unwrap().len(), 1);
        // The requests that were outstanding before are answered first.
        let early = bed.held().len();
        let mut seen = bed.held();
        let leecher = bed.leecher;
        bed.until("the window", |sim| {
            let world = sim.node(leecher).world_mut();
            let have = world.query::<&Have>().single(world).unwrap();
            seen.extend(have.iter().filter(|piece| !seen.contains(piece)).collect::<Vec<_>>());
            window.iter().all(|piece| have.contains(*piece))
        });
        let arrived = &seen[early..];
        assert!(
            arrived.iter().filter(|piece| window.contains(piece)).is_sorted(),
            "{arrived:?}"
        );
        let others = arrived.iter().filter(|piece| !window.contains(piece)).count();
        assert!(others < 4, "{place}: {arrived:?}");
    }
}

/// Two readers advance beside each other. A reader that is closed, or does not read, has no window any longer.
#[test]
fn readers_are_served_beside_each_other_and_let_go() {
    let settings = ReaderSettings {
        window_bytes: 160 << 10,
        idle_s: 2,
        ..ReaderSettings::default()
    };
    let mut bed = Bed::with(3, album(), &[megabits(2), megabits(2)], settings);
    let [one, two] = [0, 5].map(|file| bed.open(file).unwrap());
    let waiting = [one.id, two.id].map(|reader| bed.begin(reader, 0, 10));
    for answer in &waiting {
        assert_eq!(bed.wait(answer).unwrap().len(), 10);
    }
    let seventh = bed.content.files().files()[5].offset / (32 << 10);
    let is_near = |piece: &u32, start: u64| (start..start + 8).contains(&u64::from(*piece));
    let deadlines = bed.deadlines();
    assert!(
        deadlines
            .iter()
            .all(|piece| is_near(piece, 0) || is_near(piece, seventh)),
        "{deadlines:?}"
    );
    bed.close(one.id);
    bed.sim.run_for(Duration::from_millis(1));
    assert_eq!(bed.reader_count(), 1);
    assert!(bed.deadlines().iter().all(|piece| is_near(piece, seventh)));
    let answer = bed.begin(one.id, 0, 1);
    assert_eq!(bed.wait(&answer), Err(ReadError::Closed));
    // The other one reads no more.
    let leecher = bed.leecher;
    bed.until("the end of the window", |sim| {
        let world = sim.node(leecher).world_mut();
        world.query::<&PieceDeadlines>().iter(world).next().is_none()
    });
    assert_eq!(bed.reader_count(), 1, "it may read again");
    assert_eq!(bed.read(&two, 10, 10), 10);
}

/// There are at most as many readers as the settings allow. A new one replaces an idle one, never one that reads.
#[test]
fn the_number_of_readers_is_bounded() {
    let settings = ReaderSettings {
        max_readers: 2,
        idle_s: 5,
        timeout_s: 60,
        ..ReaderSettings::default()
    };
    let mut bed = Bed::with(4, album(), &[], settings);
    let [one, two] = [0, 1].map(|file| bed.open(file).unwrap());
    assert_eq!(bed.open(2), Err(ReadError::TooMany(2)));
    let waiting = bed.begin(two.id, 0, 1);
    bed.sim.run_for(Duration::from_secs(6));
    let three = bed.open(2).unwrap();
    let answer = bed.begin(one.id, 0, 1);
    assert_eq!(bed.wait(&answer), Err(ReadError::Closed), "it has never read");
    bed.close(three.id);
    // Nobody has the data.
    let began = bed.sim.now();
    let error = bed.wait(&waiting).unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::TimedOut {
                offset: 0,
                seconds: 60,
                state: TorrentState::Downloading,
                ..
            }
        ),
        "{error}"
    );
    assert!(bed.sim.now().since(began) < Duration::from_secs(60));
    assert_eq!(bed.reader_count(), 1);
}

/// A torrent that no longer runs ends its readers, and each reports the reason. A skipped file is not downloaded for a
/// reader.
#[test]
fn readers_end_with_their_torrent() {
    let mut bed = Bed::new(5, album(), &[]);
    let torrent = bed.content.info_hash();
    let reader = bed.open(0).unwrap();
    let idle = bed.open(0).unwrap();
    let waiting = bed.begin(reader.id, 0, 1);
    bed.sim.run_for(Duration::from_secs(1));
    let skip = bed.send(|reply| SetFiles {
        torrent,
        priorities: vec![(1..=6, FilePriority::Skip)],
        order: PieceOrderChange::default(),
        reply,
    });
    assert_eq!(bed.wait(&skip), Ok(()));
    let error = bed.open(6).unwrap_err();
    assert!(matches!(error, ReadError::Skipped { .. }), "{error}");
    assert!(waiting.try_recv().is_err(), "the first file is still wanted");
    let skip = bed.send(|reply| SetFiles {
        torrent,
        priorities: vec![(0..=0, FilePriority::Skip)],
        order: PieceOrderChange::default(),
        reply,
    });
    assert_eq!(bed.wait(&skip), Ok(()));
    let error = bed.wait(&waiting).unwrap_err();
    assert!(matches!(error, ReadError::Skipped { .. }), "{error}");
    assert!(bed.deadlines().is_empty());

    let paused = bed.send(|reply| PauseOrStart::Pause(PauseTorrent { torrent, reply }));
    assert!(bed.wait(&paused).is_ok());
    let answer = bed.begin(idle.id, 0, 1);
    let error = bed.wait(&answer).unwrap_err();
    assert!(matches!(error, ReadError::NotRunning { .. }), "{error}");
    let error = bed.open(0).unwrap_err();
    assert!(error.to_string().ends_with("cannot be read: it is paused"), "{error}");
    let removed = bed.send(|reply| RemoveTorrent {
        torrent,
        options: RemoveOptions::default(),
        reply,
    });
    assert!(bed.wait(&removed).is_ok());
    assert!(matches!(bed.open(0), Err(ReadError::NotFound(_))));
}
