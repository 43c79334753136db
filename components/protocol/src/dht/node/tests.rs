//! A node's answers. `network` tests whole networks.

mod amplification;
mod network;
mod sending;

use std::time::Duration;

use super::*;
use crate::dht::items::{Item, immutable_target, mutable_target, public_key};
use crate::dht::krpc::{PutItem, Reply, write_contact};

const ASKER: NodeId = NodeId([9; 20]);
const TARGET: NodeId = NodeId([5; 20]);

/// Peers that are looked for, without an announce.
const LOOK: Goal = Goal::Peers {
    announce: None,
    scrape: false,
};

const ANNOUNCE: Goal = Goal::Peers {
    announce: Some(Announce {
        ports: [7000; 2],
        implied_port: false,
        seed: false,
    }),
    scrape: false,
};

fn at(millis: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(millis)
}

fn node() -> Node {
    Node::new(NodeSettings::default(), [1; 32], at(0))
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn query(method: Method<'_>, is_read_only: bool, want: Option<Want>) -> Vec<u8> {
    let query = Query {
        id: ASKER,
        is_read_only,
        want,
        method: Ok(method),
    };
    message(Body::Query(query), b"tt")
}

fn message(body: Body<'_>, transaction: &[u8]) -> Vec<u8> {
    let message = Message {
        transaction,
        version: None,
        external: None,
        body,
    };
    message.write()
}

const GET_PEERS: Method<'_> = Method::GetPeers {
    info_hash: TARGET,
    no_seed: false,
    scrape: false,
};

/// Sends a datagram, and returns what the node answers to its sender, which answers nothing itself.
fn ask_silently(node: &mut Node, datagram: &[u8], from: SocketAddr, now: Timestamp) -> Option<Vec<u8>> {
    node.receive(datagram, from, now);
    let sent: Vec<(SocketAddr, Vec<u8>)> = std::iter::from_fn(|| node.next_datagram()).collect();
    let is_answer = |datagram: &&(SocketAddr, Vec<u8>)| datagram.0 == from && !is_query(&datagram.1);
    sent.iter().find(is_answer).map(|(_, datagram)| datagram.clone())
}

/// Sends a datagram, and returns what the node answers to its sender, which has proved its address.
fn ask(node: &mut Node, datagram: &[u8], from: SocketAddr, now: Timestamp) -> Option<Vec<u8>> {
    node.proofs.insert(from.ip(), now);
    ask_silently(node, datagram, from, now)
}

/// Sends a datagram, and returns what the node answers to its sender, which answers pings.
fn ask_and_prove(node: &mut Node, datagram: &[u8], from: SocketAddr, now: Timestamp) -> Option<Vec<u8>> {
    node.receive(datagram, from, now);
    let mut answer = None;
    while let Some((to, datagram)) = node.next_datagram() {
        if to != from {
            continue;
        }
        if is_query(&datagram) {
            prove(node, from, &datagram, now);
        } else {
            answer = Some(datagram);
        }
    }
    answer
}

/// Answers the node's ping.
fn prove(node: &mut Node, from: SocketAddr, ping: &[u8], now: Timestamp) {
    let packet = Packet::parse(ping).unwrap();
    let pong = message(Body::Reply(Reply::new(ASKER)), packet.message().unwrap().transaction);
    node.receive(&pong, from, now);
}

fn is_query(datagram: &[u8]) -> bool {
    datagram.ends_with(b"1:y1:qe")
}

