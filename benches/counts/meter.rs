//! What is counted, and what is not.

use std::alloc::System;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use ecs_torrent::engine::sim::Probe;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// For valgrind: instructions are counted from the entry into a function of this name to its end, but for those from
/// the entry into another one within it to the end of that. It fits [`Meter::counted`] and [`Meter::uncounted`].
pub const TOGGLE: &str = "*Meter*counted";

/// Counts allocations in the ticks of one engine, or in what it is given; backends are left out.
#[derive(Default)]
pub struct Meter {
    is_on: AtomicBool,
    is_counting: AtomicBool,
    allocations: AtomicUsize,
}

impl Meter {
    /// Counts in ticks from now on.
    pub fn start(&self) {
        self.is_on.store(true, Relaxed);
    }

    /// Counts in ticks no longer.
    pub fn stop(&self) {
        self.is_on.store(false, Relaxed);
    }

    /// Allocations counted, those that made one larger included.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Relaxed)
    }

    /// Counts in `work`.
    #[inline(never)]
    pub fn counted(&self, work: &mut dyn FnMut()) {
        self.is_counting.store(true, Relaxed);
        let before = allocations();
        work();
        self.allocations.fetch_add(allocations() - before, Relaxed);
        self.is_counting.store(false, Relaxed);
    }

    /// Leaves out `work`, which is a part of something that is counted.
    #[inline(never)]
    fn uncounted(&self, work: &mut dyn FnMut()) {
        let before = allocations();
        work();
        // May wrap around until the whole is added.
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
