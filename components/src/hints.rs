//! Hints in magnet links other than names, trackers and addresses of peers.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::host_port::HostPort;
use ecs_torrent_protocol::magnet::MAX_HINTS;
use serde::{Deserialize, Serialize};

/// Hints in magnet links of a torrent.
///
/// ```
/// use ecs_torrent_components::hints::LinkHints;
///
/// let with = |url: &str| LinkHints { web_seeds: vec![url.into()], ..LinkHints::default() };
/// let mut hints = with("http://a/");
/// assert!(hints.merge(&with("http://b/")) && !hints.merge(&with("http://a/")));
/// assert_eq!(hints.web_seeds, ["http://a/", "http://b/"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkHints {
    /// URLs of web seeds (`ws`), each one once. They become part of the torrent file.
    pub web_seeds: Vec<String>,
    /// Peers that are named by a host name (`x.pe`), each one once.
    pub peer_hosts: Vec<HostPort>,
}

/// The hints of a torrent whose metadata is not known. Torrents without hints have no such component.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
#[component(storage = "SparseSet")]
pub struct KeptHints(pub LinkHints);

impl LinkHints {
    /// Whether there are no hints.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.web_seeds.is_empty() && self.peer_hosts.is_empty()
    }

    /// Adds the hints of another link, up to [`MAX_HINTS`] of each kind. Returns whether any of them is new.
    pub fn merge(&mut self, other: &Self) -> bool {
        merge(&mut self.web_seeds, &other.web_seeds) | merge(&mut self.peer_hosts, &other.peer_hosts)
    }
}

fn merge<T: Clone + PartialEq>(known: &mut Vec<T>, others: &[T]) -> bool {
    let before = known.len();
    for other in others {
        if known.len() < MAX_HINTS && !known.contains(other) {
            known.push(other.clone());
        }
    }
    known.len() > before
}
