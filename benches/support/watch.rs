//! Time and memory of an engine's ticks, excluding its backends.

use std::mem;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ecs_torrent::engine::sim::Probe;

/// Measures the time of ticks and the memory that they leave allocated.
pub struct Stopwatch {
    /// Returns the bytes that this process has allocated, or 0 without a counting allocator.
    gauge: fn() -> usize,
    readings: Mutex<Readings>,
}

#[derive(Default)]
struct Readings {
    is_running: bool,
    ticks: Vec<Duration>,
    /// Bytes that ticks have allocated and not freed.
    bytes: i64,
    time_in_backends: Duration,
    bytes_in_backends: i64,
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self::weighing(|| 0)
    }
}

impl Stopwatch {
    /// Creates a stopwatch that reads the number of allocated bytes from `gauge`.
    pub fn weighing(gauge: fn() -> usize) -> Self {
        let readings = Mutex::default();
        Self { gauge, readings }
    }

    /// Starts recording tick times.
    pub fn start(&self) {
        self.readings().is_running = true;
    }

    /// Stops recording. Returns the time of each tick since [`Self::start`].
    pub fn stop(&self) -> Vec<Duration> {
        let mut readings = self.readings();
        readings.is_running = false;
        mem::take(&mut readings.ticks)
    }

    /// Bytes that all ticks so far have allocated and not freed.
    #[allow(dead_code, reason = "not every bench weighs")]
    pub fn bytes(&self) -> i64 {
        self.readings().bytes
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap()
    }

    fn growth_since(&self, bytes: usize) -> i64 {
        (self.gauge)() as i64 - bytes as i64
    }
}

impl Probe for Stopwatch {
    fn tick(&self, tick: &mut dyn FnMut()) {
        {
            let mut readings = self.readings();
            (readings.time_in_backends, readings.bytes_in_backends) = (Duration::ZERO, 0);
        }
        let (bytes, begun) = ((self.gauge)(), Instant::now());
        tick();
        let (took, bytes) = (begun.elapsed(), self.growth_since(bytes));
        let mut readings = self.readings();
        readings.bytes += bytes - readings.bytes_in_backends;
        if readings.is_running {
            let took = took - readings.time_in_backends;
            readings.ticks.push(took);
        }
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        let (bytes, begun) = ((self.gauge)(), Instant::now());
        call();
        let (took, bytes) = (begun.elapsed(), self.growth_since(bytes));
        let mut readings = self.readings();
        readings.time_in_backends += took;
        readings.bytes_in_backends += bytes;
    }
}
