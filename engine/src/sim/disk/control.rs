//! What a scenario does to a disk, and sees of it.

use std::path::Path;
use std::sync::MutexGuard;

use bytes::Bytes;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::geometry::Span;

use super::super::NodeId;
use super::super::contents::Gathering;
use super::super::fabric::Fabric;
use super::extents::Extents;
use super::faults::{DiskFault, DiskOperation, Lasting};
use super::file::{File, Stamp};
use super::{Disk, DiskSpeed, place};

/// A hand on a node's disk; what it does, it does now.
pub struct DiskControl<'s> {
    pub(in super::super) fabric: MutexGuard<'s, Fabric>,
    pub(in super::super) node: NodeId,
}

impl DiskControl<'_> {
    fn disk(&mut self) -> &mut Disk {
        &mut self.fabric.machines[self.node.0].disk
    }

    /// Sets how fast it is, for jobs from now on.
    pub fn set_speed(&mut self, speed: DiskSpeed) {
        self.disk().speed = speed;
    }

    /// Makes it so many times slower than its speed; 1 is as fast as that.
    pub fn set_slowness(&mut self, factor: f64) {
        self.disk().slowness = factor.clamp(0.0, 1e9);
    }

    /// Sets how many bytes of files fit, or that all do. What is there stays, even where it is more.
    pub fn set_capacity(&mut self, bytes: Option<u64>) {
        self.disk().volume.capacity = bytes;
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn free_bytes(&mut self) -> u64 {
        self.disk().volume.free()
    }

    /// Lets an operation fail, for as long as is told.
    pub fn fail(&mut self, operation: DiskOperation, fault: DiskFault, lasting: Lasting) {
        self.disk().faults.add(operation, fault, lasting);
    }

    /// Ends all faults. The capacity, the slowness and what is mounted stay as they are.
    pub fn mend(&mut self) {
        self.disk().faults.clear();
    }

    /// Whether the volume is mounted; one that is not has no files, and nothing can be created.
    pub fn set_mounted(&mut self, is_mounted: bool) {
        self.disk().volume.is_mounted = is_mounted;
    }

    /// Puts a torrent's whole data into a download folder, on the platter. The bytes are shared with all who have them
    /// from here.
    pub fn put(&mut self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes) {
        let fabric = &mut *self.fabric;
        fabric.hub.contents.add(bytes);
        let volume = &mut fabric.machines[self.node.0].disk.volume;
        for entry in files.files().iter().filter(|entry| entry.is_stored()) {
            let mut extents = Extents::default();
            extents.write(
                0,
                entry.len,
                place(&fabric.hub.contents, bytes, entry.offset, entry.len),
            );
            let stamp = Stamp {
                len: entry.len,
                modified_ns: fabric.hub.now.as_nanos(),
            };
            volume.put(root.as_ref().join(&*entry.path), File { extents, stamp });
        }
    }

    /// A torrent's data in a download folder, if all files are there whole, no part of them a hole. Padding is zeros.
    #[must_use]
    pub fn data(&self, root: impl AsRef<Path>, files: &FileTable) -> Option<Bytes> {
        let volume = &self.fabric.machines[self.node.0].disk.volume;
        let contents = &self.fabric.hub.contents;
        let mut gathering = Gathering::default();
        for entry in files.files() {
            if !entry.is_stored() {
                gathering.zeros(contents, entry.len as usize);
                continue;
            }
            let file = volume.file(&root.as_ref().join(&*entry.path))?;
            if !file.extents.covers(0, entry.len) {
                return None;
            }
            file.extents.read(contents, 0, entry.len, &mut gathering);
        }
        Some(gathering.finish(contents))
    }

    /// Whether a span of a torrent's data is there as it should be: `bytes` are the torrent's.
    #[must_use]
    pub fn holds(&self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes, span: Span) -> bool {
        let volume = &self.fabric.machines[self.node.0].disk.volume;
        self.compare(root.as_ref(), files, bytes, span, |path| volume.file(path))
    }

    /// As [`DiskControl::holds`], of what is on the platter, and there after any crash.
    #[must_use]
    pub fn holds_durably(&self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes, span: Span) -> bool {
        let volume = &self.fabric.machines[self.node.0].disk.volume;
        self.compare(root.as_ref(), files, bytes, span, |path| volume.file_on_platter(path))
    }

    fn compare<'f>(
        &self,
        root: &Path,
        files: &FileTable,
        bytes: &Bytes,
        span: Span,
        find: impl Fn(&Path) -> Option<&'f File>,
    ) -> bool {
        let contents = &self.fabric.hub.contents;
        files.slices(span).filter(|slice| !slice.pad).all(|slice| {
            let entry = &files.files()[slice.file];
            let len = u64::from(slice.len);
            let Some(file) = find(&root.join(&*entry.path)) else {
                return false;
            };
            if file.stamp.len < slice.offset + len {
                return false;
            }
            let mut gathering = Gathering::default();
            file.extents.read(contents, slice.offset, len, &mut gathering);
            let found = gathering.finish(contents);
            let begin = (entry.offset + slice.offset) as usize;
            let expected = &bytes[begin..begin + slice.len as usize];
            found.as_ptr() == expected.as_ptr() || found == expected
        })
    }

    /// Changes bytes of a torrent where they lie, as a bad sector does: neither length nor time tell.
    pub fn rot(&mut self, root: impl AsRef<Path>, files: &FileTable, span: Span) {
        let fabric = &mut *self.fabric;
        let volume = &mut fabric.machines[self.node.0].disk.volume;
        for slice in files.slices(span).filter(|slice| !slice.pad) {
            let path = root.as_ref().join(&*files.files()[slice.file].path);
            let Some(file) = volume.file(&path).cloned() else {
                continue;
            };
            let mut gathering = Gathering::default();
            let len = u64::from(slice.len);
            file.extents
                .read(&fabric.hub.contents, slice.offset, len, &mut gathering);
            let rotten: Vec<u8> = gathering
                .finish(&fabric.hub.contents)
                .iter()
                .map(|byte| !byte)
                .collect();
            let mut file = file;
            file.extents
                .write(slice.offset, len, super::extents::Data::Bytes(rotten.into()));
            volume.put(path, file);
        }
    }

    /// Deletes a file, as somebody else does; false where there is none.
    pub fn delete(&mut self, path: impl AsRef<Path>) -> bool {
        self.disk().volume.delete(path.as_ref())
    }

    /// Cuts a file to a length, as somebody else does.
    pub fn truncate(&mut self, path: impl AsRef<Path>, len: u64) {
        let now_ns = self.fabric.hub.now.as_nanos();
        self.disk().volume.truncate(path.as_ref(), len, now_ns);
    }

    /// The length of a file, if it is there.
    #[must_use]
    pub fn file_len(&self, path: impl AsRef<Path>) -> Option<u64> {
        let volume = &self.fabric.machines[self.node.0].disk.volume;
        volume.file(path.as_ref()).map(|file| file.stamp.len)
    }
}
