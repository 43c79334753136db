//! The folder for incomplete torrents.

use std::path::PathBuf;

use bevy_ecs::prelude::*;

/// The download folder of a torrent whose files are in the folder for incomplete torrents.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
pub struct CompleteRoot {
    /// The folder.
    pub root: PathBuf,
    /// The state of the move to it.
    pub progress: CompleteMove,
}

/// The state of the move of a complete torrent to its download folder, in this run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompleteMove {
    /// The torrent is not complete.
    Waiting,
    /// The move was requested, or an earlier run has begun it.
    Begun,
    /// The move failed. It is tried again when the engine starts again.
    Failed,
}

/// Exists in engines that move torrents out of the folder for incomplete torrents. They write
/// [`FilesSettled`](crate::messages::FilesSettled).
#[derive(Resource, Debug, Default)]
pub struct IncompleteFolder;
