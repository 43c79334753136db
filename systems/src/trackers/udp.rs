//! Requests to UDP trackers: the host name is resolved, then packets are exchanged until an answer arrives.

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bevy_platform::collections::HashMap;
use bytes::Bytes;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::random::Random;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest, TRACKER_DATAGRAMS};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::compact::Family;
use ecs_torrent_protocol::tracker::udp::{Connection, Outcome, Step, UdpExchange, UdpReply, UdpRequest};

use super::{Answers, Failure, OutgoingRequests, Reply, RequestKind, TrackerRequest};

const LOOKUPS: Purpose = purpose!("udp tracker lookups");

/// Most stored connections. Further trackers need a new connection for each request.
const MAX_CONNECTIONS: usize = 1024;

/// All outstanding exchanges with UDP trackers.
#[derive(Resource, Debug, Default)]
pub(super) struct UdpTrackers {
    looking_up: Jobs<TrackerRequest>,
    /// Exchanges by transaction id, which an answer must carry (BEP 15).
    exchanges: HashMap<u32, (TrackerRequest, UdpExchange)>,
    connections: HashMap<std::net::SocketAddr, Connection>,
}

/// Deadline at which a transaction's packet is repeated.
#[derive(Debug)]
pub(super) struct Repeat(u32);

/// Returns the host and port of a `udp://` URL.
fn host_and_port(url: &str) -> Option<(&str, u16)> {
    let rest = url.strip_prefix("udp://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let (host, port) = authority.rsplit_once(':')?;
    Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

pub(super) fn send_udp_requests(
    mut outgoing: ResMut<OutgoingRequests>,
    mut answers: ResMut<Answers>,
    mut udp: ResMut<UdpTrackers>,
    mut net: ResMut<NetPort>,
) {
    for request in outgoing.udp.drain(..) {
        let Some((host, port)) = host_and_port(&request.url) else {
            answers.give(request.answered(Err(Failure::new("its URL names no host and port"))));
            continue;
        };
        let host = host.to_owned();
        let tag = udp.looking_up.add(LOOKUPS, request);
        net.push(NetRequest::Resolve { tag, host, port });
    }
}

#[derive(SystemParam)]
pub(super) struct Exchange<'w> {
    clock: Res<'w, Clock>,
    settings: Res<'w, Settings>,
    random: ResMut<'w, Random>,
    net: ResMut<'w, NetPort>,
    udp: ResMut<'w, UdpTrackers>,
    answers: ResMut<'w, Answers>,
    repeats: ResMut<'w, Deadlines<Repeat>>,
}

/// Returns whether packets or addresses have arrived, or exchanges are running.
pub(super) fn has_exchanges(net: Res<NetPort>, repeats: Res<Deadlines<Repeat>>) -> bool {
    !repeats.is_empty() || net.has_events_for(LOOKUPS) || net.has_events_for(TRACKER_DATAGRAMS)
}

pub(super) fn collect_udp(mut exchange: Exchange, wakeup: Res<Wakeup>) {
    let lookups: Vec<NetEvent> = exchange.net.take(LOOKUPS).collect();
    for event in lookups {
        let NetEvent::Resolved { tag, result } = event else {
            continue;
        };
        let Some(request) = exchange.udp.looking_up.take(tag) else {
            continue;
        };
        exchange.begin(request, result.map_err(Failure::new));
    }
    let datagrams: Vec<NetEvent> = exchange.net.take(TRACKER_DATAGRAMS).collect();
    for event in datagrams {
        let NetEvent::Datagram { datagram, .. } = event else {
            continue;
        };
        exchange.receive(datagram.from, &datagram.data);
    }
    let now = exchange.clock.now();
    while let Some(Repeat(transaction)) = exchange.repeats.pop_due(now) {
        exchange.repeat(transaction);
    }
    wakeup.at_next(exchange.repeats.next());
}

impl Exchange<'_> {
    fn begin(&mut self, request: TrackerRequest, found: Result<Vec<std::net::SocketAddr>, Failure>) {
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(failure) => return self.answers.give(request.answered(Err(failure))),
        };
        let of_family = |address: &&std::net::SocketAddr| Family::of(address.ip()) == request.family;
        let Some(&address) = addresses.iter().find(of_family) else {
            let failure = Failure {
                is_unreachable: true,
                ..Failure::new("no address of this family")
            };
            return self.answers.give(request.answered(Err(failure)));
        };
        let message = match &request.kind {
            RequestKind::Announce(announce) => UdpRequest::Announce(announce.clone()),
            RequestKind::Scrape(info_hash) => UdpRequest::Scrape(vec![*info_hash]),
        };
        let limits = &self.settings.trackers;
        let mut exchange = UdpExchange::new(message, address, limits.udp_sends, limits.max_peers);
        let connection = self.udp.connections.get(&address).copied();
        let step = exchange.start(self.clock.now(), connection, self.random.number());
        self.go_on(request, exchange, step);
    }

    fn receive(&mut self, from: std::net::SocketAddr, data: &Bytes) {
        let transaction = data
            .get(4..8)
            .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        // Fault 57: a packet is ignored if its transaction is unknown or its source is not the tracker's address.
        let is_ours = self
            .udp
            .exchanges
            .get(&transaction)
            .is_some_and(|(_, exchange)| exchange.tracker() == from);
        if !is_ours {
            return;
        }
        let Some((request, mut exchange)) = self.udp.exchanges.remove(&transaction) else {
            return;
        };
        match exchange.on_packet(self.clock.now(), data, self.random.number()) {
            Outcome::Ignored => drop(self.udp.exchanges.insert(transaction, (request, exchange))),
            Outcome::Connected(connection, packet) => {
                if self.udp.connections.len() >= MAX_CONNECTIONS {
                    let now = self.clock.now();
                    self.udp.connections.retain(|_, known| known.is_valid(now));
                }
                if self.udp.connections.len() < MAX_CONNECTIONS {
                    self.udp.connections.insert(from, connection);
                }
                self.go_on(request, exchange, Step::Send(packet));
            }
            Outcome::Done(result) => {
                let result = result.map_err(Failure::from).and_then(|reply| match reply {
                    UdpReply::Announce(reply) => Ok(Reply::Announce(reply, Some(from.ip()))),
                    UdpReply::Scrape(counts) => {
                        let own = counts.first().copied();
                        own.map(Reply::Scrape)
                            .ok_or_else(|| Failure::new("it does not know this torrent"))
                    }
                });
                self.answers.give(request.answered(result));
            }
        }
    }

    fn repeat(&mut self, transaction: u32) {
        if let Some((request, mut exchange)) = self.udp.exchanges.remove(&transaction) {
            let step = exchange.on_timeout(self.clock.now(), self.random.number());
            self.go_on(request, exchange, step);
        }
    }

    fn go_on(&mut self, request: TrackerRequest, exchange: UdpExchange, step: Step) {
        match step {
            Step::Send(packet) => {
                let (to, data) = (exchange.tracker(), packet.into());
                self.net.push(NetRequest::Datagram { from: None, to, data });
                self.repeats.set(exchange.deadline(), Repeat(exchange.transaction()));
                self.udp.exchanges.insert(exchange.transaction(), (request, exchange));
            }
            Step::GiveUp => self.answers.give(request.answered(Err(Failure::new("no answer")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use bevy_ecs::system::SystemState;

    use super::super::TrackersPlugin;
    use ecs_torrent_engine::port::JobTag;

    use super::*;
    use crate::testing::Bed;

    fn bed() -> Bed {
        let mut bed = Bed::new(TrackersPlugin);
        bed.open_port::<NetRequest, NetEvent>(Vec::new());
        bed
    }

    fn request(bed: &mut Bed) -> TrackerRequest {
        TrackerRequest {
            tracker: bed.world.spawn_empty().id(),
            family: Family::V4,
            url: "udp://t.org:1".into(),
            kind: RequestKind::Scrape(ecs_torrent_protocol::hash::InfoHash([1; 20])),
        }
    }

    /// A tracker without an address of a family gets no requests over it, and does not count as failed.
    #[test]
    fn a_host_without_an_address_of_the_family_is_unreachable() {
        let mut bed = bed();
        let request = request(&mut bed);
        let mut state = SystemState::<Exchange>::new(&mut bed.world);
        let mut exchange = state.get_mut(&mut bed.world).unwrap();
        exchange.begin(request, Ok(vec!["[::1]:1".parse().unwrap()]));
        let answers = std::mem::take(&mut exchange.answers.scrapes);
        assert!(
            matches!(&answers[..], [answer] if answer.result.as_ref().is_err_and(|failure| failure.is_unreachable))
        );
        assert!(exchange.udp.exchanges.is_empty());
    }

    /// BEP 15: a connection is valid for a minute; connections that are not make room for new ones.
    #[test]
    fn connections_are_kept_up_to_a_limit_and_while_they_are_valid() {
        let mut bed = bed();
        let mut connect = |number: u32| {
            let address = SocketAddr::from((Ipv4Addr::from(number), 1));
            let request = request(&mut bed);
            let mut state = SystemState::<Exchange>::new(&mut bed.world);
            let mut exchange = state.get_mut(&mut bed.world).unwrap();
            if number == u32::MAX {
                let later = exchange.clock.now() + Duration::from_secs(61);
                bed.world.resource_mut::<Clock>().advance_to(later);
                exchange = state.get_mut(&mut bed.world).unwrap();
            }
            exchange.begin(request, Ok(vec![address]));
            let transaction = *exchange.udp.exchanges.keys().next().unwrap();
            let reply = [&[0; 4][..], &transaction.to_be_bytes(), &[7; 8]].concat();
            exchange.receive(address, &reply.into());
            exchange.udp.exchanges.clear();
            let known = &exchange.udp.connections;
            (known.len(), known.contains_key(&address))
        };
        for number in 1..=MAX_CONNECTIONS {
            assert_eq!(connect(number as u32), (number, true));
        }
        assert_eq!(connect(u32::MAX - 1), (MAX_CONNECTIONS, false));
        assert_eq!(connect(u32::MAX), (1, true));
    }

    #[test]
    fn urls_give_host_and_port() {
        assert_eq!(host_and_port("udp://t.org:6969/announce"), Some(("t.org", 6969)));
        assert_eq!(host_and_port("udp://[::1]:80"), Some(("[::1]", 80)));
        for bad in [
            "udp://t.org/announce",
            "udp://:80",
            "http://t.org:80",
            "udp://t.org:99999",
        ] {
            assert_eq!(host_and_port(bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_runs_without_exchanges() {
        let mut bed = bed();
        let tag = JobTag::new(LOOKUPS, Entity::PLACEHOLDER);
        let lookup = NetEvent::Resolved {
            tag,
            result: Ok(Vec::new()),
        };
        bed.open_port::<NetRequest, NetEvent>(vec![lookup]);
        let take = |mut net: ResMut<NetPort>| {
            net.take(TRACKER_DATAGRAMS).for_each(drop);
        };
        bed.run(take);
        assert!(bed.holds(has_exchanges), "an address has arrived");
        bed.run(|mut net: ResMut<NetPort>| net.take(LOOKUPS).for_each(drop));
        assert!(!bed.holds(has_exchanges));
        let at = crate::testing::NOW;
        bed.world.resource_mut::<Deadlines<Repeat>>().set(at, Repeat(1));
        assert!(bed.holds(has_exchanges));
    }
}
