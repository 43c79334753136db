//! Tests of evictions, over connections in every state.

use bevy_ecs::system::SystemState;
use ecs_torrent_components::candidates::CandidateSource;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::{Endpoint, Stage};
use ecs_torrent_components::settings::PeerSettings;
use ecs_torrent_components::torrent::PeerOf;
use ecs_torrent_protocol::time::Timestamp;

use super::*;

/// The time of the tick, long after the connections were opened.
const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

/// An engine's connections to two torrents.
struct Bed {
    world: World,
    torrent: Entity,
    other: Entity,
}

/// The history of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// It is being opened.
    Connecting,
    /// It has sent no handshake.
    NoHandshake,
    /// Nothing was sent after the handshake.
    Idle,
    /// It has just sent a block.
    Useful,
}

impl Bed {
    /// Sets limits that no test reaches by accident.
    fn new(change: impl FnOnce(&mut PeerSettings)) -> Self {
        let mut settings = Settings::default();
        settings.peers.user_reserve = 0;
        change(&mut settings.peers);
        let mut clock = Clock::default();
        clock.advance_to(NOW);
        let mut world = World::new();
        world.insert_resource(settings);
        world.insert_resource(clock);
        world.init_resource::<ConnectionCounts>();
        world.init_resource::<Reaper>();
        let [torrent, other] = [(); 2].map(|()| world.spawn(Lifecycle::Downloading).id());
        Self { world, torrent, other }
    }

    /// Adds a connection to `torrent`.
    fn connect(&mut self, torrent: Entity, direction: Direction, ip: impl Into<IpAddr>, past: Past) -> Entity {
        let is_open = matches!(past, Past::Idle | Past::Useful);
        let peer = Peer {
            endpoint: Endpoint::Ip(SocketAddr::new(ip.into(), 1)),
            stream: StreamId(0),
            transport: None,
            direction,
            stage: match past {
                Past::Connecting => Stage::Connecting,
                Past::NoHandshake => Stage::Handshaking,
                Past::Idle | Past::Useful => Stage::Connected,
            },
            since: Timestamp::ZERO,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        };
        let entity = self.world.spawn_empty().id();
        let mut counts = self.world.resource_mut::<ConnectionCounts>();
        counts.add(entity, &peer, is_open.then_some(torrent), false);
        self.world.entity_mut(entity).insert(peer);
        if is_open {
            let rates = PeerRates {
                last_payload: (past == Past::Useful).then_some(NOW),
                ..PeerRates::default()
            };
            let parts = (PeerState::new(Timestamp::ZERO), rates, PeerOf(torrent));
            self.world.entity_mut(entity).insert(parts);
        }
        entity
    }

    /// Adds an inbound connection.
    fn inbound(&mut self, ip: impl Into<IpAddr>, past: Past) -> Entity {
        self.connect(self.torrent, Direction::Inbound, ip, past)
    }

    fn admit(&mut self, decide: impl FnOnce(&mut Admission) -> bool) -> bool {
        let mut state = SystemState::<Admission>::new(&mut self.world);
        decide(&mut state.get_mut(&mut self.world).unwrap())
    }

    fn admit_handshake(&mut self, ip: impl Into<IpAddr>) -> bool {
        let remote = SocketAddr::new(ip.into(), 1);
        self.admit(|admission| admission.make_room_for_handshake(remote))
    }

    fn admit_inbound(&mut self, ip: [u8; 4]) -> bool {
        let torrent = self.torrent;
        self.admit(|admission| {
            let address = Some((ip, 1).into());
            admission.make_room_for_inbound(torrent, &Candidates::default(), address, PeerId([9; 20]))
        })
    }

    fn admit_dial(&mut self, dial: DialFor) -> bool {
        let torrent = self.torrent;
        let mut candidates = Candidates::default();
        let source = match dial {
            DialFor::User => CandidateSource::USER,
            DialFor::Other => CandidateSource::TRACKER,
        };
        candidates.add(SocketAddr::from(([7, 7, 7, 7], 1)), source, 0, 9);
        self.admit(|admission| admission.make_room_for_dial(torrent, &candidates, dial))
    }

