//! Engines whose node of the DHT breaks the rules among nodes.

use ecs_torrent::engine::ports::net::{DHT_DATAGRAMS, NetEvent};
use ecs_torrent::protocol::dht::krpc::{Packet, Reply};
use ecs_torrent::sim::hostile::NodeHostility;

use super::*;

/// A swarm that is found by the DHT.
fn by_dht(name: &str) -> Scenario {
    scenario(name)
        .without_tracker()
        .bystanders(3, Link::symmetric(1 << 20))
        .hostile_nodes(1, NodeHostility::ReplaysTokens)
        .with_dht([Who::Bystander(0), Who::HostileNode(0)])
        .within(2.0, Duration::from_secs(40))
}

#[test]
fn intact_nodes_raise_no_violations() {
    let outcome = by_dht("no mutant, found by the DHT").run();
    assert!(outcome.is_good(), "{outcome}");
}

/// A node that confirms every announce.
#[derive(Clone)]
struct ConfirmsAll;

impl Plugin for ConfirmsAll {
    fn build(&self, app: &mut App) {
        app.add_systems(Tick, confirm_all.after(TickSet::Announce).before(DecideSet::Dht));
    }
}

fn confirm_all(mut net: ResMut<NetPort>) {
    let mut answers = Vec::new();
    for event in net.incoming(DHT_DATAGRAMS) {
        let NetEvent::Datagram { datagram, .. } = event else {
            continue;
        };
        let packet = Packet::parse(&datagram.data).unwrap();
        let Ok(message) = packet.message() else { continue };
        let Body::Query(query) = &message.body else { continue };
        if matches!(query.method, Ok(Method::AnnouncePeer { .. })) {
            let answer = dht::krpc::Message {
                transaction: message.transaction,
                version: None,
                external: None,
                body: Body::Reply(Reply::new(dht::id::NodeId([7; 20]))),
            };
            answers.push((datagram.from, answer.write()));
        }
    }
    for (to, data) in answers {
        let (from, data) = (None, data.into());
        net.push(NetRequest::Datagram { from, to, data });
    }
}

/// The hostile node announces a peer with the token of another torrent.
#[test]
fn announces_without_a_token_that_are_accepted_are_found_out() {
    let outcome = by_dht("confirms all").plugins(ConfirmsAll).run();
    let text = ["10.0.0.7:6881 stores something under", "without a token"];
    assert!(finds_text(&outcome, Invariant::Dht, &text), "{outcome}");
}

/// A node that asks one host without end.
#[derive(Clone)]
struct Storms;

impl Plugin for Storms {
    fn build(&self, app: &mut App) {
        app.add_systems(Tick, storm.after(TickSet::Announce).before(TickSet::Respond));
    }
}

fn storm(mut started: MessageReader<TorrentStarted>, mut net: ResMut<NetPort>) {
    for _ in started.read() {
        for _ in 0..110 {
            net.push(NetRequest::Datagram {
                from: None,
                to: ([10, 0, 0, 99], 6881).into(),
                data: query(Method::Ping).into(),
            });
        }
    }
}

#[test]
fn storms_are_found_out() {
    let outcome = by_dht("storms").plugins(Storms).run();
    let text = ["10.0.0.99:6881 gets 101 queries"];
    assert!(finds_text(&outcome, Invariant::Dht, &text), "{outcome}");
}

/// A node that does not follow its settings, which change as soon as it runs.
#[derive(Clone)]
struct StoresMore;

impl Plugin for StoresMore {
    fn build(&self, app: &mut App) {
        app.add_systems(Tick, lower.after(DecideSet::Dht).before(TickSet::Respond));
    }
}

fn lower(mut settings: ResMut<Settings>) {
    let dht = &mut settings.bypass_change_detection().dht;
    (dht.max_stored_torrents, dht.max_stored_peers) = (0, 0);
}

#[test]
fn nodes_that_store_more_than_they_may_are_found_out() {
    let outcome = by_dht("stores more").plugins(StoresMore).run();
    for text in ["stored torrents: 1, at most 0", "stored peers: "] {
        assert!(finds_text(&outcome, Invariant::Dht, &[text]), "{outcome}");
    }
}
