//! Sources of peers' addresses, and the sources that a torrent may use.

use bevy_ecs::prelude::*;

/// The source of an address. The engine's own sources are constants; a plugin adds its own to [`CandidateSources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateSource(u8);

impl CandidateSource {
    /// A user named the address.
    pub const USER: Self = Self(0);
    /// A tracker returned the address.
    pub const TRACKER: Self = Self(1);
    /// An earlier session saved the address.
    pub const SESSION: Self = Self(2);
    /// The peer itself named the address: it connected to us and announced its listen port.
    pub const INCOMING: Self = Self(3);
    /// Another peer named the address (BEP 11).
    pub const PEER_EXCHANGE: Self = Self(4);
    /// The distributed hash table returned the address (BEP 5).
    pub const DHT: Self = Self(5);
    /// A peer in the local network announced itself (BEP 14).
    pub const LOCAL_DISCOVERY: Self = Self(6);
    /// A magnet link contains the address (`x.pe`, BEP 9).
    pub const MAGNET: Self = Self(7);
    /// An earlier session saved the address before the metadata was known, so any source may have named it.
    pub const UNFETCHED_SESSION: Self = Self(8);
}

impl CandidateSource {
    /// Whether the source is a stranger that reports third parties: another peer, or a node of the DHT.
    pub(super) fn is_unconfirmed(self) -> bool {
        self == Self::PEER_EXCHANGE || self == Self::DHT
    }
}

/// A set of sources.
///
/// ```
/// use ecs_torrent_components::candidates::{CandidateSource, SourceSet};
///
/// let set: SourceSet = [CandidateSource::DHT, CandidateSource::TRACKER].into_iter().collect();
/// assert!(set.contains(CandidateSource::DHT) && !set.contains(CandidateSource::USER));
/// assert!(set.iter().eq([CandidateSource::TRACKER, CandidateSource::DHT]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SourceSet(u64);

impl SourceSet {
    /// Maximum number of sources.
    const MAX: usize = u64::BITS as usize;

    /// Whether the set contains a source.
    #[must_use]
    pub fn contains(self, source: CandidateSource) -> bool {
        self.0 & Self::from(source).0 != 0
    }

    /// Adds a source; false if the set contains it already.
    pub fn insert(&mut self, source: CandidateSource) -> bool {
        let is_new = !self.contains(source);
        self.0 |= Self::from(source).0;
        is_new
    }

    /// Removes a source.
    pub fn remove(&mut self, source: CandidateSource) {
        self.0 &= !Self::from(source).0;
    }

    /// Returns the sources that both sets contain.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns the sources in the order of their registration.
    pub fn iter(self) -> impl Iterator<Item = CandidateSource> {
        (0..64)
            .map(CandidateSource)
            .filter(move |source| self.contains(*source))
    }
}

impl From<CandidateSource> for SourceSet {
    fn from(source: CandidateSource) -> Self {
        Self(1 << source.0)
    }
}

impl FromIterator<CandidateSource> for SourceSet {
    fn from_iter<I: IntoIterator<Item = CandidateSource>>(sources: I) -> Self {
        let mut set = Self::default();
        for source in sources {
            set.insert(source);
        }
        set
    }
}

/// The registered sources of addresses.
///
/// ```
/// use ecs_torrent_components::candidates::{CandidateSource, CandidateSources};
///
/// let mut sources = CandidateSources::default();
/// let friends = sources.register("friends", false);
/// assert_eq!(sources.name_of(friends), "friends");
/// // A private torrent gets peers only from its trackers and from the user (BEP 27).
/// let private = sources.serving(true);
/// assert!(!private.contains(friends) && private.contains(CandidateSource::TRACKER));
/// ```
#[derive(Resource, Debug)]
pub struct CandidateSources {
    sources: Vec<RegisteredSource>,
}

#[derive(Debug, Clone, Copy)]
struct RegisteredSource {
    name: &'static str,
    serves_private: bool,
}

impl Default for CandidateSources {
    fn default() -> Self {
        let source = |name, serves_private| RegisteredSource { name, serves_private };
        // In the order of the constants. The addresses of a session came from sources that its torrent allows.
        let sources = vec![
            source("user", true),
            source("tracker", true),
            source("session", true),
            source("incoming", true),
            source("pex", false),
            source("dht", false),
            source("lsd", false),
            source("magnet", false),
            source("unfetched_session", false),
        ];
        Self { sources }
    }
}