    /// Makes the connections of a torrent safe from every eviction.
    fn protect(&mut self, torrent: Entity) {
        let mut counts = self.world.resource_mut::<ConnectionCounts>();
        counts.record_failed_eviction(torrent, NOW + SEARCH_INTERVAL * 9, 0);
        self.world.entity_mut(torrent).remove::<Lifecycle>();
    }

    /// Removes and returns the connections that made room.
    fn evicted(&mut self) -> Vec<Entity> {
        let taken = self.world.resource_mut::<Reaper>().take();
        assert!(taken.iter().all(|(_, reason)| *reason == CloseReason::Evicted));
        taken.into_iter().map(|(peer, _)| peer).collect()
    }
}

/// Returns an address of a subnet of its own.
fn apart(number: u8) -> [u8; 4] {
    [8, 8, number, 1]
}

#[test]
fn an_address_at_its_limit_replaces_its_own_connections() {
    let mut bed = Bed::new(|settings| settings.max_inbound_per_ip = 2);
    bed.inbound([8, 8, 8, 9], Past::NoHandshake);
    let first = bed.inbound([8, 8, 8, 8], Past::NoHandshake);
    assert!(bed.admit_handshake([8, 8, 8, 8]));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound([8, 8, 8, 8], Past::Idle);
    assert!(bed.admit_handshake([8, 8, 8, 8]));
    assert_eq!(bed.evicted(), [first], "the one that awaits its handshake");
    bed.inbound([8, 8, 8, 8], Past::Useful);
    bed.admit_handshake([8, 8, 8, 8]);
    assert_eq!(bed.evicted().len(), 1, "or else the least useful one");
    bed.inbound([8, 8, 8, 8], Past::Useful);
    assert!(!bed.admit_handshake([8, 8, 8, 8]), "useful ones stay");
    assert_eq!(bed.evicted(), []);
}

/// All addresses of a /64 prefix of IPv6, which one host can use, share the limit of an address and the evictions.
#[test]
fn a_prefix_of_64_bits_at_its_limit_replaces_its_own_connections() {
    let mut bed = Bed::new(|settings| settings.max_inbound_per_ip = 2);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let neighbor = bed.inbound(address("2001:db8:0:2::1"), Past::NoHandshake);
    let first = bed.inbound(address("2001:db8:0:1::1"), Past::NoHandshake);
    assert!(bed.admit_handshake(address("2001:db8:0:1::3")));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound(address("2001:db8:0:1:8000::2"), Past::Idle);
    assert!(bed.admit_handshake(address("2001:db8:0:1::3")));
    assert_eq!(bed.evicted(), [first], "an older handshake of the next prefix stays");
    bed.inbound(address("2001:db8:0:1::3"), Past::Useful);
    assert!(bed.admit_handshake(address("2001:db8:0:1::4")));
    assert_eq!(bed.evicted().len(), 1, "the idle one");
    bed.inbound(address("2001:db8:0:1::4"), Past::Useful);
    assert!(!bed.admit_handshake(address("2001:db8:0:1::5")), "useful ones stay");
    assert!(
        bed.admit_handshake(address("2001:db8:0:2::2")),
        "the next prefix has a limit of its own"
    );
    assert_eq!(bed.evicted(), []);
    bed.inbound(address("2001:db8:0:2::2"), Past::Useful);
    assert!(bed.admit_handshake(address("2001:db8:0:2::3")));
    assert_eq!(bed.evicted(), [neighbor]);
}

