//! Announce and scrape over UDP (BEP 15).

use std::net::SocketAddr;
use std::time::Duration;

use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::AnnounceEvent;

use super::http::compact;
use super::{Announced, SimTracker, Tracker, TrackerMode};

/// Protocol id at the start of a connect request.
const PROTOCOL_ID: u64 = 0x0417_2710_1980;

/// Lifetime of a connection id: BEP 15 lets clients use it for one minute, and trackers accept it for two.
const CONNECTION_TIME: Duration = Duration::from_secs(120);

/// Actions of packets.
mod action {
    pub(super) const CONNECT: u32 = 0;
    pub(super) const ANNOUNCE: u32 = 1;
    pub(super) const SCRAPE: u32 = 2;
    pub(super) const ERROR: u32 = 3;
}

impl SimTracker {
    /// Answers a packet; each answer has a delay.
    pub(in super::super) fn handle(&self, now: Timestamp, from: SocketAddr, packet: &[u8]) -> Vec<(Duration, Vec<u8>)> {
        let mut tracker = self.lock();
        let mode = tracker.mode(now);
        if mode == TrackerMode::Down {
            return Vec::new();
        }
        let Some((transaction, mut answer)) = tracker.answer(now, from, packet) else {
            return Vec::new();
        };
        let mut wait = Duration::ZERO;
        match mode {
            TrackerMode::Silent | TrackerMode::Down => return Vec::new(),
            TrackerMode::Slow(time) => wait = time,
            TrackerMode::Status(status) => answer = error(transaction, &format!("status {status}")),
            TrackerMode::Failure(reason) => answer = error(transaction, &reason),
            TrackerMode::Garbage => answer = vec![0xff; 7],
            TrackerMode::Truncated => answer.truncate(answer.len() / 2),
            TrackerMode::WrongTransaction => answer[7] ^= 0x55,
            TrackerMode::Up | TrackerMode::Peers(_) => {}
        }
        vec![(wait, answer)]
    }
}

impl Tracker {
    /// The answer to a packet and its transaction id; `None` if the packet is not a valid request.
    fn answer(&mut self, now: Timestamp, from: SocketAddr, packet: &[u8]) -> Option<(u32, Vec<u8>)> {
        let mut fields = Fields(packet);
        let connection = u64::from_be_bytes(fields.next()?);
        let action = u32::from_be_bytes(fields.next()?);
        let transaction = u32::from_be_bytes(fields.next()?);
        if action == action::CONNECT {
            if connection != PROTOCOL_ID {
                return None;
            }
            let number = u64::from_be_bytes(self.random.bytes());
            self.connections
                .retain(|_, (_, made)| now.since(*made) <= CONNECTION_TIME);
            self.connections.insert(number, (from, now));
            let mut answer = head(action::CONNECT, transaction);
            answer.extend(number.to_be_bytes());
            return Some((transaction, answer));
        }
        let is_known = |(owner, made): &(SocketAddr, Timestamp)| *owner == from && now.since(*made) <= CONNECTION_TIME;
        if !self.connections.get(&connection).is_some_and(is_known) {
            return Some((transaction, error(transaction, "connection ID mismatch")));
        }
        let answer = match action {
            action::ANNOUNCE => self.announce_over_udp(now, from, transaction, fields)?,
            action::SCRAPE => self.scrape_over_udp(transaction, fields.0),
            _ => error(transaction, "unknown action"),
        };
        Some((transaction, answer))
    }

    fn announce_over_udp(
        &mut self,
        now: Timestamp,
        from: SocketAddr,
        transaction: u32,
        mut fields: Fields<'_>,
    ) -> Option<Vec<u8>> {
        let info_hash = InfoHash(fields.next()?);
        let _peer_id: [u8; 20] = fields.next()?;
        let downloaded = u64::from_be_bytes(fields.next()?);
        let left = u64::from_be_bytes(fields.next()?);
        let uploaded = u64::from_be_bytes(fields.next()?);
        let event = match u32::from_be_bytes(fields.next()?) {
            1 => AnnounceEvent::Completed,
            2 => AnnounceEvent::Started,
            3 => AnnounceEvent::Stopped,
            _ => AnnounceEvent::None,
        };
        let _ip_and_key: [u8; 8] = fields.next()?;
        let num_want = i32::from_be_bytes(fields.next()?);
        let port = u16::from_be_bytes(fields.next()?);
        let announced = Announced {
            at: now,
            info_hash,
            peer: SocketAddr::new(from.ip(), port),
            event,
            left,
            downloaded,
            uploaded,
        };
        let mut peers = self.announce(announced, usize::try_from(num_want).ok());
        peers.retain(|peer| peer.is_ipv4() == from.is_ipv4());
        let counts = self.swarms.counts(info_hash);
        let mut answer = head(action::ANNOUNCE, transaction);
        for number in [self.options.interval.as_secs() as u32, counts.leechers, counts.seeders] {
            answer.extend(number.to_be_bytes());
        }
        let (v4, v6) = compact(&peers);
        answer.extend(v4);
        answer.extend(v6);
        Some(answer)
    }

    fn scrape_over_udp(&self, transaction: u32, hashes: &[u8]) -> Vec<u8> {
        let mut answer = head(action::SCRAPE, transaction);
        for hash in hashes.as_chunks::<20>().0 {
            let counts = self.swarms.counts(InfoHash(*hash));
            for number in [counts.seeders, counts.completed, counts.leechers] {
                answer.extend(number.to_be_bytes());
            }
        }
        answer
    }
}

/// Reader for the fields of a packet, from the front.
struct Fields<'p>(&'p [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

fn head(action: u32, transaction: u32) -> Vec<u8> {
    [action.to_be_bytes(), transaction.to_be_bytes()].concat()
}

fn error(transaction: u32, reason: &str) -> Vec<u8> {
    let mut answer = head(action::ERROR, transaction);
    answer.extend(reason.bytes());
    answer
}
