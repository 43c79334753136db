//! Scenarios: the nodes of a swarm, and the events that happen to them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bevy_app::Plugins;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::sim::{Access, DiskSpeed, NewContent, NewNode, Path, TrackerMode, TrackerOptions};

use super::hostile::{Hostility, NodeHostility};

/// A node of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The nth seed, which has all pieces from the start, counted from 0.
    Seed(usize),
    /// The nth leecher, which has no pieces at the start.
    Leech(usize),
    /// The nth bystander: an engine without the scenario's torrent.
    Bystander(usize),
    /// The nth hostile peer, which is not one of our engines.
    Hostile(usize),
    /// The nth hostile node of the DHT, which is not one of our engines.
    HostileNode(usize),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(number) => write!(f, "seed {number}"),
            Self::Leech(number) => write!(f, "leech {number}"),
            Self::Bystander(number) => write!(f, "bystander {number}"),
            Self::Hostile(number) => write!(f, "hostile {number}"),
            Self::HostileNode(number) => write!(f, "hostile node {number}"),
        }
    }
}

/// A node's link, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Capacity of the uplink.
    pub up: u64,
    /// Capacity of the downlink.
    pub down: u64,
}

impl Link {
    /// Creates a link with equal capacity in both directions.
    #[must_use]
    pub const fn symmetric(bytes_per_s: u64) -> Self {
        Self {
            up: bytes_per_s,
            down: bytes_per_s,
        }
    }

    /// Creates a link with different capacities.
    #[must_use]
    pub const fn asymmetric(up: u64, down: u64) -> Self {
        Self { up, down }
    }

    pub(super) fn access(self) -> Access {
        Access::asymmetric(self.up, self.down)
    }
}

/// An event that happens to nodes, or an action of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// The process is killed.
    Killed(Who),
    /// The machine loses power: no peer is notified, and data that was not synced may be lost or torn.
    PowerFails(Who),
    /// A node that is down starts again and resumes its torrents; a late node starts for the first time.
    Starts(Who),
    /// The node stops and serializes everything, and is down afterward.
    Stops(Who),
    /// The node pauses all of its torrents.
    Pauses(Who),
    /// The node starts all paused torrents.
    Unpauses(Who),
    /// The node checks all data of its torrent again.
    Rechecks(Who),
    /// The node moves the files of its torrent to the folder of this number; 0 is the first one.
    MovesFiles(Who, usize),
    /// The node gives the files of its torrent the names of this number; 0 stands for the first ones.
    RenamesFiles(Who, usize),
    /// The machine sleeps, including its clock, and wakes up after the given time.
    Sleeps(Who, Duration),
    /// The clock jumps forward.
    ClockJumps(Who, Duration),
    /// No connection is possible between the two groups.
    Partition(Vec<Who>, Vec<Who>),
    /// All partitions end.
    Heals,
    /// All connections between two nodes are reset.
    Reset(Who, Who),
    /// All connections between two nodes vanish without notice to either side.
    Sever(Who, Who),
    /// The node's address changes, which ends all of its connections.
    Moves(Who),
    /// The node stops reading; received data stays in the sockets.
    StopsReading(Who),
    /// The node reads again.
    ReadsAgain(Who),
    /// The disk has no free space left.
    DiskFills(Who),
    /// The disk has free space again.
    DiskHasRoom(Who),
    /// Reads, writes and syncs fail for the given time.
    DiskFails(Who, Duration),
    /// The given number of syncs fail. Data written before them never reaches stable storage, although it can be read.
    SyncsFail(Who, u32),
    /// The disk becomes slower by the given factor.
    DiskSlows(Who, f64),
    /// The capacity of the link changes.
    LinkIs(Who, Link),
    /// The behavior of the tracker changes.
    Tracker(TrackerMode),
}

/// The condition for an act.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// At this time after the start.
    At(Duration),
    /// When a node has sent this multiple of the torrent's size.
    HasSent(Who, f64),
    /// When a node has this part of the torrent, from 0 to 1.
    Has(Who, f64),
}

/// Nodes of one kind.
#[derive(Clone)]
pub(super) struct Group {
    pub(super) count: usize,
    pub(super) link: Link,
    /// The nodes are down until an [`Act::Starts`].
    pub(super) is_late: bool,
}