impl CandidateSources {
    /// Registers a source of addresses. `serves_private` says whether peers of private torrents may come from it
    /// (BEP 27): only if it is under the control of the torrent's tracker or of the user. Registering a name again
    /// returns the source that has it.
    ///
    /// # Panics
    /// Beyond 64 sources; a set of sources is a number of 64 bits.
    pub fn register(&mut self, name: &'static str, serves_private: bool) -> CandidateSource {
        let known = self.sources.iter().position(|source| source.name == name);
        let position = known.unwrap_or_else(|| {
            self.sources.push(RegisteredSource { name, serves_private });
            self.sources.len() - 1
        });
        assert!(position < SourceSet::MAX, "at most 64 sources of peers");
        CandidateSource(u8::try_from(position).expect("a position below 64"))
    }

    /// Returns the name of a source.
    #[must_use]
    pub fn name_of(&self, source: CandidateSource) -> &'static str {
        self.sources
            .get(usize::from(source.0))
            .map_or("unknown", |source| source.name)
    }

    /// Returns the sources that serve private torrents (BEP 27), or all sources.
    #[must_use]
    pub fn serving(&self, is_private: bool) -> SourceSet {
        let numbered = (0..).map(CandidateSource).zip(&self.sources);
        let serving = numbered.filter(|(_, registered)| !is_private || registered.serves_private);
        serving.map(|(source, _)| source).collect()
    }
}

/// The sources from which a torrent may get peers. A feature that finds peers for a torrent, or announces the torrent,
/// checks that its source is among them. Every torrent has one; until it is derived, it allows no source.
///
/// The set follows from the private flag (BEP 27), the settings, and whether the metadata is known; one system derives
/// it.
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AllowedSources(pub SourceSet);

impl AllowedSources {
    /// Whether the torrent may get peers from this source, and be announced there.
    #[must_use]
    pub fn has(&self, source: CandidateSource) -> bool {
        self.0.contains(source)
    }

    /// Whether the torrent's metadata may be exchanged with peers: where the peers of a link are allowed. Links and
    /// metadata from peers belong together (BEP 9), and a private torrent has neither (BEP 27).
    #[must_use]
    pub fn exchanges_metadata(&self) -> bool {
        self.has(CandidateSource::MAGNET)
    }
}

/// Counts of the addresses of one source, by their outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceCounts {
    /// Addresses that the source reported, each one once while it is remembered.
    pub found: u64,
    /// Reports of addresses that were refused: banned, our own, in a network that the source may not name, without
    /// room, or from a source that the torrent does not allow.
    pub refused: u64,
    /// Reported addresses at which a peer completed its handshake. An address of several sources counts for each.
    pub connected: u64,
}

/// The counts of all sources of a torrent.
#[derive(Debug, Clone, Default)]
pub(super) struct CountsBySource(Vec<SourceCounts>);

impl CountsBySource {
    pub(super) fn of(&mut self, source: CandidateSource) -> &mut SourceCounts {
        let position = usize::from(source.0);
        if self.0.len() <= position {
            self.0.resize(position + 1, SourceCounts::default());
        }
        &mut self.0[position]
    }

    /// Returns the sources that have reported an address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (CandidateSource, SourceCounts)> + '_ {
        let numbered = (0..).map(CandidateSource).zip(self.0.iter().copied());
        numbered.filter(|(_, counts)| *counts != SourceCounts::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_that_serve_private_torrents_serve_them() {
        let mut sources = CandidateSources::default();
        let mine = sources.register("blackboard", false);
        let office = sources.register("office", true);
        assert_eq!(sources.register("blackboard", true), mine, "registered once");
        assert_eq!(
            (sources.name_of(mine), sources.name_of(CandidateSource::DHT)),
            ("blackboard", "dht")
        );
        use CandidateSource as Source;
        let trusted = [Source::USER, Source::TRACKER, Source::SESSION, Source::INCOMING, office];
        let private = sources.serving(true);
        assert_eq!(private, trusted.into_iter().collect());
        let all = sources.serving(false);
        assert_eq!(all.iter().count(), 11);
        let others = [
            Source::PEER_EXCHANGE,
            Source::DHT,
            Source::LOCAL_DISCOVERY,
            Source::MAGNET,
            mine,
        ];
        for source in others.into_iter().chain([Source::UNFETCHED_SESSION]) {
            assert!(
                !private.contains(source) && all.contains(source),
                "{}",
                sources.name_of(source)
            );
        }
    }

    #[test]
    #[should_panic(expected = "at most 64 sources")]
    fn more_sources_than_bits_are_refused() {
        let mut sources = CandidateSources::default();
        for number in 0..64 {
            sources.register(format!("source {number}").leak(), false);
        }
    }

    #[test]
    fn sets_have_no_source_twice() {
        let mut set = SourceSet::default();
        assert!(set.is_empty() && set.insert(CandidateSource::DHT) && !set.insert(CandidateSource::DHT));
        set.insert(CandidateSource::USER);
        assert_eq!(
            set.intersection(CandidateSource::USER.into()),
            CandidateSource::USER.into()
        );
        set.remove(CandidateSource::USER);
        assert_eq!(set, CandidateSource::DHT.into());
    }
}
