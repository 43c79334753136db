//! The one place where addresses of peers are checked, counted and limited.

use std::net::{IpAddr, SocketAddr};

use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::bans::Bans;
use ecs_torrent_components::candidates::{
    AllowedSources, CandidateFlags, CandidateSource, CandidateSources, Candidates, CandidatesFound,
};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::commands::{AddPeers, CommandQueue, TorrentNotFound};
use ecs_torrent_components::messages::{MetadataKnown, SessionLoaded};
use ecs_torrent_components::peer::{CloseReason, Peer};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::scope::Scope;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Lifecycle, Torrent, TorrentIndex, TorrentPeers};
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_protocol::prefix::is_unicast;
use ecs_torrent_protocol::priority::peer_priority;

use super::{DialQueue, Dialer};

/// Our external addresses as reported by trackers (BEP 24). Canonical peer priorities are computed from them (BEP 40).
#[derive(Resource, Debug, Default)]
pub(crate) struct ExternalAddresses(Vec<IpAddr>);

impl ExternalAddresses {
    /// Records our address as reported by another host. The latest one of each family counts.
    pub(crate) fn learn(&mut self, ip: IpAddr) {
        self.0.retain(|known| known.is_ipv4() != ip.is_ipv4());
        self.0.push(ip);
    }

    /// Returns our address of a family, if another host has reported it.
    pub(crate) fn of_family(&self, is_ipv4: bool) -> Option<IpAddr> {
        self.0.iter().copied().find(|ip| ip.is_ipv4() == is_ipv4)
    }

    /// Returns our address as a peer at `remote` most likely sees it.
    fn seen_from(&self, remote: SocketAddr, local: &LocalAddresses) -> SocketAddr {
        let listening = local.for_family_of(remote);
        let known = self.of_family(remote.is_ipv4());
        let ip = known.or(listening.map(|address| address.ip()));
        SocketAddr::new(ip.unwrap_or(remote.ip()), listening.map_or(0, |address| address.port()))
    }
}

/// Restores the addresses of an earlier run.
pub(super) fn restore_candidates(
    loaded: On<SessionLoaded>,
    settings: Res<Settings>,
    mut found: MessageWriter<CandidatesFound>,
) {
    let session = &loaded.session;
    let peers = session.peers.iter().take(settings.session.max_peers);
    found.write(CandidatesFound {
        torrent: loaded.torrent,
        peers: peers.map(|peer| (*peer).into()).collect(),
        source: match session.lacks_metadata {
            true => CandidateSource::UNFETCHED_SESSION,
            false => CandidateSource::SESSION,
        },
        informant: None,
    });
}

/// Finds the peers that users name.
pub(super) fn take_peers(
    mut commands: ResMut<CommandQueue<AddPeers>>,
    index: Res<TorrentIndex>,
    mut found: MessageWriter<CandidatesFound>,
) {
    for AddPeers { torrent, peers, reply } in commands.0.drain(..) {
        let Some(entity) = index.get(torrent) else {
            reply.send(Err(TorrentNotFound(torrent)));
            continue;
        };
        found.write(CandidatesFound {
            torrent: entity,
            peers: peers.into_iter().map(Into::into).collect(),
            source: CandidateSource::USER,
            informant: None,
        });
        reply.send(Ok(()));
    }
}

/// Forgets the peers that a torrent may not have, because its metadata says that it is private, and closes the
/// connections to them, whichever side opened these (BEP 27).
pub(super) fn refuse_known_peers(
    mut known: MessageReader<MetadataKnown>,
    mut reaper: ResMut<Reaper>,
    mut torrents: Query<(&AllowedSources, &mut Candidates, Option<&TorrentPeers>)>,
    peers: Query<&Peer>,
) {
    for MetadataKnown { torrent } in known.read() {
        let Ok((allowed, mut candidates, connected)) = torrents.get_mut(*torrent) else {
            continue;
        };
        let refused = candidates.retain_sources(allowed.0);
        let is_refused = |peer: &Peer| match (peer.listens_at, peer.endpoint.address()) {
            (Some(address), _) => refused.contains(&address),
            // The port at which an inbound peer listens is not known.
            (None, Some(address)) => {
                let is_same = |known: &SocketAddr| known.ip() == address.ip();
                refused.iter().any(is_same) && !candidates.iter().any(|known| is_same(&known))
            }
            (None, None) => false,
        };
        for entity in connected.into_iter().flat_map(RelationshipTarget::iter) {
            if peers.get(entity).is_ok_and(is_refused) {
                reaper.close(entity, CloseReason::Private);
            }
        }
    }
}

