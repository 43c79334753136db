//! Why a metainfo file is refused.

use crate::bencode::BencodeError;

/// Why a metainfo file is refused: which field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetainfoError {
    /// Not bencode.
    #[error("not a torrent file: {0}")]
    Bencode(#[from] BencodeError),
    /// A field is missing or unacceptable.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field, as in `info.files[3].length`.
        field: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A torrent of BEP 52 without its v1 side.
    #[error("info.meta version: v2-only torrents are not supported")]
    V2Only,
}

/// What can be wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Not there.
    #[error("missing")]
    Missing,
    /// Of another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// The type that belongs there.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// A number outside what makes sense.
    #[error("{value} is out of range ({min} to {max})")]
    Range {
        /// The value found.
        value: i64,
        /// Smallest value accepted.
        min: i64,
        /// Largest value accepted.
        max: i64,
    },
    /// The files' sizes do not fit 63 bits.
    #[error("total size overflows")]
    TotalSize,
    /// No bytes in any file.
    #[error("the torrent has no content")]
    Empty,
    /// The hash string is not made of whole hashes.
    #[error("{0} bytes is not a multiple of 20")]
    RaggedHashes(usize),
    /// Sizes and hashes disagree on the number of pieces.
    #[error("{found} piece hashes where the sizes make {expected} pieces")]
    PieceCount {
        /// Hashes found.
        found: usize,
        /// Pieces that sizes and piece length make.
        expected: u64,
    },
    /// A piece length that v2 does not allow.
    #[error("v2 requires a power of two of at least 16384")]
    NotForV2,
    /// A node of a file tree that is neither a folder nor a file.
    #[error("neither a folder nor a file")]
    BadTree,
    /// The halves of a hybrid list different files.
    #[error("v1 has {v1} where v2 has {v2}")]
    HybridFiles {
        /// The file of v1, or that there are no more.
        v1: String,
        /// The file of v2, or that there are no more.
        v2: String,
    },
    /// A file has different offsets in the halves of a hybrid, because padding is missing or wrong.
    #[error("{path} starts at byte {v1} in v1 and at byte {v2} in v2")]
    HybridOffset {
        /// The file.
        path: String,
        /// Its offset in v1.
        v1: u64,
        /// Its offset in v2.
        v2: u64,
    },
    /// A non-empty file without a root.
    #[error("no pieces root")]
    NoRoot,
    /// A root of the wrong length.
    #[error("pieces root has {0} bytes instead of 32")]
    RootLength(usize),
    /// A root of zeros.
    #[error("pieces root is all zeros")]
    ZeroRoot,
    /// Piece hashes that do not match their root.
    #[error("the hashes of {0} do not match that root")]
    WrongLayer(String),
    /// A layer whose number of hashes differs from the number of pieces of the file.
    #[error("{path} has {expected} pieces and {found} hashes")]
    LayerLength {
        /// The file.
        path: String,
        /// Number of hashes found.
        found: u64,
        /// Number of pieces of the file.
        expected: u64,
    },
    /// More folders than a limit allows.
    #[error("more than {max} folders")]
    TooManyFolders {
        /// The limit.
        max: usize,
    },
    /// More than a limit allows.
    #[error("{found} exceeds the limit of {max}")]
    TooMany {
        /// Number found.
        found: usize,
        /// The limit.
        max: usize,
    },
}

impl MetainfoError {
    pub(super) fn field(field: impl Into<String>, problem: Problem) -> Self {
        Self::Field {
            field: field.into(),
            problem,
        }
    }
}