#[test]
fn a_public_subnet_at_its_limit_replaces_its_own_connections() {
    let mut bed = Bed::new(|settings| settings.max_inbound_per_subnet = 2);
    let first = bed.inbound([8, 8, 8, 1], Past::NoHandshake);
    assert!(bed.admit_handshake([8, 8, 8, 3]));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound([8, 8, 8, 2], Past::NoHandshake);
    assert!(bed.admit_handshake([8, 8, 8, 3]));
    assert_eq!(bed.evicted(), [first]);
    bed.inbound([8, 8, 8, 3], Past::Useful);
    bed.inbound([8, 8, 8, 4], Past::Useful);
    bed.admit_handshake([8, 8, 8, 5]);
    assert_eq!(bed.evicted().len(), 1, "the other without a handshake");
    assert!(!bed.admit_handshake([8, 8, 8, 5]));
    assert_eq!(bed.evicted(), []);
    for last in 1..4 {
        bed.inbound([10, 0, 0, last], Past::Useful);
    }
    assert!(
        bed.admit_handshake([10, 0, 0, 9]),
        "hosts of a local network are no party"
    );
}

#[test]
fn handshakes_beyond_their_limit_replace_the_oldest_of_the_largest_subnet() {
    let mut bed = Bed::new(|settings| settings.max_unidentified = 3);
    bed.inbound(apart(1), Past::NoHandshake);
    let first = bed.inbound([9, 9, 9, 1], Past::NoHandshake);
    assert!(bed.admit_handshake(apart(2)));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound([9, 9, 9, 2], Past::NoHandshake);
    assert!(bed.admit_handshake(apart(2)));
    assert_eq!(bed.evicted(), [first]);
}

/// The least useful connections of a torrent close at its own limit, then those of the engine at the engine's.
#[test]
fn lowered_limits_close_the_least_useful_connections() {
    let mut bed = Bed::new(|_| {});
    let idle: Vec<_> = (0..4).map(|number| bed.inbound(apart(number), Past::Idle)).collect();
    let useful: Vec<_> = (4..8).map(|number| bed.inbound(apart(number), Past::Useful)).collect();
    let other = bed.other;
    let of_other = bed.connect(other, Direction::Outbound, apart(8), Past::Idle);
    let handshake = bed.inbound(apart(9), Past::NoHandshake);
    let mut evicted_with = |per_torrent, in_all| {
        let mut settings = bed.world.resource_mut::<Settings>();
        settings.peers.max_per_torrent = per_torrent;
        settings.peers.max_connections = in_all;
        bed.admit(|admission| {
            admission.close_excess();
            true
        });
        let mut evicted = bed.evicted();
        evicted.sort_unstable();
        (evicted, bed.world.resource::<ConnectionCounts>().total)
    };
    assert_eq!(evicted_with(8, 10), (vec![], 10));
    let (evicted, left) = evicted_with(6, 10);
    assert_eq!((evicted.len(), left), (2, 8));
    assert!(evicted.iter().all(|peer| idle.contains(peer)));
    let (evicted, left) = evicted_with(6, 5);
    assert_eq!(left, 5);
    assert!(evicted.contains(&handshake) && !evicted.iter().any(|peer| useful.contains(peer)));
    let (evicted, left) = evicted_with(3, 5);
    assert_eq!(left, evicted_with(3, 5).1);
    assert!(evicted.len() <= 2 && !evicted.contains(&of_other), "{evicted:?}");
}

#[test]
fn a_full_engine_replaces_a_handshake_or_else_an_idle_peer() {
    let mut bed = Bed::new(|settings| settings.max_connections = 3);
    let handshake = bed.inbound(apart(1), Past::NoHandshake);
    let idle = bed.inbound(apart(2), Past::Idle);
    assert!(bed.admit_handshake(apart(9)));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound(apart(3), Past::Useful);
    assert!(bed.admit_handshake(apart(9)));
    assert_eq!(bed.evicted(), [handshake]);
    bed.inbound(apart(4), Past::Useful);
    assert!(bed.admit_handshake(apart(9)));
    assert_eq!(bed.evicted(), [idle]);
    bed.inbound(apart(5), Past::Useful);
    assert!(!bed.admit_handshake(apart(9)));
    assert_eq!(bed.evicted(), []);
}

