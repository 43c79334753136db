//! The saved state of a torrent between runs, and its file format.
//!
//! A session is a human-readable RON file, named after the info-hash with the extension [`EXTENSION`]. Its last line
//! is a SHA-1 over everything before it, which detects a file that was cut or changed by accident. A user who edits a
//! session by hand removes that line; the file is then accepted without a check.
//!
//! The file alone suffices to list a torrent; the `.torrent` is stored beside it.
//!
//! Two more lines have checksums of their own, so that they survive damage elsewhere: the user's intent, and the files
//! that the torrent created. [`Session::salvage`] reads them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Geometry;
use ecs_torrent_protocol::hash::{InfoHash, sha1};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hints::LinkHints;
use crate::names::NewNames;
use crate::rate_limit::TransferLimits;
use crate::seeding::{SeedingLimits, SeedingRecord};
use crate::selection::FileSelection;
use crate::torrent::Counters;

/// The version that this program writes, and the newest that it reads.
///
/// Version 1 listed the files that were written, but not which of them the torrent created. Its list is ignored, and
/// every existing file counts as found.
pub const VERSION: u32 = 2;

/// The extension of session files.
pub const EXTENSION: &str = "ron";

/// Prefix of the last line.
const CHECKSUM: &str = "// sha1 ";

/// Prefix of the line that lists the torrent's own files. It has its own checksum, so that it survives damage
/// elsewhere.
const CLAIMS: &str = "// files ";

/// Prefix of the line that repeats the user's intent: a session with no other fields, on one line. It has its own
/// checksum too.
const INTENT: &str = "// intent ";

