//! Hooks around a simulated engine's ticks, for measuring them.

/// Wraps an engine's ticks, and within them the calls to its simulated backends, to measure the cost of the world
/// alone. Requests of a tick are carried out after it and are not wrapped. Each function must call its argument exactly
/// once.
pub trait Probe: Send + Sync + 'static {
    /// Runs one tick.
    fn tick(&self, tick: &mut dyn FnMut());

    /// Runs a backend call within a tick.
    fn backend(&self, call: &mut dyn FnMut());
}

/// A probe that measures nothing.
pub(super) struct Unprobed;

impl Probe for Unprobed {
    fn tick(&self, tick: &mut dyn FnMut()) {
        tick();
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        call();
    }
}
