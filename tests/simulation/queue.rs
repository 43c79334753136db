//! The queue: limits on running torrents, their order, slow torrents, forced starts, checks.

use ecs_torrent::components::commands::{
    PauseOrStart, PauseTorrent, RemoveOptions, RemoveTorrent, ResumeAll, SetQueue, StartTorrent,
};
use ecs_torrent::components::settings::{ChangeSettings, QueueSettings, SettingsPatch};
use ecs_torrent::engine::sim::Crash;
use ecs_torrent::sim::invariants::{InvariantsPlugin, Violations};
use ecs_torrent::{QueueChange, QueueMove, TorrentState};

use super::*;

const LEN: usize = 2 << 20;

/// A seed of several torrents, and an engine with a queue that downloads them.
struct Bed {
    sim: Simulation,
    contents: Vec<Content>,
    seeder: NodeId,
    leecher: NodeId,
}

impl Bed {
    /// Adds `count` torrents. The first `seeded` of them have a seed.
    fn new(count: usize, seeded: usize, queue: QueueSettings) -> Self {
        let contents: Vec<Content> = (0..count)
            .map(|number| {
                let new = NewContent {
                    name: format!("torrent {number}"),
                    len: LEN,
                    piece_length: 64 << 10,
                    ..NewContent::default()
                };
                new.make()
            })
            .collect();
        let mut sim = Simulation::new(9, Duration::from_millis(10));
        let mut settings = Settings::default();
        (settings.dht.enabled, settings.lsd.enabled) = (false, false);
        let plugins = (TorrentPlugins, InvariantsPlugin);
        let seeder = sim.add_node(ip(1), settings.clone(), plugins);
        settings.queue = queue;
        settings.limits.download_bytes_per_s = 100_000;
        let leecher = sim.add_node(ip(2), settings, plugins);
        for content in &contents[..seeded] {
            sim.put(seeder, "downloads", content);
            add(&mut sim, seeder, content, vec![]);
        }
        sim.run_for(Duration::from_secs(2));
        for content in &contents {
            add(&mut sim, leecher, content, vec![(ip(1), 6881).into()]);
            sim.run_for(Duration::from_millis(50));
        }
        let mut bed = Self {
            sim,
            contents,
            seeder,
            leecher,
        };
        bed.run_for(5);
        bed
    }

    fn state(&mut self, number: usize) -> TorrentState {
        let content = self.contents[number].clone();
        stats(&mut self.sim, self.leecher, &content).unwrap().state
    }

    /// Returns the torrents of a state.
    fn all(&mut self, state: TorrentState) -> Vec<usize> {
        (0..self.contents.len())
            .filter(|number| self.state(*number) == state)
            .collect()
    }

    fn downloading(&mut self) -> Vec<usize> {
        self.all(TorrentState::Downloading)
    }

    fn check(&mut self) {
        for node in [self.seeder, self.leecher] {
            let found = self.sim.node(node).world_mut().resource_mut::<Violations>().take();
            assert!(found.is_empty(), "{found:?}");
        }
    }

    fn run_for(&mut self, seconds: u64) {
        self.sim.run_for(Duration::from_secs(seconds));
        self.check();
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let limit = self.sim.now() + Duration::from_secs(300);
        while !is_so(self) {
            if self.sim.now() >= limit {
                let states: Vec<_> = (0..self.contents.len()).map(|number| self.state(number)).collect();
                panic!("{what}: {states:?}");
            }
            self.sim.run_for(Duration::from_millis(100));
        }
        self.check();
    }

    /// Sends a command, and waits for its success.
    fn tell<C: Send + Sync + 'static, T: Send + 'static, E: std::fmt::Debug + Send + 'static>(
        &mut self,
        command: impl FnOnce(Reply<Result<T, E>>) -> C,
    ) {
        let answers = send(&mut self.sim, self.leecher, command);
        self.until("an answer", |_| answers.try_recv().is_ok_and(|answer| answer.is_ok()));
    }

    fn change(&mut self, number: usize, change: QueueChange) {
        let torrent = self.contents[number].info_hash();
        self.tell(|reply| SetQueue { torrent, change, reply });
        self.run_for(1);
    }

    fn move_to(&mut self, number: usize, movement: QueueMove) {
        let change = QueueChange {
            movement: Some(movement),
            forced: None,
        };
        self.change(number, change);
    }

    fn force(&mut self, number: usize, is_forced: bool) {
        let change = QueueChange {
            movement: None,
            forced: Some(is_forced),
        };
        self.change(number, change);
    }

    fn set(&mut self, name: &str, value: u64) {
        let patch = SettingsPatch::default().set(name, value);
        self.tell(|reply| ChangeSettings { patch, reply });
        self.run_for(1);
    }

    fn restart(&mut self) {
        self.sim.crash(self.leecher, Crash::Power);
        self.sim.restart(self.leecher);
        let include_stopped = false;
        self.tell(|reply| ResumeAll { include_stopped, reply });
        self.run_for(5);
    }
}

