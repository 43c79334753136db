//! Ownership of files: which torrents use which file, so that no two of them write the same one.
//!
//! `FileRegistry` knows the files of every torrent that runs, has failed or is stopped: existing files by identity, and
//! all files by the nearest existing folder and the rest of the path. Stopped torrents are read from the state folder
//! once, before the first new torrent is decided on.

mod conflicts;
mod survey;
mod whole;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_platform::collections::{HashMap, HashSet};
use ecs_torrent_components::session::{FileId, NearestFolder};
use ecs_torrent_components::torrent::Torrent;
use ecs_torrent_engine::ports::disk::FolderIds;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::files::FileTable;
use ecs_torrent_protocol::hash::{InfoHash, sha1};

pub(crate) use self::conflicts::{Candidate, Holder, find_conflict};
pub(crate) use self::survey::{Survey, register_stopped};
pub(crate) use self::whole::whole_files;
use crate::AnnounceSet;

/// Keeps the registry of files.
pub struct OwnershipPlugin;

impl Plugin for OwnershipPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<FileRegistry>()
            .init_resource::<Survey>()
            .add_systems(
                Tick,
                survey::survey_sessions
                    .run_if(survey::may_continue)
                    .in_set(AnnounceSet::Ownership),
            );
    }
}

/// A file's name in the registry: a hash of its path or of its identity. If two files share a key by chance, a torrent
/// is refused with a suggestion; with a million files the odds are 1 in 30 million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileKey(u64);

impl FileKey {
    pub(crate) fn of_id(id: FileId) -> Self {
        let born = id.born_ns.unwrap_or_default();
        Self::hash([
            b"id".as_slice(),
            &id.device.to_le_bytes(),
            &id.inode.to_le_bytes(),
            &born.to_le_bytes(),
        ])
    }

    /// The key of a path below an existing folder.
    fn of_folder(id: FileId, rest: &str) -> Self {
        let born = id.born_ns.unwrap_or_default();
        Self::hash([
            b"folder".as_slice(),
            &id.device.to_le_bytes(),
            &id.inode.to_le_bytes(),
            &born.to_le_bytes(),
            rest.to_lowercase().as_bytes(),
        ])
    }

    fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let digest = sha1(parts);
        Self(digest[..8].iter().fold(0, |key, byte| key << 8 | u64::from(*byte)))
    }
}

/// Computes the keys of paths below one download folder.
///
/// A path is identified by its nearest existing folder and the rest of the path, independently of mount points and
/// links. Where no folder is known, as in sessions of earlier versions, the text of the path counts too.
#[derive(Debug)]
pub(crate) struct FolderKeys<'a> {
    /// Folded to lowercase: on some volumes a name in other case is the same file.
    root: String,
    /// The folders that the disk has found.
    folders: Option<&'a FolderIds>,
    /// The folder that an earlier opening found.
    saved: Option<&'a NearestFolder>,
}

impl<'a> FolderKeys<'a> {
    pub(crate) fn new(root: &Path) -> Self {
        let root = root.to_string_lossy().to_lowercase();
        Self {
            root: root.trim_end_matches('/').to_owned(),
            folders: None,
            saved: None,
        }
    }

    /// Uses the folders that the disk has found.
    pub(crate) fn with_folders(self, folders: Option<&'a FolderIds>) -> Self {
        Self { folders, ..self }
    }

    /// Uses the folder that a session names. Its device number may have changed since, so the text counts too.
    pub(crate) fn with_saved(self, saved: Option<&'a NearestFolder>) -> Self {
        Self { saved, ..self }
    }

    /// Returns the keys under which a torrent registers a path: that of the nearest existing folder, or the text.
    fn own(&self, path: &str) -> impl Iterator<Item = FileKey> {
        let saved = self
            .saved
            .map(|folder| FileKey::of_folder(folder.id, &join(&folder.rest, path)));
        let nearest = self.by_folder(path).next();
        let text = nearest.is_none().then(|| self.of_path(path));
        nearest.into_iter().chain(saved).chain(text)
    }

    /// Returns every key under which another torrent may have registered a path: when it did, some of the folders may
    /// not have existed.
    pub(crate) fn all(&self, path: &str) -> impl Iterator<Item = FileKey> {
        self.by_folder(path).chain(std::iter::once(self.of_path(path)))
    }

