//! The torrents of other clients, as an archive for an import.
//!
//! [`archive`] reads the state folder of qBittorrent, Transmission or rTorrent, and writes an archive like those of
//! [`crate::archive::export`]. The other client's files are only read. Pieces that it had verified count as held where
//! their files have not changed since it saved its state: they are neither downloaded nor hashed again. Files that
//! changed later are checked.
//!
//! The data stays where it is. Its files count as files of the user that the torrent may complete: they are never
//! deleted with the torrent.

mod documents;
mod qbittorrent;
mod rtorrent;
mod torrent;
mod transmission;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

use ecs_torrent_components::session::Session;
use ecs_torrent_engine::backends::staging::StateFile;

use self::torrent::OtherTorrent;
use crate::archive::{ArchiveError, ArchiveWriter, Exported, LeftOut};

/// A client whose state can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// qBittorrent: its folder `BT_backup`.
    Qbittorrent,
    /// Transmission: its configuration folder, with the subfolders `resume` and `torrents`.
    Transmission,
    /// rTorrent: its session folder.
    Rtorrent,
}

impl Client {
    /// All clients.
    pub const ALL: [Self; 3] = [Self::Qbittorrent, Self::Transmission, Self::Rtorrent];

    /// Returns the name, as users type it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qbittorrent => "qbittorrent",
            Self::Transmission => "transmission",
            Self::Rtorrent => "rtorrent",
        }
    }
}

impl FromStr for Client {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|client| client.name() == name);
        found.ok_or_else(|| format!("{name:?} is none of qbittorrent, transmission and rtorrent"))
    }
}

/// Writes the torrents of another client to an archive. The result names torrents that cannot be read, and has notes
/// about details that are different here.
///
/// # Errors
/// If the folder is not a state folder of this client, or the archive cannot be written.
pub fn archive(client: Client, folder: &Path, out: impl Write) -> Result<Exported, ArchiveError> {
    let unreadable = || {
        ArchiveError::io(format!(
            "cannot read the state of {} in {}",
            client.name(),
            folder.display()
        ))
    };
    let found = match client {
        Client::Qbittorrent => qbittorrent::list(folder),
        Client::Transmission => transmission::list(folder),
        Client::Rtorrent => rtorrent::list(folder),
    };
    let mut exported = Exported::default();
    // The files of an archive are in the order of their names.
    let mut sorted = BTreeMap::new();
    let found = found.map_err(unreadable())?;
    if found.is_empty() {
        let error = io::Error::new(io::ErrorKind::NotFound, format!("no torrent of {}", client.name()));
        return Err(unreadable()(error));
    }
    for saved in found {
        match saved.metainfo().map(|metainfo| sorted.entry(metainfo.hashes.primary())) {
            Ok(Entry::Vacant(place)) => drop(place.insert(saved)),
            Ok(Entry::Occupied(_)) => exported
                .left_out
                .push(saved.left_out("the torrent is there twice".to_owned())),
            Err(reason) => exported.left_out.push(saved.left_out(reason)),
        }
    }
    let mut claimed = HashSet::new();
    let mut archive = ArchiveWriter::new(out);
    for (id, saved) in sorted {
        let read = saved.metainfo().and_then(|metainfo| {
            let mut torrent = OtherTorrent::new(id, &metainfo);
            match client {
                Client::Qbittorrent => qbittorrent::read(&saved, &mut torrent),
                Client::Transmission => transmission::read(&saved, &mut torrent),
                Client::Rtorrent => rtorrent::read(&saved, &mut torrent),
            }?;
            let (session, notes) = torrent.finish(&mut claimed)?;
            let text = session.to_text();
            Session::parse(text.as_bytes(), id).map_err(|error| error.to_string())?;
            Ok((session.name, text, notes, metainfo.bytes.clone()))
        });
        match read {
            Ok((name, text, notes, metainfo)) => {
                let note = |reason| LeftOut {
                    id: id.to_string(),
                    name: name.clone(),
                    reason,
                };
                exported.notes.extend(notes.into_iter().map(note));
                exported.torrents += 1;
                archive.add(&StateFile::Session(id), text.as_bytes())?;
                archive.add(&StateFile::Metainfo(id), &metainfo)?;
            }
            Err(reason) => exported.left_out.push(saved.left_out(reason)),
        }
    }
    archive.finish()?;
    Ok(exported)
}
