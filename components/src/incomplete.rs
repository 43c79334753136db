//! The folder for incomplete torrents.

use std::path::PathBuf;

use bevy_ecs::prelude::*;

/// The download folder of a torrent whose files are in the folder for incomplete torrents.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
pub struct CompleteRoot {
    /// The folder.
    pub root: PathBuf,
    /// Whether the files were on their way there in this run. A move that failed is not tried again in a loop.
    pub is_requested: bool,
}

impl CompleteRoot {
    /// A torrent whose files go to `root` when it is complete.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self {
            root,
            is_requested: false,
        }
    }
}

/// Exists in engines that move torrents out of the folder for incomplete torrents.
#[derive(Resource, Debug, Default)]
pub struct IncompleteFolder;
