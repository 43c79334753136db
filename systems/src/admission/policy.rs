//! Eviction policy: pure functions that choose the connection to evict for a newcomer.

use std::cmp::Reverse;
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::connections::TorrentCounts;
use ecs_torrent_components::peer::Direction;
use ecs_torrent_components::settings::{PeerSettings, seconds};

/// Usefulness of a connection, the least useful class first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Neither side needs a piece: we seed, and the peer is a seed or upload-only.
    Redundant,
    /// Neither side is interested, or the peer owes blocks and sends none.
    Silent,
    /// One side is interested, but no block has been sent for a long time.
    Waiting,
    /// The connection is being opened.
    Opening,
    /// Blocks were sent in either direction recently.
    Useful,
}

/// Properties of a connection that decide whether it is evicted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) class: Class,
    pub(crate) direction: Direction,
    pub(crate) is_user_named: bool,
    /// Time since the last block, or since the handshake if there was no block.
    pub(crate) idle: Duration,
    /// Number of connections of the same torrent to the same subnet or under the same peer id, including this one. A
    /// party with many connections gets little time for each, and loses them first.
    pub(crate) party_size: usize,
    /// Number of silent connections from the same site that were evicted recently.
    pub(crate) silences: usize,
}

/// Properties of a newcomer's party that decide which connections it may replace.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rival {
    /// Number of connections of the torrent to the same subnet or under the same peer id.
    pub(crate) party_size: usize,
    /// Number of silent connections from the same site that were evicted recently.
    pub(crate) silences: usize,
}

/// Kind of newcomer, which determines the connections that it may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A peer connected to us. It replaces a connection whose grace period is over.
    Inbound,
    /// Like `Inbound`, while outbound connections are within their share: it replaces only inbound connections.
    InboundOfInbound,
    /// We want to open a connection. It replaces a redundant or silent connection whose grace period is over.
    Outbound,
    /// Like `Outbound`, within the share of outbound connections: it replaces inbound ones, without a grace period.
    OutboundShare,
    /// A user named the peer. It replaces any connection to a peer that no user named.
    UserNamed,
}

/// Time after the last block during which a connection counts as useful.
pub(crate) const USEFUL_FOR: Duration = Duration::from_secs(120);

/// Shortest grace period. A handshake, a bitfield and the first block of an honest peer take a few round trips.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Parameters of one eviction, the same for all compared connections.
#[derive(Debug, Clone, Copy)]
struct Contest {
    claim: Claim,
    newcomer: Option<Rival>,
    /// Number of all connections; `silent` of them are redundant or silent.
    total: usize,
    silent: usize,
}

impl Standing {
    /// Returns the grace period: how long the connection is safe from losing its slot.
    ///
    /// The period is shorter the more connections the same party has, and drops to the minimum if the newcomer's party
    /// has fewer. For silent connections it is also shorter the larger their part of all connections, so that an honest
    /// newcomer gets a slot within a few seconds in any case. A silent connection has no grace period if its site has
    /// been evicted more often than the newcomer's: otherwise silent peers that return would take turns.
    fn grace(&self, contest: &Contest, settings: &PeerSettings) -> Option<Duration> {
        let party_size = u32::try_from(self.party_size.max(1)).unwrap_or(u32::MAX);
        let whole = match self.class {
            Class::Redundant | Class::Silent => {
                let others = contest.total.saturating_sub(contest.silent) as f64 / contest.total.max(1) as f64;
                seconds(settings.grace_s).mul_f64(others)
            }
            Class::Waiting => seconds(settings.waiting_grace_s),
            Class::Opening | Class::Useful => return None,
        };
        if self.class <= Class::Silent
            && contest
                .newcomer
                .is_some_and(|newcomer| self.silences > newcomer.silences)
        {
            return Some(Duration::ZERO);
        }
        let is_larger_party = contest
            .newcomer
            .is_some_and(|newcomer| self.party_size > newcomer.party_size + 1);
        let grace = match is_larger_party {
            true => Duration::ZERO,
            false => whole / party_size,
        };
        Some(grace.max(LEAST_GRACE.min(seconds(settings.grace_s))))
    }

