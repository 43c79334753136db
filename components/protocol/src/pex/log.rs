//! The peers that a torrent is connected to, in the order of their connections, and the part that each receiver knows.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use super::MAX_PEERS;

/// Maximum number of disconnected peers that are remembered. A receiver that is further behind does not learn of the
/// older disconnects.
const MAX_DROPPED: usize = 500;

/// The connected peers that may be named to others, with keys of type `K`, and those that disconnected recently.
///
/// Reading takes time in proportion to the changes since the receiver's previous message.
///
/// ```
/// use ecs_torrent_protocol::pex::{PexCursor, PexLog};
///
/// let [one, two] = [1, 2].map(|last| ([192, 0, 2, last], 6881).into());
/// let mut log = PexLog::default();
/// let mut cursor = PexCursor::default();
/// log.add(one, "one");
/// log.add(two, "two");
/// log.remove(one, "one");
/// let changes = log.changes(&mut cursor, |_, _| true);
/// assert_eq!((changes.added, changes.dropped), (vec![("two", two)], vec![]));
/// log.remove(two, "two");
/// assert_eq!(log.changes(&mut cursor, |_, _| true).dropped, [two]);
/// assert!(log.changes(&mut cursor, |_, _| true).is_empty());
/// ```
#[derive(Debug, Clone)]
pub struct PexLog<K> {
    /// Number of the latest change.
    last: u64,
    listed: BTreeMap<SocketAddr, u64>,
    by_change: BTreeMap<u64, Entry<K>>,
    dropped: VecDeque<Dropped>,
}

#[derive(Debug, Clone, Copy)]
struct Entry<K> {
    key: K,
    address: SocketAddr,
    /// The previous connection to the same address, if it is remembered.
    previous: Option<Dropped>,
}

/// A connection that has ended, with the numbers of the changes that began and ended it.
#[derive(Debug, Clone, Copy)]
struct Dropped {
    address: SocketAddr,
    began: u64,
    ended: u64,
}

/// The changes that a receiver knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PexCursor {
    added: u64,
    dropped: u64,
}

/// Changes that a receiver does not know yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PexChanges<K> {
    /// Peers that have connected, with their keys.
    pub added: Vec<(K, SocketAddr)>,
    /// Peers that have disconnected.
    pub dropped: Vec<SocketAddr>,
}

impl<K> PexChanges<K> {
    /// Whether there are no changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }
}

impl<K> Default for PexLog<K> {
    fn default() -> Self {
        Self {
            last: 0,
            listed: BTreeMap::new(),
            by_change: BTreeMap::new(),
            dropped: VecDeque::new(),
        }
    }
}

impl<K: Copy + PartialEq> PexLog<K> {
    /// Lists a connected peer; false if the address is listed already.
    pub fn add(&mut self, address: SocketAddr, key: K) -> bool {
        if self.listed.contains_key(&address) {
            return false;
        }
        self.last += 1;
        let previous = self.dropped.iter().rev().find(|dropped| dropped.address == address);
        let entry = Entry {
            key,
            address,
            previous: previous.copied(),
        };
        self.listed.insert(address, self.last);
        self.by_change.insert(self.last, entry);
        true
    }

    /// Removes a peer that has disconnected; false if the address is not listed under this key.
    pub fn remove(&mut self, address: SocketAddr, key: K) -> bool {
        let Some(&began) = self.listed.get(&address) else {
            return false;
        };
        if self.by_change.get(&began).is_none_or(|entry| entry.key != key) {
            return false;
        }
        self.listed.remove(&address);
        self.by_change.remove(&began);
        self.last += 1;
        if self.dropped.len() >= MAX_DROPPED {
            self.dropped.pop_front();
        }
        self.dropped.push_back(Dropped {
            address,
            began,
            ended: self.last,
        });
        true
    }

    /// Returns the next changes for a receiver, at most 50 of each kind, and records that it knows them. `may_name`
    /// says whether the receiver may learn of a peer.
    pub fn changes(&self, cursor: &mut PexCursor, may_name: impl Fn(K, SocketAddr) -> bool) -> PexChanges<K> {
        let known = *cursor;
        let mut changes = PexChanges {
            added: Vec::new(),
            dropped: Vec::new(),
        };
        for (&began, entry) in self.by_change.range(known.added + 1..) {
            if changes.added.len() == MAX_PEERS {
                break;
            }
            cursor.added = began;
            // A receiver that does not know of the end of the previous connection still knows the peer.
            let is_known = |previous: Dropped| previous.began <= known.added && previous.ended > known.dropped;
            if !entry.previous.is_some_and(is_known) && may_name(entry.key, entry.address) {
                changes.added.push((entry.key, entry.address));
            }
        }
        let first = self.dropped.partition_point(|dropped| dropped.ended <= known.dropped);
        for dropped in self.dropped.range(first..) {
            if changes.dropped.len() == MAX_PEERS {
                break;
            }
            cursor.dropped = dropped.ended;
            if dropped.began <= known.added && !self.listed.contains_key(&dropped.address) {
                changes.dropped.push(dropped.address);
            }
        }
        changes
    }

