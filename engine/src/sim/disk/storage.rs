//! A torrent's files on a simulated disk: what the real backend does with the system, done to a volume.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ecs_torrent_components::session::FileStamp;
use ecs_torrent_protocol::files::{FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Span;
use rustix::io::Errno;

use super::super::contents::{Contents, Gathering};
use super::extents::Data;
use super::faults::DiskFault;
use super::volume::Volume;
use crate::ports::disk::{DiskAction, DiskError, FoundFiles};

type Result<T> = std::result::Result<T, DiskError>;

/// One torrent's files below its download folder, as one engine has opened them.
pub(super) struct Storage {
    pub(super) root: PathBuf,
    /// Where the volume is expected to be mounted.
    volume: Option<PathBuf>,
    table: FileTable,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// Files written since the last sync.
    unsynced: BTreeSet<usize>,
    /// Files created or written, and how long they have to be by that.
    ever: BTreeMap<usize, u64>,
    is_deleted: bool,
}

/// The disk, while an operation is carried out.
pub(super) struct Ground<'d> {
    pub(super) volume: &'d mut Volume,
    pub(super) contents: &'d Contents,
    pub(super) now_ns: u64,
}

/// Where every simulated disk is mounted.
const MOUNTED_AT: &str = "/";

impl Storage {
    pub(super) fn new(root: PathBuf, volume: Option<PathBuf>, table: FileTable) -> Self {
        Self {
            root,
            volume,
            table,
            written: Mutex::default(),
        }
    }

    pub(super) fn look(&self, ground: &Ground<'_>) -> Result<FoundFiles> {
        self.find_volume(ground)?;
        let stamp = |entry: &FileEntry| {
            let file = ground.volume.file(&self.path(entry)).filter(|_| entry.is_stored());
            file.map(|file| file.stamp.public())
        };
        Ok(FoundFiles {
            stamps: self.table.files().iter().map(stamp).collect(),
            volume: MOUNTED_AT.into(),
        })
    }

    fn find_volume(&self, ground: &Ground<'_>) -> Result<()> {
        let is_there = |expected: &PathBuf| expected.as_path() == Path::new(MOUNTED_AT);
        if ground.volume.is_mounted && self.volume.as_ref().is_none_or(is_there) {
            return Ok(());
        }
        let expected = self.volume.as_deref().unwrap_or(Path::new(MOUNTED_AT));
        let reason = format!("nothing is mounted at {}", expected.display());
        Err(failure(
            DiskAction::FindVolume,
            self.root.clone(),
            io::Error::other(reason),
        ))
    }

    pub(super) fn prepare(&self, ground: &mut Ground<'_>, is_preallocated: bool) -> Result<()> {
        for (index, file) in self.table.files().iter().enumerate() {
            if !file.is_stored() || (file.len > 0 && !is_preallocated) {
                continue;
            }
            self.find_volume(ground)?;
            let path = self.path(file);
            let is_longer = ground.volume.file(&path).is_some_and(|found| found.stamp.len > 0);
            if file.len == 0 && is_longer {
                continue;
            }
            self.note_written(index, 0);
            let now_ns = ground.now_ns;
            let found = ground.volume.entry(&path).create(now_ns);
            let missing = found.extents.unallocated(0, file.len);
            if missing > ground.volume.free() {
                return Err(failure(DiskAction::Allocate, path, Errno::NOSPC.into()));
            }
            let found = ground.volume.entry(&path).create(now_ns);
            found.extents.reserve(file.len);
            found.stamp.len = found.stamp.len.max(file.len);
            ground.volume.take_space(missing);
        }
        Ok(())
    }

    pub(super) fn read(&self, ground: &Ground<'_>, span: Span) -> Result<Bytes> {
        let mut gathering = Gathering::default();
        for slice in self.table.slices(span) {
            if slice.pad {
                gathering.zeros(ground.contents, slice.len as usize);
                continue;
            }
            let path = self.path(&self.table.files()[slice.file]);
            let Some(file) = ground.volume.file(&path) else {
                return Err(failure(DiskAction::Open, path, Errno::NOENT.into()));
            };
            if file.stamp.len < slice.offset + u64::from(slice.len) {
                return Err(failure(DiskAction::Read, path, io::ErrorKind::UnexpectedEof.into()));
            }
            let len = u64::from(slice.len);
            file.extents.read(ground.contents, slice.offset, len, &mut gathering);
        }
        Ok(gathering.finish(ground.contents))
    }

    /// Writes as many bytes as fit; all of them, half of them with [`DiskFault::Short`], or none with another fault.
    pub(super) fn write(
        &self,
        ground: &mut Ground<'_>,
        span: Span,
        blocks: &[Bytes],
        fault: Option<DiskFault>,
    ) -> Result<()> {
        if self.lock().is_deleted {
            let error = io::Error::other("it is being deleted");
            return Err(failure(DiskAction::Write, self.root.clone(), error));
        }
        self.find_volume(ground)?;
        let mut left = match fault {
            None => u64::MAX,
            Some(DiskFault::Short) => u64::from(span.len) / 2,
            Some(_) => 0,
        };
        let mut unwritten = blocks.iter().cloned().collect();
        for slice in self.table.slices(span) {
            let part = take(&mut unwritten, slice.len as usize);
            if slice.pad {
                continue;
            }
            let path = self.path(&self.table.files()[slice.file]);
            self.check_file(ground, slice.file, &path)?;
            let written = write_run(ground, &path, slice.offset, part, left);
            left -= written.min(left);
            if written < u64::from(slice.len) {
                let error = fault.unwrap_or(DiskFault::Full).error();
                return Err(failure(DiskAction::Write, path, error));
            }
            self.note_written(slice.file, slice.offset + u64::from(slice.len));
        }
        Ok(())
    }

