//! Names that users give to the files of a torrent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ecs_torrent_protocol::files::{FileEntry, FileTable};
use ecs_torrent_protocol::metainfo::Metainfo;
use ecs_torrent_protocol::safe_path::check_name;
use serde::{Deserialize, Serialize};

/// New names of a torrent's files; names that are not given stay.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NewNames {
    /// The name of the torrent: of its folder, or of its only file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Paths of files below the torrent's folder, by index, with `/` between names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<u32, String>,
}

/// The reason why files cannot have new names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} {reason}")]
pub struct NameError {
    /// The name or the path.
    pub name: String,
    /// The reason, to be read after the name.
    pub reason: String,
}

impl NameError {
    fn new(name: &str, reason: impl Into<String>) -> Self {
        let (name, reason) = (name.chars().take(MAX_SHOWN).collect(), reason.into());
        Self { name, reason }
    }
}

/// Maximum number of characters of a bad name in its error.
const MAX_SHOWN: usize = 200;

/// Maximum length of a path below the torrent's folder, in bytes. The names of folders above it fit in the rest of what
/// operating systems take.
const MAX_PATH_BYTES: usize = 3000;

impl NewNames {
    /// Whether no name is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.name.is_none() && self.files.is_empty()
    }

    /// Checks each name by itself: none is hidden, reserved or too long, and none leaves the torrent's folder.
    ///
    /// # Errors
    /// Returns the first bad name.
    pub fn check(&self) -> Result<(), NameError> {
        let parts = self.files.values().flat_map(|path| path.split('/'));
        for name in self.name.as_deref().into_iter().chain(parts) {
            check_name(name)
                .map_err(|reason| NameError::new(name, format!("cannot be the name of a file: {reason}")))?;
        }
        match self.files.values().find(|path| path.len() > MAX_PATH_BYTES) {
            Some(path) => Err(NameError::new(path, "is too long for a path")),
            None => Ok(()),
        }
    }

    /// Checks the names for the files of a torrent, and removes those that the files have already. The only file of a
    /// torrent without a folder gets the name of the torrent.
    ///
    /// # Errors
    /// Returns the first name that cannot be used.
    pub fn checked(mut self, files: &FileTable) -> Result<Self, NameError> {
        self.check()?;
        let entries = files.files();
        if let [only] = entries
            && !only.path.contains('/')
            && let Some(path) = self.files.remove(&0)
        {
            if path.contains('/') || self.name.as_ref().is_some_and(|name| *name != path) {
                return Err(NameError::new(
                    &path,
                    "cannot be the path of the torrent's only file, which has no folder",
                ));
            }
            self.name = Some(path);
        }
        for (index, path) in &self.files {
            if !entries.get(*index as usize).is_some_and(FileEntry::is_stored) {
                return Err(NameError::new(
                    path,
                    format!("is the name of file {index}, which does not exist"),
                ));
            }
        }
        let before = Self::of(files, &self);
        self.name.take_if(|name| before.name.as_ref() == Some(name));
        self.files.retain(|index, path| before.files.get(index) != Some(path));
        check_collisions(files, &self.table(files))?;
        Ok(self)
    }

    /// Returns the present names of what `other` names.
    #[must_use]
    pub fn of(files: &FileTable, other: &Self) -> Self {
        let entries = files.files();
        let path = |index: &u32| {
            let (_, below) = entries.get(*index as usize)?.path.split_once('/')?;
            Some((*index, below.to_owned()))
        };
        Self {
            name: other.name.as_ref().and_then(|_| Some(top(entries.first()?).to_owned())),
            files: other.files.keys().filter_map(path).collect(),
        }
    }

    /// Returns the files with the new names.
    #[must_use]
    pub fn table(&self, files: &FileTable) -> FileTable {
        let rename = |(index, file): (u32, &FileEntry)| {
            let top = self.name.as_deref().unwrap_or(top(file));
            let below = file.path.split_once('/').map(|(_, below)| below);
            let path = match (self.files.get(&index).map(String::as_str), below) {
                (Some(below), Some(_)) | (None, Some(below)) => format!("{top}/{below}"),
                (_, None) => top.to_owned(),
            };
            FileEntry {
                path: path.into(),
                ..file.clone()
            }
        };
        FileTable::new((0..).zip(files.files()).map(rename).collect())
    }

    /// Returns the torrent with the new names; its bytes and hashes stay.
    #[must_use]
    pub fn apply(&self, metainfo: &Arc<Metainfo>) -> Arc<Metainfo> {
        if self.is_empty() {
            return metainfo.clone();
        }
        let mut metainfo = Metainfo::clone(metainfo);
        metainfo.info.files = self.table(&metainfo.info.files);
        if let Some(name) = &self.name {
            metainfo.info.name.clone_from(name);
        }
        Arc::new(metainfo)
    }
}