/// A torrent's session.
///
/// ```
/// use ecs_torrent_components::session::Session;
/// use ecs_torrent_protocol::hash::InfoHash;
///
/// let torrent = InfoHash([7; 20]);
/// let text = Session { paused: true, ..Session::new(torrent) }.to_text();
/// assert!(Session::parse(text.as_bytes(), torrent).unwrap().paused);
/// // A change by accident is detected.
/// let damaged = text.replace("paused: true", "paused: false");
/// assert!(Session::parse(damaged.as_bytes(), torrent).is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The version of the file format.
    pub version: u32,
    /// The torrent's info-hash.
    #[serde(serialize_with = "print", deserialize_with = "scan")]
    pub info_hash: InfoHash,
    /// The torrent's name.
    pub name: String,
    /// The name that the user chose instead of the metainfo's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed: Option<String>,
    /// The paths that the user gave to files, by index, below the torrent's folder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub file_names: BTreeMap<u32, String>,
    /// Whether the torrent's files have a suffix until they are complete.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub part_suffix: bool,
    /// The download folder, as the user named it.
    pub root: PathBuf,
    /// The download folder to which the files go when the torrent is complete, if they are in the folder for
    /// incomplete torrents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_root: Option<PathBuf>,
    /// The same folder as `root` with every link resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<PathBuf>,
    /// The nearest folder on that path that existed when the torrent was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<NearestFolder>,
    /// Mount point of the download folder's volume; nothing is written while the volume is not mounted there.
    pub volume: Option<PathBuf>,
    /// Identity of that volume, if the system reports one. A torrent that has data does not use another volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// Whether the torrent's metadata is not known: then it has no sizes, pieces and files, and the fields about them
    /// are zero and empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lacks_metadata: bool,
    /// Whether the torrent is known to be private (BEP 27), even if its metadata cannot be used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private: bool,
    /// Size of the torrent in bytes.
    pub total_size: u64,
    /// Length of a piece in bytes.
    pub piece_length: u32,
    /// Number of pieces.
    pub pieces: u32,
    /// The verified pieces on the disk.
    pub have: Runs,
    /// Other pieces that were written but could not be synced to stable storage. They have to be written again, even
    /// if they can be read.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub lost: Runs,
    /// Blocks of 16 KiB of other pieces that are on the disk but not verified.
    pub partial: Vec<PartialPiece>,
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes received.
    pub downloaded: u64,
    /// Received bytes in pieces that failed their hash.
    pub corrupt: u64,
    /// Received bytes in pieces that were dropped before they were complete.
    #[serde(default)]
    pub dropped: u64,
    /// Bytes received in addition: late, duplicate or unsolicited.
    pub wasted: u64,
    /// Running time in seconds.
    pub seconds_active: u64,
    /// The part of that time in which all wanted pieces were held.
    #[serde(default)]
    pub seconds_seeding: u64,
    /// Date on which the torrent was first added, in seconds since 1970. `None` in sessions of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_at: Option<u64>,
    /// Date on which the last wanted piece was stored, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<u64>,
    /// Date of the latest payload, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<u64>,
    /// Whether the torrent must not download, because the user said that all of its data is present.
    pub require_complete: bool,
    /// Files in the order of the metainfo, as they were at the time of writing; files that differ are checked.
    pub files: Vec<Option<FileStamp>>,
    /// The files that this torrent created, or was about to create because they did not exist. They may be written and
    /// deleted; every other file is the user's.
    #[serde(default)]
    pub created: Runs,
    /// The ids of the files in the order of the metainfo, if known; empty if none is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<Option<FileId>>,
    /// The key of the marks on the files and folders that this torrent creates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_key: Option<OwnerKey>,
    /// The incomplete files of the user that the user allowed the torrent to change. Only the files with these ids may
    /// be changed.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub permitted: Runs,
    /// The files are not examined yet, and the user allowed those that exist then to be changed. Earlier versions
    /// wrote it also later.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite: bool,
    /// Time of that permission in nanoseconds since 1970. It covers no file that was created or changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overwrite_ns: Option<i64>,
    /// The user paused the torrent: the next run lists it, and does nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// The user stopped the torrent: a restored list does not contain it until the user resumes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// The user requested a check that has not ended: no piece counts as held before it is hashed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recheck: bool,
    /// The pieces to which this check is limited; empty for all.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub recheck_pieces: Runs,
    /// Held pieces that were never hashed.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub unverified: Runs,
    /// The files are not examined yet, and existing ones of the right length count as complete then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_checking: bool,
    /// The move of the torrent's files that has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Box<SavedMove>>,
    /// The limits of the torrent's transfer rates.
    #[serde(default, skip_serializing_if = "TransferLimits::is_unlimited")]
    pub limits: TransferLimits,
    /// The torrent's own seeding limits.
    #[serde(default, skip_serializing_if = "SeedingLimits::is_inherited")]
    pub seeding: SeedingLimits,
    /// The seeding limits that were reached.
    #[serde(default, skip_serializing_if = "SeedingRecord::is_empty")]
    pub seeding_record: SeedingRecord,
    /// The labels of the torrent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The category of the torrent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The torrent's place in the queue. `None` in sessions of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_order: Option<i64>,
    /// The torrent runs whatever the limits of the queue are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_forced: bool,
    /// The files that the user does not want, by index.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub skipped: Runs,
    /// The files of low priority.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub low: Runs,
    /// The files of high priority.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub high: Runs,
    /// Pieces of equal priority are requested in the order of the files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sequential: bool,
    /// The first and last pieces of each file are requested first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_first: bool,
    /// The files that are or were skipped, and whose bytes in pieces of other files are in the torrent's part file.
    /// The part file follows the torrent's files in `files`, `ids` and `created`.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub parted: Runs,
    /// The files that the user selected, while the torrent's metadata is not known.
    #[serde(default, skip_serializing_if = "FileSelection::is_empty")]
    pub selected: FileSelection,
    /// The hints of magnet links, while the torrent's metadata is not known.
    #[serde(default, skip_serializing_if = "LinkHints::is_empty")]
    pub hints: LinkHints,
    /// Peer addresses, the ones that worked first.
    pub peers: Vec<SocketAddr>,
    /// Trackers, in the order of announces.
    pub trackers: Vec<SessionTracker>,
    /// Whether the user edited the trackers: they replace those of the torrent file or the magnet link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub are_trackers_edited: bool,
}

