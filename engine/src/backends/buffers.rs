//! Reusable read buffers: never zeroed again, and not freshly faulted in for each read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// Minimum room in a chunk that is worth a read from a socket.
const MIN_ROOM: usize = 16 << 10;

/// Full chunks checked for reuse before a new one is allocated. They become free roughly in the order of their use.
const LOOK_AT: usize = 32;

/// Maximum number of full chunks remembered. Memory beyond that goes back to the allocator.
const MAX_USED_UP: usize = 1024;

/// Unused chunks kept for future reads. The others go back to the allocator one second after a burst.
const KEPT_CHUNKS: usize = 16;

/// Number of chunks freed to the allocator after which it is made to return free memory to the system, even while
/// others are in use. The allocator has to search all of its memory for that.
const RETURNED_TOGETHER: usize = 32;

/// Chunks for sockets to read into.
///
/// A chunk is filled from front to back by any socket that has data: many small reads share it densely, and a socket
/// holds no chunk while it has nothing to read. The bytes read are split off without copying. When all of them have
/// been dropped, the chunk is reused.
pub(crate) struct ReadChunks {
    chunk_bytes: usize,
    state: Mutex<ChunkState>,
    /// Notified when a chunk has become full since the last trim.
    used: Notify,
}

#[derive(Default)]
struct ChunkState {
    /// Chunks with room, the most recently used on top because it is in the CPU cache.
    open: Vec<BytesMut>,
    /// Chunks without room. The bytes read into them may still be in use.
    used_up: VecDeque<BytesMut>,
    /// Chunks freed to the allocator that it may not have returned to the system.
    freed_count: usize,
}

/// Makes the allocator return its free memory to the system. On its own, glibc returns only the memory at the end of
/// an arena: a single small allocation behind a burst would hold all of it.
fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "there is no safe way to ask for it")]
    // SAFETY: `malloc_trim` takes no pointer and does not touch allocated memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

impl ReadChunks {
    pub(crate) fn new(chunk_bytes: usize) -> Self {
        Self {
            chunk_bytes: chunk_bytes.max(MIN_ROOM),
            state: Mutex::default(),
            used: Notify::new(),
        }
    }

    /// Returns an empty chunk with room for a read.
    pub(crate) fn take(&self) -> BytesMut {
        let mut state = self.lock();
        if let Some(chunk) = state.open.pop() {
            return chunk;
        }
        for _ in 0..LOOK_AT.min(state.used_up.len()) {
            if let Some(mut chunk) = state.used_up.pop_front() {
                if chunk.try_reclaim(self.chunk_bytes) {
                    return chunk;
                }
                state.used_up.push_back(chunk);
            }
        }
        BytesMut::with_capacity(self.chunk_bytes)
    }

    /// Returns a chunk to the pool after a read, with the bytes read split off.
    pub(crate) fn give_back(&self, chunk: BytesMut) {
        debug_assert!(chunk.is_empty());
        let mut state = self.lock();
        if chunk.capacity() >= MIN_ROOM {
            state.open.push(chunk);
        } else if state.used_up.len() < MAX_USED_UP {
            state.used_up.push_back(chunk);
            drop(state);
            self.used.notify_one();
        }
    }

    /// Waits until there may be chunks to trim.
    pub(crate) async fn used(&self) {
        self.used.notified().await;
    }

    /// Frees unused chunks to the allocator, except for a few. Returns true while further chunks are still in use.
    pub(crate) fn trim(&self) -> bool {
        let mut state = self.lock();
        let (mut free_count, mut in_use_count) = (0, 0);
        let chunk_bytes = self.chunk_bytes;
        state.used_up.retain_mut(|chunk| {
            let is_free = chunk.try_reclaim(chunk_bytes);
            free_count += usize::from(is_free);
            in_use_count += usize::from(!is_free);
            !is_free || free_count <= KEPT_CHUNKS
        });
        let free = state.open.len().saturating_sub(KEPT_CHUNKS);
        state.open.drain(..free);
        state.freed_count += free_count.saturating_sub(KEPT_CHUNKS) + free;
        // Once a burst is over, the last chunks are returned too, with everything else that was freed after it.
        let is_over = in_use_count == 0 && state.freed_count > 0;
        if is_over || state.freed_count >= RETURNED_TOGETHER {
            state.freed_count = 0;
            return_free_memory();
        }
        let places = state.used_up.len().max(KEPT_CHUNKS);
        state.used_up.shrink_to(places);
        state.open.shrink_to(KEPT_CHUNKS);
        in_use_count > 0
    }

