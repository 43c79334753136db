//! Paths from strangers, made safe: what a torrent calls its files never leaves the download folder, never depends
//! on the machine, and never makes two files one.
//!
//! The same bytes always give the same path, so that a torrent that is added again finds its data.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::{DefaultHasher, Hasher};

/// Most bytes of one path component, what common file systems allow.
pub const MAX_COMPONENT_BYTES: usize = 255;

/// Most components of one path.
pub const MAX_DEPTH: usize = 100;

/// Longest extension that is kept when a name is cut, dot included.
const MAX_EXTENSION_BYTES: usize = 32;

/// Makes one component of a path safe, or nothing of it: `.`, `..` and the empty name have no safe form and are
/// left out of the path.
///
/// Separators, control and bidirectional-override characters and invalid UTF-8 become `_`; a name longer than
/// [`MAX_COMPONENT_BYTES`] is cut before its extension.
#[must_use]
pub fn safe_component(raw: &[u8]) -> Option<Cow<'_, str>> {
    if matches!(raw, b"" | b"." | b"..") {
        return None;
    }
    let name = match std::str::from_utf8(raw) {
        Ok(name) if raw.iter().all(is_plain) || !name.contains(is_unsafe) => Cow::Borrowed(name),
        _ => Cow::Owned(replace_unsafe(raw)),
    };
    Some(cut_to(name, MAX_COMPONENT_BYTES))
}

/// What most names are made of.
fn is_plain(byte: &u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'/' | b'\\')
}

fn replace_unsafe(raw: &[u8]) -> String {
    let mut name = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        name.extend(chunk.valid().chars().map(|c| if is_unsafe(c) { '_' } else { c }));
        if !chunk.invalid().is_empty() {
            name.push('_');
        }
    }
    name
}

/// Characters that separate paths, or that make a name look like another one.
fn is_unsafe(c: char) -> bool {
    matches!(c,
        '/' | '\\' |
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || c.is_control()
}

/// Shortens `name` to `max` bytes at a character boundary, keeping its extension.
fn cut_to(name: Cow<'_, str>, max: usize) -> Cow<'_, str> {
    if name.len() <= max {
        return name;
    }
    let (stem, extension) = split_extension(&name);
    let stem = &stem[..stem.floor_char_boundary(max - extension.len())];
    Cow::Owned(format!("{stem}{extension}"))
}

fn split_extension(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(dot) if dot > 0 && name.len() - dot <= MAX_EXTENSION_BYTES => name.split_at(dot),
        _ => (name, ""),
    }
}

/// Gives each file of a torrent a path that no other file of it has, not even where case is ignored, and under
/// which no other file stands.
#[derive(Debug, Default)]
pub struct UniquePaths {
    names: Names,
    /// Where the last file is: most often, the next one comes there too.
    folder: Folder,
}

impl UniquePaths {
    /// Claims the path of `components`, which are safe already and at least one; where it collides, the colliding
    /// component gets a number before its extension: `a.txt` becomes `a.1.txt`.
    pub fn claim<S: AsRef<str>>(&mut self, components: &[S]) -> Box<str> {
        let Some((file, folders)) = components.split_last() else {
            return Box::default();
        };
        if !self.folder.is_wanted(folders) {
            self.folder = Folder::default();
            for folder in folders {
                self.folder.enter(folder.as_ref(), &mut self.names);
            }
        }
        let file = self.names.claim(&self.folder.folded, file.as_ref(), Taken::File);
        let mut path = String::with_capacity(self.folder.path.len() + file.len());
        path.push_str(&self.folder.path);
        path.push_str(&file);
        path.into()
    }
}

/// A folder that has been claimed.
#[derive(Debug, Default)]
struct Folder {
    /// The components that were asked for.
    wanted: Vec<String>,
    /// The path that it got, with a `/` at the end.
    path: String,
    /// The same, case-folded.
    folded: String,
}

impl Folder {
    fn is_wanted<S: AsRef<str>>(&self, components: &[S]) -> bool {
        self.wanted.iter().eq(components.iter().map(AsRef::as_ref))
    }

    /// Goes on to a folder in this one.
    fn enter(&mut self, component: &str, names: &mut Names) {
        let name = names.claim(&self.folded, component, Taken::Folder);
        self.wanted.push(component.to_owned());
        self.path.push_str(&name);
        self.path.push('/');
        push_folded(&mut self.folded, &name);
        self.folded.push('/');
    }
}

#[derive(Debug, Default)]
struct Names {
    /// Case-folded path to what stands there.
    taken: BTreeMap<Key, Taken>,
    /// Case-folded path that collided to the number to try next: a million equal names cost a million steps.
    next_number: BTreeMap<Key, u32>,
}

/// What a case-insensitive file system sees of a path. The hash settles most comparisons, and nothing else.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    hash: u64,
    path: Box<str>,
}