impl Session {
    /// Returns the transfer counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            uploaded: self.uploaded,
            downloaded: self.downloaded,
            corrupt: self.corrupt,
            dropped: self.dropped,
            wasted: self.wasted,
        }
    }

    /// Whether the torrent has data in its download folder, or has created files there. A claim to a file without an
    /// identity says only that the file was about to be created.
    #[must_use]
    pub fn has_data(&self) -> bool {
        let has_pieces = !(self.have.is_empty() && self.lost.is_empty() && self.partial.is_empty());
        let created = self.created.to_set(self.ids.len() as u32).unwrap_or_default();
        has_pieces || created.iter().any(|index| self.ids[index as usize].is_some())
    }

    /// Whether the torrent's files have never been examined, so that nothing says yet that it may use them.
    #[must_use]
    pub fn is_unexamined(&self) -> bool {
        self.resolved.is_none() && self.files.is_empty()
    }
}

/// A move of a torrent's files that has not ended. Until the session names the new place, the files are whole at the
/// old one; from then on, they are whole at the new one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SavedMove {
    /// The other download folder than that of the session: the new one, or, after the switch, the old one.
    pub root: PathBuf,
    /// The other names of the files than those of the session: the new ones, or, after the switch, the old ones.
    #[serde(default, skip_serializing_if = "NewNames::is_empty")]
    pub names: NewNames,
    /// The stage of the move.
    pub stage: MoveStage,
    /// Mount point of the volume of the old folder, after the switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<PathBuf>,
    /// Identity of that volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<VolumeId>,
    /// The files in the old folder that the torrent created, after the switch.
    #[serde(default, skip_serializing_if = "Runs::is_empty")]
    pub created: Runs,
    /// The ids of the files in the old folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<Option<FileId>>,
}

/// The stage of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MoveStage {
    /// The files are being brought to the new place.
    #[default]
    Copying,
    /// The move is given up, and the files that it brought to the new place are being deleted.
    Undoing,
    /// The files are at the new place, and those at the old one are being deleted.
    DeletingOld,
    /// The user says that the files are at the new place already.
    Relocating,
}

/// Blocks of an incomplete piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialPiece {
    /// The piece's index.
    pub piece: u32,
    /// Indexes of the piece's blocks.
    pub blocks: Runs,
}

/// A file's size and times. If one of them differs, another program has written the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileStamp {
    /// Length in bytes.
    pub len: u64,
    /// Modification time, whole seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of the modification time.
    pub nanos: u32,
    /// Time of the last change of the file or of its metadata, in nanoseconds since 1970. Programs can set the
    /// modification time, but not this one. `None` on remote volumes, and in sessions of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_ns: Option<i64>,
}

impl FileStamp {
    /// Whether the stamps can belong to the same state of a file: all values that both of them have are equal.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        let is_known_to_differ = matches!((self.changed_ns, other.changed_ns), (Some(a), Some(b)) if a != b);
        self.has_same_data_as(other) && !is_known_to_differ
    }

    /// Whether length and modification time are equal. A new name or other permissions make no difference.
    #[must_use]
    pub fn has_same_data_as(&self, other: &Self) -> bool {
        (self.len, self.seconds, self.nanos) == (other.len, other.seconds, other.nanos)
    }

    /// Returns the time of the last change in nanoseconds since 1970, as exactly as the stamp knows it.
    #[must_use]
    pub fn last_change_ns(&self) -> i64 {
        let modified_ns = self
            .seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(self.nanos.into());
        self.changed_ns.unwrap_or(modified_ns)
    }
}

/// Identity of a file, independent of its name. File systems reuse inode numbers, so that the time of creation belongs
/// to the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileId {
    /// Device number. It changes with each mount on some volumes.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Time of creation in nanoseconds since 1970, where the file system records it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born_ns: Option<i64>,
}

/// Identity of a volume: of its file system, not of the device or the place where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeId {
    /// The type of the file system, as `statfs` reports it.
    pub kind: u32,
    /// The file system's UUID, or a number that the system derives from it.
    pub id: String,
}

/// An existing folder, by identity, and a path below it. It identifies the path independently of mount points and
/// links.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestFolder {
    /// The folder's identity.
    pub id: FileId,
    /// The path from the folder, with `/` between names; empty for the folder itself.
    pub rest: String,
}

/// A random key of a torrent. It proves which files and folders the torrent created: each carries a mark computed from
/// this key and the file's identity, so that neither a copy nor another program's file has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerKey(pub [u8; 16]);

