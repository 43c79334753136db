//! Checks on request: all data is hashed again, even if the session and the files' times match.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ecs_torrent::components::commands::RecheckError;
use ecs_torrent::components::selection::FileSelection;
use ecs_torrent::components::session::{FileStamp, Runs};
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, InfoHash, TorrentState};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::downloaded::Downloaded;
use crate::seed::Seed;

const PIECE: u32 = 64 << 10;

/// A complete torrent.
struct Whole(Downloaded);

impl Deref for Whole {
    type Target = Downloaded;

    fn deref(&self) -> &Downloaded {
        &self.0
    }
}

impl Whole {
    fn new(number: u64) -> (Self, Bed) {
        let files = [("a", 3 << 20), ("b", 2 << 20), ("c", 100_000)];
        let (downloaded, bed) = Downloaded::album(number, &files, PIECE);
        (Self(downloaded), bed)
    }

    /// Starts an engine that restores the torrent. It checks one piece at a time, so that a check takes long.
    fn restore(&self) -> Bed {
        let mut settings = settings(Some(&self.state()));
        settings.storage.check_memory_bytes = 16 << 10;
        Bed::restored(settings)
    }

    /// Changes bytes in the middle of the second file, and lets the session of a torrent that is not open call the file
    /// unchanged, as if the disk had lost the bytes. Returns the index of the bad piece.
    fn damage_silently(&self) -> u32 {
        let path = self.root().join("album/b");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"damage", 1 << 20).unwrap();
        let mut session = self.session();
        session.files[1] = Some(stamp(&path));
        fs::write(self.torrent.session_path(&self.state()), session.to_text()).unwrap();
        (4 << 20) / PIECE
    }
}

fn stamp(path: &Path) -> FileStamp {
    let data = fs::metadata(path).unwrap();
    FileStamp {
        len: data.len(),
        seconds: data.mtime(),
        nanos: data.mtime_nsec() as u32,
        changed_ns: Some(data.ctime() * 1_000_000_000 + data.ctime_nsec()),
    }
}

fn recheck(bed: &Bed, id: InfoHash) -> Result<(), Error> {
    bed.block_on(bed.torrents().recheck(id))
}

fn is_running(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Recheck(RecheckError::Running(_))))
}

/// Files that were changed and deleted are found, and exactly their pieces are downloaded again.
#[test]
fn damaged_and_deleted_files_are_downloaded_again() {
    let (whole, mut bed) = Whole::new(151);
    let first = bed.stats(whole.id).downloaded;
    let file = fs::File::options()
        .write(true)
        .open(whole.root().join("album/b"))
        .unwrap();
    file.write_all_at(b"damage", 1 << 20).unwrap();
    fs::remove_file(whole.root().join("album/c")).unwrap();
    recheck(&bed, whole.id).unwrap();
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait_downloading(whole.id);
    let session = || whole.torrent.session(&whole.state()).unwrap();
    wait_until("the session", || !session().recheck);
    whole.torrent.assert_true(&session(), &whole.root());
    let seed = Seed::free(&whole.torrent);
    bed.add_peer(whole.id, seed.address);
    bed.wait_seeding(whole.id);
    whole.torrent.assert_whole(&whole.root());
    // The piece in the middle of the second file, and those with bytes of the third.
    let bad = u64::from(PIECE) + 100_000_u64.next_multiple_of(PIECE.into());
    let again = bed.stats(whole.id).downloaded - first;
    assert!(again > 100_000 && again <= bad, "{again} of {bad} bytes");
}

/// Damage that changes no modification time is found. A torrent that was paused runs at no moment, and is paused after.
#[test]
fn a_paused_torrent_is_checked_and_stays_paused() {
    let (whole, bed) = Whole::new(152);
    bed.block_on(bed.torrents().pause(whole.id)).unwrap();
    drop(bed);
    let bad = whole.damage_silently();
    let mut bed = whole.restore();
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    let count = whole.torrent.geometry().piece_count();
    assert_eq!(bed.stats(whole.id).held_pieces(), count, "the session says so");
    recheck(&bed, whole.id).unwrap();
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    assert!(
        !bed.past(whole.id).iter().any(Lifecycle::is_running),
        "{:?}",
        bed.past(whole.id)
    );
    let have = bed.have(whole.id);
    assert_eq!((have.len() as u32, have.contains(&bad)), (count - 1, false));
    let session = whole.torrent.session(&whole.state()).unwrap();
    assert!(session.paused && !session.recheck);
    whole.torrent.assert_true(&session, &whole.root());
    // A start that comes during the check takes effect when it is over.
    recheck(&bed, whole.id).unwrap();
    bed.block_on(bed.torrents().start(whole.id)).unwrap();
    assert!(!whole.torrent.session(&whole.state()).unwrap().paused);
    bed.wait_downloading(whole.id);
    let seed = Seed::free(&whole.torrent);
    bed.add_peer(whole.id, seed.address);
    bed.wait_seeding(whole.id);
    whole.torrent.assert_whole(&whole.root());
}