    /// Returns a path's key for each existing folder on it, nearest first.
    fn by_folder(&self, path: &str) -> impl Iterator<Item = FileKey> {
        self.folders.into_iter().flat_map(move |folders| {
            let below = path.rmatch_indices('/').filter_map(move |(end, _)| {
                let id = folders.below.get(&path[..end])?;
                Some(FileKey::of_folder(*id, &path[end + 1..]))
            });
            let above = folders.above.iter();
            below.chain(above.map(move |folder| FileKey::of_folder(folder.id, &join(&folder.rest, path))))
        })
    }

    pub(crate) fn of_path(&self, path: &str) -> FileKey {
        let path = path.to_lowercase();
        FileKey::hash([b"path".as_slice(), self.root.as_bytes(), b"/", path.as_bytes()])
    }

    /// Returns all keys of a torrent's files, each with the file's index.
    pub(crate) fn of_table(&self, files: &FileTable, id: impl Fn(usize) -> Option<FileId>) -> Vec<(FileKey, u32)> {
        let stored = files.files().iter().enumerate().filter(|(_, file)| file.is_stored());
        let keys = stored.flat_map(|(index, file)| {
            let id = id(index).map(FileKey::of_id);
            self.own(&file.path).chain(id).map(move |key| (key, index as u32))
        });
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        keys
    }
}

/// Appends a path to another one, which may be empty.
fn join(folder: &str, path: &str) -> String {
    match folder.is_empty() {
        true => path.to_owned(),
        false => format!("{folder}/{path}"),
    }
}

/// The files of all torrents, running or stopped.
#[derive(Resource, Debug, Default)]
pub(crate) struct FileRegistry {
    owners: Vec<Option<Owner>>,
    free: Vec<u32>,
    by_hash: HashMap<InfoHash, u32>,
    /// One torrent for each file; further users of a file, which are few, are in `more`.
    first: HashMap<FileKey, u32>,
    more: HashMap<FileKey, Vec<u32>>,
    /// Names of stopped torrents whose files are not known, because their metadata is not.
    names: HashMap<InfoHash, Arc<str>>,
    /// Stopped torrents that are private.
    private: HashSet<InfoHash>,
}

/// A torrent that uses files.
#[derive(Debug)]
pub(crate) struct Owner {
    /// The torrent.
    pub(crate) torrent: InfoHash,
    /// The torrent's name.
    pub(crate) name: Arc<str>,
    /// Keys with file indexes, sorted.
    keys: Box<[(FileKey, u32)]>,
    /// The files that a stopped torrent held completely.
    whole: Option<Box<Bitfield>>,
}

impl Owner {
    /// Returns the index of the file that has this key.
    pub(crate) fn file_of(&self, key: FileKey) -> Option<usize> {
        let position = self.keys.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(self.keys[position].1 as usize)
    }

    /// Whether a stopped torrent held the file completely.
    pub(crate) fn held(&self, key: FileKey) -> bool {
        self.file_of(key).is_some_and(|file| {
            let whole = self.whole.as_ref();
            whole.is_some_and(|whole| whole.contains(file as u32))
        })
    }
}

impl FileRegistry {
    /// Sets the files that a torrent uses, in place of the previous entry.
    pub(crate) fn set(&mut self, torrent: InfoHash, name: &Arc<str>, keys: Vec<(FileKey, u32)>) {
        self.remove_files(torrent);
        let number = self.free.pop().unwrap_or_else(|| {
            self.owners.push(None);
            self.owners.len() as u32 - 1
        });
        for (key, _) in &keys {
            let first = *self.first.entry(*key).or_insert(number);
            if first != number {
                let more = self.more.entry(*key).or_default();
                if !more.contains(&number) {
                    more.push(number);
                }
            }
        }
        self.by_hash.insert(torrent, number);
        self.owners[number as usize] = Some(Owner {
            torrent,
            name: name.clone(),
            keys: keys.into(),
            whole: None,
        });
    }

    /// Adds files that a torrent will use too.
    pub(crate) fn add(&mut self, torrent: InfoHash, name: &Arc<str>, keys: Vec<(FileKey, u32)>) {
        let number = self.by_hash.get(&torrent).copied();
        let owner = number.and_then(|number| self.owners[number as usize].as_ref());
        let known = owner.map(|owner| owner.keys.to_vec()).unwrap_or_default();
        let mut keys = [known, keys].concat();
        keys.sort_unstable();
        keys.dedup();
        self.set(torrent, name, keys);
    }