impl OwnerKey {
    /// Returns the mark of a file, or of a folder where `index` is `None`. The mark does not depend on the device
    /// number, which may change.
    #[must_use]
    pub fn mark(&self, index: Option<usize>, id: FileId) -> String {
        let index = index.map_or(u64::MAX, |index| index as u64);
        let born = id.born_ns.unwrap_or_default();
        let numbers = [&id.inode.to_le_bytes(), &born.to_le_bytes(), &index.to_le_bytes()];
        let digest = sha1(std::iter::once(self.0.as_slice()).chain(numbers.map(<[u8; 8]>::as_slice)));
        // 128 bits are enough, and fit into the inode of ext4 together with the name.
        const_hex::encode(&digest[..16])
    }

    fn parse(text: &str) -> Option<Self> {
        const_hex::decode_to_array(text).ok().map(Self)
    }
}

impl fmt::Display for OwnerKey {
    fn fmt(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        form.write_str(&const_hex::encode(self.0))
    }
}

/// Hides the key, because a program that knows it can forge marks.
impl fmt::Debug for OwnerKey {
    fn fmt(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        form.write_str("OwnerKey")
    }
}

impl Serialize for OwnerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OwnerKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a key"))
    }
}

/// Information recovered from a damaged session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvage {
    /// The download folder.
    pub root: Option<PathBuf>,
    /// The files that the torrent created, by index, with their identities, if known; empty if their line is damaged
    /// too.
    pub created: BTreeMap<u32, Option<FileId>>,
    /// The key of the marks on the torrent's files.
    pub owner_key: Option<OwnerKey>,
    /// A session that has only the fields about the user's intent.
    pub intent: Option<Box<Session>>,
}

impl Salvage {
    /// Returns a session with everything that was recovered. It lists no piece, so that the data is checked.
    /// `geometry` is the torrent's, unless its metadata is not known. `None` if the user's intent was not recovered.
    #[must_use]
    pub fn session(&self, geometry: Option<&Geometry>) -> Option<Session> {
        let mut session = Session::clone(self.intent.as_ref()?);
        if !session.lacks_metadata {
            let geometry = geometry?;
            session.total_size = geometry.total_size();
            session.piece_length = geometry.piece_length();
            session.pieces = geometry.piece_count();
        }
        session.created = Runs::of(self.created.keys().copied());
        for (index, id) in &self.created {
            let index = *index as usize;
            if session.ids.len() <= index {
                session.ids.resize(index + 1, None);
            }
            session.ids[index] = *id;
        }
        session.owner_key = self.owner_key;
        Some(session)
    }
}

/// The last known state of a tracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionTracker {
    /// Announce URL.
    pub url: String,
    /// Number of the tracker's tier.
    #[serde(default)]
    pub tier: usize,
    /// Whether the tracker has received `completed`, or does not need it.
    pub was_completed: bool,
    /// Number of peers with all pieces.
    pub seeders: Option<u32>,
    /// Number of peers without all pieces.
    pub leechers: Option<u32>,
}

/// A set of numbers as text: comma-separated runs like `0-5` and single numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs(String);

impl Runs {
    /// Creates the text of ascending numbers.
    pub fn of(numbers: impl IntoIterator<Item = u32>) -> Self {
        let mut text = String::new();
        let mut numbers = numbers.into_iter().peekable();
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if(|next| *next == last + 1) {
                last = next;
            }
            let comma = if text.is_empty() { "" } else { "," };
            // Writing into a string cannot fail.
            let _ = match first == last {
                true => write!(text, "{comma}{first}"),
                false => write!(text, "{comma}{first}-{last}"),
            };
        }
        Self(text)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the numbers, if they are at most `max_count`.
    #[must_use]
    pub fn to_numbers(&self, max_count: usize) -> Option<Vec<u32>> {
        let mut numbers = Vec::new();
        for run in self.0.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            if (last.checked_sub(first)? as usize) >= max_count - numbers.len() {
                return None;
            }
            numbers.extend(first..=last);
        }
        Some(numbers)
    }

    /// Returns the numbers as a set over `len`; `None` if a number is out of range or the text is malformed.
    #[must_use]
    pub fn to_set(&self, len: u32) -> Option<Bitfield> {
        let mut set = Bitfield::new(len);
        for run in self.0.split(',').filter(|run| !run.is_empty()) {
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            if first > last || last >= len {
                return None;
            }
            for number in first..=last {
                set.insert(number);
            }
        }
        Some(set)
    }
}

