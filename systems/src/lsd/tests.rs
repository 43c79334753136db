//! Tests of the systems of local discovery.

use super::*;
use crate::testing::{Bed, torrent};
use ecs_torrent_components::candidates::{CandidateSources, SourceSet};
use ecs_torrent_engine::ports::net::{Datagram, DatagramKind};
use ecs_torrent_protocol::hash::InfoHashes;

fn bed() -> Bed {
    let mut bed = Bed::new(LsdPlugin);
    bed.open_port::<NetRequest, NetEvent>(Vec::new());
    bed.world.init_resource::<TorrentIndex>();
    bed.world.init_resource::<Messages<MetadataKnown>>();
    bed.world.init_resource::<Messages<CandidatesFound>>();
    let local = ["10.0.0.1:6881", "[fd00::1]:6882"].map(|address| address.parse().unwrap());
    bed.world.insert_resource(LocalAddresses(local.to_vec()));
    bed
}

/// Adds a torrent that begins to run. Returns it with its hash.
fn add(bed: &mut Bed, number: u8, sources: SourceSet, lifecycle: Lifecycle) -> (Entity, InfoHash) {
    let mut names = torrent();
    names.hashes = InfoHashes::of(&[number], true, false);
    let (hashes, id) = (names.hashes, names.id());
    let parts = (
        names,
        AllowedSources(sources),
        lifecycle.clone(),
        LocalAnnouncer::default(),
    );
    let entity = bed.world.spawn(parts).id();
    bed.world.resource_mut::<TorrentIndex>().insert(&hashes, entity);
    let changed = LifecycleChanged {
        torrent: entity,
        from: Lifecycle::Adding,
        to: lifecycle,
    };
    bed.run_after(changed, list_torrents);
    (entity, id)
}

fn everything() -> SourceSet {
    CandidateSources::default().serving(false)
}

/// Lets time pass, and returns the messages that are sent.
fn pass(bed: &mut Bed, time: Duration) -> Vec<(SocketAddr, LocalAnnounce)> {
    let later = bed.world.resource::<Clock>().now() + time;
    bed.world.resource_mut::<Clock>().advance_to(later);
    bed.open_port::<NetRequest, NetEvent>(Vec::new());
    if bed.holds(may_announce) {
        bed.run(announce_locally);
    }
    let mut joined = Vec::new();
    let mut sent = Vec::new();
    for request in bed.world.resource::<NetPort>().outgoing() {
        match request {
            NetRequest::Join { group } => joined.push(*group),
            NetRequest::Multicast { group, local, data } => {
                assert_eq!(local.is_ipv4(), group.is_ipv4());
                assert!(joined.contains(group));
                sent.push((*group, LocalAnnounce::read(data).unwrap()));
            }
            other => panic!("{other:?}"),
        }
    }
    sent
}

#[test]
fn torrents_are_announced_together_in_both_families_every_five_minutes() {
    let mut bed = bed();
    let hashes: Vec<_> = [1, 2]
        .map(|number| add(&mut bed, number, everything(), Lifecycle::Seeding).1)
        .into();
    assert_eq!(
        pass(&mut bed, Duration::from_millis(999)),
        [],
        "more torrents may start"
    );
    let sent = pass(&mut bed, Duration::from_millis(1));
    let [(v4, first), (v6, second)] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert_eq!((*v4, *v6), (GROUP_V4.into(), GROUP_V6.into()));
    assert_eq!((first.port, second.port, &first.hashes), (6881, 6882, &hashes));
    assert!(first.cookie.is_some() && first.cookie == second.cookie);
    assert_eq!(pass(&mut bed, Duration::from_secs(299)), []);
    assert_eq!(pass(&mut bed, Duration::from_secs(1)).len(), 2);
}

#[test]
fn a_message_a_minute_announces_many_torrents_in_turn() {
    let mut bed = bed();
    for number in 0..60 {
        add(&mut bed, number, everything(), Lifecycle::Downloading);
    }
    let mut counts = Vec::new();
    for wait in [1, 59, 1, 60, 60, 60] {
        let sent = pass(&mut bed, Duration::from_secs(wait));
        counts.push(sent.first().map_or(0, |(_, announce)| announce.hashes.len()));
    }
    assert_eq!(counts, [24, 0, 24, 12, 0, 0]);
}

/// BEP 27, and torrents that do not run.
#[test]
fn private_and_stopped_torrents_are_not_announced() {
    let mut bed = bed();
    add(
        &mut bed,
        1,
        CandidateSources::default().serving(true),
        Lifecycle::Seeding,
    );
    add(&mut bed, 2, everything(), Lifecycle::Paused);
    assert_eq!(pass(&mut bed, Duration::from_secs(1000)), []);
    let (paused, _) = add(&mut bed, 3, everything(), Lifecycle::Seeding);
    let (known, _) = add(&mut bed, 4, everything(), Lifecycle::FetchingMetadata);
    *bed.get_mut::<Lifecycle>(paused) = Lifecycle::Paused;
    // Its metadata says that it is private.
    *bed.get_mut::<AllowedSources>(known) = AllowedSources(CandidateSources::default().serving(true));
    assert_eq!(pass(&mut bed, Duration::from_secs(1)), []);
    assert!(bed.get::<LocalAnnouncer>(paused).due.is_none() && bed.world.resource::<Deadlines<LocalTurn>>().is_empty());
}

