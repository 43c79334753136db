//! Consistency of hybrid torrents, which describe the same files for v1 and for v2 (BEP 52, "upgrade path").
//!
//! This engine uses only the v1 half, while v2 clients use the other one. A torrent whose halves differ would be two
//! torrents under one name, and is refused.

use std::collections::BTreeMap;
use std::iter::Peekable;

use super::info::Fields;
use super::{MetainfoError, Problem};
use crate::bencode::{Pairs, Value};
use crate::files::{FileAttributes, FileEntry};
use crate::geometry::BLOCK_SIZE;
use crate::merkle;
use crate::safe_path::MAX_DEPTH;
use crate::text::printable;

const TREE: &str = "file tree";
const LAYERS: &str = "piece layers";

/// Checks that `files`, read from the v1 half, equal those of the v2 half in name, length, order and padding, and that
/// the roots and layers of v2 are well-formed. The layers are outside the info dictionary, so metadata from peers (BEP
/// 9) comes without them; the v1 half does not need them.
///
/// Reads the tree and each layer once, so that work is linear in the size of the torrent file.
pub(super) fn check(root: &Fields<'_>, info: &Fields<'_>, files: &[FileEntry]) -> Result<(), MetainfoError> {
    let piece_length = info.int("piece length", 1, i64::MAX)? as u64;
    if !piece_length.is_power_of_two() || piece_length < u64::from(BLOCK_SIZE) {
        return Err(info.error("piece length", Problem::NotForV2));
    }
    let tree = info.require(TREE)?;
    let mut tree = Tree::new(
        tree.as_dict()
            .ok_or_else(|| info.wrong_type(TREE, "dictionary", tree))?,
    );
    let mut layers = None;
    let has_layers = root.get(LAYERS).is_some();
    let mut next_offset = 0u64;
    let mut v1 = V1Files::new(info, files);
    loop {
        let (v1_file, v2_file) = (v1.next(), tree.next(info)?);
        let disagree = || {
            let (v1, v2) = (V1File::describe(v1_file.as_ref()), V2File::describe(v2_file.as_ref()));
            Err(info.error(TREE, Problem::HybridFiles { v1, v2 }))
        };
        let (v1, v2) = match (&v1_file, &v2_file) {
            (None, None) => return Ok(()),
            (Some(v1), Some(v2)) if v1.path.is(&v2.path) && v1.entry.len == v2.len => (v1, v2),
            _ => return disagree(),
        };
        if v2.len == 0 {
            continue;
        }
        // BEP 52: each v2 file starts a new piece; the v1 half of a hybrid aligns its files with padding.
        if v1.entry.offset != next_offset {
            let (path, v1, v2) = (v2.path.text(), v1.entry.offset, next_offset);
            return Err(info.error(TREE, Problem::HybridOffset { path, v1, v2 }));
        }
        let end = next_offset
            .checked_add(v2.len)
            .and_then(|end| end.checked_next_multiple_of(piece_length));
        next_offset = end.ok_or_else(|| info.error(TREE, Problem::TotalSize))?;
        check_root(info, v2)?;
        if v2.len > piece_length && has_layers {
            let layers = match &layers {
                Some(layers) => layers,
                None => layers.insert(read_layers(root, piece_length)?),
            };
            check_layer(root, layers, v2, v2.len.div_ceil(piece_length))?;
        }
    }
}

fn check_root(info: &Fields<'_>, file: &V2File<'_>) -> Result<(), MetainfoError> {
    let problem = match file.root {
        None => Problem::NoRoot,
        Some(root) if root.len() != 32 => Problem::RootLength(root.len()),
        Some(root) if root.iter().all(|&byte| byte == 0) => Problem::ZeroRoot,
        Some(_) => return Ok(()),
    };
    Err(MetainfoError::field(
        format!("{}.{}", info.path_of(TREE), file.path.text()),
        problem,
    ))
}

/// Verified piece hashes by the root of their file.
type Layers<'d> = BTreeMap<&'d [u8], &'d [u8]>;

fn read_layers<'d>(root: &Fields<'d>, piece_length: u64) -> Result<Layers<'d>, MetainfoError> {
    let value = root.require(LAYERS)?;
    let pairs = value
        .as_dict()
        .ok_or_else(|| root.wrong_type(LAYERS, "dictionary", value))?;
    let height = (piece_length / u64::from(BLOCK_SIZE)).ilog2();
    let mut layers = Layers::new();
    for (key, value) in pairs {
        let hashes = value
            .as_bytes()
            .ok_or_else(|| root.wrong_type(LAYERS, "string", value))?;
        let (whole, rest) = hashes.as_chunks::<32>();
        if !rest.is_empty() || merkle::root(whole.to_vec(), height, 0).is_none_or(|found| found != *key) {
            return Err(root.error(
                LAYERS,
                Problem::WrongLayer(const_hex::encode(&key[..key.len().min(32)])),
            ));
        }
        layers.insert(key, hashes);
    }
    Ok(layers)
}

fn check_layer(root: &Fields<'_>, layers: &Layers<'_>, file: &V2File<'_>, pieces: u64) -> Result<(), MetainfoError> {
    let hashes = file.root.and_then(|root| layers.get(root));
    match hashes.map(|hashes| hashes.len() as u64 / 32) {
        Some(found) if found == pieces => Ok(()),
        found => {
            let (path, found) = (file.path.text(), found.unwrap_or(0));
            Err(root.error(
                LAYERS,
                Problem::LayerLength {
                    path,
                    found,
                    expected: pieces,
                },
            ))
        }
    }
}

