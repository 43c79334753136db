//! The table of measurements and goals.

use std::fmt;

/// Task of the measured client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Downloads from this many seeders.
    Leech { seeders: usize, shape: Shape },
    /// Uploads the whole torrent to each of this many leechers.
    Seed { leechers: usize },
    /// Hashes existing data.
    Check,
    /// Creates a torrent.
    Create,
    /// Resumes the sessions of this many complete torrents, then idles.
    Restart { torrents: u32 },
    /// Seeds to this many peers, which are idle at first and then all request blocks.
    Peers { count: usize },
    /// Runs ticks with idle torrents.
    Tick,
}

/// Piece length and number of files of a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub piece_length: u32,
    pub files: u32,
}

const MEDIUM: Shape = Shape {
    piece_length: 1 << 20,
    files: 1,
};

/// Kind of figure that a run yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// CPU seconds per GiB.
    Cpu,
    Wall,
    PeakMemory,
    /// CPU usage while idle, in percent of a core.
    Idle,
    /// 99th percentile of tick times, while peers are idle and while they request blocks (`BusyTick`).
    IdleTick,
    BusyTick,
    /// KiB per peer.
    PeerMemory,
    /// Time of a tick with 1, 1 000 and 100 000 torrents.
    Tick1,
    Tick1k,
    Tick100k,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU s/GiB",
            Self::Wall => "wall s",
            Self::PeakMemory => "peak MiB",
            Self::Idle => "idle %",
            Self::IdleTick => "idle tick p99 ms",
            Self::BusyTick => "busy tick p99 ms",
            Self::PeerMemory => "KiB/peer",
            Self::Tick1 => "us at 1",
            Self::Tick1k => "us at 1 000",
            Self::Tick100k => "us at 100 000",
        }
    }
}

/// Upper bound on a figure of ours.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// A multiple of another client's figure.
    Times(f64, &'static str),
    /// A multiple of another figure of ours.
    TimesOwn(f64, Metric),
    AtMost(f64),
}

#[derive(Debug, Clone, Copy)]
pub struct Goal {
    pub metric: Metric,
    pub bound: Bound,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = self.metric.name();
        match self.bound {
            Bound::Times(factor, client) => write!(f, "{metric} at most {factor} x {client}'s"),
            Bound::TimesOwn(factor, other) => write!(f, "{metric} at most {factor} x {}", other.name()),
            Bound::AtMost(most) => write!(f, "{metric} at most {most}"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub work: Work,
    pub goals: &'static [Goal],
}

const fn times(metric: Metric, factor: f64, client: &'static str) -> Goal {
    Goal {
        metric,
        bound: Bound::Times(factor, client),
    }
}

const fn at_most(metric: Metric, most: f64) -> Goal {
    Goal {
        metric,
        bound: Bound::AtMost(most),
    }
}

const LEECH_GOALS: &[Goal] = &[
    times(Metric::Cpu, 0.85, "libtorrent"),
    at_most(Metric::PeakMemory, 64.0),
];

pub const ROWS: &[Row] = &[
    Row {
        name: "leech-1-seeder",
        what: "download from one seeder, 1 MiB pieces",
        work: Work::Leech {
            seeders: 1,
            shape: MEDIUM,
        },
        goals: &[
            times(Metric::Cpu, 0.85, "libtorrent"),
            times(Metric::Cpu, 1.3, "lower-bound"),
            times(Metric::Wall, 0.75, "libtorrent"),
            at_most(Metric::PeakMemory, 64.0),
        ],
    },
    Row {
        name: "leech-8-seeders",
        what: "download from eight seeders",
        work: Work::Leech {
            seeders: 8,
            shape: MEDIUM,
        },
        goals: LEECH_GOALS,
    },
    Row {
        name: "leech-16-mib-pieces",
        what: "download, 16 MiB pieces",
        work: Work::Leech {
            seeders: 1,
            shape: Shape {
                piece_length: 16 << 20,
                files: 1,
            },
        },
        goals: LEECH_GOALS,
    },
    Row {
        name: "leech-16-kib-pieces",
        what: "download, 16 KiB pieces",
        work: Work::Leech {
            seeders: 1,
            shape: Shape {
                piece_length: 16 << 10,
                files: 1,
            },
        },
        goals: LEECH_GOALS,
    },
    Row {
        name: "leech-10000-files",
        what: "download, 10 000 files",
        work: Work::Leech {
            seeders: 1,
            shape: Shape {
                piece_length: 1 << 20,
                files: 10_000,
            },
        },
        goals: LEECH_GOALS,
    },
    Row {
        name: "seed-1-leecher",
        what: "upload to one leecher",
        work: Work::Seed { leechers: 1 },
        goals: &[times(Metric::Cpu, 0.45, "libtorrent")],
    },
    Row {
        name: "seed-8-leechers",
        what: "upload to eight leechers at once",
        work: Work::Seed { leechers: 8 },
        goals: &[times(Metric::Cpu, 0.45, "libtorrent")],
    },
    Row {
        name: "check",
        what: "hash twice the size on the disk",
        work: Work::Check,
        goals: &[
            times(Metric::Wall, 1.0, "libtorrent"),
            times(Metric::Cpu, 1.1, "lower-bound"),
        ],
    },
    Row {
        name: "create",
        what: "make a torrent of twice the size",
        work: Work::Create,
        goals: &[
            times(Metric::Wall, 1.0, "libtorrent"),
            times(Metric::Cpu, 1.1, "lower-bound"),
        ],
    },
    Row {
        name: "restart-10000",
        what: "start over 10 000 complete torrents",
        work: Work::Restart { torrents: 10_000 },
        goals: &[
            at_most(Metric::Wall, 0.6),
            at_most(Metric::PeakMemory, 60.0),
            at_most(Metric::Idle, 0.3),
        ],
    },
    Row {
        name: "restart-100000",
        what: "start over 100 000 complete torrents",
        work: Work::Restart { torrents: 100_000 },
        goals: &[
            at_most(Metric::Wall, 7.0),
            at_most(Metric::PeakMemory, 450.0),
            at_most(Metric::Idle, 1.0),
        ],
    },
    Row {
        name: "peers-2000",
        what: "2 000 connected peers on one torrent",
        work: Work::Peers { count: 2000 },
        goals: &[
            at_most(Metric::IdleTick, 5.0),
            at_most(Metric::BusyTick, 5.0),
            at_most(Metric::PeerMemory, 16.0),
        ],
    },
    Row {
        name: "tick",
        what: "an idle tick with 1, 1 000 and 100 000 torrents",
        work: Work::Tick,
        goals: &[Goal {
            metric: Metric::Tick100k,
            bound: Bound::TimesOwn(1.5, Metric::Tick1),
        }],
    },
];
