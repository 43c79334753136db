//! Writing archives.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use ecs_torrent_components::session::Session;
use ecs_torrent_engine::backends::staging::{StateFile, StateFiles};
use sha2::{Digest, Sha256};

use super::{ArchiveError, Exported, FORMAT, LeftOut, MANIFEST, Manifest, path_of};

/// Writes an archive, whose files come in ascending order of their names.
pub struct ArchiveWriter<W: Write> {
    tar: tar::Builder<W>,
    digest: Sha256,
    files: u64,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self {
            tar: tar::Builder::new(out),
            digest: Sha256::new(),
            files: 0,
        }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, file: &StateFile, bytes: &[u8]) -> Result<(), ArchiveError> {
        let path = path_of(file);
        digest_file(&mut self.digest, &path, bytes);
        self.files += 1;
        self.append(&path, bytes)
    }

    /// Writes the manifest and the end of the archive.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        let manifest = Manifest {
            format: FORMAT,
            program: concat!("ecs-torrent ", env!("CARGO_PKG_VERSION")).to_owned(),
            files: self.files,
            sha256: const_hex::encode(self.digest.clone().finalize()),
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|error| ArchiveError::io(MANIFEST)(error.into()))?;
        self.append(MANIFEST, &json)?;
        let failed = ArchiveError::io("the archive");
        let mut out = self.tar.into_inner().map_err(failed)?;
        out.flush().map_err(ArchiveError::io("the archive"))?;
        Ok(out)
    }

    fn append(&mut self, path: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.map_or(0, |now| now.as_secs()));
        let appended = self.tar.append_data(&mut header, path, bytes);
        appended.map_err(ArchiveError::io("the archive"))
    }
}

/// Adds a file to the digest of an archive.
pub(super) fn digest_file(digest: &mut Sha256, path: &str, bytes: &[u8]) {
    digest.update(path.as_bytes());
    digest.update([0]);
    digest.update((bytes.len() as u64).to_le_bytes());
    digest.update(bytes);
}

/// Writes all state of a state folder to an archive. An engine may be using the folder: then the archive has what the
/// engine would find after a kill at this moment.
///
/// # Errors
/// If the state folder cannot be read, or the archive cannot be written.
pub fn export(state_dir: &Path, out: impl Write) -> Result<Exported, ArchiveError> {
    let unreadable = || ArchiveError::io(format!("cannot read the state folder {}", state_dir.display()));
    let files = StateFiles::open(state_dir).map_err(unreadable())?;
    let mut archive = ArchiveWriter::new(out);
    let mut exported = Exported::default();
    // The metainfo of a torrent follows its session.
    let mut unusable = None;
    for file in files.list().map_err(unreadable())? {
        if matches!(&file, StateFile::Metainfo(torrent) if unusable == Some(*torrent)) {
            continue;
        }
        let bytes = match files.read(&file) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) => {
                exported.left_out.push(LeftOut {
                    id: file.name(),
                    name: String::new(),
                    reason: error.to_string(),
                });
                continue;
            }
        };
        if let StateFile::Session(torrent) = &file {
            if let Err(error) = Session::parse(&bytes, *torrent) {
                unusable = Some(*torrent);
                exported.left_out.push(LeftOut {
                    id: torrent.to_string(),
                    name: String::new(),
                    reason: format!("its session is {error}"),
                });
                continue;
            }
            exported.torrents += 1;
        }
        archive.add(&file, &bytes)?;
    }
    archive.finish()?;
    Ok(exported)
}
