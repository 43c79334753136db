//! A scenario's access to a disk: faults, changes and inspection.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::{FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Span;

use super::super::NodeId;
use super::super::content::Content;
use super::super::contents::Gathering;
use super::super::fabric::{Fabric, lock};
use super::extents::Extents;
use super::faults::{DiskFault, DiskOperation, Lasting};
use super::file::{File, Identity, Stamp};
use super::{Disk, DiskSpeed, Volume, place};
use crate::ports::disk::{FileNeeds, PART_SUFFIX, Parts};

/// A view of a node's disk, which an engine's systems may use too.
#[derive(Clone)]
pub struct DiskView {
    pub(in super::super) fabric: Arc<Mutex<Fabric>>,
    pub(in super::super) node: NodeId,
}

/// Finds a file by its name, or by that of an incomplete file.
fn find_named<'v>(root: &Path, entry: &FileEntry, find: impl Fn(&Path) -> Option<&'v File>) -> Option<&'v File> {
    let path = root.join(&*entry.path);
    let with_suffix = || find(&root.join(format!("{}{PART_SUFFIX}", entry.path)));
    find(&path).or_else(with_suffix)
}

impl DiskView {
    /// Whether the disk holds a piece with the right bytes.
    #[must_use]
    pub fn holds(&self, root: impl AsRef<Path>, content: &Content, piece: u32) -> bool {
        let control = DiskControl {
            fabric: &self.fabric,
            node: self.node,
        };
        let (root, span) = (root.as_ref(), content.piece_span(piece));
        control.holds(root, content.files(), content.bytes(), span) || control.holds_in_part(root, content, piece)
    }

    /// Returns and clears the unauthorized changes that engines made to a user's files since the last call.
    #[must_use]
    pub fn take_trespasses(&self) -> Vec<String> {
        lock(&self.fabric).machines[self.node.0].disk.volume.take_trespasses()
    }
}

/// Controls a node's disk; all changes take effect at once.
pub struct DiskControl<'s> {
    pub(in super::super) fabric: &'s Mutex<Fabric>,
    pub(in super::super) node: NodeId,
}

