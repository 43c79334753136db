//! Reasons to refuse a metainfo file.

use crate::bencode::BencodeError;

/// The reason to refuse a metainfo file: the field, and the problem with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetainfoError {
    /// The file is not bencode.
    #[error("not a torrent file: {0}")]
    Bencode(#[from] BencodeError),
    /// A field is missing or unacceptable.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field, as in `info.files[3].length`.
        field: String,
        /// The problem with the field.
        problem: Problem,
    },
    /// A BEP 52 torrent has no v1 half.
    #[error("info.meta version: v2-only torrents are not supported")]
    V2Only,
}

/// Problems with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The field is missing.
    #[error("missing")]
    Missing,
    /// The field has another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// The expected type.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// The number is out of range.
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
    /// No file has any bytes.
    #[error("the torrent has no content")]
    Empty,
    /// The length of the hash string is not a multiple of a hash.
    #[error("{0} bytes is not a multiple of 20")]
    RaggedHashes(usize),
    /// The sizes and the hashes disagree on the number of pieces.
    #[error("{found} piece hashes where the sizes make {expected} pieces")]
    PieceCount {
        /// Number of hashes found.
        found: usize,
        /// Number of pieces computed from sizes and piece length.
        expected: u64,
    },
    /// v2 does not allow the piece length.
    #[error("v2 requires a power of two of at least 16384")]
    NotForV2,
    /// A node of a file tree is neither a folder nor a file.
    #[error("neither a folder nor a file")]
    BadTree,
    /// The halves of a hybrid list different files.
    #[error("v1 has {v1} where v2 has {v2}")]
    HybridFiles {
        /// The file of v1, or a note that v1 has no more files.
        v1: String,
        /// The file of v2, or a note that v2 has no more files.
        v2: String,
    },
    /// A file has different offsets in the halves of a hybrid, because padding is missing or wrong.
    #[error("{path} starts at byte {v1} in v1 and at byte {v2} in v2")]
    HybridOffset {
        /// The file.
        path: String,
        /// The file's offset in v1.
        v1: u64,
        /// The file's offset in v2.
        v2: u64,
    },
    /// A non-empty file has no root.
    #[error("no pieces root")]
    NoRoot,
    /// A root has the wrong length.
    #[error("pieces root has {0} bytes instead of 32")]
    RootLength(usize),
    /// A root is all zeros.
    #[error("pieces root is all zeros")]
    ZeroRoot,
    /// Piece hashes do not match their root.
    #[error("the hashes of {0} do not match that root")]
    WrongLayer(String),
    /// The number of hashes in a layer differs from the number of pieces of the file.
    #[error("{path} has {expected} pieces and {found} hashes")]
    LayerLength {
        /// The file.
        path: String,
        /// Number of hashes found.
        found: u64,
        /// Number of pieces of the file.
        expected: u64,
    },
    /// The torrent has more folders than the limit.
    #[error("more than {max} folders")]
    TooManyFolders {
        /// The limit.
        max: usize,
    },
    /// A number exceeds its limit.
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
