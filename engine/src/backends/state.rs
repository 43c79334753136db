//! The state folder: a session and a `.torrent` file for each torrent, named blobs, and a lock against a second engine.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent_components::session::Session;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::jobs::Jobs;
use super::sink::Sink;
use super::staging::{self, FOLDER, MAX_SESSION_BYTES, SESSIONS, StateFile};
use super::{StartError, beneath, whole_file};
use crate::port::{Backend, JobTag};
use crate::ports::state::{
    BlobName, Loaded, MAX_BLOB_BYTES, StateDone, StateError, StateEvent, StateRequest, StoredTorrent,
};
use crate::wake::Waker;

const FILE_MODE: u32 = 0o666;

/// Number of loads that make starting another thread worthwhile.
const LOADS_PER_THREAD: usize = 64;

/// Maximum number of threads that save at the same time. They wait for the disk most of the time.
const SAVE_THREADS: usize = 16;

/// Number of saves that make starting another thread worthwhile: a sync takes longer than the start of a thread.
const SAVES_PER_THREAD: usize = 2;

/// The State port's real backend: one thread over one folder. While many torrents are loaded at a start, it uses one
/// thread per processor.
pub(crate) struct StateFolder {
    jobs: Arc<Jobs<StateRequest>>,
    sink: Sink<StateEvent>,
    thread: Option<JoinHandle<()>>,
    /// Number of requests carried out. Distinguishes a slow folder from one that hangs.
    done_count: Arc<AtomicU64>,
}

/// Maximum time without progress that a dropped engine waits for its state folder. After that, the folder counts as
/// hanging and its thread is left behind.
const HANG_TIMEOUT: Duration = Duration::from_secs(1);

/// A state folder with its lock held. The folder is opened once: its files are accessed through the handle, never a
/// link, even if the path leads elsewhere later.
struct Folder {
    path: PathBuf,
    handle: OwnedFd,
    /// Held until the engine is gone. The system releases the lock when the process dies.
    lock: OwnedFd,
}

impl Drop for Folder {
    /// Unlocks explicitly: a child process being started by this one may briefly hold the file open too.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, rustix::fs::FlockOperation::Unlock);
    }
}

/// A state folder without an engine. No engine can start with it until this is dropped.
pub struct LockedState(#[expect(dead_code, reason = "held for its lock")] Folder);

impl LockedState {
    /// Locks a state folder, and creates it if it is missing.
    ///
    /// # Errors
    /// If the folder cannot be created, or an engine uses it.
    pub fn take(state_dir: &Path) -> Result<Self, StartError> {
        Folder::take(state_dir).map(Self)
    }
}

type Outcome = Result<StateDone, StateError>;

impl StateFolder {
    /// Locks the folder, creating it if it is missing.
    ///
    /// # Errors
    /// If the folder cannot be created, or another engine uses it.
    pub(crate) fn start(state_dir: &Path, waker: &Waker) -> Result<Self, StartError> {
        let folder = Folder::take(state_dir)?;
        let (jobs, sink) = (Arc::new(Jobs::in_batches(usize::MAX)), Sink::new(waker));
        let (queue, done) = (jobs.clone(), sink.clone());
        let done_count = Arc::new(AtomicU64::new(0));
        let counter = done_count.clone();
        let thread = thread::Builder::new()
            .name("ecs-torrent-state".into())
            .spawn(move || folder.serve(&queue, &done, &counter))
            .map_err(StartError::Thread)?;
        Ok(Self {
            jobs,
            sink,
            thread: Some(thread),
            done_count,
        })
    }
}

impl Backend<StateRequest, StateEvent> for StateFolder {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        self.jobs.add(requests.drain(..));
    }

    fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
        self.sink.poll(max, events)
    }
}

impl Drop for StateFolder {
    fn drop(&mut self) {
        self.jobs.close();
        // Saves submitted sessions and frees the folder for the next engine, unless its storage hangs.
        let Some(thread) = self.thread.take() else { return };
        let done_count = || self.done_count.load(Ordering::Acquire);
        let (mut done, mut since) = (done_count(), Instant::now());
        while !thread.is_finished() {
            if done_count() != done {
                (done, since) = (done_count(), Instant::now());
            } else if since.elapsed() >= HANG_TIMEOUT {
                return tracing::error!("the state folder hangs: unsaved progress is lost");
            }
            thread::sleep(Duration::from_millis(1));
        }
        let _ = thread.join();
    }
}