/// Reasons why a session cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The end is missing, or the content has changed since it was written.
    #[error("damaged: the checksum does not match")]
    Damaged,
    /// The file is not a session at all.
    #[error("not a session: {0}")]
    Syntax(String),
    /// A later version of the program wrote it.
    #[error("version {0}; this program reads up to {VERSION}")]
    Newer(u32),
    /// The session does not belong to the torrent in its file name, or its torrent has other sizes.
    #[error("foreign: {0}")]
    Foreign(&'static str),
}

impl SessionError {
    /// Returns one word for the name under which such a file is set aside.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Damaged | Self::Syntax(_) => "damaged",
            Self::Newer(_) => "newer",
            Self::Foreign(_) => "foreign",
        }
    }
}

impl Session {
    /// Creates the session of a torrent without content, of which nothing has been downloaded.
    #[must_use]
    pub fn new(info_hash: InfoHash) -> Self {
        Self {
            version: VERSION,
            info_hash,
            name: String::new(),
            renamed: None,
            file_names: BTreeMap::new(),
            part_suffix: false,
            root: PathBuf::new(),
            complete_root: None,
            resolved: None,
            folder: None,
            volume: None,
            volume_id: None,
            lacks_metadata: false,
            private: false,
            total_size: 0,
            piece_length: 0,
            pieces: 0,
            have: Runs::default(),
            partial: Vec::new(),
            uploaded: 0,
            downloaded: 0,
            corrupt: 0,
            dropped: 0,
            wasted: 0,
            seconds_active: 0,
            seconds_seeding: 0,
            added_at: None,
            completed_at: None,
            active_at: None,
            require_complete: false,
            files: Vec::new(),
            created: Runs::default(),
            ids: Vec::new(),
            owner_key: None,
            permitted: Runs::default(),
            overwrite: false,
            overwrite_ns: None,
            paused: false,
            stopped: false,
            recheck: false,
            recheck_pieces: Runs::default(),
            unverified: Runs::default(),
            skip_checking: false,
            moving: None,
            limits: TransferLimits::default(),
            labels: Vec::new(),
            category: None,
            seeding: SeedingLimits::default(),
            seeding_record: SeedingRecord::default(),
            queue_order: None,
            is_forced: false,
            skipped: Runs::default(),
            low: Runs::default(),
            high: Runs::default(),
            sequential: false,
            ends_first: false,
            parted: Runs::default(),
            selected: FileSelection::default(),
            hints: LinkHints::default(),
            lost: Runs::default(),
            peers: Vec::new(),
            trackers: Vec::new(),
            are_trackers_edited: false,
        }
    }

