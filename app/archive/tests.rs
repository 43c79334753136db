use std::fs;
use std::io::Cursor;
use std::path::Path;

use ecs_torrent_components::session::Session;
use ecs_torrent_engine::backends::state::LockedState;
use ecs_torrent_engine::ports::state::{BlobName, settings_blob};

use super::*;
use crate::making::{MakeOptions, Plan};

/// A state folder with `count` torrents and the changed settings.
fn folder(count: u8) -> (tempfile::TempDir, Vec<InfoHash>) {
    let folder = tempfile::tempdir().unwrap();
    drop(LockedState::take(folder.path()).unwrap());
    let mut hashes = Vec::new();
    for number in 0..count {
        let content = tempfile::tempdir().unwrap();
        let path = content.path().join(format!("file {number}"));
        fs::write(&path, [number; 100]).unwrap();
        let plan = Plan::new(&path, MakeOptions::default()).unwrap();
        let metainfo = crate::Source::from(bytes::Bytes::from(plan.make(&|_| ()).unwrap()))
            .load()
            .unwrap();
        let hash = metainfo.hashes.primary();
        write(folder.path(), &StateFile::Metainfo(hash), &metainfo.bytes);
        let session = Session {
            name: format!("file {number}"),
            root: "/somewhere".into(),
            stopped: number == 0,
            ..Session::new(hash)
        };
        write(folder.path(), &StateFile::Session(hash), session.to_text().as_bytes());
        hashes.push(hash);
    }
    write(folder.path(), &StateFile::Blob(settings_blob()), b"{}");
    fs::write(folder.path().join("token"), "secret-token").unwrap();
    (folder, hashes)
}

fn write(state_dir: &Path, file: &StateFile, bytes: &[u8]) {
    fs::write(state_dir.join("state").join(file.name()), bytes).unwrap();
}

fn read_all(state_dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(state_dir.join("state")).unwrap();
    let read = |entry: fs::DirEntry| {
        (
            entry.file_name().into_string().unwrap(),
            fs::read(entry.path()).unwrap(),
        )
    };
    let mut all: Vec<_> = entries.map(|entry| read(entry.unwrap())).collect();
    all.sort();
    all
}

fn import(archive: &[u8], state_dir: &Path) -> Result<Imported, ArchiveError> {
    let _lock = LockedState::take(state_dir).unwrap();
    stage(archive, state_dir, &mut ())?.commit()
}

#[test]
fn what_is_exported_is_imported() {
    let (folder, hashes) = folder(3);
    let mut archive = Vec::new();
    let exported = export(folder.path(), &mut archive).unwrap();
    assert_eq!((exported.torrents, exported.left_out.len()), (3, 0));
    assert!(!archive.windows(12).any(|bytes| bytes == b"secret-token"));
    let other = tempfile::tempdir().unwrap();
    let imported = import(&archive, other.path()).unwrap();
    assert_eq!(imported.torrents.len(), 3);
    assert_eq!(imported.features, ["settings"]);
    assert_eq!(imported.torrents.iter().filter(|torrent| torrent.stopped).count(), 1);
    assert_eq!(read_all(folder.path()), read_all(other.path()));
    // The second time, everything is there; an existing session is not replaced.
    let changed = Session {
        paused: true,
        ..Session::new(hashes[1])
    }
    .to_text();
    write(other.path(), &StateFile::Session(hashes[1]), changed.as_bytes());
    let again = import(&archive, other.path()).unwrap();
    assert_eq!(
        (again.torrents.len(), again.features.len(), again.left_out.len()),
        (0, 0, 4)
    );
    let session = fs::read(other.path().join("state").join(StateFile::Session(hashes[1]).name())).unwrap();
    assert_eq!(session, changed.as_bytes());
}

#[test]
fn an_unusable_session_is_named_and_left_out() {
    let (folder, hashes) = folder(2);
    write(folder.path(), &StateFile::Session(hashes[0]), b"cut");
    let mut archive = Vec::new();
    let exported = export(folder.path(), &mut archive).unwrap();
    assert_eq!(exported.torrents, 1);
    assert_eq!(exported.left_out[0].id, hashes[0].to_string());
    let other = tempfile::tempdir().unwrap();
    assert_eq!(import(&archive, other.path()).unwrap().torrents.len(), 1);
}

/// Builds an archive entry by entry, as an attacker would.
fn forged(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

/// Appends an entry whose name is written as it is.
fn append(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, size: u64, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    if kind == tar::EntryType::Symlink {
        header.as_mut_bytes()[157..168].copy_from_slice(b"/etc/passwd");
    }
    header.set_cksum();
    builder.append(&header, Cursor::new(bytes)).unwrap();
}

#[test]
fn hostile_archives_change_nothing() {
    use tar::EntryType::{GNUSparse, Link, Regular, Symlink, XHeader};
    let blob = StateFile::Blob(BlobName::new("dht-4").unwrap());
    let path = path_of(&blob);
    let one = |kind, name: &str, size| forged(|builder| append(builder, kind, name, size, b""));
    let twice = forged(|builder| {
        append(builder, Regular, &path, 1, b"x");
        append(builder, Regular, &path, 1, b"y");
    });
    let (folder, _) = folder(1);
    let mut whole = Vec::new();
    export(folder.path(), &mut whole).unwrap();
    let mut damaged = whole.clone();
    // The settings of two bytes are the last file before the manifest.
    let position = whole.windows(2).rposition(|bytes| bytes == b"{}").unwrap();
    damaged[position] = b' ';
    for (archive, reason) in [
        (one(Regular, "../../etc/cron.d/x", 0), "no such file is expected"),
        (one(Regular, "/etc/passwd", 0), "no such file is expected"),
        (one(Regular, "state/../token", 0), "no such file is expected"),
        (one(Regular, "token", 0), "no such file is expected"),
        (one(Symlink, &path, 0), "not a regular file"),
        (one(Link, &path, 0), "not a regular file"),
        (one(GNUSparse, &path, 0), "not a regular file"),
        (one(XHeader, "state/x", 0), "not a regular file"),
        (one(Regular, &path, 1 << 40), "are allowed"),
        (one(Regular, &path, 1000), "not whole"),
        (twice, "twice"),
        (damaged, "damaged"),
        (Vec::new(), "not whole"),
        (b"PK\x03\x04 a zip file".repeat(100), "cannot read the archive"),
    ] {
        let target = tempfile::tempdir().unwrap();
        let error = import(&archive, target.path()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}, not {reason}");
        assert!(read_all(target.path()).is_empty());
    }
    // Cut anywhere, an archive is refused.
    for len in (0..whole.len() - 1024).step_by(512) {
        let target = tempfile::tempdir().unwrap();
        assert!(import(&whole[..len], target.path()).is_err(), "{len}");
        assert!(read_all(target.path()).is_empty());
    }
}

#[test]
fn a_session_in_the_name_of_another_torrent_is_refused() {
    let (_, hashes) = folder(2);
    let session = Session::new(hashes[0]).to_text();
    let mut writer = ArchiveWriter::new(Vec::new());
    writer.add(&StateFile::Session(hashes[1]), session.as_bytes()).unwrap();
    let target = tempfile::tempdir().unwrap();
    let error = import(&writer.finish().unwrap(), target.path()).unwrap_err();
    assert!(matches!(error, ArchiveError::Session(hash, _) if hash == hashes[1]));
}
