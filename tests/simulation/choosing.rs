//! Torrents of which the user wants some files.

use std::ops::RangeInclusive;
use std::sync::mpsc::Receiver;

use ecs_torrent::components::commands::{
    GetFiles, PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, ResumeAll, SetFiles, SetFilesError,
    StartTorrent,
};
use ecs_torrent::components::peer::PeerPieces;
use ecs_torrent::components::selection::FileSelection;
use ecs_torrent::components::stats::FileStats;
use ecs_torrent::components::wanted::{FilePriority, PieceOrder, PieceOrderChange};
use ecs_torrent::engine::sim::{Crash, DiskFault, Lasting, StateOperation};
use ecs_torrent::prelude::Lifecycle;
use ecs_torrent::protocol::bitfield::Bitfield;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};
use ecs_torrent::{InfoHash, TorrentState};

use super::*;

const LIMIT: Duration = Duration::from_secs(600);
const ALL: RangeInclusive<u32> = 0..=6;

/// A seed and a leecher of a torrent with seven files, whose borders lie within pieces. The fourth file is empty.
struct Bed {
    sim: Simulation,
    content: Content,
    leecher: NodeId,
}

impl Bed {
    fn new(seed: u64) -> Self {
        let content = NewContent {
            len: 1_200_001,
            piece_length: 32 << 10,
            file_count: 7,
            ..NewContent::default()
        };
        let content = content.make();
        let mut sim = Simulation::new(seed, Duration::from_millis(10));
        let mut settings = Settings::default();
        settings.dht.enabled = false;
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let seeder = sim.add_node(ip(1), settings.clone(), plugins);
        let leecher = sim.add_node(ip(2), settings, plugins);
        sim.put(seeder, "downloads", &content);
        add(&mut sim, seeder, &content, vec![]);
        Self { sim, content, leecher }
    }

    /// Adds the torrent with a selection of files.
    fn add(&mut self, select: FileSelection) {
        self.add_ordered(select, PieceOrder::default());
    }

    fn add_ordered(&mut self, select: FileSelection, order: PieceOrder) {
        let source = self.content.metainfo().clone().into();
        let added = self.send(|reply| AddTorrent {
            source,
            options: AddOptions {
                root: Some("downloads".into()),
                peers: vec![(ip(1), 6881).into()],
                select,
                order,
                ..AddOptions::default()
            },
            is_resumed: false,
            reply,
        });
        assert_eq!(self.wait(&added), Ok(self.content.info_hash()));
    }

