//! New names of a torrent's files and of its folder.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use ecs_torrent::components::session::MoveStage;
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::{AddOptions, Error, InfoHash, MoveError, MovedFiles, NewNames, RemoveOptions, TorrentState};

use crate::bed::{Bed, Torrent, wait_until};
use crate::downloaded::Downloaded;
use crate::seed::Seed;

const PIECE: u32 = 64 << 10;
const FILES: [(&str, usize); 3] = [("a", 300_000), ("sub/b", 200_000), ("sub/c", 100_000)];

fn names(name: Option<&str>, files: &[(u32, &str)]) -> NewNames {
    NewNames {
        name: name.map(Into::into),
        files: files.iter().map(|(index, path)| (*index, (*path).into())).collect(),
    }
}

fn rename(bed: &Bed, id: InfoHash, names: NewNames) -> Result<MovedFiles, Error> {
    bed.block_on(bed.torrents().rename(id, names))
}

fn refusal(bed: &Bed, id: InfoHash, names: NewNames) -> MoveError {
    match rename(bed, id, names) {
        Err(Error::Move(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Returns the files below a folder, with their contents. Hidden files count too.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(path),
                false => {
                    let below = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                    files.insert(below, fs::read(path).unwrap());
                }
            }
        }
    }
    files
}

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
        let (downloaded, bed) = Downloaded::album(number, &FILES, PIECE);
        (Self(downloaded), bed)
    }

    /// Asserts that the download folder has the torrent's files at these paths, and nothing else.
    fn assert_tree(&self, paths: [&str; 3]) {
        let mut at = 0;
        let expected = paths.into_iter().zip(FILES).map(|(path, (_, len))| {
            at += len;
            (path.to_owned(), self.torrent.data[at - len..at].to_vec())
        });
        let expected: BTreeMap<String, Vec<u8>> = expected.collect();
        let found = tree(&self.root());
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert_eq!(found, expected, "the bytes differ");
    }
}

/// Files and folders get new names, alone and together, and keep them over restarts without being hashed again.
#[test]
fn files_have_their_new_names_over_restarts() {
    let (whole, mut bed) = Whole::new(401);
    for (new, paths) in [
        (names(Some("new"), &[]), ["new/a", "new/sub/b", "new/sub/c"]),
        (
            names(None, &[(1, "b"), (2, "deep/er/c")]),
            ["new/a", "new/b", "new/deep/er/c"],
        ),
        (
            names(Some("album"), &[(0, "x/y"), (1, "x/z")]),
            ["album/x/y", "album/x/z", "album/deep/er/c"],
        ),
    ] {
        let moved = rename(&bed, whole.id, new).unwrap();
        assert_eq!((moved.root, moved.kept_count), (whole.root(), 0));
        bed.wait_seeding(whole.id);
        whole.assert_tree(paths);
        let name = paths[0].split('/').next().unwrap();
        assert_eq!(bed.stats(whole.id).name, name);
        assert!(!bed.has_checked(whole.id), "nothing is hashed again");
        drop(bed);
        bed = whole.restore();
        bed.wait_seeding(whole.id);
        assert!(!bed.has_checked(whole.id), "nothing is hashed again after a kill");
        assert_eq!(bed.stats(whole.id).name, name);
        whole.assert_tree(paths);
    }
    let same = rename(&bed, whole.id, names(Some("album"), &[(0, "x/y")])).unwrap();
    assert_eq!(same.root, whole.root(), "there is nothing to do");
    assert!(!bed.past(whole.id).iter().any(Lifecycle::is_stopping));
    bed.block_on(bed.torrents().pause(whole.id)).unwrap();
    rename(&bed, whole.id, names(Some("paused"), &[])).unwrap();
    whole.assert_tree(["paused/x/y", "paused/x/z", "paused/deep/er/c"]);
    bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);

    // A later move takes the names along, and a later add of the torrent file does not change them.
    let far = whole.folder.path().join("far");
    bed.block_on(bed.torrents().move_files(whole.id, &far)).unwrap();
    assert_eq!(
        tree(&far).keys().collect::<Vec<_>>(),
        ["paused/deep/er/c", "paused/x/y", "paused/x/z"]
    );
    bed.block_on(bed.torrents().stop_and_serialize(whole.id)).unwrap();
    bed.add_with(&whole.torrent, AddOptions::default());
    bed.wait(whole.id, "the end", |life| {
        matches!(life.state(), TorrentState::Paused | TorrentState::Seeding)
    });
    assert_eq!(bed.stats(whole.id).name, "paused");
    assert!(!bed.has_checked(whole.id));
    let options = RemoveOptions { delete_data: true };
    let removed = bed.block_on(bed.torrents().remove(whole.id, options)).unwrap();
    assert_eq!((removed.deleted_count, removed.kept_count), (3, 0));
    assert!(
        !far.join("paused").exists(),
        "the files are the torrent's with their new names too"
    );
}

