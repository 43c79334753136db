//! Content for torrents: files of any size whose bytes do not repeat, so that no two blocks are equal.

#![allow(dead_code, reason = "shared by test binaries that each use a part")]

use std::fs;
use std::path::{Path, PathBuf};

use ecs_torrent::making::{MakeOptions, Plan};

/// Creates bytes that do not repeat. The same seed gives the same bytes.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// Writes a file of noise below `folder`.
pub fn write_file(folder: &Path, name: &str, seed: u64, len: usize) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, noise(seed, len)).unwrap();
    path
}

/// Creates a torrent from a file or folder.
pub fn make_torrent(path: &Path, options: MakeOptions) -> Vec<u8> {
    Plan::new(path, options).unwrap().make(&|_| {}).unwrap()
}

/// Compares two files or folders, and returns an error that names the first difference.
pub fn compare(a: &Path, b: &Path) -> Result<(), String> {
    if a.is_dir() {
        let mut names: Vec<_> = fs::read_dir(a)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        return names.iter().try_for_each(|name| compare(&a.join(name), &b.join(name)));
    }
    use std::io::Read;
    let open = |path: &Path| fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()));
    let (mut one, mut other) = (open(a)?, open(b)?);
    let lengths = (one.metadata().unwrap().len(), other.metadata().unwrap().len());
    if lengths.0 != lengths.1 {
        return Err(format!("{} has {} bytes, not {}", b.display(), lengths.1, lengths.0));
    }
    let mut buffers = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    while offset < lengths.0 {
        let len = (lengths.0 - offset).min(1 << 20) as usize;
        one.read_exact(&mut buffers.0[..len]).unwrap();
        other.read_exact(&mut buffers.1[..len]).unwrap();
        if buffers.0[..len] != buffers.1[..len] {
            return Err(format!("{} differs near byte {offset}", b.display()));
        }
        offset += len as u64;
    }
    Ok(())
}