    fn send<C: Send + Sync + 'static, T: Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<T>) -> C,
    ) -> Receiver<T> {
        send(&mut self.sim, self.leecher, command)
    }

    fn wait<T>(&mut self, answers: &Receiver<T>) -> T {
        let mut answer = None;
        self.until("an answer", |_| {
            answer = answers.try_recv().ok();
            answer.is_some()
        });
        answer.unwrap()
    }

    fn until(&mut self, what: &str, mut is_done: impl FnMut(&mut Simulation) -> bool) {
        let limit = self.sim.now() + LIMIT;
        let is_reached = self.sim.run_until(limit, &mut is_done);
        assert!(
            is_reached,
            "{what}: {:?}",
            stats(&mut self.sim, self.leecher, &self.content)
        );
        for node in self.sim.nodes().collect::<Vec<_>>() {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{what}: {found:?}");
        }
    }

    fn until_state(&mut self, expected: TorrentState) {
        let (leecher, content) = (self.leecher, self.content.clone());
        self.until(expected.name(), |sim| {
            stats(sim, leecher, &content).is_some_and(|stats| stats.state == expected)
        });
    }

    fn set(&mut self, priorities: &[(RangeInclusive<u32>, FilePriority)]) -> Result<(), SetFilesError> {
        let (torrent, priorities) = (self.content.info_hash(), priorities.to_vec());
        let answer = self.send(|reply| SetFiles {
            torrent,
            priorities,
            order: PieceOrderChange::default(),
            reply,
        });
        self.wait(&answer)
    }

    fn set_order(&mut self, order: PieceOrderChange) -> Result<(), SetFilesError> {
        let torrent = self.content.info_hash();
        let answer = self.send(|reply| SetFiles {
            torrent,
            priorities: Vec::new(),
            order,
            reply,
        });
        self.wait(&answer)
    }

    /// Runs until the torrent has a state, and returns the pieces in the order in which they arrived.
    fn arrivals_until(&mut self, expected: Lifecycle) -> Vec<u32> {
        let mut seen = self.held();
        let leecher = self.leecher;
        self.until("the pieces", |sim| {
            let world = sim.node(leecher).world_mut();
            let (have, lifecycle) = world.query::<(&Have, &Lifecycle)>().single(world).unwrap();
            seen.extend(have.iter().filter(|piece| !seen.contains(piece)).collect::<Vec<_>>());
            *lifecycle == expected
        });
        seen
    }

    fn files(&mut self) -> Vec<FileStats> {
        let torrent = self.content.info_hash();
        let answer = self.send(|reply| GetFiles { torrent, reply });
        self.wait(&answer).unwrap()
    }

    fn stats(&mut self) -> TorrentStats {
        stats(&mut self.sim, self.leecher, &self.content).unwrap()
    }

    /// Returns the pieces that overlap the given files.
    fn pieces_of(&self, files: &[usize]) -> Vec<u32> {
        let geometry = &self.content.metainfo().info.geometry;
        let mut set = Bitfield::new(self.content.piece_count());
        for file in files.iter().map(|file| &self.content.files().files()[*file]) {
            for piece in geometry.pieces_of(file.offset..file.end()) {
                set.insert(piece);
            }
        }
        set.iter().collect()
    }

    fn held(&mut self) -> Vec<u32> {
        let world = self.sim.node(self.leecher).world_mut();
        world.query::<&Have>().single(world).unwrap().iter().collect()
    }

    /// Whether each file exists, and last the part file.
    fn existing(&self) -> Vec<bool> {
        let part = format!(".{}.parts", self.content.info_hash());
        let files = self.content.files().files().iter().map(|file| &*file.path);
        let disk = self.sim.disk(self.leecher);
        let paths = files.chain([&*part]);
        paths
            .map(|path| disk.file_len(format!("downloads/{path}")).is_some())
            .collect()
    }

    /// Ends the engine, and lists the saved torrents again.
    fn crash(&mut self, crash: Crash) {
        self.sim.crash(self.leecher, crash);
        self.sim.restart(self.leecher);
        let resumed = self.send(|reply| ResumeAll {
            include_stopped: true,
            reply,
        });
        assert!(self.wait(&resumed).is_ok());
    }
}

fn select(files: &[RangeInclusive<u32>]) -> FileSelection {
    FileSelection::new(files.iter().cloned(), []).unwrap()
}

/// The pieces of the other files are never requested, the torrent is finished and not seeding, and the choice survives
/// a kill. When the user wants the rest, the torrent downloads again, and then seeds.
#[test]
fn only_selected_files_are_downloaded_until_the_user_wants_the_rest() {
    let mut bed = Bed::new(1);
    bed.add(select(&[1..=1, 5..=5]));
    bed.until_state(TorrentState::Finished);
    let wanted = bed.pieces_of(&[1, 5]);
    assert_eq!(bed.held(), wanted);
    let there = [false, true, false, false, false, true, false, true];
    assert_eq!(bed.existing(), there);
    let stats = bed.stats();
    assert_eq!(
        (stats.progress(), stats.left, stats.is_complete()),
        (1.0, Some(0), false)
    );
    assert_eq!(stats.downloaded, stats.completed);
    let priorities: Vec<_> = bed.files().iter().map(|file| file.priority).collect();
    let is_wanted = priorities.iter().map(|priority| priority.is_wanted());
    assert_eq!(
        is_wanted.collect::<Vec<_>>(),
        [false, true, false, false, false, true, false]
    );

    bed.crash(Crash::Process);
    bed.until_state(TorrentState::Finished);
    assert_eq!((bed.held(), bed.existing()), (wanted, there.to_vec()));

    assert_eq!(bed.set(&[(2..=3, FilePriority::Low)]), Ok(()));
    bed.until_state(TorrentState::Finished);
    assert_eq!(bed.held(), bed.pieces_of(&[1, 2, 5]));
    assert_eq!(bed.set(&[(ALL, FilePriority::Normal)]), Ok(()));
    bed.until_state(TorrentState::Seeding);
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.until("all data", |sim| sim.has(leecher, "downloads", &content));
    bed.sim.run_for(Duration::from_secs(5));
    assert_eq!(
        (bed.stats().wasted, bed.existing().pop()),
        (0, Some(false)),
        "the part file is deleted"
    );
}

