//! Selecting fields of a torrent's state.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ecs_torrent_components::stats::TorrentStats;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

/// A field of a torrent's state. Its name in snake case is the key in JSON.
///
/// ```
/// use ecs_torrent::Field;
///
/// assert_eq!("size".parse(), Ok(Field::Size));
/// assert_eq!(Field::Size.name(), "size");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// Name of the torrent.
    Name,
    /// Payload speeds, bytes per second: `download` and `upload`.
    Speed,
    /// Payload bytes received since the torrent was first added.
    Downloaded,
    /// Bytes of all files.
    Size,
    /// Info-hash.
    InfoHash,
    /// State.
    State,
    /// Reason why the torrent failed or is blocked, if it is.
    Error,
    /// Share of the wanted bytes that is verified and on the disk, 0 to 1.
    Progress,
    /// Payload bytes sent since the torrent was first added.
    Uploaded,
    /// Sent payload divided by received payload, or by the data on the disk if nothing was received.
    Ratio,
    /// Seconds until the last wanted byte is held, at the current speed.
    Eta,
    /// Bytes received in pieces that failed their hash.
    Corrupt,
    /// Bytes received late, twice or without a request.
    Wasted,
    /// Bytes on the disk that are verified, or count as verified without a check (`unverified`).
    Completed,
    /// Bytes on the disk that count as verified without a check.
    Unverified,
    /// Bytes of the pieces that have a part of a wanted file.
    Wanted,
    /// Bytes of wanted pieces that are not verified and on the disk.
    Left,
    /// Bytes hashed so far while existing data is checked.
    Checked,
    /// Pieces: the number of all (`total`), of those that are verified and on the disk (`held`), and the length of one
    /// in bytes (`size`).
    Pieces,
    /// Pieces of the metadata that have arrived, `received`, of all `pieces`, while metadata is fetched.
    Metadata,
    /// The progress of a move of the files.
    Moving,
    /// The torrent's own limits on transfer rates, in bytes per second: `download_bytes_per_s` and
    /// `upload_bytes_per_s`.
    Limits,
    /// The torrent's own seeding limits: `ratio_percent`, `time_s` and `idle_s`, and the `action` when one is reached.
    Seeding,
    /// Seeding limit that the torrent has reached, if it is paused or super-seeds because of one.
    LimitReached,
    /// Labels, in alphabetic order.
    Labels,
    /// Category, if the torrent has one.
    Category,
    /// Place in the queue: torrents with a lower `order` run first; whether it runs whatever the limits are
    /// (`forced`), and whether it is too slow to count (`slow`).
    Queue,
    /// Whether peers may come from trackers and users only (BEP 27).
    Private,
    /// Date on which the torrent was first added, seconds since 1970.
    AddedAt,
    /// Date on which the last wanted piece was stored, seconds since 1970.
    CompletedAt,
    /// Date of the latest payload in either direction, seconds since 1970.
    ActiveAt,
    /// Seconds that the torrent has been running, over all sessions.
    SecondsActive,
    /// Seconds that the torrent has been seeding, over all sessions.
    SecondsSeeding,
    /// Whether pieces of equal priority are requested in the order of the files.
    Sequential,
    /// Whether the first and last pieces of each file are requested first.
    EndsFirst,
    /// The folder in which the files are.
    Root,
    /// The download folder to which the files go when the torrent is complete, if they are not there.
    CompleteRoot,
    /// Number of connected peers.
    PeerCount,
    /// Number of copies of the torrent that the connected peers have together.
    Availability,
    /// Connected peers.
    Peers,
    /// Trackers.
    Trackers,
    /// Sources of peers, with counts of the addresses that they reported.
    Sources,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 42] = [
        Self::Name,
        Self::Speed,
        Self::Downloaded,
        Self::Size,
        Self::InfoHash,
        Self::State,
        Self::Error,
        Self::Progress,
        Self::Uploaded,
        Self::Ratio,
        Self::Eta,
        Self::Corrupt,
        Self::Wasted,
        Self::Completed,
        Self::Unverified,
        Self::Wanted,
        Self::Left,
        Self::Checked,
        Self::Pieces,
        Self::Metadata,
        Self::Moving,
        Self::Limits,
        Self::Seeding,
        Self::LimitReached,
        Self::Labels,
        Self::Category,
        Self::Queue,
        Self::Private,
        Self::AddedAt,
        Self::CompletedAt,
        Self::ActiveAt,
        Self::SecondsActive,
        Self::SecondsSeeding,
        Self::Sequential,
        Self::EndsFirst,
        Self::Root,
        Self::CompleteRoot,
        Self::PeerCount,
        Self::Availability,
        Self::Peers,
        Self::Trackers,
        Self::Sources,
    ];

    /// Fields that are returned when none are selected.
    pub const DEFAULT: [Self; 4] = [Self::Name, Self::Speed, Self::Downloaded, Self::Size];

    /// Returns the name of the field: the key in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Speed => "speed",
            Self::Downloaded => "downloaded",
            Self::Size => "size",
            Self::InfoHash => "info_hash",
            Self::State => "state",
            Self::Error => "error",
            Self::Progress => "progress",
            Self::Uploaded => "uploaded",
            Self::Ratio => "ratio",
            Self::Eta => "eta",
            Self::Corrupt => "corrupt",
            Self::Wasted => "wasted",
            Self::Completed => "completed",
            Self::Unverified => "unverified",
            Self::Wanted => "wanted",
            Self::Left => "left",
            Self::Checked => "checked",
            Self::Pieces => "pieces",
            Self::Metadata => "metadata",
            Self::Moving => "moving",
            Self::Limits => "limits",
            Self::Seeding => "seeding",
            Self::LimitReached => "limit_reached",
            Self::Labels => "labels",
            Self::Category => "category",
            Self::Queue => "queue",
            Self::Private => "private",
            Self::AddedAt => "added_at",
            Self::CompletedAt => "completed_at",
            Self::ActiveAt => "active_at",
            Self::SecondsActive => "seconds_active",
            Self::SecondsSeeding => "seconds_seeding",
            Self::Sequential => "sequential",
            Self::EndsFirst => "ends_first",
            Self::Root => "root",
            Self::CompleteRoot => "complete_root",
            Self::PeerCount => "peer_count",
            Self::Availability => "availability",
            Self::Peers => "peers",
            Self::Trackers => "trackers",
            Self::Sources => "sources",
        }
    }

    /// Writes the field of a torrent into a map.
    fn write<M: SerializeMap>(self, stats: &TorrentStats, map: &mut M) -> Result<(), M::Error> {
        let name = self.name();
        match self {
            Self::Name => map.serialize_entry(name, &stats.name),
            Self::Speed => map.serialize_entry(name, &stats.speed),
            Self::Downloaded => map.serialize_entry(name, &stats.downloaded),
            Self::Size => map.serialize_entry(name, &stats.size),
            Self::InfoHash => map.serialize_entry(name, &stats.info_hash.to_string()),
            Self::State => map.serialize_entry(name, &stats.state),
            Self::Error => map.serialize_entry(name, &stats.error),
            Self::Progress => map.serialize_entry(name, &stats.progress()),
            Self::Uploaded => map.serialize_entry(name, &stats.uploaded),
            Self::Ratio => map.serialize_entry(name, &stats.ratio()),
            Self::Eta => map.serialize_entry(name, &stats.eta()),
            Self::Corrupt => map.serialize_entry(name, &stats.corrupt),
            Self::Wasted => map.serialize_entry(name, &stats.wasted),
            Self::Completed => map.serialize_entry(name, &stats.completed),
            Self::Unverified => map.serialize_entry(name, &stats.unverified),
            Self::Wanted => map.serialize_entry(name, &stats.wanted),
            Self::Left => map.serialize_entry(name, &stats.left),
            Self::Checked => map.serialize_entry(name, &stats.checked),
            Self::Pieces => map.serialize_entry(name, &stats.pieces),
            Self::Metadata => map.serialize_entry(name, &stats.metadata),
            Self::Moving => map.serialize_entry(name, &stats.moving),
            Self::Limits => map.serialize_entry(name, &stats.limits),
            Self::Seeding => map.serialize_entry(name, &stats.seeding),
            Self::LimitReached => map.serialize_entry(name, &stats.limit_reached),
            Self::Labels => map.serialize_entry(name, &stats.labels),
            Self::Category => map.serialize_entry(name, &stats.category),
            Self::Queue => map.serialize_entry(name, &stats.queue),
            Self::Private => map.serialize_entry(name, &stats.private),
            Self::AddedAt => map.serialize_entry(name, &stats.added_at),
            Self::CompletedAt => map.serialize_entry(name, &stats.completed_at),
            Self::ActiveAt => map.serialize_entry(name, &stats.active_at),
            Self::SecondsActive => map.serialize_entry(name, &stats.seconds_active),
            Self::SecondsSeeding => map.serialize_entry(name, &stats.seconds_seeding),
            Self::Sequential => map.serialize_entry(name, &stats.sequential),
            Self::EndsFirst => map.serialize_entry(name, &stats.ends_first),
            Self::Root => map.serialize_entry(name, &stats.root),
            Self::CompleteRoot => map.serialize_entry(name, &stats.complete_root),
            Self::PeerCount => map.serialize_entry(name, &stats.peer_count),
            Self::Availability => map.serialize_entry(name, &stats.availability),
            Self::Peers => map.serialize_entry(name, &stats.peers),
            Self::Trackers => map.serialize_entry(name, &stats.trackers),
            Self::Sources => map.serialize_entry(name, &stats.sources),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Field {
    type Err = UnknownField;

    fn from_str(text: &str) -> Result<Self, UnknownField> {
        let found = Self::ALL.into_iter().find(|field| field.name() == text);
        found.ok_or_else(|| UnknownField(text.to_owned()))
    }
}

/// No field has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no field {0:?}; there are {all}", all = Field::ALL.map(Field::name).join(", "))]
pub struct UnknownField(pub String);

/// Selected fields of a torrent, by name; serializes as an object.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub struct Selection(BTreeMap<&'static str, Value>);

impl Selection {
    /// Picks `fields` out of all fields of a torrent's state.
    #[must_use]
    pub fn of(stats: &TorrentStats, fields: &[Field]) -> Self {
        // A torrent's state consists of numbers, text, lists and maps with text keys, which JSON can represent.
        let selected = serde_json::to_value(Selected { stats, fields }).unwrap_or_default();
        let mut selected = match selected {
            Value::Object(selected) => selected,
            _ => serde_json::Map::new(),
        };
        let value = |field: &Field| selected.remove(field.name()).unwrap_or_default();
        Self(
            fields
                .iter()
                .map(|field| field.name())
                .zip(fields.iter().map(value))
                .collect(),
        )
    }

    /// Returns one of the selected fields.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<&Value> {
        self.0.get(field.name())
    }
}

/// Selected fields of a torrent's state; serializes as an object, without a copy of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selected<'s> {
    /// The state.
    pub(crate) stats: &'s TorrentStats,
    /// The fields, each once.
    pub(crate) fields: &'s [Field],
}

impl Serialize for Selected<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for field in self.fields {
            field.write(self.stats, &mut map)?;
        }
        map.end()
    }
}