/// The parameters of the decision about an address.
#[derive(SystemParam)]
pub(super) struct CandidateRules<'w> {
    settings: Res<'w, Settings>,
    local: Res<'w, LocalAddresses>,
    external: Res<'w, ExternalAddresses>,
    clock: Res<'w, Clock>,
    bans: Res<'w, Bans>,
}

/// Adds found peers to the candidates of their torrents. No other system adds peers of a source, so that private
/// torrents (BEP 27) need no check elsewhere.
pub(super) fn add_candidates(
    mut found: MessageReader<CandidatesFound>,
    rules: CandidateRules,
    sources: Res<CandidateSources>,
    mut queue: ResMut<DialQueue>,
    mut torrents: Query<(&Torrent, &AllowedSources, &Lifecycle, &mut Candidates, &mut Dialer)>,
) {
    for message in found.read() {
        let CandidatesFound {
            torrent, peers, source, ..
        } = message;
        let Ok((known, allowed, lifecycle, mut candidates, mut dialer)) = torrents.get_mut(*torrent) else {
            continue;
        };
        if !allowed.has(*source) {
            let (source_name, count) = (sources.name_of(*source), peers.len());
            tracing::debug!(torrent = %known.label(), source = source_name, count, "peers of a source refused");
            candidates.count_refused(*source, count);
            continue;
        }
        for &peer in peers {
            if rules.accepts(message, peer.address, &candidates) {
                let priority = rules.priority_of(peer.address);
                let (limits, now) = (&rules.settings.peers, rules.clock.now());
                candidates.add_from(peer, *source, message.informant, now, priority, limits.max_candidates);
                // Two complete peers have nothing to exchange.
                if peer.flags.contains(CandidateFlags::SEED) && lifecycle.is_finished() && !limits.keep_redundant {
                    candidates.defer(peer.address);
                }
            } else {
                candidates.count_refused(*source, 1);
            }
        }
        if *source == CandidateSource::USER {
            queue.add_urgent(*torrent, &mut dialer);
        }
        queue.add(*torrent, &mut dialer);
    }
}

impl CandidateRules<'_> {
    /// Whether an address may be added. An address that a user named is always tried, unless it is banned.
    fn accepts(&self, found: &CandidatesFound, address: SocketAddr, candidates: &Candidates) -> bool {
        let source = found.source;
        if is_refused(&self.bans, &self.clock, &self.settings, source, address) {
            return false;
        }
        // Fault 30: trackers also return our own address.
        source == CandidateSource::USER
            || is_unicast(address.ip())
                && !self.local.0.contains(&address)
                && self.may_name(source, found.informant, address.ip())
                && self.has_room_for(address, candidates)
    }

    /// Whether a source may name an address. A host may not make us connect to a more private network than its own and
    /// ours. The addresses of a session were checked when they were found.
    fn may_name(&self, source: CandidateSource, informant: Option<IpAddr>, ip: IpAddr) -> bool {
        let is_checked = matches!(source, CandidateSource::SESSION | CandidateSource::UNFETCHED_SESSION);
        is_checked || informant.map_or(Scope::Global, Scope::of).may_reach(ip) || self.local.scope().may_reach(ip)
    }

    /// Whether few other addresses with the same IP address are known: a source may report every port of a victim.
    fn has_room_for(&self, address: SocketAddr, candidates: &Candidates) -> bool {
        let max = self.settings.peers.max_candidates_per_ip;
        Scope::of(address.ip()) != Scope::Global
            || candidates.get(address).is_some()
            || candidates.count_of_ip(address.ip(), max) < max
    }

    /// Returns the canonical priority of an address (BEP 40).
    fn priority_of(&self, address: SocketAddr) -> u32 {
        peer_priority(self.external.seen_from(address, &self.local), address)
    }
}

