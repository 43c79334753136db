//! Unexpected objects on disk, such as links in place of files.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use crate::bed::{Bed, Seen, Torrent, loopback};
use crate::peer::listen_as_seed;

/// Fault 12: a link in place of a file is not followed. The torrent fails by name, and the link's target stays
/// unchanged.
#[test]
fn a_link_in_the_way() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let torrent = Arc::new(Torrent::new(100_000, 16384));
    for target in [victim.clone(), "data".into()] {
        let mut bed = Bed::new();
        symlink(&target, bed.folder().join("data")).unwrap();
        let options = ecs_torrent::AddOptions {
            root: Some(bed.folder().to_owned()),
            ..Default::default()
        };
        let torrents = bed.torrents();
        bed.block_on(torrents.download_with(torrent.metainfo.clone(), options))
            .unwrap();
        let Seen::Failed(reason) = bed.wait_for("the failure", |seen| matches!(seen, Seen::Failed(_))) else {
            unreachable!()
        };
        assert!(reason.contains("data"), "{reason}");
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// Fault 12: a link that appears after the download has begun is not followed either.
#[test]
fn a_link_that_appears_later() {
    let outside = tempfile::tempdir().unwrap();
    let torrent = Arc::new(Torrent::new(100_000, 16384));
    let mut bed = Bed::new();
    bed.download(&torrent, &[]);
    symlink(outside.path().join("new"), bed.folder().join("data")).unwrap();
    let seed = listen_as_seed(loopback(70), &torrent, |_, _| true);
    let torrents = bed.torrents();
    bed.block_on(torrents.add_peers(torrent.info_hash(), vec![seed]))
        .unwrap();
    bed.wait_for(
        "the failure",
        |seen| matches!(seen, Seen::Failed(reason) if reason.contains("data")),
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// A fault of one torrent does not affect another torrent.
#[test]
fn a_failed_torrent_leaves_others_alone() {
    let (good, bad) = (Arc::new(Torrent::new(500_000, 16384)), Torrent::new(100_000, 16384));
    let mut bed = Bed::new();
    let blocked = bed.folder().join("blocked");
    fs::write(&blocked, "a file where a folder should be").unwrap();
    let torrents = bed.torrents();
    let options = ecs_torrent::AddOptions {
        root: Some(blocked),
        ..Default::default()
    };
    let failed = bed
        .block_on(torrents.download_with(bad.metainfo.clone(), options))
        .unwrap();
    bed.wait_for("the failure", |seen| matches!(seen, Seen::Failed(_)));
    let seed = listen_as_seed(loopback(71), &good, |_, _| true);
    bed.download(&good, &[seed]);
    bed.wait_complete(&good);
    let stats = bed.stats(failed.0);
    assert_eq!(stats.state, ecs_torrent::TorrentState::Failed);
    assert!(stats.error.is_some());
}
