//! Hashing on a rayon pool of the engine's own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ecs_torrent_components::settings::StorageSettings;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::StartError;
use super::sink::Sink;
use crate::port::Backend;
use crate::ports::hash::{HashEvent, HashRequest, compute};
use crate::wake::Waker;

/// The Hash port's real backend.
pub struct RayonHash {
    pool: ThreadPool,
    sink: Sink<HashEvent>,
}

impl RayonHash {
    /// Starts the pool.
    ///
    /// # Errors
    /// Where its threads cannot be started.
    pub fn start(settings: &StorageSettings, waker: &Waker) -> Result<Self, StartError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(settings.hash_threads)
            .thread_name(|number| format!("ecs-torrent-hash-{number}"))
            .build()
            .map_err(|error| StartError::HashPool(error.to_string()))?;
        Ok(Self {
            pool,
            sink: Sink::new(waker),
        })
    }
}

impl Backend<HashRequest, HashEvent> for RayonHash {
    fn submit(&mut self, requests: &mut Vec<HashRequest>) {
        for HashRequest { tag, kind, spans } in requests.drain(..) {
            let sink = self.sink.clone();
            self.pool.spawn_fifo(move || {
                let digests = catch_unwind(AssertUnwindSafe(|| compute(kind, &spans))).ok();
                sink.push(HashEvent { tag, digests, spans });
            });
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HashEvent>) -> bool {
        self.sink.poll(max, events)
    }
}
