//! Watch folders: torrent files and magnet links that appear in them are added.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ecs_torrent_components::commands::{AddError, AddOptions};
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::settings::seconds;
use ecs_torrent_engine::backends::whole_file;
use ecs_torrent_protocol::metainfo::MetainfoLimits;
use ecs_torrent_protocol::safe_path::MAX_COMPONENT_BYTES;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::settings::{AfterAdding, AutomationSettings, WatchedFolder};
use crate::error::Error;
use crate::source::{self, Source};
use crate::torrents::Torrents;

/// Maximum length of a file with a magnet link.
const MAX_LINK_BYTES: u64 = 1 << 16;

/// Numbers that are tried if another file has the new name of an added one.
const MAX_NUMBER: u32 = 1000;

/// Maximum length in bytes of a file's name that becomes longer when its torrent was added, by `.999.added`.
const MAX_RENAMED: usize = MAX_COMPONENT_BYTES - 10;

/// Number of failures after which the pause between two attempts at a file no longer grows: it is then 256 scans.
const MAX_DOUBLINGS: u32 = 8;

/// The kind of a watched file, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Torrent,
    Magnet,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [(Self::Torrent, "torrent"), (Self::Magnet, "magnet")]
            .into_iter()
            .find(|(_, known)| extension.eq_ignore_ascii_case(known))
            .map(|(kind, _)| kind)
    }
}

/// A file as it was at a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
}

/// A file that was found by the last scan.
#[derive(Debug, Clone, Copy)]
struct Known {
    stamp: Stamp,
    /// The file was tried and is not tried again until it changes.
    is_done: bool,
    /// Number of tries that failed for a reason that may pass.
    failures: u32,
    /// Number of scans until the next attempt.
    pause: u32,
}

/// A watch folder, and the known state of its files.
struct Watcher {
    folder: WatchedFolder,
    max_files: usize,
    known: HashMap<OsString, Known>,
    /// The last fault of the folder, so that each is logged once.
    fault: Option<String>,
}

/// Watches a folder for as long as the task lives.
pub(super) async fn watch(folder: WatchedFolder, settings: AutomationSettings, torrents: Torrents) {
    let mut watcher = Watcher {
        folder,
        max_files: settings.max_watched_files,
        known: HashMap::new(),
        fault: None,
    };
    let interval = seconds(settings.watch_interval_s);
    loop {
        // The folder may be on a disk that hangs: only this task waits for it.
        let look = move || {
            let settled = watcher.look();
            (watcher, settled)
        };
        let Ok((back, settled)) = spawn_blocking(look).await else {
            return;
        };
        watcher = back;
        for path in settled {
            if watcher.folder.then == AfterAdding::Rename && name_len(&path) > MAX_RENAMED {
                let why = format!("its name is longer than {MAX_RENAMED} bytes, and could not be changed");
                tracing::warn!("watch folder: {}: not added: {why}", path.display());
                continue;
            }
            let file = path.clone();
            let outcome = match spawn_blocking(move || read(&file)).await {
                Ok(Ok(source)) => torrents.download_with(source, watcher.options()).await,
                Ok(Err(error)) => Err(error),
                Err(_) => return,
            };
            match outcome {
                Ok(_) => {
                    let then = watcher.folder.then;
                    let file = path.clone();
                    if let Ok(Err(error)) = spawn_blocking(move || settle(&file, then)).await {
                        tracing::warn!("watch folder: {}: the torrent was added: {error}", path.display());
                    }
                }
                Err(Error::EngineGone(_)) => return,
                Err(error) => {
                    tracing::warn!("watch folder: {}: not added: {error}", path.display());
                    if may_pass(&error) {
                        watcher.retry(&path);
                    }
                }
            }
        }
        sleep(interval).await;
    }
}

impl Watcher {
    /// Scans the folder. Returns the files that did not change since the last scan, and were not tried.
    fn look(&mut self) -> Vec<PathBuf> {
        let (found, fault) = match self.list() {
            Ok(found) if found.len() >= self.max_files => {
                let fault = format!("{} files, others wait until there are fewer", found.len());
                (found, Some(fault))
            }
            Ok(found) => (found, None),
            Err(error) => (HashMap::new(), Some(error.to_string())),
        };
        if fault != self.fault {
            if let Some(fault) = &fault {
                tracing::warn!("watch folder {}: {fault}", self.folder.path.display());
            }
            self.fault = fault;
        }
        let mut settled = Vec::new();
        let mut seen = HashMap::new();
        for (name, stamp) in found {
            let before = self.known.get(&name).filter(|known| known.stamp == stamp);
            let known = match before.copied() {
                Some(known) if known.is_done => known,
                Some(known) if known.pause > 0 => Known {
                    pause: known.pause - 1,
                    ..known
                },
                Some(known) => {
                    settled.push(self.folder.path.join(&name));
                    Known { is_done: true, ..known }
                }
                None => Known {
                    stamp,
                    is_done: false,
                    failures: 0,
                    pause: 0,
                },
            };
            seen.insert(name, known);
        }
        self.known = seen;
        settled.sort();
        settled
    }

    /// Schedules another attempt at a file, after a pause that doubles with each failure.
    fn retry(&mut self, path: &Path) {
        let known = path.file_name().and_then(|name| self.known.get_mut(name));
        if let Some(known) = known {
            known.is_done = false;
            known.pause = 1 << known.failures.min(MAX_DOUBLINGS);
            known.failures += 1;
        }
    }

