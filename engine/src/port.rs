//! Ports: the only interface between a world and everything outside it.
//!
//! A system pushes requests, which go to the backend together at the end of the tick. At the start of the next tick,
//! results are sorted by purpose into inboxes, and the system that made the request takes them out.

use std::any::TypeId;
use std::fmt;
use std::hash::{Hash, Hasher};

use bevy_app::App;
use bevy_ecs::prelude::*;

/// The implementation behind a port, real or simulated. Neither method may block.
///
/// ```
/// use ecs_torrent_engine::port::{Backend, Port};
/// use ecs_torrent_engine::ports::state::{StateDone, StateEvent, StateRequest};
///
/// /// A state folder that is always empty, for an embedder that stores nothing.
/// #[derive(Default)]
/// struct Empty(Vec<StateEvent>);
///
/// impl Backend<StateRequest, StateEvent> for Empty {
///     fn submit(&mut self, requests: &mut Vec<StateRequest>) {
///         for request in requests.drain(..) {
///             if let StateRequest::List { tag } = request {
///                 self.0.push(StateEvent { tag, outcome: Ok(StateDone::Listed(Vec::new())) });
///             }
///         }
///     }
///
///     fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
///         let count = self.0.len().min(max);
///         events.extend(self.0.drain(..count));
///         !self.0.is_empty()
///     }
/// }
///
/// let port = Port::new(Box::new(Empty::default()));
/// assert!(port.is_idle());
/// ```
pub trait Backend<R, E>: Send + Sync + 'static {
    /// Takes all requests out of `requests` and starts them.
    fn submit(&mut self, requests: &mut Vec<R>);

    /// Appends at most `max` events to `events`, oldest first; returns true if there are more.
    fn poll(&mut self, max: usize, events: &mut Vec<E>) -> bool;

    /// Opens an inbox: a system takes its events. A backend may drop unrequested events of other inboxes. A backend
    /// that wraps another one forwards this call.
    fn open_inbox(&mut self, _purpose: Purpose) {}
}

/// The inbox for the results of one kind of work. The feature that requests the work makes one with
/// [`purpose!`](crate::purpose); no two are equal, whatever their names.
#[derive(Clone, Copy)]
pub struct Purpose {
    id: TypeId,
    name: &'static str,
}

impl Purpose {
    /// Creates the purpose that a type stands for. `name` describes the work, human-readable.
    #[must_use]
    pub const fn of<T: 'static>(name: &'static str) -> Self {
        let id = TypeId::of::<T>();
        Self { id, name }
    }

    /// Returns the description of the work.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }
}

/// Makes a [`Purpose`](crate::port::Purpose) that differs from every other one.
///
/// ```
/// use ecs_torrent_engine::port::Purpose;
/// use ecs_torrent_engine::purpose;
///
/// const READ: Purpose = purpose!("read cover images");
/// const OTHER: Purpose = purpose!("read cover images");
/// assert_eq!(READ.name(), OTHER.name());
/// assert_ne!(READ, OTHER);
/// ```
#[macro_export]
macro_rules! purpose {
    ($name:literal) => {{
        struct Unique;
        $crate::port::Purpose::of::<Unique>($name)
    }};
}

impl PartialEq for Purpose {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Purpose {}

impl Hash for Purpose {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl fmt::Debug for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Purpose({:?})", self.name)
    }
}

/// Identifies one piece of work; the result carries it back. A feature that keeps more data about its work than the
/// owner uses [`Jobs`](crate::jobs::Jobs), which creates the tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobTag {
    /// The inbox for the result.
    pub purpose: Purpose,
    /// The entity the work is for; it may no longer exist when the result arrives.
    pub owner: Entity,
    /// The feature's own number for the work: the number of the context in [`Jobs`](crate::jobs::Jobs), or one that the
    /// feature counts itself.
    pub number: u64,
}

impl JobTag {
    /// Creates a tag for work that its owner does one at a time, so it needs no number.
    #[must_use]
    pub fn new(purpose: Purpose, owner: Entity) -> Self {
        Self {
            purpose,
            owner,
            number: 0,
        }
    }

    /// Returns the tag for the next request of the same work.
    #[must_use]
    pub fn followed_by(self, purpose: Purpose) -> Self {
        Self { purpose, ..self }
    }
}

/// An event that names its inbox.
pub trait PortEvent: fmt::Debug + Send + Sync + 'static {
    /// Returns the inbox the event belongs to.
    fn purpose(&self) -> Purpose;
}

/// A port: queued requests, and inboxes of events. See the aliases in [`ports`](crate::ports).
#[derive(Resource)]
pub struct Port<R: Send + Sync + 'static, E: PortEvent> {
    outgoing: Vec<R>,
    drained: Vec<E>,
    inboxes: Vec<(Purpose, Vec<E>)>,
    backend: Box<dyn Backend<R, E>>,
    /// Events that arrived at the start of this tick.
    arrived: usize,
    /// Events in all inboxes.
    waiting: usize,
    /// Events for inboxes that nobody opened.
    unclaimed: u64,
}

