//! The swarms of a tracker.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ecs_torrent_components::random::Random;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::tracker::{AnnounceEvent, ScrapeCounts};

use super::Announced;

/// All swarms of a tracker.
#[derive(Default)]
pub(super) struct Swarms(BTreeMap<InfoHash, Swarm>);

#[derive(Default)]
struct Swarm {
    peers: BTreeMap<SocketAddr, Listed>,
    completed: u32,
}

struct Listed {
    left: u64,
    announced_at: Timestamp,
}

impl Swarms {
    pub(super) fn handle(&mut self, announced: &Announced) {
        let swarm = self.0.entry(announced.info_hash).or_default();
        if announced.event == AnnounceEvent::Stopped {
            swarm.peers.remove(&announced.peer);
            return;
        }
        swarm.completed += u32::from(announced.event == AnnounceEvent::Completed);
        let listed = Listed {
            left: announced.left,
            announced_at: announced.at,
        };
        swarm.peers.insert(announced.peer, listed);
    }

    /// Removes peers whose last announce is older than `expiry`.
    pub(super) fn expire(&mut self, torrent: InfoHash, now: Timestamp, expiry: Duration) {
        if let Some(swarm) = self.0.get_mut(&torrent) {
            swarm.peers.retain(|_, listed| now.since(listed.announced_at) <= expiry);
        }
    }

    pub(super) fn counts(&self, torrent: InfoHash) -> ScrapeCounts {
        let Some(swarm) = self.0.get(&torrent) else {
            return ScrapeCounts::default();
        };
        let seeders = swarm.peers.values().filter(|listed| listed.left == 0).count() as u32;
        ScrapeCounts {
            seeders,
            leechers: swarm.peers.len() as u32 - seeders,
            completed: swarm.completed,
        }
    }

    pub(super) fn peers(&self, torrent: InfoHash) -> Vec<(SocketAddr, u64)> {
        let peers = self.0.get(&torrent).into_iter().flat_map(|swarm| &swarm.peers);
        peers.map(|(address, listed)| (*address, listed.left)).collect()
    }

    /// At most `most` random peers of the address family of `asking`, except itself.
    pub(super) fn choose(
        &self,
        torrent: InfoHash,
        asking: SocketAddr,
        most: usize,
        random: &mut Random,
    ) -> Vec<SocketAddr> {
        let peers = self.0.get(&torrent).into_iter().flat_map(|swarm| swarm.peers.keys());
        let others = peers.filter(|peer| **peer != asking && peer.is_ipv4() == asking.is_ipv4());
        let mut chosen: Vec<SocketAddr> = others.copied().collect();
        random.shuffle(&mut chosen);
        chosen.truncate(most);
        chosen
    }
}
