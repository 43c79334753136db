//! A scenario: what there is, and what happens to it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use bevy_app::Plugins;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::sim::{Access, DiskSpeed, NewContent, NewNode, Path, TrackerMode, TrackerOptions};

use super::hostile::Hostility;
use super::outcome::Outcome;
use super::running;

/// A node of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The nth that has everything from the start, counted from 0.
    Seed(usize),
    /// The nth that has nothing at the start.
    Leech(usize),
    /// The nth that is no engine of ours.
    Hostile(usize),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(number) => write!(f, "seed {number}"),
            Self::Leech(number) => write!(f, "leech {number}"),
            Self::Hostile(number) => write!(f, "hostile {number}"),
        }
    }
}

/// A node's line, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// What it sends at most.
    pub up: u64,
    /// What it receives at most.
    pub down: u64,
}

impl Line {
    /// Both directions alike.
    #[must_use]
    pub const fn symmetric(bytes_per_s: u64) -> Self {
        Self {
            up: bytes_per_s,
            down: bytes_per_s,
        }
    }

    /// Each direction its own.
    #[must_use]
    pub const fn asymmetric(up: u64, down: u64) -> Self {
        Self { up, down }
    }

    pub(super) fn access(self) -> Access {
        Access::asymmetric(self.up, self.down)
    }
}

/// Something that happens to nodes, or that they do.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// The process is killed.
    Killed(Who),
    /// The machine loses its power: nobody is told, and what was not synced may be lost or torn.
    PowerFails(Who),
    /// A node that is down begins again, and resumes its torrents; one that joins late begins.
    Starts(Who),
    /// Stop-and-serialize for everything; then the node is down.
    Stops(Who),
    /// The machine sleeps, clock and all, and wakes up after a while.
    Sleeps(Who, Duration),
    /// The clock jumps forward.
    ClockJumps(Who, Duration),
    /// No connection between some and others.
    Partition(Vec<Who>, Vec<Who>),
    /// All partitions end.
    Heals,
    /// All connections between two are reset.
    Reset(Who, Who),
    /// All connections between two vanish, and neither is told.
    Sever(Who, Who),
    /// The node's address changes, and with it all of its connections.
    Moves(Who),
    /// What others send stays in the sockets.
    StopsReading(Who),
    /// It reads again.
    ReadsAgain(Who),
    /// No byte more fits on the disk.
    DiskFills(Who),
    /// There is room again.
    DiskHasRoom(Who),
    /// Reads, writes and syncs fail for a while.
    DiskFails(Who, Duration),
    /// The next so many syncs fail, and what was written before them is lost on its way to the platter, though it can
    /// be read.
    SyncsFail(Who, u32),
    /// The disk becomes so many times slower.
    DiskSlows(Who, f64),
    /// The line changes.
    LineIs(Who, Line),
    /// What the tracker does from now on.
    Tracker(TrackerMode),
}

/// When an act comes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// So long after the begin.
    At(Duration),
    /// When a node has sent so many times the torrent's size.
    HasSent(Who, f64),
    /// When a node has so much of the torrent, from 0 to 1.
    Has(Who, f64),
}

/// Nodes of one kind.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) count: usize,
    pub(super) line: Line,
    /// Until an [`Act::Starts`] they are not there.
    pub(super) is_late: bool,
}

/// A swarm and its fate. Each function adds to it; [`Scenario::run`] lets it happen.
#[derive(Clone)]
pub struct Scenario {
    pub(super) name: String,
    pub(super) seed: u64,
    pub(super) torrent: NewContent,
    pub(super) seeds: Vec<Group>,
    pub(super) leeches: Vec<Group>,
    pub(super) hostiles: Vec<(Hostility, Line)>,
    pub(super) idle_torrents: usize,
    pub(super) acts: Vec<(When, Act)>,
    pub(super) settings: Settings,
    pub(super) path: Path,
    pub(super) disk: DiskSpeed,
    pub(super) tracker: TrackerOptions,
    pub(super) patience: f64,
    pub(super) allowance: Duration,
    pub(super) may_fail: bool,
    /// Adds what the caller wants to a node.
    pub(super) extend: Rc<dyn Fn(NewNode) -> NewNode>,
    pub(super) is_traced: bool,
    pub(super) beat: Duration,
    pub(super) threads: usize,
    pub(super) watch: Rc<dyn Fn(&Look)>,
}

/// How far a scenario is.
#[derive(Debug)]
pub struct Look<'s> {
    /// Virtual time since the begin.
    pub at: Duration,
    /// How much each leecher has, from 0 to 1.
    pub parts: &'s BTreeMap<Who, f64>,
    /// What has happened since the look before.
    pub events: &'s [(Duration, String)],
}

