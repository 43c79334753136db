//! The suffix of incomplete files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ecs_torrent::components::names::NewNames;
use ecs_torrent::components::settings::Settings;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{InfoHash, RemoveOptions};

use crate::bed::{Bed, Torrent, settings, wait_until};
use crate::child::{NO_LIMITS, Process};
use crate::content::noise;
use crate::seed::Seed;

const PIECE: u32 = 64 << 10;
const FILES: [(&str, usize); 4] = [("a", 1 << 20), ("sub/b", 300_000), ("sub/c", 700_000), ("d", 5)];
const NAMES: [&str; 4] = ["a", "sub/b", "sub/c", "d"];

/// A torrent, its folders, and the settings with which its files have a suffix.
struct Place {
    torrent: Arc<Torrent>,
    folder: tempfile::TempDir,
}

impl Place {
    fn new(seed: u64) -> Self {
        Self {
            torrent: Arc::new(Torrent::album(seed, "album", &FILES, PIECE)),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state-dir")
    }

    fn settings(&self) -> Settings {
        let mut settings = settings(Some(&self.state()));
        settings.storage.part_suffix = true;
        settings.session.checkpoint_interval_s = 0;
        settings
    }

    /// Starts a download from a seed that sends half of the blocks, and waits for the first pieces.
    fn begin(&self) -> (Bed, Seed, InfoHash) {
        let mut bed = Bed::start_with(self.settings());
        let seed = Seed::limited(&self.torrent, 60);
        let id = bed.add(&self.torrent, &self.root(), &[seed.address]);
        bed.wait_downloading(id);
        wait_until("pieces", || bed.have(id).len() >= 5);
        (bed, seed, id)
    }
}

/// Whether each of the files exists with the suffix, by name. No file may have both names.
fn suffixes<'n>(folder: &Path, names: &[&'n str]) -> BTreeMap<&'n str, bool> {
    let has = |name: String| folder.join(name).exists();
    let found = names.iter().filter_map(|&name| {
        let (is_plain, is_part) = (has(name.to_owned()), has(format!("{name}.part")));
        assert!(!(is_plain && is_part), "{name} has both names");
        (is_plain || is_part).then_some((name, is_part))
    });
    found.collect()
}

fn has_suffixed(folder: &Path, names: &[&str]) -> bool {
    suffixes(folder, names).values().any(|is_part| *is_part)
}

/// Waits until all files exist without the suffix.
fn wait_final(folder: &Path) {
    wait_until("the final names", || {
        let found = suffixes(folder, &NAMES);
        found.len() == NAMES.len() && found.values().all(|is_part| !is_part)
    });
}

fn release(bed: &mut Bed, id: InfoHash, seed: &Seed) {
    seed.release();
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
}

fn rename(bed: &mut Bed, id: InfoHash, name: &str, first: &str) {
    let names = NewNames {
        name: Some(name.to_owned()),
        files: [(0, first.to_owned())].into(),
    };
    bed.block_on(bed.torrents().rename(id, names)).unwrap();
    bed.wait(id, "the rename", |life| *life == Lifecycle::Moving);
}

/// A file has its suffix until it is complete; meanwhile the torrent is moved and renamed.
#[test]
fn files_have_a_suffix_until_they_are_complete() {
    let place = Place::new(511);
    let (mut bed, seed, id) = place.begin();
    let (near, far) = (place.root().join("album"), place.folder.path().join("far"));
    assert!(has_suffixed(&near, &NAMES));
    let before = bed.have(id);
    bed.block_on(bed.torrents().move_files(id, &far)).unwrap();
    bed.wait(id, "the move", |life| *life == Lifecycle::Moving);
    bed.wait_downloading(id);
    assert!(!near.exists() && has_suffixed(&far.join("album"), &NAMES));
    rename(&mut bed, id, "other", "sub/z");
    bed.wait_downloading(id);
    assert!(!far.join("album").exists());
    assert!(has_suffixed(&far.join("other"), &["sub/z", "sub/b", "sub/c", "d"]));
    let after = bed.have(id);
    assert!(before.iter().all(|piece| after.contains(piece)), "no piece is lost");
    release(&mut bed, id, &seed);
    rename(&mut bed, id, "album", "a");
    bed.wait_seeding(id);
    wait_final(&far.join("album"));
    place.torrent.assert_whole(&far);
    assert!(!bed.has_checked(id));
    drop(bed);

    let mut bed = Bed::restored(place.settings());
    bed.wait_seeding(id);
    assert!(!bed.has_checked(id));
    let options = RemoveOptions { delete_data: true };
    let removed = bed.block_on(bed.torrents().remove(id, options)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (FILES.len(), 0));
}

/// The files of an incomplete torrent are found in the folder to which the user has moved them.
#[test]
fn moved_files_are_found_with_either_name() {
    let place = Place::new(513);
    let (mut bed, seed, id) = place.begin();
    let far = place.folder.path().join("far");
    for is_complete in [false, true] {
        bed.block_on(bed.torrents().pause(id)).unwrap();
        let from = bed.stats(id).root;
        let to = if is_complete { place.root() } else { far.clone() };
        let before = bed.have(id);
        fs::rename(&from, &to).unwrap();
        bed.block_on(bed.torrents().relocate(id, &to)).unwrap();
        wait_until("the pieces", || bed.stats(id).root == to && bed.have(id) == before);
        bed.block_on(bed.torrents().start(id)).unwrap();
        release(&mut bed, id, &seed);
        wait_final(&to.join("album"));
        place.torrent.assert_whole(&to);
    }
    assert!(!bed.has_checked(id));
}

