//! The simulated state folder: sessions in their stored form, and blobs, each either the old or the new version, never
//! a mix.

mod control;
mod port;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent_protocol::time::Timestamp;

pub use self::control::StateControl;
pub(super) use self::port::SimState;
use super::NodeId;
use super::disk::Faults;
use super::random::{happens, stream};
use crate::ports::state::{BlobName, Loaded, StateDone, StateError, StateEvent, StateRequest, StoredTorrent};

/// Operations of a state folder that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateOperation {
    /// Listing the saved torrents.
    List,
    /// Loading a session or a blob.
    Load,
    /// Saving a session or a blob; the old one stays if that fails.
    Save,
    /// Removing a session.
    Remove,
}

/// The saved state of one machine, which survives its engine.
pub(super) struct StateFolder {
    sessions: BTreeMap<InfoHash, Kept>,
    torrents: BTreeMap<InfoHash, Kept>,
    blobs: BTreeMap<BlobName, Kept>,
    /// Removed torrents, which may come back in a crash.
    unflushed: BTreeSet<InfoHash>,
    unflushed_blobs: BTreeSet<BlobName>,
    latency: Duration,
    faults: Faults<StateOperation>,
    luck: Random,
}

/// A file: its visible version and its durable version.
#[derive(Default)]
struct Kept {
    seen: Option<Bytes>,
    durable: Option<Bytes>,
}

impl Kept {
    fn crash(&mut self, luck: &mut Random) {
        if happens(luck, 0.5) {
            self.durable.clone_from(&self.seen);
        }
        self.seen.clone_from(&self.durable);
    }
}

impl StateFolder {
    pub(super) fn new(seed: u64, node: NodeId) -> Self {
        Self {
            sessions: BTreeMap::new(),
            torrents: BTreeMap::new(),
            blobs: BTreeMap::new(),
            unflushed: BTreeSet::new(),
            unflushed_blobs: BTreeSet::new(),
            latency: Duration::from_millis(1),
            faults: Faults::default(),
            luck: stream(seed, b"sessions", node),
        }
    }

    pub(super) fn carry_out(&mut self, now: Timestamp, request: StateRequest) -> StateEvent {
        let (tag, operation) = match &request {
            StateRequest::List { tag } => (*tag, StateOperation::List),
            StateRequest::Load { tag, .. } | StateRequest::LoadBlob { tag, .. } => (*tag, StateOperation::Load),
            StateRequest::Save { tag, .. } | StateRequest::SaveBlob { tag, .. } => (*tag, StateOperation::Save),
            StateRequest::Remove { tag, .. } => (*tag, StateOperation::Remove),
        };
        let outcome = match self.faults.strike(operation, now) {
            Some(fault) => Err(StateError(
                format!("cannot use the state folder: {}", fault.error()).into(),
            )),
            None => Ok(self.succeed(request)),
        };
        StateEvent { tag, outcome }
    }

    fn succeed(&mut self, request: StateRequest) -> StateDone {
        match request {
            StateRequest::List { .. } => StateDone::Listed(self.list()),
            StateRequest::SaveBlob { name, bytes, .. } => {
                self.replace_blob(name, bytes);
                self.flush();
                StateDone::Saved
            }
            StateRequest::LoadBlob { name, .. } => {
                StateDone::BlobLoaded(self.blobs.get(&name).and_then(|kept| kept.seen.clone()))
            }
            StateRequest::Load {
                torrent, with_metainfo, ..
            } => StateDone::Loaded(Box::new(self.load(torrent, with_metainfo))),
            StateRequest::Save { session, metainfo, .. } => {
                self.replace_metainfo(session.info_hash, metainfo);
                self.replace_session(&session);
                self.flush();
                StateDone::Saved
            }
            StateRequest::Remove { torrent, .. } => {
                for kept in [&mut self.sessions, &mut self.torrents] {
                    if let Some(kept) = kept.get_mut(&torrent) {
                        kept.seen = None;
                    }
                }
                self.unflushed.insert(torrent);
                StateDone::Removed
            }
        }
    }

    /// Returns the content of a blob.
    pub(super) fn blob(&self, name: &BlobName) -> Option<Bytes> {
        self.blobs.get(name)?.seen.clone()
    }

