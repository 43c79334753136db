//! The engine's node of the DHT stays within its bounds, sends no storms, and stores nothing without a token that it
//! gave to the same host for the same key.
//!
//! The check follows the datagrams, not the node's own records of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::settings::{DhtSettings, Settings};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{DHT_DATAGRAMS, DatagramKind, NetEvent, NetRequest};
use ecs_torrent_protocol::dht::id::NodeId;
use ecs_torrent_protocol::dht::krpc::{Body, MAX_SENT_ITEM, Message, Method, Packet};
use ecs_torrent_protocol::dht::node::{NodeSettings, NodeStats};
use ecs_torrent_protocol::dht::table::K;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_systems::dht::Dht;

use super::{Invariant, Violations};

/// Time for which a token is valid at most (BEP 5).
const TOKEN_TIME: Duration = Duration::from_secs(600);

/// Time in which the queries to a host are counted.
const WINDOW: Duration = Duration::from_secs(10);

/// Time for which a question is kept.
const QUESTION_TIME: Duration = Duration::from_secs(60);

/// Entries of a table after which it is swept.
const SWEEP_AT: usize = 4096;

/// Maximum number of buckets of a routing table, and of nodes that wait for a place in each.
const MAX_BUCKETS: usize = 50;
const MAX_REPLACEMENTS: usize = K;

/// Searches of the node itself: one for each family.
const OWN_SEARCHES: usize = 2;

/// The traffic of an engine's node.
#[derive(Resource, Default)]
pub(super) struct NodeTraffic {
    /// Questions of others that are not answered yet, by their host and transaction id.
    queried: BTreeMap<(SocketAddr, Vec<u8>), (Timestamp, Question)>,
    /// The times at which tokens left, by host, key and token.
    given: BTreeMap<(IpAddr, NodeId, Vec<u8>), Timestamp>,
    /// Queries to each host since a time.
    sent: BTreeMap<IpAddr, (Timestamp, u32)>,
}

/// A question whose answer may contain a token, or needs one.
enum Question {
    /// For peers or an item.
    Get(NodeId),
    /// To store a peer or an item, with this token.
    Store(NodeId, Vec<u8>),
}

impl Question {
    fn of(method: &Method<'_>) -> Option<Self> {
        match *method {
            Method::GetPeers { info_hash, .. } => Some(Self::Get(info_hash)),
            Method::Get { target, .. } => Some(Self::Get(target)),
            Method::AnnouncePeer { info_hash, token, .. } => Some(Self::Store(info_hash, token.to_vec())),
            Method::Put { token, item } => Some(Self::Store(item.target(), token.to_vec())),
            _ => None,
        }
    }
}

impl NodeTraffic {
    /// Records a question from `from`.
    fn record_question(&mut self, from: SocketAddr, datagram: &[u8], now: Timestamp) {
        let Ok(packet) = Packet::parse(datagram) else { return };
        let Ok(message) = packet.message() else { return };
        let Body::Query(query) = &message.body else { return };
        if let Some(question) = query.method.as_ref().ok().and_then(Question::of) {
            if self.queried.len() >= SWEEP_AT {
                self.queried.retain(|_, (at, _)| now.since(*at) < QUESTION_TIME);
            }
            let key = (canonical(from), message.transaction.to_vec());
            self.queried.insert(key, (now, question));
        }
    }

    /// Records a datagram to `to`, and returns a description of the violation, if there is one.
    fn check_sent(
        &mut self,
        to: SocketAddr,
        datagram: &[u8],
        settings: &DhtSettings,
        now: Timestamp,
    ) -> Option<String> {
        if datagram.len() > MAX_SENT_ITEM {
            return Some(format!(
                "{} bytes are sent to {to}, at most {MAX_SENT_ITEM}",
                datagram.len()
            ));
        }
        let packet = Packet::parse(datagram).ok()?;
        let message = packet.message().ok()?;
        match &message.body {
            Body::Query(_) => self.count_query(to, settings, now),
            _ => self.check_answer(canonical(to), &message, now),
        }
    }

