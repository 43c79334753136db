//! The places where peers of a torrent are searched for.

use std::net::SocketAddr;

use ecs_torrent::components::dht::{DhtNetwork, DhtStats};
use ecs_torrent::components::stats::TrackerStats;
use ecs_torrent::{Settings, Source, Torrents};

use super::output;

/// The methods by which peers of a torrent are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Ways {
    /// Nodes of the DHT that are known; `None` if the DHT is off.
    pub(super) dht_nodes: Option<usize>,
    /// Whether peers are searched for on the local network.
    pub(super) lsd: bool,
}

impl Ways {
    /// Returns the methods that the settings enable. No node of the DHT is known yet.
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            dht_nodes: settings.dht.enabled.then_some(0),
            lsd: settings.lsd.enabled,
        }
    }

    /// Updates the number of known nodes of the DHT.
    pub(super) async fn update(&mut self, torrents: &Torrents) {
        if self.dht_nodes.is_some()
            && let Ok(stats) = torrents.dht().stats().await
        {
            self.dht_nodes = Some(nodes(&stats));
        }
    }

    /// Returns a warning if only incoming peers can help: the source is a link without trackers and peers, and all
    /// other searches are disabled.
    pub(super) fn warning(self, source: &Source, peers: &[SocketAddr]) -> Option<String> {
        let Source::Magnet(magnet) = source else {
            return None;
        };
        let is_searched = self.dht_nodes.is_some() || self.lsd || !magnet.trackers.is_empty();
        let is_known = !peers.is_empty() || !magnet.peers.is_empty() || !magnet.peer_hosts.is_empty();
        (!is_searched && !is_known).then(|| {
            format!(
                "{}: no tracker, no peer in the link, DHT and LSD off: only incoming peers or --peer can help",
                output::printable(magnet.name.as_deref().unwrap_or(&magnet.hashes.primary().to_string()))
            )
        })
    }

    /// Describes the search for peers of a torrent with this number of trackers: `2 trackers, 120 DHT nodes, LSD`.
    pub(super) fn describe(self, trackers: usize) -> String {
        let dht = self.dht_nodes.map(|nodes| output::count(nodes, "DHT node"));
        let parts = [
            (trackers > 0).then(|| output::count(trackers, "tracker")),
            dht,
            self.lsd.then(|| "LSD".to_owned()),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        match parts.is_empty() {
            true => "no source".to_owned(),
            false => parts.join(", "),
        }
    }
}

/// The state of a tracker, as far as it explains why a torrent has no peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrackerAnswer<'a> {
    /// The status, as in statistics.
    pub(super) status: &'a str,
    /// Number of peers in the last answer.
    pub(super) peers: Option<u64>,
    pub(super) message: Option<&'a str>,
}

impl<'a> From<&'a TrackerStats> for TrackerAnswer<'a> {
    fn from(stats: &'a TrackerStats) -> Self {
        Self {
            status: stats.status,
            peers: stats.peers.map(u64::from),
            message: stats.message.as_deref(),
        }
    }
}

