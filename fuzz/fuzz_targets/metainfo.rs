//! Checks that any bytes parse as a torrent with consistent sizes and safe paths, or fail with an error.
#![no_main]

use std::collections::BTreeSet;

use bytes::Bytes;
use ecs_torrent_protocol::geometry::Span;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(metainfo) = Metainfo::parse(&Bytes::copy_from_slice(data), &MetainfoLimits::default()) else { return };
    let info = &metainfo.info;
    assert_eq!(info.pieces.len(), info.geometry.piece_count() as usize);
    assert_eq!(info.files.total_size(), info.geometry.total_size());
    assert!(!info.name.starts_with('.'));
    let mut paths = BTreeSet::new();
    for file in info.files.files() {
        let mut components = file.path.split('/');
        assert!(components.all(|c| !c.is_empty() && c != "." && c != ".." && c.len() <= 255 && !c.contains('\0')));
        assert!(file.attributes.pad || paths.insert(file.path.to_lowercase()), "{} twice", file.path);
    }
    for path in &paths {
        let mut folders = std::iter::successors(path.rsplit_once('/'), |(folder, _)| folder.rsplit_once('/'));
        assert!(folders.all(|(folder, _)| !paths.contains(folder)), "{path} is below a file");
    }
    let span = Span { offset: 0, len: 1 << 20 };
    let covered: u64 = info.files.slices(span).map(|slice| u64::from(slice.len)).sum();
    assert_eq!(covered, info.geometry.total_size().min(1 << 20));
});
