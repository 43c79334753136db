//! Queries of the DHT, answered by a whole node.

use std::net::SocketAddr;
use std::time::Duration;

use ecs_torrent::protocol::dht::id::NodeId;
use ecs_torrent::protocol::dht::krpc::{Body, Message, Method, PutItem, Query, Want};
use ecs_torrent::protocol::dht::node::{Node, NodeSettings};
use ecs_torrent::protocol::time::Timestamp;

use crate::IsWanted;
use crate::meter::measure as costs;
use crate::report::Row;

/// Number of queries of a row, each from a network of its own.
const QUERIES: u32 = 10_000;

/// Time between two queries.
const PAUSE: Duration = Duration::from_millis(10);

/// Measures the selected rows.
///
/// # Panics
/// If the node does not read every query.
pub fn measure(is_wanted: IsWanted<'_>, rows: &mut Vec<Row>) {
    for (name, method) in METHODS.iter().filter(|(name, _)| is_wanted("dht", name)) {
        let datagrams: Vec<Vec<u8>> = (0..QUERIES).map(|number| query(number, *method)).collect();
        let mut node = Node::new(NodeSettings::default(), [1; 32], Timestamp::ZERO);
        let mut answer_count = 0;
        let (cost, ()) = costs(|| {
            for (number, datagram) in (0..).zip(&datagrams) {
                let now = Timestamp::ZERO + PAUSE * number;
                node.receive(datagram, sender(number), now);
                answer_count += usize::from(node.next_datagram().is_some());
            }
        });
        let counters = node.stats(Timestamp::ZERO).counters;
        assert_eq!(
            (counters.queries_received, counters.invalid),
            (u64::from(QUERIES), 0),
            "{name}"
        );
        assert!(answer_count > 0, "{name}: no answer");
        rows.push(Row::new("dht", name, datagrams.concat().len(), cost));
    }
}

const METHODS: &[(&str, Method<'static>)] = &[
    ("ping", Method::Ping),
    ("find_node", Method::FindNode { target: TARGET }),
    (
        "get_peers",
        Method::GetPeers {
            info_hash: TARGET,
            no_seed: false,
            scrape: true,
        },
    ),
    (
        "announce_peer with a wrong token",
        Method::AnnouncePeer {
            info_hash: TARGET,
            port: 1,
            implied_port: false,
            token: b"token",
            seed: false,
        },
    ),
    (
        "put of a long value with a wrong token",
        Method::Put {
            token: b"token",
            item: PutItem {
                value: VALUE,
                signed: None,
                salt: b"",
                cas: None,
            },
        },
    ),
];

const TARGET: NodeId = NodeId([7; 20]);

/// A string of 900 bytes, bencoded.
const VALUE: &[u8] = &{
    let mut value = [b'v'; 904];
    (value[0], value[1], value[2], value[3]) = (b'9', b'0', b'0', b':');
    value
};

fn sender(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([60 + a, b, c, 1], 6881))
}

fn query(number: u32, method: Method<'_>) -> Vec<u8> {
    let mut id = [9; 20];
    id[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    let query = Query {
        id: NodeId(id),
        is_read_only: false,
        want: Some(Want::BOTH),
        method: Ok(method),
    };
    let message = Message {
        transaction: b"tt",
        version: None,
        external: None,
        body: Body::Query(query),
    };
    message.write()
}