fn with_reply<T>(datagram: &[u8], read: impl FnOnce(&Reply<'_>) -> T) -> T {
    let packet = Packet::parse(datagram).unwrap();
    match packet.message().unwrap().body {
        Body::Reply(reply) => read(&reply),
        other => panic!("{other:?}"),
    }
}

fn error_code(datagram: &[u8]) -> Option<i64> {
    let packet = Packet::parse(datagram).unwrap();
    match packet.message().unwrap().body {
        Body::Error { code, .. } => Some(code),
        _ => None,
    }
}

fn token(node: &mut Node, from: SocketAddr, now: Timestamp) -> Vec<u8> {
    let answer = ask(node, &query(GET_PEERS, false, None), from, now).unwrap();
    with_reply(&answer, |reply| reply.token.unwrap().to_vec())
}

fn announce(token: &[u8]) -> Vec<u8> {
    let method = Method::AnnouncePeer {
        info_hash: TARGET,
        port: 7000,
        implied_port: false,
        token,
        seed: true,
    };
    query(method, false, None)
}

/// Brings `count` nodes into the table by answers to pings of theirs.
fn fill(node: &mut Node, count: u8, family: Family) {
    for n in 1..=count {
        let from = match family {
            Family::V4 => SocketAddr::from(([20, n, 1, 1], 6881)),
            Family::V6 => SocketAddr::from(([0x2a01, n.into(), 0, 0, 0, 0, 0, 1], 6881)),
        };
        node.add_node(from, at(0));
        while let Some((to, datagram)) = node.next_datagram() {
            let packet = Packet::parse(&datagram).unwrap();
            let message = packet.message().unwrap();
            let reply = self::message(Body::Reply(Reply::new(NodeId([n; 20]))), message.transaction);
            node.receive(&reply, to, at(1));
        }
    }
}

#[test]
fn an_announced_peer_is_found() {
    let mut node = node();
    let (one, other) = (address("9.1.1.1:5000"), address("9.2.2.2:5000"));
    let token = token(&mut node, one, at(0));
    let answer = ask(&mut node, &announce(&token), one, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert_eq!(reply.id, node.id(Family::V4));
    });
    let answer = ask(&mut node, &query(GET_PEERS, false, None), other, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert_eq!(reply.values, [address("9.1.1.1:7000")]);
    });
    // The other family is another network.
    let v6 = address("[2a01::1]:5000");
    let answer = ask(&mut node, &query(GET_PEERS, false, None), v6, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert_eq!(reply.values, []);
    });
}

/// A search begins with what is stored here.
#[test]
fn our_own_store_is_searched() {
    let mut node = node();
    let from = address("9.1.1.1:5000");
    let token = token(&mut node, from, at(0));
    ask(&mut node, &announce(&token), from, at(0)).unwrap();
    let goal = Goal::Peers {
        announce: None,
        scrape: false,
    };
    let peer = address("9.1.1.1:7000");
    let announced = Event::Announced {
        info_hash: TARGET,
        peer,
    };
    assert_eq!(node.next_event(), Some(announced));
    let search = node.search(TARGET, goal, None, at(0)).unwrap();
    let expected = Event::Peers {
        search,
        peers: vec![peer],
        node: peer,
    };
    assert_eq!(node.next_event(), Some(expected));
}

/// Other nodes list us too. We do not ask ourselves, and would wait in vain for the answer.
#[test]
fn a_search_leaves_us_out() {
    let mut node = node();
    fill(&mut node, 1, Family::V4);
    let goal = Goal::Peers {
        announce: None,
        scrape: false,
    };
    node.search(TARGET, goal, None, at(2)).unwrap();
    node.advance(at(2));
    let us = address("9.1.1.1:5000");
    let mut nodes = Vec::new();
    write_contact(node.id(Family::V4), us, &mut nodes);
    while let Some((to, datagram)) = node.next_datagram() {
        assert_ne!(to, us);
        let packet = Packet::parse(&datagram).unwrap();
        let reply = Reply {
            nodes: &nodes,
            ..Reply::new(NodeId([1; 20]))
        };
        let reply = message(Body::Reply(reply), packet.message().unwrap().transaction);
        node.receive(&reply, to, at(3));
    }
    let is_end = |event: &Event| matches!(event, Event::Finished { found, .. } if found.reply_count == 1);
    assert!(std::iter::from_fn(|| node.next_event()).any(|event| is_end(&event)));
}

/// A token is for one address: that of another host, of an earlier time, or none at all stores nothing.
#[test]
fn replayed_and_invented_tokens_are_refused() {
    let mut node = node();
    let (one, other) = (address("9.1.1.1:5000"), address("9.2.2.2:5000"));
    let stolen = token(&mut node, one, at(0));
    for (token, from, now) in [
        (&stolen[..], other, at(0)),
        (&[0; 8], one, at(0)),
        (&[], one, at(0)),
        (&stolen, one, at(11 * 60_000)),
    ] {
        let answer = ask(&mut node, &announce(token), from, now).unwrap();
        assert_eq!(error_code(&answer), Some(203));
    }
    assert_eq!(node.stats(at(0)).stored_peers, 0);
}

