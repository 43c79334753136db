//! Files and values of other clients.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ecs_torrent_engine::backends::whole_file::read_file;
use ecs_torrent_protocol::bencode::{Document, Limits, Value};
use ecs_torrent_protocol::geometry::BLOCK_SIZE;

/// Maximum size of a file with the state of one torrent.
const MAX_RESUME_BYTES: u64 = 64 << 20;

pub(super) fn named<E: fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    move |error| format!("{}: {error}", path.display())
}

/// Reads a document of another client.
pub(super) fn parse<'a>(bytes: &'a [u8], path: &Path) -> Result<Document<'a>, String> {
    Document::parse(bytes, &Limits::default()).map_err(named(path))
}

/// Returns the files of a folder with an extension, in the order of their names.
pub(super) fn files_with(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Returns a number that is not negative.
pub(super) fn unsigned(document: Value<'_>, key: &str) -> u64 {
    let number = document.get(key.as_bytes()).and_then(Value::as_int);
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

/// Returns a date in seconds since 1970. Clients write 0 or -1 for none.
pub(super) fn date(document: Value<'_>, key: &str) -> Option<u64> {
    Some(unsigned(document, key)).filter(|date| *date > 0)
}

pub(super) fn is_set(document: Value<'_>, key: &str) -> bool {
    unsigned(document, key) != 0
}

pub(super) fn text<'d>(document: Value<'d>, key: &str) -> Option<&'d str> {
    let text = document.get(key.as_bytes()).and_then(Value::as_str);
    text.filter(|text| !text.is_empty())
}

/// Returns the path of a folder.
pub(super) fn folder_of(document: Value<'_>, key: &str) -> Option<PathBuf> {
    let bytes = document.get(key.as_bytes())?.as_bytes()?;
    Some(path_of(bytes)).filter(|path| !path.as_os_str().is_empty())
}

/// Returns a path, which clients store as bytes.
pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// Reads a file with the state of a torrent. Pipes and devices are not opened.
pub(super) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(path)?.is_file() {
        true => read_file(path, MAX_RESUME_BYTES),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    }
}

pub(super) fn items<'d>(document: Value<'d>, key: &str) -> impl Iterator<Item = Value<'d>> + use<'d> {
    document
        .get(key.as_bytes())
        .and_then(Value::as_list)
        .into_iter()
        .flatten()
}

/// Returns the blocks of a bitfield in which the first block is the highest bit.
pub(super) fn set_bits(bits: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let is_set = move |bit: &u32| bits[*bit as usize / 8] & (0x80 >> (bit % 8)) != 0;
    (0..u32::try_from(bits.len().saturating_mul(8)).unwrap_or(u32::MAX)).filter(is_set)
}

/// Number of bytes in a block.
pub(super) const BLOCK: u64 = BLOCK_SIZE as u64;
