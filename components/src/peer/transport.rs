//! The protocols that carry streams.

use std::fmt;

/// The protocol that carries a stream of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// TCP.
    Tcp,
    /// uTP, over UDP (BEP 29).
    Utp,
    /// A carrier that the embedder added, by its name.
    Other(&'static str),
}

impl Transport {
    /// Returns the name of the transport in lower case, as it appears in statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Utp => "utp",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
