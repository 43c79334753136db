//! A file: its visible version and its durable version.

use ecs_torrent_components::random::Random;
use ecs_torrent_components::session::{FileId, FileStamp, OwnerKey};

use super::super::random::happens;
use super::extents::{Data, Extents};

/// A file's bytes, length, modification time and identity.
#[derive(Clone, Default)]
pub(super) struct File {
    pub(super) extents: Extents,
    pub(super) stamp: Stamp,
    pub(super) identity: Identity,
}

/// Identity of a file, which distinguishes it from all others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Identity {
    /// A number that may have been that of a deleted file.
    pub(super) inode: u64,
    /// A number that no other file has.
    pub(super) born: u64,
    /// The file was put there by the user, not by an engine.
    pub(super) is_users: bool,
    /// The mark of the torrent that created the file: its key, and the index of the file.
    pub(super) mark: Option<(OwnerKey, usize)>,
}

/// A length, and a modification time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub(super) len: u64,
    pub(super) modified_ns: u64,
}

/// The file at a path, with the changes that may not be durable yet.
#[derive(Default)]
pub(super) struct Entry {
    /// The visible file; `None` if it was deleted.
    pub(super) seen: Option<File>,
    /// The durable file.
    durable: Option<File>,
    /// Writes since the last sync.
    log: Vec<Logged>,
    /// The visible file is a new one; the durable one was deleted.
    is_another: bool,
}

struct Logged {
    offset: u64,
    len: u64,
    data: Data,
}

/// Unix time in seconds at which simulations begin.
const EPOCH_S: u64 = 1_700_000_000;

/// Number of every simulated device.
const DEVICE: u64 = 1;

/// Granularity of modification times, as in Linux.
const GRAIN_NS: u64 = 4_000_000;

impl Stamp {
    pub(super) fn public(self) -> FileStamp {
        let ns = self.modified_ns / GRAIN_NS * GRAIN_NS;
        FileStamp {
            len: self.len,
            seconds: (EPOCH_S + ns / 1_000_000_000) as i64,
            nanos: (ns % 1_000_000_000) as u32,
            changed_ns: None,
        }
    }
}

impl File {
    pub(super) fn id(&self) -> FileId {
        FileId {
            device: DEVICE,
            inode: self.identity.inode,
            born_ns: Some(self.identity.born as i64),
        }
    }

    fn write(&mut self, offset: u64, len: u64, data: Data) {
        self.extents.write(offset, len, data);
        self.stamp.len = self.stamp.len.max(offset + len);
    }

    fn truncate(&mut self, len: u64) {
        self.extents.truncate(len);
        self.stamp.len = len;
    }
}

impl Entry {
    /// An entry for a durable file.
    pub(super) fn durable(file: File) -> Self {
        Self {
            seen: Some(file.clone()),
            durable: Some(file),
            ..Self::default()
        }
    }

    /// Returns the file; creates it if there is none.
    pub(super) fn create(&mut self, now_ns: u64, identity: Identity) -> &mut File {
        if self.seen.is_none() {
            self.is_another = self.durable.is_some();
            self.log.clear();
        }
        self.seen.get_or_insert_with(|| {
            let stamp = Stamp {
                len: 0,
                modified_ns: now_ns,
            };
            File {
                stamp,
                identity,
                ..File::default()
            }
        })
    }

    pub(super) fn write(&mut self, now_ns: u64, offset: u64, len: u64, data: Data) {
        self.log.push(Logged {
            offset,
            len,
            data: data.clone(),
        });
        if let Some(file) = &mut self.seen {
            file.write(offset, len, data);
            file.stamp.modified_ns = now_ns;
        }
    }

    /// Reserves space for `len` bytes and extends the file to that length.
    pub(super) fn reserve(&mut self, len: u64) {
        if let Some(file) = &mut self.seen {
            file.extents.reserve(len);
            file.stamp.len = file.stamp.len.max(len);
        }
    }

    /// Truncates the file, as another program does.
    pub(super) fn truncate(&mut self, now_ns: u64, len: u64) {
        if let Some(file) = &mut self.seen {
            file.truncate(len);
            file.stamp.modified_ns = now_ns;
            self.durable.clone_from(&self.seen);
            self.log.clear();
        }
    }

    pub(super) fn delete(&mut self) {
        self.seen = None;
        self.log.clear();
    }

    /// Makes the visible version durable.
    pub(super) fn sync(&mut self) {
        let Some(seen) = &self.seen else {
            self.durable = None;
            return;
        };
        if self.is_another {
            self.durable = None;
            self.is_another = false;
        }
        let durable = self.durable.get_or_insert_with(File::default);
        for Logged { offset, len, data } in self.log.drain(..) {
            durable.write(offset, len, data);
        }
        durable.stamp = seen.stamp;
        durable.identity = seen.identity;
    }

    /// Drops unsynced writes after a failed sync: operating systems report the failure once and forget the data.
    pub(super) fn forget_unsynced(&mut self) {
        self.log.clear();
    }

    pub(super) fn durable_len(&self) -> Option<&File> {
        self.durable.as_ref()
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.seen.is_none() && self.durable.is_none()
    }

    /// Applies a power failure: durable data stays, and later changes survive at random.
    pub(super) fn crash(&mut self, luck: &mut Random) {
        let was_there = self.durable.take();
        let log = std::mem::take(&mut self.log);
        let has_new_name = happens(luck, 0.5);
        let left = match (was_there, &self.seen) {
            // The deletion or replacement was lost.
            (Some(old), None) if !has_new_name => Some(old),
            (Some(old), Some(_)) if self.is_another && !has_new_name => Some(old),
            (None, Some(_)) if !has_new_name => None,
            (_, None) => None,
            (old, Some(seen)) => {
                let old = old.filter(|_| !self.is_another).unwrap_or_default();
                let identity = seen.identity;
                let remains = remains(old, log, seen.stamp, luck);
                Some(File { identity, ..remains })
            }
        };
        *self = left.map_or_else(Self::default, Self::durable);
    }
}

/// A file after a crash: the durable version with the writes that survived.
fn remains(mut file: File, log: Vec<Logged>, newest: Stamp, luck: &mut Random) -> File {
    let old = file.stamp;
    for write in log {
        match luck.below(5) {
            0 | 1 => {}
            2 | 3 => file.write(write.offset, write.len, write.data),
            _ => tear(&mut file, &write, luck),
        }
    }
    // Length and time are stored together, apart from the bytes.
    if happens(luck, 0.5) {
        file.stamp = newest;
    } else {
        file.truncate(old.len);
        file.stamp = old;
    }
    file
}

/// Writes some of a write's sectors.
fn tear(file: &mut File, write: &Logged, luck: &mut Random) {
    let unit = [512, 4096][luck.below(2)];
    let is_prefix = happens(luck, 0.5);
    let first = write.offset / unit;
    let last = (write.offset + write.len - 1) / unit;
    let prefix = first + luck.below((last - first + 2) as usize) as u64;
    for sector in first..=last {
        let is_kept = if is_prefix { sector < prefix } else { happens(luck, 0.5) };
        if is_kept {
            let begin = (sector * unit).max(write.offset);
            let end = ((sector + 1) * unit).min(write.offset + write.len);
            file.write(begin, end - begin, write.data.part(begin - write.offset, end - begin));
        }
    }
}
