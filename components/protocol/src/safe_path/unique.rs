//! Unique paths for the files of one torrent.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::{MAX_COMPONENT_BYTES, cut_stem, split_extension};

/// Maximum length in bytes of an inserted number: a dot and the digits of a `u32`.
const MAX_NUMBER_BYTES: usize = 11;

/// Assigns each file of a torrent a path. No two paths are equal, even if case is ignored, and no path lies below a
/// file.
///
/// Work and memory are linear in the length of the claimed names, whatever the names are: paths are stored as 64-bit
/// hashes, consecutive files of one folder share its hash, and no number is tried twice for the same stem.
#[derive(Debug, Default)]
pub(crate) struct UniquePaths {
    names: Names,
    /// Folders of the last file, which the next file usually shares.
    open: Vec<Folder>,
    /// Path of the last open folder, with a trailing `/`.
    path: String,
}

impl UniquePaths {
    /// Claims the path of `components`, which are already safe, and at least one. If the path collides, the colliding
    /// component gets a number before its extension: `a.txt` becomes `a.1.txt`.
    pub(crate) fn claim<S: AsRef<str>>(&mut self, components: &[S]) -> Box<str> {
        let Some((file, folders)) = components.split_last() else {
            return Box::default();
        };
        self.enter(folders);
        let parent = self.open.last().map_or(Key::ROOT, |folder| folder.key);
        let (_, file) = self.names.claim(parent, file.as_ref(), Taken::File);
        let mut path = String::with_capacity(self.path.len() + file.len());
        path.push_str(&self.path);
        path.push_str(&file);
        path.into()
    }

    /// Returns the number of claimed folders.
    #[must_use]
    pub(crate) fn folder_count(&self) -> usize {
        self.names.folder_count
    }

    /// Opens a folder, keeping the ancestors that it shares with the last one.
    fn enter<S: AsRef<str>>(&mut self, folders: &[S]) {
        let wanted = folders.iter().map(AsRef::as_ref);
        let common = self
            .open
            .iter()
            .zip(wanted)
            .take_while(|(open, wanted)| open.wanted == *wanted);
        let common = common.count();
        self.open.truncate(common);
        self.path.truncate(self.open.last().map_or(0, |folder| folder.path_len));
        for folder in &folders[common..] {
            let parent = self.open.last().map_or(Key::ROOT, |folder| folder.key);
            let (key, name) = self.names.claim(parent, folder.as_ref(), Taken::Folder);
            self.path.push_str(&name);
            self.path.push('/');
            self.open.push(Folder {
                key,
                wanted: folder.as_ref().to_owned(),
                path_len: self.path.len(),
            });
        }
    }
}

/// A claimed folder.
#[derive(Debug)]
struct Folder {
    key: Key,
    /// Requested name.
    wanted: String,
    /// Length of its path in bytes, including the trailing `/`.
    path_len: usize,
}

/// Hash of a path as a case-insensitive file system compares it.
///
/// Equal paths have equal keys, so no path is assigned twice. Different paths with equal keys take 2^32 attempts to
/// find and only add an unnecessary number to one of them. The hash function is fixed: the same torrent always gets the
/// same paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key(u64);

impl Key {
    /// Key of the download folder.
    const ROOT: Self = Self(0);

    /// Key of the concatenated name `parts` in this folder.
    fn child(self, parts: &[&str]) -> Self {
        let mut hasher = SipHasher13::new_with_keys(self.0, 0);
        for part in parts {
            hasher.write(folded(part).as_bytes());
        }
        Self(hasher.finish())
    }
}

/// Case-folded `name`.
fn folded(name: &str) -> Cow<'_, str> {
    if !name.is_ascii() {
        Cow::Owned(name.to_lowercase())
    } else if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    File,
    Folder,
}

#[derive(Debug, Default)]
struct Names {
    /// Type of each claimed path.
    taken: BTreeMap<Key, Taken>,
    folder_count: usize,
    /// Next number to try for each stem and extension that collided.
    ///
    /// Names that become equal when they are cut share an entry, and so do files and folders. No number is tried twice,
    /// and a taken path fails at most two stems (`a.1.2` is `a.1` with number 2, and `a.2` with number 1), so the
    /// number of attempts is linear in the number of names.
    next_number: BTreeMap<Key, u32>,
    /// Number of the renamed folder for each path at which a file is in the way of a folder.
    instead: BTreeMap<Key, u32>,
}

