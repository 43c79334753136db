//! Text forms of acts, for timelines.

use std::fmt;

use super::scenario::{Act, Who};

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(who) => write!(f, "{who} is killed"),
            Self::PowerFails(who) => write!(f, "{who} loses its power"),
            Self::Starts(who) => write!(f, "{who} starts"),
            Self::Stops(who) => write!(f, "{who} stops its torrents"),
            Self::Pauses(who) => write!(f, "{who} pauses its torrents"),
            Self::Unpauses(who) => write!(f, "{who} starts its paused torrents"),
            Self::Rechecks(who) => write!(f, "{who} checks its data again"),
            Self::MovesFiles(who, folder) => write!(f, "{who} moves its files to folder {folder}"),
            Self::RenamesFiles(who, names) => write!(f, "{who} gives its files names {names}"),
            Self::Sleeps(who, time) => write!(f, "{who} sleeps for {time:.1?}"),
            Self::ClockJumps(who, by) => write!(f, "the clock of {who} jumps by {by:.1?}"),
            Self::Partition(some, others) => write!(f, "{} and {} are parted", Several(some), Several(others)),
            Self::Heals => f.write_str("all partitions end"),
            Self::Reset(a, b) => write!(f, "the connections of {a} and {b} are reset"),
            Self::Sever(a, b) => write!(f, "the connections of {a} and {b} vanish"),
            Self::Moves(who) => write!(f, "{who} gets another address"),
            Self::StopsReading(who) => write!(f, "{who} reads no more"),
            Self::ReadsAgain(who) => write!(f, "{who} reads again"),
            Self::DiskFills(who) => write!(f, "the disk of {who} is full"),
            Self::DiskHasRoom(who) => write!(f, "the disk of {who} has room"),
            Self::DiskFails(who, time) => write!(f, "the disk of {who} fails for {time:.1?}"),
            Self::SyncsFail(who, count) => write!(f, "the next {count} syncs of {who} fail"),
            Self::DiskSlows(who, factor) => write!(f, "the disk of {who} becomes {factor} times slower"),
            Self::LinkIs(who, link) => write!(f, "{who} sends at most {} B/s, and receives {}", link.up, link.down),
            Self::Tracker(mode) => write!(f, "the tracker: {mode:?}"),
        }
    }
}

/// A single node by its name, several by their number.
struct Several<'s>(&'s [Who]);

impl fmt::Display for Several<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "{one}"),
            all => write!(f, "{} nodes", all.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_are_described_in_words() {
        let act = Act::Partition(vec![Who::Seed(0)], vec![Who::Leech(1), Who::Leech(2)]);
        assert_eq!(act.to_string(), "seed 0 and 2 nodes are parted");
        assert_eq!(Act::PowerFails(Who::Leech(3)).to_string(), "leech 3 loses its power");
    }
}