/// While outbound connections are within their share, a peer that connects to us replaces none of them.
#[test]
fn an_inbound_peer_replaces_an_outbound_one_beyond_its_share_only() {
    for (outbound_count, is_admitted) in [(1, false), (2, true)] {
        let mut bed = Bed::new(|settings| {
            settings.max_per_torrent = 4;
            settings.outgoing_percent = 25;
        });
        let torrent = bed.torrent;
        let outbound: Vec<_> = (0..outbound_count)
            .map(|number| bed.connect(torrent, Direction::Outbound, apart(number), Past::Idle))
            .collect();
        for number in outbound_count..3 {
            bed.inbound(apart(number), Past::Useful);
        }
        assert!(bed.admit_inbound(apart(9)));
        assert_eq!(bed.evicted(), [], "one more fits");
        bed.inbound(apart(3), Past::Useful);
        assert_eq!(bed.admit_inbound(apart(9)), is_admitted);
        let evicted = bed.evicted();
        assert_eq!(evicted.len(), usize::from(is_admitted));
        assert!(evicted.iter().all(|peer| outbound.contains(peer)));
    }
}

/// Connections with a finished handshake leave room for newcomers to send theirs.
#[test]
fn a_handshake_is_completed_only_while_others_have_room_for_theirs() {
    let mut bed = Bed::new(|settings| {
        settings.max_connections = 32;
        settings.max_per_torrent = 100;
    });
    let other = bed.other;
    let reserve = policy::handshake_reserve(&bed.world.resource::<Settings>().peers);
    assert_eq!(reserve, 2);
    for number in 0..29 {
        bed.connect(other, Direction::Inbound, apart(number), Past::Useful);
    }
    bed.inbound(apart(100), Past::NoHandshake);
    assert!(
        bed.admit_inbound(apart(200)),
        "a connection without a handshake takes no slot"
    );
    let idle = bed.inbound(apart(101), Past::Idle);
    assert!(bed.admit_inbound(apart(200)));
    assert_eq!(
        bed.evicted(),
        [idle],
        "of the newcomer's torrent, where the largest has none"
    );
    bed.inbound(apart(102), Past::Useful);
    assert!(!bed.admit_inbound(apart(200)));
}

#[test]
fn a_dial_into_a_full_torrent_replaces_an_inbound_peer_within_the_share() {
    let mut bed = Bed::new(|settings| {
        settings.max_per_torrent = 3;
        settings.outgoing_percent = 67;
    });
    let torrent = bed.torrent;
    let inbound = bed.inbound(apart(1), Past::Idle);
    bed.connect(torrent, Direction::Outbound, apart(2), Past::Useful);
    assert!(bed.admit_dial(DialFor::Other));
    assert_eq!(bed.evicted(), [], "one more fits");
    bed.inbound(apart(3), Past::Useful);
    assert!(bed.admit_dial(DialFor::Other));
    assert_eq!(bed.evicted(), [inbound]);
    let second = bed.connect(torrent, Direction::Outbound, apart(4), Past::Idle);
    assert!(bed.admit_dial(DialFor::Other));
    assert_eq!(bed.evicted(), [second], "beyond the share, an outbound one");
}

/// A search without a victim is not repeated for a second, except for a user.
#[test]
fn a_torrent_without_a_victim_is_searched_once_a_second() {
    let mut bed = Bed::new(|settings| settings.max_per_torrent = 1);
    let useful = bed.inbound(apart(1), Past::Useful);
    assert!(!bed.admit_inbound(apart(2)));
    let mut rates = bed.world.get_mut::<PeerRates>(useful).unwrap();
    rates.last_payload = None;
    assert!(!bed.admit_inbound(apart(2)), "not searched again");
    let mut clock = bed.world.resource_mut::<Clock>();
    clock.advance_to(NOW + SEARCH_INTERVAL);
    assert!(bed.admit_inbound(apart(2)));
    assert_eq!(bed.evicted(), [useful]);
}