    fn gives_way(&self, contest: &Contest, settings: &PeerSettings) -> bool {
        let is_inbound = self.direction == Direction::Inbound;
        let grace_is_over = || self.grace(contest, settings).is_some_and(|grace| self.idle >= grace);
        !self.is_user_named
            && match contest.claim {
                Claim::Inbound => grace_is_over(),
                Claim::InboundOfInbound => is_inbound && grace_is_over(),
                Claim::Outbound => self.class <= Class::Silent && grace_is_over(),
                Claim::OutboundShare => is_inbound && self.class <= Class::Waiting,
                Claim::UserNamed => true,
            }
    }
}

/// Returns the connection to evict, among those that may be evicted: the lowest class first, then the largest party,
/// then the most evicted site, then the longest idle time.
pub(crate) fn least_useful(
    standings: &[(Entity, Standing)],
    newcomer: Option<Rival>,
    claim: Claim,
    settings: &PeerSettings,
) -> Option<Entity> {
    let silent = standings.iter().filter(|(_, standing)| standing.class <= Class::Silent);
    let contest = Contest {
        claim,
        newcomer,
        total: standings.len(),
        silent: silent.count(),
    };
    let giving_way = standings
        .iter()
        .filter(|(_, standing)| standing.gives_way(&contest, settings));
    let worst = giving_way.min_by_key(|connection| rank(connection));
    worst.map(|(entity, _)| *entity)
}

/// Returns the connections without those to user-named peers, in the order in which they are closed at a lowered limit.
pub(crate) fn least_useful_first(mut standings: Vec<(Entity, Standing)>) -> Vec<(Entity, Standing)> {
    standings.retain(|(_, standing)| !standing.is_user_named);
    standings.sort_unstable_by_key(rank);
    standings
}

fn rank((entity, standing): &(Entity, Standing)) -> impl Ord + use<> {
    let Standing {
        party_size,
        silences,
        idle,
        ..
    } = *standing;
    (
        standing.class,
        Reverse(party_size),
        Reverse(silences),
        Reverse(idle),
        *entity,
    )
}

/// Number of connections reserved for peers that a user named, out of `limit` in all.
pub(crate) fn user_reserve(limit: usize, settings: &PeerSettings) -> usize {
    settings.user_reserve.min(limit / 4)
}

/// Share of outbound connections, out of `limit` connections in all.
pub(crate) fn outbound_share(limit: usize, settings: &PeerSettings) -> usize {
    limit.saturating_mul(settings.outgoing_percent.min(100)) / 100
}

/// Number of slots that connections with a finished handshake leave free, so that newcomers can send theirs.
pub(crate) fn handshake_reserve(settings: &PeerSettings) -> usize {
    settings.max_unidentified.min(settings.max_connections / 16)
}

/// Number of connections that a torrent may have before a newcomer has to replace one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TorrentRoom {
    /// For a peer that a user named.
    pub(crate) for_user_named: usize,
    /// For an address from another source.
    pub(crate) for_outbound: usize,
    /// For a peer that connected to us.
    pub(crate) for_inbound: usize,
}

