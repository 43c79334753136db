//! Answers to hosts that have not proved their address, measured by all bytes that they get.

use super::*;
use crate::dht::items::Proof;
use crate::dht::krpc::MAX_SENT_ITEM;

/// Time after which a node has given up whatever it expected from a host.
const LATER: u64 = 300_000;

/// Returns a node that has as much to tell as any: nodes of both families, peers, many torrents, and the largest items.
fn full_node(settings: NodeSettings) -> (Node, [NodeId; 2]) {
    let mut node = Node::new(settings, [1; 32], at(0));
    fill(&mut node, 20, Family::V4);
    fill(&mut node, 20, Family::V6);
    for n in 0..200u8 {
        let from = match n % 2 {
            0 => SocketAddr::from(([9, n, 1, 1], 5000)),
            _ => SocketAddr::from(([0x2a02, n.into(), 0, 0, 0, 0, 0, 1], 5000)),
        };
        let info_hash = if n < 150 { TARGET } else { NodeId([n; 20]) };
        let get = Method::GetPeers {
            info_hash,
            no_seed: false,
            scrape: false,
        };
        let now = at(1000 * u64::from(n));
        let answer = ask(&mut node, &query(get, false, None), from, now).unwrap();
        let token = with_reply(&answer, |reply| reply.token.unwrap().to_vec());
        let announce = Method::AnnouncePeer {
            info_hash,
            port: 7000,
            implied_port: false,
            token: &token,
            seed: n % 3 == 0,
        };
        assert_eq!(
            error_code(&ask(&mut node, &query(announce, true, None), from, now).unwrap()),
            None
        );
    }
    let value = [b"996:".as_slice(), &[b'x'; 996]].concat();
    let signed = Item::sign(&[7; 32], b"salt", 3, &value).unwrap();
    let plain = Item {
        value: value.into(),
        proof: None,
    };
    let from = address("9.250.1.1:5000");
    let items = [(signed, b"salt".as_slice()), (plain, b"")];
    let targets = items.map(|(item, salt)| {
        let target = match &item.proof {
            Some(proof) => mutable_target(&proof.key, salt),
            None => immutable_target(&item.value),
        };
        let newer_than = None;
        let get = query(Method::Get { target, newer_than }, false, None);
        let answer = ask(&mut node, &get, from, at(200_000)).unwrap();
        let token = with_reply(&answer, |reply| reply.token.unwrap().to_vec());
        let put = Method::Put {
            token: &token,
            item: PutItem {
                value: &item.value,
                signed: item.proof.as_ref().map(Proof::as_signed),
                salt,
                cas: None,
            },
        };
        assert_eq!(
            error_code(&ask(&mut node, &query(put, true, None), from, at(200_000)).unwrap()),
            None
        );
        target
    });
    (node, targets)
}

/// Returns one question of each kind, written as short as it can be.
fn questions([mutable, immutable]: [NodeId; 2]) -> Vec<(&'static str, Vec<u8>)> {
    let scrape = Method::GetPeers {
        info_hash: TARGET,
        no_seed: false,
        scrape: true,
    };
    let announce = Method::AnnouncePeer {
        info_hash: TARGET,
        port: 1,
        implied_port: true,
        token: b"x",
        seed: false,
    };
    let put = Method::Put {
        token: b"x",
        item: PutItem {
            value: b"0:",
            signed: None,
            salt: b"",
            cas: None,
        },
    };
    let get = |target, newer_than| Method::Get { target, newer_than };
    let methods = [
        ("ping", Method::Ping),
        ("find_node", Method::FindNode { target: TARGET }),
        ("get_peers", GET_PEERS),
        ("get_peers with filters", scrape),
        ("announce_peer", announce),
        ("get of a mutable item", get(mutable, None)),
        ("get of a newer item", get(mutable, Some(3))),
        ("get of an immutable item", get(immutable, None)),
        ("get of nothing", get(TARGET, None)),
        ("put", put),
        ("sample_infohashes", Method::SampleInfohashes { target: TARGET }),
        ("unknown", Method::Unknown { target: Some(TARGET) }),
        ("unknown without a target", Method::Unknown { target: None }),
    ];
    let written = methods.into_iter().flat_map(|(name, method)| {
        [None, Some(Want::BOTH)].map(|want| {
            let query = Query {
                id: ASKER,
                is_read_only: false,
                want,
                method: Ok(method),
            };
            (name, message(Body::Query(query), b"t"))
        })
    });
    let id = "y".repeat(20);
    let raw = [
        format!("d1:ad2:id20:{id}e1:q0:1:t0:1:y1:qe"),
        format!("d1:ad2:id20:{id}e1:q3:get1:t0:1:y1:qe"),
        format!("d1:ad2:id20:{id}e1:q9:get_peers1:t0:1:y1:qe"),
        format!("d1:ad2:id20:{id}e1:q3:put1:t0:1:y1:qe"),
        "d1:ade1:q4:ping1:t0:1:y1:qe".to_owned(),
        "d1:q4:ping1:y1:qe".to_owned(),
        "d1:y1:qe".to_owned(),
    ];
    let raw = raw.map(|text| ("malformed", text.into_bytes()));
    written.chain(raw).collect()
}

