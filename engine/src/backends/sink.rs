//! Queues in which backends' threads leave events for the world.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wake::Waker;

/// A queue of events that wakes the engine. Clones share one queue. Its length is bounded elsewhere: bytes by grants,
/// jobs by the requester. Not a channel: a tick takes all events at once by swapping two vectors, and some writers
/// merge their event with one that still waits.
pub(crate) struct Sink<E> {
    events: Arc<Mutex<Vec<E>>>,
    waker: Waker,
}

impl<E> Clone for Sink<E> {
    fn clone(&self) -> Self {
        Self {
            events: self.events.clone(),
            waker: self.waker.clone(),
        }
    }
}

impl<E> Sink<E> {
    pub(crate) fn new(waker: &Waker) -> Self {
        Self {
            events: Arc::default(),
            waker: waker.clone(),
        }
    }

    pub(crate) fn push(&self, event: E) {
        self.lock().push(event);
        self.waker.wake();
    }

    /// Runs `change` on the queue while the world cannot poll it, and wakes the engine.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Vec<E>) -> T) -> T {
        let result = change(&mut self.lock());
        self.waker.wake();
        result
    }

    /// Wakes the engine for an event that is not in the queue.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    pub(crate) fn push_all(&self, events: impl IntoIterator<Item = E>) {
        self.lock().extend(events);
        self.waker.wake();
    }

    /// Moves at most `max` events out. Returns true if there are more.
    pub(crate) fn poll(&self, max: usize, events: &mut Vec<E>) -> bool {
        let mut queue = self.lock();
        if events.is_empty() && queue.len() <= max {
            // The vectors are swapped, so that both keep their memory.
            std::mem::swap(&mut *queue, events);
            return false;
        }
        let count = queue.len().min(max);
        events.extend(queue.drain(..count));
        !queue.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<E>> {
        // Nothing panics half-way while the lock is held, so a poisoned queue is still intact.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_delivered_in_order_and_in_batches() {
        let sink = Sink::new(&Waker::none());
        (0..5).for_each(|i| sink.push(i));
        let mut events = Vec::new();
        assert!(sink.poll(2, &mut events));
        assert!(!sink.poll(9, &mut events));
        assert_eq!(events, [0, 1, 2, 3, 4]);
        events.clear();
        assert!(!sink.poll(9, &mut events) && events.is_empty());
    }
}