/// A swarm and the events that happen to it. Each function adds to it; [`Scenario::run`] runs it.
#[derive(Clone)]
pub struct Scenario {
    pub(super) name: String,
    pub(super) seed: u64,
    pub(super) torrent: NewContent,
    pub(super) seeds: Vec<Group>,
    pub(super) leeches: Vec<Group>,
    pub(super) bystanders: Vec<Group>,
    pub(super) hostiles: Vec<(Hostility, Link)>,
    pub(super) hostile_nodes: Vec<NodeHostility>,
    /// Number of public torrents that the seeds have and the leechers want, in addition to the scenario's.
    pub(super) companions: usize,
    pub(super) idle_torrents: usize,
    pub(super) acts: Vec<(When, Act)>,
    pub(super) settings: Settings,
    pub(super) path: Path,
    pub(super) disk: DiskSpeed,
    pub(super) tracker: TrackerOptions,
    pub(super) is_trackerless: bool,
    pub(super) introducer: Option<Who>,
    pub(super) is_local: bool,
    /// Nodes by which engines enter the DHT; the DHT is on if there are any.
    pub(super) bootstrap: Vec<Who>,
    /// Bystanders add a link that contains the torrent's info-hash alone.
    pub(super) has_outsiders: bool,
    pub(super) has_links: bool,
    pub(super) patience: f64,
    pub(super) allowance: Duration,
    pub(super) may_fail: bool,
    /// Adds the caller's options to a node.
    pub(super) extend: Rc<dyn Fn(NewNode) -> NewNode>,
    pub(super) is_traced: bool,
    pub(super) tick_quantum: Duration,
    pub(super) threads: usize,
    pub(super) watch: Rc<dyn Fn(&Look)>,
}

/// Progress of a scenario.
#[derive(Debug)]
pub struct Look<'s> {
    /// Virtual time since the start.
    pub at: Duration,
    /// The part that each leecher has, from 0 to 1.
    pub parts: &'s BTreeMap<Who, f64>,
    /// Events since the previous call.
    pub events: &'s [(Duration, String)],
}

/// The default settings, with the DHT off: a scenario turns it on if its engines are to find each other by it.
fn without_dht() -> Settings {
    let mut settings = Settings::default();
    settings.dht.enabled = false;
    settings
}

