//! Hashing on the engine's own rayon pool.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ecs_torrent_components::settings::StorageSettings;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::StartError;
use super::jobs::Jobs;
use super::sink::Sink;
use crate::port::Backend;
use crate::ports::hash::{HashEvent, HashRequest, compute_all};
use crate::wake::Waker;

/// Requests that a thread takes at a time and computes together.
const BATCH: usize = 2;

/// The Hash port's real backend.
pub struct RayonHash {
    jobs: Arc<Jobs<HashRequest>>,
    /// Keeps the pool's threads alive.
    _pool: ThreadPool,
    sink: Sink<HashEvent>,
}

impl RayonHash {
    /// Starts the pool.
    ///
    /// # Errors
    /// If its threads cannot be started.
    pub fn start(settings: &StorageSettings, waker: &Waker) -> Result<Self, StartError> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(settings.hash_threads)
            .thread_name(|number| format!("ecs-torrent-hash-{number}"))
            .build()
            .map_err(|error| StartError::HashPool(error.to_string()))?;
        let (jobs, sink) = (Arc::new(Jobs::in_batches(BATCH)), Sink::new(waker));
        // One long-running job per thread, which waits for pieces. After every piece, rayon's own waiting looks for
        // work by yielding about thirty times before it sleeps. With one piece every 2 ms, that took 5 % of the CPU
        // time.
        let (queue, done) = (jobs.clone(), sink.clone());
        pool.spawn_broadcast(move |_| {
            queue.serve(|requests| {
                let computed = catch_unwind(AssertUnwindSafe(|| compute_all(requests.make_contiguous())));
                let mut digests = computed.unwrap_or_default().into_iter();
                done.push_all(requests.drain(..).map(|HashRequest { tag, spans, .. }| HashEvent {
                    tag,
                    digests: digests.next(),
                    spans,
                }));
            });
        });
        Ok(Self {
            jobs,
            _pool: pool,
            sink,
        })
    }
}

impl Backend<HashRequest, HashEvent> for RayonHash {
    fn submit(&mut self, requests: &mut Vec<HashRequest>) {
        self.jobs.add(requests.drain(..));
    }

    fn poll(&mut self, max: usize, events: &mut Vec<HashEvent>) -> bool {
        self.sink.poll(max, events)
    }
}

impl Drop for RayonHash {
    fn drop(&mut self) {
        self.jobs.close();
    }
}
