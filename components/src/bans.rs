//! Peers that sent corrupt data.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::time::Timestamp;

/// What a ban is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Address(SocketAddr),
    Id(PeerId),
}

/// Bans, each for a time.
///
/// A ban is on the addresses that the peer was seen at and on its id, not on its whole IP address: many peers may
/// share one. An IP address is refused as a whole only after several different peers of it were banned.
#[derive(Resource, Debug, Default)]
pub struct Bans {
    until: BTreeMap<Key, Timestamp>,
    offenders: BTreeMap<IpAddr, usize>,
    /// In the order of their end, since all last equally long.
    order: VecDeque<(Timestamp, IpAddr, Vec<Key>)>,
}

impl Bans {
    /// Bans the peer at `ip`, with the addresses and the id known of it, for `duration`; the oldest of more than
    /// `max` bans ends early.
    pub fn ban(
        &mut self,
        now: Timestamp,
        duration: Duration,
        max: usize,
        ip: IpAddr,
        addresses: impl IntoIterator<Item = SocketAddr>,
        id: Option<PeerId>,
    ) {
        self.expire(now);
        while self.order.len() >= max.max(1) {
            self.end_oldest();
        }
        let keys: Vec<Key> = addresses.into_iter().map(Key::Address).chain(id.map(Key::Id)).collect();
        self.until.extend(keys.iter().map(|key| (*key, now + duration)));
        *self.offenders.entry(ip).or_default() += 1;
        self.order.push_back((now + duration, ip, keys));
    }

    /// Whether `address` is banned: by itself, or because `bans_per_ip` peers of its IP address are.
    #[must_use]
    pub fn has_address(&self, now: Timestamp, address: SocketAddr, bans_per_ip: usize) -> bool {
        self.has(now, Key::Address(address)) || self.offenders.get(&address.ip()).is_some_and(|n| *n >= bans_per_ip)
    }

    /// Whether a peer id is banned.
    #[must_use]
    pub fn has_id(&self, now: Timestamp, id: PeerId) -> bool {
        self.has(now, Key::Id(id))
    }

    /// Ends bans whose time is over.
    pub fn expire(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            self.end_oldest();
        }
    }

    fn has(&self, now: Timestamp, key: Key) -> bool {
        self.until.get(&key).is_some_and(|until| *until > now)
    }

    fn end_oldest(&mut self) {
        let Some((until, ip, keys)) = self.order.pop_front() else {
            return;
        };
        for key in keys {
            // A newer ban on the same key goes on.
            if self.until.get(&key) == Some(&until) {
                self.until.remove(&key);
            }
        }
        if let Some(count) = self.offenders.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                self.offenders.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn ban(bans: &mut Bans, now: Timestamp, port: u16, max: usize) {
        let id = Some(PeerId([port as u8; 20]));
        bans.ban(now, HOUR, max, address(port).ip(), [address(port)], id);
    }

    #[test]
    fn a_ban_is_on_the_peer_and_ends() {
        let mut bans = Bans::default();
        ban(&mut bans, at(0), 1, 10);
        assert!(bans.has_address(at(1), address(1), 3) && bans.has_id(at(1), PeerId([1; 20])));
        assert!(
            !bans.has_address(at(1), address(2), 3),
            "a neighbour behind the same gateway"
        );
        assert!(!bans.has_address(at(3600), address(1), 3));
        ban(&mut bans, at(1800), 1, 10);
        bans.expire(at(3600));
        assert!(bans.has_address(at(3600), address(1), 3), "the newer ban goes on");
    }

    #[test]
    fn many_offenders_ban_their_ip() {
        let mut bans = Bans::default();
        (1..=3).for_each(|port| ban(&mut bans, at(0), port, 10));
        assert!(bans.has_address(at(1), address(99), 3) && !bans.has_address(at(1), address(99), 4));
        bans.expire(at(3600));
        assert!(!bans.has_address(at(3600), address(99), 1));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut bans = Bans::default();
        (1..=20).for_each(|port| ban(&mut bans, at(0), port, 5));
        assert!(!bans.has_address(at(1), address(15), 99) && bans.has_address(at(1), address(16), 99));
    }
}
