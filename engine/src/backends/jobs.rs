//! A queue of jobs that threads wait on.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs that no thread has taken. Who submits them bounds them.
pub(crate) struct Jobs<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    jobs: VecDeque<J>,
    is_closed: bool,
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        let state = State {
            jobs: VecDeque::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }
}

impl<J> Jobs<J> {
    /// Adds jobs, and wakes as many threads as they can use.
    pub(crate) fn add(&self, jobs: impl IntoIterator<Item = J>) {
        let mut state = self.lock();
        let before = state.jobs.len();
        state.jobs.extend(jobs);
        let added = state.jobs.len() - before;
        drop(state);
        match added {
            0 => {}
            1 => self.changed.notify_one(),
            _ => self.changed.notify_all(),
        }
    }

    /// The next job; waits for one. Nothing once the queue is closed and all jobs are taken: what was submitted is
    /// carried out.
    pub(crate) fn next(&self) -> Option<J> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Moves all jobs that wait into `jobs`, which is empty; waits for one. False once the queue is closed and all
    /// jobs are taken.
    pub(crate) fn take_all(&self, jobs: &mut VecDeque<J>) -> bool {
        let mut state = self.lock();
        while state.jobs.is_empty() && !state.is_closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.jobs, jobs);
        !jobs.is_empty()
    }

    /// Ends every thread that waits for a job.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        // Nothing inside can panic half-way, so a poisoned queue is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
