//! Our own queries: limits on them, answers that take long, and addresses that nodes name.

use super::*;
use crate::dht::items::{Item, public_key};

/// Returns a node that knows `count` others by their addresses.
fn acquainted(settings: NodeSettings, count: u8) -> Node {
    let mut node = Node::new(settings, [1; 32], at(0));
    fill(&mut node, count, Family::V4);
    // The pings that made the nodes known do not count.
    node.queried_hosts = AddressLimit::new(
        node.settings.queries_to_host_per_s,
        node.settings.host_query_burst(),
        node.settings.max_hosts,
    );
    node
}

fn sent(node: &mut Node) -> Vec<(SocketAddr, Vec<u8>)> {
    std::iter::from_fn(|| node.next_datagram()).collect()
}

/// The answer of a node that knows nobody, with a token.
fn answer(node: &mut Node, to: SocketAddr, datagram: &[u8], now: Timestamp) {
    answer_with(node, to, datagram, &[], &[], now);
}

fn answer_with(node: &mut Node, to: SocketAddr, datagram: &[u8], nodes: &[u8], values: &[SocketAddr], now: Timestamp) {
    let packet = Packet::parse(datagram).unwrap();
    let reply = Reply {
        token: Some(b"token"),
        nodes,
        values: values.to_vec(),
        ..Reply::new(NodeId([host(to); 20]))
    };
    let reply = message(Body::Reply(reply), packet.message().unwrap().transaction);
    node.receive(&reply, to, now);
}

/// The number of a node that [`fill`] has made known.
fn host(address: SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets()[1],
        SocketAddr::V6(_) => panic!("{address}"),
    }
}

/// Runs the node and answers its queries for `seconds`, in steps of 100 ms. Returns the number of queries to each host,
/// and the searches in the order in which they ended.
fn run(node: &mut Node, from: u64, seconds: u64) -> (BTreeMap<IpAddr, usize>, Vec<SearchId>) {
    let (mut counts, mut ended) = (BTreeMap::new(), Vec::new());
    for millis in (from..from + seconds * 1000).step_by(100) {
        node.advance(at(millis));
        loop {
            let queries = sent(node);
            if queries.is_empty() {
                break;
            }
            for (to, datagram) in queries {
                *counts.entry(to.ip()).or_default() += 1;
                answer(node, to, &datagram, at(millis));
            }
        }
        let events = std::iter::from_fn(|| node.next_event());
        ended.extend(events.filter_map(|event| match event {
            Event::Finished { search, .. } => Some(search),
            _ => None,
        }));
    }
    (counts, ended)
}

/// Few nodes get the queries of many searches: none gets more than its share, and all searches end.
#[test]
fn no_host_gets_more_queries_than_it_takes() {
    let mut node = acquainted(NodeSettings::default(), 6);
    let searches: Vec<SearchId> = (0..30u8)
        .map(|n| node.search(NodeId([n; 20]), ANNOUNCE, None, at(1)).unwrap())
        .collect();
    let (counts, ended) = run(&mut node, 1, 10);
    assert_eq!(counts.len(), 6);
    for (host, count) in counts {
        assert!((35..=50).contains(&count), "{count} queries to {host} in ten seconds");
    }
    let (_, later) = run(&mut node, 10_001, 30);
    assert!(!ended.is_empty() && !later.is_empty());
    assert_eq!(
        ended
            .into_iter()
            .chain(later)
            .filter(|search| searches.contains(search))
            .count(),
        30,
        "they wait and end"
    );
}

/// One of the known nodes has got all that it takes. The others are asked meanwhile.
#[test]
fn other_nodes_are_asked_while_one_has_to_wait() {
    let settings = NodeSettings {
        parallelism: Parallelism { alpha: 4, beta: 3 },
        ..NodeSettings::default()
    };
    let mut node = acquainted(settings, 20);
    let (busy, target) = (address("20.5.1.1:6881"), NodeId([5; 20]));
    while node.host_ready_at(busy, 1, at(1)) == at(1) {
        node.count_host_queries(busy, 1, at(1));
    }
    node.search(target, LOOK, None, at(1)).unwrap();
    node.advance(at(1));
    let queries = sent(&mut node);
    assert_eq!(queries.len(), node.settings.parallelism.alpha);
    assert!(queries.iter().all(|(to, _)| *to != busy), "{queries:?}");
    for (to, datagram) in queries {
        answer(&mut node, to, &datagram, at(2));
    }
    let (counts, ended) = run(&mut node, 3, 2);
    assert!(
        counts.contains_key(&busy.ip()) && ended.len() == 1,
        "{counts:?} {ended:?}"
    );
}