/// Silence for everything that is no query and no expected answer: an error would go to a forged address.
#[test]
fn rubbish_is_not_answered() {
    let mut node = node();
    let from = address("9.1.1.1:5000");
    let reply = message(Body::Reply(Reply::new(ASKER)), b"abcd");
    let error = message(Body::Error { code: 201, text: b"" }, b"abcd");
    for datagram in [&b"d1:ae"[..], b"de", b"rubbish", &reply, &error] {
        assert_eq!(ask(&mut node, datagram, from, at(0)), None);
    }
    assert_eq!(node.stats(at(0)).counters.invalid, 5);
    assert_eq!(
        ask(
            &mut node,
            &query(Method::Ping, false, None),
            address("9.1.1.1:0"),
            at(0)
        ),
        None
    );
}

/// BEP 43: a read-only node is answered but not pinged, and does not answer itself.
#[test]
fn read_only_nodes() {
    let mut node = node();
    let from = address("9.1.1.1:5000");
    node.receive(&query(Method::Ping, true, None), from, at(0));
    assert_eq!(std::iter::from_fn(|| node.next_datagram()).count(), 1, "no ping");
    node.receive(&query(Method::Ping, false, None), from, at(0));
    assert_eq!(std::iter::from_fn(|| node.next_datagram()).count(), 1, "an answer");
    node.receive(&query(GET_PEERS, false, None), from, at(0));
    assert_eq!(std::iter::from_fn(|| node.next_datagram()).count(), 1, "a ping");
    let settings = NodeSettings {
        is_read_only: true,
        ..NodeSettings::default()
    };
    let mut node = Node::new(settings, [1; 32], at(0));
    assert_eq!(ask(&mut node, &query(Method::Ping, false, None), from, at(0)), None);
    node.add_node(from, at(0));
    let (_, ping) = node.next_datagram().unwrap();
    assert!(String::from_utf8_lossy(&ping).contains("2:roi1e"));
}

/// BEP 32: the nodes of both families for `want`, those of the datagram's family without.
#[test]
fn wanted_families_are_listed() {
    let mut node = node();
    fill(&mut node, 8, Family::V4);
    fill(&mut node, 8, Family::V6);
    let find = Method::FindNode { target: TARGET };
    let counts = |node: &mut Node, want, from: &str| {
        let answer = ask(node, &query(find, false, want), address(from), at(2)).unwrap();
        assert!(answer.len() <= 1024);
        with_reply(&answer, |reply| {
            (reply.contacts(Family::V4).count(), reply.contacts(Family::V6).count())
        })
    };
    // Known nodes get whole lists.
    assert_eq!(counts(&mut node, None, "20.1.1.1:6881"), (8, 0));
    assert_eq!(counts(&mut node, Some(Want::BOTH), "20.2.1.1:6881"), (8, 8));
    assert_eq!(counts(&mut node, None, "[2a01:3::1]:6881"), (0, 8));
    assert_eq!(
        counts(&mut node, Some(Want::only(Family::V4)), "[2a01:4::1]:6881"),
        (8, 0)
    );
    // A stranger gets eight nodes too.
    assert_eq!(counts(&mut node, None, "9.9.9.9:1"), (8, 0));
}

