//! The info dictionary.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use super::{MetainfoError, MetainfoLimits, Problem};
use crate::bencode::{Document, Value};
use crate::files::{FileAttributes, FileEntry, FileTable};
use crate::geometry::Geometry;
use crate::hash::{ExpectedDigest, InfoHashes, Sha1Digest};
use crate::safe_path::{MAX_COMPONENT_BYTES, MAX_DEPTH, UniquePaths, safe_component, safe_name};

/// Content of an info dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Name of the file or of the folder, safe as a path component.
    pub name: String,
    /// Lengths of pieces and blocks.
    pub geometry: Geometry,
    /// SHA-1 of each piece.
    pub pieces: PieceHashes,
    /// The files; the files of a multi-file torrent lie in a folder called `name`.
    pub files: FileTable,
    /// Whether peers may come from the torrent's trackers only (BEP 27).
    pub private: bool,
}

/// The SHA-1 digests of all pieces, sharing the metainfo's memory.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceHashes(Bytes);

impl PieceHashes {
    /// Returns the digest of piece `index`, if there is such a piece.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<&Sha1Digest> {
        let start = (index as usize).checked_mul(20)?;
        self.0.get(start..start + 20)?.try_into().ok()
    }

    /// Number of digests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len() / 20
    }

    /// Whether there are no digests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Info {
    /// Returns the digest that piece `index` must have, if there is such a piece.
    #[must_use]
    pub fn expected_digest(&self, index: u32) -> Option<ExpectedDigest<'_>> {
        self.pieces.get(index).map(ExpectedDigest::Sha1)
    }
}

impl fmt::Debug for PieceHashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceHashes({})", self.len())
    }
}

/// Returns whether the dictionary describes a v1 and a v2 torrent; v2 alone is refused with its own error.
pub(super) fn versions(info: &Fields<'_>) -> Result<(bool, bool), MetainfoError> {
    let is_v2 = info.get("meta version").and_then(Value::as_int) == Some(2);
    let is_v1 = info.get("pieces").is_some() || !is_v2;
    if is_v1 {
        Ok((is_v1, is_v2))
    } else {
        Err(MetainfoError::V2Only)
    }
}

/// Whether a torrent is private by the value of its key (BEP 27): any integer but zero, as libtorrent reads it.
fn is_private(value: Option<Value<'_>>) -> bool {
    value.and_then(Value::as_int).is_some_and(|value| value != 0)
}

/// Whether an info dictionary says that its torrent is private, even if the dictionary describes no usable torrent.
#[must_use]
pub fn says_private(info: &[u8], limits: &MetainfoLimits) -> bool {
    let document = Document::parse(info, &limits.bencode);
    document.is_ok_and(|document| is_private(document.root().get(b"private")))
}

impl Info {
    pub(super) fn parse(
        info: &Fields<'_>,
        info_bytes: &Bytes,
        hashes: &InfoHashes,
        limits: &MetainfoLimits,
    ) -> Result<Self, MetainfoError> {
        let piece_length = info.int("piece length", 1, i64::from(limits.max_piece_length))? as u32;
        let raw_name = info.text("name")?.ok_or_else(|| info.error("name", Problem::Missing))?;
        let max_bytes = max_name_bytes(info);
        let name = safe_name(raw_name, max_bytes).unwrap_or_else(|| hashes.primary().to_string().into());
        let files = match info.get("files") {
            Some(list) => multiple_files(info, list, &name, limits)?,
            None => single_file(info, &name)?,
        };
        if files.total_size() == 0 {
            let field = if info.get("files").is_some() { "files" } else { "length" };
            return Err(info.error(field, Problem::Empty));
        }
        let hashes = info.bytes("pieces")?;
        if hashes.len() % 20 != 0 {
            return Err(info.error("pieces", Problem::RaggedHashes(hashes.len())));
        }
        let geometry = Geometry::new(files.total_size(), piece_length)
            .filter(|geometry| hashes.len() / 20 == geometry.piece_count() as usize)
            .ok_or_else(|| {
                let found = hashes.len() / 20;
                let expected = files.total_size().div_ceil(u64::from(piece_length));
                info.error("pieces", Problem::PieceCount { found, expected })
            })?;
        if geometry.piece_count() > limits.max_pieces {
            let (found, max) = (geometry.piece_count() as usize, limits.max_pieces as usize);
            return Err(info.error("pieces", Problem::TooMany { found, max }));
        }
        Ok(Self {
            name: name.into_owned(),
            geometry,
            pieces: PieceHashes(info_bytes.slice_ref(hashes)),
            files,
            private: is_private(info.get("private")),
        })
    }
}

