//! The simulated state folder: sessions in memory, in their form on the disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};

use super::fabric::{Event, Fabric};
use super::{NodeId, lock};
use crate::port::Backend;
use crate::ports::state::{Loaded, StateDone, StateEvent, StateRequest};

/// What one node keeps: it stays when the engine goes.
#[derive(Default)]
pub(super) struct Sessions(BTreeMap<InfoHash, (String, Option<Bytes>)>);

impl Sessions {
    fn carry_out(&mut self, request: StateRequest) -> StateEvent {
        let (tag, done) = match request {
            StateRequest::List { tag } => (tag, StateDone::Listed(self.0.keys().copied().collect())),
            StateRequest::Load {
                tag,
                torrent,
                with_metainfo,
            } => (tag, StateDone::Loaded(Box::new(self.load(torrent, with_metainfo)))),
            StateRequest::Save { tag, session, metainfo } => {
                let entry = self.0.entry(session.info_hash).or_default();
                entry.0 = session.to_text();
                entry.1 = metainfo.or(entry.1.take());
                (tag, StateDone::Saved)
            }
            StateRequest::Remove { tag, torrent } => {
                self.0.remove(&torrent);
                (tag, StateDone::Removed)
            }
        };
        let outcome = Ok(done);
        StateEvent { tag, outcome }
    }

    fn load(&self, torrent: InfoHash, with_metainfo: bool) -> Loaded {
        let mut loaded = Loaded::default();
        let Some((text, bytes)) = self.0.get(&torrent) else {
            return loaded;
        };
        match Session::parse(text.as_bytes(), torrent) {
            Ok(session) => loaded.session = Some(session),
            Err(error) => loaded.set_aside = Some(error.to_string()),
        }
        loaded.has_metainfo = bytes.is_some();
        if let Some(bytes) = bytes.as_ref().filter(|_| with_metainfo) {
            let parsed = Metainfo::parse(bytes, &MetainfoLimits::default());
            loaded.metainfo = Some(parsed.map(Arc::new).map_err(|error| error.to_string()));
        }
        loaded
    }
}

/// The State port of a simulated engine.
pub(super) struct SimState {
    node: NodeId,
    fabric: Arc<Mutex<Fabric>>,
}

impl SimState {
    pub(super) fn new(node: NodeId, fabric: Arc<Mutex<Fabric>>) -> Self {
        Self { node, fabric }
    }
}

impl Backend<StateRequest, StateEvent> for SimState {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        let mut fabric = lock(&self.fabric);
        for request in requests.drain(..) {
            let event = fabric.sessions[self.node.0].carry_out(request);
            let latency = fabric.latency;
            fabric.schedule(self.node, latency, Event::State(event));
        }
    }

    fn poll(&mut self, _max: usize, events: &mut Vec<StateEvent>) -> bool {
        lock(&self.fabric).take_state(self.node, events);
        false
    }
}