/// No question of a stranger is answered with more than it had, whatever is stored; a host that answers gets it all.
#[test]
fn answers_to_strangers_are_small() {
    let mut node = node();
    fill(&mut node, 20, Family::V4);
    for n in 0..200 {
        let from = SocketAddr::from(([9, n, 1, 1], 5000));
        let token = token(&mut node, from, at(1000));
        ask(&mut node, &announce(&token), from, at(1000)).unwrap();
    }
    let questions = [
        query(Method::Ping, false, None),
        query(Method::FindNode { target: TARGET }, false, Some(Want::BOTH)),
        query(GET_PEERS, false, Some(Want::BOTH)),
        query(Method::SampleInfohashes { target: TARGET }, false, None),
    ];
    for (n, question) in (0u8..).zip(&questions) {
        let from = SocketAddr::from(([77, n, 1, 1], 5000));
        node.receive(question, from, at(120_000));
        let sent: usize = std::iter::from_fn(|| node.next_datagram())
            .map(|(_, data)| data.len())
            .sum();
        assert!(sent > 0 && sent <= question.len(), "{sent} for {}", question.len());
    }
    // A host that answers a ping, or has used a token, has proved its address.
    for host in ["78.1.1.1:1", "9.7.1.1:5000"] {
        let answer = ask_and_prove(&mut node, &questions[2], address(host), at(120_000)).unwrap();
        assert!(answer.len() <= 1024);
        with_reply(&answer, |reply| {
            assert!(reply.values.len() > 60 && reply.contacts(Family::V4).count() == 8);
        });
    }
}

/// BEP 33: filters on request, but not to strangers.
#[test]
fn scrapes_are_answered_with_filters() {
    let mut node = node();
    let scrape = Method::GetPeers {
        info_hash: TARGET,
        no_seed: true,
        scrape: true,
    };
    let from = address("9.1.1.1:5000");
    let answer = ask(&mut node, &query(scrape, false, None), from, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert!(reply.scrape.is_none(), "nothing is known");
    });
    let token = token(&mut node, from, at(0));
    ask(&mut node, &announce(&token), from, at(0));
    let answer = ask(&mut node, &query(scrape, false, None), from, at(0)).unwrap();
    with_reply(&answer, |reply| {
        let filters = reply.scrape.unwrap();
        assert!(filters.seeds.iter().any(|byte| *byte != 0) && filters.peers.iter().all(|byte| *byte == 0));
        assert!(reply.values.is_empty(), "the only peer is a seed");
    });
    let (scrape, from) = (query(scrape, false, None), address("88.1.1.1:5000"));
    assert_eq!(ask_silently(&mut node, &scrape, from, at(0)), None);
    let answer = ask_and_prove(&mut node, &scrape, address("88.2.1.1:5000"), at(0)).unwrap();
    with_reply(&answer, |reply| assert!(reply.scrape.is_some()));
}

#[test]
fn items_are_stored_and_returned() {
    let mut node = node();
    let from = address("9.1.1.1:5000");
    let item = Item::sign(&[7; 32], b"salt", 3, b"5:value").unwrap();
    let target = mutable_target(&public_key(&[7; 32]), b"salt");
    let get = |target, newer_than| query(Method::Get { target, newer_than }, false, None);
    let put = |token: &[u8]| {
        let method = Method::Put {
            token,
            item: PutItem {
                value: &item.value,
                signed: item.proof.as_ref().map(|proof| proof.as_signed()),
                salt: b"salt",
                cas: None,
            },
        };
        query(method, false, None)
    };
    let answer = ask(&mut node, &get(target, None), from, at(0)).unwrap();
    let token = with_reply(&answer, |reply| reply.token.unwrap().to_vec());
    assert_eq!(
        error_code(&ask(&mut node, &put(b"12345678"), from, at(0)).unwrap()),
        Some(203)
    );
    assert_eq!(error_code(&ask(&mut node, &put(&token), from, at(0)).unwrap()), None);
    // The token is for this target.
    let other = query(
        Method::Put {
            token: &token,
            item: PutItem {
                value: b"1:x",
                signed: None,
                salt: b"",
                cas: None,
            },
        },
        false,
        None,
    );
    assert_eq!(error_code(&ask(&mut node, &other, from, at(0)).unwrap()), Some(203));
    let answer = ask(&mut node, &get(target, Some(2)), from, at(0)).unwrap();
    with_reply(&answer, |reply| {
        let read = Item::verified(target, reply.value.unwrap(), reply.signed, b"salt");
        assert_eq!(read.as_ref(), Some(&item));
    });
    // BEP 44: not newer than asked for.
    let answer = ask(&mut node, &get(target, Some(3)), from, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert_eq!((reply.value, reply.seq), (None, Some(3)));
    });
    let answer = ask(&mut node, &get(immutable_target(b"1:x"), None), from, at(0)).unwrap();
    with_reply(&answer, |reply| {
        assert_eq!((reply.value, reply.seq), (None, None));
    });
    assert_eq!(node.stats(at(0)).stored_items, 1);
}