impl Key {
    fn new(folded_prefix: &str, name: &str) -> Self {
        let mut path = String::with_capacity(folded_prefix.len() + name.len());
        path.push_str(folded_prefix);
        push_folded(&mut path, name);
        let mut hasher = DefaultHasher::new();
        hasher.write(path.as_bytes());
        Self {
            hash: hasher.finish(),
            path: path.into(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    File,
    Folder,
}

impl Names {
    /// Takes `component`, or its first numbered variant that can be `wanted`, behind the case-folded `prefix`.
    fn claim<'c>(&mut self, prefix: &str, component: &'c str, wanted: Taken) -> Cow<'c, str> {
        if self.take(Key::new(prefix, component), wanted) {
            return Cow::Borrowed(component);
        }
        let collided = Key::new(prefix, component);
        let (stem, extension) = split_extension(component);
        let mut number = self.next_number.get(&collided).copied().unwrap_or(1);
        loop {
            let suffix = format!(".{number}{extension}");
            let name = format!("{}{suffix}", cut_to(stem.into(), MAX_COMPONENT_BYTES - suffix.len()));
            number += 1;
            if self.take(Key::new(prefix, &name), wanted) {
                // The next folder of this name is the same folder again; the next file is another one.
                let next = if wanted == Taken::File { number } else { number - 1 };
                self.next_number.insert(collided, next);
                return Cow::Owned(name);
            }
        }
    }

    /// Whether a path is free for what is wanted there, or is that already; from now on, it is.
    fn take(&mut self, key: Key, wanted: Taken) -> bool {
        match self.taken.entry(key) {
            Entry::Vacant(place) => {
                place.insert(wanted);
                true
            }
            Entry::Occupied(taken) => *taken.get() == Taken::Folder && wanted == Taken::Folder,
        }
    }
}

fn push_folded(path: &mut String, name: &str) {
    if name.is_ascii() {
        let start = path.len();
        path.push_str(name);
        path[start..].make_ascii_lowercase();
    } else {
        path.push_str(&name.to_lowercase());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn component(raw: &[u8]) -> String {
        safe_component(raw).unwrap().into_owned()
    }

    /// Fault 8: nothing climbs, nothing separates.
    #[test]
    fn traversal_is_confined() {
        assert_eq!(safe_component(b".."), None);
        assert_eq!(safe_component(b"."), None);
        assert_eq!(safe_component(b""), None);
        assert_eq!(component(b"/etc/passwd"), "_etc_passwd");
        assert_eq!(component(b"..\\..\\x"), ".._.._x");
        assert_eq!(component(b"..."), "...");
    }

    /// Fault 9: NUL, control, bidirectional and invalid bytes give a fixed, visible name.
    #[test]
    fn unprintable_names_are_replaced() {
        assert_eq!(component(b"a\0b\nc"), "a_b_c");
        assert_eq!(component("x\u{202e}gpj.exe".as_bytes()), "x_gpj.exe");
        assert_eq!(component(b"caf\xe9 \xff\xfe.txt"), "caf_ __.txt");
        assert_eq!(
            component("na\u{ef}ve \u{65e5}\u{672c}.txt".as_bytes()),
            "na\u{ef}ve \u{65e5}\u{672c}.txt"
        );
    }

    /// Fault 10: long names are cut before their extension.
    #[test]
    fn long_names_keep_their_extension() {
        let long = component(format!("{}.tar.gz", "x".repeat(400)).as_bytes());
        assert_eq!(long.len(), 255);
        assert!(long.ends_with("x.gz"));
        let wide = component(format!("{}.mkv", "\u{e9}".repeat(200)).as_bytes());
        assert!(wide.len() <= 255 && wide.ends_with("\u{e9}.mkv"));
        assert_eq!(component(&[b'.'; 300]).len(), 255);
    }

    fn claim_all(paths: &[&str]) -> Vec<String> {
        let mut unique = UniquePaths::default();
        let split = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        paths.iter().map(|path| unique.claim(&split(path)).into()).collect()
    }

    /// Fault 11: names that differ in case only stay two files.
    #[test]
    fn collisions_are_numbered() {
        assert_eq!(
            claim_all(&["a/Read.me", "a/README", "A/read.ME"]),
            ["a/Read.me", "a/README", "A/read.1.ME"]
        );
        assert_eq!(claim_all(&["x", "x", "X", "x.1"]), ["x", "x.1", "X.2", "x.1.1"]);
    }

    #[test]
    fn a_file_and_a_folder_of_one_name_stay_apart() {
        assert_eq!(claim_all(&["a", "a/b", "a/c"]), ["a", "a.1/b", "a.1/c"]);
        assert_eq!(claim_all(&["a/b", "a"]), ["a/b", "a.1"]);
    }

    proptest! {
        #[test]
        fn components_are_single_safe_names(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            if let Some(name) = safe_component(&raw) {
                prop_assert!(!name.is_empty() && name.len() <= MAX_COMPONENT_BYTES);
                prop_assert!(name != "." && name != "..");
                prop_assert!(!name.contains(['/', '\\', '\0']));
                prop_assert_eq!(safe_component(name.as_bytes()), Some(name.clone()), "a safe name stays as it is");
            }
        }

        #[test]
        fn claimed_paths_never_collide(paths in proptest::collection::vec("[aAbB.1]{1,3}(/[aAbB.1]{1,3}){0,2}", 1..20)) {
            let claimed = claim_all(&paths.iter().map(String::as_str).collect::<Vec<_>>());
            for (i, a) in claimed.iter().enumerate() {
                for b in &claimed[i + 1..] {
                    let (a, b) = (Key::new("", a).path, Key::new("", b).path);
                    prop_assert!(a != b, "{a} twice");
                    let nested = b.starts_with(&format!("{a}/")) || a.starts_with(&format!("{b}/"));
                    prop_assert!(!nested, "{a} and {b} nest");
                }
            }
        }
    }
}
