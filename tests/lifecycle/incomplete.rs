//! The folder for incomplete torrents.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ecs_torrent::components::session::{MoveStage, SavedMove, Session};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, InfoHash};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;

const PIECE: u32 = 64 << 10;
const FILES: [(&str, usize); 2] = [("a", 1 << 20), ("sub/b", 300_000)];

/// A download folder, a folder for incomplete torrents and a state folder.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn complete(&self) -> PathBuf {
        self.folder.path().join("complete")
    }

    fn incomplete(&self) -> PathBuf {
        self.folder.path().join("incomplete")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state-dir")
    }

    fn settings(&self) -> Settings {
        let mut settings = settings(Some(&self.state()));
        settings.session.checkpoint_interval_s = 0;
        settings.storage.download_dir = self.complete();
        settings.storage.incomplete_dir = Some(self.incomplete());
        settings
    }

    fn start(&self) -> Bed {
        Bed::start_with(self.settings())
    }

    fn restore(&self) -> Bed {
        Bed::restored(self.settings())
    }

    fn session(&self, torrent: &Torrent) -> Session {
        torrent.session(&self.state()).unwrap()
    }
}

fn add(bed: &Bed, torrent: &Torrent, seed: Option<&Seed>) -> InfoHash {
    let options = AddOptions {
        peers: seed.map(|seed| seed.address).into_iter().collect(),
        ..AddOptions::default()
    };
    bed.add_with(torrent, options)
}

/// Starts a download from a seed that sends 30 blocks, and waits for the first pieces.
fn begin(place: &Place, torrent: &Arc<Torrent>) -> (Bed, Seed, InfoHash) {
    let mut bed = place.start();
    let seed = Seed::limited(torrent, 30);
    let id = add(&bed, torrent, Some(&seed));
    bed.wait_downloading(id);
    wait_until("pieces", || bed.have(id).len() >= 3);
    (bed, seed, id)
}

fn is_empty(folder: &Path) -> bool {
    !folder.exists() || fs::read_dir(folder).unwrap().next().is_none()
}

/// Waits until a torrent seeds in a folder.
fn wait_seeding_in(bed: &mut Bed, id: InfoHash, root: &Path) {
    wait_until("the seed at its place", || {
        let stats = bed.stats(id);
        stats.root == root && stats.state == ecs_torrent::TorrentState::Seeding && stats.moving.is_none()
    });
}

/// An incomplete torrent has no file in its download folder, over a kill too, and a complete one has all of its files
/// there.
#[test]
fn files_go_to_the_download_folder_when_all_are_there() {
    let torrent = Arc::new(Torrent::album(501, "album", &FILES, PIECE));
    let place = Place::new();
    let (bed, seed, id) = begin(&place, &torrent);
    assert_eq!(bed.stats(id).root, place.incomplete());
    assert!(place.incomplete().join("album/a").exists() && is_empty(&place.complete()));
    wait_until("the session", || {
        place.session(&torrent).complete_root == Some(place.complete())
    });
    wait_until("saved pieces", || {
        let session = place.session(&torrent);
        session
            .have
            .to_set(session.pieces)
            .is_some_and(|have| have.count() >= 3)
    });
    drop(bed);

    let mut bed = place.restore();
    bed.wait_downloading(id);
    assert!(bed.have(id).len() >= 3, "pieces are kept");
    assert_eq!(bed.stats(id).root, place.incomplete());
    // A stopped torrent that is added again continues in the same place, by name too.
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let options = AddOptions {
        root: Some(place.complete()),
        ..AddOptions::default()
    };
    bed.add_with(&torrent, options);
    bed.wait_downloading(id);
    assert_eq!(bed.stats(id).root, place.incomplete());
    assert!(bed.have(id).len() >= 3, "pieces are kept");
    seed.release();
    bed.add_peer(id, seed.address);
    wait_seeding_in(&mut bed, id, &place.complete());
    torrent.assert_whole(&place.complete());
    assert!(is_empty(&place.incomplete()));
    wait_until("the session", || place.session(&torrent).complete_root.is_none());
    drop(bed);
    let mut bed = place.restore();
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    assert_eq!(bed.stats(id).root, place.complete());
}

/// A torrent whose data is in the download folder already is used there.
#[test]
fn data_in_the_download_folder_is_used_there() {
    let torrent = Torrent::album(502, "album", &FILES, PIECE);
    let place = Place::new();
    torrent.place(&place.complete());
    let mut bed = place.start();
    let id = add(&bed, &torrent, None);
    bed.wait_seeding(id);
    assert_eq!(bed.stats(id).root, place.complete());
    assert!(is_empty(&place.incomplete()));
    assert_eq!(place.session(&torrent).complete_root, None);
}

