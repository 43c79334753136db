//! Answers to hosts that have not proved their address, measured by all bytes that they get.

use super::*;
use crate::dht::items::Proof;

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

/// Sends a question from an address, and returns the number of bytes that go there until the node has nothing left to do
/// about it: answers, and questions of its own.
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
    for max_amplification in [2, 3, 4, 8] {
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
                answered += usize::from(bytes > question.len());
            }
        }
        assert!(answered >= 30, "{answered} answers at {max_amplification}");
    }
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
