//! The life of a torrent: the user's intent, facts about the torrent, and the one state that follows from them.
//!
//! | kind | components | written by |
//! |---|---|---|
//! | intent | [`Desired`], [`FileChoice`](crate::wanted::FileChoice), [`TransferLimits`](crate::rate_limit::TransferLimits), [`SeedingLimits`](crate::seeding::SeedingLimits), [`Labels`](crate::labels::Labels), [`QueueOrder`](crate::queue::QueueOrder), [`ForcedStart`](crate::queue::ForcedStart) | commands of users |
//! | facts | [`Layout`](crate::torrent::Layout), [`Readiness`], [`Fault`], [`Blocked`], [`Stopping`], [`Have`](crate::torrent::Have), [`WantedPieces`](crate::wanted::WantedPieces), [`Waiting`], [`AwaitingSession`], [`Moving`] | one plugin each |
//! | state | [`Lifecycle`] | one system, `derive_lifecycle` |
//!
//! A feature that writes an intent or a fact puts the torrent on [`ChangedFacts`]. The state is derived from them twice
//! per tick, and each change of it is a [`LifecycleChanged`](crate::messages::LifecycleChanged).

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::time::Timestamp;
use serde::{Serialize, Serializer};

/// The user's intent for a torrent.
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Desired {
    /// The torrent downloads missing pieces, and seeds.
    #[default]
    Run,
    /// The torrent stays listed and does nothing: no peers, no announces, no open files.
    Pause,
    /// The torrent is saved and leaves the list.
    Stop,
    /// The torrent leaves the list, and its session is deleted.
    Remove,
}

impl Desired {
    /// Whether the torrent is to leave the list.
    #[must_use]
    pub fn is_leaving(self) -> bool {
        matches!(self, Self::Stop | Self::Remove)
    }
}

/// How far a torrent's files are examined.
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Readiness {
    /// The session and the files are not examined yet.
    #[default]
    Unopened,
    /// The files are examined, and some pieces are in doubt until they are hashed.
    Unchecked,
    /// The held pieces are known, and missing pieces can be written.
    Ready,
    /// The files are closed, because the torrent is paused. The held pieces are those of the session.
    Closed,
}

/// The fault of a torrent that failed; `None` while there is none.
#[derive(Component, Debug, Clone, PartialEq, Eq, Default)]
pub struct Fault(pub Option<Failure>);

/// The reason why a torrent failed, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The reason, human-readable.
    pub reason: Arc<str>,
    /// When the torrent is tried again. `None` if it was tried too often or another try cannot help.
    pub retry_at: Option<Timestamp>,
}

/// The resource that a torrent waits for, human-readable; `None` while it waits for none.
#[derive(Component, Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocked(pub Option<Arc<str>>);

/// Marks a torrent that waits for its turn.
#[derive(Component, Debug, Clone, Copy, Default)]
#[component(storage = "SparseSet")]
pub struct Waiting;

/// Marks a torrent of an earlier run whose session is not loaded yet. The session may say that the torrent is paused.
#[derive(Component, Debug, Clone, Copy, Default)]
#[component(storage = "SparseSet")]
pub struct AwaitingSession;

/// Marks a torrent whose files are being moved to another place, with the progress.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
#[component(storage = "SparseSet")]
pub struct Moving {
    /// The download folder to which the files go.
    pub root: Arc<Path>,
    /// Number of bytes at the new place.
    pub moved: u64,
    /// Number of bytes to move.
    pub size: u64,
}

/// The phases of a stop, in their order. A pause has the same phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopPhase {
    /// No new requests are sent; pieces that are being hashed or written finish.
    HaltDownloads,
    /// Peers get their last messages, and connections close.
    DisconnectPeers,
    /// Trackers receive `stopped`.
    AnnounceStopped,
    /// The session is written. If the torrent is removed, the session is deleted, and the data too if requested.
    WriteSession,
    /// The files are closed. Then the torrent is gone or paused, and the caller gets its answer.
    Release,
}

impl StopPhase {
    /// Returns the phase after this one.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        match self {
            Self::HaltDownloads => Some(Self::DisconnectPeers),
            Self::DisconnectPeers => Some(Self::AnnounceStopped),
            Self::AnnounceStopped => Some(Self::WriteSession),
            Self::WriteSession => Some(Self::Release),
            Self::Release => None,
        }
    }
}