impl Scenario {
    /// Creates a scenario with a torrent of 1 MiB in pieces of 64 KiB, a tracker, a latency of 20 ms with a jitter of 2
    /// ms between any two nodes, and only the engine's own plugins.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            seed: 0,
            torrent: NewContent::default(),
            seeds: Vec::new(),
            leeches: Vec::new(),
            bystanders: Vec::new(),
            hostiles: Vec::new(),
            hostile_nodes: Vec::new(),
            companions: 0,
            idle_torrents: 0,
            acts: Vec::new(),
            settings: without_dht(),
            path: Path {
                jitter: Duration::from_millis(2),
                ..Path::new(Duration::from_millis(20))
            },
            disk: DiskSpeed::default(),
            tracker: TrackerOptions::default(),
            is_trackerless: false,
            introducer: None,
            is_local: false,
            bootstrap: Vec::new(),
            has_outsiders: false,
            has_links: false,
            patience: 2.0,
            allowance: Duration::from_secs(20),
            may_fail: false,
            extend: Rc::new(|node| node),
            is_traced: true,
            tick_quantum: Duration::ZERO,
            threads: 1,
            watch: Rc::new(|_| ()),
        }
    }

    /// Sets the seed of all random decisions.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the torrent. Its trackers are replaced by the scenario's.
    #[must_use]
    pub fn torrent(self, torrent: NewContent) -> Self {
        Self { torrent, ..self }
    }

    /// Adds seeds, which have all pieces.
    #[must_use]
    pub fn seeds(mut self, count: usize, link: Link) -> Self {
        self.seeds.push(Group {
            count,
            link,
            is_late: false,
        });
        self
    }

    /// Adds leechers, which have no pieces and want all.
    #[must_use]
    pub fn leeches(mut self, count: usize, link: Link) -> Self {
        self.leeches.push(Group {
            count,
            link,
            is_late: false,
        });
        self
    }

    /// Adds leechers that start only at an [`Act::Starts`].
    #[must_use]
    pub fn late_leeches(mut self, count: usize, link: Link) -> Self {
        self.leeches.push(Group {
            count,
            link,
            is_late: true,
        });
        self
    }

    /// Adds hostile peers of the given kind.
    #[must_use]
    pub fn hostiles(mut self, count: usize, hostility: Hostility, link: Link) -> Self {
        self.hostiles.extend(std::iter::repeat_n((hostility, link), count));
        self
    }

    /// Adds engines without the torrent, which are nodes of the DHT if it is on.
    #[must_use]
    pub fn bystanders(mut self, count: usize, link: Link) -> Self {
        self.bystanders.push(Group {
            count,
            link,
            is_late: false,
        });
        self
    }

    /// Lets the bystanders add a magnet link that contains the torrent's info-hash and nothing else. They must not
    /// learn the metadata of a private torrent.
    #[must_use]
    pub fn by_outsiders(self) -> Self {
        Self {
            has_outsiders: true,
            ..self
        }
    }

    /// Adds hostile nodes of the DHT of the given kind.
    #[must_use]
    pub fn hostile_nodes(mut self, count: usize, hostility: NodeHostility) -> Self {
        self.hostile_nodes.extend(std::iter::repeat_n(hostility, count));
        self
    }

    /// Adds different public torrents without trackers, which the seeds have and the leechers add by magnet links. The
    /// scenario ends when the leechers have them, too.
    #[must_use]
    pub fn beside(self, companions: usize) -> Self {
        Self { companions, ..self }
    }

    /// Adds the given number of different complete torrents of one piece on the first seed.
    #[must_use]
    pub fn idle_torrents(self, count: usize) -> Self {
        Self {
            idle_torrents: count,
            ..self
        }
    }

    /// Adds an act at the given time.
    #[must_use]
    pub fn at(self, time: Duration, act: Act) -> Self {
        self.when(When::At(time), act)
    }

    /// Adds an act that is performed once, when the condition holds.
    #[must_use]
    pub fn when(mut self, when: When, act: Act) -> Self {
        self.acts.push((when, act));
        self
    }

    /// Sets the settings of every engine.
    #[must_use]
    pub fn settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// Sets the network path between any two nodes.
    #[must_use]
    pub fn path(self, path: Path) -> Self {
        Self { path, ..self }
    }

    /// Sets the disk speed of every node.
    #[must_use]
    pub fn disk(self, disk: DiskSpeed) -> Self {
        Self { disk, ..self }
    }

    /// Sets the options of the tracker.
    #[must_use]
    pub fn tracker(self, tracker: TrackerOptions) -> Self {
        Self { tracker, ..self }
    }

    /// Gives the torrent no tracker: every node knows only the address of `introducer`, which a user names.
    #[must_use]
    pub fn introduced_by(self, introducer: Who) -> Self {
        Self {
            is_trackerless: true,
            introducer: Some(introducer),
            ..self
        }
    }

    /// Gives the torrent no tracker, and puts all nodes into one local network, in which they reach each other by
    /// multicast.
    #[must_use]
    pub fn in_a_local_network(self) -> Self {
        self.without_tracker().in_reach_of_multicast()
    }

    /// Puts all nodes into one local network, in which they reach each other by multicast.
    #[must_use]
    pub fn in_reach_of_multicast(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// Gives the torrent no tracker.
    #[must_use]
    pub fn without_tracker(self) -> Self {
        Self {
            is_trackerless: true,
            ..self
        }
    }

    /// Turns the DHT on. Every engine enters it by the given nodes, at the addresses with which they start.
    #[must_use]
    pub fn with_dht(self, bootstrap: impl IntoIterator<Item = Who>) -> Self {
        Self {
            bootstrap: bootstrap.into_iter().collect(),
            ..self
        }
    }

    /// Lets the leechers add magnet links instead of torrent files. The links contain the trackers and the introducer
    /// (`x.pe`).
    #[must_use]
    pub fn by_magnet_links(self) -> Self {
        Self {
            has_links: true,
            ..self
        }
    }

    /// Sets how long leechers may take: `patience` times the ideal time, plus `allowance` for the scenario's events.
    /// Default: twice the ideal time plus 20 s.
    #[must_use]
    pub fn within(self, patience: f64, allowance: Duration) -> Self {
        Self {
            patience,
            allowance,
            ..self
        }
    }

    /// Accepts that leechers do not finish, because no complete copy stays within reach.
    #[must_use]
    pub fn may_fail(self) -> Self {
        Self { may_fail: true, ..self }
    }

    /// Adds plugins to every engine, after the engine's own.
    #[must_use]
    pub fn plugins<M>(mut self, plugins: impl Plugins<M> + Clone + 'static) -> Self {
        let earlier = self.extend;
        self.extend = Rc::new(move |node| earlier(node).plugins(plugins.clone()));
        self
    }

    /// Disables the trace, for measurements.
    #[must_use]
    pub fn untraced(self) -> Self {
        Self {
            is_traced: false,
            ..self
        }
    }

    /// Lets engines tick only at multiples of `tick_quantum`, on `threads` threads; large swarms run faster that way.
    /// The result depends on the quantum, but not on the number of threads.
    #[must_use]
    pub fn tick_quantum(self, tick_quantum: Duration, threads: usize) -> Self {
        Self {
            tick_quantum,
            threads,
            ..self
        }
    }

    /// Calls `watch` about two hundred times during the run, and at the end.
    #[must_use]
    pub fn watch(self, watch: impl Fn(&Look) + 'static) -> Self {
        let watch = Rc::new(watch);
        Self { watch, ..self }
    }

    /// Returns the least time in which all leechers that are up from the start can finish in any case: the longest of
    /// the times for the seeds to send one copy, for the slowest leecher to receive it, and for all links together to
    /// send a copy to each leecher.
    #[must_use]
    pub fn ideal(&self) -> Duration {
        let len = self.torrent.len as f64;
        let sum = |groups: &[Group]| -> f64 {
            let up = groups.iter().map(|group| group.count as f64 * group.link.up as f64);
            up.sum()
        };
        let (seeds, all) = (sum(&self.seeds), sum(&self.seeds) + sum(&self.leeches));
        let count: usize = self.leeches.iter().map(|group| group.count).sum();
        let slowest = self.leeches.iter().map(|group| group.link.down).min();
        let seconds = [
            len / seeds,
            slowest.map_or(0.0, |down| len / down as f64),
            count as f64 * len / all,
        ];
        let longest = seconds.into_iter().filter(|s| s.is_finite()).fold(0.0, f64::max);
        Duration::from_secs_f64(longest)
    }

    /// Returns the address with which a node starts.
    pub(super) fn first_address_of(&self, who: Who) -> SocketAddr {
        let count = |groups: &[Group]| groups.iter().map(|group| group.count).sum::<usize>();
        let leech = count(&self.seeds);
        let bystander = leech + count(&self.leeches);
        let hostile = bystander + count(&self.bystanders);
        let position = match who {
            Who::Seed(number) => number,
            Who::Leech(number) => leech + number,
            Who::Bystander(number) => bystander + number,
            Who::Hostile(number) => hostile + number,
            Who::HostileNode(number) => hostile + self.hostiles.len() + number,
        };
        SocketAddr::new(address_of(position), 6881)
    }

    /// Returns the settings of every engine.
    pub(super) fn engine_settings(&self) -> Settings {
        let mut settings = self.settings.clone();
        if !self.bootstrap.is_empty() {
            settings.dht.enabled = true;
            let hosts = self.bootstrap.iter().map(|who| self.first_address_of(*who).to_string());
            settings.dht.bootstrap = hosts.collect();
        }
        settings
    }

    /// Returns the shortest time in which all leechers can finish if peers forward complete pieces only. The seeds have
    /// sent the last piece when they have sent one copy, at the earliest. From then on, the number of nodes with that
    /// piece doubles in the time that the fastest link needs for a piece.
    ///
    /// With equal links and M pieces for N leechers, these are M + ⌊log₂ N⌋ piece times, which an optimal schedule
    /// reaches: Mundinger, Weber, Weiss, "Optimal scheduling of peer-to-peer file dissemination", Journal of
    /// Scheduling 11 (2008).
    #[must_use]
    pub fn store_and_forward(&self) -> Duration {
        let len = self.torrent.len as f64;
        let piece = len.min(f64::from(self.torrent.piece_length));
        let up = |groups: &[Group]| groups.iter().map(|group| group.link.up).max().unwrap_or(0) as f64;
        let seeds: f64 = self
            .seeds
            .iter()
            .map(|group| group.count as f64 * group.link.up as f64)
            .sum();
        let count: usize = self.leeches.iter().map(|group| group.count).sum();
        let hops = f64::from(count.max(1).ilog2());
        let seconds = len / seeds + hops * piece / up(&self.seeds).max(up(&self.leeches));
        let spread = if seconds.is_finite() { seconds } else { 0.0 };
        self.ideal().max(Duration::from_secs_f64(spread))
    }

    pub(super) fn limit(&self) -> Duration {
        self.ideal().mul_f64(self.patience) + self.allowance
    }
}

/// Returns the address of the nth host.
pub(super) fn address_of(number: usize) -> IpAddr {
    let number = number as u32 + 1;
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number).into()
}
