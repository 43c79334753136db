//! Selects the work whose allocations and instructions are counted.

use std::alloc::System;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use ecs_torrent::engine::sim::Probe;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Function name pattern for valgrind, which counts instructions inside a matching function and excludes matching
/// functions called within it. The pattern matches [`Meter::counted`] and [`Meter::uncounted`].
pub const TOGGLE: &str = "*Meter*counted";

/// Counts allocations in the ticks of one engine or in given work, excluding the engine's backends.
#[derive(Default)]
pub struct Meter {
    is_on: AtomicBool,
    is_counting: AtomicBool,
    allocations: AtomicUsize,
}

impl Meter {
    /// Starts counting in ticks.
    pub fn start(&self) {
        self.is_on.store(true, Relaxed);
    }

    /// Stops counting in ticks.
    pub fn stop(&self) {
        self.is_on.store(false, Relaxed);
    }

    /// Number of counted allocations, including reallocations.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Relaxed)
    }

    /// Runs `work` and counts its allocations.
    #[inline(never)]
    pub fn counted(&self, work: &mut dyn FnMut()) {
        self.is_counting.store(true, Relaxed);
        let before = allocations();
        work();
        self.allocations.fetch_add(allocations() - before, Relaxed);
        self.is_counting.store(false, Relaxed);
    }

    /// Runs `work`, a part of counted work, and excludes its allocations.
    #[inline(never)]
    fn uncounted(&self, work: &mut dyn FnMut()) {
        let before = allocations();
        work();
        // May wrap around until `counted` adds the total.
        self.allocations.fetch_sub(allocations() - before, Relaxed);
    }
}

impl Probe for Meter {
    fn tick(&self, tick: &mut dyn FnMut()) {
        if self.is_on.load(Relaxed) {
            self.counted(tick);
        } else {
            tick();
        }
    }

    fn backend(&self, call: &mut dyn FnMut()) {
        if self.is_counting.load(Relaxed) {
            self.uncounted(call);
        } else {
            call();
        }
    }
}

fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
}