impl TorrentRoom {
    /// Computes the limits. `idle_count` addresses are available to dial; users named `idle_user_count` of them. Slots
    /// reserved for addresses that do not exist are free for all.
    pub(crate) fn new(
        settings: &PeerSettings,
        counts: TorrentCounts,
        idle_count: usize,
        idle_user_count: usize,
    ) -> Self {
        let limit = settings.max_per_torrent;
        let reserved = user_reserve(limit, settings).min(idle_user_count);
        let for_outbound = limit - reserved;
        let missing = outbound_share(limit, settings).saturating_sub(counts.outbound);
        Self {
            for_user_named: limit,
            for_outbound,
            for_inbound: for_outbound.saturating_sub(missing.min(idle_count.saturating_sub(reserved))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Standing = Standing {
        class: Class::Silent,
        direction: Direction::Inbound,
        is_user_named: false,
        idle: Duration::from_secs(60),
        party_size: 1,
        silences: 0,
    };

    fn choose(standings: &[Standing], claim: Claim) -> Option<usize> {
        choose_for(None, standings, claim)
    }

    fn choose_for(newcomer: Option<Rival>, standings: &[Standing], claim: Claim) -> Option<usize> {
        let entity = |number: usize| Entity::from_raw_u32(number as u32).unwrap();
        let named = standings.iter().enumerate();
        let named: Vec<_> = named.map(|(number, standing)| (entity(number), *standing)).collect();
        let victim = least_useful(&named, newcomer, claim, &PeerSettings::default())?;
        named.iter().position(|(entity, _)| *entity == victim)
    }

    fn idle(standing: Standing, seconds: u64) -> Standing {
        Standing {
            idle: Duration::from_secs(seconds),
            ..standing
        }
    }

    #[test]
    fn the_least_useful_gives_way_first() {
        let class = |class| Standing {
            class,
            ..idle(SILENT, 1000)
        };
        let all = [Class::Useful, Class::Waiting, Class::Silent, Class::Redundant].map(class);
        assert_eq!(choose(&all, Claim::Inbound), Some(3));
        assert_eq!(choose(&all[..3], Claim::Inbound), Some(2));
        assert_eq!(choose(&all[..2], Claim::Inbound), Some(1));
        assert_eq!(choose(&all[..1], Claim::Inbound), None, "it has earned its place");
        assert_eq!(choose(&all[..2], Claim::Outbound), None, "somebody waits there");
        assert_eq!(choose(&all[..1], Claim::UserNamed), Some(0));
    }

    #[test]
    fn equals_are_evicted_by_subnet_size_and_then_idle_time() {
        let large_party = Standing {
            party_size: 9,
            ..SILENT
        };
        let all = [SILENT, idle(SILENT, 70), idle(large_party, 30), idle(large_party, 40)];
        assert_eq!(choose(&all, Claim::Inbound), Some(3));
        assert_eq!(choose(&all[..2], Claim::Inbound), Some(1));
    }

    /// Returns `standing` among `useful_count` connections that send blocks.
    fn among(standing: Standing, useful_count: usize) -> Vec<Standing> {
        let useful = Standing {
            class: Class::Useful,
            ..SILENT
        };
        [vec![useful; useful_count], vec![standing]].concat()
    }

    #[test]
    fn silent_peers_have_less_time_the_more_there_are() {
        let evicted_after = |useful_count: usize| {
            let is_evicted = |seconds: &u64| {
                choose(&among(idle(SILENT, *seconds), useful_count), Claim::Inbound) == Some(useful_count)
            };
            (0..100).find(is_evicted)
        };
        assert_eq!(evicted_after(1000), Some(20));
        assert_eq!(evicted_after(1), Some(10));
        assert_eq!(evicted_after(0), Some(2), "nobody is evicted at once");
    }

    #[test]
    fn large_groups_have_less_time() {
        let party_size = |party_size, seconds| Standing {
            class: Class::Waiting,
            party_size,
            ..idle(SILENT, seconds)
        };
        for (number, seconds) in [(1, 300), (10, 30), (150, 2), (1000, 2)] {
            assert_eq!(choose(&[party_size(number, seconds - 1)], Claim::Inbound), None);
            assert_eq!(choose(&[party_size(number, seconds)], Claim::Inbound), Some(0));
        }
    }

    /// A party that has many connections makes room for one that has fewer, and not the other way around.
    #[test]
    fn a_small_group_wins_against_a_large_one() {
        let sybil = Standing {
            class: Class::Waiting,
            party_size: 12,
            ..idle(SILENT, 3)
        };
        let alone = Standing { party_size: 1, ..sybil };
        let of = |party_size| {
            Some(Rival {
                party_size,
                silences: 0,
            })
        };
        assert_eq!(choose_for(of(0), &[alone, sybil], Claim::Inbound), Some(1));
        assert_eq!(choose_for(of(12), &[alone, sybil], Claim::Inbound), None);
        assert_eq!(choose_for(of(0), &[alone], Claim::Inbound), None);
        let pair = Standing { party_size: 2, ..sybil };
        assert_eq!(choose_for(of(1), &[pair], Claim::Inbound), None);
    }

    /// A silent peer that was evicted and came back makes room for one that was not evicted as often.
    #[test]
    fn a_silent_peer_that_returns_has_no_grace() {
        let fresh = idle(SILENT, 0);
        let returned = Standing { silences: 2, ..fresh };
        let of = |silences| {
            Some(Rival {
                party_size: 0,
                silences,
            })
        };
        for claim in [Claim::Inbound, Claim::InboundOfInbound, Claim::Outbound] {
            assert_eq!(choose_for(of(1), &[fresh, returned], claim), Some(1));
            assert_eq!(choose_for(of(2), &[fresh, returned], claim), None);
            assert_eq!(choose_for(None, &[fresh, returned], claim), None);
        }
        for class in [Class::Waiting, Class::Opening, Class::Useful] {
            let busy = Standing { class, ..returned };
            assert_eq!(choose_for(of(0), &[busy], Claim::Inbound), None, "it is not silent");
        }
        let oldest = idle(SILENT, 90);
        let often = Standing {
            silences: 1,
            ..idle(SILENT, 80)
        };
        assert_eq!(choose(&[oldest, often], Claim::Inbound), Some(1), "it goes first");
    }

    /// Fresh inbound connections do not occupy the share of outbound connections.
    #[test]
    fn inbound_claims_leave_the_outbound_share() {
        let fresh = Standing {
            class: Class::Waiting,
            ..idle(SILENT, 0)
        };
        let outbound = Standing {
            direction: Direction::Outbound,
            ..SILENT
        };
        assert_eq!(choose(&[outbound, fresh], Claim::OutboundShare), Some(1));
        assert_eq!(choose(&[outbound], Claim::OutboundShare), None);
        assert_eq!(choose(&[outbound], Claim::InboundOfInbound), None);
        assert_eq!(choose(&[outbound], Claim::Inbound), Some(0));
    }

    #[test]
    fn a_user_named_peer_gives_way_to_nobody() {
        let named = Standing {
            is_user_named: true,
            ..idle(SILENT, 10_000)
        };
        for claim in [Claim::Inbound, Claim::Outbound, Claim::OutboundShare, Claim::UserNamed] {
            assert_eq!(choose(&[named], claim), None);
        }
    }

    #[test]
    fn reserved_slots_depend_on_the_claimants() {
        let settings = PeerSettings::default();
        let room = |outbound, idle, idle_user| {
            let mut counts = TorrentCounts::default();
            counts.outbound = outbound;
            let room = TorrentRoom::new(&settings, counts, idle, idle_user);
            (room.for_user_named, room.for_outbound, room.for_inbound)
        };
        assert_eq!(room(0, 0, 0), (100, 100, 100), "nobody to dial");
        assert_eq!(room(0, 500, 0), (100, 100, 70));
        assert_eq!(room(20, 500, 0), (100, 100, 90));
        assert_eq!(room(0, 1, 1), (100, 99, 99));
        assert_eq!(room(30, 50, 50), (100, 92, 92));
    }

    /// At a small limit, at most a quarter of the connections is reserved.
    #[test]
    fn a_small_limit_is_not_all_reserved() {
        let settings = PeerSettings::default();
        assert_eq!(user_reserve(1000, &settings), settings.user_reserve);
        assert_eq!((user_reserve(8, &settings), user_reserve(3, &settings)), (2, 0));
        let handshakes = |max_unidentified, max_connections| {
            handshake_reserve(&PeerSettings {
                max_unidentified,
                max_connections,
                ..PeerSettings::default()
            })
        };
        assert_eq!(
            (handshakes(100, 3200), handshakes(100, 1600), handshakes(100, 320)),
            (100, 100, 20)
        );
        assert_eq!(handshakes(100, 15), 0);
    }
}