/// Sends a question from an address, and returns the number of bytes that go there until the node has nothing left to
/// do about it: answers, and questions of its own.
fn bytes_for(node: &mut Node, question: &[u8], from: SocketAddr, now: Timestamp) -> usize {
    node.receive(question, from, now);
    let end = now + Duration::from_millis(LATER);
    let mut bytes = 0;
    loop {
        while let Some((to, datagram)) = node.next_datagram() {
            bytes += if to.ip() == from.ip() { datagram.len() } else { 0 };
        }
        let next = node.deadline();
        if next > end {
            return bytes;
        }
        node.advance(next.max(now));
    }
}

fn strangers(number: usize) -> [SocketAddr; 2] {
    let n = u16::try_from(number).unwrap();
    let [high, low] = n.to_be_bytes();
    [
        SocketAddr::from(([77, high, low, 1], 5000)),
        SocketAddr::from(([0x2a09, n, 0, 0, 0, 0, 0, 1], 5000)),
    ]
}

#[test]
fn no_kind_of_question_is_multiplied_by_more_than_the_setting() {
    for max_amplification in [1, 2, 3, 4, 8] {
        let settings = NodeSettings {
            max_amplification,
            ..NodeSettings::default()
        };
        let (node, targets) = full_node(settings);
        let mut answered = 0;
        for (number, (name, question)) in questions(targets).into_iter().enumerate() {
            for from in strangers(number) {
                // Each question finds the same node.
                let bytes = bytes_for(&mut node.clone(), &question, from, at(220_000));
                assert!(
                    bytes <= max_amplification * question.len(),
                    "{name} from {from}: {bytes} bytes for {}, {max_amplification} times as many are allowed",
                    question.len()
                );
                answered += usize::from(bytes > 0);
            }
        }
        assert!(answered >= 50, "{answered} answers at {max_amplification}");
    }
}

/// Answers and pings to one stranger stay within all of its questions together. The rest is at last enough for a ping,
/// and the stranger proves its address by the answer.
#[test]
fn a_stranger_that_asks_again_is_pinged_within_its_questions() {
    for max_amplification in [1, 2, 4] {
        let settings = NodeSettings {
            max_amplification,
            ..NodeSettings::default()
        };
        for filled in [0, 8] {
            let mut node = Node::new(settings.clone(), [1; 32], at(0));
            fill(&mut node, filled, Family::V4);
            let find_node = query(Method::FindNode { target: TARGET }, false, None);
            let from = address("77.1.1.1:5000");
            let (mut received, mut pings) = (0, 0);
            for n in 1..=40 {
                node.receive(&find_node, from, at(1000 * n));
                while let Some((to, datagram)) = node.next_datagram() {
                    if to == from {
                        received += datagram.len();
                        pings += usize::from(is_query(&datagram));
                    }
                }
                assert!(received <= max_amplification * find_node.len() * n as usize);
            }
            assert!(pings > 0, "{filled} nodes, {max_amplification} times the question");
        }
    }
}

