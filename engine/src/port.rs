//! Ports: the only doors between a world and everything outside it.
//!
//! A system pushes requests; at the end of the tick they go to the backend together. At the head of the next tick
//! what has come back is sorted by purpose into inboxes, where the system that asked takes it out.

use std::fmt;

use bevy_ecs::prelude::*;

/// What does a port's work: real, or simulated. Neither call may block.
pub trait Backend<R, E>: Send + Sync + 'static {
    /// Takes all requests out of `requests` and begins them.
    fn submit(&mut self, requests: &mut Vec<R>);

    /// Appends at most `max` events to `events`, the oldest first; true if there are more.
    fn poll(&mut self, max: usize, events: &mut Vec<E>) -> bool;
}

/// Who a request is for and comes back to; a feature's own name for a kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Purpose(pub &'static str);

/// Names one piece of work, and comes back with its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobTag {
    /// Which inbox the result goes to.
    pub purpose: Purpose,
    /// The entity it is for; may be gone when the result comes.
    pub owner: Entity,
    /// The feature's own number for it.
    pub number: u64,
}

impl JobTag {
    /// Work of which its owner has one at a time, so that it needs no number.
    #[must_use]
    pub fn new(purpose: Purpose, owner: Entity) -> Self {
        Self {
            purpose,
            owner,
            number: 0,
        }
    }
}

/// An event that knows its inbox.
pub trait PortEvent: fmt::Debug + Send + Sync + 'static {
    /// Where it belongs.
    fn purpose(&self) -> Purpose;
}

/// One port. See the aliases in [`ports`](crate::ports).
#[derive(Resource)]
pub struct Port<R: Send + Sync + 'static, E: PortEvent> {
    outgoing: Vec<R>,
    drained: Vec<E>,
    inboxes: Vec<(Purpose, Vec<E>)>,
    backend: Box<dyn Backend<R, E>>,
    /// Events that came at the head of this tick.
    arrived: usize,
}

impl<R: Send + Sync + 'static, E: PortEvent> Port<R, E> {
    /// A port that `backend` serves.
    #[must_use]
    pub fn new(backend: Box<dyn Backend<R, E>>) -> Self {
        Self {
            outgoing: Vec::new(),
            drained: Vec::new(),
            inboxes: Vec::new(),
            backend,
            arrived: 0,
        }
    }

    /// Queues a request; it leaves at the end of the tick.
    pub fn push(&mut self, request: R) {
        self.outgoing.push(request);
    }

    /// Takes all events for `purpose`, the oldest first.
    pub fn take(&mut self, purpose: Purpose) -> std::vec::Drain<'_, E> {
        let position = self.inboxes.iter().position(|(other, _)| *other == purpose);
        let position = position.unwrap_or_else(|| {
            self.inboxes.push((purpose, Vec::new()));
            self.inboxes.len() - 1
        });
        self.inboxes[position].1.drain(..)
    }

    /// What has been queued in this tick so far, in its order: for who wants to look.
    #[must_use]
    pub fn outgoing(&self) -> &[R] {
        &self.outgoing
    }

    /// Whether nothing came back in this tick, and nothing has been queued.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.arrived == 0 && self.outgoing.is_empty()
    }

    /// Sorts what has come back into inboxes, at most `max` events; true if there are more.
    pub(crate) fn drain(&mut self, max: usize) -> bool {
        let has_more = self.backend.poll(max, &mut self.drained);
        self.arrived = self.drained.len();
        for event in self.drained.drain(..) {
            let purpose = event.purpose();
            match self.inboxes.iter_mut().find(|(other, _)| *other == purpose) {
                Some((_, inbox)) => inbox.push(event),
                None => self.inboxes.push((purpose, vec![event])),
            }
        }
        has_more
    }

    /// Hands all requests to the backend.
    pub(crate) fn flush(&mut self) {
        if !self.outgoing.is_empty() {
            self.backend.submit(&mut self.outgoing);
        }
    }
}

impl<R: Send + Sync + 'static, E: PortEvent> fmt::Debug for Port<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({} requests waiting)", self.outgoing.len())
    }
}