/// Torrents that have peers wait for those that need some.
#[test]
fn patient_searches_leave_queries_to_the_others() {
    let mut node = acquainted(NodeSettings::default(), 4);
    let begin = |node: &mut Node, n: u8| node.search(NodeId([n; 20]), ANNOUNCE, None, at(1)).unwrap();
    let patient: Vec<SearchId> = (0..10).map(|n| begin(&mut node, n)).collect();
    patient.iter().for_each(|search| node.set_patient(*search));
    let urgent: Vec<SearchId> = (10..20).map(|n| begin(&mut node, n)).collect();
    let (_, ended) = run(&mut node, 1, 60);
    let order: Vec<bool> = ended
        .iter()
        .filter(|search| patient.contains(search) || urgent.contains(search))
        .map(|search| urgent.contains(search))
        .collect();
    assert_eq!(order.len(), 20, "all end");
    let of_first_half = order[..10].iter().filter(|is_urgent| **is_urgent).count();
    assert!(of_first_half >= 8, "{order:?}");
}

/// Users' searches begin while torrents take all that they may.
#[test]
fn torrents_leave_room_for_users() {
    let mut node = acquainted(NodeSettings::default(), 8);
    let mut count = 0u8;
    while node.has_room(at(1)) {
        node.search(NodeId([count; 20]), LOOK, None, at(1)).unwrap();
        count += 1;
    }
    assert_eq!(count, 24);
    assert!(node.search(TARGET, LOOK, None, at(1)).is_some());
    let settings = NodeSettings {
        max_searches: 1,
        ..NodeSettings::default()
    };
    assert!(acquainted(settings, 8).has_room(at(1)));
}

/// With a full table of pending queries, a search waits, and continues with each answer.
#[test]
fn a_full_table_of_queries_delays_a_search() {
    let settings = NodeSettings {
        max_pending: 2,
        ..NodeSettings::default()
    };
    let mut node = acquainted(settings, 8);
    node.search(TARGET, LOOK, None, at(1)).unwrap();
    let (mut queried, mut ended, mut now) = (0, false, 1);
    while !ended && now < 60_000 {
        node.advance(at(now));
        let queries = sent(&mut node);
        assert!(queries.len() <= 2 && node.stats(at(now)).pending_queries <= 2);
        queried += queries.len();
        now += 10;
        for (to, datagram) in queries {
            answer(&mut node, to, &datagram, at(now));
        }
        ended |= std::iter::from_fn(|| node.next_event()).any(|event| matches!(event, Event::Finished { .. }));
    }
    assert!(ended && queried >= 8, "{queried} queries until {now} ms");
}

/// The time after which another node is asked instead of a silent one follows the round trips.
#[test]
fn timeouts_follow_the_round_trips() {
    let silent_for = |round_trip: u64| {
        let settings = NodeSettings {
            parallelism: Parallelism { alpha: 1, beta: 1 },
            ..NodeSettings::default()
        };
        let mut node = acquainted(settings, 8);
        node.families[0].round_trips = RoundTrips::default();
        for _ in 0..50 {
            node.families[0].round_trips.record(Duration::from_millis(round_trip));
        }
        node.search(TARGET, LOOK, None, at(1)).unwrap();
        node.advance(at(1));
        assert_eq!(sent(&mut node).len(), 1);
        let next = (1..10_000).find(|millis| {
            node.advance(at(1 + millis));
            !sent(&mut node).is_empty()
        });
        next.unwrap()
    };
    let times = [10, 150, 600, 4000].map(silent_for);
    assert_eq!([times[0], times[3]], [200, 2000], "the bounds");
    assert!(
        (200..=250).contains(&times[1]) && (600..=700).contains(&times[2]),
        "{times:?}"
    );
}