fn downloads(most: usize) -> QueueSettings {
    QueueSettings {
        max_downloads: most,
        ..QueueSettings::default()
    }
}

/// Torrents run in their order, as many as the limit says, until all are complete.
#[test]
fn downloads_run_in_order_and_give_their_places_on() {
    let mut bed = Bed::new(5, 5, downloads(2));
    assert_eq!(bed.downloading(), [0, 1]);
    assert_eq!(bed.all(TorrentState::Queued), [2, 3, 4]);
    let torrent = bed.contents[0].info_hash();
    bed.tell(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }));
    bed.run_for(1);
    assert_eq!(
        bed.downloading(),
        [1, 2],
        "a paused torrent gives its place to the next"
    );
    bed.tell(|reply| PauseOrStart::from(StartTorrent { torrent, reply }));
    bed.until("its turn", |bed| bed.downloading() == [0, 1]);
    let (torrent, options) = (bed.contents[1].info_hash(), RemoveOptions { delete_data: false });
    bed.contents.remove(1);
    bed.tell(|reply| RemoveTorrent {
        torrent,
        options,
        reply,
    });
    bed.run_for(1);
    assert_eq!(bed.downloading(), [0, 1], "and so does a removed one");
    bed.until("all of them", |bed| bed.all(TorrentState::Seeding) == [0, 1, 2, 3]);
}

/// Users change the order, which holds at once and over power failures.
#[test]
fn the_order_is_what_users_make_of_it() {
    let mut bed = Bed::new(5, 0, downloads(2));
    assert_eq!(bed.downloading(), [0, 1]);
    bed.move_to(4, QueueMove::Top);
    assert_eq!(bed.downloading(), [0, 4]);
    bed.move_to(0, QueueMove::Bottom);
    assert_eq!(bed.downloading(), [1, 4]);
    bed.move_to(2, QueueMove::Up);
    assert_eq!(bed.downloading(), [2, 4]);
    bed.move_to(2, QueueMove::Up);
    bed.move_to(4, QueueMove::Down);
    assert_eq!(bed.downloading(), [1, 2]);
    bed.move_to(2, QueueMove::Up);
    bed.restart();
    assert_eq!(bed.downloading(), [1, 2]);
    bed.set("queue.max_downloads", 3);
    assert_eq!(bed.downloading(), [1, 2, 4]);
    bed.set("queue.max_downloads", 4);
    assert_eq!(bed.downloading(), [1, 2, 3, 4], "the last one is at the bottom");
    bed.set("queue.max_downloads", 1_000_000);
    assert_eq!(bed.downloading(), [0, 1, 2, 3, 4], "without a limit, all run");
    bed.set("queue.max_downloads", 1);
    assert_eq!(bed.downloading(), [2]);
}

/// A torrent gets any place among the others, at its add too. If there is no number in between, the torrents on the
/// shorter side are renumbered. Crashes change nothing.
#[test]
fn a_torrent_gets_the_place_with_this_number() {
    let mut bed = Bed::new(6, 0, downloads(1));
    let order = |bed: &mut Bed| {
        let place = |bed: &mut Bed, number: usize| {
            let content = bed.contents[number].clone();
            stats(&mut bed.sim, bed.leecher, &content).unwrap().queue.order
        };
        let mut places: Vec<_> = (0..bed.contents.len())
            .map(|number| (place(bed, number), number))
            .collect();
        places.sort_unstable();
        places.into_iter().map(|(_, number)| number).collect::<Vec<_>>()
    };
    let to = |number: u32| QueueMove::Place(std::num::NonZeroU32::new(number).unwrap());
    assert_eq!(order(&mut bed), [0, 1, 2, 3, 4, 5]);
    for (torrent, place, expected) in [
        (5, 2, [0, 5, 1, 2, 3, 4]),
        (0, 5, [5, 1, 2, 3, 0, 4]),
        (3, 4, [5, 1, 2, 3, 0, 4]),
        (4, 3, [5, 1, 4, 2, 3, 0]),
        (2, 99, [5, 1, 4, 3, 0, 2]),
        (2, 1, [2, 5, 1, 4, 3, 0]),
    ] {
        bed.move_to(torrent, to(place));
        assert_eq!(order(&mut bed), expected, "{torrent} to {place}");
        bed.restart();
        assert_eq!(order(&mut bed), expected, "after a crash");
    }
    assert_eq!(bed.downloading(), [2]);
    for (movement, expected) in [
        (to(3), vec![2, 5, 6, 1, 4, 3, 0]),
        (QueueMove::Top, vec![7, 2, 5, 6, 1, 4, 3, 0]),
    ] {
        let new = NewContent {
            name: format!("torrent {}", bed.contents.len()),
            len: LEN,
            piece_length: 64 << 10,
            ..NewContent::default()
        };
        let content = new.make();
        let (source, options) = (
            content.metainfo().clone().into(),
            AddOptions {
                root: Some("downloads".into()),
                queue: Some(movement),
                ..AddOptions::default()
            },
        );
        bed.contents.push(content);
        bed.tell(|reply| AddTorrent {
            source,
            options,
            is_resumed: false,
            reply,
        });
        assert_eq!(order(&mut bed), expected);
        bed.restart();
        assert_eq!(order(&mut bed), expected, "after a crash");
    }
    assert_eq!(bed.downloading(), [7]);
}