/// Receives messages from a host. Returns the peers that were found.
fn receive(bed: &mut Bed, from: &str, announce: &LocalAnnounce, count: usize) -> Vec<(Entity, SocketAddr)> {
    let datagram = Datagram {
        from: from.parse().unwrap(),
        to: GROUP_V4.into(),
        arrived: Timestamp::ZERO,
        data: announce.write(Family::V4),
    };
    let kind = DatagramKind::LocalDiscovery;
    let events = (0..count).map(|_| NetEvent::Datagram {
        kind,
        datagram: datagram.clone(),
    });
    bed.open_port::<NetRequest, NetEvent>(events.collect());
    bed.run(receive_local);
    let mut messages = bed.world.resource_mut::<Messages<CandidatesFound>>();
    messages
        .drain()
        .map(|found| {
            assert_eq!(found.source, CandidateSource::LOCAL_DISCOVERY);
            assert_eq!(found.informant, Some(found.peers[0].address.ip()));
            (found.torrent, found.peers[0].address)
        })
        .collect()
}

#[test]
fn neighbors_are_peers_of_the_torrents_that_they_name() {
    let mut bed = bed();
    let (public, first) = add(&mut bed, 1, everything(), Lifecycle::Seeding);
    let (_, private) = add(
        &mut bed,
        2,
        CandidateSources::default().serving(true),
        Lifecycle::Seeding,
    );
    let mut announce = LocalAnnounce {
        port: 77,
        hashes: vec![InfoHash([9; 20]), first, private],
        cookie: None,
    };
    let expected = [(public, "10.0.0.9:77".parse().unwrap())];
    assert_eq!(receive(&mut bed, "10.0.0.9:6771", &announce, 1), expected);
    pass(&mut bed, Duration::from_secs(1));
    announce
        .cookie
        .clone_from(&bed.world.resource::<LocalDiscovery>().cookie);
    assert_eq!(receive(&mut bed, "10.0.0.9:6771", &announce, 1), [], "our own message");
}

fn announce_of(hash: InfoHash) -> LocalAnnounce {
    LocalAnnounce {
        port: 77,
        hashes: vec![hash],
        cookie: None,
    }
}

#[test]
fn a_host_that_floods_is_ignored_and_others_are_not() {
    let mut bed = bed();
    let (_, hash) = add(&mut bed, 1, everything(), Lifecycle::Seeding);
    let announce = announce_of(hash);
    assert_eq!(receive(&mut bed, "10.0.0.9:6771", &announce, 100).len(), 20);
    assert_eq!(receive(&mut bed, "10.0.0.8:6771", &announce, 1).len(), 1);
    pass(&mut bed, Duration::from_secs(10));
    assert_eq!(receive(&mut bed, "10.0.0.9:6771", &announce, 100).len(), 2);
}

/// A host can forge the addresses of others.
#[test]
fn messages_of_all_hosts_are_limited() {
    let mut bed = bed();
    let (_, hash) = add(&mut bed, 1, everything(), Lifecycle::Seeding);
    let announce = announce_of(hash);
    let receive_from_many = |bed: &mut Bed| {
        let from = |host: u32| format!("10.1.{}.{}:1", host / 250, host % 250);
        (0..1000u32)
            .map(|host| receive(bed, &from(host), &announce, 1).len())
            .sum::<usize>()
    };
    assert_eq!(receive_from_many(&mut bed), 200);
    pass(&mut bed, Duration::from_secs(5));
    assert_eq!(receive_from_many(&mut bed), 100);
    assert!(bed.world.resource::<LocalDiscovery>().hosts.len() <= MAX_HOSTS);
}

/// Listeners of a family may have different ports, so each is announced in a message of its own.
#[test]
fn each_listen_address_is_announced_with_its_port() {
    let mut bed = bed();
    let local = ["10.0.0.1:5", "192.168.0.1:6"].map(|address| address.parse().unwrap());
    bed.world.insert_resource(LocalAddresses(local.to_vec()));
    add(&mut bed, 1, everything(), Lifecycle::Seeding);
    let sent = pass(&mut bed, GATHER);
    let ports: Vec<_> = sent.iter().map(|(group, announce)| (*group, announce.port)).collect();
    assert_eq!(ports, [(GROUP_V4.into(), 5), (GROUP_V4.into(), 6)]);
}
