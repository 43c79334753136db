//! Tests of making torrents: files that change during hashing, and names that change when they are read.

use std::fs;
use std::fs::FileTimes;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

fn folder_with(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("album");
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    (temporary, folder)
}

/// Waits until the file system's clock has passed the last change of `path`.
fn let_time_pass(path: &Path) {
    let probe = path.with_file_name("probe");
    let changed = |path: &Path| {
        let metadata = path.metadata().unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    loop {
        fs::write(&probe, b"").unwrap();
        if changed(&probe) > changed(path) {
            break fs::remove_file(&probe).unwrap();
        }
    }
}

/// Makes a torrent and runs `change` once after the first bytes have been hashed.
fn make_while(folder: &Path, change: impl Fn() + Sync) -> Result<Vec<u8>, MakeError> {
    let is_changed = AtomicBool::new(false);
    let_time_pass(&folder.join("b"));
    let plan = Plan::new(folder, MakeOptions::default()).unwrap();
    plan.make(&|_| {
        if !is_changed.swap(true, Ordering::Relaxed) {
            change();
        }
    })
}

fn assert_changed(made: Result<Vec<u8>, MakeError>, path: &Path) {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match made {
        Err(MakeError::Changed(changed)) => assert_eq!(changed.file_name(), path.file_name()),
        other => panic!("{other:?}"),
    }
}

/// A file that changes during hashing is an error, even if its size and modification time stay the same.
#[test]
fn a_file_that_changes_meanwhile_is_named() {
    let content = vec![7; 100_000];
    let (_temporary, folder) = folder_with(&[("a", &content), ("b", &content)]);
    let path = folder.join("b");
    assert!(make_while(&folder, || {}).is_ok());
    assert_changed(
        make_while(&folder, || fs::write(&path, vec![8; 100_000]).unwrap()),
        &path,
    );
    assert_changed(make_while(&folder, || fs::write(&path, b"short").unwrap()), &path);
    fs::write(&path, &content).unwrap();
    let modified = path.metadata().unwrap().modified().unwrap();
    let set_back = || {
        fs::write(&path, vec![9; 100_000]).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
    };
    assert_changed(make_while(&folder, set_back), &path);
    let replace = || {
        fs::write(folder.join("new"), &content).unwrap();
        fs::rename(folder.join("new"), &path).unwrap();
    };
    assert_changed(make_while(&folder, replace), &path);
    assert_changed(make_while(&folder, || fs::remove_file(&path).unwrap()), &path);
}

/// A file that changes between planning and hashing is an error.
#[test]
fn a_file_that_changed_before_is_named() {
    let (_temporary, folder) = folder_with(&[("a", b"one")]);
    let plan = Plan::new(&folder, MakeOptions::default()).unwrap();
    let_time_pass(&folder.join("a"));
    fs::write(folder.join("a"), b"two").unwrap();
    assert_changed(plan.make(&|_| {}), &folder.join("a"));
}

#[test]
fn urls_that_cannot_be_used_are_refused() {
    let (_temporary, folder) = folder_with(&[("a", b"one")]);
    for url in [
        "nonsense",
        "http://",
        "udp://t.org/announce",
        "ftp://t.org/",
        "http://a b/",
    ] {
        let options = MakeOptions {
            trackers: vec!["http://good.example/announce".into(), url.into()],
            ..MakeOptions::default()
        };
        let error = Plan::new(&folder, options).unwrap_err();
        assert!(
            matches!(&error, MakeError::Url { url: named, .. } if named == url),
            "{error}"
        );
    }
    let options = MakeOptions {
        web_seeds: vec!["udp://t.org:80".into()],
        ..MakeOptions::default()
    };
    assert!(matches!(Plan::new(&folder, options), Err(MakeError::Url { .. })));
}

#[test]
fn renamed_files_are_reported() {
    let names = [
        "a\u{200c}b",
        "back\\slash",
        "bell\u{7}",
        "x\u{202e}gpj",
        "plain",
        "UPPER",
        "upper",
        "sub/.hidden",
    ];
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, &b"x"[..])).collect();
    let (_temporary, folder) = folder_with(&files);
    let plan = Plan::new(&folder, MakeOptions::default()).unwrap();
    let renamed: Vec<(&str, &str)> = plan.renamed().iter().map(|file| (&*file.found, &*file.read)).collect();
    assert_eq!(
        renamed,
        [
            ("album/a\u{200c}b", "album/a_b"),
            ("album/back\\slash", "album/back_slash"),
            ("album/bell\u{7}", "album/bell_"),
            ("album/upper", "album/upper.1"),
            ("album/x\u{202e}gpj", "album/x_gpj"),
        ]
    );
    let hidden = folder.with_file_name(".config");
    fs::rename(&folder, &hidden).unwrap();
    let plan = Plan::new(&hidden, MakeOptions::default()).unwrap();
    assert_eq!(plan.renamed().len(), names.len());
    assert_eq!(&*plan.renamed()[0].read, "_config/UPPER");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Exactly the files that are not reported as renamed keep their paths.
    #[test]
    fn files_keep_their_paths_unless_reported(
        names in proptest::collection::btree_set(
            "[aA.\\\\ \u{645}\u{200c}\u{200d}\u{1f468}\u{202e}\u{7}]{1,4}(/[aA.\u{645}\u{200c}]{1,3})?", 1..6,
        ),
        own in "[aA.\u{645}\u{200c}]{1,4}",
    ) {
        prop_assume!(!matches!(&*own, "." | ".."));
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join(&own);
        fs::create_dir(&folder).unwrap();
        for name in &names {
            let path = folder.join(name);
            // Skips names that already exist as folders or lead elsewhere.
            let _ = path.parent().map(fs::create_dir_all);
            if !name.split('/').any(|part| matches!(part, "." | "..")) && !path.is_dir() {
                let _ = fs::write(path, name);
            }
        }
        let Ok(plan) = Plan::new(&folder, MakeOptions::default()) else {
            return Ok(());
        };
        let reported: Vec<Box<str>> = plan.renamed().iter().map(|file| file.found.clone()).collect();
        let made = Bytes::from(plan.make(&|_| {}).unwrap());
        let read = Metainfo::parse(&made, &MetainfoLimits::default()).unwrap();
        let paths: Vec<&str> = read.info.files.files().iter().map(|file| &*file.path).collect();
        let there = WalkDir::new(&folder).into_iter().filter_map(Result::ok).filter(|found| found.file_type().is_file());
        for found in there {
            let path = found.path().strip_prefix(temporary.path()).unwrap().to_str().unwrap();
            prop_assert_ne!(paths.contains(&path), reported.iter().any(|reported| &**reported == path), "{}", path);
        }
    }
}