/// The second of two torrents with one name cannot use either folder of the first one. A file in the way in the folder
/// for incomplete torrents leaves a torrent in its download folder.
#[test]
fn what_is_in_the_way_is_not_touched() {
    let torrent = Arc::new(Torrent::album(503, "album", &FILES, PIECE));
    let other = Torrent::album(504, "album", &[("a", 70_000), ("c", 70_000)], PIECE);
    let place = Place::new();
    fs::create_dir_all(place.incomplete().join("album/sub")).unwrap();
    fs::write(place.incomplete().join("album/sub/b"), "mine").unwrap();
    let mut bed = place.start();
    let seed = Seed::free(&torrent);
    let id = add(&bed, &torrent, Some(&seed));
    bed.wait_seeding(id);
    assert_eq!(bed.stats(id).root, place.complete());
    torrent.assert_whole(&place.complete());
    assert_eq!(fs::read(place.incomplete().join("album/sub/b")).unwrap(), b"mine");
    bed.block_on(
        bed.torrents()
            .remove(id, ecs_torrent::RemoveOptions { delete_data: true }),
    )
    .unwrap();
    fs::remove_dir_all(place.incomplete()).unwrap();

    let slow = Seed::limited(&torrent, 20);
    let id = add(&bed, &torrent, Some(&slow));
    bed.wait_downloading(id);
    // A save registers the new files, and the folder to which they will go stays registered.
    wait_until("a saved piece", || {
        let session = torrent.session(&place.state());
        session.is_some_and(|session| session.have.to_set(session.pieces).unwrap().count() > 0)
    });
    for root in [place.complete(), place.incomplete()] {
        let options = AddOptions {
            root: Some(root),
            ..AddOptions::default()
        };
        let refused = bed
            .block_on(bed.torrents().download_with(other.file(), options))
            .unwrap_err();
        assert!(refused.to_string().contains("album/a"), "{refused}");
    }
    // A file of the user in the download folder keeps the torrent out, and is not touched.
    fs::create_dir_all(place.complete().join("album")).unwrap();
    fs::write(place.complete().join("album/a"), "mine").unwrap();
    slow.release();
    bed.add_peer(id, slow.address);
    wait_seeding_in(&mut bed, id, &place.incomplete());
    torrent.assert_whole(&place.incomplete());
    drop(bed);
    assert_eq!(fs::read(place.complete().join("album/a")).unwrap(), b"mine");
    fs::remove_dir_all(place.complete()).unwrap();
    let mut bed = place.restore();
    wait_seeding_in(&mut bed, id, &place.complete());
    torrent.assert_whole(&place.complete());
}

/// A move by the user decides where the files are; a kill during the last move is no obstacle.
#[test]
fn the_user_decides_and_kills_do_not() {
    let torrent = Arc::new(Torrent::album(505, "album", &FILES, PIECE));
    let place = Place::new();
    let (mut bed, seed, id) = begin(&place, &torrent);
    let chosen = place.folder.path().join("chosen");
    bed.block_on(bed.torrents().move_files(id, &chosen)).unwrap();
    bed.wait(id, "the move", |life| *life == Lifecycle::Moving);
    bed.wait_downloading(id);
    seed.release();
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    torrent.assert_whole(&chosen);
    wait_until("the session", || place.session(&torrent).complete_root.is_none());
    bed.stop_all().unwrap();
    drop(bed);

    // As a kill leaves it: the torrent is complete and the move to the download folder not begun, or begun.
    for stage in [None, Some(MoveStage::Copying)] {
        let from = place.session(&torrent).root;
        let to = place.folder.path().join(format!("{stage:?}"));
        let mut session = place.session(&torrent);
        (session.complete_root, session.stopped) = (Some(to.clone()), false);
        session.moving = stage.map(|stage| {
            Box::new(SavedMove {
                root: to.clone(),
                stage,
                ..SavedMove::default()
            })
        });
        fs::write(torrent.session_path(&place.state()), session.to_text()).unwrap();
        let mut bed = place.restore();
        wait_seeding_in(&mut bed, id, &to);
        torrent.assert_whole(&to);
        assert!(is_empty(&from));
        assert!(!bed.has_checked(id));
        wait_until("the session", || {
            let session = place.session(&torrent);
            session.complete_root.is_none() && session.moving.is_none()
        });
        bed.stop_all().unwrap();
        drop(bed);
    }
}
