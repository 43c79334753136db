//! What is measured: processor time of the thread, and the most memory that is held at once.

use std::sync::Mutex;
use std::time::Duration;

use ecs_torrent::engine::sim::Probe;
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What some work took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    pub time: Duration,
    /// Most bytes that were held at once, beyond those that were held before.
    pub memory: usize,
}

/// Measures `work`, all of it.
pub fn measure<T>(work: impl FnOnce() -> T) -> (Cost, T) {
    let before = held();
    let begun = thread_time();
    let result = work();
    let time = thread_time().saturating_sub(begun);
    let memory = peak().saturating_sub(before);
    (Cost { time, memory }, result)
}

/// Bytes held now; the peak begins anew here.
pub fn held() -> usize {
    ALLOCATOR.reset_peak_usage();
    ALLOCATOR.current_usage()
}

/// Most bytes held since [`held`] was asked.
pub fn peak() -> usize {
    ALLOCATOR.peak_usage()
}

/// Processor time of this thread: what others do on the machine does not count.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Sums up the time of an engine's ticks, without that of its simulated backends.
#[derive(Default)]
pub struct TickTime(Mutex<(Duration, Duration)>);

impl TickTime {
    /// The time of all ticks so far.
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
