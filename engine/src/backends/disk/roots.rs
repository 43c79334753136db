//! Download folders: each is resolved once, held open, and distinguished from another folder in its place.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bevy_platform::collections::HashMap;
use ecs_torrent_components::session::{FileId, NearestFolder};
use rustix::fs::CWD;

use super::protected::Protected;
use super::volume;
use crate::backends::beneath::{self, Status};
use crate::backends::nearest::nearest_existing;
use crate::ports::disk::{Refusal, Volume};

/// Maximum number of download folders held open at a time: each costs a descriptor. The others are opened when needed,
/// and their identity is checked.
const MAX_HELD: usize = 8;

/// The download folders of all torrents.
#[derive(Default)]
pub(super) struct Roots {
    protected: Protected,
    /// The folders in use, by the paths that users gave.
    known: Mutex<HashMap<PathBuf, Weak<Root>>>,
    /// The folders held open, the one opened first at the front.
    held: Mutex<VecDeque<Weak<Root>>>,
    /// Folders that stay known while no torrent uses them.
    pinned: Mutex<Vec<Arc<Root>>>,
}

/// A download folder, shared by all torrents that use it, for as long as at least one does.
pub(super) struct Root {
    given: PathBuf,
    state: Mutex<State>,
    /// Whether the folder is remote, so that modification times may change without a write.
    is_remote: AtomicBool,
}

#[derive(Default, Clone)]
struct State {
    /// The path without links, as first resolved.
    path: Option<Arc<Path>>,
    /// The folder's identity, once it exists.
    id: Option<FileId>,
    handle: Option<Arc<OwnedFd>>,
    /// The folders above, as last found: the torrents of a folder share the list.
    above: Option<Arc<[NearestFolder]>>,
    /// The folder's volume, as last found.
    volume: Option<Arc<Volume>>,
}

/// The result of a check of a download folder.
pub(super) enum Found {
    /// The same folder as before.
    Same(Arc<OwnedFd>),
    /// Not opened before, gone, or possibly on another volume.
    New,
}

impl Roots {
    pub(super) fn new(protected: Protected) -> Self {
        Self {
            protected,
            ..Self::default()
        }
    }

    pub(super) fn protected(&self) -> &Protected {
        &self.protected
    }

    /// Returns the folder for a path that a user gave. Opens nothing yet.
    pub(super) fn get(&self, given: &Path) -> Arc<Root> {
        let given = std::path::absolute(given).unwrap_or_else(|_| given.to_owned());
        let mut known = lock(&self.known);
        if let Some(root) = known.get(&given).and_then(Weak::upgrade) {
            return root;
        }
        // The map stays below twice the number of folders in use.
        if known.len() == known.capacity() {
            known.retain(|_, root| root.strong_count() > 0);
        }
        let root = Arc::new(Root {
            given: given.clone(),
            state: Mutex::default(),
            is_remote: AtomicBool::new(false),
        });
        known.insert(given, Arc::downgrade(&root));
        root
    }

    /// Remembers which folder a path leads to, if any, without holding it open.
    pub(super) fn pin(&self, given: &Path) {
        let root = self.get(given);
        // A missing or unusable folder fails for the first torrent that uses it.
        if root.reopen(self).is_ok() {
            root.let_go();
        }
        lock(&self.pinned).push(root);
    }

    /// Checks that a path below a pinned folder still leads through that folder.
    fn check_pinned(&self, given: &Path) -> io::Result<()> {
        let pinned = lock(&self.pinned).clone();
        let above = pinned
            .iter()
            .filter(|root| given != root.given && given.starts_with(&root.given));
        for root in above {
            root.look()?;
        }
        Ok(())
    }

    fn hold(&self, root: &Arc<Root>) {
        let mut held = lock(&self.held);
        held.retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(root)));
        held.push_back(Arc::downgrade(root));
        let displaced = (held.len() > MAX_HELD).then(|| held.pop_front()).flatten();
        drop(held);
        if let Some(displaced) = displaced.and_then(|root| root.upgrade()) {
            displaced.let_go();
        }
    }
}

impl Root {
    /// Returns the path, without links once the folder has been resolved.
    pub(super) fn path(&self) -> Arc<Path> {
        let resolved = lock(&self.state).path.clone();
        resolved.unwrap_or_else(|| self.given.as_path().into())
    }