    /// Adds the files of a torrent in a folder to which they will go.
    pub(crate) fn add_folder(&mut self, torrent: &Torrent, root: &Path, files: &FileTable) {
        let keys = FolderKeys::new(root).of_table(files, |_| None);
        self.add(torrent.id(), &torrent.name, keys);
    }

    /// Marks a torrent as stopped. It holds the files in `whole` completely, and keeps the others too.
    pub(crate) fn stop(&mut self, torrent: InfoHash, whole: Bitfield) {
        let number = self.by_hash.get(&torrent);
        if let Some(owner) = number.and_then(|number| self.owners[*number as usize].as_mut()) {
            owner.whole = (whole.count() > 0).then(|| Box::new(whole));
        }
    }

    /// Records the name of a stopped torrent, unless its files are known.
    pub(crate) fn set_name(&mut self, torrent: InfoHash, name: &Arc<str>) {
        if !self.contains(torrent) {
            self.names.insert(torrent, name.clone());
        }
    }

    /// Records that a stopped torrent is private.
    pub(crate) fn set_private(&mut self, torrent: InfoHash) {
        self.private.insert(torrent);
    }

    /// Whether a stopped torrent is private.
    pub(crate) fn is_private(&self, torrent: InfoHash) -> bool {
        self.private.contains(&torrent)
    }

    /// Forgets a torrent.
    pub(crate) fn remove(&mut self, torrent: InfoHash) {
        self.private.remove(&torrent);
        self.remove_files(torrent);
    }

    /// Forgets the files of a torrent, and the name that stands for them.
    fn remove_files(&mut self, torrent: InfoHash) {
        self.names.remove(&torrent);
        let Some(number) = self.by_hash.remove(&torrent) else {
            return;
        };
        self.free.push(number);
        let Some(owner) = self.owners[number as usize].take() else {
            return;
        };
        for (key, _) in owner.keys {
            let more = self.more.get_mut(&key);
            let next = more.and_then(|more| {
                more.retain(|other| *other != number);
                more.last().copied()
            });
            if self.first.get(&key) == Some(&number) {
                match next {
                    Some(next) => drop(self.first.insert(key, next)),
                    None => drop(self.first.remove(&key)),
                }
                if let (Some(next), Some(more)) = (next, self.more.get_mut(&key)) {
                    more.retain(|other| *other != next);
                }
            }
            if self.more.get(&key).is_some_and(Vec::is_empty) {
                self.more.remove(&key);
            }
        }
    }

    /// Returns the name of a torrent.
    pub(crate) fn name_of(&self, torrent: InfoHash) -> Option<&Arc<str>> {
        match self.by_hash.get(&torrent) {
            Some(number) => Some(&self.owners[*number as usize].as_ref()?.name),
            None => self.names.get(&torrent),
        }
    }

    /// Whether the registry knows a torrent's files.
    pub(crate) fn contains(&self, torrent: InfoHash) -> bool {
        self.by_hash.contains_key(&torrent)
    }

    /// Returns the torrents that use a file, except `torrent`.
    pub(crate) fn others(&self, key: FileKey, torrent: InfoHash) -> impl Iterator<Item = &Owner> {
        let first = self.first.get(&key).into_iter();
        let numbers = first.chain(self.more.get(&key).into_iter().flatten());
        let owners = numbers.filter_map(|number| self.owners[*number as usize].as_ref());
        owners.filter(move |owner| owner.torrent != torrent)
    }

    /// Returns another torrent that uses one of a torrent's files.
    pub(crate) fn other_user(&self, torrent: InfoHash, file: usize) -> Option<&Owner> {
        let owner = self.owners[*self.by_hash.get(&torrent)? as usize].as_ref()?;
        let keys = owner.keys.iter().filter(|(_, index)| *index as usize == file);
        keys.flat_map(|(key, _)| self.others(*key, torrent)).next()
    }