/// The running phase of a torrent's stop or pause. A phase has no deadline of its own: each of its participants has
/// one, because the consequences of a missed deadline depend on the participant.
#[derive(Component, Debug)]
#[component(storage = "SparseSet")]
pub struct Stopping {
    /// The phase that is running.
    pub phase: StopPhase,
}

/// The state of a torrent, derived from its intent and facts.
#[derive(Component, Debug, Clone, PartialEq, Eq, Default)]
pub enum Lifecycle {
    /// The torrent's session and files are being examined.
    #[default]
    Adding,
    /// The torrent's metadata is being fetched from peers.
    FetchingMetadata,
    /// The content of the torrent's files is being hashed.
    Checking,
    /// The torrent's files are being moved to another place. They are closed meanwhile.
    Moving,
    /// At least one wanted piece is missing.
    Downloading,
    /// All wanted pieces are held, and at least one piece that is not wanted is missing.
    Finished,
    /// Every piece is held.
    Seeding,
    /// The torrent is paused: it has no peers, no announces and no open files.
    Paused,
    /// The torrent waits for its turn.
    Queued,
    /// A required resource is unavailable: the disk is full, or a volume is not mounted. The torrent continues by
    /// itself.
    Blocked {
        /// The missing resource, human-readable.
        resource: Arc<str>,
    },
    /// The torrent failed and cannot continue.
    Failed {
        /// The reason, human-readable.
        reason: Arc<str>,
        /// When the torrent is tried again. `None` if it was tried too often or another try cannot help.
        retry_at: Option<Timestamp>,
    },
    /// The torrent is being stopped, paused or removed.
    Stopping {
        /// The phase that is running.
        phase: StopPhase,
    },
}

impl Lifecycle {
    /// Whether the torrent moves data: it downloads or seeds.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Downloading | Self::Finished | Self::Seeding)
    }

    /// Whether the torrent connects to peers: it runs, or fetches its metadata from them.
    #[must_use]
    pub fn connects(&self) -> bool {
        self.is_running() || *self == Self::FetchingMetadata
    }

    /// Whether the torrent needs peers, for its pieces or its metadata.
    #[must_use]
    pub fn wants_peers(&self) -> bool {
        matches!(self, Self::Downloading | Self::FetchingMetadata)
    }

    /// Whether verified pieces may be served. A blocked torrent serves too: a full disk can still be read.
    #[must_use]
    pub fn may_serve(&self) -> bool {
        self.is_running() || matches!(self, Self::Blocked { .. })
    }

    /// Whether blocks may arrive from peers: the torrent runs, or its stop lets requests finish.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.is_running() || self.is_stopping()
    }

    /// Whether blocks may be sent to peers.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.may_serve() || self.is_stopping()
    }

    /// Whether every wanted piece is held.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        matches!(self, Self::Finished | Self::Seeding)
    }

    /// Whether the torrent is being stopped, paused or removed.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        matches!(self, Self::Stopping { .. })
    }

    /// The state without its details.
    #[must_use]
    pub fn state(&self) -> TorrentState {
        match self {
            Self::Adding => TorrentState::Adding,
            Self::FetchingMetadata => TorrentState::FetchingMetadata,
            Self::Checking => TorrentState::Checking,
            Self::Moving => TorrentState::Moving,
            Self::Downloading => TorrentState::Downloading,
            Self::Finished => TorrentState::Finished,
            Self::Seeding => TorrentState::Seeding,
            Self::Paused => TorrentState::Paused,
            Self::Queued => TorrentState::Queued,
            Self::Blocked { .. } => TorrentState::Blocked,
            Self::Failed { .. } => TorrentState::Failed,
            Self::Stopping { phase } => TorrentState::Stopping(*phase),
        }
    }
}

