//! The simulated state folder: sessions in their stored form, each either the old or the new version, never a mix.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use ecs_torrent_protocol::time::Timestamp;

use super::disk::{DiskFault, Faults, Lasting};
use super::fabric::{Fabric, lock};
use super::hub::{Mail, open, take};
use super::jobs::Work;
use super::random::{happens, stream};
use super::{Crash, NodeId};
use crate::port::Backend;
use crate::ports::state::{Loaded, StateDone, StateError, StateEvent, StateRequest};

/// Operations of a state folder that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateOperation {
    /// Listing the saved torrents.
    List,
    /// Loading a session.
    Load,
    /// Saving a session; the old one stays if that fails.
    Save,
    /// Removing a session.
    Remove,
}

/// The saved state of one machine, which survives its engine.
pub(super) struct StateFolder {
    sessions: BTreeMap<InfoHash, Kept>,
    torrents: BTreeMap<InfoHash, Kept>,
    /// Removed torrents, which may come back in a crash.
    unflushed: BTreeSet<InfoHash>,
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
            unflushed: BTreeSet::new(),
            latency: Duration::from_millis(1),
            faults: Faults::default(),
            luck: stream(seed, b"sessions", node),
        }
    }

    pub(super) fn carry_out(&mut self, now: Timestamp, request: StateRequest) -> StateEvent {
        let (tag, operation) = match &request {
            StateRequest::List { tag } => (*tag, StateOperation::List),
            StateRequest::Load { tag, .. } => (*tag, StateOperation::Load),
            StateRequest::Save { tag, .. } => (*tag, StateOperation::Save),
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
            StateRequest::List { .. } => {
                let listed = self.torrents.iter().filter(|(_, kept)| kept.seen.is_some());
                StateDone::Listed(listed.map(|(torrent, _)| *torrent).collect())
            }
            StateRequest::Load {
                torrent,
                with_metainfo,
                is_peek,
                ..
            } => StateDone::Loaded(Box::new(self.load(torrent, with_metainfo, is_peek))),
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

    /// Applies a crash while `unfinished` requests were in progress.
    pub(super) fn crash(&mut self, unfinished: Vec<StateRequest>, crash: Crash) {
        for request in unfinished {
            if let StateRequest::Save { session, metainfo, .. } = request {
                // In order: the second file is replaced only if the first was.
                if happens(&mut self.luck, 0.6) {
                    self.replace_metainfo(session.info_hash, metainfo);
                    if happens(&mut self.luck, 0.6) {
                        self.replace_session(&session);
                    }
                }
            }
        }
        if crash == Crash::Process {
            return;
        }
        for torrent in std::mem::take(&mut self.unflushed) {
            for files in [&mut self.sessions, &mut self.torrents] {
                if let Some(kept) = files.get_mut(&torrent) {
                    kept.crash(&mut self.luck);
                }
            }
        }
    }

    fn load(&mut self, torrent: InfoHash, with_metainfo: bool, is_peek: bool) -> Loaded {
        let mut loaded = Loaded::default();
        if let Some(kept) = self.sessions.get_mut(&torrent)
            && let Some(text) = kept.seen.clone()
        {
            match Session::parse(&text, torrent) {
                Ok(session) => loaded.session = Some(session),
                Err(error) => {
                    if !is_peek {
                        kept.seen = None;
                    }
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

/// The State port of a simulated engine.
pub(super) struct SimState {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
    mail: Mail,
}

impl SimState {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        let mail = lock(&fabric).hub.mail(node);
        Self { node, fabric, mail }
    }
}

impl Backend<StateRequest, StateEvent> for SimState {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        let mut fabric = lock(&self.fabric);
        for request in requests.drain(..) {
            let latency = fabric.machines[self.node.0].state.latency;
            fabric.begin(self.node, latency, Work::State(request));
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
        take(&mut open(&self.mail).state, max, events)
    }
}

/// Controls a node's state folder; all changes take effect at once.
pub struct StateControl<'s> {
    pub(super) fabric: &'s Mutex<Fabric>,
    pub(super) node: NodeId,
}

impl StateControl<'_> {
    fn with<T>(&self, work: impl FnOnce(&mut StateFolder) -> T) -> T {
        work(&mut lock(self.fabric).machines[self.node.0].state)
    }

    /// Sets the time that every operation takes, from now on. Default 1 ms.
    pub fn set_latency(&self, latency: Duration) {
        self.with(|folder| folder.latency = latency);
    }

    /// Makes an operation fail, for as long as `lasting` says.
    pub fn fail(&self, operation: StateOperation, fault: DiskFault, lasting: Lasting) {
        self.with(|folder| folder.faults.add(operation, fault, lasting));
    }

    /// Ends all faults.
    pub fn mend(&self) {
        self.with(|folder| folder.faults.clear());
    }

    /// The saved session of a torrent, if there is one that can be read.
    #[must_use]
    pub fn session(&self, torrent: InfoHash) -> Option<Session> {
        let text = self.with(|folder| folder.sessions.get(&torrent)?.seen.clone())?;
        Session::parse(&text, torrent).ok()
    }

    /// The stored bytes of a session: the same memory until the session is written again.
    #[must_use]
    pub fn session_text(&self, torrent: InfoHash) -> Option<Bytes> {
        self.with(|folder| folder.sessions.get(&torrent)?.seen.clone())
    }

    /// The torrents with saved state, in the order of their hashes.
    #[must_use]
    pub fn torrents(&self) -> Vec<InfoHash> {
        self.with(|folder| {
            let kept = folder.torrents.iter().filter(|(_, kept)| kept.seen.is_some());
            kept.map(|(torrent, _)| *torrent).collect()
        })
    }

    /// Replaces a saved session with other bytes, as a bad disk does.
    pub fn damage(&self, torrent: InfoHash, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.with(|folder| {
            let kept = folder.sessions.entry(torrent).or_default();
            kept.seen = Some(bytes);
            kept.durable.clone_from(&kept.seen);
        });
    }
}

#[cfg(test)]
mod tests {
    use bevy_ecs::entity::Entity;
    use ecs_torrent_components::session::{Runs, VERSION};

    use super::*;
    use crate::port::{JobTag, Purpose};

    fn session(uploaded: u64) -> Box<Session> {
        Box::new(Session {
            version: VERSION,
            info_hash: InfoHash([1; 20]),
            name: "name".into(),
            renamed: None,
            root: "root".into(),
            resolved: None,
            volume: None,
            total_size: 1,
            piece_length: 1,
            pieces: 1,
            have: Runs::default(),
            partial: Vec::new(),
            uploaded,
            downloaded: 0,
            corrupt: 0,
            dropped: 0,
            wasted: 0,
            seconds_active: 0,
            require_complete: false,
            files: Vec::new(),
            created: Runs::default(),
            ids: Vec::new(),
            overwrite: false,
            lost: Runs::default(),
            peers: Vec::new(),
            trackers: Vec::new(),
        })
    }

    fn save(uploaded: u64) -> StateRequest {
        StateRequest::Save {
            tag: JobTag::new(Purpose("test"), Entity::PLACEHOLDER),
            session: session(uploaded),
            metainfo: None,
        }
    }

    fn uploaded(folder: &mut StateFolder) -> Option<u64> {
        folder
            .load(InfoHash([1; 20]), false, false)
            .session
            .map(|session| session.uploaded)
    }

    #[test]
    fn what_was_saved_survives_and_what_was_not_is_whole() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut folder = StateFolder::new(seed, NodeId(0));
            folder.carry_out(Timestamp::ZERO, save(1));
            folder.crash(vec![save(2)], Crash::Power);
            seen.extend(uploaded(&mut folder));
        }
        assert_eq!(seen, BTreeSet::from([1, 2]), "the old one or the new one");
    }

    #[test]
    fn what_was_removed_may_come_back() {
        let torrent = InfoHash([1; 20]);
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut folder = StateFolder::new(seed, NodeId(0));
            folder.carry_out(Timestamp::ZERO, save(1));
            let tag = JobTag::new(Purpose("test"), Entity::PLACEHOLDER);
            folder.carry_out(Timestamp::ZERO, StateRequest::Remove { tag, torrent });
            assert_eq!(uploaded(&mut folder), None);
            folder.crash(vec![], Crash::Power);
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