impl DiskControl<'_> {
    fn lock(&self) -> MutexGuard<'_, Fabric> {
        lock(self.fabric)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> T {
        work(&mut self.lock().machines[self.node.0].disk)
    }

    /// Sets the disk's speed, for later jobs.
    pub fn set_speed(&self, speed: DiskSpeed) {
        self.with(|disk| disk.speed = speed);
    }

    /// Slows the disk down by a factor of its speed; 1 is full speed.
    pub fn set_slowness(&self, factor: f64) {
        self.with(|disk| disk.slowness = factor.clamp(0.0, 1e9));
    }

    /// Sets the capacity for files in bytes; `None` is unlimited. Existing files stay, even above the capacity.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.with(|disk| disk.volume.capacity = bytes);
    }

    /// Free space in bytes.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.with(|disk| disk.volume.free())
    }

    /// Makes an operation fail, for as long as `lasting` says.
    pub fn fail(&self, operation: DiskOperation, fault: DiskFault, lasting: Lasting) {
        self.with(|disk| disk.faults.add(operation, fault, lasting));
    }

    /// Ends all faults. The capacity, the slowness and the mount state stay as they are.
    pub fn mend(&self) {
        self.with(|disk| disk.faults.clear());
    }

    /// Sets whether the volume is mounted. An unmounted volume has no files, and no file can be created.
    pub fn set_mounted(&self, is_mounted: bool) {
        self.with(|disk| disk.volume.is_mounted = is_mounted);
    }

    /// Puts a torrent's whole data into a download folder, durably. All disks filled this way share the bytes.
    pub fn put(&self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes) {
        let fabric = &mut *self.lock();
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
            let file = File {
                extents,
                stamp,
                identity: Identity {
                    is_users: true,
                    ..volume.next_identity()
                },
            };
            volume.put(root.as_ref().join(&*entry.path), file);
        }
    }

    /// Returns a torrent's data from a download folder, if all files are complete and without holes. Padding is zeros.
    #[must_use]
    pub fn data(&self, root: impl AsRef<Path>, files: &FileTable) -> Option<Bytes> {
        let fabric = self.lock();
        let volume = &fabric.machines[self.node.0].disk.volume;
        let contents = &fabric.hub.contents;
        let mut gathering = Gathering::default();
        for entry in files.files() {
            if !entry.is_stored() {
                gathering.zeros(contents, entry.len as usize);
                continue;
            }
            let file = find_named(root.as_ref(), entry, |path| volume.file(path))?;
            if !file.extents.covers(0, entry.len) {
                return None;
            }
            file.extents.read(contents, 0, entry.len, &mut gathering);
        }
        Some(gathering.finish(contents))
    }

    /// Whether the disk holds a span of a torrent's data correctly; `bytes` is the torrent's data.
    #[must_use]
    pub fn holds(&self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes, span: Span) -> bool {
        self.compare(root.as_ref(), files, bytes, span, Volume::file)
    }

    /// As [`DiskControl::holds`], for durable data, which survives any crash.
    #[must_use]
    pub fn holds_durably(&self, root: impl AsRef<Path>, files: &FileTable, bytes: &Bytes, span: Span) -> bool {
        self.compare(root.as_ref(), files, bytes, span, Volume::durable_file)
    }

    /// Whether the disk holds a piece correctly, with those of its files that are not right there in the part file.
    fn holds_in_part(&self, root: &Path, content: &Content, piece: u32) -> bool {
        let files = content.files();
        let needs = FileNeeds {
            torrent: content.info_hash(),
            piece_length: content.metainfo().info.geometry.piece_length(),
            skipped: Bitfield::new(files.files().len() as u32),
            parted: Bitfield::full(files.files().len() as u32),
            held: Bitfield::default(),
        };
        let parts = Parts::new(files, &needs);
        let path = root.join(&*parts.entry.path);
        let mut at = content.piece_span(piece).offset;
        files.slices(content.piece_span(piece)).all(|slice| {
            let span = Span {
                offset: at,
                len: slice.len,
            };
            at += u64::from(slice.len);
            if self.holds(root, files, content.bytes(), span) {
                return true;
            }
            let fabric = self.lock();
            let (volume, contents) = (&fabric.machines[self.node.0].disk.volume, &fabric.hub.contents);
            parts.cut(files, slice).into_iter().all(|cut| {
                let place = cut.slice.place.filter(|place| place.file == parts.index);
                place.zip(volume.file(&path)).is_some_and(|(place, file)| {
                    let mut gathering = Gathering::default();
                    file.extents
                        .read(contents, place.offset, u64::from(slice.len), &mut gathering);
                    gathering.finish(contents) == content.slice(span)
                })
            })
        })
    }

    fn compare(
        &self,
        root: &Path,
        files: &FileTable,
        bytes: &Bytes,
        span: Span,
        find: impl for<'v, 'p> Fn(&'v Volume, &'p Path) -> Option<&'v File>,
    ) -> bool {
        let fabric = self.lock();
        let volume = &fabric.machines[self.node.0].disk.volume;
        let contents = &fabric.hub.contents;
        files.slices(span).all(|slice| {
            let Some(place) = slice.place else { return true };
            let entry = &files.files()[place.file];
            let len = u64::from(slice.len);
            let Some(file) = find_named(root, entry, |path| find(volume, path)) else {
                return false;
            };
            if file.stamp.len < place.offset + len {
                return false;
            }
            let mut gathering = Gathering::default();
            file.extents.read(contents, place.offset, len, &mut gathering);
            let found = gathering.finish(contents);
            let begin = (entry.offset + place.offset) as usize;
            let expected = &bytes[begin..begin + slice.len as usize];
            found.as_ptr() == expected.as_ptr() || found == expected
        })
    }

    /// Corrupts bytes of a torrent in place, as a bad sector does: file lengths and times do not change.
    pub fn rot(&self, root: impl AsRef<Path>, files: &FileTable, span: Span) {
        let fabric = &mut *self.lock();
        let volume = &mut fabric.machines[self.node.0].disk.volume;
        for slice in files.slices(span) {
            let Some(place) = slice.place else { continue };
            let path = root.as_ref().join(&*files.files()[place.file].path);
            let Some(file) = volume.file(&path).cloned() else {
                continue;
            };
            let mut gathering = Gathering::default();
            let len = u64::from(slice.len);
            file.extents
                .read(&fabric.hub.contents, place.offset, len, &mut gathering);
            let rotten: Vec<u8> = gathering
                .finish(&fabric.hub.contents)
                .iter()
                .map(|byte| !byte)
                .collect();
            let mut file = file;
            file.extents
                .write(place.offset, len, super::extents::Data::Bytes(rotten.into()));
            volume.put(path, file);
        }
    }

    /// Deletes a file, as another program does; returns false if there is none.
    pub fn delete(&self, path: impl AsRef<Path>) -> bool {
        self.with(|disk| disk.volume.delete(path.as_ref()))
    }

    /// Truncates a file, as another program does.
    pub fn truncate(&self, path: impl AsRef<Path>, len: u64) {
        let now_ns = self.lock().hub.now.as_nanos();
        self.with(|disk| disk.volume.truncate(path.as_ref(), len, now_ns));
    }

    /// The length of a file, if it exists.
    #[must_use]
    pub fn file_len(&self, path: impl AsRef<Path>) -> Option<u64> {
        let fabric = self.lock();
        let volume = &fabric.machines[self.node.0].disk.volume;
        volume.file(path.as_ref()).map(|file| file.stamp.len)
    }
}
