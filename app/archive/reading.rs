//! Reading archives: every byte is checked before anything is added to the state folder.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use ecs_torrent_components::session::Session;
use ecs_torrent_engine::backends::staging::{Staging, StateFile, StateFiles};
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::metainfo::{Metainfo, MetainfoLimits};
use sha2::{Digest, Sha256};

use super::writing::digest_file;
use super::{
    ArchiveError, FOLDER, FORMAT, Imported, ImportedTorrent, LeftOut, MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES,
    Manifest, path_of,
};

/// The rules of an import, in addition to those of the format.
pub trait Rules {
    /// Checks whether a torrent may be added. Otherwise, returns the reason.
    ///
    /// # Errors
    /// The reason.
    fn admit(&self, session: &Session) -> Result<(), String>;

    /// Checks whether the state of a feature may be added. Otherwise, returns the reason.
    ///
    /// # Errors
    /// The reason.
    fn admit_feature(&mut self, name: &str, bytes: &[u8]) -> Result<Admission, String>;
}

/// The fate of the state of a feature that may be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is added to the state folder.
    AddFile,
    /// The rules have taken it, and it is not added as a file.
    Taken,
}

/// The rules of an import into a state folder that no engine uses.
impl Rules for () {
    fn admit(&self, _: &Session) -> Result<(), String> {
        Ok(())
    }

    fn admit_feature(&mut self, _: &str, _: &[u8]) -> Result<Admission, String> {
        Ok(Admission::AddFile)
    }
}

/// An archive that was read and is complete. Nothing is added before [`Staged::commit`].
#[derive(Debug)]
pub struct Staged {
    staging: Staging,
    imported: Imported,
}

impl Staged {
    /// Adds everything to the state folder, at once: a kill leaves all of it, or nothing.
    ///
    /// # Errors
    /// If the state folder cannot be written.
    pub fn commit(self) -> Result<Imported, ArchiveError> {
        self.staging
            .commit()
            .map_err(ArchiveError::io("cannot write the state folder"))?;
        Ok(self.imported)
    }
}

/// Reads an archive for a state folder. Torrents that the folder has are left out. The caller holds the lock of the
/// folder for as long as the result exists.
///
/// # Errors
/// If the archive is not one of [`super::export`], as a whole and undamaged, or if the folder cannot be written.
/// Nothing was added then.
pub fn stage(archive: impl Read, state_dir: &Path, rules: &mut dyn Rules) -> Result<Staged, ArchiveError> {
    let failed = || ArchiveError::io(format!("cannot write the state folder {}", state_dir.display()));
    let mut reader = Reader {
        staging: Staging::begin(state_dir).map_err(failed())?,
        existing: StateFiles::open(state_dir).map_err(failed())?,
        rules,
        imported: Imported::default(),
        refused: HashSet::new(),
        digest: Sha256::new(),
        files: 0,
    };
    let mut tar = tar::Archive::new(archive);
    let mut last = String::new();
    // Raw entries: no extension is interpreted, neither long names nor sparse files.
    for entry in tar.entries().map_err(ArchiveError::Unreadable)?.raw(true) {
        let mut entry = entry.map_err(ArchiveError::Unreadable)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let foreign = |reason| ArchiveError::Foreign {
            name: name.chars().take(200).collect(),
            reason,
        };
        if entry.header().entry_type() != tar::EntryType::Regular {
            return Err(foreign("not a regular file"));
        }
        let size = entry.size();
        if name == MANIFEST {
            let bytes = read_entry(&mut entry, &name, size, MAX_MANIFEST_BYTES)?;
            reader.check_manifest(&bytes)?;
            return Ok(Staged {
                staging: reader.staging,
                imported: reader.imported,
            });
        }
        let file = name.strip_prefix(FOLDER).and_then(StateFile::parse);
        let file = file.ok_or_else(|| foreign("no such file is expected"))?;
        if name <= last {
            return Err(foreign("twice, or not in order"));
        }
        let bytes = read_entry(&mut entry, &name, size, file.max_bytes())?;
        reader.take(&file, bytes)?;
        last = name;
    }
    Err(ArchiveError::Cut)
}