/// A check keeps the pieces of files with a suffix, a complete file that is damaged keeps its name, and a file of
/// somebody else is not replaced: its name is taken when it is free and the torrent is checked.
#[test]
fn checks_know_both_names() {
    let place = Place::new(514);
    let (mut bed, seed, id) = place.begin();
    let folder = place.root().join("album");
    let recheck = |bed: &mut Bed| {
        bed.block_on(bed.torrents().recheck(id)).unwrap();
        bed.wait(id, "the check", |life| *life == Lifecycle::Checking);
    };
    let before = bed.have(id);
    recheck(&mut bed);
    bed.wait_downloading(id);
    let after = bed.have(id);
    assert!(before.iter().all(|piece| after.contains(piece)), "no piece is lost");
    assert!(has_suffixed(&folder, &NAMES));

    bed.block_on(bed.torrents().pause(id)).unwrap();
    let taken = suffixes(&folder, &NAMES)
        .into_iter()
        .find(|(_, is_part)| *is_part)
        .unwrap()
        .0;
    fs::write(folder.join(taken), "mine").unwrap();
    bed.block_on(bed.torrents().start(id)).unwrap();
    release(&mut bed, id, &seed);
    let others: Vec<_> = NAMES.into_iter().filter(|name| *name != taken).collect();
    wait_until("the other files", || {
        suffixes(&folder, &others).values().all(|is_part| !is_part)
    });
    place.torrent.wait_saved_complete(&place.state());
    assert_eq!(fs::read(folder.join(taken)).unwrap(), b"mine");
    assert!(folder.join(format!("{taken}.part")).exists());
    fs::remove_file(folder.join(taken)).unwrap();
    recheck(&mut bed);
    bed.wait_seeding(id);
    wait_final(&folder);
    place.torrent.assert_whole(&place.root());

    let file = fs::File::options().write(true).open(folder.join("a")).unwrap();
    file.write_all_at(&[1; 5], 70_000).unwrap();
    recheck(&mut bed);
    bed.add_peer(id, seed.address);
    bed.wait_seeding(id);
    wait_final(&folder);
    place.torrent.assert_whole(&place.root());
}

/// Complete files of the user are seeded as they are, and a user's file with the suffix stays as it is.
#[test]
fn files_of_the_user_keep_their_names_and_bytes() {
    let place = Place::new(515);
    let folder = place.root().join("album");
    let foreign = folder.join("a.part");
    place.torrent.place(&place.root());
    fs::write(&foreign, "mine").unwrap();
    let mut bed = Bed::start_with(place.settings());
    let id = bed.add(&place.torrent, &place.root(), &[]);
    bed.wait_seeding(id);
    place.torrent.wait_saved_complete(&place.state());
    assert_eq!(fs::read(&foreign).unwrap(), b"mine");
    let options = RemoveOptions { delete_data: true };
    let removed = bed.block_on(bed.torrents().remove(id, options)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (0, FILES.len()));

    // A download beside such a file uses the final name at once.
    NAMES
        .iter()
        .for_each(|name| fs::remove_file(folder.join(name)).unwrap());
    let seed = Seed::limited(&place.torrent, 60);
    let id = bed.add(&place.torrent, &place.root(), &[seed.address]);
    bed.wait_downloading(id);
    wait_until("a file", || folder.join("a").exists());
    release(&mut bed, id, &seed);
    wait_until("the final names", || !has_suffixed(&folder, &["sub/b", "sub/c", "d"]));
    let removed = bed.block_on(bed.torrents().remove(id, options)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (FILES.len(), 0));
    assert_eq!(fs::read(&foreign).unwrap(), b"mine");
}

/// A run that is killed at any moment leaves each file with one of its names. A file without the suffix is complete,
/// and the next run continues, whatever the setting is by then.
#[test]
fn kills_leave_each_file_with_one_name() {
    let place = Place::new(512);
    let torrent = &place.torrent;
    let folder = place.root().join("album");
    let seed = Seed::slow(torrent, Duration::from_millis(5));
    let mut has_part = false;
    for round in 0..40u64 {
        let mut settings = place.settings();
        settings.storage.part_suffix = round % 3 != 2;
        let mut child = Process::start(&settings, &[(torrent, &place.root(), seed.address)], NO_LIMITS);
        child.wait("the torrent", |line| line["life"].is_string());
        let random = u64::from_le_bytes(noise(5120 + round, 8).try_into().unwrap());
        let time = Duration::from_millis(30 + (random >> 8) % 250 + round * 20);
        let is_complete = child.wait_at_most(time, |line| line["life"] == "seeding");
        if is_complete {
            wait_final(&folder);
        }
        child.kill();
        for (name, is_part) in suffixes(&folder, &NAMES) {
            has_part |= is_part;
            assert!(
                is_part || is_whole(torrent, &folder, name),
                "{name} is not complete, round {round}"
            );
        }
        if is_complete {
            break;
        }
    }
    assert!(has_part, "kills hit files with the suffix");
    let settings = settings(Some(&place.state()));
    let mut child = Process::start(&settings, &[(torrent, &place.root(), seed.address)], NO_LIMITS);
    child.wait_life(torrent, "seeding");
    child.stop();
    wait_final(&folder);
    torrent.assert_whole(&place.root());
}

/// Whether a file has the torrent's bytes.
fn is_whole(torrent: &Torrent, folder: &Path, name: &str) -> bool {
    let mut files = torrent.metainfo.info.files.files().iter();
    let file = files.find(|file| *file.path == *format!("album/{name}")).unwrap();
    fs::read(folder.join(name)).unwrap() == torrent.data[file.offset as usize..file.end() as usize]
}