impl<R: Send + Sync + 'static, E: PortEvent> Port<R, E> {
    /// Creates a port served by `backend`.
    #[must_use]
    pub fn new(backend: Box<dyn Backend<R, E>>) -> Self {
        Self {
            outgoing: Vec::new(),
            drained: Vec::new(),
            inboxes: Vec::new(),
            backend,
            arrived: 0,
            waiting: 0,
            unclaimed: 0,
        }
    }

    /// Queues a request; it leaves at the end of the tick.
    pub fn push(&mut self, request: R) {
        self.outgoing.push(request);
    }

    /// Opens the inbox of a purpose. Plugins do so when they are built, for events that come unrequested. An inbox that
    /// is not open drops its events; the first [`Port::take`] opens it too.
    pub fn open_inbox(&mut self, purpose: Purpose) {
        self.position(purpose);
    }

    /// Returns the number of events that were dropped because nobody had opened their inbox.
    #[must_use]
    pub fn unclaimed_count(&self) -> u64 {
        self.unclaimed
    }

    /// Takes all events for `purpose`, oldest first.
    pub fn take(&mut self, purpose: Purpose) -> std::vec::Drain<'_, E> {
        let position = self.position(purpose);
        let inbox = &mut self.inboxes[position].1;
        self.waiting -= inbox.len();
        inbox.drain(..)
    }

    /// Returns whether any inbox holds events.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.waiting > 0
    }

    /// Returns whether the inbox of `purpose` holds events, or is not open yet. So a system with this run condition
    /// runs once and opens its inbox.
    #[must_use]
    pub fn has_events_for(&self, purpose: Purpose) -> bool {
        let inbox = self.inboxes.iter().find(|(other, _)| *other == purpose);
        inbox.is_none_or(|(_, inbox)| !inbox.is_empty())
    }

    /// Returns the events in the inbox of `purpose`, oldest first, for inspection.
    #[must_use]
    pub fn incoming(&self, purpose: Purpose) -> &[E] {
        let inbox = self.inboxes.iter().find(|(other, _)| *other == purpose);
        inbox.map_or(&[], |(_, inbox)| inbox)
    }

    fn position(&mut self, purpose: Purpose) -> usize {
        let position = self.inboxes.iter().position(|(other, _)| *other == purpose);
        position.unwrap_or_else(|| {
            self.backend.open_inbox(purpose);
            self.inboxes.push((purpose, Vec::new()));
            self.inboxes.len() - 1
        })
    }

    /// Returns the requests queued in this tick so far, in order, for inspection.
    #[must_use]
    pub fn outgoing(&self) -> &[R] {
        &self.outgoing
    }

    /// Returns whether nothing arrived in this tick and nothing is queued.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.arrived == 0 && self.outgoing.is_empty()
    }

    /// Sorts at most `max` results into inboxes; returns true if there are more. Counts and drops events for inboxes
    /// that nobody opened. For runners.
    pub fn drain(&mut self, max: usize) -> bool {
        let has_more = self.backend.poll(max, &mut self.drained);
        self.arrived = self.drained.len();
        for event in self.drained.drain(..) {
            let purpose = event.purpose();
            match self.inboxes.iter_mut().find(|(other, _)| *other == purpose) {
                Some((_, inbox)) => {
                    inbox.push(event);
                    self.waiting += 1;
                }
                None => self.unclaimed += 1,
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

/// Opens inboxes while plugins are built.
pub trait OpenInbox {
    /// Opens an inbox of the port with requests `R` and events `E`, for events that come unrequested. See
    /// [`Port::open_inbox`].
    fn open_inbox<R: Send + Sync + 'static, E: PortEvent>(&mut self, purpose: Purpose) -> &mut Self;
}

impl OpenInbox for App {
    fn open_inbox<R: Send + Sync + 'static, E: PortEvent>(&mut self, purpose: Purpose) -> &mut Self {
        if let Some(mut port) = self.world_mut().get_resource_mut::<Port<R, E>>() {
            port.open_inbox(purpose);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Event(Purpose);

    impl PortEvent for Event {
        fn purpose(&self) -> Purpose {
            self.0
        }
    }

    /// Delivers two events of each purpose in each tick.
    struct Chatter;

    const PURPOSES: [Purpose; 3] = [purpose!("one"), purpose!("two"), purpose!("three")];

    impl Backend<(), Event> for Chatter {
        fn submit(&mut self, _: &mut Vec<()>) {}

        fn poll(&mut self, _: usize, events: &mut Vec<Event>) -> bool {
            events.extend(PURPOSES.into_iter().chain(PURPOSES).map(Event));
            false
        }
    }

    #[test]
    fn events_that_nobody_takes_are_counted_and_dropped() {
        let mut port = Port::new(Box::new(Chatter));
        port.open_inbox(PURPOSES[0]);
        port.drain(10);
        assert_eq!(port.unclaimed_count(), 4);
        assert_eq!(port.take(PURPOSES[0]).count(), 2);
        assert_eq!(port.take(PURPOSES[1]).count(), 0, "they were dropped");
        port.drain(10);
        assert_eq!(port.unclaimed_count(), 6);
        assert_eq!(port.take(PURPOSES[1]).count(), 2, "taking opens the inbox");
    }

    #[test]
    fn inboxes_with_events_are_known() {
        let mut port = Port::new(Box::new(Chatter));
        let of_each = |port: &Port<(), Event>| PURPOSES.map(|purpose| port.has_events_for(purpose));
        PURPOSES[..2].iter().for_each(|purpose| port.open_inbox(*purpose));
        assert!(!port.has_events());
        assert_eq!(of_each(&port), [false, false, true], "the third is not open");
        port.drain(10);
        port.take(PURPOSES[0]);
        assert!(port.has_events());
        assert_eq!(of_each(&port), [false, true, true]);
        port.take(PURPOSES[1]);
        port.take(PURPOSES[2]);
        assert!(!port.has_events());
        assert_eq!(of_each(&port), [false; 3]);
    }
}