/// Pieces of important files are begun first. With one peer, the pieces come in the order in which they are begun.
#[test]
fn files_of_high_priority_come_first() {
    let mut bed = Bed::new(2);
    bed.add(FileSelection::default());
    // Before the first block arrives.
    let order = [
        (ALL, FilePriority::Skip),
        (4..=4, FilePriority::High),
        (0..=0, FilePriority::Normal),
        (6..=6, FilePriority::Low),
    ];
    assert_eq!(bed.set(&order), Ok(()));
    let early = bed.held().len();
    let seen = bed.arrivals_until(Lifecycle::Finished);
    let [high, normal, low] = [4, 0, 6].map(|file| bed.pieces_of(&[file]));
    let class = |piece: &u32| match piece {
        piece if high.contains(piece) => 0,
        piece if normal.contains(piece) => 1,
        piece if low.contains(piece) => 2,
        _ => 3,
    };
    let classes: Vec<_> = seen[early..].iter().map(class).collect();
    assert!(classes.is_sorted(), "{classes:?}");
    assert!((0..3).all(|class| classes.contains(&class)), "{classes:?}");
}

/// With one peer, the pieces come in the order in which they are begun: that of the files, within each priority.
#[test]
fn a_sequential_download_goes_from_the_beginning_to_the_end() {
    let mut bed = Bed::new(7);
    let order = PieceOrder {
        sequential: true,
        ..PieceOrder::default()
    };
    bed.add_ordered(FileSelection::default(), order);
    let seen = bed.arrivals_until(Lifecycle::Seeding);
    assert!(
        seen.is_sorted() && seen.len() == bed.content.piece_count() as usize,
        "{seen:?}"
    );

    let mut bed = Bed::new(8);
    bed.add_ordered(select(&[2..=4]), order);
    assert_eq!(bed.set(&[(4..=4, FilePriority::High)]), Ok(()));
    let early = bed.held().len();
    let seen = bed.arrivals_until(Lifecycle::Finished);
    let [high, rest] = [bed.pieces_of(&[4]), bed.pieces_of(&[2, 3])];
    let is_high = |piece: &u32| high.contains(piece);
    let (important, normal): (Vec<u32>, Vec<u32>) = seen[early..].iter().copied().partition(is_high);
    assert!(important.is_sorted() && normal.is_sorted(), "{seen:?}");
    assert!(
        seen[early..].iter().map(|piece| !is_high(piece)).is_sorted(),
        "{seen:?}"
    );
    assert!(normal.len() + early >= rest.len() - 1, "{seen:?}");
}

/// Each file's first and last pieces come before the others, and the order can be taken back.
#[test]
fn the_ends_of_files_come_first() {
    let mut bed = Bed::new(9);
    let order = PieceOrder {
        ends_first: true,
        ..PieceOrder::default()
    };
    bed.add_ordered(select(&[1..=6]), order);
    let seen = bed.arrivals_until(Lifecycle::Finished);
    let mut ends = Bitfield::new(bed.content.piece_count());
    let geometry = &bed.content.metainfo().info.geometry;
    for file in bed.content.files().files()[1..].iter().filter(|file| file.len > 0) {
        let first = geometry.pieces_of(file.offset..file.offset + file.len / 100);
        let last = geometry.pieces_of(file.end() - file.len / 100..file.end());
        for piece in first.chain(last) {
            ends.insert(piece);
        }
    }
    // Eight pieces are in flight at first, and the disk writes them in the order of their offsets.
    let (early, late) = seen.split_at(ends.count() as usize + 2);
    let ends_in = |pieces: &[u32]| pieces.iter().filter(|piece| ends.contains(**piece)).count() as u32;
    assert_eq!((ends_in(early), ends_in(late)), (ends.count(), 0), "{seen:?}");

    let change = PieceOrderChange {
        sequential: Some(true),
        ends_first: Some(false),
    };
    assert_eq!(bed.set_order(change), Ok(()));
    assert_eq!(bed.set(&[(ALL, FilePriority::Normal)]), Ok(()));
    let early = bed.held().len();
    let seen = bed.arrivals_until(Lifecycle::Seeding);
    assert!(seen[early..].is_sorted(), "{seen:?}");
}

