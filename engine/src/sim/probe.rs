//! What stands around a simulated engine's ticks, for who measures them.

/// Stands around an engine's ticks, and within them around what its simulated backends do: for who wants to know what a
/// world costs by itself. What a tick asks for is carried out behind it, and not seen here. Each function has to call what it is given, once.
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