/// A silent peer that returns after an eviction does not keep a newcomer out, even if an earlier search found no
/// victim.
#[test]
fn silent_peers_that_return_make_room() {
    let mut bed = Bed::new(|settings| {
        settings.max_per_torrent = 1;
        settings.grace_s = 60;
    });
    bed.inbound(apart(1), Past::Idle);
    assert!(bed.admit_inbound(apart(2)), "its grace period is over");
    bed.evicted();
    let returned = bed.inbound(apart(1), Past::Idle);
    bed.world.get_mut::<Peer>(returned).unwrap().since = NOW;
    assert!(!bed.admit_inbound(apart(1)), "evicted as often");
    assert!(bed.admit_inbound(apart(3)), "although the search has just failed");
    assert_eq!(bed.evicted(), [returned]);
}

#[test]
fn a_user_named_peer_replaces_even_a_useful_one() {
    let mut bed = Bed::new(|settings| settings.max_per_torrent = 1);
    let useful = bed.inbound(apart(1), Past::Useful);
    assert!(!bed.admit_dial(DialFor::Other));
    assert_eq!(bed.evicted(), []);
    assert!(bed.admit_dial(DialFor::User), "although the search has just failed");
    assert_eq!(bed.evicted(), [useful]);
}

fn side(last: u8, direction: Direction) -> TwinSide {
    TwinSide {
        site: Some([10, 0, 0, last].into()),
        direction,
    }
}

#[test]
fn a_copied_id_does_not_lock_its_owner_out() {
    for one in [Direction::Inbound, Direction::Outbound] {
        for other in [Direction::Inbound, Direction::Outbound] {
            for is_higher in [true, false] {
                let twin = resolve_twins(side(1, one), side(2, other), Duration::ZERO, false, false, is_higher);
                assert_eq!(twin, Twin::Both);
            }
        }
    }
}

/// Each side sees one connection as inbound and the other as outbound, and both have to keep the same one.
#[test]
fn both_sides_of_a_crossing_keep_the_same_connection() {
    use Direction::{Inbound, Outbound};
    for is_our_id_higher in [true, false] {
        for newcomer in [Inbound, Outbound] {
            let other = if newcomer == Inbound { Outbound } else { Inbound };
            let resolve = |newcomer, other, is_higher| {
                resolve_twins(
                    side(1, newcomer),
                    side(1, other),
                    Duration::ZERO,
                    false,
                    false,
                    is_higher,
                )
            };
            let ours = resolve(newcomer, other, is_our_id_higher);
            // The connection that is inbound here is outbound there.
            let theirs = resolve(other, newcomer, !is_our_id_higher);
            assert_eq!(ours, theirs);
            assert_ne!(ours, Twin::Both);
        }
    }
}

#[test]
fn a_connection_that_works_is_not_closed_for_a_claim() {
    use Direction::{Inbound, Outbound};
    let resolve = |newcomer, other, age, useful, abandoned| {
        resolve_twins(side(1, newcomer), side(1, other), age, useful, abandoned, false)
    };
    assert_eq!(resolve(Inbound, Outbound, Duration::ZERO, true, false), Twin::Both);
    assert_eq!(resolve(Inbound, Outbound, CROSSING, false, false), Twin::Both);
    assert_eq!(resolve(Inbound, Inbound, CROSSING, true, false), Twin::Other);
    assert_eq!(resolve(Inbound, Inbound, CROSSING, false, true), Twin::Newcomer);
    assert_eq!(
        resolve(Outbound, Outbound, Duration::ZERO, false, false),
        Twin::Both,
        "both addresses listen"
    );
}