impl Folder {
    fn take(state_dir: &Path) -> Result<Self, StartError> {
        let failed = |error| StartError::StateDir {
            path: state_dir.to_owned(),
            error,
        };
        // The stored files contain trackers' passkeys.
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(state_dir).map_err(failed)?;
        // The user chose the path, so it may contain links. Below the folder, links are not followed.
        let outer = rustix::fs::open(state_dir, FOLDER, Mode::empty()).map_err(|error| failed(error.into()))?;
        let inner = || {
            match rustix::fs::mkdirat(&outer, SESSIONS, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            rustix::fs::openat(&outer, SESSIONS, FOLDER | OFlags::NOFOLLOW, Mode::empty())
        };
        let handle = inner().map_err(|error| failed(error.into()))?;
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&outer, "lock", flags, Mode::from_raw_mode(FILE_MODE))
            .map_err(|error| failed(error.into()))?;
        let mut file = File::from(file);
        let lock = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        if let Err(error) = lock {
            if error != Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            let mut holder = String::new();
            let _ = file.take(20).read_to_string(&mut holder);
            return Err(StartError::StateDirInUse {
                path: state_dir.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        // For the error message above. The lock holds even if this fails.
        let _ = file.set_len(0);
        let _ = writeln!(file, "{}", std::process::id());
        // An import that was killed.
        staging::finish(outer.as_fd(), handle.as_fd()).map_err(failed)?;
        Ok(Self {
            path: state_dir.join(SESSIONS),
            handle,
            lock: file.into(),
        })
    }

    /// Carries out requests until the queue is closed. Requests that wait together share one flush of the folder.
    fn serve(&self, jobs: &Jobs<StateRequest>, sink: &Sink<StateEvent>, done_count: &AtomicU64) {
        jobs.serve(|waiting| {
            let mut unsafe_yet: Vec<JobTag> = Vec::new();
            while let Some(request) = waiting.pop_front() {
                if matches!(request, StateRequest::Load { .. }) {
                    waiting.push_front(request);
                    self.load_side_by_side(waiting, sink, done_count);
                    continue;
                }
                if matches!(request, StateRequest::Save { .. }) {
                    waiting.push_front(request);
                    self.save_side_by_side(waiting, &mut unsafe_yet, sink, done_count);
                    continue;
                }
                let (tag, outcome) = self.carry_out(request);
                done_count.fetch_add(1, Ordering::Release);
                match outcome {
                    Ok(StateDone::Saved) => unsafe_yet.push(tag),
                    outcome => sink.push(StateEvent { tag, outcome }),
                }
            }
            if unsafe_yet.is_empty() {
                return;
            }
            let flushed = rustix::fs::fsync(&self.handle);
            let flushed = flushed.map_err(|error| self.failure("flush", "", &error.into()));
            for tag in unsafe_yet {
                let outcome = flushed.clone().map(|()| StateDone::Saved);
                sink.push(StateEvent { tag, outcome });
            }
        });
    }

    /// Carries out the loads at the front of the queue in parallel. They do not depend on each other.
    fn load_side_by_side(&self, waiting: &mut VecDeque<StateRequest>, sink: &Sink<StateEvent>, done_count: &AtomicU64) {
        let is_load = |request: &StateRequest| matches!(request, StateRequest::Load { .. });
        let count = waiting.iter().take_while(|request| is_load(request)).count();
        let loads = Mutex::new(waiting.drain(..count));
        let load = || {
            loop {
                let next = loads.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(request) = next else { return };
                let (tag, outcome) = self.carry_out(request);
                done_count.fetch_add(1, Ordering::Release);
                sink.push(StateEvent { tag, outcome });
            }
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 1..processors.min(count.div_ceil(LOADS_PER_THREAD)) {
                // If no other thread can be started, this one carries out all loads.
                let _ = thread::Builder::new().spawn_scoped(scope, load);
            }
            load();
        });
    }

    /// Carries out the saves at the front of the queue in parallel, up to the second one of a torrent: a file system
    /// syncs several files at once as fast as one. Adds the tags of those that succeed to `unsafe_yet`.
    fn save_side_by_side(
        &self,
        waiting: &mut VecDeque<StateRequest>,
        unsafe_yet: &mut Vec<JobTag>,
        sink: &Sink<StateEvent>,
        done_count: &AtomicU64,
    ) {
        let mut torrents = HashSet::new();
        let is_next = |request: &&StateRequest| match request {
            StateRequest::Save { session, .. } => torrents.insert(session.info_hash),
            _ => false,
        };
        let count = waiting.iter().take_while(is_next).count();
        let saves = Mutex::new(waiting.drain(..count));
        let saved = Mutex::new(unsafe_yet);
        let save = || {
            loop {
                let next = saves.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(request) = next else { return };
                let (tag, outcome) = self.carry_out(request);
                done_count.fetch_add(1, Ordering::Release);
                match outcome {
                    Ok(StateDone::Saved) => saved.lock().unwrap_or_else(PoisonError::into_inner).push(tag),
                    outcome => sink.push(StateEvent { tag, outcome }),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..SAVE_THREADS.min(count.div_ceil(SAVES_PER_THREAD)) {
                // If no other thread can be started, this one carries out all saves.
                let _ = thread::Builder::new().spawn_scoped(scope, save);
            }
            save();
        });
    }

    fn carry_out(&self, request: StateRequest) -> (JobTag, Outcome) {
        match request {
            StateRequest::List { tag } => (tag, self.list()),
            StateRequest::Load {
                tag,
                torrent,
                with_metainfo,
                is_peek,
            } => (tag, self.load(torrent, with_metainfo, is_peek)),
            StateRequest::Save { tag, session, metainfo } => (tag, self.save(&session, metainfo.as_ref())),
            StateRequest::Remove { tag, torrent } => (tag, self.remove(torrent)),
            StateRequest::SaveBlob { tag, name, bytes } => (tag, self.save_blob(&name, &bytes)),
            StateRequest::LoadBlob { tag, name } => (tag, self.load_blob(&name)),
        }
    }

    fn save_blob(&self, name: &BlobName, bytes: &Bytes) -> Outcome {
        let name = blob_name(name);
        if bytes.len() > MAX_BLOB_BYTES {
            let error = io::Error::other(format!("longer than {MAX_BLOB_BYTES} bytes"));
            return Err(self.failure("write", &name, &error));
        }
        self.replace(&name, bytes)?;
        Ok(StateDone::Saved)
    }

    fn load_blob(&self, name: &BlobName) -> Outcome {
        let name = blob_name(name);
        match self.read(&name, MAX_BLOB_BYTES as u64) {
            Ok(bytes) => Ok(StateDone::BlobLoaded(Some(bytes.into()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(StateDone::BlobLoaded(None)),
            Err(error) => Err(self.failure("read", &name, &error)),
        }
    }

    /// Lists every torrent with a session or a `.torrent` file. A torrent that lost one of them is not lost itself.
    fn list(&self) -> Outcome {
        let failed = |error: Errno| self.failure("read", "", &error.into());
        let mut torrents: BTreeMap<InfoHash, StoredTorrent> = BTreeMap::new();
        for entry in rustix::fs::Dir::read_from(&self.handle).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.file_name().to_str().ok().and_then(StateFile::parse);
            let (torrent, is_session) = match file {
                Some(StateFile::Session(torrent)) => (torrent, true),
                Some(StateFile::Metainfo(torrent)) => (torrent, false),
                Some(StateFile::Blob(_)) | None => continue,
            };
            let stored = torrents.entry(torrent).or_insert(StoredTorrent {
                torrent,
                has_session: false,
                has_metainfo: false,
            });
            stored.has_session |= is_session;
            stored.has_metainfo |= !is_session;
        }
        Ok(StateDone::Listed(torrents.into_values().collect()))
    }

    fn load(&self, torrent: InfoHash, with_metainfo: bool, is_peek: bool) -> Outcome {
        let mut loaded = Loaded::default();
        let name = session_name(torrent);
        match self.read(&name, MAX_SESSION_BYTES) {
            Ok(bytes) => match Session::parse(&bytes, torrent) {
                Ok(session) => loaded.session = Some(session),
                Err(error) if is_peek => {
                    loaded.set_aside = Some(error.to_string());
                    loaded.salvage = Session::salvage(&bytes, torrent);
                }
                Err(error) => {
                    let aside = self.keep_aside(&name, error.word());
                    let place =
                        aside.map_or_else(|error| format!("left in place: {error}"), |p| p.display().to_string());
                    loaded.set_aside = Some(format!("{error} ({place})"));
                    loaded.salvage = Session::salvage(&bytes, torrent);
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.failure("read", &name, &error)),
        }
        if with_metainfo {
            loaded.metainfo = Some(self.load_metainfo(torrent, is_peek));
        }
        loaded.has_metainfo = matches!(loaded.metainfo, Some(Ok(_))) || self.exists(&torrent_name(torrent));
        Ok(StateDone::Loaded(Box::new(loaded)))
    }

    fn load_metainfo(&self, torrent: InfoHash, is_peek: bool) -> Result<Arc<Metainfo>, String> {
        let name = torrent_name(torrent);
        let limits = MetainfoLimits::default();
        let bytes = self
            .read(&name, limits.bencode.max_bytes as u64)
            .map_err(|e| self.failure("read", &name, &e).to_string())?;
        let parsed = Metainfo::parse(&bytes.into(), &limits).map_err(|error| error.to_string());
        let checked = parsed.and_then(|metainfo| match metainfo.hashes.primary() == torrent {
            true => Ok(Arc::new(metainfo)),
            false => Err("it is another torrent's".to_owned()),
        });
        checked.map_err(|reason| {
            if is_peek {
                return reason;
            }
            let aside = self.set_aside(&name, "damaged");
            let place = aside.map_or_else(|error| error.to_string(), |path| path.display().to_string());
            format!("{reason} ({place})")
        })
    }

    fn save(&self, session: &Session, metainfo: Option<&Bytes>) -> Outcome {
        if let Some(bytes) = metainfo {
            self.replace(&torrent_name(session.info_hash), bytes)?;
        }
        self.replace(&session_name(session.info_hash), session.to_text().as_bytes())?;
        Ok(StateDone::Saved)
    }

    /// Replaces a file atomically: at every moment, either the old or the new file is there, complete.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let temporary = Path::new(name).with_extension("tmp");
        whole_file::replace(&self.handle, Path::new(name), &temporary, FILE_MODE, bytes)
            .map_err(|error| self.failure("write", name, &error))
    }

    fn remove(&self, torrent: InfoHash) -> Outcome {
        for name in [session_name(torrent), torrent_name(torrent)] {
            match rustix::fs::unlinkat(&self.handle, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(self.failure("delete", &name, &error.into())),
            }
        }
        Ok(StateDone::Removed)
    }

    fn failure(&self, action: &str, name: &str, error: &io::Error) -> StateError {
        let path = if name.is_empty() {
            self.path.clone()
        } else {
            self.path.join(name)
        };
        StateError(format!("cannot {action} {}: {error}", path.display()).into())
    }

    fn read(&self, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let bytes = staging::read_regular(self.handle.as_fd(), name, max)?;
        bytes.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn exists(&self, name: &str) -> bool {
        beneath::Status::at(self.handle.as_fd(), name).is_ok()
    }

    /// Renames an unusable file to a name that contains the reason. Earlier renamed files keep their names.
    fn set_aside(&self, name: &str, word: &str) -> io::Result<PathBuf> {
        let target = names_aside(name, word)
            .find(|target| !self.exists(target))
            .ok_or_else(too_many_aside)?;
        rustix::fs::renameat(&self.handle, name, &self.handle, &target)?;
        Ok(self.path.join(target))
    }

    /// Gives an unusable file a second name that contains the reason, once. The file keeps its own name until it is
    /// replaced. Volumes without hard links rename it.
    fn keep_aside(&self, name: &str, word: &str) -> io::Result<PathBuf> {
        let status = |name: &str| rustix::fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
        let id = |status: rustix::fs::Stat| (status.st_dev, status.st_ino);
        let own = status(name).map(id)?;
        for target in names_aside(name, word) {
            match status(&target) {
                Ok(other) if id(other) == own => return Ok(self.path.join(target)),
                Ok(_) => {}
                Err(_) => {
                    return match rustix::fs::linkat(&self.handle, name, &self.handle, &target, AtFlags::empty()) {
                        Ok(()) => Ok(self.path.join(target)),
                        Err(_) => self.set_aside(name, word),
                    };
                }
            }
        }
        Err(too_many_aside())
    }
}

/// Returns the names for an unusable file, in the order in which they are used.
fn names_aside(name: &str, word: &str) -> impl Iterator<Item = String> {
    (0..1000).map(move |number| match number {
        0 => format!("{name}.{word}"),
        _ => format!("{name}.{word}-{number}"),
    })
}

fn too_many_aside() -> io::Error {
    io::Error::other("too many files were set aside")
}

fn session_name(torrent: InfoHash) -> String {
    StateFile::Session(torrent).name()
}

fn torrent_name(torrent: InfoHash) -> String {
    StateFile::Metainfo(torrent).name()
}

/// Reads a blob of a state folder that no engine need use. `None` if it does not exist.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read_blob(state_dir: &Path, name: &BlobName) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(blob_path(state_dir, name), flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // A folder that is a file fails the start for that reason.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    whole_file::read_bounded(file, MAX_BLOB_BYTES as u64).map(Some)
}

/// Returns the path of a blob in a state folder.
pub(crate) fn blob_path(state_dir: &Path, name: &BlobName) -> PathBuf {
    state_dir.join(SESSIONS).join(blob_name(name))
}

fn blob_name(name: &BlobName) -> String {
    StateFile::Blob(name.clone()).name()
}

/// The State port of an engine that stores nothing.
pub(crate) struct NoState {
    sink: Sink<StateEvent>,
}

impl NoState {
    /// Creates the backend. `waker` wakes the engine for answers.
    #[must_use]
    pub(crate) fn new(waker: &Waker) -> Self {
        Self { sink: Sink::new(waker) }
    }
}

impl Backend<StateRequest, StateEvent> for NoState {
    fn submit(&mut self, requests: &mut Vec<StateRequest>) {
        for request in requests.drain(..) {
            let (tag, done) = match request {
                StateRequest::List { tag } => (tag, StateDone::Listed(Vec::new())),
                StateRequest::Load { tag, .. } => (tag, StateDone::Loaded(Box::default())),
                StateRequest::Save { tag, .. } | StateRequest::SaveBlob { tag, .. } => (tag, StateDone::Saved),
                StateRequest::Remove { tag, .. } => (tag, StateDone::Removed),
                StateRequest::LoadBlob { tag, .. } => (tag, StateDone::BlobLoaded(None)),
            };
            self.sink.push(StateEvent { tag, outcome: Ok(done) });
        }
    }

    fn poll(&mut self, max: usize, events: &mut Vec<StateEvent>) -> bool {
        self.sink.poll(max, events)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Fault 95.
    #[test]
    fn the_folder_is_its_owners_alone() {
        let temporary = tempfile::tempdir().unwrap();
        let state_dir = temporary.path().join("new");
        let _folder = Folder::take(&state_dir).unwrap();
        for folder in [state_dir.join("state"), state_dir] {
            let mode = fs::metadata(folder).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }

    /// Links are not followed if somebody puts one in place of the folder after the start, or in the folder.
    #[test]
    fn a_swapped_folder_is_not_followed() {
        use std::os::unix::fs::symlink;
        let temporary = tempfile::tempdir().unwrap();
        let base = temporary.path();
        let outside = base.join("outside");
        fs::create_dir(&outside).unwrap();
        let folder = Folder::take(&base.join("state-dir")).unwrap();
        fs::rename(base.join("state-dir"), base.join("moved")).unwrap();
        symlink(&outside, base.join("state-dir")).unwrap();
        folder.replace("x.ron", b"session").unwrap();
        assert_eq!(folder.read("x.ron", 10).unwrap(), b"session");
        assert_eq!(fs::read(base.join("moved/state/x.ron")).unwrap(), b"session");
        fs::write(outside.join("victim"), "mine").unwrap();
        symlink(outside.join("victim"), base.join("moved/state/y.ron")).unwrap();
        symlink(outside.join("victim"), base.join("moved/state/x.tmp")).unwrap();
        assert!(folder.read("y.ron", 10).is_err() && folder.replace("x.ron", b"other").is_err());
        assert_eq!(fs::read(outside.join("victim")).unwrap(), b"mine");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        // A link that was there from the start is not accepted as our folder.
        fs::create_dir(base.join("other")).unwrap();
        symlink(&outside, base.join("other/state")).unwrap();
        assert!(matches!(
            Folder::take(&base.join("other")),
            Err(StartError::StateDir { .. })
        ));
    }

    #[test]
    fn blobs_are_replaced_as_a_whole_and_read_within_their_bound() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::take(temporary.path()).unwrap();
        let name = BlobName::new("dht-table").unwrap();
        let load = || match folder.load_blob(&name) {
            Ok(StateDone::BlobLoaded(bytes)) => Ok(bytes),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(load(), Ok(None), "a missing blob is no error");
        for bytes in [&b"first"[..], b"", b"second"] {
            folder.save_blob(&name, &Bytes::from_static(bytes)).unwrap();
            assert_eq!(load(), Ok(Some(Bytes::from_static(bytes))));
        }
        let long = Bytes::from(vec![0; MAX_BLOB_BYTES + 1]);
        assert!(folder.save_blob(&name, &long).is_err());
        assert_eq!(load(), Ok(Some(Bytes::from_static(b"second"))), "the old one stays");
        let path = temporary.path().join("state/dht-table.blob");
        fs::write(&path, &long).unwrap();
        assert!(load().unwrap_err().to_string().contains("longer than"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(load().is_err(), "links are not followed");
    }

    #[test]
    fn torrents_are_listed_by_session_or_metainfo() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::take(temporary.path()).unwrap();
        let [both, session, metainfo] = [1, 2, 3].map(|byte| InfoHash([byte; 20]));
        let names = [
            session_name(both),
            torrent_name(both),
            session_name(session),
            torrent_name(metainfo),
            format!("{}.tmp", InfoHash([4; 20])),
            format!("{}.ron.damaged", InfoHash([5; 20])),
            "dht.blob".to_owned(),
            "x.ron".to_owned(),
        ];
        names
            .iter()
            .for_each(|name| fs::write(temporary.path().join("state").join(name), "").unwrap());
        let StateDone::Listed(listed) = folder.list().unwrap() else {
            panic!("not a list");
        };
        let found: Vec<_> = listed
            .iter()
            .map(|stored| (stored.torrent, stored.has_session, stored.has_metainfo))
            .collect();
        assert_eq!(
            found,
            [(both, true, true), (session, true, false), (metainfo, false, true)]
        );
    }

    #[test]
    fn quarantined_files_displace_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::take(temporary.path()).unwrap();
        let path = temporary.path().join("state/x.ron");
        let names = ["first", "second"].map(|content| {
            fs::write(&path, content).unwrap();
            folder.set_aside("x.ron", "damaged").unwrap()
        });
        assert_eq!(
            names.each_ref().map(|path| fs::read_to_string(path).unwrap()),
            ["first", "second"]
        );
        assert!(names[0].ends_with("x.ron.damaged") && names[1].ends_with("x.ron.damaged-1"));
    }

    /// Saves of many torrents are carried out side by side, those of one torrent in their order.
    #[test]
    fn the_last_save_of_a_torrent_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let mut folder = StateFolder::start(temporary.path(), &Waker::none()).unwrap();
        let torrent = |number: u8| InfoHash([number; 20]);
        let mut requests: Vec<StateRequest> = (0..200u64)
            .map(|number| StateRequest::Save {
                tag: JobTag::new(crate::purpose!("test"), bevy_ecs::entity::Entity::PLACEHOLDER),
                session: Box::new(Session {
                    root: "/data".into(),
                    uploaded: number,
                    ..Session::new(torrent((number % 20) as u8))
                }),
                metainfo: None,
            })
            .collect();
        folder.submit(&mut requests);
        let mut events = Vec::new();
        while events.len() < 200 {
            folder.poll(usize::MAX, &mut events);
            thread::sleep(Duration::from_millis(1));
        }
        assert!(events.iter().all(|event| event.outcome.is_ok()));
        for number in 0..20 {
            let path = temporary.path().join("state").join(session_name(torrent(number)));
            let session = Session::parse(&fs::read(path).unwrap(), torrent(number)).unwrap();
            assert_eq!(session.uploaded, 180 + u64::from(number));
        }
    }

    /// A damaged session keeps its name and gets a second one, once, so that a kill before the next save loses nothing
    /// that can be recovered from it.
    #[test]
    fn a_damaged_session_stays_until_it_is_replaced() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::take(temporary.path()).unwrap();
        let torrent = InfoHash([7; 20]);
        let stopped = Session {
            root: "/data".into(),
            stopped: true,
            lacks_metadata: true,
            ..Session::new(torrent)
        };
        let text = stopped.to_text().replace("    uploaded:", "    uploadex:");
        let path = temporary.path().join("state").join(session_name(torrent));
        fs::write(&path, &text).unwrap();
        for _ in 0..3 {
            let Ok(StateDone::Loaded(mut loaded)) = folder.load(torrent, true, false) else {
                panic!("not loaded");
            };
            assert!(loaded.session.is_none() && loaded.set_aside.is_some());
            loaded.repair(None);
            assert!(loaded.session.unwrap().stopped);
        }
        folder.save(&stopped, None).unwrap();
        let names = fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 2, "the session, and the damaged one");
        assert_eq!(fs::read_to_string(path.with_extension("ron.damaged")).unwrap(), text);
    }
}
