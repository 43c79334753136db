//! The state folder of a command that runs an engine: the usual one, or one beside it while another engine uses that.

use std::path::{Path, PathBuf};

use ecs_torrent::engine::backends::StartError;
use ecs_torrent::{Engine, InfoHash, Settings, Source, TorrentPlugins};

use super::saved;

/// The usual state folder.
const USUAL: &str = ".ecs_torrent";

/// Maximum number of folders that are tried.
const MAX_TRIED: usize = 10;

/// The state folders that a command may use, the preferred one first.
pub(super) struct StateDirs(Vec<PathBuf>);

impl StateDirs {
    /// Returns the folder that the user named, or the usual one and those beside it. A folder with the state of the
    /// torrents comes before the others: an interrupted download continues there.
    pub(super) fn new(named: Option<PathBuf>, sources: &[Source]) -> Self {
        if let Some(named) = named {
            return Self(vec![named]);
        }
        let beside = |number: usize| PathBuf::from(format!("{USUAL}.{number}"));
        let mut folders: Vec<PathBuf> = std::iter::once(USUAL.into())
            .chain((2..=MAX_TRIED).map(beside))
            .collect();
        let hashes: Vec<InfoHash> = sources.iter().filter_map(hash_of).collect();
        let has_state = |folder: &Path| {
            let mut sessions = hashes.iter().map(|hash| saved::session_path(folder, (*hash).into()));
            sessions.any(|path| path.exists())
        };
        folders.sort_by_cached_key(|folder| !has_state(folder));
        Self(folders)
    }

    /// Returns the preferred folder.
    pub(super) fn first(&self) -> &Path {
        self.0.first().map_or(Path::new(USUAL), PathBuf::as_path)
    }

    /// Starts an engine in the first folder that no other engine uses. Also returns the folder.
    pub(super) fn start(self, mut settings: Settings) -> Result<(Engine, PathBuf), StartError> {
        let mut in_use = None;
        for folder in self.0 {
            settings.session.state_dir = Some(folder.clone());
            match Engine::builder()
                .plugins(TorrentPlugins)
                .settings(settings.clone())
                .start()
            {
                Ok(engine) => return Ok((engine, folder)),
                Err(error @ StartError::StateDirInUse { .. }) => drop(in_use.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        Err(in_use.unwrap_or(StartError::Died))
    }
}

/// Returns the info-hash of a torrent; `None` for a link to a torrent that its publisher replaces.
fn hash_of(source: &Source) -> Option<InfoHash> {
    match source {
        Source::Metainfo(metainfo) => Some(metainfo.hashes.primary()),
        Source::Magnet(magnet) => Some(magnet.hashes.primary()),
        _ => None,
    }
}
