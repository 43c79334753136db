//! Measures CPU time of the thread and peak heap memory.

use std::sync::Mutex;
use std::time::Duration;

use ecs_torrent::engine::sim::Probe;
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Cost of some work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub time: Duration,
    /// Peak heap growth in bytes.
    pub memory: usize,
}

/// Measures the cost of `work`.
pub fn measure<T>(work: impl FnOnce() -> T) -> (Cost, T) {
    let before = reset_peak();
    let begun = thread_time();
    let result = work();
    let time = thread_time().saturating_sub(begun);
    let memory = peak().saturating_sub(before);
    (Cost { time, memory }, result)
}

/// Returns the allocated bytes and resets the peak to them.
pub fn reset_peak() -> usize {
    ALLOCATOR.reset_peak_usage();
    ALLOCATOR.current_usage()
}

/// Peak of allocated bytes since [`reset_peak`].
pub fn peak() -> usize {
    ALLOCATOR.peak_usage()
}

/// CPU time of this thread, which does not depend on other load on the machine.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Accumulates CPU time of an engine's ticks, excluding its simulated backends.
#[derive(Default)]
pub struct TickTime(Mutex<(Duration, Duration)>);

impl TickTime {
    /// CPU time of all ticks so far.
    pub fn total(&self) -> Duration {
        let (ticks, backends) = *self.0.lock().unwrap();
        ticks.saturating_sub(backends)
    }
}

impl Probe for TickTime {
    fn tick(&self, tick: &mut dyn FnMut()) {
        let begun = thread_time();
        tick();
        self.0.lock().unwrap().0 += thread_time().saturating_sub(begun);
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        let begun = thread_time();
        call();
        self.0.lock().unwrap().1 += thread_time().saturating_sub(begun);
    }
}