/// A read-only node answers no ping. It gets an answer that is no longer than its question: it names a node, and the
/// nodes closest to a key give tokens for it.
#[test]
fn the_shortest_answers_are_of_use() {
    let (mut node, _) = full_node(NodeSettings::default());
    let own_id = node.id(Family::V6);
    let mut query_as = |from: &str, method| {
        // Other clients name their version.
        let query = Query {
            id: ASKER,
            is_read_only: true,
            want: None,
            method: Ok(method),
        };
        let question = Message {
            transaction: b"tt",
            version: Some(b"LT\x02\x01"),
            external: None,
            body: Body::Query(query),
        };
        let question = question.write();
        let answer = ask_silently(&mut node, &question, address(from), at(220_000)).unwrap();
        assert!(answer.len() <= question.len());
        with_reply(&answer, |reply| {
            let family = Family::of(address(from).ip());
            (reply.contacts(family).count(), reply.token.is_some())
        })
    };
    let get_peers = |info_hash| Method::GetPeers {
        info_hash,
        no_seed: false,
        scrape: false,
    };
    let find_node = Method::FindNode { target: TARGET };
    assert_eq!(query_as("77.1.1.1:5000", Method::Ping), (0, false));
    assert_eq!(query_as("77.1.1.2:5000", find_node), (1, false));
    assert_eq!(query_as("77.1.1.3:5000", get_peers(NodeId([6; 20]))), (1, true));
    assert_eq!(query_as("[2a09:1::1]:5000", find_node), (1, false));
    assert_eq!(query_as("[2a09:2::1]:5000", get_peers(NodeId([6; 20]))), (1, false));
    assert_eq!(query_as("[2a09:3::1]:5000", get_peers(own_id)), (0, true));
}

/// The largest items and both filters are sent whole, to a host that has answered a ping.
#[test]
fn the_largest_answers_arrive_whole() {
    let (mut node, targets) = full_node(NodeSettings::default());
    for (number, (name, question)) in questions(targets).into_iter().enumerate() {
        let expects = name.starts_with("get of an immutable") || name.starts_with("get of a mutable");
        if !expects && !name.contains("filters") {
            continue;
        }
        let [from, _] = strangers(number);
        assert_eq!(
            ask_silently(&mut node.clone(), &question, from, at(220_000)),
            None,
            "{name}"
        );
        let answer = ask_and_prove(&mut node, &question, from, at(220_000)).expect(name);
        assert!(answer.len() <= MAX_SENT_ITEM, "{name}: {}", answer.len());
        with_reply(&answer, |reply| match expects {
            true => assert_eq!(reply.value.map(<[u8]>::len), Some(1000), "{name}"),
            false => assert!(reply.scrape.is_some(), "{name}"),
        });
    }
}

/// All questions that an address may have kept are answered when it answers the ping; those beyond get short answers.
#[test]
fn questions_wait_for_one_ping() {
    let (mut node, _) = full_node(NodeSettings::default());
    let (from, now) = (address("77.1.1.1:5000"), at(220_000));
    let find_node = query(Method::FindNode { target: TARGET }, false, None);
    (0..5).for_each(|_| node.receive(&find_node, from, now));
    let sent: Vec<Vec<u8>> = std::iter::from_fn(|| node.next_datagram())
        .map(|(_, data)| data)
        .collect();
    let [ping, short] = &sent[..] else {
        panic!("{sent:?}");
    };
    assert!(is_query(ping) && short.len() <= find_node.len());
    prove(&mut node, from, ping, now);
    let answers: Vec<Vec<u8>> = std::iter::from_fn(|| node.next_datagram())
        .map(|(_, data)| data)
        .collect();
    assert_eq!(answers.len(), 4);
    for answer in answers {
        with_reply(&answer, |reply| assert_eq!(reply.contacts(Family::V4).count(), 8));
    }
    assert_eq!(node.stats(now).pending_queries, 0);
}

/// A host that has not answered a ping gets short answers for a minute, and its questions are forgotten.
#[test]
fn silent_hosts_get_short_answers() {
    let (mut node, _) = full_node(NodeSettings::default());
    let from = address("77.1.1.1:5000");
    let find_node = query(Method::FindNode { target: TARGET }, false, None);
    assert_eq!(ask_silently(&mut node, &find_node, from, at(220_000)), None);
    [221_000, 225_001]
        .into_iter()
        .for_each(|millis| node.advance(at(millis)));
    while node.next_datagram().is_some() {}
    let mut is_short = |millis| {
        let answer = ask_silently(&mut node, &find_node, from, at(millis));
        answer.is_some_and(|answer| answer.len() <= find_node.len())
    };
    assert!(is_short(226_000) && is_short(280_000));
    assert!(!is_short(290_000), "it is pinged again");
}
