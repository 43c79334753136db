//! Turns of requests that list torrents.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ecs_torrent_protocol::hash::InfoHash;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The torrents that requests are listing. Requests about the same torrent take turns: otherwise, two requests that add
/// it would both be answered that it is new.
#[derive(Debug, Default)]
pub(super) struct Turns {
    busy: Mutex<HashSet<InfoHash>>,
    ended: Notify,
    /// Held for writing by requests about all torrents.
    all: RwLock<()>,
}

/// The turn of a request about one torrent. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'t> {
    turns: &'t Turns,
    torrent: InfoHash,
    _all: RwLockReadGuard<'t, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.busy().remove(&self.torrent);
        self.turns.ended.notify_waiters();
    }
}

impl Turns {
    fn busy(&self) -> MutexGuard<'_, HashSet<InfoHash>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a request about a torrent.
    pub(super) async fn take(&self, torrent: InfoHash) -> Turn<'_> {
        let all = self.all.read().await;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // A turn that ends from now on wakes this one.
            ended.as_mut().enable();
            if self.busy().insert(torrent) {
                return Turn {
                    turns: self,
                    torrent,
                    _all: all,
                };
            }
            ended.await;
        }
    }

    /// Waits for the turn of a request about all torrents.
    pub(super) async fn take_all(&self) -> RwLockWriteGuard<'_, ()> {
        self.all.write().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn requests_about_one_torrent_take_turns() {
        let turns = Turns::default();
        let mut context = Context::from_waker(Waker::noop());
        let [one, other] = [1, 2].map(|byte| InfoHash([byte; 20]));
        let Poll::Ready(first) = pin!(turns.take(one)).poll(&mut context) else {
            panic!("nobody else is there");
        };
        let mut second = pin!(turns.take(one));
        assert!(second.as_mut().poll(&mut context).is_pending());
        assert!(
            pin!(turns.take(other)).poll(&mut context).is_ready(),
            "other torrents do not wait"
        );
        assert!(pin!(turns.take_all()).poll(&mut context).is_pending());
        drop(first);
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert!(turns.busy().is_empty(), "a turn that ends is forgotten");
    }
}