impl Scenario {
    /// Nothing but a torrent of 1 MiB in pieces of 64 KiB, a tracker, 20 ms with jitter of 2 ms between any two nodes,
    /// and the engine's own plugins.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            seed: 0,
            torrent: NewContent::default(),
            seeds: Vec::new(),
            leeches: Vec::new(),
            hostiles: Vec::new(),
            idle_torrents: 0,
            acts: Vec::new(),
            settings: Settings::default(),
            path: Path {
                jitter: Duration::from_millis(2),
                ..Path::new(Duration::from_millis(20))
            },
            disk: DiskSpeed::default(),
            tracker: TrackerOptions::default(),
            patience: 2.0,
            allowance: Duration::from_secs(20),
            may_fail: false,
            extend: Rc::new(|node| node),
            is_traced: true,
            beat: Duration::ZERO,
            threads: 1,
            watch: Rc::new(|_| ()),
        }
    }

    /// Decides everything that is chance.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// The torrent. Its trackers are those of the scenario.
    #[must_use]
    pub fn torrent(self, torrent: NewContent) -> Self {
        Self { torrent, ..self }
    }

    /// Nodes that have everything.
    #[must_use]
    pub fn seeds(mut self, count: usize, line: Line) -> Self {
        self.seeds.push(Group {
            count,
            line,
            is_late: false,
        });
        self
    }

    /// Nodes that have nothing, and want everything.
    #[must_use]
    pub fn leeches(mut self, count: usize, line: Line) -> Self {
        self.leeches.push(Group {
            count,
            line,
            is_late: false,
        });
        self
    }

    /// The same, which come only when [`Act::Starts`] says so.
    #[must_use]
    pub fn late_leeches(mut self, count: usize, line: Line) -> Self {
        self.leeches.push(Group {
            count,
            line,
            is_late: true,
        });
        self
    }

    /// Peers that do harm, in the way they do it.
    #[must_use]
    pub fn hostiles(mut self, count: usize, hostility: Hostility, line: Line) -> Self {
        self.hostiles.extend(std::iter::repeat_n((hostility, line), count));
        self
    }

    /// So many complete torrents of one piece, each of its own, on the first seed.
    #[must_use]
    pub fn idle_torrents(self, count: usize) -> Self {
        Self {
            idle_torrents: count,
            ..self
        }
    }

    /// Lets something happen at a time.
    #[must_use]
    pub fn at(self, time: Duration, act: Act) -> Self {
        self.when(When::At(time), act)
    }

    /// Lets something happen, once.
    #[must_use]
    pub fn when(mut self, when: When, act: Act) -> Self {
        self.acts.push((when, act));
        self
    }

    /// The settings of every engine.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// What lies between any two nodes.
    #[must_use]
    pub fn path(self, path: Path) -> Self {
        Self { path, ..self }
    }

    /// The disk of every node.
    #[must_use]
    pub fn disk(self, disk: DiskSpeed) -> Self {
        Self { disk, ..self }
    }

    /// How the tracker is set up.
    #[must_use]
    pub fn tracker(self, tracker: TrackerOptions) -> Self {
        Self { tracker, ..self }
    }

    /// How long leechers may take: so many times the ideal time, and `allowance` for what happens to them. Default
    /// twice, and 20 s.
    #[must_use]
    pub fn within(self, patience: f64, allowance: Duration) -> Self {
        Self {
            patience,
            allowance,
            ..self
        }
    }

    /// That leechers do not finish is no failure: no complete copy stays within reach.
    #[must_use]
    pub fn may_fail(self) -> Self {
        Self { may_fail: true, ..self }
    }

    /// More plugins for every engine, behind the engine's own.
    #[must_use]
    pub fn plugins<M>(mut self, plugins: impl Plugins<M> + Clone + 'static) -> Self {
        let earlier = self.extend;
        self.extend = Rc::new(move |node| earlier(node).plugins(plugins.clone()));
        self
    }

    /// Without the trace, for who measures.
    #[must_use]
    pub fn untraced(self) -> Self {
        Self {
            is_traced: false,
            ..self
        }
    }

    /// Lets engines tick at multiples of `beat` only, on `threads` threads: large swarms take less time so. What happens
    /// depends on the beat, and not on the threads.
    #[must_use]
    pub fn beat(self, beat: Duration, threads: usize) -> Self {
        Self { beat, threads, ..self }
    }

    /// Calls `watch` some two hundred times on the way, and at the end.
    #[must_use]
    pub fn watch(self, watch: impl Fn(&Look) + 'static) -> Self {
        let watch = Rc::new(watch);
        Self { watch, ..self }
    }

    /// The least time in which all leechers that are there from the start can have everything, whatever anybody does:
    /// the largest of what the seeds need to send one copy, the slowest leecher to receive it, and all lines together
    /// to send a copy for each.
    #[must_use]
    pub fn ideal(&self) -> Duration {
        let len = self.torrent.len as f64;
        let sum = |groups: &[Group]| -> f64 {
            let up = groups.iter().map(|group| group.count as f64 * group.line.up as f64);
            up.sum()
        };
        let (seeds, all) = (sum(&self.seeds), sum(&self.seeds) + sum(&self.leeches));
        let count: usize = self.leeches.iter().map(|group| group.count).sum();
        let slowest = self.leeches.iter().map(|group| group.line.down).min();
        let seconds = [
            len / seeds,
            slowest.map_or(0.0, |down| len / down as f64),
            count as f64 * len / all,
        ];
        let longest = seconds.into_iter().filter(|s| s.is_finite()).fold(0.0, f64::max);
        Duration::from_secs_f64(longest)
    }

    /// Lets it happen.
    #[must_use]
    pub fn run(&self) -> Outcome {
        running::run(self)
    }

    pub(super) fn limit(&self) -> Duration {
        self.ideal().mul_f64(self.patience) + self.allowance
    }
}

/// The address of the nth host.
pub(super) fn address_of(number: usize) -> IpAddr {
    let number = number as u32 + 1;
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number).into()
}