/// A forced torrent runs whatever the limit is, and takes a place.
#[test]
fn a_forced_torrent_takes_a_place() {
    let mut bed = Bed::new(4, 0, downloads(2));
    bed.force(3, true);
    assert_eq!(bed.downloading(), [0, 3]);
    bed.force(2, true);
    bed.force(1, true);
    assert_eq!(bed.downloading(), [1, 2, 3]);
    bed.restart();
    assert_eq!(bed.downloading(), [1, 2, 3]);
    for number in [1, 2, 3] {
        bed.force(number, false);
    }
    assert_eq!(bed.downloading(), [0, 1]);
}

/// A download that is complete frees its slot for the next, and waits for a slot among the seeds. Downloads come first
/// among all.
#[test]
fn seeds_have_places_of_their_own() {
    let mut bed = Bed::new(
        4,
        3,
        QueueSettings {
            max_downloads: 1,
            max_seeds: 1,
            max_active: 2,
            ..QueueSettings::default()
        },
    );
    bed.until("three copies", |bed| bed.downloading() == [3]);
    assert_eq!(bed.all(TorrentState::Seeding), [0]);
    assert_eq!(bed.all(TorrentState::Queued), [1, 2]);
    bed.set("queue.max_active", 1);
    assert_eq!((bed.downloading(), bed.all(TorrentState::Seeding)), (vec![3], vec![]));
    bed.move_to(2, QueueMove::Top);
    bed.set("queue.max_active", 2);
    assert_eq!(bed.all(TorrentState::Seeding), [2]);
    bed.restart();
    assert_eq!((bed.downloading(), bed.all(TorrentState::Seeding)), (vec![3], vec![2]));
}

/// Torrents that transfer too little for a while do not count. They count again when they transfer more.
#[test]
fn slow_torrents_do_not_count() {
    let mut bed = Bed::new(
        4,
        0,
        QueueSettings {
            max_active: 3,
            slow_download_bytes_per_s: 20_000,
            slow_after_s: 30,
            ..downloads(1)
        },
    );
    assert_eq!(bed.downloading(), [0]);
    bed.run_for(30);
    assert_eq!(bed.downloading(), [0, 1]);
    bed.run_for(60);
    assert_eq!(bed.downloading(), [0, 1, 2], "at most as many as may be active");
    // The first one gets a seed and completes, while the others are slow and stay.
    let content = bed.contents[0].clone();
    bed.sim.put(bed.seeder, "downloads", &content);
    add(&mut bed.sim, bed.seeder, &content, vec![(ip(2), 6881).into()]);
    bed.until("the last one's turn", |bed| bed.downloading() == [1, 2, 3]);
    assert_eq!(
        bed.state(0),
        TorrentState::Queued,
        "it is complete, and downloads come first"
    );
}

/// Existing data is checked for as many torrents at a time as the setting says, and all of them in the end.
#[test]
fn checks_wait_for_their_turn() {
    let queue = QueueSettings {
        max_checks: 1,
        ..QueueSettings::default()
    };
    let mut bed = Bed::new(4, 4, queue);
    bed.until("all of them", |bed| bed.all(TorrentState::Seeding).len() == 4);
    let removals: Vec<_> = bed.contents.iter().map(Content::info_hash).collect();
    for torrent in removals {
        let options = RemoveOptions { delete_data: false };
        bed.tell(|reply| RemoveTorrent {
            torrent,
            options,
            reply,
        });
    }
    bed.sim.disk(bed.leecher).set_slowness(100.0);
    for content in bed.contents.clone() {
        add(&mut bed.sim, bed.leecher, &content, vec![]);
    }
    bed.until("a check", |bed| bed.all(TorrentState::Checking).len() == 4);
    bed.until("the checks, one at a time", |bed| {
        bed.all(TorrentState::Seeding).len() == 4
    });
}