/// Returns the torrent's folder, or its only file.
fn top(file: &FileEntry) -> &str {
    file.path.split('/').next().unwrap_or_default()
}

/// Returns the folders of a path, the outermost first.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// Checks that no file would take the place of another one or of a folder. A new name must not be an old one either,
/// not even of the same file with other case: files get their new names before the old ones are deleted.
fn check_collisions(before: &FileTable, after: &FileTable) -> Result<(), NameError> {
    let stored = |table: &FileTable| {
        let entries = table.files().iter().filter(|file| file.is_stored());
        entries.map(|file| file.path.to_lowercase()).collect::<Vec<_>>()
    };
    let (old, new) = (stored(before), stored(after));
    let old_files: BTreeSet<&str> = old.iter().map(String::as_str).collect();
    let old_folders: BTreeSet<&str> = old.iter().flat_map(|path| folders(path)).collect();
    let new_folders: BTreeSet<&str> = new.iter().flat_map(|path| folders(path)).collect();
    let mut new_files = BTreeSet::new();
    let entries = before
        .files()
        .iter()
        .zip(after.files())
        .filter(|(file, _)| file.is_stored());
    for ((from, to), path) in entries.zip(&new) {
        let is_taken = !new_files.insert(&**path) || new_folders.contains(&**path);
        let is_old = from.path != to.path
            && (old_files.contains(&**path)
                || old_folders.contains(&**path)
                || folders(path).any(|folder| old_files.contains(folder)));
        if is_taken || is_old {
            return Err(NameError::new(
                &to.path,
                "is the name of another file or folder of the torrent, or was it before",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(paths: &[&str]) -> FileTable {
        let entry = |(number, path): (u64, &&str)| FileEntry {
            path: (*path).into(),
            len: 1,
            offset: number,
            attributes: Default::default(),
        };
        FileTable::new((0..).zip(paths).map(entry).collect())
    }

    fn names(name: Option<&str>, files: &[(u32, &str)]) -> NewNames {
        NewNames {
            name: name.map(str::to_owned),
            files: files.iter().map(|(index, path)| (*index, (*path).to_owned())).collect(),
        }
    }

    fn paths(table: &FileTable) -> Vec<String> {
        table.files().iter().map(|file| file.path.to_string()).collect()
    }

    #[test]
    fn names_apply_to_the_folder_and_to_files() {
        let files = table(&["a/x", "a/b/y", "a/z"]);
        let new = names(Some("n"), &[(0, "c/x"), (2, "z")]).checked(&files).unwrap();
        assert_eq!(new, names(Some("n"), &[(0, "c/x")]), "one file keeps its name");
        assert_eq!(paths(&new.table(&files)), ["n/c/x", "n/b/y", "n/z"]);
        let old = NewNames::of(&files, &new);
        assert_eq!(old, names(Some("a"), &[(0, "x")]));
        assert_eq!(paths(&old.table(&new.table(&files))), paths(&files));
        let single = table(&["a"]);
        let new = names(None, &[(0, "b")]).checked(&single).unwrap();
        assert_eq!(paths(&new.table(&single)), ["b"]);
    }

    #[test]
    fn names_that_collide_or_lead_elsewhere_are_refused() {
        let files = table(&["a/x", "a/b/y", "a/z"]);
        for bad in [
            names(Some(".hidden"), &[]),
            names(Some("a/b"), &[]),
            names(Some(""), &[]),
            names(None, &[(0, "../x")]),
            names(None, &[(0, "/x")]),
            names(None, &[(0, "b//x")]),
            names(None, &[(0, "b/")]),
            names(None, &[(0, "b")]),
            names(None, &[(0, "B/Y")]),
            names(None, &[(0, "z/x")]),
            names(None, &[(0, "n"), (2, "N")]),
            names(None, &[(0, "n"), (2, "n/z")]),
            // Exchanged names, and a name that differs in case only.
            names(None, &[(0, "z"), (2, "x")]),
            names(None, &[(0, "X")]),
            names(Some("A"), &[]),
            names(None, &[(1, "b"), (0, "w")]),
            names(None, &[(0, "x/x")]),
            names(None, &[(3, "w")]),
        ] {
            assert!(bad.clone().checked(&files).is_err(), "{bad:?}");
        }
        for bad in [names(None, &[(0, "b/c")]), names(Some("c"), &[(0, "b")])] {
            assert!(bad.clone().checked(&table(&["a"])).is_err(), "{bad:?}");
        }
    }
}