    /// What was written to a file that somebody has deleted or cut since is nowhere.
    fn check_file(&self, ground: &Ground<'_>, index: usize, path: &Path) -> Result<()> {
        let least = self.lock().ever.get(&index).copied().unwrap_or(0);
        let reason = match ground.volume.file(path) {
            _ if least == 0 => return Ok(()),
            None => "it was deleted meanwhile",
            Some(file) if file.stamp.len < least => "it was cut meanwhile",
            Some(_) => return Ok(()),
        };
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, reason);
        Err(failure(DiskAction::Write, path.to_owned(), error))
    }

    pub(super) fn sync(
        &self,
        ground: &mut Ground<'_>,
        fault: Option<DiskFault>,
        is_for_all: bool,
    ) -> Result<Vec<(usize, Option<FileStamp>)>> {
        let unsynced = std::mem::take(&mut self.lock().unsynced);
        let mut stamps = Vec::with_capacity(unsynced.len());
        for index in unsynced {
            let path = self.path(&self.table.files()[index]);
            if let Some(fault) = fault {
                ground.volume.entry(&path).forget_unsynced();
                return Err(failure(DiskAction::Sync, path, fault.error()));
            }
            let least = self.lock().ever.get(&index).copied().unwrap_or(0);
            ground.volume.sync(&path);
            let stamp = ground.volume.file(&path).map(|file| file.stamp.public());
            stamps.push((index, stamp.filter(|stamp| stamp.len >= least)));
        }
        if is_for_all {
            for file in self.table.files().iter().filter(|file| file.is_stored()) {
                let path = self.path(file);
                if ground.volume.file(&path).is_some() {
                    ground.volume.sync(&path);
                }
            }
        }
        Ok(stamps)
    }

    pub(super) fn delete(&self, ground: &mut Ground<'_>, written: Vec<usize>, keep: &[usize]) -> Result<()> {
        let mut doomed: BTreeSet<usize> = {
            let mut known = self.lock();
            known.is_deleted = true;
            std::mem::take(&mut known.ever).into_keys().collect()
        };
        doomed.extend(written);
        self.find_volume(ground)?;
        let doomed = doomed.into_iter().filter(|index| !keep.contains(index));
        for file in doomed.filter_map(|index| self.table.files().get(index)) {
            if file.is_stored() {
                ground.volume.delete(&self.path(file));
            }
        }
        Ok(())
    }

    fn note_written(&self, index: usize, end: u64) {
        let mut written = self.lock();
        written.unsynced.insert(index);
        let len = written.ever.entry(index).or_default();
        *len = end.max(*len);
    }

    pub(super) fn path(&self, entry: &FileEntry) -> PathBuf {
        self.root.join(&*entry.path)
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes blocks behind each other, at most `left` bytes and as many as there is space for; tells how many.
fn write_run(ground: &mut Ground<'_>, path: &Path, offset: u64, blocks: Vec<Bytes>, left: u64) -> u64 {
    let now_ns = ground.now_ns;
    let mut written = 0;
    // Where no byte can be written, the file is created all the same.
    ground.volume.entry(path).create(now_ns);
    for mut block in joined(ground.contents, blocks) {
        let at = offset + written;
        block.truncate((left - written).min(block.len() as u64) as usize);
        let free = ground.volume.free();
        let entry = ground.volume.entry(path);
        let missing = entry.create(now_ns).extents.unallocated(at, block.len() as u64);
        let is_too_long = missing > free;
        if is_too_long {
            // As if what was there already came last.
            block.truncate(free.min(block.len() as u64) as usize);
        }
        let len = block.len() as u64;
        if len > 0 {
            let taken = entry.create(now_ns).extents.unallocated(at, len);
            entry.write(now_ns, at, len, Data::of(ground.contents, block));
            ground.volume.take_space(taken);
            written += len;
        }
        if is_too_long || written == left {
            break;
        }
    }
    written
}

/// Blocks that lie behind each other in one content, as one.
fn joined(contents: &Contents, blocks: Vec<Bytes>) -> Vec<Bytes> {
    let is_run = |pair: &[Bytes]| match (contents.locate(&pair[0]), contents.locate(&pair[1])) {
        (Some(a), Some(b)) => a.content == b.content && a.offset + pair[0].len() as u64 == b.offset,
        _ => false,
    };
    if blocks.len() < 2 || !blocks.windows(2).all(is_run) {
        return blocks;
    }
    let len = blocks.iter().map(Bytes::len).sum();
    let place = contents.locate(&blocks[0]);
    place.map_or(blocks, |place| vec![contents.slice(place, len)])
}

/// Takes `len` bytes off the front of blocks.
fn take(blocks: &mut std::collections::VecDeque<Bytes>, len: usize) -> Vec<Bytes> {
    let mut left = len;
    let mut taken = Vec::new();
    while left > 0
        && let Some(mut block) = blocks.pop_front()
    {
        if block.len() > left {
            blocks.push_front(block.split_off(left));
        }
        left -= block.len();
        taken.push(block);
    }
    taken
}

pub(super) fn failure(action: DiskAction, path: PathBuf, error: io::Error) -> DiskError {
    DiskError {
        action,
        path,
        error: Arc::new(error),
    }
}