/// Facts about a torrent that decide its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The torrent's metadata is known.
    pub has_metadata: bool,
    /// How far the files are examined.
    pub readiness: Readiness,
    /// The torrent's fault.
    pub fault: Option<Failure>,
    /// The resource that the torrent waits for.
    pub blocked: Option<Arc<str>>,
    /// The torrent's files are being moved.
    pub is_moving: bool,
    /// The torrent waits for its turn.
    pub is_waiting: bool,
    /// The torrent is from an earlier run, and its session is not loaded yet.
    pub awaits_session: bool,
    /// Every wanted piece is held.
    pub holds_wanted: bool,
    /// Every piece is held.
    pub holds_all: bool,
    /// The running phase of a stop.
    pub phase: Option<StopPhase>,
}

/// Returns the state of a torrent. The first row that applies decides; the table is in ARCHITECTURE.md.
#[must_use]
pub fn derive(desired: Desired, facts: &Facts) -> Lifecycle {
    if let Some(phase) = facts.phase {
        return Lifecycle::Stopping { phase };
    }
    let is_pausing = desired == Desired::Pause && facts.readiness != Readiness::Closed;
    if desired.is_leaving() || is_pausing {
        let phase = StopPhase::HaltDownloads;
        return Lifecycle::Stopping { phase };
    }
    if desired == Desired::Pause {
        return Lifecycle::Paused;
    }
    if let Some(Failure { reason, retry_at }) = facts.fault.clone() {
        return Lifecycle::Failed { reason, retry_at };
    }
    if let Some(resource) = facts.blocked.clone() {
        return Lifecycle::Blocked { resource };
    }
    if facts.is_moving {
        return Lifecycle::Moving;
    }
    match facts.readiness {
        _ if !facts.has_metadata && !facts.awaits_session => Lifecycle::FetchingMetadata,
        // A torrent with closed files that is to run is opened again.
        Readiness::Unopened | Readiness::Closed => Lifecycle::Adding,
        Readiness::Unchecked => Lifecycle::Checking,
        Readiness::Ready if facts.is_waiting => Lifecycle::Queued,
        Readiness::Ready if facts.holds_all => Lifecycle::Seeding,
        Readiness::Ready if facts.holds_wanted => Lifecycle::Finished,
        Readiness::Ready => Lifecycle::Downloading,
    }
}

/// Torrents whose intent or facts have changed since their state was derived.
///
/// This is not a [`WorkList`](crate::work_list::WorkList): features list a torrent when they no longer have its
/// components at hand, and deriving a state twice changes nothing.
#[derive(Resource, Debug, Default)]
pub struct ChangedFacts(Vec<Entity>);

impl ChangedFacts {
    /// Lists a torrent, so that its state is derived in this tick or at the beginning of the next one.
    pub fn add(&mut self, torrent: Entity) {
        if self.0.last() != Some(&torrent) {
            self.0.push(torrent);
        }
    }

    /// Whether no torrent is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the listed torrents, in order, and empties the list.
    pub fn drain(&mut self) -> impl Iterator<Item = Entity> {
        self.0.drain(..)
    }
}

/// A torrent's state without its details, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TorrentState {
    /// See [`Lifecycle::Adding`].
    Adding,
    /// See [`Lifecycle::FetchingMetadata`].
    FetchingMetadata,
    /// See [`Lifecycle::Checking`].
    Checking,
    /// See [`Lifecycle::Moving`].
    Moving,
    /// See [`Lifecycle::Downloading`].
    Downloading,
    /// See [`Lifecycle::Finished`].
    Finished,
    /// See [`Lifecycle::Seeding`].
    Seeding,
    /// See [`Lifecycle::Paused`].
    Paused,
    /// See [`Lifecycle::Queued`].
    Queued,
    /// See [`Lifecycle::Blocked`].
    Blocked,
    /// See [`Lifecycle::Failed`].
    Failed,
    /// See [`Lifecycle::Stopping`].
    Stopping(StopPhase),
}

impl TorrentState {
    /// All states.
    pub const ALL: [Self; 16] = [
        Self::Adding,
        Self::FetchingMetadata,
        Self::Checking,
        Self::Moving,
        Self::Downloading,
        Self::Finished,
        Self::Seeding,
        Self::Paused,
        Self::Queued,
        Self::Blocked,
        Self::Failed,
        Self::Stopping(StopPhase::HaltDownloads),
        Self::Stopping(StopPhase::DisconnectPeers),
        Self::Stopping(StopPhase::AnnounceStopped),
        Self::Stopping(StopPhase::WriteSession),
        Self::Stopping(StopPhase::Release),
    ];

