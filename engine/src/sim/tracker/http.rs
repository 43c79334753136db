//! Announce and scrape over HTTP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::AnnounceEvent;
use percent_encoding::percent_decode_str;

use super::super::http::HttpReply;
use super::{Announced, SimTracker, Tracker, TrackerMode};

impl SimTracker {
    /// Answers a GET request for a path and query.
    pub(in super::super) fn get(&self, now: Timestamp, from: IpAddr, target: &str) -> HttpReply {
        let mut tracker = self.lock();
        let mode = tracker.mode(now);
        if mode == TrackerMode::Down {
            return HttpReply::Refuse;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = match path {
            "/announce" => tracker.announce_over_http(now, from, query),
            "/scrape" => Some(tracker.scrape_over_http(query)),
            _ => return HttpReply::new(404, "not found"),
        };
        let Some(body) = body else {
            return HttpReply::new(400, "bad request");
        };
        reply(mode, body)
    }
}

/// The HTTP reply of a tracker in this mode.
fn reply(mode: TrackerMode, body: Vec<u8>) -> HttpReply {
    let answer = |body: Vec<u8>, wait, cut_at| HttpReply::Answer {
        status: 200,
        body: body.into(),
        wait,
        cut_at,
    };
    match mode {
        TrackerMode::Silent => HttpReply::Silence,
        TrackerMode::Slow(wait) => answer(body, wait, None),
        TrackerMode::Status(status) => HttpReply::new(status, "<html>sorry</html>"),
        TrackerMode::Garbage => HttpReply::new(200, Bytes::from_static(b"\x00\xff8:interval")),
        TrackerMode::Failure(reason) => HttpReply::new(200, format!("d14:failure reason{}:{reason}e", reason.len())),
        TrackerMode::Truncated => {
            let half = body.len() / 2;
            answer(body, Duration::ZERO, Some(half))
        }
        TrackerMode::Down => HttpReply::Refuse,
        TrackerMode::Up | TrackerMode::WrongTransaction | TrackerMode::Peers(_) => answer(body, Duration::ZERO, None),
    }
}

impl Tracker {
    fn announce_over_http(&mut self, now: Timestamp, from: IpAddr, query: &str) -> Option<Vec<u8>> {
        let number = |key: &str| value(query, key).and_then(|value| value.parse::<u64>().ok());
        let announced = Announced {
            at: now,
            info_hash: info_hash(value(query, "info_hash")?)?,
            peer: SocketAddr::new(from, number("port")?.try_into().ok()?),
            event: match value(query, "event") {
                Some("started") => AnnounceEvent::Started,
                Some("completed") => AnnounceEvent::Completed,
                Some("stopped") => AnnounceEvent::Stopped,
                Some("paused") => AnnounceEvent::Paused,
                _ => AnnounceEvent::None,
            },
            left: number("left")?,
            downloaded: number("downloaded")?,
            uploaded: number("uploaded")?,
        };
        let peers = self.announce(announced, number("numwant").map(|count| count as usize));
        let counts = self.swarms.counts(announced.info_hash);
        let (v4, v6) = compact(&peers);
        let mut body = Vec::new();
        body.extend(format!("d8:completei{}e10:incompletei{}e", counts.seeders, counts.leechers).bytes());
        body.extend(format!("8:intervali{}e", self.options.interval.as_secs()).bytes());
        if let Some(least) = self.options.min_interval {
            body.extend(format!("12:min intervali{}e", least.as_secs()).bytes());
        }
        body.extend(format!("5:peers{}:", v4.len()).bytes());
        body.extend(v4);
        if !v6.is_empty() {
            body.extend(format!("6:peers6{}:", v6.len()).bytes());
            body.extend(v6);
        }
        body.push(b'e');
        Some(body)
    }

    fn scrape_over_http(&self, query: &str) -> Vec<u8> {
        let values = query.split('&').filter_map(|pair| pair.strip_prefix("info_hash="));
        let mut hashes: Vec<InfoHash> = values.filter_map(info_hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let mut body = b"d5:filesd".to_vec();
        for hash in hashes {
            let counts = self.swarms.counts(hash);
            body.extend(b"20:");
            body.extend(hash.0);
            let (seeders, completed, leechers) = (counts.seeders, counts.completed, counts.leechers);
            body.extend(format!("d8:completei{seeders}e10:downloadedi{completed}e10:incompletei{leechers}ee").bytes());
        }
        body.extend(b"ee");
        body
    }
}

fn value<'q>(query: &'q str, key: &str) -> Option<&'q str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .into_iter()
        .find(|(found, _)| *found == key)
        .map(|(_, value)| value)
}

fn info_hash(text: &str) -> Option<InfoHash> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    bytes.try_into().ok().map(InfoHash)
}

/// Addresses in the compact forms of BEP 23 and BEP 7.
pub(super) fn compact(peers: &[SocketAddr]) -> (Vec<u8>, Vec<u8>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for peer in peers {
        let list = match peer.ip() {
            IpAddr::V4(ip) => {
                v4.extend(ip.octets());
                &mut v4
            }
            IpAddr::V6(ip) => {
                v6.extend(ip.octets());
                &mut v6
            }
        };
        list.extend(peer.port().to_be_bytes());
    }
    (v4, v6)
}
