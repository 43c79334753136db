//! A scenario's access to a state folder: faults, damage and inspection.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;

use super::super::NodeId;
use super::super::disk::{DiskFault, Lasting};
use super::super::fabric::{Fabric, lock};
use super::{StateFolder, StateOperation};

/// Controls a node's state folder; all changes take effect at once.
pub struct StateControl<'s> {
    pub(in super::super) fabric: &'s Mutex<Fabric>,
    pub(in super::super) node: NodeId,
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