/// Returns whether an address is banned. An address that a user named is refused only for its own ban, not for those of
/// its neighbors.
pub(super) fn is_refused(
    bans: &Bans,
    clock: &Clock,
    settings: &Settings,
    source: CandidateSource,
    address: SocketAddr,
) -> bool {
    match source {
        CandidateSource::USER => bans.has(clock.now(), address),
        _ => bans.refuses(clock.now(), address, (&settings.peers).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{address, bed};
    use super::*;
    use crate::testing::{Bed, NOW};

    #[test]
    fn the_latest_external_address_of_each_family_counts() {
        let local = LocalAddresses(vec![address("10.0.0.1:6881"), address("[fd00::1]:6882")]);
        let mut external = ExternalAddresses::default();
        let seen = |external: &ExternalAddresses, remote| external.seen_from(address(remote), &local);
        assert_eq!(seen(&external, "192.0.2.9:1"), address("10.0.0.1:6881"));
        for ip in ["198.51.100.1", "2001:db8::1", "198.51.100.2"] {
            external.learn(ip.parse().unwrap());
        }
        assert_eq!(seen(&external, "192.0.2.9:1"), address("198.51.100.2:6881"));
        assert_eq!(seen(&external, "[2001:db8::9]:1"), address("[2001:db8::1]:6882"));
    }

    /// Finds peers. Returns which of them are candidates, and whether the torrent's user-named peers are dialed.
    fn find(bed: &mut Bed, source: CandidateSource, peers: &[&str]) -> (Vec<SocketAddr>, bool) {
        find_by(bed, source, None, peers)
    }

    fn find_by(
        bed: &mut Bed,
        source: CandidateSource,
        informant: Option<&str>,
        peers: &[&str],
    ) -> (Vec<SocketAddr>, bool) {
        *bed.get_mut::<Candidates>(bed.torrent) = Candidates::default();
        *bed.get_mut::<Dialer>(bed.torrent) = Dialer::default();
        *bed.world.resource_mut::<DialQueue>() = DialQueue::default();
        let found = CandidatesFound {
            torrent: bed.torrent,
            peers: peers.iter().map(|peer| address(peer).into()).collect(),
            source,
            informant: informant.map(|ip| ip.parse().unwrap()),
        };
        bed.run_after(found, add_candidates);
        let mut known: Vec<_> = bed.get::<Candidates>(bed.torrent).iter().collect();
        known.sort_unstable();
        let queue = bed.world.resource::<DialQueue>();
        assert_eq!(queue.torrents.front(), Some(bed.torrent));
        let counts: Vec<_> = bed.get::<Candidates>(bed.torrent).counts().collect();
        assert!(matches!(counts[..], [(of, counts)] if of == source
            && counts.found == known.len() as u64 && counts.refused == (peers.len() - known.len()) as u64));
        (known, queue.urgent.front().is_some())
    }

    /// A host may name only peers in networks that are not more private than its own, or than ours.
    #[test]
    fn strangers_cannot_make_us_connect_to_private_networks() {
        let inside = ["10.0.0.1:1", "127.0.0.1:1", "169.254.1.1:1"];
        let public = address("203.0.113.1:1");
        let mut bed = bed();
        let mut known = |own: &str, source, informant| {
            bed.world.insert_resource(LocalAddresses(vec![address(own)]));
            let all = [inside[0], inside[1], inside[2], "203.0.113.1:1"];
            find_by(&mut bed, source, informant, &all).0
        };
        use CandidateSource as Source;
        let [private, loopback, link] = inside.map(address);
        for source in [
            Source::TRACKER,
            Source::MAGNET,
            Source::DHT,
            Source::PEER_EXCHANGE,
            Source::LOCAL_DISCOVERY,
        ] {
            for informant in [None, Some("8.8.8.8")] {
                assert_eq!(known("0.0.0.0:9", source, informant), [public], "{source:?}");
            }
            assert_eq!(known("0.0.0.0:9", source, Some("10.9.9.9")), [private, public]);
            assert_eq!(known("10.0.0.5:9", source, None), [private, public]);
            assert_eq!(
                known("0.0.0.0:9", source, Some("127.0.0.1")),
                [private, loopback, public]
            );
            assert_eq!(
                known("127.0.0.1:9", source, Some("8.8.8.8")),
                [private, loopback, public]
            );
            assert_eq!(known("0.0.0.0:9", source, Some("169.254.9.9")), [private, link, public]);
        }
        for source in [Source::USER, Source::SESSION, Source::UNFETCHED_SESSION] {
            assert_eq!(known("0.0.0.0:9", source, None), [private, loopback, link, public]);
        }
    }

    /// A source may report every port of a victim.
    #[test]
    fn few_addresses_with_the_same_ip_are_taken_from_strangers() {
        let ports = |ip: &str| (1..=20).map(|port| format!("{ip}:{port}")).collect::<Vec<_>>();
        let mut bed = bed();
        for (source, ip, count) in [
            (CandidateSource::PEER_EXCHANGE, "203.0.113.1", 8),
            (CandidateSource::TRACKER, "203.0.113.1", 8),
            (CandidateSource::USER, "203.0.113.1", 20),
        ] {
            let peers = ports(ip);
            let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
            assert_eq!(find(&mut bed, source, &peers).0.len(), count);
        }
        let peers = ports("10.0.0.1");
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let informant = Some("10.0.0.2");
        let known = find_by(&mut bed, CandidateSource::TRACKER, informant, &peers).0;
        assert_eq!(known.len(), 20, "a local network has few hosts");
    }

    #[test]
    fn sources_that_a_torrent_does_not_allow_are_refused_and_counted() {
        let mut bed = bed();
        let allowed = AllowedSources(CandidateSources::default().serving(true));
        *bed.get_mut::<AllowedSources>(bed.torrent) = allowed;
        for source in [CandidateSource::DHT, CandidateSource::MAGNET] {
            let found = CandidatesFound {
                torrent: bed.torrent,
                peers: vec![address("203.0.113.1:1").into(), address("203.0.113.2:1").into()],
                source,
                informant: None,
            };
            bed.run_after(found, add_candidates);
        }
        let candidates: &Candidates = bed.get(bed.torrent);
        assert!(candidates.is_empty() && candidates.counts().all(|(_, counts)| counts.refused == 2));
        assert_eq!(candidates.counts().count(), 2);
        assert!(!bed.world.resource::<DialQueue>().has_torrents());
    }

    /// Fault 30. An address that a user names is always tried.
    #[test]
    fn our_own_address_is_a_candidate_for_users_only() {
        let mut bed = bed();
        let [own, other] = ["192.0.2.99:1", "192.0.2.7:1"];
        let both = vec![address(other), address(own)];
        assert_eq!(
            find(&mut bed, CandidateSource::TRACKER, &[own, other]),
            (both[..1].to_vec(), false)
        );
        assert_eq!(find(&mut bed, CandidateSource::USER, &[own, other]), (both, true));
    }

    #[test]
    fn a_ban_of_neighbors_does_not_stop_a_user() {
        let mut bed = bed();
        bed.world.resource_mut::<Settings>().peers.bans_per_ip = 1;
        let [banned, neighbor] = ["203.0.113.1:1", "203.0.113.1:2"];
        let mut bans = bed.world.resource_mut::<Bans>();
        bans.ban(NOW, std::time::Duration::from_secs(60), 9, address(banned));
        assert_eq!(find(&mut bed, CandidateSource::TRACKER, &[banned, neighbor]).0, []);
        assert_eq!(
            find(&mut bed, CandidateSource::USER, &[banned, neighbor]).0,
            [address(neighbor)]
        );
    }

    #[test]
    fn the_peers_of_an_earlier_run_are_candidates() {
        for (lacks_metadata, source) in [
            (false, CandidateSource::SESSION),
            (true, CandidateSource::UNFETCHED_SESSION),
        ] {
            let mut bed = bed();
            bed.world.resource_mut::<Settings>().session.max_peers = 1;
            let session = ecs_torrent_components::session::Session {
                peers: vec![address("192.0.2.7:1"), address("192.0.2.8:1")],
                lacks_metadata,
                ..crate::testing::session()
            };
            bed.world.trigger(SessionLoaded {
                torrent: bed.torrent,
                session: session.into(),
            });
            bed.run(add_candidates);
            let candidates: &Candidates = bed.get(bed.torrent);
            assert_eq!(candidates.iter().collect::<Vec<_>>(), [address("192.0.2.7:1")]);
            assert_eq!(candidates.get(address("192.0.2.7:1")).unwrap().0, source.into());
        }
    }
}