    /// Number of listed peers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    /// Whether no peer is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 6881).into()
    }

    fn read(log: &PexLog<u8>, cursor: &mut PexCursor) -> (Vec<u8>, Vec<SocketAddr>) {
        let changes = log.changes(cursor, |_, _| true);
        (changes.added.into_iter().map(|(key, _)| key).collect(), changes.dropped)
    }

    #[test]
    fn a_receiver_gets_differences_only() {
        let mut log = PexLog::default();
        let mut cursor = PexCursor::default();
        assert!(log.add(address(1), 1) && log.add(address(2), 2) && !log.add(address(2), 3));
        assert_eq!(read(&log, &mut cursor), (vec![1, 2], vec![]));
        assert_eq!(read(&log, &mut cursor), (vec![], vec![]));
        assert!(!log.remove(address(2), 3) && log.remove(address(2), 2) && !log.remove(address(2), 2));
        assert!(log.add(address(3), 3) && log.remove(address(3), 3));
        assert_eq!(read(&log, &mut cursor), (vec![], vec![address(2)]));
        log.remove(address(1), 1);
        log.add(address(1), 9);
        assert_eq!(read(&log, &mut cursor), (vec![], vec![]), "it is connected again");
        log.remove(address(1), 9);
        assert_eq!(read(&log, &mut cursor), (vec![], vec![address(1)]));
        log.add(address(1), 1);
        assert_eq!(read(&log, &mut cursor), (vec![1], vec![]));
        assert_eq!(read(&log, &mut PexCursor::default()), (vec![1], vec![]));
    }

    #[test]
    fn long_lists_take_several_messages() {
        let mut log = PexLog::default();
        for last in 0..120 {
            log.add(address(last), last);
        }
        let mut cursor = PexCursor::default();
        let mut read_next = |log: &PexLog<u8>| {
            let changes = log.changes(&mut cursor, |key, _| key != 7);
            (changes.added.len(), changes.dropped.len())
        };
        assert_eq!([(); 4].map(|()| read_next(&log)), [(50, 0), (50, 0), (19, 0), (0, 0)]);
        for last in 0..120 {
            log.remove(address(last), last);
        }
        assert!(log.is_empty());
        assert_eq!([(); 4].map(|()| read_next(&log)), [(0, 50), (0, 50), (0, 20), (0, 0)]);
    }

    #[test]
    fn few_disconnected_peers_are_remembered() {
        let mut log = PexLog::default();
        for number in 0..2000u16 {
            let [high, low] = number.to_be_bytes();
            let address = ([10, 0, high, low], 1).into();
            log.add(address, number);
            log.remove(address, number);
        }
        assert_eq!((log.len(), log.dropped.len()), (0, MAX_DROPPED));
    }

    proptest! {
        /// After its last message, a receiver knows exactly who is connected.
        #[test]
        fn a_receiver_learns_who_is_connected(steps in vec((0u8..6, 0u8..70), 0..400)) {
            let mut log = PexLog::default();
            let mut cursor = PexCursor::default();
            let mut known = BTreeSet::new();
            let mut tell = |log: &PexLog<u8>| {
                let changes = log.changes(&mut cursor, |key, _| key > 0);
                for address in &changes.dropped {
                    known.remove(address);
                }
                known.extend(changes.added.iter().map(|(_, address)| *address));
                (changes.is_empty(), known.clone())
            };
            for (step, last) in steps {
                match step {
                    0..3 => drop(log.add(address(last), last)),
                    3..5 => drop(log.remove(address(last), last)),
                    _ => drop(tell(&log)),
                }
            }
            while !tell(&log).0 {}
            let listed: BTreeSet<_> = log.listed.keys().copied().filter(|listed| *listed != address(0)).collect();
            prop_assert_eq!(tell(&log).1, listed);
        }
    }
}
