//! Selecting fields of a torrent's state.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ecs_torrent_components::stats::TorrentStats;
use serde::Serialize;
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
    /// Bytes received in pieces that failed their hash.
    Corrupt,
    /// Bytes received late, twice or without a request.
    Wasted,
    /// Bytes that are verified and on the disk.
    Completed,
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
    /// The torrent's own limits on transfer rates, in bytes per second: `download_bytes_per_s` and `upload_bytes_per_s`.
    Limits,
    /// Seconds that the torrent has been running, over all sessions.
    SecondsActive,
    /// The download folder.
    Root,
    /// Connected peers.
    Peers,
    /// Trackers.
    Trackers,
    /// Sources of peers, and what became of the addresses that they reported.
    Sources,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 23] = [
        Self::Name,
        Self::Speed,
        Self::Downloaded,
        Self::Size,
        Self::InfoHash,
        Self::State,
        Self::Error,
        Self::Progress,
        Self::Uploaded,
        Self::Corrupt,
        Self::Wasted,
        Self::Completed,
        Self::Wanted,
        Self::Left,
        Self::Checked,
        Self::Pieces,
        Self::Metadata,
        Self::Limits,
        Self::SecondsActive,
        Self::Root,
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
            Self::Corrupt => "corrupt",
            Self::Wasted => "wasted",
            Self::Completed => "completed",
            Self::Wanted => "wanted",
            Self::Left => "left",
            Self::Checked => "checked",
            Self::Pieces => "pieces",
            Self::Metadata => "metadata",
            Self::Limits => "limits",
            Self::SecondsActive => "seconds_active",
            Self::Root => "root",
            Self::Peers => "peers",
            Self::Trackers => "trackers",
            Self::Sources => "sources",
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
        let mut all = serde_json::to_value(stats).unwrap_or_default();
        all["progress"] = stats.progress().into();
        Self(
            fields
                .iter()
                .map(|field| (field.name(), all[field.name()].take()))
                .collect(),
        )
    }

    /// Returns one of the selected fields.
    #[must_use]
    pub fn get(&self, field: Field) -> Option<&Value> {
        self.0.get(field.name())
    }
}