/// A kill between any two steps of a rename, on some of the files: the next run ends it, or undoes it on request.
#[test]
fn a_rename_is_ended_or_undone_after_a_kill() {
    let (whole, bed) = Whole::new(402);
    bed.stop_all().unwrap();
    drop(bed);
    let old = ["album/a", "album/sub/b", "album/sub/c"];
    let new = ["new/a", "new/b", "new/sub/c"];
    let change = |stage, paused: bool| {
        let mut session = whole.session();
        let mut moving = ecs_torrent::components::session::SavedMove {
            root: whole.root(),
            names: names(Some("new"), &[(1, "b")]),
            stage,
            ..Default::default()
        };
        if stage == MoveStage::DeletingOld {
            session.renamed = moving.names.name.take();
            session.file_names = std::mem::take(&mut moving.names.files);
            moving.names = names(Some("album"), &[(1, "sub/b")]);
            (moving.created, moving.ids) = (session.created.clone(), session.ids.clone());
        }
        session.moving = Some(Box::new(moving));
        session.paused = paused;
        fs::write(whole.torrent.session_path(&whole.state()), session.to_text()).unwrap();
    };
    let link = |count: usize, from: [&str; 3], to: [&str; 3]| {
        for (from, to) in from.iter().zip(to).take(count) {
            let to = whole.root().join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::hard_link(whole.root().join(from), to).unwrap();
        }
    };
    for linked in 0..=3 {
        // The names are there for some of the files, and the session is not switched.
        link(linked, old, new);
        change(MoveStage::Undoing, false);
        let mut bed = whole.restore();
        bed.wait_seeding(whole.id);
        whole.assert_tree(old);
        wait_until("the session", || whole.session().moving.is_none());
        bed.stop_all().unwrap();
        drop(bed);

        link(linked, old, new);
        change(MoveStage::Copying, false);
        let mut bed = whole.restore();
        bed.wait_seeding(whole.id);
        whole.assert_tree(new);
        assert_eq!(bed.stats(whole.id).name, "new");
        wait_until("the session", || whole.session().moving.is_none());
        // Some of the old names are left.
        rename(&bed, whole.id, names(Some("album"), &[(1, "sub/b")])).unwrap();
        bed.wait_seeding(whole.id);
        whole.assert_tree(old);
        bed.stop_all().unwrap();
        drop(bed);

        link(3, old, new);
        for path in old.iter().take(linked) {
            fs::remove_file(whole.root().join(path)).unwrap();
        }
        change(MoveStage::DeletingOld, true);
        let mut bed = whole.restore();
        bed.wait(whole.id, "the pause", |life| *life == Lifecycle::Paused);
        whole.assert_tree(new);
        rename(&bed, whole.id, names(Some("album"), &[(1, "sub/b")])).unwrap();
        bed.block_on(bed.torrents().start(whole.id)).unwrap();
        bed.wait_seeding(whole.id);
        assert!(!bed.has_checked(whole.id));
        whole.assert_tree(old);
        bed.stop_all().unwrap();
        drop(bed);
    }
}