/// A search finds an item that is stored here, unless it is for another salt.
#[test]
fn our_own_items_are_found_under_their_salt() {
    let mut node = node();
    let item = Item::sign(&[7; 32], b"salt", 3, b"5:value").unwrap();
    let target = mutable_target(&public_key(&[7; 32]), b"salt");
    let put = PutItem {
        value: &item.value,
        signed: item.proof.as_ref().map(|proof| proof.as_signed()),
        salt: b"salt",
        cas: None,
    };
    let from = address("9.1.1.1:5000");
    let own_id = node.id(Family::V4);
    node.items.put(&put, from.ip(), own_id, at(0)).unwrap();
    for (salt, expected) in [(&b"salt"[..], Some(&item)), (b"", None), (b"salt2", None)] {
        let salt = salt.to_vec();
        node.search(target, Goal::Get { salt }, None, at(0)).unwrap();
        node.advance(at(0));
        let found = std::iter::from_fn(|| node.next_event()).find_map(|event| match event {
            Event::Finished { found, .. } => Some(found),
            _ => None,
        });
        assert_eq!(found.unwrap().item.as_ref(), expected);
    }
}

/// A host that asks too often is ignored for a while, and others are not affected.
#[test]
fn floods_are_cut_off() {
    let mut node = node();
    let ping = query(Method::Ping, false, None);
    let flooder = address("9.1.1.1:5000");
    let answered = (0..2000)
        .filter(|_| ask_silently(&mut node, &ping, flooder, at(0)).is_some())
        .count();
    assert_eq!(answered, 50);
    assert!(ask(&mut node, &ping, address("9.2.2.2:5000"), at(0)).is_some());
    assert_eq!(node.stats(at(0)).counters.queries_refused, 1950);
    // A flood from forged addresses: answers stay within their budget, and nobody is pinged without bound.
    for n in 0..20_000u32 {
        node.receive(
            &query(GET_PEERS, false, None),
            SocketAddr::from(((0x1500_0000 + n * 4096).to_be_bytes(), 1)),
            at(10),
        );
    }
    let (mut bytes, mut pings) = (0, 0);
    while let Some((_, datagram)) = node.next_datagram() {
        bytes += datagram.len();
        pings += usize::from(is_query(&datagram));
    }
    let max_pings = 256 + 16;
    assert!(bytes < 310_000 && pings <= max_pings, "{bytes} bytes, {pings} pings");
    let stats = node.stats(at(10));
    assert!(
        stats.pending_queries <= max_pings && stats.tables[0].nodes == 0,
        "{stats:?}"
    );
}

/// Questions from forged addresses use up their part of the budget. Hosts that have proved their address get answers
/// all the same, by their token if by nothing else, and so do pings.
#[test]
fn a_flood_from_forged_addresses_leaves_answers_for_others() {
    let mut node = node();
    fill(&mut node, 8, Family::V4);
    let known = address("20.1.1.1:6881");
    let announcer = address("9.1.1.1:5000");
    let token = token(&mut node, announcer, at(0));
    for n in 0..5000u32 {
        let forged = SocketAddr::from(((0x1500_0000 + n * 4096).to_be_bytes(), 1));
        node.receive(&query(GET_PEERS, true, None), forged, at(10));
    }
    while node.next_datagram().is_some() {}
    let get_peers = query(GET_PEERS, true, None);
    assert_eq!(
        ask_silently(&mut node, &get_peers, address("9.3.3.3:5000"), at(10)),
        None
    );
    assert!(ask_silently(&mut node, &get_peers, known, at(10)).is_some());
    let stored = ask_silently(&mut node, &announce(&token), announcer, at(10)).unwrap();
    assert_eq!(error_code(&stored), None);
    let ping = query(Method::Ping, true, None);
    assert!(ask_silently(&mut node, &ping, address("9.4.4.4:5000"), at(10)).is_some());
    // All parts together are the whole.
    assert!(node.stats(at(10)).counters.bytes_sent < 303_000);
}