    fn lock(&self) -> MutexGuard<'_, ChunkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buffers for reading files. Each returns to the pool when its last slice is dropped.
#[derive(Clone, Default)]
pub struct FileBuffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Maximum number of free buffers kept.
const MAX_FREE: usize = 64;

/// Maximum size of a kept buffer. A few larger ones would hold more memory than all the others.
const MAX_KEPT_BYTES: usize = 4 << 20;

impl FileBuffers {
    /// Returns a buffer of `len` bytes. It contains the bytes of an earlier read.
    pub(crate) fn take(&self, len: usize) -> FileBuffer {
        let mut memory = self.lock().pop().unwrap_or_default();
        if memory.len() < len {
            memory.resize(len, 0);
        }
        let home = self.clone();
        FileBuffer { memory, len, home }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer from [`FileBuffers`] that returns there when dropped.
pub(crate) struct FileBuffer {
    /// At least `len` bytes, all initialized, so that reuse needs no clearing.
    memory: Vec<u8>,
    len: usize,
    home: FileBuffers,
}

impl FileBuffer {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// Makes a filled buffer shareable.
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for FileBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for FileBuffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if memory.len() <= MAX_KEPT_BYTES {
            let mut free = self.home.lock();
            if free.len() < MAX_FREE {
                free.push(memory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    #[test]
    fn small_reads_share_a_chunk_and_freed_chunks_are_reused() {
        let chunks = ReadChunks::new(64 << 10);
        let mut read = Vec::new();
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let mut chunk = chunks.take();
            chunk.put_bytes(1, 1000);
            read.push(chunk.split().freeze());
            places.insert(read[read.len() - 1].as_ptr() as usize >> 16);
            chunks.give_back(chunk);
        }
        assert!(
            places.len() <= 4,
            "100 kB lie in two chunks of 64 KiB, at any alignment"
        );
        read.clear();
        for round in 0..50 {
            let mut chunk = chunks.take();
            chunk.put_bytes(1, chunk.capacity());
            let full = chunk.split().freeze();
            chunks.give_back(chunk);
            drop(full);
            let known = chunks.lock();
            assert!(known.open.len() + known.used_up.len() <= 3, "round {round}");
        }
    }

    #[test]
    fn memory_of_a_burst_goes_back() {
        let chunks = ReadChunks::new(64 << 10);
        let mut held: Vec<Bytes> = Vec::new();
        for _ in 0..100 {
            let mut chunk = chunks.take();
            chunk.put_bytes(1, chunk.capacity());
            held.push(chunk.split().freeze());
            chunks.give_back(chunk);
        }
        assert!(chunks.trim(), "all of them are in use");
        assert_eq!(chunks.lock().used_up.len(), 100);
        held.truncate(1);
        assert!(chunks.trim(), "one is");
        assert_eq!(chunks.lock().used_up.len(), KEPT_CHUNKS + 1);
        assert_eq!(chunks.lock().freed_count, 0, "most of them are returned at once");
        held.clear();
        assert!(!chunks.trim());
        assert_eq!(chunks.lock().used_up.len(), KEPT_CHUNKS);
        assert_eq!(chunks.lock().freed_count, 0, "the last ones are returned at the end");
        assert!(!chunks.trim());
    }

    #[test]
    fn file_buffers_come_home() {
        let buffers = FileBuffers::default();
        let mut buffer = buffers.take(1000);
        buffer.as_mut_slice().fill(7);
        let place = buffer.as_ref().as_ptr();
        let bytes = buffer.freeze();
        let slice = bytes.slice(10..20);
        drop(bytes);
        assert!(buffers.lock().is_empty(), "a slice is still in use");
        assert_eq!(slice, vec![7; 10]);
        drop(slice);
        let again = buffers.take(500);
        assert_eq!((again.as_ref().as_ptr(), again.as_ref().len()), (place, 500));
    }
}
