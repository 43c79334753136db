//! State that every part of a simulation uses: the time, the event queue, the nodes' inboxes, the trace.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::settings::NetSettings;
use ecs_torrent_protocol::time::Timestamp;

use super::NodeId;
use super::agenda::Agenda;
use super::contents::Contents;
use super::queue::{EventQueue, SimEvent};
use super::trace::Trace;
use crate::ports::disk::DiskEvent;
use crate::ports::hash::HashEvent;
use crate::ports::http::HttpEvent;
use crate::ports::net::{DatagramKind, DatagramRings, Filter, NetEvent};
use crate::ports::state::StateEvent;

pub(super) struct Hub {
    pub(super) now: Timestamp,
    pub(super) seed: u64,
    pub(super) queue: EventQueue,
    pub(super) agenda: Agenda,
    pub(super) contents: Contents,
    /// `None` if the simulation is untraced.
    pub(super) trace: Option<Trace>,
    /// Each inbox has a lock of its own, so that engines that tick in parallel do not wait for each other.
    inboxes: Vec<Mail>,
}

/// A node's inbox, shared with its backends.
pub(super) type Mail = Arc<Mutex<Inbox>>;

/// Events of a node that it has not polled yet.
pub(super) struct Inbox {
    pub(super) net: VecDeque<NetEvent>,
    pub(super) datagrams: DatagramRings,
    pub(super) disk: VecDeque<DiskEvent>,
    pub(super) hash: VecDeque<HashEvent>,
    pub(super) http: VecDeque<HttpEvent>,
    pub(super) state: VecDeque<StateEvent>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            net: VecDeque::new(),
            datagrams: rings(),
            disk: VecDeque::new(),
            hash: VecDeque::new(),
            http: VecDeque::new(),
            state: VecDeque::new(),
        }
    }
}

fn rings() -> DatagramRings {
    let settings = NetSettings::default();
    DatagramRings::new(settings.max_datagrams, settings.max_datagrams_per_tick)
}

impl Hub {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            now: Timestamp::ZERO,
            seed,
            queue: EventQueue::default(),
            agenda: Agenda::default(),
            contents: Contents::default(),
            trace: Some(Trace::default()),
            inboxes: Vec::new(),
        }
    }

    pub(super) fn add_node(&mut self) -> NodeId {
        self.agenda.add();
        self.inboxes.push(Mail::default());
        NodeId(self.inboxes.len() - 1)
    }

    pub(super) fn plan(&mut self, delay: Duration, what: SimEvent) {
        self.queue.plan(self.now + delay, what);
    }

    pub(super) fn mail(&self, node: NodeId) -> Mail {
        self.inboxes[node.0].clone()
    }

    fn inbox(&self, node: NodeId) -> MutexGuard<'_, Inbox> {
        open(&self.inboxes[node.0])
    }

    /// Drops the events that a node has not polled.
    pub(super) fn clear_inbox(&mut self, node: NodeId) {
        *self.inbox(node) = Inbox::default();
    }

    pub(super) fn deliver_net(&mut self, node: NodeId, event: NetEvent) {
        if let Some(trace) = &mut self.trace {
            trace.net(self.now, node, &self.contents, &event);
        }
        let inbox = &mut *open(&self.inboxes[node.0]);
        let inbox = &mut inbox.net;
        match (&event, inbox.back_mut()) {
            // Merges consecutive `Sent` events of a stream.
            (
                NetEvent::Sent { stream, bytes },
                Some(NetEvent::Sent {
                    stream: last,
                    bytes: sum,
                }),
            ) if stream == last => {
                *sum += bytes;
            }
            _ => inbox.push_back(event),
        }
        self.agenda.wake(node, self.now);
    }

    /// Puts a datagram into a node's ring, if the inbox of its kind is open.
    pub(super) fn deliver_datagram(&mut self, node: NodeId, from: SocketAddr, to: SocketAddr, data: &Bytes) {
        if let Some(trace) = &mut self.trace {
            trace.datagram(self.now, node, from, data);
        }
        let is_taken = self
            .inbox(node)
            .datagrams
            .push(from, to, self.now, data, || data.clone());
        if is_taken {
            self.agenda.wake(node, self.now);
        }
    }

    /// Delivers a datagram of a multicast group.
    pub(super) fn deliver_multicast(&mut self, node: NodeId, from: SocketAddr, to: SocketAddr, data: &Bytes) {
        if let Some(trace) = &mut self.trace {
            trace.datagram(self.now, node, from, data);
        }
        let (kind, copy) = (DatagramKind::LocalDiscovery, || data.clone());
        let is_taken = self.inbox(node).datagrams.push_as(kind, from, to, self.now, copy);
        if is_taken {
            self.agenda.wake(node, self.now);
        }
    }

    /// Lets a filter transform the bytes of a stream that a node has not polled. They end at `end`.
    pub(super) fn filter_waiting(&self, node: NodeId, stream: StreamId, end: u64, filter: &mut Filter) {
        filter.apply_to_waiting(stream, end, self.inbox(node).net.iter_mut());
    }

    pub(super) fn deliver_disk(&mut self, node: NodeId, event: DiskEvent) {
        if let Some(trace) = &mut self.trace {
            trace.disk(self.now, node, &self.contents, &event);
        }
        self.inbox(node).disk.push_back(event);
        self.agenda.wake(node, self.now);
    }

    pub(super) fn deliver_hash(&mut self, node: NodeId, event: HashEvent) {
        if let Some(trace) = &mut self.trace {
            trace.hash(self.now, node, &event);
        }
        self.inbox(node).hash.push_back(event);
        self.agenda.wake(node, self.now);
    }

    pub(super) fn deliver_http(&mut self, node: NodeId, event: HttpEvent) {
        if let Some(trace) = &mut self.trace {
            trace.http(self.now, node, &event);
        }
        self.inbox(node).http.push_back(event);
        self.agenda.wake(node, self.now);
    }

    pub(super) fn deliver_state(&mut self, node: NodeId, event: StateEvent) {
        if let Some(trace) = &mut self.trace {
            trace.state(self.now, node, &event);
        }
        self.inbox(node).state.push_back(event);
        self.agenda.wake(node, self.now);
    }

    /// Adds another event to the trace, by a number for its kind.
    pub(super) fn record(&mut self, node: NodeId, kind: u64) {
        if let Some(trace) = &mut self.trace {
            trace.head(self.now, node, kind);
        }
    }
}

pub(super) fn open(mail: &Mail) -> MutexGuard<'_, Inbox> {
    mail.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves at most `max` events out of an inbox; true if there are more.
pub(super) fn take<E>(inbox: &mut VecDeque<E>, max: usize, events: &mut Vec<E>) -> bool {
    let count = inbox.len().min(max);
    events.extend(inbox.drain(..count));
    !inbox.is_empty()
}