    /// Counts a query to a host, which gets no more than we would answer.
    fn count_query(&mut self, to: SocketAddr, settings: &DhtSettings, now: Timestamp) -> Option<String> {
        if self.sent.len() >= SWEEP_AT {
            self.sent.retain(|_, (since, _)| now.since(*since) < WINDOW);
        }
        let (since, count) = self.sent.entry(canonical(to).ip()).or_insert((now, 0));
        if now.since(*since) >= WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        // Ten times the rate at once, and the rate itself.
        let most = settings.host_queries_per_s.saturating_mul(10 + WINDOW.as_secs() as u32);
        (*count == most.saturating_add(1)).then(|| format!("{to} gets {count} queries in {WINDOW:?}, at most {most}"))
    }

    /// Checks that a stored value came with a token that was recently given to the host for that key.
    fn check_answer(&mut self, to: SocketAddr, message: &Message<'_>, now: Timestamp) -> Option<String> {
        let (_, question) = self.queried.remove(&(to, message.transaction.to_vec()))?;
        let Body::Reply(reply) = &message.body else { return None };
        match question {
            Question::Get(key) => {
                if self.given.len() >= SWEEP_AT {
                    self.given.retain(|_, at| now.since(*at) <= TOKEN_TIME);
                }
                let token = reply.token?.to_vec();
                self.given.insert((to.ip(), key, token), now);
                None
            }
            Question::Store(key, token) => {
                let given = self.given.get(&(to.ip(), key, token));
                let is_valid = given.is_some_and(|at| now.since(*at) <= TOKEN_TIME);
                (!is_valid).then(|| format!("{to} stores something under {key} without a token for it"))
            }
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Records the questions that have arrived.
pub(super) fn record(clock: Res<Clock>, net: Res<NetPort>, mut traffic: ResMut<NodeTraffic>) {
    for event in net.incoming(DHT_DATAGRAMS) {
        if let NetEvent::Datagram { datagram, .. } = event {
            traffic.record_question(datagram.from, &datagram.data, clock.now());
        }
    }
}

/// Checks the datagrams that are about to leave.
pub(super) fn listen(
    clock: Res<Clock>,
    settings: Res<Settings>,
    net: Res<NetPort>,
    mut traffic: ResMut<NodeTraffic>,
    mut violations: ResMut<Violations>,
) {
    for request in net.outgoing() {
        if let NetRequest::Datagram { to, data, .. } = request
            && DatagramKind::of(data) == Some(DatagramKind::Dht)
            && let Some(what) = traffic.check_sent(*to, data, &settings.dht, clock.now())
        {
            violations.report(&clock, Invariant::Dht, || what);
        }
    }
}

/// Checks the sizes of the node's tables.
pub(super) fn check_all(
    clock: Res<Clock>,
    settings: Res<Settings>,
    dht: Option<Res<Dht>>,
    mut violations: ResMut<Violations>,
) {
    let Some(stats) = dht.and_then(|dht| dht.stats(clock.now())) else {
        return;
    };
    for (what, is, most) in bounds(&stats, &settings.dht) {
        if is > most {
            violations.report(&clock, Invariant::Dht, || format!("{what}: {is}, at most {most}"));
        }
    }
}

/// Returns the sizes of a node's tables, each with its bound.
fn bounds(stats: &NodeStats, settings: &DhtSettings) -> Vec<(&'static str, usize, usize)> {
    let limits = NodeSettings::default();
    let mut bounds = vec![
        (
            "stored torrents",
            stats.stored_torrents,
            2 * settings.max_stored_torrents,
        ),
        ("stored peers", stats.stored_peers, 2 * settings.max_stored_peers),
        ("stored items", stats.stored_items, settings.max_stored_items),
        ("pending queries", stats.pending_queries, limits.max_pending),
        ("searches", stats.searches, settings.max_searches + OWN_SEARCHES),
    ];
    for table in stats.tables {
        let replacements = table.buckets * MAX_REPLACEMENTS;
        bounds.extend([
            ("buckets", table.buckets, MAX_BUCKETS),
            ("nodes", table.nodes, table.buckets * K),
            ("good nodes", table.good, table.nodes),
            ("nodes that wait", table.replacements, replacements),
        ]);
    }
    bounds
}

#[cfg(test)]
mod tests {
    use ecs_torrent_protocol::dht::krpc::{Query, Reply};
    use ecs_torrent_protocol::dht::table::TableStats;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn message(body: Body<'_>) -> Vec<u8> {
        let message = Message {
            transaction: b"aa",
            version: None,
            external: None,
            body,
        };
        message.write()
    }

    fn query(method: Method<'_>) -> Vec<u8> {
        message(Body::Query(Query {
            id: NodeId([1; 20]),
            is_read_only: false,
            want: None,
            method: Ok(method),
        }))
    }

    fn reply(token: Option<&[u8]>) -> Vec<u8> {
        message(Body::Reply(Reply {
            token,
            ..Reply::new(NodeId([2; 20]))
        }))
    }

    const KEY: NodeId = NodeId([7; 20]);

    fn announce(info_hash: NodeId, token: &[u8]) -> Vec<u8> {
        query(Method::AnnouncePeer {
            info_hash,
            port: 1,
            implied_port: false,
            token,
            seed: false,
        })
    }

    /// Gives a token to a host, and lets a host store something with a token. Returns whether that is a violation.
    fn is_found(host: &str, key: NodeId, token: &[u8], wait: u64) -> bool {
        let settings = DhtSettings::default();
        let mut traffic = NodeTraffic::default();
        let (asker, storer): (SocketAddr, SocketAddr) = ("9.1.1.1:5".parse().unwrap(), host.parse().unwrap());
        let get = query(Method::GetPeers {
            info_hash: KEY,
            no_seed: false,
            scrape: false,
        });
        traffic.record_question(asker, &get, at(0));
        assert_eq!(traffic.check_sent(asker, &reply(Some(b"tokn")), &settings, at(0)), None);
        traffic.record_question(storer, &announce(key, token), at(wait));
        let found = traffic.check_sent(storer, &reply(None), &settings, at(wait));
        assert!(found.as_ref().is_none_or(|what| what.contains("without a token")));
        found.is_some()
    }

    #[test]
    fn a_token_is_good_for_its_host_and_its_key_and_a_while() {
        assert!(!is_found("9.1.1.1:5", KEY, b"tokn", 1));
        assert!(!is_found("9.1.1.1:6", KEY, b"tokn", 600));
        assert!(is_found("9.1.1.1:5", KEY, b"tokn", 601));
        assert!(is_found("9.1.1.2:5", KEY, b"tokn", 1));
        assert!(is_found("9.1.1.1:5", NodeId([8; 20]), b"tokn", 1));
        assert!(is_found("9.1.1.1:5", KEY, b"toke", 1));
    }

    #[test]
    fn queries_to_one_host_are_counted() {
        let settings = DhtSettings::default();
        let mut traffic = NodeTraffic::default();
        let ping = query(Method::Ping);
        let mut send = |host: &str, time| traffic.check_sent(host.parse().unwrap(), &ping, &settings, at(time));
        let found = (0..100).filter_map(|_| send("9.1.1.1:5", 0)).count();
        assert_eq!(found, 0);
        assert_eq!(send("9.1.1.2:5", 9), None);
        assert!(send("9.1.1.1:6", 9).unwrap().contains("101 queries"));
        assert_eq!(send("9.1.1.1:5", 19), None);
    }

    /// Each bound is exceeded by one of the samples.
    #[test]
    fn sizes_are_compared_with_their_bounds() {
        let settings = DhtSettings::default();
        let table = |nodes, good, replacements, buckets| TableStats {
            nodes,
            good,
            replacements,
            buckets,
        };
        let exceeded = |stats: NodeStats| {
            let over = bounds(&stats, &settings).into_iter().filter(|(_, is, most)| is > most);
            over.map(|(what, ..)| what).collect::<Vec<_>>()
        };
        let full = NodeStats {
            tables: [table(400, 400, 400, 50); 2],
            stored_torrents: 4000,
            stored_peers: 20_000,
            stored_items: 1000,
            searches: 34,
            pending_queries: 1024,
            ..NodeStats::default()
        };
        assert!(exceeded(full).is_empty());
        let over = NodeStats {
            tables: [table(409, 410, 409, 51), TableStats::default()],
            stored_torrents: 4001,
            stored_peers: 20_001,
            stored_items: 1001,
            searches: 35,
            pending_queries: 1025,
            ..full
        };
        assert_eq!(
            exceeded(over),
            [
                "stored torrents",
                "stored peers",
                "stored items",
                "pending queries",
                "searches",
                "buckets",
                "nodes",
                "good nodes",
                "nodes that wait"
            ]
        );
    }
}