/// Names that lead elsewhere or collide are refused before anything changes, and no file is overwritten.
#[test]
fn renames_are_refused_with_a_reason() {
    let (whole, mut bed) = Whole::new(403);
    for bad in [
        names(Some(".."), &[]),
        names(Some("/tmp"), &[]),
        names(Some(".ecs_torrent"), &[]),
        names(Some("a\0b"), &[]),
        names(Some(&"x".repeat(300)), &[]),
        names(None, &[(0, "../../up")]),
        names(None, &[(0, "sub/../../up")]),
        names(None, &[(0, "/etc/passwd")]),
        names(None, &[(0, "sub\\b")]),
        names(None, &[(0, &"x/".repeat(3000))]),
        names(None, &[(0, "sub")]),
        names(None, &[(0, "SUB/B")]),
        names(None, &[(0, "sub/b"), (1, "a")]),
        names(None, &[(u32::MAX, "x")]),
    ] {
        let error = refusal(&bed, whole.id, bad);
        assert!(matches!(error, MoveError::BadName { .. }), "{error}");
        assert!(
            error.to_string().len() < 600 && error.to_string().lines().count() == 1,
            "{error}"
        );
    }

    // A file of the user, and a link of the user that leads elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(whole.root().join("user")).unwrap();
    fs::write(whole.root().join("user/a"), "mine").unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), whole.root().join("album/link")).unwrap();
    let error = refusal(&bed, whole.id, names(Some("user"), &[]));
    assert!(matches!(error, MoveError::FileExists { .. }), "{error}");
    assert!(error.to_string().contains("user/a"), "{error}");
    let error = refusal(&bed, whole.id, names(None, &[(0, "link/a")]));
    assert!(error.to_string().contains("link"), "{error}");
    assert!(fs::read_dir(elsewhere.path()).unwrap().next().is_none());

    // Files of another torrent, running and stopped, even where its files do not exist.
    let other = Arc::new(Torrent::album(404, "other", &[("a", 70_000), ("z", 70_000)], PIECE));
    let seed = Seed::free(&other);
    let other_id = bed.add(&other, &whole.root(), &[seed.address]);
    bed.wait_seeding(other_id);
    for is_stopped in [false, true] {
        let error = refusal(&bed, whole.id, names(Some("other"), &[]));
        assert!(
            matches!(error, MoveError::FileExists { .. } | MoveError::FilesTaken { .. }),
            "{error}"
        );
        if is_stopped {
            assert!(matches!(error, MoveError::FilesTaken { .. }), "{error}");
        } else {
            bed.block_on(bed.torrents().stop_and_serialize(other_id)).unwrap();
            fs::remove_file(whole.root().join("other/a")).unwrap();
        }
    }
    let died = bed.past(whole.id).iter().any(Lifecycle::is_stopping);
    assert!(!died, "nothing was interrupted");
    assert_eq!(fs::read(whole.root().join("user/a")).unwrap(), b"mine");
    fs::remove_file(whole.root().join("album/link")).unwrap();
    whole.torrent.assert_whole(&whole.root());

    // The names of a stopped torrent are taken too.
    rename(&bed, whole.id, names(Some("third"), &[(0, "taken")])).unwrap();
    bed.wait_seeding(whole.id);
    bed.block_on(bed.torrents().stop_and_serialize(whole.id)).unwrap();
    let third = Torrent::album(405, "third", &[("taken", 70_000), ("y", 70_000)], PIECE);
    let options = AddOptions {
        root: Some(whole.root()),
        ..AddOptions::default()
    };
    let refused = bed
        .block_on(bed.torrents().download_with(third.file(), options))
        .unwrap_err();
    assert!(refused.to_string().contains("third/taken"), "{refused}");
}

/// A torrent of one file without a folder, which is not complete, and whose file is the user's.
#[test]
fn a_single_file_gets_another_name() {
    let torrent = Torrent::single(406, 300_000, PIECE);
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    torrent.place(&root);
    let mut bed = Bed::start(&folder.path().join("state-dir"));
    let id = bed.add(&torrent, &root, &[]);
    bed.wait_seeding(id);
    let moved = rename(&bed, id, names(None, &[(0, "new.bin")])).unwrap();
    bed.wait_seeding(id);
    let kept: Vec<&str> = moved.kept.iter().map(|kept| &*kept.path).collect();
    assert_eq!(kept, ["data"], "the user's file stays, under its name");
    assert_eq!(tree(&root).keys().collect::<Vec<_>>(), ["data", "new.bin"]);
    let error = refusal(&bed, id, names(None, &[(0, "folder/new.bin")]));
    assert!(matches!(error, MoveError::BadName { .. }), "{error}");
    let moved = rename(&bed, id, names(Some("newer.bin"), &[])).unwrap();
    assert_eq!(moved.kept_count, 0, "the copy is the torrent's");
    bed.wait_seeding(id);
    assert_eq!(tree(&root).keys().collect::<Vec<_>>(), ["data", "newer.bin"]);
    let error = refusal(&bed, id, names(Some("data"), &[]));
    assert!(
        matches!(error, MoveError::FileExists { .. }),
        "the user's file is not taken back: {error}"
    );
}
