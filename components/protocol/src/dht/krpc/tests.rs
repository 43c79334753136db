use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::bencode::{Document, Limits};

const ID: NodeId = NodeId(*b"abcdefghij0123456789");
const TARGET: NodeId = NodeId(*b"mnopqrstuvwxyz123456");

fn message(body: Body<'_>) -> Message<'_> {
    Message {
        transaction: b"aa",
        version: None,
        external: None,
        body,
    }
}

fn query(method: Method<'_>) -> Body<'_> {
    Body::Query(Query {
        id: ID,
        is_read_only: false,
        want: None,
        method: Ok(method),
    })
}

fn reply(id: &[u8; 20]) -> Reply<'static> {
    Reply::new(NodeId(*id))
}

/// Checks that `message` is written as `text`, and that `text` is read as `message`.
fn check(message: &Message<'_>, text: &[u8]) {
    assert_eq!(String::from_utf8_lossy(&message.write()), String::from_utf8_lossy(text));
    assert_eq!(Packet::parse(text).unwrap().message().as_ref(), Ok(message));
}

fn read_method(text: &[u8]) -> Result<String, Refusal> {
    let packet = Packet::parse(text).unwrap();
    let Body::Query(query) = packet.message().unwrap().body else {
        panic!()
    };
    query.method.map(|method| format!("{method:?}"))
}

/// The packets of BEP 5, "DHT Queries" and "KRPC Protocol".
#[test]
fn packets_of_bep_5() {
    check(
        &message(query(Method::Ping)),
        b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe",
    );
    check(
        &message(query(Method::FindNode { target: TARGET })),
        b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q9:find_node1:t2:aa1:y1:qe",
    );
    check(
        &message(query(Method::GetPeers {
            info_hash: TARGET,
            no_seed: false,
            scrape: false,
        })),
        b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz123456e1:q9:get_peers1:t2:aa1:y1:qe",
    );
    check(
        &message(query(Method::AnnouncePeer {
            info_hash: TARGET,
            port: 6881,
            implied_port: true,
            token: b"aoeusnth",
            seed: false,
        })),
        b"d1:ad2:id20:abcdefghij012345678912:implied_porti1e9:info_hash20:mnopqrstuvwxyz1234564:porti6881e5:token8:aoeusnthe1:q13:announce_peer1:t2:aa1:y1:qe",
    );
    check(
        &message(Body::Reply(reply(b"mnopqrstuvwxyz123456"))),
        b"d1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re",
    );
    check(
        &message(Body::Reply(Reply {
            token: Some(b"aoeusnth"),
            values: vec![
                "97.120.106.101:11893".parse().unwrap(),
                "105.100.104.116:28269".parse().unwrap(),
            ],
            ..reply(b"abcdefghij0123456789")
        })),
        b"d1:rd2:id20:abcdefghij01234567895:token8:aoeusnth6:valuesl6:axje.u6:idhtnmee1:t2:aa1:y1:re",
    );
    check(
        &message(Body::Error {
            code: 201,
            text: b"A Generic Error Ocurred",
        }),
        b"d1:eli201e23:A Generic Error Ocurrede1:t2:aa1:y1:ee",
    );
}

#[test]
fn flags_of_the_extensions() {
    check(
        &message(Body::Query(Query {
            id: ID,
            is_read_only: true,
            want: Some(Want::BOTH),
            method: Ok(Method::GetPeers {
                info_hash: TARGET,
                no_seed: true,
                scrape: true,
            }),
        })),
        b"d1:ad2:id20:abcdefghij01234567899:info_hash20:mnopqrstuvwxyz1234566:noseedi1e6:scrapei1e4:wantl2:n42:n6ee1:q9:get_peers2:roi1e1:t2:aa1:y1:qe",
    );
}

/// BEP 32 and BEP 42: the address of the reader is 6 or 18 bytes.
#[test]
fn external_addresses() {
    for address in ["1.2.3.4:6881", "[2001:db8::1]:6881"] {
        let message = Message {
            external: Some(address.parse().unwrap()),
            ..message(Body::Reply(reply(&ID.0)))
        };
        let datagram = message.write();
        assert_eq!(Packet::parse(&datagram).unwrap().message().unwrap(), message);
    }
    let packet = Packet::parse(b"d2:ip4:abcd1:rd2:id20:mnopqrstuvwxyz123456e1:t2:aa1:y1:re").unwrap();
    assert_eq!(packet.message().unwrap().external, None);
}

/// A query whose arguments are wrong is answered with an error that names the argument.
#[test]
fn wrong_arguments_are_refused_with_a_code() {
    let put = |args: &str| {
        read_method(format!("d1:ad2:id20:abcdefghij0123456789{args}e1:q3:put1:t2:aa1:y1:qe").as_bytes())
            .map_err(|refusal| refusal.code)
    };
    let key = format!("1:k32:{}", "k".repeat(32));
    let signature = format!("3:sig64:{}", "s".repeat(64));
    assert!(put("5:token2:tt1:v3:abc").is_ok());
    assert_eq!(put("1:v3:abc"), Err(ErrorCode::Protocol), "no token");
    assert_eq!(put("5:token2:tt"), Err(ErrorCode::Protocol), "no value");
    assert_eq!(
        put("5:token2:tt1:vd1:b1:x1:a1:xe"),
        Err(ErrorCode::Protocol),
        "unsorted keys"
    );
    assert_eq!(
        put(&format!("{key}5:token2:tt1:v3:abc")),
        Err(ErrorCode::Protocol),
        "a key without a signature"
    );
    assert_eq!(
        put(&format!("{key}3:seqi-1e{signature}5:token2:tt1:v3:abc")),
        Err(ErrorCode::Protocol),
        "a negative sequence number"
    );
    assert!(put(&format!("{key}3:seqi0e{signature}5:token2:tt1:v3:abc")).is_ok());
    let salt = format!("4:salt65:{}", "s".repeat(65));
    assert_eq!(
        put(&format!("{key}{salt}3:seqi0e{signature}5:token2:tt1:v3:abc")),
        Err(ErrorCode::SaltTooBig)
    );
    assert!(put(&format!("5:token2:tt1:v996:{}", "v".repeat(996))).is_ok());
    assert_eq!(
        put(&format!("5:token2:tt1:v997:{}", "v".repeat(997))),
        Err(ErrorCode::ValueTooBig)
    );
    let announce = |port: &str| {
        let args = format!("9:info_hash20:mnopqrstuvwxyz123456{port}5:token2:tt");
        read_method(format!("d1:ad2:id20:abcdefghij0123456789{args}e1:q13:announce_peer1:t2:aa1:y1:qe").as_bytes())
            .map_err(|refusal| refusal.code)
    };
    assert!(announce("4:porti1e").is_ok() && announce("12:implied_porti1e").is_ok());
    for port in ["", "4:porti0e", "4:porti65536e", "4:porti-1e", "4:port2:80"] {
        assert_eq!(announce(port), Err(ErrorCode::Protocol), "{port}");
    }
}

/// An unknown method with a target is answered like `find_node`.
#[test]
fn unknown_methods() {
    let text = b"d1:ad2:id20:abcdefghij01234567896:target20:mnopqrstuvwxyz123456e1:q4:vote1:t2:aa1:y1:qe";
    let expected = Method::Unknown { target: Some(TARGET) };
    assert_eq!(read_method(text), Ok(format!("{expected:?}")));
}

#[test]
fn rubbish_is_no_message() {
    let deep = [b"d1:a".as_slice(), &[b'l'; 20], &[b'e'; 20], b"e"].concat();
    let long = format!("d1:a{}:{}e", MAX_RECEIVED, "a".repeat(MAX_RECEIVED));
    let many = format!("d1:al{}ee", "i1e".repeat(1100));
    for text in [
        &b""[..],
        b"d",
        b"de e",
        b"i1e",
        b"de",
        &deep,
        long.as_bytes(),
        many.as_bytes(),
        b"d1:t2:aae",
        b"d1:t2:aa1:y1:xe",
        b"d1:t2:aa1:y1:qe",
        b"d1:ade1:q4:ping1:t2:aa1:y1:qe",
        b"d1:ad2:id19:abcdefghij012345678e1:q4:ping1:t2:aa1:y1:qe",
        b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:y1:qe",
        b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t33:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1:y1:qe",
        b"d1:rde1:t2:aa1:y1:re",
        b"d1:r0:1:t2:aa1:y1:re",
    ] {
        let result = Packet::parse(text).and_then(|packet| packet.message().map(drop));
        assert!(result.is_err(), "{}", String::from_utf8_lossy(text));
    }
}

/// Wrong optional parts of a reply count as absent, and cost the rest nothing.
#[test]
fn wrong_parts_of_a_reply_are_left_out() {
    let text = b"d1:rd4:BFpe3:abc2:id20:abcdefghij01234567895:nodes27:nnnnnnnnnnnnnnnnnnnnaaaapp!6:nodes6i7e3:seqi-4e5:tokenle1:vd1:bi1e1:ai2ee6:valuesl6:aaaapp6:aaaa\0\x003:abci4eee1:t1:a1:y1:re";
    let packet = Packet::parse(text).unwrap();
    let Body::Reply(read) = packet.message().unwrap().body else {
        panic!()
    };
    assert_eq!(read.contacts(Family::V4).count(), 1);
    assert_eq!(read.values, ["97.97.97.97:28784".parse().unwrap()]);
    let rest = (read.nodes6, read.token, read.value, read.signed, read.seq, read.scrape);
    assert_eq!(rest, (&[][..], None, None, None, None, None));
}

/// The parts of a generated message, owned.
#[derive(Debug, Clone)]
struct Parts {
    transaction: Vec<u8>,
    version: Option<Vec<u8>>,
    external: Option<SocketAddr>,
    token: Vec<u8>,
    text: Vec<u8>,
    key: [u8; 32],
    signature: [u8; 64],
    filter: Vec<u8>,
    nodes: Vec<(NodeId, SocketAddr)>,
    peers: Vec<SocketAddr>,
    numbers: (i64, Option<i64>, u16, bool, bool),
    kind: usize,
}

fn addresses() -> impl Strategy<Value = SocketAddr> {
    // An IPv4 address in IPv6 form is read as an IPv4 address.
    (any::<std::net::IpAddr>(), 1u16..).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

fn ids() -> impl Strategy<Value = NodeId> {
    any::<[u8; 20]>().prop_map(NodeId)
}

prop_compose! {
    fn parts()(
        transaction in vec(any::<u8>(), 0..=MAX_TRANSACTION),
        version in option::of(vec(any::<u8>(), 0..8)),
        external in option::of(addresses()),
        token in vec(any::<u8>(), 0..=MAX_TOKEN),
        text in vec(any::<u8>(), 0..=MAX_SALT),
        key in any::<[u8; 32]>(),
        signature in vec(any::<u8>(), 64),
        filter in vec(any::<u8>(), BLOOM_BYTES),
        nodes in vec((ids(), addresses()), 0..20),
        peers in vec(addresses(), 0..20),
        numbers in (0..=i64::MAX, option::of(any::<i64>()), 1u16.., any::<bool>(), any::<bool>()),
        kind in 0usize..10,
    ) -> Parts {
        let signature = signature.try_into().unwrap();
        Parts { transaction, version, external, token, text, key, signature, filter, nodes, peers, numbers, kind }
    }
}

/// Builds a message of every kind from `parts` and passes it to `check`.
fn with_message(parts: &Parts, check: impl FnOnce(&Message<'_>)) {
    let (seq, other_seq, port, is_first, is_second) = parts.numbers;
    let value = [parts.text.len().to_string().as_bytes(), b":", &parts.text].concat();
    let signed = is_first.then_some(Signed {
        key: &parts.key,
        signature: &parts.signature,
        seq,
    });
    let info_hash = NodeId(parts.key[..20].try_into().unwrap());
    let method = match parts.kind {
        0 => Method::Ping,
        1 => Method::FindNode { target: info_hash },
        2 => Method::GetPeers {
            info_hash,
            no_seed: is_first,
            scrape: is_second,
        },
        3 => Method::AnnouncePeer {
            info_hash,
            port,
            implied_port: is_first,
            token: &parts.token,
            seed: is_second,
        },
        4 => Method::Get {
            target: info_hash,
            newer_than: other_seq,
        },
        5 => Method::Put {
            token: &parts.token,
            item: PutItem {
                value: &value,
                signed,
                salt: if is_first { &parts.text } else { &[] },
                cas: other_seq,
            },
        },
        _ => Method::SampleInfohashes { target: info_hash },
    };
    let mut lists = [Vec::new(), Vec::new()];
    for (id, address) in &parts.nodes {
        write_contact(*id, *address, &mut lists[usize::from(address.is_ipv6())]);
    }
    let filter = parts.filter.as_slice().try_into().unwrap();
    let body = match parts.kind {
        0..=6 => Body::Query(Query {
            id: info_hash,
            is_read_only: is_second,
            want: is_first.then_some(Want {
                v4: is_second,
                v6: true,
            }),
            method: Ok(method),
        }),
        7..=8 => Body::Reply(Reply {
            id: info_hash,
            nodes: &lists[0],
            nodes6: &lists[1],
            values: parts.peers.clone(),
            token: is_first.then_some(&parts.token),
            value: is_second.then_some(&value),
            signed,
            seq: signed.map(|signed| signed.seq),
            scrape: is_second.then_some(Filters {
                seeds: filter,
                peers: filter,
            }),
            samples: is_first.then_some(Samples {
                interval: 7,
                total: port.into(),
                hashes: &parts.key[..20],
            }),
        }),
        _ => Body::Error {
            code: seq,
            text: &parts.text,
        },
    };
    check(&Message {
        transaction: &parts.transaction,
        version: parts.version.as_deref(),
        external: parts.external,
        body,
    });
}

proptest! {
    /// A written message is canonical, and is read as the same message.
    #[test]
    fn messages_round_trip(parts in parts()) {
        with_message(&parts, |message| {
            let datagram = message.write();
            // bendy decodes canonical bencode only.
            bendy::decoding::Decoder::new(&datagram).next_object().unwrap().unwrap().try_into_dictionary().unwrap().consume_all().unwrap();
            assert_eq!(Packet::parse(&datagram).unwrap().message().as_ref(), Ok(message));
        });
    }

    /// No damage to a message makes the reader panic, and a message that is read is written again within bounds.
    #[test]
    fn damaged_messages_are_read_or_refused(parts in parts(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        with_message(&parts, |message| {
            let mut datagram = message.write();
            let at = at.index(datagram.len());
            datagram[at] = byte;
            if let Ok(packet) = Packet::parse(&datagram) && let Ok(message) = packet.message() {
                assert!(Document::parse(&message.write(), &Limits::default()).is_ok());
            }
        });
    }
}
