//! Data that is taken as complete without a check (`AddOptions::skip_checking`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ecs_torrent::components::commands::RecheckError;
use ecs_torrent::components::readers::ReadError;
use ecs_torrent::components::session::Runs;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, InfoHash};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::seed::Seed;

const PIECE: u32 = 64 << 10;

/// The pieces of the second file, which begins and ends with a piece.
const SECOND: std::ops::Range<u32> = 48..80;

/// A torrent, and a folder for its data and the engine's state.
struct Given {
    torrent: Arc<Torrent>,
    folder: tempfile::TempDir,
}

impl Given {
    fn new(number: u64) -> Self {
        let files = [("a", 3 << 20), ("b", 2 << 20), ("c", 100_000)];
        Self {
            torrent: Arc::new(Torrent::album(number, "album", &files, PIECE)),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// All data is in the folder.
    fn placed(number: u64) -> Self {
        let given = Self::new(number);
        given.torrent.place(&given.root());
        given
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state-dir")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root().join("album").join(name)
    }

    /// Changes bytes in the middle of the second file. Returns the index of the bad piece.
    fn damage(&self) -> u32 {
        let file = fs::File::options().write(true).open(self.file("b")).unwrap();
        file.write_all_at(b"damage", 1 << 20).unwrap();
        (4 << 20) / PIECE
    }

    fn options(&self) -> AddOptions {
        AddOptions {
            root: Some(self.root()),
            skip_checking: true,
            ..AddOptions::default()
        }
    }

    /// Adds the torrent without a check, and permits changes to its files.
    fn add(&self, bed: &Bed) -> InfoHash {
        let options = AddOptions {
            overwrite: true,
            ..self.options()
        };
        bed.add_with(&self.torrent, options)
    }

    fn size(&self) -> u64 {
        self.torrent.data.len() as u64
    }

    fn unverified(&self) -> Runs {
        self.torrent.session(&self.state()).unwrap().unverified
    }
}

/// An engine that downloads the torrent from another one.
fn downloader(given: &Given, folder: &Path, from: &Bed) -> (Bed, InfoHash) {
    let bed = Bed::start(&folder.join("state-dir"));
    let id = bed.add(&given.torrent, &folder.join("data"), &[from.address()]);
    (bed, id)
}

/// Complete data is seeded at once, and counts as unverified until a peer has read it, also after a kill.
#[test]
fn complete_data_is_seeded_and_verified_when_it_is_read() {
    let given = Given::placed(161);
    let mut bed = Bed::start(&given.state());
    let id = bed.add_with(&given.torrent, given.options());
    bed.wait_seeding(id);
    let stats = bed.stats(id);
    assert_eq!((stats.completed, stats.unverified), (given.size(), given.size()));
    let count = given.torrent.geometry().piece_count();
    wait_until("the session", || given.unverified() == Runs::of(0..count));
    // An engine that is dropped saves nothing, as if it were killed.
    drop(bed);
    let mut bed = Bed::restored(settings(Some(&given.state())));
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    assert_eq!(bed.stats(id).unverified, given.size());

    let other = tempfile::tempdir().unwrap();
    let (mut leech, _) = downloader(&given, other.path(), &bed);
    leech.wait_seeding(id);
    given.torrent.assert_whole(&other.path().join("data"));
    assert_eq!(bed.stats(id).unverified, 0);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    bed.stop_all().unwrap();
    assert!(given.unverified().is_empty());
}

/// No byte of a bad piece is sent. All data is checked then, and the bad piece is downloaded again.
#[test]
fn a_bad_piece_is_not_sent_and_lets_all_data_be_checked() {
    let given = Given::placed(162);
    let bad = given.damage();
    let mut bed = Bed::start(&given.state());
    let id = given.add(&bed);
    bed.wait_seeding(id);
    assert!(bed.have(id).contains(&bad));
    let other = tempfile::tempdir().unwrap();
    let (mut leech, _) = downloader(&given, other.path(), &bed);
    bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait_downloading(id);
    assert!(!bed.have(id).contains(&bad));
    assert_eq!(bed.stats(id).unverified, 0);
    let seed = Seed::free(&given.torrent);
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    given.torrent.assert_whole(&given.root());
    assert!(bed.stats(id).downloaded <= PIECE.into(), "only the bad piece");
    leech.add_peer(id, bed.address());
    leech.wait_seeding(id);
    assert_eq!(leech.stats(id).corrupt, 0, "no bad byte was sent");
    given.torrent.assert_whole(&other.path().join("data"));
}

/// The torrent does not change a file of the user to repair it, and says so.
#[test]
fn a_bad_file_of_the_user_is_left_alone() {
    let given = Given::placed(163);
    let bad = given.damage();
    let before = fs::read(given.file("b")).unwrap();
    let mut bed = Bed::start(&given.state());
    let id = bed.add_with(&given.torrent, given.options());
    bed.wait_seeding(id);
    bed.block_on(bed.torrents().recheck_unverified(id)).unwrap();
    let reason = bed.wait_failed(id);
    assert!(reason.contains("album/b") && !reason.contains("--into"), "{reason}");
    assert!(!bed.have(id).contains(&bad));
    assert_eq!(fs::read(given.file("b")).unwrap(), before);
    // The user restores the file.
    given.torrent.place(&given.root());
    bed.block_on(bed.torrents().start(id)).unwrap();
    bed.wait_seeding(id);
    let verified = bed.block_on(bed.torrents().recheck_unverified(id));
    assert!(
        matches!(verified, Err(Error::Recheck(RecheckError::Verified(_)))),
        "{verified:?}"
    );
}

/// Files that are absent or of another length are not taken; what there is of them is hashed.
#[test]
fn only_files_of_the_right_length_are_taken() {
    let given = Given::placed(164);
    let file = fs::File::options().write(true).open(given.file("a")).unwrap();
    file.write_all_at(b"more", 3 << 20).unwrap();
    file.write_all_at(b"damage", 0).unwrap();
    fs::remove_file(given.file("c")).unwrap();
    let mut bed = Bed::start(&given.state());
    let id = given.add(&bed);
    bed.wait_downloading(id);
    assert_eq!(bed.have(id), (1..SECOND.end).collect::<Vec<u32>>());
    let unverified = u64::from(SECOND.end - SECOND.start) * u64::from(PIECE);
    assert_eq!(bed.stats(id).unverified, unverified);
    wait_until("the session", || given.unverified() == Runs::of(SECOND));
}

/// A reader gets verified bytes only: it waits for the hash of a good piece, and gets nothing of a bad one.
#[test]
fn a_reader_gets_no_unverified_byte() {
    let given = Given::placed(165);
    let bad = given.damage();
    let mut bed = Bed::start(&given.state());
    let id = given.add(&bed);
    bed.wait_seeding(id);
    let torrents = bed.torrents();
    let file = &given.torrent.data[3 << 20..5 << 20];
    let mut reader = bed.block_on(torrents.read_file(id, 1)).unwrap();
    let bytes = bed.block_on(reader.read_at(10, 4 * PIECE)).unwrap();
    assert_eq!(
        bytes,
        file[10..PIECE as usize],
        "up to the next piece, which is not verified"
    );
    assert_eq!(bed.stats(id).unverified, given.size() - u64::from(PIECE));

    let offset = u64::from((bad - SECOND.start) * PIECE);
    let refused = bed.block_on(reader.read_at(offset, PIECE));
    assert!(
        matches!(refused, Err(Error::ReadFile(ReadError::NotRunning { .. }))),
        "{refused:?}"
    );
    bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
    let seed = Seed::free(&given.torrent);
    bed.wait_downloading(id);
    bed.add_peer(id, seed.address);
    let mut reader = bed.block_on(torrents.read_file(id, 1)).unwrap();
    let bytes = bed.block_on(reader.read_at(offset, PIECE)).unwrap();
    assert_eq!(bytes, file[offset as usize..offset as usize + PIECE as usize]);
}

/// The wish to skip the check outlives restarts while the torrent is paused or lacks its metadata, and ends with the
/// first look at the files.
#[test]
fn the_wish_is_kept_until_the_files_are_examined() {
    let given = Given::placed(166);
    let bed = Bed::start(&given.state());
    let magnet = format!("magnet:?xt=urn:btih:{}", given.torrent.info_hash());
    let id = bed
        .block_on(bed.torrents().download_with(magnet.as_str(), given.options()))
        .unwrap()
        .0;
    wait_until("the session", || {
        let session = given.torrent.session(&given.state());
        session.is_some_and(|session| session.skip_checking)
    });
    drop(bed);
    let mut bed = Bed::restored(settings(Some(&given.state())));
    bed.add_peer(id, Seed::free(&given.torrent).address);
    // Another add brings the metadata.
    bed.add(&given.torrent, &given.root(), &[]);
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    assert_eq!(bed.stats(id).unverified, given.size());
    wait_until("the session", || {
        !given.torrent.session(&given.state()).unwrap().skip_checking
    });

    // A torrent that is paused from the start.
    let given = Given::placed(167);
    let mut bed = Bed::start(&given.state());
    let options = AddOptions {
        paused: true,
        ..given.options()
    };
    let id = bed.add_with(&given.torrent, options);
    bed.wait(id, "the pause", |life| *life == Lifecycle::Paused);
    drop(bed);
    let mut bed = Bed::restored(settings(Some(&given.state())));
    bed.wait(id, "the pause", |life| *life == Lifecycle::Paused);
    bed.block_on(bed.torrents().start(id)).unwrap();
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id), "{:?}", bed.past(id));
    assert_eq!(bed.stats(id).unverified, given.size());
    // A check on request clears the mark.
    bed.block_on(bed.torrents().recheck(id)).unwrap();
    bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait_seeding(id);
    assert_eq!(bed.stats(id).unverified, 0);
}
