//! Settings of readers.

use serde::{Deserialize, Serialize};

/// Reading of files while they are downloaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaderSettings {
    /// Maximum number of readers. Beyond it, a new reader replaces an idle one, or is refused. Default 32.
    pub max_readers: usize,
    /// Bytes ahead of a reader that are downloaded before all others, at least four pieces. Default 32 MiB, which lasts
    /// 13 s at 20 Mbit/s.
    pub window_bytes: u64,
    /// Maximum number of bytes that one read returns. Default 512 KiB.
    pub read_bytes: u32,
    /// Time without a read after which a reader is idle: no more pieces are downloaded ahead of it until it reads
    /// again. Default 30 s.
    pub idle_s: u64,
    /// Time after which a read fails whose piece has not arrived. Default 300 s.
    pub timeout_s: u64,
}

impl Default for ReaderSettings {
    fn default() -> Self {
        Self {
            max_readers: 32,
            window_bytes: 32 << 20,
            read_bytes: 512 << 10,
            idle_s: 30,
            timeout_s: 300,
        }
    }
}
