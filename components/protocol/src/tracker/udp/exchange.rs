//! One request to one UDP tracker, from the first packet until a reply or the last timeout.

use std::net::SocketAddr;
use std::time::Duration;

use super::{UdpReply, UdpRequest, action, connect_packet, read_head, read_reply, request_packet};
use crate::time::Timestamp;
use crate::tracker::TrackerError;

/// BEP 15: a connection id is valid for one minute after it was received.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);

/// BEP 15: the first timeout; it doubles with every repetition.
const FIRST_TIMEOUT: Duration = Duration::from_secs(15);

/// BEP 15: the timeout doubles up to this exponent.
const MAX_EXPONENT: u32 = 8;

/// A connection id, with which a tracker verifies our address; valid for all requests to that tracker address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    id: u64,
    expires: Timestamp,
}

impl Connection {
    /// Whether the connection is still valid for requests.
    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        now < self.expires
    }
}

/// The next action of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this packet, then call [`UdpExchange::on_timeout`] at [`UdpExchange::deadline`].
    Send(Vec<u8>),
    /// The last repetition got no reply.
    GiveUp,
}

/// The meaning of a received packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The packet is not a reply to this exchange: drop it.
    Ignored,
    /// Connected: keep the connection for other exchanges, and send the packet.
    Connected(Connection, Vec<u8>),
    /// The reply.
    Done(Result<UdpReply, TrackerError>),
}

/// One request to one UDP tracker (BEP 15).
#[derive(Debug, Clone)]
pub struct UdpExchange {
    request: UdpRequest,
    tracker: SocketAddr,
    transaction: u32,
    connection: Option<Connection>,
    exponent: u32,
    sends_left: u32,
    deadline: Timestamp,
    max_peers: usize,
}

impl UdpExchange {
    /// Creates an exchange for `request` with `tracker`. Sends at most `max_sends` packets, connect requests included,
    /// and keeps at most `max_peers` of the received peers.
    #[must_use]
    pub fn new(request: UdpRequest, tracker: SocketAddr, max_sends: u32, max_peers: usize) -> Self {
        Self {
            request,
            tracker,
            transaction: 0,
            connection: None,
            exponent: 0,
            sends_left: max_sends,
            deadline: Timestamp::ZERO,
            max_peers,
        }
    }

    /// The tracker's address.
    #[must_use]
    pub fn tracker(&self) -> SocketAddr {
        self.tracker
    }

    /// The transaction id that a reply must carry.
    #[must_use]
    pub fn transaction(&self) -> u32 {
        self.transaction
    }

    /// The time to call [`UdpExchange::on_timeout`].
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Starts the exchange, using `connection` if another exchange with this tracker has one. `transaction` must be a
    /// fresh random number, as in every call.
    pub fn start(&mut self, now: Timestamp, connection: Option<Connection>, transaction: u32) -> Step {
        self.connection = connection;
        self.send(now, transaction)
    }

    /// Repeats the request, or the connect if the connection has expired, and doubles the timeout.
    pub fn on_timeout(&mut self, now: Timestamp, transaction: u32) -> Step {
        self.exponent = (self.exponent + 1).min(MAX_EXPONENT);
        self.send(now, transaction)
    }

    /// Processes a packet received from the tracker's address.
    pub fn on_packet(&mut self, now: Timestamp, packet: &[u8], transaction: u32) -> Outcome {
        let Some((kind, answered, body)) = read_head(packet) else {
            return Outcome::Ignored;
        };
        if answered != self.transaction {
            return Outcome::Ignored;
        }
        let connecting = self.connection.is_none();
        match (connecting, kind) {
            (true, action::CONNECT) => {
                let Some(id) = body.first_chunk() else {
                    return Outcome::Ignored;
                };
                let connection = Connection {
                    id: u64::from_be_bytes(*id),
                    expires: now + CONNECTION_LIFETIME,
                };
                self.connection = Some(connection);
                self.exponent = 0;
                match self.send(now, transaction) {
                    Step::Send(packet) => Outcome::Connected(connection, packet),
                    Step::GiveUp => Outcome::Done(Err(TrackerError::Malformed("no answer"))),
                }
            }
            (true, action::ERROR) | (false, _) => {
                Outcome::Done(read_reply(&self.request, kind, body, self.tracker, self.max_peers))
            }
            (true, _) => Outcome::Ignored,
        }
    }