/// Newcomers get the slots that are reserved for their handshakes, and a dial takes none of these, except for a user.
#[test]
fn a_dial_takes_no_reserved_handshake_unless_a_user_asks() {
    for (handshake_count, dial, is_admitted) in [
        (3, DialFor::Other, true),
        (2, DialFor::Other, false),
        (2, DialFor::User, true),
    ] {
        let mut bed = Bed::new(|settings| settings.max_connections = 32);
        let other = bed.other;
        for number in 0..32 - handshake_count {
            bed.connect(other, Direction::Outbound, apart(number), Past::Useful);
        }
        let handshakes: Vec<_> = (0..handshake_count)
            .map(|number| bed.inbound([9, 9, 9, number], Past::NoHandshake))
            .collect();
        bed.protect(other);
        assert_eq!(bed.admit_dial(dial), is_admitted);
        assert_eq!(bed.evicted(), &handshakes[..usize::from(is_admitted)]);
    }
}

#[test]
fn the_last_half_open_connections_are_for_user_named_peers() {
    let mut bed = Bed::new(|settings| {
        settings.max_half_open = 4;
        settings.user_reserve = 1;
    });
    let torrent = bed.torrent;
    let mut may_open = |count: u8| {
        for number in 0..count {
            let peer = bed.connect(torrent, Direction::Outbound, apart(number), Past::Connecting);
            assert!(bed.world.get::<PeerState>(peer).is_none());
        }
        let mut result = Vec::new();
        bed.admit(|admission| {
            result = [DialFor::Other, DialFor::User]
                .map(|dial| admission.may_open(dial))
                .to_vec();
            true
        });
        result
    };
    assert_eq!(may_open(2), [true, true]);
    assert_eq!(may_open(1), [false, true]);
    assert_eq!(may_open(1), [false, false]);
}

/// A connection that has sent nothing for too long, or that owes blocks, is no longer useful.
#[test]
fn usefulness_ends() {
    let evicts = |idle: Duration, is_snubbed: bool| {
        let mut bed = Bed::new(|settings| settings.max_per_torrent = 1);
        let peer = bed.inbound(apart(1), Past::Useful);
        let mut rates = bed.world.get_mut::<PeerRates>(peer).unwrap();
        rates.last_payload = Some(Timestamp::from_nanos(NOW.as_nanos() - idle.as_nanos() as u64));
        let mut state = bed.world.get_mut::<PeerState>(peer).unwrap();
        (state.snubbed, state.am_interested) = (is_snubbed, true);
        bed.world.resource_mut::<Settings>().peers.waiting_grace_s = 1;
        bed.admit_inbound(apart(2))
    };
    let short = USEFUL_FOR - Duration::from_nanos(1);
    assert!(!evicts(short, false));
    assert!(evicts(USEFUL_FOR, false));
    assert!(evicts(short, true));
}

/// A connection with one interested side has more time than one without any.
#[test]
fn a_waiting_connection_outlasts_a_silent_one() {
    let evicts = |am_interested, peer_interested| {
        let mut bed = Bed::new(|settings| settings.max_per_torrent = 1);
        let peer = bed.inbound(apart(1), Past::Idle);
        let age = Duration::from_secs(100);
        let since = Timestamp::from_nanos(NOW.as_nanos() - age.as_nanos() as u64);
        bed.world.get_mut::<Peer>(peer).unwrap().since = since;
        let mut state = bed.world.get_mut::<PeerState>(peer).unwrap();
        (state.am_interested, state.peer_interested) = (am_interested, peer_interested);
        bed.admit_inbound(apart(2))
    };
    assert!(evicts(false, false));
    assert!(!evicts(true, false) && !evicts(false, true));
}

/// A seed has no use for peers that want nothing.
#[test]
fn a_seed_replaces_a_redundant_peer_first() {
    for (upload_only, is_complete) in [(true, false), (false, true)] {
        let mut bed = Bed::new(|settings| settings.max_per_torrent = 2);
        let redundant = bed.inbound(apart(1), Past::Useful);
        bed.inbound(apart(2), Past::Idle);
        *bed.world.get_mut::<Lifecycle>(bed.torrent).unwrap() = Lifecycle::Seeding;
        bed.world.get_mut::<PeerState>(redundant).unwrap().upload_only = upload_only;
        let pieces = if is_complete {
            PeerPieces::all(3)
        } else {
            PeerPieces::none(3)
        };
        bed.world.entity_mut(redundant).insert(pieces);
        bed.world.get_mut::<PeerRates>(redundant).unwrap().last_payload = None;
        assert!(bed.admit_inbound(apart(3)));
        assert_eq!(bed.evicted(), [redundant]);
    }
}