/// An answered order is durable, and an add without a selection of files keeps the session's.
#[test]
fn an_answered_order_survives_kills() {
    let mut bed = Bed::new(10);
    bed.add(select(&[0..=0]));
    let change = PieceOrderChange {
        sequential: Some(true),
        ends_first: None,
    };
    assert_eq!(bed.set_order(change), Ok(()));
    bed.crash(Crash::Power);
    let stats = bed.stats();
    assert_eq!((stats.sequential, stats.ends_first), (true, false));
    bed.until_state(TorrentState::Finished);
    // Ends the engine, and adds the torrent as a new program does.
    bed.sim.crash(bed.leecher, Crash::Process);
    bed.sim.restart(bed.leecher);
    let order = PieceOrder {
        sequential: false,
        ends_first: true,
    };
    bed.add_ordered(FileSelection::default(), order);
    bed.until_state(TorrentState::Finished);
    let stats = bed.stats();
    assert_eq!((stats.sequential, stats.ends_first), (false, true));
    assert_eq!(bed.held(), bed.pieces_of(&[0]));
}

/// Requests for files that are no longer wanted are canceled, and we are not interested in a peer without other pieces.
#[test]
fn a_skip_stops_a_running_download() {
    let mut bed = Bed::new(3);
    bed.add(FileSelection::default());
    let (leecher, content) = (bed.leecher, bed.content.clone());
    bed.until("some data", |sim| {
        stats(sim, leecher, &content).is_some_and(|stats| stats.held_pieces() >= 3)
    });
    assert_eq!(bed.set(&[(ALL, FilePriority::Skip)]), Ok(()));
    bed.until_state(TorrentState::Finished);
    let held = bed.held();
    bed.sim.run_for(Duration::from_secs(30));
    assert!(
        held.len() < 20 && bed.held().len() <= held.len() + 2,
        "what was being written is kept"
    );
    let world = bed.sim.node(leecher).world_mut();
    assert_eq!(world.query::<&PeerPieces>().iter(world).len(), 0, "a seed is of no use");
    assert_eq!(bed.stats().wanted, Some(0));
    assert_eq!(bed.set(&[(ALL, FilePriority::Normal)]), Ok(()));
    bed.until_state(TorrentState::Seeding);
}