impl Ways {
    /// Explains why a torrent has no peers, by the last answers of all sources: `1 tracker answered with 0 peers, DHT
    /// off`. A private torrent has no other source than its trackers.
    pub(super) fn explain(self, is_private: bool, trackers: &[TrackerAnswer<'_>]) -> String {
        let with = |status: &[&str]| -> Vec<_> {
            let found = trackers.iter().filter(|tracker| status.contains(&tracker.status));
            found.collect()
        };
        let (working, failed) = (with(&["working"]), with(&["failed"]));
        let waiting = with(&["idle", "announcing"]);
        let mut parts = Vec::new();
        if trackers.is_empty() {
            parts.push("no tracker".to_owned());
        }
        if !working.is_empty() {
            let peers = working.iter().filter_map(|tracker| tracker.peers).sum::<u64>();
            let peers = output::count(usize::try_from(peers).unwrap_or(usize::MAX), "peer");
            parts.push(format!(
                "{} answered with {peers}",
                output::count(working.len(), "tracker")
            ));
        }
        if !waiting.is_empty() {
            let has = if waiting.len() == 1 { "has" } else { "have" };
            parts.push(format!(
                "{} {has} not answered yet",
                output::count(waiting.len(), "tracker")
            ));
        }
        if !failed.is_empty() {
            let why = failed.iter().find_map(|tracker| tracker.message);
            let why = why
                .map(|why| format!(": {}", output::printable(why)))
                .unwrap_or_default();
            parts.push(format!("{} failed{why}", output::count(failed.len(), "tracker")));
        }
        if is_private {
            return parts.join(", ");
        }
        let dht = self.dht_nodes.map(|nodes| output::count(nodes, "DHT node"));
        parts.push(dht.unwrap_or_else(|| "DHT off".to_owned()));
        parts.extend(self.lsd.then(|| "LSD".to_owned()));
        parts.join(", ")
    }
}

fn nodes(stats: &DhtStats) -> usize {
    let further = stats.further.iter().map(|node| &node.network);
    let networks = stats.ipv4.iter().chain(&stats.ipv6).chain(further);
    networks.map(|network: &DhtNetwork| network.nodes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_nobody_is_asked_about_gets_a_warning() {
        let hash = "a".repeat(40);
        let warning = |ways: Ways, more: &str, peers: &[SocketAddr]| {
            let magnet = format!("magnet:?xt=urn:btih:{hash}{more}").parse().unwrap();
            ways.warning(&Source::Magnet(Box::new(magnet)), peers)
        };
        let none = Ways::default();
        assert!(
            warning(none, "&dn=song", &[])
                .unwrap()
                .starts_with("song: no tracker, ")
        );
        assert!(warning(none, "", &[]).unwrap().starts_with(&hash));
        assert_eq!(warning(none, "&tr=udp://a:1", &[]), None);
        assert_eq!(warning(none, "&x.pe=192.0.2.1:5", &[]), None);
        assert_eq!(warning(none, "&x.pe=localhost:5", &[]), None);
        assert_eq!(warning(none, "", &["192.0.2.1:5".parse().unwrap()]), None);
        let ways = Ways { lsd: true, ..none };
        assert_eq!(warning(ways, "", &[]), None);
        let dht_nodes = Some(0);
        assert_eq!(warning(Ways { dht_nodes, ..none }, "", &[]), None);
    }

    #[test]
    fn the_lack_of_peers_is_explained_by_the_sources() {
        let tracker = |status, peers, message| TrackerAnswer { status, peers, message };
        let none = Ways::default();
        let working = tracker("working", Some(0), None);
        assert_eq!(
            none.explain(false, &[working]),
            "1 tracker answered with 0 peers, DHT off"
        );
        assert_eq!(none.explain(false, &[]), "no tracker, DHT off");
        let ways = Ways {
            dht_nodes: Some(3),
            lsd: true,
        };
        let trackers = [
            tracker("announcing", None, None),
            tracker("idle", None, None),
            tracker("failed", None, Some("Connection refused")),
            working,
        ];
        assert_eq!(
            ways.explain(false, &trackers),
            "1 tracker answered with 0 peers, 2 trackers have not answered yet, 1 tracker failed: Connection refused, 3 \
             DHT nodes, LSD"
        );
        assert_eq!(ways.explain(true, &trackers[..1]), "1 tracker has not answered yet");
    }

    #[test]
    fn the_search_is_described_by_its_ways() {
        let ways = Ways {
            dht_nodes: Some(1),
            lsd: true,
        };
        assert_eq!(ways.describe(2), "2 trackers, 1 DHT node, LSD");
        assert_eq!(Ways::default().describe(1), "1 tracker");
        assert_eq!(Ways::default().describe(0), "no source");
    }
}
