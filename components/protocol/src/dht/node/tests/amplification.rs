//! Answers to hosts that have not proved their address, measured by all bytes that they get.

use super::*;
use crate::dht::items::Proof;

/// Time after which a node has given up whatever it expected from a host.
const LATER: u64 = 300_000;

/// Returns a node that has as much to tell as any: nodes of both families, peers, many torrents, and the largest items.
fn full_node(settings: NodeSettings) -> (Node, [NodeId; 2]) {
    let max_amplification = settings.max_amplification;
    let generous = NodeSettings {
        max_amplification: 4,
        ..settings
    };
    let mut node = Node::new(generous, [1; 32], at(0));
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
        let answer = ask(&mut node, &query(get, true, None), from, now).unwrap();
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
        let get = query(Method::Get { target, newer_than }, true, None);
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
    node.settings.max_amplification = max_amplification;
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
            large_answer_bytes_per_s: 0,
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
            large_answer_bytes_per_s: 0,
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
                        pings += usize::from(datagram.ends_with(b"1:y1:qe"));
                    }
                }
                assert!(received <= max_amplification * find_node.len() * n as usize);
            }
            assert!(pings > 0, "{filled} nodes, {max_amplification} times the question");
        }
    }
}

/// Where an answer is no longer than its question, it names a node, and the nodes closest to a key give tokens for it.
#[test]
fn the_shortest_answers_are_of_use() {
    let settings = NodeSettings {
        max_amplification: 1,
        ..NodeSettings::default()
    };
    let (mut node, _) = full_node(settings);
    let own_id = node.id(Family::V6);
    let mut query_as = |from: &str, method| {
        // Other clients name their version.
        let query = Query {
            id: ASKER,
            is_read_only: false,
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
        let answer = ask(&mut node, &question, address(from), at(220_000)).unwrap();
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

/// Items and filters are larger. All strangers together get only some of them.
#[test]
fn larger_answers_to_strangers_have_a_budget() {
    let (mut node, targets) = full_node(NodeSettings::default());
    let large =
        |name: &str| name.starts_with("get of an") || name.starts_with("get of a m") || name.contains("filters");
    let questions: Vec<_> = questions(targets).into_iter().filter(|(name, _)| large(name)).collect();
    let (mut excess, mut multiplied) = (0, 0);
    for number in 0..2000 {
        let (_, question) = &questions[number % questions.len()];
        let [from, _] = strangers(number);
        let now = at(220_000 + 5 * number as u64);
        node.receive(question, from, now);
        while let Some((to, datagram)) = node.next_datagram() {
            let over = datagram.len().saturating_sub(MAX_AMPLIFICATION * question.len());
            if to == from && over > 0 {
                excess += over;
                multiplied += 1;
            }
        }
    }
    // Ten seconds, and three seconds' worth at once.
    let budget = 13 * node.settings.large_answer_bytes_per_s as usize;
    assert!(
        multiplied > 50 && excess <= budget,
        "{multiplied} answers, {excess} bytes of {budget}"
    );
}
