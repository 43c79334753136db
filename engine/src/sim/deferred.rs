//! Queues between an engine's ports and its simulated backends: requests of a tick are carried out after the tick.
//!
//! So a tick changes nothing but its own world, and engines that tick at the same moment may do so in parallel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::probe::Probe;
use crate::port::{Backend, PortEvent, Purpose};

/// A port's backend, shared with the simulation.
pub(super) struct Deferred<B, R> {
    shared: Arc<Mutex<Shared<B, R>>>,
    probe: Arc<dyn Probe>,
}

struct Shared<B, R> {
    backend: B,
    /// Requests that are not carried out yet.
    waiting: Vec<R>,
}

/// The simulation's side of a [`Deferred`].
pub(super) trait CarryOut {
    /// Hands all waiting requests to the backend.
    fn carry_out(&self);
}

impl<B, R> Deferred<B, R> {
    pub(super) fn new(backend: B, probe: &Arc<dyn Probe>) -> Self {
        let waiting = Vec::new();
        Self {
            shared: Arc::new(Mutex::new(Shared { backend, waiting })),
            probe: probe.clone(),
        }
    }

    /// The simulation's side of this backend.
    pub(super) fn far_side<E>(&self) -> Box<dyn CarryOut>
    where
        R: Send + 'static,
        E: PortEvent,
        B: Backend<R, E>,
    {
        Box::new(FarSide {
            shared: self.shared.clone(),
            events: std::marker::PhantomData::<fn(E)>,
        })
    }
}

impl<R, E, B> Backend<R, E> for Deferred<B, R>
where
    R: Send + 'static,
    E: PortEvent,
    B: Backend<R, E>,
{
    fn submit(&mut self, requests: &mut Vec<R>) {
        lock(&self.shared).waiting.append(requests);
    }

    fn poll(&mut self, max: usize, events: &mut Vec<E>) -> bool {
        let mut has_more = false;
        let mut shared = lock(&self.shared);
        self.probe.backend(&mut || has_more = shared.backend.poll(max, events));
        has_more
    }

    fn open_inbox(&mut self, purpose: Purpose) {
        lock(&self.shared).backend.open_inbox(purpose);
    }
}

struct FarSide<B, R, E> {
    shared: Arc<Mutex<Shared<B, R>>>,
    events: std::marker::PhantomData<fn(E)>,
}

impl<R, E: PortEvent, B: Backend<R, E>> CarryOut for FarSide<B, R, E> {
    fn carry_out(&self) {
        let Shared { backend, waiting } = &mut *lock(&self.shared);
        if !waiting.is_empty() {
            backend.submit(waiting);
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