    /// Returns the content of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::from("// A torrent's state, written by ecs-torrent.\n");
        // A session consists of numbers, text and lists, which RON can always represent.
        let intent = ron::to_string(&self.intent()).unwrap_or_default();
        let claims = self.claims();
        for (prefix, line) in [(INTENT, intent), (CLAIMS, claims)] {
            let _ = writeln!(text, "{prefix}{} {line}", checksum_of(&line));
        }
        // One line per field, file and tracker.
        let form = ron::ser::PrettyConfig::new().depth_limit(2);
        text += &ron::ser::to_string_pretty(self, form).unwrap_or_default();
        let _ = write!(text, "\n{CHECKSUM}{}\n", checksum_of(&text));
        text
    }

    /// Parses the session file of the torrent `info_hash`.
    ///
    /// # Errors
    /// Returns an error if the file is damaged, not a session, of a later version, or of another torrent.
    pub fn parse(bytes: &[u8], info_hash: InfoHash) -> Result<Self, SessionError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let text = std::str::from_utf8(bytes).map_err(|_| SessionError::Damaged)?;
        let (body, is_signed) = match text.rfind(CHECKSUM) {
            Some(position) => {
                let (body, line) = text.split_at(position);
                let body = body.strip_suffix('\n').unwrap_or(body);
                if line[CHECKSUM.len()..].trim_end() != checksum_of(body) {
                    return Err(SessionError::Damaged);
                }
                (body, true)
            }
            None => (text, false),
        };
        let syntax = |error: ron::error::SpannedError| match is_signed {
            true => SessionError::Syntax(error.to_string()),
            // An unreadable file without its last line was cut.
            false => SessionError::Damaged,
        };
        let session = ron::from_str::<Self>(body).map_err(|error| match ron::from_str(body) {
            Ok(Version { version }) if version > VERSION => SessionError::Newer(version),
            _ => syntax(error),
        })?;
        if session.version > VERSION {
            return Err(SessionError::Newer(session.version));
        }
        if session.info_hash != info_hash {
            return Err(SessionError::Foreign("it is another torrent's"));
        }
        session.check_names()?;
        Ok(session)
    }

    /// Returns the names that the user gave to the torrent's files.
    #[must_use]
    pub fn names(&self) -> NewNames {
        NewNames {
            name: self.renamed.clone(),
            files: self.file_names.clone(),
        }
    }

    /// Checks the names that the user chose.
    fn check_names(&self) -> Result<(), SessionError> {
        let moving = self.moving.iter().map(|moving| moving.names.check());
        let mut checks = moving.chain([self.names().check()]);
        checks
            .find_map(Result::err)
            .map_or(Ok(()), |error| Err(SessionError::Syntax(error.to_string())))
    }

    /// Returns the part of the session that contains the user's intent, with the fields that it depends on. Without
    /// metadata, and after an edit, the session alone knows the trackers.
    fn intent(&self) -> Self {
        let count = self.ids.len() as u32;
        let permitted = self.permitted.to_set(count).unwrap_or_else(|| Bitfield::new(count));
        let ids = (0..).zip(&self.ids);
        let mut ids: Vec<_> = ids
            .map(|(index, id)| id.filter(|_| permitted.contains(index)))
            .collect();
        ids.truncate(permitted.iter().last().map_or(0, |last| last as usize + 1));
        Self {
            name: self.name.clone(),
            renamed: self.renamed.clone(),
            file_names: self.file_names.clone(),
            part_suffix: self.part_suffix,
            root: self.root.clone(),
            complete_root: self.complete_root.clone(),
            resolved: self.resolved.clone(),
            volume: self.volume.clone(),
            volume_id: self.volume_id.clone(),
            lacks_metadata: self.lacks_metadata,
            private: self.private,
            require_complete: self.require_complete,
            ids,
            permitted: self.permitted.clone(),
            overwrite: self.overwrite,
            overwrite_ns: self.overwrite_ns,
            paused: self.paused,
            stopped: self.stopped,
            recheck: self.recheck,
            recheck_pieces: self.recheck_pieces.clone(),
            moving: self.moving.clone(),
            limits: self.limits,
            labels: self.labels.clone(),
            category: self.category.clone(),
            seeding: self.seeding,
            seeding_record: self.seeding_record,
            queue_order: self.queue_order,
            is_forced: self.is_forced,
            skipped: self.skipped.clone(),
            low: self.low.clone(),
            high: self.high.clone(),
            sequential: self.sequential,
            ends_first: self.ends_first,
            parted: self.parted.clone(),
            selected: self.selected.clone(),
            hints: self.hints.clone(),
            are_trackers_edited: self.are_trackers_edited,
            trackers: match self.lacks_metadata || self.are_trackers_edited {
                true => self.trackers.clone(),
                false => Vec::new(),
            },
            ..Self::new(self.info_hash)
        }
    }

    /// Returns the content of the line about the torrent's own files. The brackets around the lists make an empty list
    /// a word too.
    fn claims(&self) -> String {
        let root = ron::to_string(&self.root).unwrap_or_default();
        let created = self.created.to_set(self.ids.len() as u32).unwrap_or_default();
        let ids: Vec<_> = created.iter().map(|index| print_id(self.ids[index as usize])).collect();
        let key = self.owner_key.map_or_else(|| "-".to_owned(), |key| key.to_string());
        format!(
            "{} [{}] [{}] {key} {root}",
            self.info_hash,
            self.created.0,
            ids.join(",")
        )
    }

    /// Recovers information from an unusable session file of the torrent `info_hash`.
    #[must_use]
    pub fn salvage(bytes: &[u8], info_hash: InfoHash) -> Salvage {
        let text = String::from_utf8_lossy(bytes);
        let claims = text.lines().find_map(|line| salvage_claims(line, info_hash));
        let mut salvage = claims.unwrap_or_else(|| {
            let value = text.lines().find_map(|line| line.trim().strip_prefix("root:"));
            let root = value.and_then(|value| ron::from_str(value.trim().trim_end_matches(',')).ok());
            Salvage {
                root,
                ..Salvage::default()
            }
        });
        let intent = text.lines().find_map(|line| salvage_intent(line, info_hash));
        let intent = intent.or_else(|| salvage_marks(&text, info_hash, salvage.root.as_ref()?));
        salvage.intent = intent.map(Box::new);
        salvage
    }
}