impl Names {
    /// Claims `component` in the folder `parent`, or its first free numbered variant.
    fn claim<'c>(&mut self, parent: Key, component: &'c str, wanted: Taken) -> (Key, Cow<'c, str>) {
        let plain = parent.child(&[component]);
        if self.take(plain, wanted) {
            return (plain, Cow::Borrowed(component));
        }
        let numbered = Numbered::new(component);
        if wanted == Taken::Folder
            && let Some(&number) = self.instead.get(&plain)
        {
            let name = numbered.name(number);
            let key = parent.child(&[&name]);
            if self.take(key, wanted) {
                return (key, Cow::Owned(name));
            }
        }
        let family = parent.child(&[numbered.stem, "/", numbered.extension]);
        let mut number = self.next_number.get(&family).copied().unwrap_or(1);
        loop {
            let name = numbered.name(number);
            let key = parent.child(&[&name]);
            let is_taken = self.take(key, wanted);
            // `MetainfoLimits` allows fewer files than there are numbers.
            let next = number.saturating_add(1);
            if is_taken {
                self.next_number.insert(family, next);
                if wanted == Taken::Folder {
                    self.instead.insert(plain, number);
                }
                return (key, Cow::Owned(name));
            }
            number = next;
        }
    }

    /// Claims a path. Returns false if it is taken by something else; a folder may be claimed again.
    fn take(&mut self, key: Key, wanted: Taken) -> bool {
        match self.taken.entry(key) {
            Entry::Vacant(place) => {
                place.insert(wanted);
                self.folder_count += usize::from(wanted == Taken::Folder);
                true
            }
            Entry::Occupied(taken) => *taken.get() == Taken::Folder && wanted == Taken::Folder,
        }
    }
}

/// A name split where a number is inserted.
struct Numbered<'n> {
    /// Part before the number, cut so that any number fits.
    stem: &'n str,
    /// Part after the number.
    extension: &'n str,
}

impl<'n> Numbered<'n> {
    fn new(name: &'n str) -> Self {
        let (stem, extension) = split_extension(name);
        Self {
            stem: cut_stem(stem, MAX_COMPONENT_BYTES - MAX_NUMBER_BYTES - extension.len()),
            extension,
        }
    }

    fn name(&self, number: u32) -> String {
        format!("{}.{number}{}", self.stem, self.extension)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim_all(paths: &[&str]) -> Vec<String> {
        let mut unique = UniquePaths::default();
        let split = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        paths.iter().map(|path| unique.claim(&split(path)).into()).collect()
    }

    /// Fault 11: names that differ only in case stay two files.
    #[test]
    fn collisions_are_numbered() {
        assert_eq!(
            claim_all(&["a/Read.me", "a/README", "A/read.ME"]),
            ["a/Read.me", "a/README", "A/read.1.ME"]
        );
        assert_eq!(claim_all(&["\u{c9}", "\u{e9}"]), ["\u{c9}", "\u{e9}.1"]);
        assert_eq!(claim_all(&["x", "x", "X", "x.1"]), ["x", "x.1", "X.2", "x.1.1"]);
    }

    #[test]
    fn a_file_and_a_folder_of_one_name_stay_apart() {
        assert_eq!(claim_all(&["a", "a/b", "a/c"]), ["a", "a.1/b", "a.1/c"]);
        assert_eq!(claim_all(&["a/b", "a"]), ["a/b", "a.1"]);
    }

    /// A renamed folder keeps its name when more files take numbers later.
    #[test]
    fn a_folder_that_was_renamed_keeps_its_name() {
        assert_eq!(
            claim_all(&["a", "a/b", "x/y", "a", "a/c"]),
            ["a", "a.1/b", "x/y", "a.2", "a.1/c"]
        );
    }

    /// Names that become equal when they are cut share their numbers, so that each costs one attempt.
    #[test]
    fn names_that_are_cut_to_one_share_its_numbers() {
        let mut unique = UniquePaths::default();
        let name = |number: u32| format!("{}{number:05}", "x".repeat(250));
        for number in 0..20_000 {
            assert_eq!(&*unique.claim(&[name(number)]), name(number));
        }
        for number in 0..20_000 {
            let path = unique.claim(&[name(number)]);
            assert_eq!(&*path, format!("{}.{}", "x".repeat(244), number + 1));
        }
        assert_eq!(unique.names.next_number.len(), 1);
    }

    proptest! {
        #[test]
        fn claimed_paths_never_collide(paths in proptest::collection::vec("[aAbB.1]{1,3}(/[aAbB.1]{1,3}){0,2}", 1..20)) {
            let claimed = claim_all(&paths.iter().map(String::as_str).collect::<Vec<_>>());
            for (i, a) in claimed.iter().enumerate() {
                for b in &claimed[i + 1..] {
                    let (a, b) = (folded(a), folded(b));
                    prop_assert!(a != b, "{a} twice");
                    let nested = b.starts_with(&format!("{a}/")) || a.starts_with(&format!("{b}/"));
                    prop_assert!(!nested, "{a} and {b} nest");
                }
            }
        }
    }
}