fn read_entry(entry: &mut impl Read, name: &str, size: u64, max: u64) -> Result<Vec<u8>, ArchiveError> {
    if size > max {
        let name = name.to_owned();
        return Err(ArchiveError::TooLong { name, size, max });
    }
    // Memory is allocated only for bytes that are really present.
    let mut bytes = Vec::new();
    let read = entry.take(size).read_to_end(&mut bytes);
    read.map_err(ArchiveError::Unreadable)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(ArchiveError::Cut),
    }
}

struct Reader<'a> {
    staging: Staging,
    existing: StateFiles,
    rules: &'a mut dyn Rules,
    imported: Imported,
    /// Torrents that are left out.
    refused: HashSet<InfoHash>,
    digest: Sha256,
    files: u64,
}

impl Reader<'_> {
    fn take(&mut self, file: &StateFile, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(ArchiveError::TooMany);
        }
        digest_file(&mut self.digest, &path_of(file), &bytes);
        let is_admitted = match file {
            StateFile::Session(torrent) => self.take_session(*torrent, &bytes)?,
            StateFile::Metainfo(torrent) => self.take_metainfo(*torrent, &bytes)?,
            StateFile::Blob(name) => self.take_feature(file, name.as_str(), &bytes),
        };
        match is_admitted {
            true => self.staging.add(file, &bytes).map_err(failed_to_add),
            false => Ok(()),
        }
    }

    fn take_feature(&mut self, file: &StateFile, name: &str, bytes: &[u8]) -> bool {
        let admitted = match self.existing.has(file) {
            true => Err("the state folder has its own".to_owned()),
            false => self.rules.admit_feature(name, bytes),
        };
        match admitted {
            Ok(Admission::AddFile) => {
                self.imported.features.push(name.to_owned());
                return true;
            }
            Ok(Admission::Taken) => {}
            Err(reason) => self.leave_out(name.to_owned(), "", reason),
        }
        false
    }

    fn take_session(&mut self, torrent: InfoHash, bytes: &[u8]) -> Result<bool, ArchiveError> {
        let session = Session::parse(bytes, torrent).map_err(|error| ArchiveError::Session(torrent, error))?;
        let name = session.renamed.as_ref().unwrap_or(&session.name);
        let admitted = match self.existing.has_torrent(torrent) {
            true => Err("it is there already".to_owned()),
            false => self.rules.admit(&session),
        };
        match admitted {
            Ok(()) => self.imported.torrents.push(ImportedTorrent {
                info_hash: torrent.to_string(),
                name: name.clone(),
                stopped: session.stopped,
            }),
            Err(reason) => {
                self.refused.insert(torrent);
                self.leave_out(torrent.to_string(), name, reason);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn take_metainfo(&mut self, torrent: InfoHash, bytes: &[u8]) -> Result<bool, ArchiveError> {
        let metainfo = Metainfo::parse(&Bytes::copy_from_slice(bytes), &MetainfoLimits::default());
        let metainfo = metainfo.map_err(|error| ArchiveError::Metainfo(torrent, error))?;
        if metainfo.hashes.primary() != torrent {
            return Err(ArchiveError::OtherTorrent(torrent));
        }
        if self.refused.contains(&torrent) {
            return Ok(false);
        }
        let hash = torrent.to_string();
        let has_session = self.imported.torrents.last().map(|last| &last.info_hash) == Some(&hash);
        if !has_session {
            // Without a session, the location of the files is unknown.
            self.leave_out(hash, &metainfo.info.name, "the archive has no session of it".to_owned());
        }
        Ok(has_session)
    }

    fn leave_out(&mut self, id: String, name: &str, reason: String) {
        let name = name.to_owned();
        self.imported.left_out.push(LeftOut { id, name, reason });
    }

    fn check_manifest(&self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|_| ArchiveError::Damaged)?;
        if manifest.format != FORMAT {
            return Err(ArchiveError::Newer(manifest.format));
        }
        let digest = const_hex::encode(self.digest.clone().finalize());
        match manifest.files == self.files && manifest.sha256 == digest {
            true => Ok(()),
            false => Err(ArchiveError::Damaged),
        }
    }
}

fn failed_to_add(error: io::Error) -> ArchiveError {
    ArchiveError::io("cannot write the state folder")(error)
}