/// Maximum length in bytes of the torrent's own name, which is repeated in the path of each file. The copies together
/// are limited to the size of the info dictionary or 4 MiB, so only torrents with more than 16 000 files and short
/// entries get a limit below [`MAX_COMPONENT_BYTES`].
fn max_name_bytes(info: &Fields<'_>) -> usize {
    const MAX_BYTES_OF_ALL: usize = 4 << 20;
    const ALWAYS: usize = 48;
    let file_count = info.get("files").and_then(Value::as_list).map_or(1, Iterator::count);
    let each = MAX_BYTES_OF_ALL.max(info.raw().len()) / file_count.max(1);
    each.clamp(ALWAYS, MAX_COMPONENT_BYTES)
}

fn single_file(info: &Fields<'_>, name: &str) -> Result<FileTable, MetainfoError> {
    Ok(FileTable::new(vec![FileEntry {
        path: name.into(),
        len: info.int("length", 0, i64::MAX)? as u64,
        offset: 0,
        // The only file is stored, whatever its attributes.
        attributes: FileAttributes::default(),
    }]))
}

fn multiple_files(
    info: &Fields<'_>,
    list: Value<'_>,
    name: &str,
    limits: &MetainfoLimits,
) -> Result<FileTable, MetainfoError> {
    let list = list.as_list().ok_or_else(|| info.wrong_type("files", "list", list))?;
    let count = list.clone().count();
    if count > limits.max_files {
        let max = limits.max_files;
        return Err(info.error("files", Problem::TooMany { found: count, max }));
    }
    let mut paths = Paths {
        name,
        components: Vec::new(),
        unique: UniquePaths::default(),
    };
    let mut files = Vec::with_capacity(count);
    let mut offset = 0u64;
    for (index, file) in list.enumerate() {
        let file = Fields::new(file, Place::File(index))?;
        let [attr, length, path, modern_path] = file.get_each(["attr", "length", "path", "path.utf-8"]);
        let mut attributes = attributes_of(attr);
        let len = match length {
            // BEP 47: a link's length is zero and may be missing.
            None if attributes.symlink => 0,
            _ => file.int_of("length", length, 0, i64::MAX)? as u64,
        };
        attributes.symlink &= len == 0;
        let end = offset.checked_add(len).filter(|&end| end <= i64::MAX as u64);
        files.push(FileEntry {
            path: match attributes.pad {
                // BEP 47: padding needs no path, and many pads may share one; none is ever written.
                true => [name, "/.pad/", &len.to_string()].concat().into(),
                false => match modern_path {
                    Some(_) => paths.next(&file, "path.utf-8", modern_path)?,
                    None => paths.next(&file, "path", path)?,
                },
            },
            len,
            offset,
            attributes,
        });
        offset = end.ok_or_else(|| file.error("length", Problem::TotalSize))?;
        if paths.unique.folder_count() > limits.max_folders {
            let max = limits.max_folders;
            return Err(file.error("path", Problem::TooManyFolders { max }));
        }
    }
    Ok(FileTable::new(files))
}

/// Paths of files below the folder `name`, safe and unique.
struct Paths<'a> {
    name: &'a str,
    /// Components of the last path; kept to reuse the memory.
    components: Vec<Cow<'a, str>>,
    unique: UniquePaths,
}

impl<'a> Paths<'a> {
    /// Returns the path under `key`.
    fn next(&mut self, file: &Fields<'a>, key: &str, value: Option<Value<'a>>) -> Result<Box<str>, MetainfoError> {
        let value = file.required(key, value)?;
        let list = value.as_list().ok_or_else(|| file.wrong_type(key, "list", value))?;
        let depth = list.clone().count();
        if depth > MAX_DEPTH {
            let max = MAX_DEPTH;
            return Err(file.error(key, Problem::TooMany { found: depth, max }));
        }
        self.components.clear();
        self.components.push(self.name.into());
        for part in list {
            let raw = part.as_bytes().ok_or_else(|| file.wrong_type(key, "string", part))?;
            self.components.extend(safe_component(raw));
        }
        if self.components.len() == 1 {
            self.components.push("_".into());
        }
        Ok(self.unique.claim(&self.components))
    }
}

