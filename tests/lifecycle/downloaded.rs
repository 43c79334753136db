//! A torrent that an engine has downloaded.

use std::path::PathBuf;
use std::sync::Arc;

use ecs_torrent::InfoHash;
use ecs_torrent::components::session::Session;

use crate::bed::{Bed, Torrent, settings};
use crate::seed::Seed;

/// A complete torrent, in a folder with its data and the engine's state.
pub struct Downloaded {
    pub torrent: Arc<Torrent>,
    pub folder: tempfile::TempDir,
    pub id: InfoHash,
}

impl Downloaded {
    /// Downloads the files of an album from a seed. Also returns the engine.
    pub fn album(number: u64, files: &[(&str, usize)], piece_length: u32) -> (Self, Bed) {
        let torrent = Arc::new(Torrent::album(number, "album", files, piece_length));
        let folder = tempfile::tempdir().unwrap();
        let mut bed = Bed::start(&folder.path().join("state-dir"));
        let seed = Seed::free(&torrent);
        let id = bed.add(&torrent, &folder.path().join("data"), &[seed.address]);
        bed.wait_seeding(id);
        (Self { torrent, folder, id }, bed)
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state-dir")
    }

    pub fn session(&self) -> Session {
        self.torrent.session(&self.state()).unwrap()
    }

    /// Starts another engine, as after a kill.
    pub fn restore(&self) -> Bed {
        Bed::restored(settings(Some(&self.state())))
    }
}