    fn list(&self) -> Vec<StoredTorrent> {
        let is_there = |files: &BTreeMap<InfoHash, Kept>, torrent: &InfoHash| {
            files.get(torrent).is_some_and(|kept| kept.seen.is_some())
        };
        let all: BTreeSet<InfoHash> = self.sessions.keys().chain(self.torrents.keys()).copied().collect();
        let stored = all.into_iter().map(|torrent| StoredTorrent {
            torrent,
            has_session: is_there(&self.sessions, &torrent),
            has_metainfo: is_there(&self.torrents, &torrent),
        });
        stored
            .filter(|stored| stored.has_session || stored.has_metainfo)
            .collect()
    }

    fn replace_blob(&mut self, name: BlobName, bytes: Bytes) {
        self.blobs.entry(name.clone()).or_default().seen = Some(bytes);
        self.unflushed_blobs.insert(name);
    }

    fn replace_metainfo(&mut self, torrent: InfoHash, metainfo: Option<Bytes>) {
        if let Some(bytes) = metainfo {
            self.torrents.entry(torrent).or_default().seen = Some(bytes);
            self.unflushed.insert(torrent);
        }
    }

    fn replace_session(&mut self, session: &Session) {
        self.sessions.entry(session.info_hash).or_default().seen = Some(session.to_text().into());
        self.unflushed.insert(session.info_hash);
    }

    /// Makes the folder's contents durable.
    fn flush(&mut self) {
        for name in std::mem::take(&mut self.unflushed_blobs) {
            if let Some(kept) = self.blobs.get_mut(&name) {
                kept.durable.clone_from(&kept.seen);
            }
        }
        for torrent in std::mem::take(&mut self.unflushed) {
            for files in [&mut self.sessions, &mut self.torrents] {
                if let Some(kept) = files.get_mut(&torrent) {
                    kept.durable.clone_from(&kept.seen);
                    if kept.seen.is_none() {
                        files.remove(&torrent);
                    }
                }
            }
        }
    }

    /// Carries out a random part of requests that were in progress when the engine ended.
    pub(super) fn interrupt(&mut self, unfinished: Vec<StateRequest>) {
        for request in unfinished {
            match request {
                // In order: the second file is replaced only if the first was.
                StateRequest::Save { session, metainfo, .. } if happens(&mut self.luck, 0.6) => {
                    self.replace_metainfo(session.info_hash, metainfo);
                    if happens(&mut self.luck, 0.6) {
                        self.replace_session(&session);
                    }
                }
                StateRequest::SaveBlob { name, bytes, .. } if happens(&mut self.luck, 0.6) => {
                    self.replace_blob(name, bytes);
                }
                _ => {}
            }
        }
    }

    /// Applies a power failure.
    pub(super) fn crash(&mut self) {
        for name in std::mem::take(&mut self.unflushed_blobs) {
            if let Some(kept) = self.blobs.get_mut(&name) {
                kept.crash(&mut self.luck);
            }
        }
        for torrent in std::mem::take(&mut self.unflushed) {
            for files in [&mut self.sessions, &mut self.torrents] {
                if let Some(kept) = files.get_mut(&torrent) {
                    kept.crash(&mut self.luck);
                }
            }
        }
    }

    fn load(&self, torrent: InfoHash, with_metainfo: bool) -> Loaded {
        let mut loaded = Loaded::default();
        if let Some(text) = self.sessions.get(&torrent).and_then(|kept| kept.seen.clone()) {
            match Session::parse(&text, torrent) {
                Ok(session) => loaded.session = Some(session),
                Err(error) => {
                    loaded.set_aside = Some(error.to_string());
                    loaded.salvage = Session::salvage(&text, torrent);
                }
            }
        }
        let metainfo = self.torrents.get(&torrent).and_then(|kept| kept.seen.clone());
        loaded.has_metainfo = metainfo.is_some();
        if with_metainfo {
            let bytes = metainfo.ok_or_else(|| "No such file or directory".to_owned());
            let parse = |bytes: Bytes| Metainfo::parse(&bytes, &MetainfoLimits::default()).map_err(|e| e.to_string());
            loaded.metainfo = Some(bytes.and_then(parse).map(Arc::new));
        }
        loaded
    }
}

#[cfg(test)]
mod tests {
    use bevy_ecs::entity::Entity;

    use super::super::disk::{DiskFault, Lasting};
    use super::*;
    use crate::port::JobTag;
    use crate::purpose;

    fn session(uploaded: u64) -> Box<Session> {
        Box::new(Session {
            name: "name".into(),
            root: "root".into(),
            total_size: 1,
            piece_length: 1,
            pieces: 1,
            uploaded,
            ..Session::new(InfoHash([1; 20]))
        })
    }

