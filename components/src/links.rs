//! Commands about links to torrents that their publishers replace (BEP 46), and their results.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::items::Item;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::magnet::MutableLink;
use serde::Serialize;

use crate::commands::{AddError, AddOptions, Reply};
use crate::dht::DhtError;

/// Downloads the torrent that a link names, and each newer one that replaces it.
#[derive(Debug)]
pub struct FollowLink {
    /// The link.
    pub link: MutableLink,
    /// Options of the first torrent. Later ones use its download folder.
    pub options: AddOptions,
    /// Answered with the link's torrent when it is added and the link is saved, or with the reason why the link is not
    /// followed. If the link is followed already, its torrent is added again as [`AddTorrent`] does.
    ///
    /// [`AddTorrent`]: crate::commands::AddTorrent
    pub reply: Reply<Result<InfoHash, FollowError>>,
}

/// Stores an item of a publisher every hour, so that nodes of the DHT do not forget it (BEP 44, "Expiration").
#[derive(Debug)]
pub struct KeepItem {
    /// The item's link: the publisher's key, and the salt.
    pub link: MutableLink,
    /// The item, signed. It replaces an older one under the same link.
    pub item: Item,
    /// Answered when the item is saved.
    pub reply: Reply<Result<(), FollowError>>,
}

/// Ends the search for newer torrents of a link, and the upkeep of its item. Its torrents stay.
#[derive(Debug)]
pub struct UnfollowLink {
    /// The target of the link's item.
    pub target: NodeId,
    /// Answered when this is saved.
    pub reply: Reply<Result<(), FollowError>>,
}

/// Lists the links.
#[derive(Debug)]
pub struct ListLinks {
    /// Answered with the links, in the order of their targets.
    pub reply: Reply<Vec<FollowedLink>>,
}

/// A link whose item is kept in the DHT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FollowedLink {
    /// The link.
    #[serde(serialize_with = "as_text")]
    pub link: MutableLink,
    /// The target of the item.
    #[serde(serialize_with = "as_text")]
    pub target: NodeId,
    /// Whether the link is followed or published.
    pub kind: LinkKind,
    /// Whether the link's torrents are downloaded; if not, only its item is kept.
    pub is_downloaded: bool,
    /// The torrent that the item names. `None` if a published item names none, and until a followed one is added.
    #[serde(serialize_with = "as_optional_text")]
    pub info_hash: Option<InfoHash>,
    /// The torrent before that one, which runs until the newer one is complete.
    #[serde(serialize_with = "as_optional_text")]
    pub previous: Option<InfoHash>,
    /// The sequence number of the item; `None` until it is found.
    pub seq: Option<i64>,
    /// The problem of the last search, human-readable; `None` if it succeeded.
    pub error: Option<String>,
}

/// The reason why a link's item is kept in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// The link's torrents are downloaded.
    Followed,
    /// The link was published here.
    Published,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<S: serde::Serializer>(value: &Option<InfoHash>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// Reasons why a link is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// The search in the DHT failed.
    #[error(transparent)]
    Dht(#[from] DhtError),
    /// No node knows the item.
    #[error("no node of the DHT knows the torrent of this key")]
    NoItem,
    /// The item is older than the one that is kept.
    #[error("a newer item of this key is kept already")]
    Outdated,
    /// The torrent is refused.
    #[error(transparent)]
    Add(#[from] AddError),
    /// Too many links are followed.
    #[error("{0} links are followed already, which is the maximum (dht.max_links)")]
    TooMany(usize),
    /// The link is not followed.
    #[error("this link is not followed")]
    NotFollowed,
    /// The links cannot be saved.
    #[error("the followed links cannot be saved: {0}")]
    Unsaved(String),
}

/// A followed link names another torrent than before, which was added.
#[derive(Message, Debug, Clone)]
pub struct LinkUpdated {
    /// The link.
    pub link: MutableLink,
    /// The torrent that the link names now.
    pub torrent: InfoHash,
    /// The torrent that it named before; `None` for a new link.
    pub previous: Option<InfoHash>,
    /// The sequence number of the link's item.
    pub seq: i64,
}
