//! Readers of files: users read a file while its torrent downloads it.
//!
//! A reader moves a window of pieces ahead of its position ([`PieceDeadlines`]). The picker requests these pieces
//! before all others.

use std::sync::Arc;

use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

use crate::commands::{Reply, TorrentNotFound};
use crate::lifecycle::TorrentState;

/// The number of a reader. It is drawn at random, so that a number from before a rebuild of the engine names no reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// A command about readers. All of them share a queue, so that they are carried out in their order.
#[derive(Debug)]
pub enum ReaderCommand {
    /// Opens a reader.
    Open(OpenReader),
    /// Reads.
    Read(ReadFile),
    /// Closes a reader. Its unanswered read ends without an answer.
    Close(ReaderId),
}

/// Opens a reader of a file. The reader holds nothing until its first read.
#[derive(Debug)]
pub struct OpenReader {
    /// The torrent.
    pub torrent: InfoHash,
    /// The index of the file, as in [`FileStats::index`](crate::stats::FileStats::index).
    pub file: u32,
    /// Answered with the reader, or with the reason for the refusal.
    pub reply: Reply<Result<OpenedReader, ReadError>>,
}

/// A reader that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedReader {
    /// The reader.
    pub id: ReaderId,
    /// The path of the file, below the download folder.
    pub path: Box<str>,
    /// The length of the file in bytes.
    pub length: u64,
}

/// Reads bytes of a file. A reader has one read at a time: a newer one replaces an unanswered one.
#[derive(Debug)]
pub struct ReadFile {
    /// The reader.
    pub reader: ReaderId,
    /// Offset of the first byte in the file.
    pub offset: u64,
    /// Maximum number of bytes to read.
    pub len: u32,
    /// Answered when the piece of the first byte is held, with at least one byte of verified data; with no bytes at the
    /// end of the file; or with the reason why there is none.
    pub reply: Reply<Result<Bytes, ReadError>>,
}

/// Reasons why a file cannot be read. After any of them except [`ReadError::TimedOut`], the reader is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The torrent does not exist, or no longer.
    #[error(transparent)]
    NotFound(#[from] TorrentNotFound),
    /// The files of the torrent are not known yet.
    #[error("{0} has no metadata yet, so its files are not known")]
    NoMetadata(Arc<str>),
    /// The torrent has no file with this index.
    #[error("{torrent} has no file {file}")]
    NoSuchFile {
        /// The torrent.
        torrent: Arc<str>,
        /// The index.
        file: u32,
    },
    /// The user skips the file, and part of it is missing.
    #[error("{path} of {torrent} is skipped, so it is not downloaded; give it another priority first")]
    Skipped {
        /// The torrent.
        torrent: Arc<str>,
        /// The file, below the download folder.
        path: Box<str>,
    },
    /// The torrent does not run.
    #[error("{torrent} cannot be read: it is {}", words(*state))]
    NotRunning {
        /// The torrent.
        torrent: Arc<str>,
        /// The state.
        state: TorrentState,
    },
    /// There are as many readers as the settings allow, and all of them read.
    #[error("{0} readers are open already, see readers.max_readers")]
    TooMany(usize),
    /// The reader is closed: another one replaced this idle one, or the engine was rebuilt.
    #[error("the reader is closed")]
    Closed,
    /// The data did not arrive in time.
    #[error("byte {offset} of {path} did not arrive within {seconds} s; the torrent is {state}, see readers.timeout_s")]
    TimedOut {
        /// The file, below the download folder.
        path: Box<str>,
        /// Offset of the byte in the file.
        offset: u64,
        /// The time limit.
        seconds: u64,
        /// The state of the torrent.
        state: TorrentState,
    },
    /// The disk failed.
    #[error("{torrent} cannot be read: {reason}")]
    Disk {
        /// The torrent.
        torrent: Arc<str>,
        /// The reason, human-readable.
        reason: Arc<str>,
    },
}

/// The pieces that readers of a torrent need next: missing and wanted ones, each with the time by which it is needed. A
/// torrent without such pieces does not have this component.
#[derive(Component, Debug, Clone, Default, PartialEq, Eq)]
pub struct PieceDeadlines(Vec<(Timestamp, u32)>);

impl PieceDeadlines {
    /// Creates the deadlines. A piece that occurs more than once has the earliest of its deadlines.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ecs_torrent_components::readers::PieceDeadlines;
    /// use ecs_torrent_protocol::time::Timestamp;
    ///
    /// let at = |second| Timestamp::ZERO + Duration::from_secs(second);
    /// let deadlines = PieceDeadlines::new([(at(1), 7), (at(2), 8), (at(0), 8)]);
    /// assert_eq!(deadlines.iter().collect::<Vec<_>>(), [(at(0), 8), (at(1), 7)]);
    /// ```
    #[must_use]
    pub fn new(deadlines: impl IntoIterator<Item = (Timestamp, u32)>) -> Self {
        let mut by_piece: Vec<(u32, Timestamp)> = deadlines.into_iter().map(|(due, piece)| (piece, due)).collect();
        by_piece.sort_unstable();
        by_piece.dedup_by_key(|(piece, _)| *piece);
        let mut by_time: Vec<(Timestamp, u32)> = by_piece.into_iter().map(|(piece, due)| (due, piece)).collect();
        by_time.sort_unstable();
        Self(by_time)
    }

    /// Whether no piece is needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the pieces with their deadlines, the earliest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Timestamp, u32)> + '_ {
        self.0.iter().copied()
    }
}

/// Returns a state in words.
fn words(state: TorrentState) -> &'static str {
    match state {
        TorrentState::Stopping(_) => "being stopped or paused",
        state => state.name(),
    }
}