    fn list(&self) -> io::Result<HashMap<OsString, Stamp>> {
        let mut found = HashMap::new();
        for entry in fs::read_dir(&self.folder.path)? {
            let entry = entry?;
            if Kind::of(&entry.path()).is_none() {
                continue;
            }
            // The file may vanish meanwhile, and a link may lead to one that does not exist.
            let Ok(metadata) = fs::metadata(entry.path()) else {
                continue;
            };
            if !metadata.is_file() {
                continue;
            }
            let stamp = Stamp {
                len: metadata.len(),
                modified: metadata.modified().ok(),
            };
            found.insert(entry.file_name(), stamp);
            if found.len() >= self.max_files {
                break;
            }
        }
        Ok(found)
    }

    fn options(&self) -> AddOptions {
        AddOptions {
            root: self.folder.folder.clone(),
            labels: Labels {
                labels: self.folder.labels.iter().cloned().collect(),
                category: self.folder.category.clone(),
            },
            ..AddOptions::default()
        }
    }
}

fn name_len(path: &Path) -> usize {
    path.file_name().map_or(0, OsStr::len)
}

/// Whether a later try may succeed without a change of the file: the disk or the state folder failed.
fn may_pass(error: &Error) -> bool {
    matches!(
        error,
        Error::Read { .. } | Error::Busy | Error::Add(AddError::Unsaved(_))
    )
}

/// Reads and examines a file. A file that is not complete yet is not a valid torrent: it is tried again when it has
/// changed. The text of a `.magnet` file is a link only: it cannot name another file.
fn read(path: &Path) -> Result<Source, Error> {
    match Kind::of(path) {
        Some(Kind::Magnet) => {
            let text = source::read(path, MAX_LINK_BYTES)?;
            let text = String::from_utf8_lossy(&text);
            match Source::from_link(text.trim())? {
                link @ Source::Link(_) => Ok(link),
                magnet => magnet.read().map(Source::from),
            }
        }
        _ => {
            let max_bytes = MetainfoLimits::default().bencode.max_bytes as u64;
            Source::from(source::read(path, max_bytes)?).read().map(Source::from)
        }
    }
}

/// Renames or deletes a file whose torrent was added.
fn settle(path: &Path, then: AfterAdding) -> io::Result<()> {
    if then == AfterAdding::Delete {
        return fs::remove_file(path);
    }
    for number in 0..MAX_NUMBER {
        let mut name = path.as_os_str().to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        name.push(".added");
        match whole_file::rename_new(path, Path::new(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result,
        }
    }
    Err(io::Error::other("all names for it are taken"))
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::magnet::MagnetError;

    use super::*;

    fn watcher(path: &Path) -> Watcher {
        Watcher {
            folder: WatchedFolder {
                path: path.to_owned(),
                ..WatchedFolder::default()
            },
            max_files: 3,
            known: HashMap::new(),
            fault: None,
        }
    }

    #[test]
    fn a_file_is_tried_once_it_does_not_change_and_again_when_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("A.Torrent");
        let mut watcher = watcher(folder.path());
        fs::write(folder.path().join("notes.txt"), "x").unwrap();
        fs::create_dir(folder.path().join("folder.torrent")).unwrap();
        fs::write(&file, "d4:").unwrap();
        assert_eq!(watcher.look(), [""; 0].map(PathBuf::from));
        fs::write(&file, "d4:in").unwrap();
        assert!(watcher.look().is_empty(), "it has grown");
        assert_eq!(watcher.look(), std::slice::from_ref(&file));
        assert!(watcher.look().is_empty(), "it was tried");
        fs::write(&file, "d4:info").unwrap();
        assert!(watcher.look().is_empty());
        assert_eq!(watcher.look(), [file]);
    }

    /// A full disk may have room later.
    #[test]
    fn a_file_that_could_not_be_added_is_tried_again_after_growing_pauses() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.torrent");
        let mut watcher = watcher(folder.path());
        fs::write(&file, "d4:").unwrap();
        watcher.look();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.push((0..).find(|_| !watcher.look().is_empty()).unwrap());
            watcher.retry(&file);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }

    #[test]
    fn a_file_with_a_link_names_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let [other, file] = ["secret.torrent", "a.magnet"].map(|name| folder.path().join(name));
        fs::write(&other, "secret").unwrap();
        for text in [other.display().to_string(), "magnet".to_owned(), String::new()] {
            fs::write(&file, text).unwrap();
            assert!(matches!(read(&file), Err(Error::Magnet(MagnetError::Scheme))));
        }
        fs::write(&file, format!(" magnet:?xt=urn:btih:{}\n", "ab".repeat(20))).unwrap();
        assert!(matches!(read(&file), Ok(Source::Magnet(_))));
        fs::write(&file, format!("magnet:?xs=urn:btpk:{}", "ab".repeat(32))).unwrap();
        assert!(matches!(read(&file), Ok(Source::Link(_))));
    }

    #[test]
    fn a_look_is_bounded_and_survives_a_folder_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let mut watcher = watcher(folder.path());
        for number in 0..9 {
            fs::write(folder.path().join(format!("{number}.magnet")), "x").unwrap();
        }
        watcher.look();
        assert_eq!(watcher.look().len(), 3);
        assert!(
            watcher
                .fault
                .as_ref()
                .is_some_and(|fault| fault.contains("others wait"))
        );
        folder.close().unwrap();
        assert!(watcher.look().is_empty());
        let fault = watcher.fault.unwrap();
        assert!(fault.contains("No such file") && watcher.known.is_empty(), "{fault}");
    }

    #[test]
    fn no_other_file_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for _ in 0..2 {
            fs::write(path("a.torrent"), "x").unwrap();
            settle(&path("a.torrent"), AfterAdding::Rename).unwrap();
        }
        assert!(path("a.torrent.added").exists() && path("a.torrent.1.added").exists());
        fs::write(path("a.torrent"), "x").unwrap();
        settle(&path("a.torrent"), AfterAdding::Delete).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
