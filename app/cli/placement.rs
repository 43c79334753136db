//! Options of `download` and `add` that place a torrent's files when other files are in their way.

use std::path::PathBuf;

use clap::Args;

use super::CliError;

#[derive(Debug, Args)]
pub(super) struct PlacementArgs {
    /// A new folder in the folder to download into, for torrents whose files would meet others.
    #[arg(long, value_name = "NEW_FOLDER")]
    pub(super) into: Option<PathBuf>,
    /// Another name for the torrent's file or folder; for one torrent at a time.
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Complete and change files that are there already. Without this, what of them is right is used, and a torrent that
    /// would have to change the rest is refused.
    #[arg(long)]
    pub(super) overwrite: bool,
}

impl PlacementArgs {
    /// Rejects `--name` for several torrents, since two torrents cannot share one name.
    pub(super) fn check(&self, source_count: usize) -> Result<(), CliError> {
        if self.name.is_some() && source_count > 1 {
            let why = "--name: one name for several torrents; add them one by one, or use --into";
            return Err(CliError::Other(why.into()));
        }
        Ok(())
    }
}