fn attributes_of(letters: Option<Value<'_>>) -> FileAttributes {
    FileAttributes::from_letters(letters.and_then(Value::as_bytes).unwrap_or_default())
}

/// Location of a dictionary in the metainfo.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    Metainfo,
    Info,
    File(usize),
}

impl Place {
    fn path(self) -> String {
        match self {
            Self::Metainfo => "metainfo".to_owned(),
            Self::Info => "info".to_owned(),
            Self::File(index) => format!("info.files[{index}]"),
        }
    }

    fn path_of(self, key: &str) -> String {
        match self {
            Self::Metainfo => key.to_owned(),
            _ => format!("{}.{key}", self.path()),
        }
    }
}

/// A dictionary with its location, so that every error about it can name the field.
pub(super) struct Fields<'d> {
    value: Value<'d>,
    place: Place,
}

impl<'d> Fields<'d> {
    pub(super) fn new(value: Value<'d>, place: Place) -> Result<Self, MetainfoError> {
        if !value.is_dict() {
            let (expected, found) = ("dictionary", value.type_name());
            return Err(MetainfoError::field(place.path(), Problem::Type { expected, found }));
        }
        Ok(Self { value, place })
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'d>> {
        self.value.get(key.as_bytes())
    }

    /// Returns the values of several keys, found in one pass.
    fn get_each<const N: usize>(&self, keys: [&str; N]) -> [Option<Value<'d>>; N] {
        let mut values = [None; N];
        for (key, value) in self.value.as_dict().into_iter().flatten() {
            if let Some(position) = keys.iter().position(|wanted| wanted.as_bytes() == key) {
                values[position] = Some(value);
            }
        }
        values
    }

    pub(super) fn raw(&self) -> &'d [u8] {
        self.value.raw()
    }

    pub(super) fn info(&self) -> Result<Fields<'d>, MetainfoError> {
        Fields::new(self.require("info")?, Place::Info)
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        self.place.path_of(key)
    }

    fn bytes(&self, key: &str) -> Result<&'d [u8], MetainfoError> {
        let value = self.require(key)?;
        value.as_bytes().ok_or_else(|| self.wrong_type(key, "string", value))
    }

    /// Returns a text; the `.utf-8` variant if an old encoder wrote both.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'d [u8]>, MetainfoError> {
        let modern = self.get(&format!("{key}.utf-8")).and_then(Value::as_bytes);
        match (modern, self.get(key)) {
            (Some(text), _) => Ok(Some(text)),
            (None, None) => Ok(None),
            (None, Some(_)) => self.bytes(key).map(Some),
        }
    }

    pub(super) fn int(&self, key: &str, min: i64, max: i64) -> Result<i64, MetainfoError> {
        self.int_of(key, self.get(key), min, max)
    }

    fn int_of(&self, key: &str, found: Option<Value<'_>>, min: i64, max: i64) -> Result<i64, MetainfoError> {
        let found = self.required(key, found)?;
        let value = found.as_int().ok_or_else(|| self.wrong_type(key, "integer", found))?;
        if (min..=max).contains(&value) {
            Ok(value)
        } else {
            Err(self.error(key, Problem::Range { value, min, max }))
        }
    }

    pub(super) fn require(&self, key: &str) -> Result<Value<'d>, MetainfoError> {
        self.required(key, self.get(key))
    }

    fn required<'v>(&self, key: &str, found: Option<Value<'v>>) -> Result<Value<'v>, MetainfoError> {
        found.ok_or_else(|| self.error(key, Problem::Missing))
    }

    pub(super) fn wrong_type(&self, key: &str, expected: &'static str, found: Value<'_>) -> MetainfoError {
        let found = found.type_name();
        self.error(key, Problem::Type { expected, found })
    }

    pub(super) fn error(&self, key: &str, problem: Problem) -> MetainfoError {
        MetainfoError::field(self.place.path_of(key), problem)
    }
}