/// A node of the internet directs neither datagrams nor connections at hosts of this machine or of a local network.
#[test]
fn nodes_of_the_internet_name_no_local_hosts() {
    let locals = ["127.0.0.1:80", "10.1.2.3:6881", "192.168.1.1:6881", "100.64.1.1:6881"].map(address);
    let public = address("33.1.1.1:6881");
    let queried_after = |known: &str| {
        let mut node = Node::new(NodeSettings::default(), [1; 32], at(0));
        let known = address(known);
        node.add_host(known, at(0));
        let search = node.search(TARGET, LOOK, Some(Family::V4), at(0)).unwrap();
        let (mut queried, mut peers) = (Vec::new(), Vec::new());
        let mut nodes = Vec::new();
        for (n, listed) in (1..).zip(locals.iter().chain([&public])) {
            write_contact(NodeId([n; 20]), *listed, &mut nodes);
        }
        let values: Vec<SocketAddr> = locals.into_iter().chain([public]).collect();
        for millis in (0..20_000).step_by(100) {
            node.advance(at(millis));
            for (to, datagram) in sent(&mut node) {
                queried.push(to);
                if to == known {
                    answer_with(&mut node, to, &datagram, &nodes, &values, at(millis));
                }
            }
            peers.extend(
                std::iter::from_fn(|| node.next_event()).filter_map(|event| match event {
                    Event::Peers { search: of, peers, .. } if of == search => Some(peers),
                    _ => None,
                }),
            );
        }
        (queried, peers.concat())
    };
    let (queried, peers) = queried_after("9.9.9.9:6881");
    assert!(queried.contains(&public) && locals.iter().all(|local| !queried.contains(local)));
    assert_eq!(peers, [public]);
    // A node of the local network names its neighbors, and none of this machine.
    let (queried, peers) = queried_after("10.9.9.9:6881");
    assert!(!queried.contains(&locals[0]) && !peers.contains(&locals[0]));
    for named in locals[1..].iter().chain([&public]) {
        assert!(queried.contains(named) && peers.contains(named), "{named}");
    }
}

/// Stores of an item cost their nodes two queries each, and end.
#[test]
fn items_are_put_within_the_limits() {
    let mut node = acquainted(NodeSettings::default(), 3);
    for seq in 0..8 {
        let item = Item::sign(&[7; 32], b"", seq, b"5:value").unwrap();
        let goal = Goal::Put {
            item,
            salt: Vec::new(),
            cas: None,
        };
        let target = mutable_target(&public_key(&[7; 32]), b"");
        node.search(target, goal, None, at(1)).unwrap();
    }
    let (counts, ended) = run(&mut node, 1, 1);
    assert!(counts.values().all(|count| *count <= 14), "{counts:?}");
    let (_, later) = run(&mut node, 1001, 10);
    assert!(ended.len() + later.len() >= 8);
}

/// A node asks for proof of our address before it answers. Another one is asked at once, and the node is not slow yet
/// when it would have been otherwise.
#[test]
fn a_request_for_proof_takes_a_round_trip_of_its_own() {
    let settings = NodeSettings {
        parallelism: Parallelism { alpha: 1, beta: 2 },
        ..NodeSettings::default()
    };
    let mut node = acquainted(settings, 8);
    node.search(TARGET, LOOK, None, at(1)).unwrap();
    node.advance(at(1));
    let [(asked, question)] = &sent(&mut node)[..] else {
        panic!("one node is asked");
    };
    let slow_at = node.pending.deadline();
    node.receive(&query(Method::Ping, false, None), *asked, at(100));
    let queries = sent(&mut node);
    let is_other = |(to, data): &&(SocketAddr, Vec<u8>)| to != asked && is_query(data);
    assert_eq!(queries.iter().filter(is_other).count(), 1, "{queries:?}");
    assert!(
        queries.iter().any(|(to, data)| to == asked && !is_query(data)),
        "the proof"
    );
    // Only the first ping counts.
    node.receive(&query(Method::Ping, false, None), *asked, at(150));
    assert!(sent(&mut node).iter().all(|(to, _)| to == asked));
    let other_is_slow_at = node.pending.deadline();
    assert!(other_is_slow_at > slow_at && other_is_slow_at < at(20_000));
    let before = node.families[0].round_trips;
    answer(&mut node, *asked, question, at(200));
    let mut expected = before;
    expected.record(Duration::from_millis(100));
    assert_eq!(node.families[0].round_trips, expected);
}