    /// Returns the state's name, as the JSON and the command line show it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::FetchingMetadata => "fetching_metadata",
            Self::Checking => "checking",
            Self::Moving => "moving",
            Self::Downloading => "downloading",
            Self::Finished => "finished",
            Self::Seeding => "seeding",
            Self::Paused => "paused",
            Self::Queued => "queued",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Stopping(StopPhase::HaltDownloads) => "stopping/halt_downloads",
            Self::Stopping(StopPhase::DisconnectPeers) => "stopping/disconnect_peers",
            Self::Stopping(StopPhase::AnnounceStopped) => "stopping/announce_stopped",
            Self::Stopping(StopPhase::WriteSession) => "stopping/write_session",
            Self::Stopping(StopPhase::Release) => "stopping/release",
        }
    }

    /// Whether a torrent may change from this state to `next` in one step; the table is in ARCHITECTURE.md.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use StopPhase::{HaltDownloads, Release, WriteSession};
        use TorrentState::{
            Adding, Blocked, Checking, Downloading, Failed, FetchingMetadata, Finished, Moving, Paused, Queued,
            Seeding, Stopping,
        };
        match (self, next) {
            // A user's stop that joins another stop in its last phase is saved first.
            (Stopping(Release), Stopping(WriteSession)) => true,
            (Stopping(phase), Stopping(next)) => phase.next() == Some(next),
            // A session that cannot be written keeps its torrent in the list.
            (Stopping(WriteSession), next) => next == Failed,
            // A pause ends here, with the files closed, and so does a removal whose volume is not there. A torrent that
            // is to be checked again is opened again.
            (Stopping(phase), next) => phase == Release && matches!(next, Paused | Blocked | Adding),
            (_, Stopping(phase)) => phase == HaltDownloads,
            (Paused, next) => matches!(next, Adding | FetchingMetadata),
            (_, Failed) => true,
            // Without metadata, a torrent continues to fetch it.
            (Failed, next) => matches!(next, Adding | FetchingMetadata),
            (_, Blocked) => true,
            (Blocked, next) => matches!(
                next,
                Adding | FetchingMetadata | Queued | Downloading | Finished | Seeding
            ),
            // The session of the last run says that the torrent is paused.
            (Adding, Paused) => true,
            (FetchingMetadata, next) => next == Adding,
            (Adding, next) => matches!(
                next,
                FetchingMetadata | Checking | Moving | Queued | Downloading | Finished | Seeding
            ),
            // At their new place, the files are opened like those of any other torrent, or the torrent stays paused.
            (Moving, next) => matches!(next, Adding | Paused),
            (Checking, next) => matches!(next, Queued | Downloading | Finished | Seeding),
            (Queued, next) => matches!(next, Downloading | Finished | Seeding),
            (Downloading, next) => matches!(next, Queued | Finished | Seeding),
            (Finished, next) => matches!(next, Queued | Downloading | Seeding),
            (Seeding, next) => matches!(next, Queued),
        }
    }
}

/// Shows the name of the state, without resource and reason.
impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state().fmt(f)
    }
}

impl fmt::Display for TorrentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for TorrentState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// State of a torrent of which only the saved state exists. It is not in the list, and has no [`TorrentState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SavedState {
    /// The torrent is stopped until it is resumed.
    Stopped,
}

impl SavedState {
    /// Returns the state's name, as the JSON shows it. It differs from the name of every [`TorrentState`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
        }
    }
}

impl Serialize for SavedState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The text is not the name of a torrent state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a torrent state")]
pub struct UnknownState(pub String);

