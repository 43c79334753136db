//! Options of `download` and `add` that place a torrent's files when other files are in their way.

use std::path::PathBuf;

use clap::Args;

use super::CliError;

#[derive(Debug, Args)]
pub(super) struct PlacementArgs {
    /// New subfolder of the download folder, for torrents that would collide with existing files.
    #[arg(long, value_name = "NEW_FOLDER")]
    pub(super) into: Option<PathBuf>,
    /// Another name for the torrent's file or folder. Needs a single torrent.
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Change and complete existing files. Without it, their valid pieces are used, and a torrent that would have to
    /// change the rest is refused.
    #[arg(long)]
    pub(super) overwrite: bool,
}

impl PlacementArgs {
    /// Adds the options to the parameters of a request that adds a torrent.
    #[cfg(feature = "daemon")]
    pub(super) fn write(&self, query: &mut url::form_urlencoded::Serializer<'_, String>) {
        if let Some(into) = &self.into {
            query.append_pair("into", &into.display().to_string());
        }
        if let Some(name) = &self.name {
            query.append_pair("name", name);
        }
        if self.overwrite {
            query.append_pair("overwrite", "true");
        }
    }

    /// Rejects `--name` for several torrents, since two torrents cannot share one name.
    pub(super) fn check(&self, source_count: usize) -> Result<(), CliError> {
        if self.name.is_some() && source_count > 1 {
            let why = "--name: several torrents cannot share a name; add them one by one, or use --into";
            return Err(CliError::Usage(why.into()));
        }
        Ok(())
    }
}