/// Every change is durable before it is answered, also while the torrent is paused.
#[test]
fn answered_changes_survive_kills() {
    for crash in [Crash::Process, Crash::Power] {
        let mut bed = Bed::new(4);
        bed.add(select(&[0..=0]));
        bed.until_state(TorrentState::Finished);
        let torrent = bed.content.info_hash();
        let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
        assert_eq!(bed.wait(&paused), Ok(()));
        assert_eq!(
            bed.set(&[(0..=1, FilePriority::High), (2..=2, FilePriority::Low)]),
            Ok(())
        );
        bed.crash(crash);
        let files = bed.files();
        let names: Vec<_> = files.iter().map(|file| file.priority.name()).collect();
        assert_eq!(names, ["high", "high", "low", "skip", "skip", "skip", "skip"]);
        let started = bed.send(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
        assert_eq!(bed.wait(&started), Ok(()));
        bed.until_state(TorrentState::Finished);
        assert_eq!(bed.held(), bed.pieces_of(&[0, 1, 2]));
    }
}

/// A change that cannot be saved is refused, and has no effect.
#[test]
fn an_unsaved_change_is_undone() {
    let mut bed = Bed::new(5);
    bed.add(select(&[0..=0]));
    bed.until_state(TorrentState::Finished);
    bed.sim
        .state(bed.leecher)
        .fail(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
    let refused = bed.set(&[(1..=1, FilePriority::Normal)]);
    assert!(matches!(refused, Err(SetFilesError::Unsaved(_))), "{refused:?}");
    assert_eq!(bed.files()[1].priority, FilePriority::Skip);
    bed.sim.run_for(Duration::from_secs(60));
    assert_eq!(
        (bed.stats().state, bed.held()),
        (TorrentState::Finished, bed.pieces_of(&[0]))
    );
}

/// Bad indexes are refused by name, and ten thousand changes cost no more than a few saves.
#[test]
fn useless_changes_are_refused_and_many_are_saved_together() {
    let mut bed = Bed::new(6);
    bed.add(select(&[0..=0]));
    let (hash, name) = (bed.content.info_hash(), "content".into());
    let no_file = |file| SetFilesError::NoSuchFile {
        torrent: Arc::clone(&name),
        file,
        count: 7,
    };
    for file in [7, u32::MAX] {
        let refused = bed.set(&[(0..=1, FilePriority::Skip), (file..=file, FilePriority::High)]);
        assert_eq!(refused, Err(no_file(file)));
    }
    assert_eq!(
        bed.files()[0].priority,
        FilePriority::Normal,
        "nothing is changed in part"
    );
    let too_many = bed.set(&vec![(ALL, FilePriority::Low); 5]);
    assert_eq!(too_many, Err(SetFilesError::TooMany(name)));
    let unknown = InfoHash([9; 20]);
    let answer = bed.send(|reply| SetFiles {
        torrent: unknown,
        priorities: vec![],
        order: PieceOrderChange::default(),
        reply,
    });
    assert!(matches!(bed.wait(&answer), Err(SetFilesError::NotFound(_))));

    bed.until_state(TorrentState::Finished);
    let ticks = bed.sim.tick_count(bed.leecher);
    let answers: Vec<_> = (0..10_000u32)
        .map(|number| {
            let (file, priority) = (number % 7, FilePriority::ALL[number as usize / 7 % 4]);
            bed.send(|reply| SetFiles {
                torrent: hash,
                priorities: vec![(file..=file, priority)],
                order: PieceOrderChange::default(),
                reply,
            })
        })
        .collect();
    for answer in &answers {
        assert_eq!(bed.wait(answer), Ok(()));
    }
    assert_eq!(bed.set(&[(ALL, FilePriority::Normal)]), Ok(()));
    bed.until_state(TorrentState::Seeding);
    let took = bed.sim.tick_count(bed.leecher) - ticks;
    assert!(took < 2000, "{took} ticks");
}

/// A kill at any moment of a change, or of the work that follows it, loses no verified data.
#[test]
fn kills_lose_no_bytes_of_part_files() {
    for (number, crash) in (0..24).zip([Crash::Process, Crash::Power].into_iter().cycle()) {
        let mut bed = Bed::new(100 + number);
        bed.add(select(&[1..=1, 4..=4]));
        bed.until_state(TorrentState::Finished);
        // The session is durable with everything that is held.
        bed.sim.run_for(Duration::from_secs(60));
        let held = bed.held();
        let torrent = bed.content.info_hash();
        drop(bed.send(|reply| SetFiles {
            torrent,
            priorities: vec![(0..=2, FilePriority::Normal), (4..=4, FilePriority::Skip)],
            order: PieceOrderChange::default(),
            reply,
        }));
        bed.sim.run_for(Duration::from_micros(700 * number));
        bed.crash(crash);
        let (leecher, content) = (bed.leecher, bed.content.clone());
        let has = |state: TorrentState| matches!(state, TorrentState::Finished | TorrentState::Downloading);
        bed.until("the check", |sim| {
            stats(sim, leecher, &content).is_some_and(|stats| has(stats.state))
        });
        let after = bed.held();
        let lost: Vec<_> = held.iter().filter(|piece| !after.contains(piece)).collect();
        assert!(lost.is_empty(), "{number}: {lost:?}");
        assert_eq!(bed.set(&[(ALL, FilePriority::Normal)]), Ok(()));
        bed.until_state(TorrentState::Seeding);
        bed.until("all data", |sim| sim.has(leecher, "downloads", &content));
        bed.sim.run_for(Duration::from_secs(5));
        assert_eq!(bed.existing(), [true, true, true, true, true, true, true, false]);
    }
}

/// A torrent that is removed without its data leaves no part file, paused or not.
#[test]
fn the_part_file_goes_with_its_torrent() {
    for is_paused in [false, true] {
        for delete_data in [false, true] {
            let mut bed = Bed::new(7);
            bed.add(select(&[1..=1]));
            bed.until_state(TorrentState::Finished);
            assert_eq!(bed.existing().pop(), Some(true));
            let torrent = bed.content.info_hash();
            if is_paused {
                let paused = bed.send(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
                assert_eq!(bed.wait(&paused), Ok(()));
            }
            let options = RemoveOptions { delete_data };
            let removed = bed.send(|reply| RemoveTorrent {
                torrent,
                options,
                reply,
            });
            let removed = bed.wait(&removed).unwrap();
            assert_eq!(removed.deleted_count, usize::from(delete_data));
            let there = bed.existing();
            assert_eq!((there[1], there[7]), (!delete_data, false), "paused: {is_paused}");
        }
    }
}