/// A check that was answered is repeated after a kill, and a pause during the check keeps it for the next start.
#[test]
fn a_check_survives_kills_and_pauses() {
    for is_paused in [false, true] {
        let (whole, bed) = Whole::new(153 + u64::from(is_paused));
        bed.stop_all().unwrap();
        drop(bed);
        let bad = whole.damage_silently();
        let mut bed = whole.restore();
        bed.wait_seeding(whole.id);
        if is_paused {
            bed.block_on(bed.torrents().pause(whole.id)).unwrap();
        }
        recheck(&bed, whole.id).unwrap();
        for _ in 0..2 {
            // An engine that is dropped saves nothing, as if it were killed.
            drop(bed);
            let session = whole.torrent.session(&whole.state()).unwrap();
            assert_eq!((session.recheck, session.paused), (true, is_paused));
            bed = whole.restore();
            bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
        }
        if !is_paused {
            bed.block_on(bed.torrents().pause(whole.id)).unwrap();
            assert!(whole.torrent.session(&whole.state()).unwrap().recheck);
            bed.block_on(bed.torrents().start(whole.id)).unwrap();
            bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
        }
        let end = if is_paused {
            TorrentState::Paused
        } else {
            TorrentState::Downloading
        };
        bed.wait(whole.id, "the end of the check", |life| life.state() == end);
        assert!(!bed.have(whole.id).contains(&bad));
        wait_until("the session", || {
            !whole.torrent.session(&whole.state()).unwrap().recheck
        });
    }
}

/// A check of some files hashes their pieces only, also after a kill: silent damage in another file stays unnoticed
/// until that file is checked.
#[test]
fn a_check_of_some_files_leaves_the_others() {
    let (whole, bed) = Whole::new(157);
    bed.block_on(bed.torrents().pause(whole.id)).unwrap();
    drop(bed);
    let bad = whole.damage_silently();
    let count = whole.torrent.geometry().piece_count();
    let mut bed = whole.restore();
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    let select = |numbers: &[u32], globs: &[&str]| {
        let ranges = numbers.iter().map(|number| *number..=*number);
        FileSelection::new(ranges, globs.iter().copied()).unwrap()
    };
    let check = |bed: &Bed, files| bed.block_on(bed.torrents().recheck_files(whole.id, files));
    check(&bed, select(&[0], &["*/c"])).unwrap();
    drop(bed);
    let session = whole.torrent.session(&whole.state()).unwrap();
    assert!(session.recheck && session.paused);
    // The first file has 48 pieces; the third begins and ends in the last two pieces of the torrent.
    let expected = Runs::of((0..48).chain(count - 2..count));
    assert_eq!(session.recheck_pieces, expected);
    let mut bed = whole.restore();
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    assert_eq!(bed.stats(whole.id).held_pieces(), count, "the damage is elsewhere");
    let session = whole.torrent.session(&whole.state()).unwrap();
    assert!(!session.recheck && session.recheck_pieces.is_empty());

    let none = check(&bed, select(&[3], &["*.mp3"]));
    assert!(
        matches!(none, Err(Error::Recheck(RecheckError::NothingSelected(_)))),
        "{none:?}"
    );
    check(&bed, select(&[], &["album/b"])).unwrap();
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
    let have = bed.have(whole.id);
    assert_eq!((have.len() as u32, have.contains(&bad)), (count - 1, false));
}

/// A check that cannot begin is refused with a reason; a failed torrent is tried again.
#[test]
fn checks_are_refused_with_a_reason() {
    let (whole, bed) = Whole::new(155);
    bed.stop_all().unwrap();
    drop(bed);
    let mut bed = whole.restore();
    bed.wait_seeding(whole.id);
    let torrents = bed.torrents();
    let (first, second) = bed.block_on(async { tokio::join!(torrents.recheck(whole.id), torrents.recheck(whole.id)) });
    assert!(first.is_ok() && is_running(&second), "{first:?} {second:?}");
    bed.wait(whole.id, "the check", |life| *life == Lifecycle::Checking);
    let third = recheck(&bed, whole.id);
    assert!(is_running(&third), "{third:?}");
    assert_eq!(third.unwrap_err().to_string(), "album is being checked already");
    bed.wait_seeding(whole.id);

    let unknown = recheck(&bed, InfoHash([7; 20]));
    assert!(matches!(unknown, Err(Error::TorrentNotFound(_))), "{unknown:?}");
    let magnet = format!("magnet:?xt=urn:btih:{}", "7".repeat(40));
    let id = bed.block_on(bed.torrents().download(magnet.as_str())).unwrap();
    let unfetched = bed.block_on(bed.torrents().recheck(id));
    assert!(
        matches!(unfetched, Err(Error::Recheck(RecheckError::NoMetadata(_)))),
        "{unfetched:?}"
    );

    let incomplete = Torrent::single(156, 1 << 20, PIECE);
    let root = whole.folder.path().join("elsewhere");
    incomplete.place(&root);
    fs::write(root.join("data"), &incomplete.data[..1 << 19]).unwrap();
    let options = AddOptions {
        root: Some(root.clone()),
        require_complete: true,
        ..AddOptions::default()
    };
    let id = bed.add_with(&incomplete, options);
    bed.wait_failed(id);
    incomplete.place(&root);
    recheck(&bed, id).unwrap();
    bed.wait_seeding(id);
}
