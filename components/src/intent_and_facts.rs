//! The query for everything that decides a torrent's state.

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;

use crate::lifecycle::{
    AwaitingSession, Blocked, Desired, Facts, Fault, Lifecycle, Moving, Readiness, Stopping, Waiting, derive,
};
use crate::torrent::{Have, Layout};
use crate::wanted::{WantedPieces, unneeded};

/// The components from which a torrent's state is derived.
#[derive(QueryData)]
pub struct IntentAndFacts {
    desired: &'static Desired,
    readiness: &'static Readiness,
    fault: &'static Fault,
    blocked: &'static Blocked,
    is_moving: Has<Moving>,
    is_waiting: Has<Waiting>,
    awaits_session: Has<AwaitingSession>,
    have: Option<&'static Have>,
    wanted: Option<&'static WantedPieces>,
    has_layout: Has<Layout>,
    stopping: Option<&'static Stopping>,
}

impl IntentAndFactsItem<'_, '_> {
    /// Returns the state that follows from the torrent's intent and facts.
    #[must_use]
    pub fn derive(&self) -> Lifecycle {
        let needs_none = |have| unneeded(have, self.wanted).is_full();
        let holds_all = self.have.is_some_and(|have| have.is_full());
        let facts = Facts {
            has_metadata: self.has_layout,
            readiness: *self.readiness,
            fault: self.fault.0.clone(),
            blocked: self.blocked.0.clone(),
            is_moving: self.is_moving,
            is_waiting: self.is_waiting,
            awaits_session: self.awaits_session,
            holds_wanted: self.have.is_some_and(needs_none),
            holds_all,
            phase: self.stopping.map(|stopping| stopping.phase),
        };
        derive(*self.desired, &facts)
    }
}