    /// Returns the files of a torrent that another torrent uses too.
    pub(crate) fn shared_files(&self, torrent: InfoHash) -> BTreeSet<usize> {
        let number = self.by_hash.get(&torrent);
        let owner = number.and_then(|number| self.owners[*number as usize].as_ref());
        let keys = owner.into_iter().flat_map(|owner| owner.keys.iter());
        let shared = keys.filter(|(key, _)| self.more.contains_key(key));
        shared.map(|(_, index)| *index as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::bitfield::Bitfield;
    use ecs_torrent_protocol::files::FileEntry;
    use ecs_torrent_protocol::geometry::Geometry;

    use super::*;

    #[test]
    fn files_that_differ_have_keys_that_differ() {
        let keys = (0..1000).map(|inode| FileKey::of_id(id_of(1, inode)));
        let keys: BTreeSet<FileKey> = keys.collect();
        assert_eq!(keys.len(), 1000);
        assert!(!keys.contains(&FileKey::of_id(id_of(2, 0))));
    }

    const A: InfoHash = InfoHash([1; 20]);
    const B: InfoHash = InfoHash([2; 20]);
    const C: InfoHash = InfoHash([3; 20]);

    fn id_of(device: u64, inode: u64) -> FileId {
        FileId {
            device,
            inode,
            born_ns: None,
        }
    }

    fn table(paths: &[&str]) -> FileTable {
        let entry = |(offset, path): (u64, &&str)| FileEntry {
            path: (**path).into(),
            len: 1,
            offset,
            attributes: Default::default(),
        };
        FileTable::new((0..).zip(paths).map(entry).collect())
    }

    fn set(registry: &mut FileRegistry, torrent: InfoHash, root: &str, paths: &[&str], ids: &[Option<FileId>]) {
        let id = |index: usize| ids.get(index).copied().flatten();
        let keys = FolderKeys::new(Path::new(root)).of_table(&table(paths), id);
        registry.set(torrent, &format!("{torrent}").into(), keys);
    }

    fn users(registry: &FileRegistry, root: &str, path: &str) -> Vec<InfoHash> {
        let key = FolderKeys::new(Path::new(root)).of_path(path);
        let others = registry.others(key, InfoHash([0; 20]));
        others.map(|owner| owner.torrent).collect()
    }

    #[test]
    fn the_same_file_is_found_by_any_root_and_case() {
        let mut registry = FileRegistry::default();
        set(&mut registry, A, "/data", &["sub/x.bin"], &[]);
        assert_eq!(users(&registry, "/data/sub", "x.bin"), [A]);
        assert_eq!(users(&registry, "/Data/", "sub/X.bin"), [A]);
        assert_eq!(users(&registry, "/data", "x.bin"), []);
    }

    fn folders(above: &[(u64, &str)], below: &[(u64, &str)]) -> FolderIds {
        let nearest = |(inode, rest): &(u64, &str)| NearestFolder {
            id: id_of(1, *inode),
            rest: (*rest).into(),
        };
        FolderIds {
            above: above.iter().map(nearest).collect(),
            below: below
                .iter()
                .map(|(inode, path)| ((*path).into(), id_of(1, *inode)))
                .collect(),
        }
    }

    #[test]
    fn the_same_file_is_found_by_any_existing_folder() {
        let mut registry = FileRegistry::default();
        // Of the path /mnt/data/sub/x, /mnt/data exists.
        let known = folders(&[(3, ""), (2, "data"), (1, "mnt/data")], &[]);
        let keys = FolderKeys::new(Path::new("/mnt/data")).with_folders(Some(&known));
        registry.set(A, &"a".into(), keys.of_table(&table(&["sub/x"]), |_| None));
        let is_found = |root: &str, known: &FolderIds, path: &str| {
            let keys = FolderKeys::new(Path::new(root)).with_folders(Some(known));
            keys.all(path).any(|key| registry.others(key, B).next().is_some())
        };
        assert!(is_found("/bind", &folders(&[(3, ""), (1, "bind")], &[]), "sub/X"));
        let later = folders(&[(3, ""), (2, "data")], &[(4, "sub")]);
        assert!(is_found("/bind", &later, "sub/x"), "the folder exists now");
        assert!(is_found("/mnt/data/sub", &folders(&[(4, ""), (3, "sub")], &[]), "x"));
        assert!(!is_found("/bind", &folders(&[(3, ""), (1, "bind")], &[]), "x"));
        let other_volume = folders(&[(9, ""), (8, "data")], &[]);
        assert!(
            !is_found("/mnt/data", &other_volume, "sub/x"),
            "another folder by the same name"
        );
    }

    #[test]
    fn the_same_file_is_found_by_a_saved_folder_and_by_its_path() {
        let mut registry = FileRegistry::default();
        let known = folders(&[(3, "")], &[]);
        let keys = FolderKeys::new(Path::new("/mnt")).with_saved(known.above.first());
        registry.set(A, &"a".into(), keys.of_table(&table(&["x"]), |_| None));
        assert_eq!(users(&registry, "/mnt", "x"), [A]);
        let keys = FolderKeys::new(Path::new("/bind")).with_folders(Some(&known));
        let mut found = keys.all("x").flat_map(|key| registry.others(key, B));
        assert!(found.next().is_some());
    }

    #[test]
    fn the_same_file_is_found_by_its_identity() {
        let mut registry = FileRegistry::default();
        let id = FileId {
            device: 1,
            inode: 2,
            born_ns: None,
        };
        set(&mut registry, A, "/data", &["a", "b"], &[None, Some(id)]);
        let found: Vec<_> = registry.others(FileKey::of_id(id), B).collect();
        assert_eq!((found.len(), found[0].file_of(FileKey::of_id(id))), (1, Some(1)));
        assert_eq!(registry.others(FileKey::of_id(id), A).count(), 0);
    }

    #[test]
    fn users_come_and_go_in_any_order() {
        for order in [[A, B, C], [C, A, B], [B, C, A]] {
            let mut registry = FileRegistry::default();
            for torrent in [A, B, C] {
                set(&mut registry, torrent, "/", &["x", "own"], &[]);
                set(&mut registry, torrent, "/", &["x"], &[]);
            }
            assert_eq!(users(&registry, "/", "own"), []);
            assert_eq!(registry.shared_files(A), BTreeSet::from([0]));
            for (gone, torrent) in (1..).zip(order) {
                registry.remove(torrent);
                let mut left: Vec<_> = order[gone..].to_vec();
                left.sort();
                let mut found = users(&registry, "/", "x");
                found.sort();
                assert_eq!(found, left);
            }
            assert!(registry.first.is_empty() && registry.more.is_empty() && registry.by_hash.is_empty());
            set(&mut registry, A, "/", &["x"], &[]);
            assert_eq!(registry.owners.len(), 3, "places are used again");
            assert_eq!(registry.shared_files(A), BTreeSet::new());
        }
    }

    #[test]
    fn a_stopped_torrent_holds_what_it_had() {
        let mut registry = FileRegistry::default();
        set(&mut registry, A, "/", &["x", "y"], &[]);
        let geometry = Geometry::new(2, 1).unwrap();
        let mut have = Bitfield::new(2);
        have.insert(1);
        registry.stop(A, whole_files(&table(&["x", "y"]), &geometry, &have));
        let keys = FolderKeys::new(Path::new("/"));
        let holds = |path: &str| {
            let key = keys.of_path(path);
            registry.others(key, B).next().unwrap().held(key)
        };
        assert!(!holds("x") && holds("y"));
    }

    #[test]
    fn torrents_are_known_by_name() {
        let mut registry = FileRegistry::default();
        set(&mut registry, A, "/downloads", &["a"], &[]);
        assert_eq!(registry.name_of(A).map(ToString::to_string), Some(A.to_string()));
        assert!(registry.contains(A) && !registry.contains(B));
        assert_eq!(registry.name_of(B), None);

        registry.set_name(A, &"other".into());
        assert_eq!(registry.name_of(A).map(ToString::to_string), Some(A.to_string()));
        registry.set_name(B, &"b".into());
        assert_eq!(registry.name_of(B).map(|name| &**name), Some("b"));
        assert!(!registry.contains(B), "it claims no files");
        set(&mut registry, B, "/downloads", &["b"], &[]);
        assert_eq!(registry.name_of(B).map(ToString::to_string), Some(B.to_string()));
        registry.remove(B);
        assert_eq!(registry.name_of(B), None);
        registry.set_name(B, &"b".into());
        registry.remove(B);
        assert_eq!(registry.name_of(B), None);
    }

    /// A folder below one torrent's download folder may be another one's download folder.
    #[test]
    fn a_file_has_the_same_key_from_either_side_of_a_folder() {
        let folder = id_of(1, 7);
        let below = FolderIds {
            below: [("sub".to_owned(), folder)].into(),
            ..FolderIds::default()
        };
        let above = FolderIds {
            above: Arc::new([NearestFolder {
                id: folder,
                rest: String::new(),
            }]),
            ..FolderIds::default()
        };
        let first = FolderKeys::new(Path::new("/d")).with_folders(Some(&below));
        let second = FolderKeys::new(Path::new("/d/sub")).with_folders(Some(&above));
        let keys: Vec<FileKey> = second.own("a/b").collect();
        assert!(first.own("sub/a/b").eq(keys.iter().copied()));
    }
}