    /// Returns the folder, if it exists, and every folder above it, nearest first, each with the path from it to the
    /// folder.
    pub(super) fn folders_above(&self) -> Arc<[NearestFolder]> {
        let path = self.path();
        let folders = path.ancestors().filter_map(|folder| {
            let status = Status::at(CWD.as_fd(), folder).ok().filter(Status::is_folder)?;
            let rest = path.strip_prefix(folder).ok()?;
            Some(NearestFolder {
                id: status.id,
                rest: rest.to_string_lossy().into_owned(),
            })
        });
        let folders: Vec<NearestFolder> = folders.collect();
        let mut state = lock(&self.state);
        let known = state.above.take().filter(|known| **known == *folders);
        state.above.insert(known.unwrap_or_else(|| folders.into())).clone()
    }

    /// Returns a volume that the torrents of the folder share, while it is the same one.
    pub(super) fn share_volume(&self, found: Volume) -> Arc<Volume> {
        let mut state = lock(&self.state);
        let known = state.volume.take().filter(|known| **known == found);
        state.volume.insert(known.unwrap_or_else(|| Arc::new(found))).clone()
    }

    /// Checks by name that the folder is still the same. Fails if a link or another folder of the same volume has taken
    /// its place.
    pub(super) fn look(&self) -> io::Result<Found> {
        let state = lock(&self.state).clone();
        let (Some(path), Some(id)) = (state.path, state.id) else {
            return Ok(Found::New);
        };
        let status = match Status::at(CWD.as_fd(), &*path) {
            Ok(status) => status,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::New),
            Err(error) => return Err(error),
        };
        match (state.handle, status.id) {
            _ if !status.is_folder() => Err(self.swapped()),
            (Some(handle), now) if now == id => Ok(Found::Same(handle)),
            (None, now) if now == id => Ok(Found::New),
            (_, now) if now.device == id.device => Err(self.swapped()),
            _ => Ok(Found::New),
        }
    }

    /// Opens the folder and remembers its identity. The caller has checked that its volume is the right one.
    pub(super) fn reopen(self: &Arc<Self>, roots: &Roots) -> io::Result<Arc<OwnedFd>> {
        let path = self.resolve(roots)?;
        let folder = beneath::open_folder_at(&path)?;
        let id = Status::of(&folder)?.id;
        let before = lock(&self.state).id;
        if before.is_some_and(|before| before != id && before.device == id.device) {
            return Err(self.swapped());
        }
        self.remember(roots, &path, folder, id)
    }

    /// Like [`Root::reopen`], but creates the folder if it is missing.
    pub(super) fn create(self: &Arc<Self>, roots: &Roots) -> io::Result<Arc<OwnedFd>> {
        match self.reopen(roots) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let path = self.resolve(roots)?;
        if roots.protected.holds(nearest_existing(&path)?.0) {
            return Err(Refusal::Forbidden.into());
        }
        let folder = beneath::create_folder_at(&path)?;
        let id = Status::of(&folder)?.id;
        self.remember(roots, &path, folder, id)
    }

    /// Returns the path without links, resolved once.
    fn resolve(&self, roots: &Roots) -> io::Result<Arc<Path>> {
        if let Some(path) = lock(&self.state).path.clone() {
            return Ok(path);
        }
        roots.check_pinned(&self.given)?;
        let path: Arc<Path> = resolve(&self.given)?.into();
        Ok(lock(&self.state).path.get_or_insert(path).clone())
    }

    fn remember(self: &Arc<Self>, roots: &Roots, path: &Path, folder: OwnedFd, id: FileId) -> io::Result<Arc<OwnedFd>> {
        if roots.protected.contains(id) || roots.protected.holds(path) {
            return Err(Refusal::Forbidden.into());
        }
        self.is_remote.store(volume::is_remote(&folder), Ordering::Relaxed);
        let folder = Arc::new(folder);
        let mut state = lock(&self.state);
        state.id = Some(id);
        state.handle = Some(folder.clone());
        drop(state);
        roots.hold(self);
        Ok(folder)
    }

    /// Whether the folder lies on another machine, or is served by another program.
    pub(super) fn is_remote(&self) -> bool {
        self.is_remote.load(Ordering::Relaxed)
    }

    /// Closes the folder's handle, so that its volume can be unmounted.
    pub(super) fn let_go(&self) {
        lock(&self.state).handle = None;
    }

    fn swapped(&self) -> io::Error {
        self.let_go();
        io::Error::other("a link or another folder has taken its place since it was opened")
    }
}

/// Resolves the links of a path. Components that do not exist yet are appended by name.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let existing = nearest_existing(path)?.0;
    let mut resolved = existing.canonicalize()?;
    for component in path.strip_prefix(existing).unwrap_or(path).components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => drop(resolved.pop()),
            _ => {}
        }
    }
    Ok(resolved)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
