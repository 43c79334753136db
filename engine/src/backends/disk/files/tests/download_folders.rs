//! Tests of download folders: volumes, links, protected folders.

use super::*;

/// Fault 75.
#[test]
fn nothing_is_written_where_another_volume_was() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(2));
    let root = folder.path().join("downloads");
    let volume = Some(Volume {
        mount_point: "/not/mounted".into(),
        id: None,
    });
    let files = Files::new(StorageId(1), &root, volume, table(&[4]), shared);
    let error = files
        .write(Span { offset: 0, len: 4 }, &blocks(&[1; 4], 4))
        .unwrap_err();
    assert!(error.is_volume_gone() && !error.is_absence(), "{error}");
    assert!(
        error.to_string().contains("nothing is mounted at /not/mounted"),
        "{error}"
    );
    assert!(!root.exists());
    assert!(files.look().unwrap_err().is_volume_gone());
}

/// No path leads into a folder of the engine's own: from a root above it, at it or below it, or through links and
/// mounts.
#[test]
fn no_path_leads_into_protected_folders() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path();
    let own = base.join("t");
    fs::create_dir_all(own.join("d")).unwrap();
    fs::write(own.join("d/0"), "secret").unwrap();
    symlink(&own, base.join("link")).unwrap();
    fs::create_dir(base.join("mount")).unwrap();
    let is_bound = bind(base, &base.join("mount/again"));
    let alone = |path: &str| table_of([(path.to_owned(), 8)]);
    let mut ways = vec![
        (base.to_owned(), alone("t/new")),
        (base.to_owned(), alone("t/d/0")),
        (base.to_owned(), alone("t/x/new")),
        (own.clone(), alone("new")),
        (own.clone(), alone("d/0")),
        (own.join("d"), alone("0")),
        (own.join("not/there"), alone("0")),
        (base.join("link"), alone("0")),
        (base.join("link/d"), alone("0")),
        (base.join("mount/../t/d"), alone("0")),
    ];
    if is_bound {
        ways.push((base.join("mount"), alone("again/t/new")));
        ways.push((base.join("mount/again/t/d"), alone("0")));
    }
    for protected in [&[own.as_path()][..], &[&own, &own.join("d")]] {
        let shared = SharedFiles::new(4).protecting(protected).unwrap();
        let shared = Arc::new(shared);
        for (root, table) in &ways {
            let files = Files::new(StorageId(1), root, None, table.clone(), shared.clone());
            let files = files.with_claims(claims(&[(0, None)], true));
            let what = format!("{} {}", root.display(), table.files()[0].path);
            // A path to a missing file is refused at the latest when the file would be created.
            let looked = files.look().map(drop);
            let written = write(&files, 0, &[7; 8]);
            for result in [&looked, &written] {
                assert!(
                    result.as_ref().err().is_none_or(DiskError::is_forbidden),
                    "{what}: {result:?}"
                );
            }
            assert!(written.is_err(), "{what}");
            let deleted = files.delete(&[]);
            assert!(deleted.is_err() || deleted.unwrap().deleted.is_empty(), "{what}");
        }
        let files = Files::new(StorageId(2), base, None, alone("beside/it"), shared);
        write(&files, 0, &[7; 8]).unwrap();
        files.delete(&[]).unwrap();
    }
    unbind(&base.join("mount/again"));
    assert_eq!(fs::read_to_string(own.join("d/0")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&own).unwrap().count(), 1);
    assert_eq!(fs::read_dir(own.join("d")).unwrap().count(), 1);
}

/// A link or another folder that replaces a download folder is not followed.
#[test]
fn a_swapped_root_is_not_followed() {
    for is_link in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (root, outside) = (folder.path().join("dl"), folder.path().join("outside"));
        fs::create_dir_all(outside.join("t/d")).unwrap();
        let shared = Arc::new(SharedFiles::new(4));
        let files = storage(1, &root, &[8, 8], &shared).with_claims(claims(&[], true));
        files.look().unwrap();
        write(&files, 0, &[1; 8]).unwrap();
        fs::rename(&root, folder.path().join("moved")).unwrap();
        match is_link {
            true => symlink(&outside, &root).unwrap(),
            false => fs::rename(&outside, &root).unwrap(),
        }
        let other = storage(2, &root, &[8, 8], &shared).with_claims(claims(&[], true));
        for files in [&files, &other] {
            for error in [
                write(files, 8, &[1; 8]).err(),
                files.look().err(),
                files.delete(&[]).err(),
            ] {
                let error = error.expect("it is swapped").to_string();
                assert!(error.contains("has taken its place"), "{error}");
            }
        }
        let place = if is_link { &outside } else { &root };
        assert_eq!(fs::read_dir(place.join("t/d")).unwrap().count(), 0);
        // Once no storage uses the root, its path may be resolved again.
        files.close();
        drop((files, other));
        let files = storage(3, &root, &[8], &shared);
        files.look().unwrap();
        write(&files, 0, &[1; 8]).unwrap();
    }
}

/// A swapped pinned root is not followed, nor are folders below it, even while no torrent has it open.
#[test]
fn a_pinned_root_is_not_followed_either() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("dl"), folder.path().join("outside"));
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&outside).unwrap();
    let shared = Arc::new(SharedFiles::new(4));
    shared.roots.pin(&root);
    let files = storage(1, &root.join("sub"), &[8], &shared);
    files.look().unwrap();
    write(&files, 0, &[1; 8]).unwrap();
    fs::rename(&root, folder.path().join("moved")).unwrap();
    symlink(&outside, &root).unwrap();
    for given in [root.clone(), root.join("new"), root.join("sub")] {
        let files = storage(2, &given, &[8], &shared);
        assert!(
            files.look().is_err() && write(&files, 0, &[1; 8]).is_err(),
            "{}",
            given.display()
        );
    }
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

/// A pinned root is closed when the last torrent below it is, so that its volume can be unmounted.
#[test]
fn an_unused_pinned_root_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(4));
    shared.roots.pin(folder.path());
    let is_open = || matches!(shared.roots.get(folder.path()).look(), Ok(Found::Same(_)));
    let [one, other] = [1, 2].map(|id| storage(id, folder.path(), &[8], &shared));
    write(&one, 0, &[1; 8]).unwrap();
    assert!(is_open());
    drop(one);
    other.look().unwrap();
    other.folder().unwrap();
    assert!(is_open(), "another torrent uses it");
    drop(other);
    assert!(!is_open());
}

/// More download folders than are held open work the same as a few.
#[test]
fn many_roots_are_distinguished() {
    let folder = tempfile::tempdir().unwrap();
    let shared = Arc::new(SharedFiles::new(2));
    let root = |number: u64| folder.path().join(number.to_string());
    let all: Vec<Files> = (0..30)
        .map(|number| storage(number, &root(number), &[8], &shared))
        .collect();
    for round in 0..2 {
        for files in &all {
            write(files, 4 * round, &[1; 4]).unwrap();
        }
    }
    fs::rename(root(0), folder.path().join("moved")).unwrap();
    fs::create_dir(root(0)).unwrap();
    assert!(write(&all[0], 0, &[1; 8]).is_err());
    assert_eq!(fs::read_dir(root(0)).unwrap().count(), 0);
    // A deleted folder is created again, and its files are reported missing.
    fs::remove_dir_all(root(1)).unwrap();
    assert!(write(&all[1], 0, &[1; 8]).unwrap_err().is_absence());
}