impl FromStr for TorrentState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let found = Self::ALL.into_iter().find(|state| state.name() == text);
        found.ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            has_metadata: true,
            readiness: Readiness::Ready,
            fault: None,
            blocked: None,
            is_moving: false,
            is_waiting: false,
            awaits_session: false,
            holds_wanted: false,
            holds_all: false,
            phase: None,
        }
    }

    fn full_disk() -> Facts {
        Facts {
            blocked: Some("no space left".into()),
            ..facts()
        }
    }

    fn broken() -> Facts {
        Facts {
            fault: Some(Failure {
                reason: "bad disk".into(),
                retry_at: None,
            }),
            ..full_disk()
        }
    }

    fn state(desired: Desired, facts: &Facts) -> TorrentState {
        derive(desired, facts).state()
    }

    #[test]
    fn a_torrent_that_runs_is_in_the_state_of_its_facts() {
        let of = |facts: Facts| state(Desired::Run, &facts);
        let at = |readiness| Facts { readiness, ..facts() };
        assert_eq!(of(at(Readiness::Unopened)), TorrentState::Adding);
        assert_eq!(of(at(Readiness::Unchecked)), TorrentState::Checking);
        assert_eq!(of(at(Readiness::Ready)), TorrentState::Downloading);
        let without_metadata = Facts {
            has_metadata: false,
            ..at(Readiness::Unopened)
        };
        assert_eq!(of(without_metadata.clone()), TorrentState::FetchingMetadata);
        let maybe_paused = Facts {
            awaits_session: true,
            ..without_metadata
        };
        assert_eq!(of(maybe_paused), TorrentState::Adding);
        let moving = Facts {
            is_moving: true,
            ..at(Readiness::Unopened)
        };
        assert_eq!(of(moving), TorrentState::Moving);
        let finished = Facts {
            holds_wanted: true,
            ..facts()
        };
        assert_eq!(of(finished.clone()), TorrentState::Finished);
        let complete = Facts {
            holds_all: true,
            ..finished
        };
        assert_eq!(of(complete.clone()), TorrentState::Seeding);
        for facts in [facts(), complete] {
            let waiting = Facts {
                is_waiting: true,
                ..facts
            };
            assert_eq!(of(waiting), TorrentState::Queued);
        }
    }

    #[test]
    fn faults_come_before_blocks_and_blocks_before_progress() {
        let resource: Arc<str> = "no space left".into();
        assert_eq!(derive(Desired::Run, &full_disk()), Lifecycle::Blocked { resource });
        let unopened = Facts {
            readiness: Readiness::Unopened,
            ..full_disk()
        };
        assert_eq!(state(Desired::Run, &unopened), TorrentState::Blocked);
        let failed = Lifecycle::Failed {
            reason: "bad disk".into(),
            retry_at: None,
        };
        assert_eq!(derive(Desired::Run, &broken()), failed);
    }

    #[test]
    fn intent_decides_unless_a_stop_runs() {
        let begins = TorrentState::Stopping(StopPhase::HaltDownloads);
        for facts in [facts(), full_disk(), broken()] {
            assert_eq!(state(Desired::Pause, &facts), begins);
            let closed = Facts {
                readiness: Readiness::Closed,
                ..facts
            };
            assert_eq!(state(Desired::Pause, &closed), TorrentState::Paused);
        }
        for desired in [Desired::Stop, Desired::Remove] {
            for facts in [facts(), full_disk(), broken()] {
                assert_eq!(state(desired, &facts), begins);
            }
        }
        let phase = StopPhase::WriteSession;
        let saving = Facts {
            phase: Some(phase),
            ..broken()
        };
        for desired in [Desired::Pause, Desired::Stop, Desired::Remove] {
            assert_eq!(derive(desired, &saving), Lifecycle::Stopping { phase });
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for state in TorrentState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        let resource = "disk space".into();
        let shown = format!("{:>9}", Lifecycle::Blocked { resource });
        assert_eq!(shown, "  blocked");
        assert!("stopping".parse::<TorrentState>().is_err());
        assert!(SavedState::Stopped.name().parse::<TorrentState>().is_err());
    }

    #[test]
    fn a_blocked_torrent_sends_and_does_not_receive() {
        let resource = "space".into();
        let blocked = Lifecycle::Blocked { resource };
        assert!(blocked.is_sending() && !blocked.is_receiving());
        let stopping = Lifecycle::Stopping {
            phase: StopPhase::HaltDownloads,
        };
        for moving in [Lifecycle::Downloading, stopping] {
            assert!(moving.is_sending() && moving.is_receiving());
        }
        assert!(!Lifecycle::Paused.is_sending() && !Lifecycle::Adding.is_receiving());
    }
}
