//! A queue of jobs that threads wait on.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs that no thread has taken yet. The submitter bounds their number. Not a channel: a thread takes a batch under
/// one lock, so that adjacent writes become one call, and an idle thread is woken only for jobs that the busy threads
/// leave.
pub(crate) struct Jobs<J> {
    /// Maximum number of jobs that a thread takes at a time.
    batch: usize,
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    /// Number of threads carrying out jobs. They return for more.
    busy: usize,
    is_closed: bool,
}

impl<J> Jobs<J> {
    /// Creates a queue whose threads take up to `batch` jobs at a time.
    pub(crate) fn in_batches(batch: usize) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            busy: 0,
            is_closed: false,
        };
        Self {
            batch: batch.max(1),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Adds jobs, and wakes as many threads as are useful. While some are busy, wakes others only for full batches.
    pub(crate) fn add(&self, jobs: impl IntoIterator<Item = J>) {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.extend(jobs);
        let useful = match (state.jobs.len(), state.busy) {
            (len, _) if len == before => 0,
            (len, 0) => len.div_ceil(self.batch),
            (len, _) => len / self.batch,
        };
        drop(state);
        match useful {
            0 => {}
            1 => self.changed.notify_one(),
            _ => self.changed.notify_all(),
        }
    }

    /// Carries out jobs with `work`, between one and `self.batch` at a time, and waits for more, until the queue is
    /// closed and all submitted jobs are done. `work` must not panic.
    pub(crate) fn serve(&self, mut work: impl FnMut(&mut VecDeque<J>)) {
        let mut batch = VecDeque::new();
        let mut state = self.lock();
        loop {
            while state.jobs.is_empty() {
                if state.is_closed {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let count = state.jobs.len().min(self.batch);
            batch.extend(state.jobs.drain(..count));
            state.busy += 1;
            drop(state);
            work(&mut batch);
            batch.clear();
            state = self.lock();
            state.busy -= 1;
        }
    }

    /// Closes the queue. Threads that wait for a job end.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // No code panics half-way while the lock is held, so a poisoned queue is still intact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