/// Returns the content of a line, if it begins with `prefix` and its checksum matches.
fn checked<'a>(line: &'a str, prefix: &str) -> Option<&'a str> {
    let (checksum, content) = line.strip_prefix(prefix)?.split_once(' ')?;
    (checksum == checksum_of(content)).then_some(content)
}

/// Reads the intent of the user, also as a later version wrote it.
fn salvage_intent(line: &str, info_hash: InfoHash) -> Option<Session> {
    let session: Session = ron::from_str(checked(line, INTENT)?).ok()?;
    let is_usable = session.info_hash == info_hash && session.check_names().is_ok();
    is_usable.then_some(Session {
        version: VERSION,
        ..session
    })
}

/// Reads the words `paused` and `stopped` of a session without a line about the user's intent. A damaged word costs
/// less than a torrent that runs although the user stopped it.
fn salvage_marks(text: &str, info_hash: InfoHash, root: &Path) -> Option<Session> {
    let has = |field: String| text.lines().any(|line| line.trim() == field);
    let [paused, stopped] = ["paused", "stopped"].map(|word| has(format!("{word}: true,")));
    let is_it = (paused || stopped) && has(format!("info_hash: \"{info_hash}\","));
    is_it.then(|| Session {
        root: root.to_owned(),
        // Earlier versions saved no session before the files were examined.
        resolved: Some(root.to_owned()),
        paused,
        stopped,
        ..Session::new(info_hash)
    })
}

fn salvage_claims(line: &str, info_hash: InfoHash) -> Option<Salvage> {
    let mut parts = checked(line, CLAIMS)?.splitn(5, ' ');
    let (of, created) = (parts.next()?, parts.next()?);
    let (ids, key, root) = (parts.next()?, parts.next()?, parts.next()?);
    let list = |text: &str| Some(text.strip_prefix('[')?.strip_suffix(']')?.to_owned());
    let (created, ids) = (list(created)?, list(ids)?);
    let ids: Vec<_> = ids.split(',').filter(|id| !id.is_empty()).map(scan_id).collect();
    let created = Runs(created).to_numbers(ids.len())?;
    (of == info_hash.to_string() && created.len() == ids.len()).then(|| Salvage {
        root: ron::from_str(root).ok(),
        created: created.into_iter().zip(ids).collect(),
        owner_key: OwnerKey::parse(key),
        intent: None,
    })
}

/// Returns an identity as one word without commas; `-` if it is unknown.
fn print_id(id: Option<FileId>) -> String {
    id.map_or_else(
        || "-".to_owned(),
        |id| {
            let born = id.born_ns.map_or_else(String::new, |born| born.to_string());
            format!("{}.{}.{born}", id.device, id.inode)
        },
    )
}

fn scan_id(text: &str) -> Option<FileId> {
    let mut parts = text.split('.');
    let (device, inode, born) = (parts.next()?, parts.next()?, parts.next()?);
    Some(FileId {
        device: device.parse().ok()?,
        inode: inode.parse().ok()?,
        born_ns: born.parse().ok(),
    })
}

fn checksum_of(text: &str) -> String {
    InfoHash(sha1([text.as_bytes()])).to_string()
}

fn print<S: Serializer>(hash: &InfoHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

fn scan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<InfoHash, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests;