    fn save(uploaded: u64) -> StateRequest {
        StateRequest::Save {
            tag: JobTag::new(purpose!("test"), Entity::PLACEHOLDER),
            session: session(uploaded),
            metainfo: None,
        }
    }

    fn uploaded(folder: &mut StateFolder) -> Option<u64> {
        folder
            .load(InfoHash([1; 20]), false)
            .session
            .map(|session| session.uploaded)
    }

    #[test]
    fn saved_sessions_survive_and_others_are_whole() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut folder = StateFolder::new(seed, NodeId(0));
            folder.carry_out(Timestamp::ZERO, save(1));
            folder.interrupt(vec![save(2)]);
            folder.crash();
            seen.extend(uploaded(&mut folder));
        }
        assert_eq!(seen, BTreeSet::from([1, 2]), "the old one or the new one");
    }

    fn blob(folder: &mut StateFolder) -> Option<Bytes> {
        let (tag, name) = (
            JobTag::new(purpose!("test"), Entity::PLACEHOLDER),
            BlobName::new("table"),
        );
        let name = name.unwrap();
        match folder
            .carry_out(Timestamp::ZERO, StateRequest::LoadBlob { tag, name })
            .outcome
        {
            Ok(StateDone::BlobLoaded(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    fn save_blob(bytes: &'static [u8]) -> StateRequest {
        StateRequest::SaveBlob {
            tag: JobTag::new(purpose!("test"), Entity::PLACEHOLDER),
            name: BlobName::new("table").unwrap(),
            bytes: Bytes::from_static(bytes),
        }
    }

    #[test]
    fn a_saved_blob_survives_and_an_interrupted_one_is_whole() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut folder = StateFolder::new(seed, NodeId(0));
            assert_eq!(blob(&mut folder), None);
            folder.interrupt(vec![save_blob(b"never acknowledged")]);
            folder.crash();
            let before = blob(&mut folder);
            assert!(before.is_none_or(|bytes| bytes == "never acknowledged"));
            folder.carry_out(Timestamp::ZERO, save_blob(b"old"));
            folder.interrupt(vec![save_blob(b"new")]);
            folder.crash();
            seen.extend(blob(&mut folder));
        }
        assert_eq!(
            seen,
            BTreeSet::from([Bytes::from_static(b"old"), Bytes::from_static(b"new")])
        );
    }

    #[test]
    fn torrents_are_listed_by_session_or_metainfo() {
        let mut folder = StateFolder::new(1, NodeId(0));
        assert_eq!(folder.list(), []);
        folder.carry_out(Timestamp::ZERO, save(1));
        let mut stored = StoredTorrent {
            torrent: InfoHash([1; 20]),
            has_session: true,
            has_metainfo: false,
        };
        assert_eq!(folder.list(), [stored]);
        folder.replace_metainfo(stored.torrent, Some(Bytes::from_static(b"metainfo")));
        stored.has_metainfo = true;
        assert_eq!(folder.list(), [stored]);
        let (tag, torrent) = (JobTag::new(purpose!("test"), Entity::PLACEHOLDER), stored.torrent);
        folder.carry_out(Timestamp::ZERO, StateRequest::Remove { tag, torrent });
        assert_eq!(folder.list(), []);
    }

    #[test]
    fn removed_entries_may_be_added_again() {
        let torrent = InfoHash([1; 20]);
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut folder = StateFolder::new(seed, NodeId(0));
            folder.carry_out(Timestamp::ZERO, save(1));
            let tag = JobTag::new(purpose!("test"), Entity::PLACEHOLDER);
            folder.carry_out(Timestamp::ZERO, StateRequest::Remove { tag, torrent });
            assert_eq!(uploaded(&mut folder), None);
            folder.crash();
            seen.insert(uploaded(&mut folder));
        }
        assert_eq!(seen, BTreeSet::from([None, Some(1)]));
    }

    #[test]
    fn a_failed_save_leaves_the_old_one() {
        let mut folder = StateFolder::new(1, NodeId(0));
        folder.carry_out(Timestamp::ZERO, save(1));
        folder
            .faults
            .add(StateOperation::Save, DiskFault::Full, Lasting::Next(1));
        assert!(folder.carry_out(Timestamp::ZERO, save(2)).outcome.is_err());
        assert_eq!(uploaded(&mut folder), Some(1));
        assert!(folder.carry_out(Timestamp::ZERO, save(3)).outcome.is_ok());
        assert_eq!(uploaded(&mut folder), Some(3));
    }
}
