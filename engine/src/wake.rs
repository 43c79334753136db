//! Waking the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// Wakes an engine; clones wake the same engine. Waking an engine that is awake costs one atomic swap.
#[derive(Debug, Clone, Default)]
pub struct Waker {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    is_awake: AtomicBool,
    thread: Thread,
}

impl Waker {
    /// Creates a waker for the calling thread, which will wait on it.
    #[must_use]
    pub fn for_this_thread() -> Self {
        let inner = Inner {
            is_awake: AtomicBool::new(false),
            thread: thread::current(),
        };
        Self {
            inner: Some(Arc::new(inner)),
        }
    }

    /// Creates a waker that does nothing: a simulated engine is stepped and never waits.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Makes the engine tick.
    pub fn wake(&self) {
        if let Some(inner) = &self.inner
            && !inner.is_awake.swap(true, Ordering::AcqRel)
        {
            inner.thread.unpark();
        }
    }

    /// Waits until the engine is woken or `timeout` passes. Call it only on the engine's own thread.
    pub fn wait(&self, timeout: Duration) {
        if let Some(inner) = &self.inner {
            // An unpark before the park makes the park return at once, so no wake is lost. Spurious returns are
            // possible: a tick with nothing to do is cheap.
            if !inner.is_awake.load(Ordering::Acquire) {
                thread::park_timeout(timeout);
            }
        }
    }

    /// Marks the start of a tick: from now on, new events require another wake.
    pub fn begin_tick(&self) {
        if let Some(inner) = &self.inner {
            inner.is_awake.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_before_the_wait_is_not_lost() {
        let waker = Waker::for_this_thread();
        waker.begin_tick();
        let other = waker.clone();
        thread::spawn(move || other.wake()).join().unwrap();
        waker.wait(Duration::from_secs(3600));
    }
}
