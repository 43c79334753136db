//! Padding and gaps between files, on the real and on the simulated disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use bytes::Bytes;
use ecs_torrent_components::ids::StorageId;
use ecs_torrent_protocol::files::{FileAttributes, FileEntry, FileTable};
use ecs_torrent_protocol::geometry::Span;
use ecs_torrent_protocol::time::Timestamp;
use proptest::prelude::*;

use super::super::{NodeId, Simulation};
use super::SimDisk;
use crate::backends::disk::{FileBuffers, Files, SharedFiles};
use crate::port::{Backend, JobTag};
use crate::ports::disk::{DiskDone, DiskError, DiskEvent, DiskRequest, FileClaims, ReadPurpose};
use crate::purpose;

const STORAGE: StorageId = StorageId(1);

/// A disk with one storage.
trait Disk {
    fn write(&mut self, span: Span, blocks: Vec<Bytes>) -> Result<(), DiskError>;
    fn read(&mut self, span: Span) -> Result<Bytes, DiskError>;
}

struct Real {
    files: Files,
    buffers: FileBuffers,
}

impl Disk for Real {
    fn write(&mut self, span: Span, blocks: Vec<Bytes>) -> Result<(), DiskError> {
        self.files.write(span, &blocks)
    }

    fn read(&mut self, span: Span) -> Result<Bytes, DiskError> {
        self.files.read(span, ReadPurpose::Check, &self.buffers)
    }
}

struct Simulated {
    sim: Simulation,
    disk: SimDisk,
}

impl Simulated {
    fn request(&mut self, request: impl FnOnce(JobTag) -> DiskRequest) -> Result<DiskDone, DiskError> {
        let tag = JobTag::new(purpose!("test"), Entity::PLACEHOLDER);
        self.disk.submit(&mut vec![request(tag)]);
        let mut events: Vec<DiskEvent> = Vec::new();
        while events.is_empty() && self.sim.step(Timestamp::NEVER) {
            self.disk.poll(usize::MAX, &mut events);
        }
        events.pop().expect("an answer").outcome
    }
}

impl Disk for Simulated {
    fn write(&mut self, span: Span, blocks: Vec<Bytes>) -> Result<(), DiskError> {
        let storage = STORAGE;
        let request = |tag| DiskRequest::Write {
            tag,
            storage,
            span,
            blocks,
        };
        self.request(request).map(drop)
    }

    fn read(&mut self, span: Span) -> Result<Bytes, DiskError> {
        let (storage, purpose) = (STORAGE, ReadPurpose::Check);
        let request = |tag| DiskRequest::Read {
            tag,
            storage,
            span,
            purpose,
        };
        match self.request(request)? {
            DiskDone::Read(bytes) => Ok(bytes),
            other => panic!("{other:?}"),
        }
    }
}

fn disks(root: &Path, table: &FileTable) -> [Box<dyn Disk>; 2] {
    let real = Real {
        files: Files::new(STORAGE, root, None, table.clone(), Arc::new(SharedFiles::new(4))),
        buffers: FileBuffers::default(),
    };
    let mut sim = Simulation::new(1, Duration::ZERO);
    let node: NodeId = sim.add_host(([10, 0, 0, 1], 6881).into()).id();
    let disk = SimDisk::new(node, sim.fabric.clone());
    let mut simulated = Simulated { sim, disk };
    let open = |tag| DiskRequest::Open {
        tag,
        storage: STORAGE,
        root: "downloads".into(),
        volume: None,
        files: table.clone(),
        needs: None,
        claims: FileClaims::default(),
    };
    simulated.request(open).unwrap();
    [Box::new(real), Box::new(simulated)]
}

/// Files with the length of the gap before each, its own length, and whether it is padding.
fn table(files: &[(u64, u64, bool)]) -> FileTable {
    let mut end = 0;
    let entries = files.iter().enumerate().map(|(index, &(gap, len, pad))| {
        end += gap + len;
        FileEntry {
            path: format!("t/{index}").into(),
            len,
            offset: end - len,
            attributes: FileAttributes {
                pad,
                ..FileAttributes::default()
            },
        }
    });
    FileTable::new(entries.collect())
}

/// The torrent's bytes: none of a file is zero, all others are.
fn reference(table: &FileTable) -> Vec<u8> {
    let mut bytes = vec![0; table.total_size() as usize];
    for file in table.files().iter().filter(|file| file.is_stored()) {
        for at in file.offset..file.end() {
            bytes[at as usize] = (at % 251) as u8 + 1;
        }
    }
    bytes
}

fn part(bytes: &[u8], span: Span) -> &[u8] {
    &bytes[span.offset as usize..span.end() as usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bytes after a gap are at their place: the files hold theirs, and every span reads as it does from one buffer
    /// with zeros in the gaps.
    #[test]
    fn gaps_read_as_zeros_and_shift_nothing(
        files in proptest::collection::vec((0u64..40, 0u64..90, proptest::bool::weighted(0.2)), 1..12),
        cuts in proptest::collection::vec(1u32..120, 1..30),
        block in 1usize..50,
        reads in proptest::collection::vec((any::<proptest::sample::Index>(), 1u32..300), 1..20),
    ) {
        let table = table(&files);
        let bytes = reference(&table);
        prop_assume!(!bytes.is_empty());
        let folder = tempfile::tempdir().unwrap();
        for mut disk in disks(folder.path(), &table) {
            let mut cuts = cuts.iter().cycle();
            let mut offset = 0;
            while offset < table.total_size() {
                let len = (table.total_size() - offset).min(u64::from(*cuts.next().unwrap())) as u32;
                let span = Span { offset, len };
                let blocks = part(&bytes, span).chunks(block).map(Bytes::copy_from_slice).collect();
                disk.write(span, blocks).unwrap();
                offset = span.end();
            }
            for (start, len) in &reads {
                let offset = start.index(bytes.len()) as u64;
                let len = (table.total_size() - offset).min(u64::from(*len)) as u32;
                let span = Span { offset, len };
                prop_assert_eq!(&disk.read(span).unwrap()[..], part(&bytes, span));
            }
        }
        for (index, file) in table.files().iter().enumerate().filter(|(_, file)| file.has_bytes()) {
            let span = Span { offset: file.offset, len: file.len as u32 };
            prop_assert_eq!(std::fs::read(folder.path().join(format!("t/{index}"))).unwrap(), part(&bytes, span));
        }
    }
}

#[test]
fn padding_that_is_not_zero_is_refused_because_it_would_not_be_read_back() {
    let table = table(&[(0, 5, false), (3, 4, false), (0, 2, true), (0, 1, false)]);
    for bad in [5, 7, 12, 13] {
        let folder = tempfile::tempdir().unwrap();
        for mut disk in disks(folder.path(), &table) {
            let mut bytes = reference(&table);
            bytes[bad] = 1;
            let span = Span {
                offset: 0,
                len: bytes.len() as u32,
            };
            let error = disk.write(span, vec![bytes.into()]).unwrap_err();
            assert!(error.is_bad_padding(), "{error}");
        }
    }
}