/// A party with several connections loses one of them first, whether it is a subnet or a peer id.
#[test]
fn the_largest_party_makes_room() {
    for by_id in [false, true] {
        let mut bed = Bed::new(|settings| settings.max_per_torrent = 3);
        let alone = bed.inbound([9, 9, 9, 9], Past::Idle);
        let ips = if by_id {
            [apart(1), apart(2)]
        } else {
            [[8, 8, 8, 1], [8, 8, 8, 2]]
        };
        let party = ips.map(|ip| bed.inbound(ip, Past::Idle));
        for peer in party {
            let mut peer = bed.world.get_mut::<Peer>(peer).unwrap();
            peer.peer_id = by_id.then_some(PeerId([5; 20]));
            // The peer without a party has been idle longer.
            peer.since += Duration::from_secs(1);
        }
        assert!(bed.admit_inbound(apart(7)));
        let evicted = bed.evicted();
        assert!(evicted.len() == 1 && !evicted.contains(&alone), "{by_id}");
    }
}

/// The last slots of the engine are for peers that users name.
#[test]
fn an_engine_keeps_slots_for_user_named_peers() {
    for (dial, is_admitted) in [(DialFor::Other, false), (DialFor::User, true)] {
        let mut bed = Bed::new(|settings| {
            settings.max_connections = 4;
            settings.user_reserve = 1;
        });
        let other = bed.other;
        for number in 0..3 {
            bed.connect(other, Direction::Outbound, apart(number), Past::Useful);
        }
        assert_eq!(bed.admit_dial(dial), is_admitted);
        assert_eq!(bed.evicted(), []);
    }
}

/// Resolves a second connection under the id of a first one, which is inbound and `age` old.
fn resolve(past: Past, age: Duration, newcomer: Direction, is_our_id_higher: bool) -> Twin {
    let mut bed = Bed::new(|_| {});
    let twin = bed.inbound(apart(1), past);
    let (mut first, mut second) = (None, None);
    let since = Timestamp::from_nanos(NOW.as_nanos() - age.as_nanos() as u64);
    bed.world.get_mut::<Peer>(twin).unwrap().since = since;
    for (peer, direction) in [(&mut first, Direction::Inbound), (&mut second, newcomer)] {
        *peer = Some(Peer {
            endpoint: Endpoint::Ip((apart(1), 1).into()),
            stream: StreamId(0),
            transport: None,
            direction,
            stage: Stage::Connected,
            since,
            peer_id: None,
            client: "".into(),
            listens_at: None,
        });
    }
    let (first, second) = (first.unwrap(), second.unwrap());
    let (id, ours) = (PeerId([5; 20]), PeerId([if is_our_id_higher { 6 } else { 4 }; 20]));
    let mut twins = None;
    bed.admit(|admission| {
        twins = Some(admission.resolve(&second, twin, &first, id, ours));
        true
    });
    twins.unwrap()
}

#[test]
fn a_second_connection_is_compared_with_the_first_one() {
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(999));
    assert_eq!(resolve(Past::Useful, short, Direction::Outbound, true), Twin::Both);
    assert_eq!(resolve(Past::Idle, short, Direction::Outbound, true), Twin::Newcomer);
    assert_eq!(resolve(Past::Idle, short, Direction::Outbound, false), Twin::Other);
    assert_eq!(resolve(Past::Idle, long, Direction::Inbound, true), Twin::Newcomer);
    assert_eq!(resolve(Past::Useful, long, Direction::Inbound, true), Twin::Other);
}
