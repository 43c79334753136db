//! What stands around a simulated engine's ticks, for who measures them.

use std::sync::Arc;

use crate::port::{Backend, PortEvent};

/// Stands around an engine's ticks, and within them around its simulated backends: for who wants to know what a world
/// costs by itself. Each function has to call what it is given, once.
pub trait Probe: Send + Sync + 'static {
    /// Runs one tick.
    fn tick(&self, tick: &mut dyn FnMut());

    /// Runs what a backend does, within a tick.
    fn backend(&self, call: &mut dyn FnMut());
}

/// Measures nothing.
pub(super) struct Unprobed;

impl Probe for Unprobed {
    fn tick(&self, tick: &mut dyn FnMut()) {
        tick();
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        call();
    }
}

/// A backend within a probe.
pub(super) struct Probed<B> {
    backend: B,
    probe: Arc<dyn Probe>,
}

impl<B> Probed<B> {
    pub(super) fn new(backend: B, probe: &Arc<dyn Probe>) -> Box<Self> {
        let probe = probe.clone();
        Box::new(Self { backend, probe })
    }
}

impl<R, E: PortEvent, B: Backend<R, E>> Backend<R, E> for Probed<B> {
    fn submit(&mut self, requests: &mut Vec<R>) {
        let Self { backend, probe } = self;
        probe.backend(&mut || backend.submit(requests));
    }

    fn poll(&mut self, max: usize, events: &mut Vec<E>) -> bool {
        let Self { backend, probe } = self;
        let mut has_more = false;
        probe.backend(&mut || has_more = backend.poll(max, events));
        has_more
    }
}