/// An answer counts only from the address that was asked, with the id of the question.
#[test]
fn forged_answers_are_ignored() {
    let mut node = node();
    let (queried, other) = (address("9.1.1.1:5000"), address("9.1.1.1:5001"));
    node.add_node(queried, at(0));
    let (_, ping) = node.next_datagram().unwrap();
    let packet = Packet::parse(&ping).unwrap();
    let transaction = packet.message().unwrap().transaction.to_vec();
    let reply = message(Body::Reply(Reply::new(ASKER)), &transaction);
    node.receive(&reply, other, at(10));
    node.receive(&message(Body::Reply(Reply::new(ASKER)), b"zzzz"), queried, at(10));
    assert_eq!(node.stats(at(10)).tables[0].nodes, 0);
    node.receive(&reply, queried, at(10));
    assert_eq!(node.stats(at(10)).tables[0].nodes, 1);
    node.receive(&reply, queried, at(10));
    assert_eq!(node.stats(at(10)).counters.replies_received, 1);
}

#[test]
fn the_state_is_saved_and_loaded() {
    let mut node = node();
    fill(&mut node, 8, Family::V4);
    fill(&mut node, 5, Family::V6);
    let state = node.save(at(10));
    let mut next = Node::new(NodeSettings::default(), [2; 32], at(0));
    next.load(&state, at(0)).unwrap();
    assert_eq!(next.id(Family::V4), node.id(Family::V4));
    assert_eq!(next.id(Family::V6), node.id(Family::V6));
    // The saved nodes are asked first, and kept until others are known.
    next.advance(at(0));
    let (to, _) = next.next_datagram().unwrap();
    assert_eq!(to.port(), 6881);
    assert_eq!(next.save(at(0)), state);
    for damaged in [&state[..state.len() - 1], b"", b"de1"] {
        assert!(next.load(damaged, at(0)).is_err());
    }
    next.load(b"d2:id3:abc5:nodes3:abce", at(0)).unwrap();
    assert_eq!(next.id(Family::V4), node.id(Family::V4));
}

/// A node of the IPv6 network lists IPv4 addresses in IPv6 form. Their answers would come from the other network, so
/// that a search which asked them would never end.
#[test]
fn mapped_addresses_are_no_nodes() {
    let mut node = node();
    let from = address("[2a01:1::1]:6881");
    node.add_host(from, at(0));
    let search = node.search(TARGET, Goal::Nodes, Some(Family::V6), at(0)).unwrap();
    let entry = |ip: &str| {
        let ip: std::net::Ipv6Addr = ip.parse().unwrap();
        [&TARGET.0[..], &ip.octets(), &6881u16.to_be_bytes()].concat()
    };
    let list = [entry("::ffff:9.1.1.1"), entry("2a01:2::1")].concat();
    let mut queried = Vec::new();
    for millis in (0..30_000).step_by(100) {
        node.advance(at(millis));
        while let Some((to, datagram)) = node.next_datagram() {
            queried.push(to);
            let packet = Packet::parse(&datagram).unwrap();
            let reply = Reply {
                nodes6: &list,
                ..Reply::new(NodeId([3; 20]))
            };
            let answer = message(Body::Reply(reply), packet.message().unwrap().transaction);
            if to == from {
                node.receive(&answer, from, at(millis));
            }
        }
    }
    let is_end = |event: &Event| matches!(event, Event::Finished { search: of, .. } if *of == search);
    assert!(std::iter::from_fn(|| node.next_event()).any(|event| is_end(&event)));
    assert!(queried.contains(&address("[2a01:2::1]:6881")), "{queried:?}");
    assert!(queried.iter().all(SocketAddr::is_ipv6), "{queried:?}");
    let state = [&b"d6:nodes676:"[..], &list, b"e"].concat();
    let mut next = self::node();
    next.load(&state, at(0)).unwrap();
    let saved = next.save(at(0));
    assert!(saved.ends_with(&[&b"6:nodes638:"[..], &entry("2a01:2::1"), b"e"].concat()));
}
