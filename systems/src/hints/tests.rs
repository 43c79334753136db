//! Tests of the hints of magnet links.

use std::net::SocketAddr;
use std::time::Duration;

use super::peers::{LookupDue, NAMES, find_peers, has_work};
use super::*;
use crate::testing::{Bed, NOW, content, session, torrent};
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, CandidateSources, CandidatesFound};
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::Lifecycle;
use ecs_torrent_engine::port::JobTag;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest};
use ecs_torrent_protocol::host_port::HostPort;

fn hints(urls: &[&str]) -> LinkHints {
    LinkHints {
        web_seeds: urls.iter().map(|url| (*url).to_owned()).collect(),
        ..LinkHints::default()
    }
}

fn load(bed: &mut Bed, torrent: Entity, lacks_metadata: bool) {
    let session = ecs_torrent_components::session::Session {
        lacks_metadata,
        hints: hints(&["http://b/", "http://c/"]),
        ..session()
    };
    let session = session.into();
    bed.world.trigger(SessionLoaded { torrent, session });
    bed.world.flush();
}

#[test]
fn hints_are_kept_until_the_metadata_is_known() {
    let mut bed = Bed::new(HintsPlugin);
    let entity = bed.world.spawn(torrent()).id();
    for urls in [&["http://a/", "http://b/"][..], &["http://a/"]] {
        let (torrent, hints) = (entity, hints(urls));
        bed.world.trigger(HintsGiven { torrent, hints });
        bed.world.flush();
    }
    load(&mut bed, entity, false);
    assert_eq!(bed.get::<KeptHints>(entity).0, hints(&["http://a/", "http://b/"]));
    load(&mut bed, entity, true);
    let all = hints(&["http://a/", "http://b/", "http://c/"]);
    assert_eq!(
        bed.get::<KeptHints>(entity).0,
        all,
        "each one once, those of this run first"
    );
    bed.world.entity_mut(entity).insert(content());
    bed.world.flush();
    load(&mut bed, entity, true);
    assert!(bed.world.get::<KeptHints>(entity).is_none());
}

fn looking_up() -> Bed {
    let mut bed = Bed::new(HintsPlugin);
    bed.open_port::<NetRequest, NetEvent>(Vec::new());
    bed.world.resource_mut::<NetPort>().open_inbox(NAMES);
    bed.world.init_resource::<Messages<CandidatesFound>>();
    bed.world.init_resource::<Messages<LifecycleChanged>>();
    let allowed = AllowedSources(CandidateSources::default().serving(false));
    let parts = (torrent(), allowed, Lifecycle::FetchingMetadata);
    bed.torrent = bed.world.spawn(parts).id();
    bed
}

/// Gives the torrent a link that names these hosts.
fn link(bed: &mut Bed, hosts: &[&str]) {
    let peer_hosts: Vec<HostPort> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    let hints = LinkHints {
        peer_hosts,
        ..LinkHints::default()
    };
    let torrent = bed.torrent;
    bed.world.trigger(HintsGiven { torrent, hints });
    bed.world.flush();
}

/// Runs the feature after these events. Returns the requested names.
fn lookups(bed: &mut Bed, events: Vec<NetEvent>) -> Vec<(String, JobTag)> {
    bed.open_port::<NetRequest, NetEvent>(events);
    bed.world.resource_mut::<NetPort>().open_inbox(NAMES);
    if bed.holds(has_work) {
        bed.run(find_peers);
    }
    let requests = bed.world.resource::<NetPort>().outgoing().iter();
    let names = requests.map(|request| match request {
        NetRequest::Resolve { tag, host, port } => (format!("{host}:{port}"), *tag),
        other => panic!("{other:?}"),
    });
    names.collect()
}

fn found(bed: &mut Bed) -> Vec<SocketAddr> {
    let mut messages = bed.world.resource_mut::<Messages<CandidatesFound>>();
    let found: Vec<_> = messages.drain().collect();
    assert!(
        found
            .iter()
            .all(|found| found.source == CandidateSource::MAGNET && found.informant.is_none())
    );
    found
        .iter()
        .flat_map(|found| &found.peers)
        .map(|peer| peer.address)
        .collect()
}

fn begin(bed: &mut Bed) -> Vec<String> {
    let changed = LifecycleChanged {
        torrent: bed.torrent,
        from: Lifecycle::Adding,
        to: Lifecycle::FetchingMetadata,
    };
    bed.world.write_message(changed);
    let names = lookups(bed, Vec::new());
    bed.world.resource_mut::<Messages<LifecycleChanged>>().clear();
    names.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn names_are_looked_up_and_their_peers_found() {
    let mut bed = looking_up();
    assert!(!bed.holds(has_work));
    link(&mut bed, &["a.example:1", "b.example:2"]);
    let requested = lookups(&mut bed, Vec::new());
    let [(a, of_a), (b, of_b)] = <[_; 2]>::try_from(requested).unwrap();
    assert_eq!((&*a, &*b), ("a.example:1", "b.example:2"));
    assert!(!bed.holds(has_work), "requested once");
    let address = |n: u8| SocketAddr::from(([192, 0, 2, n], 1));
    let events = vec![
        NetEvent::Resolved {
            tag: of_a,
            result: Ok((1..=9).map(address).collect()),
        },
        NetEvent::Resolved {
            tag: of_b,
            result: Err("no such host".into()),
        },
    ];
    assert_eq!(lookups(&mut bed, events), []);
    assert_eq!(found(&mut bed), [1, 2, 3, 4].map(address), "a name has few addresses");
    // The other name is looked up again later.
    let next = bed.world.resource::<Deadlines<LookupDue>>().next().unwrap();
    assert!(next > NOW + Duration::from_secs(60));
    bed.world.resource_mut::<Clock>().advance_to(next);
    let requested: Vec<String> = lookups(&mut bed, Vec::new())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(requested, ["b.example:2"]);
    // A link that names another peer, and a torrent that begins again.
    link(&mut bed, &["c.example:3", "a.example:1"]);
    let requested: Vec<String> = lookups(&mut bed, Vec::new())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(requested, ["c.example:3"]);
    assert_eq!(begin(&mut bed), ["a.example:1"], "the others are requested");
}

#[test]
fn few_names_are_looked_up_and_none_for_torrents_that_may_not() {
    let mut bed = looking_up();
    bed.world.resource_mut::<Settings>().peers.max_linked_names = 2;
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::Paused;
    let hosts = ["a:1", "b:2", "c:3"];
    link(&mut bed, &hosts);
    assert_eq!(begin(&mut bed), [""; 0], "paused");
    *bed.get_mut::<Lifecycle>(bed.torrent) = Lifecycle::FetchingMetadata;
    let private = AllowedSources(CandidateSources::default().serving(true));
    let public = std::mem::replace(&mut *bed.get_mut::<AllowedSources>(bed.torrent), private);
    assert_eq!(begin(&mut bed), [""; 0], "private");
    *bed.get_mut::<AllowedSources>(bed.torrent) = public;
    assert_eq!(begin(&mut bed), hosts[..2]);
    // The torrent may be gone when its name is found.
    let tag = JobTag::new(NAMES, Entity::PLACEHOLDER);
    let result = Ok(vec![SocketAddr::from(([192, 0, 2, 1], 1))]);
    assert_eq!(lookups(&mut bed, vec![NetEvent::Resolved { tag, result }]), []);
    assert_eq!(found(&mut bed), []);
}