    fn send(&mut self, now: Timestamp, transaction: u32) -> Step {
        let Some(sends_left) = self.sends_left.checked_sub(1) else {
            return Step::GiveUp;
        };
        self.sends_left = sends_left;
        self.transaction = transaction;
        self.deadline = now + FIRST_TIMEOUT * 2u32.pow(self.exponent);
        self.connection = self.connection.filter(|connection| connection.is_valid(now));
        Step::Send(match self.connection {
            Some(connection) => request_packet(connection.id, transaction, &self.request),
            None => connect_packet(transaction),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::request;
    use super::*;
    use crate::hash::InfoHash;
    use crate::tracker::{Retry, ScrapeCounts};

    const TRACKER: &str = "10.0.0.1:6969";

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_secs(seconds)
    }

    fn announce() -> UdpExchange {
        UdpExchange::new(UdpRequest::Announce(request()), TRACKER.parse().unwrap(), 9, 100)
    }

    fn connect_reply(transaction: u32) -> Vec<u8> {
        [
            &0u32.to_be_bytes()[..],
            &transaction.to_be_bytes(),
            &77u64.to_be_bytes(),
        ]
        .concat()
    }

    fn announce_reply(transaction: u32, peers: &[u8]) -> Vec<u8> {
        let head = [1u32, transaction, 1800, 4, 9].map(u32::to_be_bytes);
        [head.as_flattened(), peers].concat()
    }

    #[test]
    fn connects_then_announces() {
        let mut exchange = announce();
        let Step::Send(packet) = exchange.start(at(0), None, 5) else {
            panic!()
        };
        assert_eq!(exchange.transaction(), 5);
        assert_eq!(
            packet,
            [&0x417_2710_1980u64.to_be_bytes()[..], &[0, 0, 0, 0, 0, 0, 0, 5]].concat()
        );
        let Outcome::Connected(connection, packet) = exchange.on_packet(at(1), &connect_reply(5), 6) else {
            panic!()
        };
        assert!(connection.is_valid(at(60)) && !connection.is_valid(at(61)));
        // BEP 15, announce request: offsets of the table.
        assert_eq!(packet.len(), 98);
        assert_eq!(packet[..8], 77u64.to_be_bytes());
        assert_eq!(packet[8..16], [0, 0, 0, 1, 0, 0, 0, 6]);
        assert_eq!(packet[16..36], [0xab; 20]);
        assert_eq!(packet[36..56], *b"-EC0100-abcdefghijkl");
        assert_eq!(packet[56..64], 2u64.to_be_bytes(), "downloaded");
        assert_eq!(packet[64..72], 3u64.to_be_bytes(), "left");
        assert_eq!(packet[72..80], 1u64.to_be_bytes(), "uploaded");
        assert_eq!(packet[80..88], [0, 0, 0, 2, 0, 0, 0, 0], "started, no address");
        assert_eq!(packet[88..98], [0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 50, 0x1a, 0xe1]);

        let peers = [1, 2, 3, 4, 0, 80, 5, 6, 7, 8, 0, 0];
        let Outcome::Done(Ok(UdpReply::Announce(reply))) = exchange.on_packet(at(2), &announce_reply(6, &peers), 7)
        else {
            panic!()
        };
        assert_eq!(reply.interval, Duration::from_secs(1800));
        assert_eq!((reply.leechers, reply.seeders), (Some(4), Some(9)));
        assert_eq!(reply.peers, ["1.2.3.4:80".parse().unwrap()]);
    }

    /// BEP 15, "Connect times out": 0, 15, 45, 105 seconds, and so on to the last repetition.
    #[test]
    fn connect_is_repeated_on_the_ladder() {
        let mut exchange = announce();
        let mut times = Vec::new();
        let mut now = at(0);
        let mut step = exchange.start(now, None, 1);
        while let Step::Send(packet) = step {
            assert_eq!(packet.len(), 16);
            times.push(now.since(at(0)).as_secs());
            now = exchange.deadline();
            step = exchange.on_timeout(now, 1);
        }
        assert_eq!(times, [0, 15, 45, 105, 225, 465, 945, 1905, 3825]);
        assert_eq!(now, at(3825 + 3840));
    }

    /// BEP 15, "Announce times out", and fault 58: after a minute the connection is renewed.
    #[test]
    fn announce_is_repeated_and_reconnects_when_the_connection_expires() {
        let mut exchange = announce();
        exchange.start(at(0), None, 1);
        let mut sent = vec![];
        let Outcome::Connected(_, packet) = exchange.on_packet(at(1), &connect_reply(1), 2) else {
            panic!()
        };
        sent.push((2, packet.len()));
        for _ in 0..4 {
            let now = exchange.deadline();
            let Step::Send(packet) = exchange.on_timeout(now, 3) else {
                panic!()
            };
            sent.push((now.since(at(0)).as_secs(), packet.len()));
        }
        // The BEP counts from t = 2; here the reply arrived and the announce left at t = 1.
        assert_eq!(sent, [(2, 98), (16, 98), (46, 98), (106, 16), (226, 16)]);
    }

    #[test]
    fn a_connection_serves_other_requests() {
        let mut first = announce();
        first.start(at(0), None, 1);
        let Outcome::Connected(connection, _) = first.on_packet(at(0), &connect_reply(1), 2) else {
            panic!()
        };
        let hashes = vec![InfoHash([1; 20]), InfoHash([2; 20])];
        let mut scrape = UdpExchange::new(UdpRequest::Scrape(hashes), TRACKER.parse().unwrap(), 9, 0);
        let Step::Send(packet) = scrape.start(at(59), Some(connection), 3) else {
            panic!()
        };
        assert_eq!((packet.len(), packet[11]), (56, 2));
        let reply = [2u32, 3, 0x0123_4567, 2, 3, 4, 5, 6].map(u32::to_be_bytes);
        let Outcome::Done(Ok(UdpReply::Scrape(counts))) = scrape.on_packet(at(59), reply.as_flattened(), 4) else {
            panic!()
        };
        let expected = |seeders, completed, leechers| ScrapeCounts {
            seeders,
            leechers,
            completed,
        };
        assert_eq!(counts, [expected(0x0123_4567, 2, 3), expected(4, 5, 6)]);
        let Step::Send(packet) = scrape.start(at(60), Some(connection), 3) else {
            panic!()
        };
        assert_eq!(packet.len(), 16, "expired: connects again");
    }

    /// Fault 57: packets that are too short or of another transaction are ignored.
    #[test]
    fn foreign_packets_are_ignored() {
        let mut exchange = announce();
        exchange.start(at(0), None, 1);
        for packet in [
            &connect_reply(2)[..],
            &connect_reply(1)[..15],
            &announce_reply(1, &[]),
            &[],
            &[0; 7],
        ] {
            assert_eq!(exchange.on_packet(at(0), packet, 9), Outcome::Ignored);
        }
        exchange.on_packet(at(0), &connect_reply(1), 2);
        assert_eq!(exchange.on_packet(at(0), &announce_reply(1, &[]), 9), Outcome::Ignored);
        let Outcome::Done(Err(error)) = exchange.on_packet(at(0), &announce_reply(2, &[0; 5]), 9) else {
            panic!()
        };
        assert_eq!(
            error.to_string(),
            "malformed reply: peers: 5 bytes is not a multiple of 6"
        );
    }

    #[test]
    fn refusals_are_the_answer() {
        let mut exchange = announce();
        exchange.start(at(0), None, 1);
        let packet = [&3u32.to_be_bytes()[..], &1u32.to_be_bytes(), b"go\x07away"].concat();
        let expected = TrackerError::Refused {
            reason: "go\u{fffd}away".into(),
            retry: Retry::Unspecified,
        };
        assert_eq!(exchange.on_packet(at(0), &packet, 2), Outcome::Done(Err(expected)));
    }

    /// BEP 15: from an IPv6 tracker, addresses have 18 bytes.
    #[test]
    fn address_length_follows_the_trackers_family() {
        let mut exchange = UdpExchange::new(UdpRequest::Announce(request()), "[::1]:1".parse().unwrap(), 9, 100);
        exchange.start(at(0), None, 1);
        exchange.on_packet(at(0), &connect_reply(1), 2);
        let mut peer = [0; 18];
        peer[15..].copy_from_slice(&[1, 0, 80]);
        let Outcome::Done(Ok(UdpReply::Announce(reply))) = exchange.on_packet(at(0), &announce_reply(2, &peer), 3)
        else {
            panic!()
        };
        assert_eq!(reply.peers, ["[::1]:80".parse().unwrap()]);
    }
}
