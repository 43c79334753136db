//! Allowed peer sources of a torrent (BEP 27): the only place that decides from which sources a torrent may get peers.

use bevy_ecs::prelude::*;
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, CandidateSources};
use ecs_torrent_components::messages::{MetadataKnown, PrivacyKnown, TrackersEdited, TrackersGiven};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Layout, Torrent, TorrentTrackers};

/// Torrents whose allowed sources have to be derived.
#[derive(Resource, Debug, Default)]
pub(super) struct ChangedSources(Vec<Entity>);

/// Lists a new torrent.
pub(super) fn list_torrent(added: On<Add<Torrent>>, mut changed: ResMut<ChangedSources>) {
    changed.0.push(added.entity);
}

/// Lists a torrent that gets trackers.
pub(super) fn list_trackers(given: On<TrackersGiven>, mut changed: ResMut<ChangedSources>) {
    changed.0.push(given.torrent);
}

/// Lists a torrent whose trackers were edited.
pub(super) fn list_edited(edited: On<TrackersEdited>, mut changed: ResMut<ChangedSources>) {
    changed.0.push(edited.torrent);
}

/// Lists a torrent that turned out to be private.
pub(super) fn list_private(known: On<PrivacyKnown>, mut changed: ResMut<ChangedSources>) {
    changed.0.push(known.torrent);
}

/// Returns whether the allowed sources of a torrent have to be derived.
pub(super) fn has_changed_sources(
    changed: Res<ChangedSources>,
    known: Res<Messages<MetadataKnown>>,
    sources: Res<CandidateSources>,
) -> bool {
    !changed.0.is_empty() || !known.is_empty() || sources.is_changed()
}

/// Derives the allowed sources of torrents that are new, have new trackers or metadata, and of all torrents when a
/// source is registered.
pub(super) fn allow_sources(
    mut changed: ResMut<ChangedSources>,
    mut known: MessageReader<MetadataKnown>,
    sources: Res<CandidateSources>,
    settings: Res<Settings>,
    mut torrents: Query<(
        Entity,
        &Torrent,
        Has<Layout>,
        Option<&TorrentTrackers>,
        &mut AllowedSources,
    )>,
) {
    changed.0.extend(known.read().map(|known| known.torrent));
    if sources.is_changed() {
        changed.0 = torrents.iter().map(|(entity, ..)| entity).collect();
    }
    for entity in changed.0.drain(..) {
        if let Ok((_, torrent, is_known, trackers, mut allowed)) = torrents.get_mut(entity) {
            let state = if torrent.private {
                Privacy::Private
            } else if is_known {
                Privacy::Public
            } else {
                Privacy::Unknown {
                    has_trackers: trackers.is_some(),
                }
            };
            allowed.set_if_neq(derive(&sources, &settings, state));
        }
    }
}

/// Knowledge of a torrent's private flag (BEP 27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Privacy {
    Private,
    Public,
    /// The metadata is not known.
    Unknown {
        /// The torrent has a tracker; only such a torrent can be private.
        has_trackers: bool,
    },
}

/// Returns the sources that a torrent may use.
fn derive(sources: &CandidateSources, settings: &Settings, privacy: Privacy) -> AllowedSources {
    let mut allowed = match privacy {
        Privacy::Private => sources.serving(true),
        Privacy::Public => sources.serving(false),
        Privacy::Unknown { has_trackers } if has_trackers && settings.metadata.trackers_only => {
            let mut allowed = sources.serving(true);
            // Without metadata, nothing forbids fetching it from these peers.
            allowed.insert(CandidateSource::MAGNET);
            allowed.insert(CandidateSource::UNFETCHED_SESSION);
            allowed
        }
        Privacy::Unknown { .. } => sources.serving(false),
    };
    if !settings.dht.enabled {
        allowed.remove(CandidateSource::DHT);
    }
    if !settings.pex.enabled {
        allowed.remove(CandidateSource::PEER_EXCHANGE);
    }
    if !settings.lsd.enabled {
        allowed.remove(CandidateSource::LOCAL_DISCOVERY);
    }
    AllowedSources(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: Privacy = Privacy::Unknown { has_trackers: true };

    #[test]
    fn a_torrent_may_use_all_sources_unless_it_is_private() {
        let mut sources = CandidateSources::default();
        let mine = sources.register("blackboard", false);
        let mut settings = Settings::default();
        let has = |settings: &Settings, privacy, source| derive(&sources, settings, privacy).has(source);
        for source in [mine, CandidateSource::DHT, CandidateSource::PEER_EXCHANGE] {
            for (privacy, is_allowed) in [(Privacy::Private, false), (Privacy::Public, true), (UNKNOWN, true)] {
                assert_eq!(has(&settings, privacy, source), is_allowed, "{source:?} {privacy:?}");
                assert!(has(&settings, privacy, CandidateSource::TRACKER));
            }
        }
        settings.metadata.trackers_only = true;
        let trackerless = Privacy::Unknown { has_trackers: false };
        assert!(!has(&settings, UNKNOWN, CandidateSource::DHT) && has(&settings, UNKNOWN, CandidateSource::MAGNET));
        assert!(has(&settings, trackerless, CandidateSource::DHT));
        assert!(has(&settings, Privacy::Public, CandidateSource::DHT));
    }

    #[test]
    fn a_source_that_is_switched_off_is_not_allowed() {
        let sources = CandidateSources::default();
        let switch_off: fn(&mut Settings, CandidateSource) = |settings, source| match source {
            CandidateSource::DHT => settings.dht.enabled = false,
            CandidateSource::PEER_EXCHANGE => settings.pex.enabled = false,
            _ => settings.lsd.enabled = false,
        };
        for source in [
            CandidateSource::DHT,
            CandidateSource::PEER_EXCHANGE,
            CandidateSource::LOCAL_DISCOVERY,
        ] {
            let mut settings = Settings::default();
            assert!(derive(&sources, &settings, Privacy::Public).has(source));
            switch_off(&mut settings, source);
            for privacy in [Privacy::Public, UNKNOWN] {
                assert!(
                    !derive(&sources, &settings, privacy).has(source),
                    "{source:?} {privacy:?}"
                );
            }
        }
    }
}
