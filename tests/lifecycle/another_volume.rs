//! Another volume that is mounted where a torrent's volume was.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ecs_torrent::RemoveOptions;
use ecs_torrent::components::session::Session;

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;
use crate::skipping::skip;
use crate::volumes::{Volume, can_mount};

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Whether volumes can be mounted here and distinguished; skips the test if not.
fn can_tell_apart(test: &str, folder: &Path) -> bool {
    if !can_mount(test) {
        return false;
    }
    let volume = Volume::new(folder, 1 << 20);
    let is_known = rustix::fs::statvfs(volume.place()).is_ok_and(|found| found.f_fsid != 0);
    if !is_known {
        skip(test, "the system gives memory-backed volumes no identity");
    }
    is_known
}

/// A torrent that has data waits while another volume is mounted in the place of its own: in the same run, in the next
/// one, and while it is there. When its own volume is back, the torrent goes on with the data on it.
#[test]
fn a_torrent_with_data_waits_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("mounted"), folder.path().join("state-dir"));
    if !can_tell_apart("another_volume::a_torrent_with_data_waits_for_its_own", &root) {
        return;
    }
    let torrent = Arc::new(Torrent::album(
        761,
        "album",
        &[("a", 500_000), ("b", 500_000), ("c/d", 500_000)],
        32 << 10,
    ));
    let own = Volume::new(&folder.path().join("own"), 8 << 20);
    let other = Volume::new(&folder.path().join("other"), 8 << 20);
    let seed = Seed::limited(&torrent, 40);
    let mut settings = settings(Some(&state));
    // Nothing is saved in this run before the volume goes.
    settings.session.checkpoint_interval_s = 3600;
    let mounted = own.again(&root);
    let mut bed = Bed::start_with(settings);
    let id = bed.add(&torrent, &root, &[seed.address]);
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 5);
    drop(mounted);
    let mounted = other.again(&root);
    seed.release();
    for _ in 0..3 {
        let reason = bed.wait_blocked(id);
        let place = format!("another volume is mounted at {}", root.display());
        assert!(reason.contains(&place), "{reason}");
    }
    assert!(is_empty(&root), "nothing is created on another volume");
    drop(mounted);
    let mounted = own.again(&root);
    bed.wait_seeding(id);
    torrent.assert_whole(&root);
    bed.stop_all().unwrap();
    drop(bed);
    assert!(torrent.session(&state).unwrap().volume_id.is_some());

    drop(mounted);
    let mounted = other.again(&root);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_blocked(id);
    bed.wait_blocked(id);
    assert!(is_empty(&root));
    drop(mounted);
    let mounted = own.again(&root);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "its data is as it was left");
    bed.stop_all().unwrap();
    drop(bed);

    // The way out where the volume never comes back: the torrent is removed and added again.
    drop(mounted);
    let _mounted = other.again(&root);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_blocked(id);
    let options = RemoveOptions { delete_data: false };
    bed.block_on(bed.torrents().remove(id, options)).unwrap();
    bed.add(&torrent, &root, &[seed.address]);
    bed.wait_seeding(id);
    torrent.assert_whole(other.place());
    torrent.assert_whole(own.place());
}

/// A torrent without data uses the volume that is there, and so does one whose session was written by an earlier
/// version, which knew mount points only.
#[test]
fn a_torrent_without_data_uses_any() {
    let folder = tempfile::tempdir().unwrap();
    let (root, state) = (folder.path().join("mounted"), folder.path().join("state-dir"));
    if !can_tell_apart("another_volume::a_torrent_without_data_uses_any", &root) {
        return;
    }
    let torrent = Arc::new(Torrent::album(762, "album", &[("a", 300_000)], 32 << 10));
    let volumes = ["first", "second", "third"].map(|name| Volume::new(&folder.path().join(name), 8 << 20));
    let mounted = volumes[0].again(&root);
    let mut bed = Bed::start(&state);
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_downloading(id);
    bed.stop_all().unwrap();
    drop((bed, mounted));

    let mounted = volumes[1].again(&root);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_downloading(id);
    bed.add_peer(id, Seed::free(&torrent).address);
    bed.wait_seeding(id);
    torrent.assert_whole(volumes[1].place());
    bed.stop_all().unwrap();
    drop((bed, mounted));

    let older = Session {
        volume_id: None,
        ..torrent.session(&state).unwrap()
    };
    fs::write(torrent.session_path(&state), older.to_text()).unwrap();
    let _mounted = volumes[2].again(&root);
    let mut bed = Bed::start(&state);
    assert_eq!(bed.resume_all(), 1);
    bed.wait_downloading(id);
    bed.add_peer(id, Seed::free(&torrent).address);
    bed.wait_seeding(id);
    torrent.assert_whole(volumes[2].place());
}