/// Iterator over the files of the v1 half with their raw paths, without padding.
struct V1Files<'d> {
    /// Name of a single-file torrent.
    single: Option<&'d [u8]>,
    list: Option<Box<dyn Iterator<Item = Value<'d>> + 'd>>,
    entries: std::slice::Iter<'d, FileEntry>,
}

struct V1File<'d> {
    path: V1Path<'d>,
    entry: &'d FileEntry,
}

/// Raw path in the v1 half.
enum V1Path<'d> {
    Single(&'d [u8]),
    List(Value<'d>),
}

impl<'d> V1Files<'d> {
    fn new(info: &Fields<'d>, entries: &'d [FileEntry]) -> Self {
        let list = info.get("files").and_then(Value::as_list);
        Self {
            single: match list {
                Some(_) => None,
                None => info.text("name").ok().flatten(),
            },
            list: list.map(|list| Box::new(list) as Box<_>),
            entries: entries.iter(),
        }
    }
}

impl<'d> Iterator for V1Files<'d> {
    type Item = V1File<'d>;

    fn next(&mut self) -> Option<V1File<'d>> {
        loop {
            let entry = self.entries.next()?;
            let path = match &mut self.list {
                None => V1Path::Single(self.single?),
                Some(list) => {
                    let file = list.next()?;
                    let path = file.get(b"path.utf-8").or_else(|| file.get(b"path"));
                    match path {
                        _ if entry.attributes.pad => continue,
                        path => V1Path::List(path?),
                    }
                }
            };
            return Some(V1File { path, entry });
        }
    }
}

impl V1File<'_> {
    fn describe(file: Option<&Self>) -> String {
        describe(file.map(|file| (file.path.text(), file.entry.len)))
    }
}

impl V1Path<'_> {
    fn is(&self, path: &V2Path<'_>) -> bool {
        match self {
            Self::Single(name) => path.0 == [*name],
            Self::List(list) => list
                .as_list()
                .is_some_and(|list| list.map(Value::as_bytes).eq(path.0.iter().map(|name| Some(*name)))),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Single(name) => path_text(&[name]),
            Self::List(list) => {
                let names = list.as_list().into_iter().flatten();
                path_text(&names.filter_map(Value::as_bytes).collect::<Vec<_>>())
            }
        }
    }
}

/// Traversal of the files of the v2 half, in their order.
struct Tree<'d> {
    /// Open folders, from the top to the current one, with their unvisited entries.
    open: Vec<Peekable<Pairs<'d>>>,
    /// Names of the open folders below the top.
    path: Vec<&'d [u8]>,
}

struct V2File<'d> {
    path: V2Path<'d>,
    len: u64,
    root: Option<&'d [u8]>,
}

/// Raw path in the v2 half.
struct V2Path<'d>(Vec<&'d [u8]>);

impl<'d> Tree<'d> {
    fn new(top: Pairs<'d>) -> Self {
        Self {
            open: vec![top.peekable()],
            path: Vec::new(),
        }
    }

    /// Returns the next file.
    fn next(&mut self, info: &Fields<'d>) -> Result<Option<V2File<'d>>, MetainfoError> {
        while let Some(folder) = self.open.last_mut() {
            let Some((name, node)) = folder.next() else {
                self.open.pop();
                self.path.pop();
                continue;
            };
            self.path.push(name);
            let bad = || {
                let place = format!("{}.{}", info.path_of(TREE), path_text(&self.path));
                MetainfoError::field(place, Problem::BadTree)
            };
            let mut children = node.as_dict().ok_or_else(bad)?.peekable();
            if name.is_empty() || self.path.len() > MAX_DEPTH {
                return Err(bad());
            }
            // BEP 52: the empty key marks a file; a file has no other keys.
            let Some((_, file)) = children.next_if(|(key, _)| key.is_empty()) else {
                self.open.push(children);
                continue;
            };
            let (len, root) = match children.next() {
                None => length_and_root(file).ok_or_else(bad)?,
                Some(_) => return Err(bad()),
            };
            let path = V2Path(self.path.clone());
            self.path.pop();
            return Ok(Some(V2File { path, len, root }));
        }
        Ok(None)
    }
}

/// Reads the length and root of the dictionary under an empty key.
fn length_and_root(file: Value<'_>) -> Option<(u64, Option<&[u8]>)> {
    let letters = file.get(b"attr").and_then(Value::as_bytes).unwrap_or_default();
    let len = match file.get(b"length") {
        None if file.is_dict() && FileAttributes::from_letters(letters).symlink => 0,
        len => u64::try_from(len?.as_int()?).ok()?,
    };
    Some((len, file.get(b"pieces root").and_then(Value::as_bytes)))
}

impl V2File<'_> {
    fn describe(file: Option<&Self>) -> String {
        describe(file.map(|file| (file.path.text(), file.len)))
    }
}

impl V2Path<'_> {
    fn text(&self) -> String {
        path_text(&self.0)
    }
}

fn describe(file: Option<(String, u64)>) -> String {
    match file {
        Some((path, len)) => format!("{path} ({len} bytes)"),
        None => "no more files".to_owned(),
    }
}

/// Formats a raw path for an error.
fn path_text(names: &[&[u8]]) -> String {
    printable(&names.join(&b'/'), 256)
}
