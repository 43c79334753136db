//! Tests of the tracker, as engines' protocols observe it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bevy_ecs::entity::Entity;
use bytes::Bytes;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::peer_id::PeerId;
use ecs_torrent_protocol::tracker::http::{announce_url, read_announce, read_scrape, scrape_url};
use ecs_torrent_protocol::tracker::{AnnounceEvent, AnnounceRequest, AnnounceResponse};

use super::super::http::SimHttp;
use super::super::{AnnounceCounts, NameService, SimNet, SimTracker, Simulation, TrackerMode, TrackerOptions};
use crate::port::{Backend, JobTag};
use crate::ports::http::{HttpError, HttpGet, HttpPart, HttpRequest, LocalPaths};
use crate::ports::net::{NetEvent, NetRequest};
use crate::purpose;

const LATENCY: Duration = Duration::from_millis(10);
const TORRENT: InfoHash = InfoHash([0xfe; 20]);

fn address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 6881).into()
}

struct Bed {
    sim: Simulation,
    tracker: SimTracker,
}

impl Bed {
    fn new(options: TrackerOptions) -> Self {
        let mut sim = Simulation::new(1, LATENCY);
        let tracker = sim.add_tracker(([10, 0, 0, 99], 80).into(), options);
        Self { sim, tracker }
    }

    fn request(port: u16, left: u64, event: AnnounceEvent) -> AnnounceRequest {
        AnnounceRequest {
            info_hash: TORRENT,
            peer_id: PeerId(*b"-EC0100-aaaaaaaaaaaa"),
            port,
            uploaded: 1,
            downloaded: 2,
            left,
            event,
            key: 3,
            num_want: 10,
            tracker_id: None,
        }
    }

    /// Sends a GET request from a host; returns the status and body, or the error.
    fn get(&mut self, host: &SimNet, url: &str) -> Result<(u16, Vec<u8>), HttpError> {
        let mut http = SimHttp::new(host.id(), self.sim.fabric.clone());
        http.submit(&mut vec![HttpRequest::Get(HttpGet {
            tag: JobTag::new(purpose!("test"), Entity::PLACEHOLDER),
            url: url.into(),
            local_paths: LocalPaths::All,
            family: None,
            timeout: Duration::from_secs(20),
            max_body_bytes: 4000,
            range: None,
            credit: u64::MAX,
        })]);
        let (mut found, mut body) = (0, Vec::new());
        loop {
            assert!(self.sim.step(self.sim.now() + Duration::from_secs(30)), "an end comes");
            let mut events = Vec::new();
            http.poll(usize::MAX, &mut events);
            for event in events {
                match event.part {
                    HttpPart::Head { status, .. } => found = status,
                    HttpPart::Chunk(chunk) => body.extend(chunk),
                    HttpPart::End(end) => return end.map(|()| (found, body)),
                }
            }
        }
    }

    fn announce(&mut self, host: &SimNet, request: &AnnounceRequest) -> AnnounceResponse {
        let url = announce_url(&self.tracker.http_url(), request);
        let (status, body) = self.get(host, &url).unwrap();
        assert_eq!(status, 200);
        read_announce(&body, 100).unwrap()
    }

    fn exchange_udp(&mut self, host: &mut SimNet, packet: Vec<u8>) -> Option<Bytes> {
        let to = self.tracker.address();
        host.submit(&mut vec![NetRequest::Datagram {
            from: None,
            to,
            data: packet.into(),
        }]);
        self.sim.run_for(Duration::from_millis(100));
        let mut events = Vec::new();
        host.poll(usize::MAX, &mut events);
        events.into_iter().find_map(|event| match event {
            NetEvent::Datagram { datagram, .. } => Some(datagram.data),
            _ => None,
        })
    }
}

#[test]
fn peers_find_each_other_over_http() {
    let mut bed = Bed::new(TrackerOptions::default());
    let hosts: Vec<SimNet> = (1..=3).map(|last| bed.sim.add_host(address(last))).collect();
    let ask = |left, event| Bed::request(6881, left, event);
    let first = bed.announce(&hosts[0], &ask(0, AnnounceEvent::Started));
    assert_eq!(
        (first.interval.as_secs(), first.seeders, first.leechers),
        (1800, Some(1), Some(0))
    );
    assert_eq!(first.peers, []);
    bed.announce(&hosts[1], &ask(9, AnnounceEvent::Started));
    let third = bed.announce(&hosts[2], &ask(9, AnnounceEvent::Started));
    assert_eq!((third.seeders, third.leechers), (Some(1), Some(2)));
    assert_eq!(
        BTreeSet::from_iter(third.peers),
        BTreeSet::from([address(1), address(2)])
    );
    assert_eq!(bed.announce(&hosts[0], &ask(0, AnnounceEvent::Stopped)).peers, []);
    bed.announce(&hosts[1], &ask(0, AnnounceEvent::Completed));
    let url = scrape_url(&bed.tracker.http_url(), &[TORRENT]).unwrap();
    let counts = read_scrape(&bed.get(&hosts[2], &url).unwrap().1, &[TORRENT]).unwrap()[0].1;
    assert_eq!((counts.seeders, counts.leechers, counts.completed), (1, 1, 1));
    let expected = AnnounceCounts {
        started: 1,
        completed: 1,
        ..AnnounceCounts::default()
    };
    assert_eq!(bed.tracker.counts(TORRENT)[&address(2)], expected);
    assert_eq!(bed.tracker.peers(TORRENT), [(address(2), 0), (address(3), 9)]);
}

#[test]
fn peers_that_do_not_announce_expire() {
    let mut bed = Bed::new(TrackerOptions::default());
    let hosts: Vec<SimNet> = (1..=2).map(|last| bed.sim.add_host(address(last))).collect();
    let request = Bed::request(6881, 5, AnnounceEvent::None);
    bed.announce(&hosts[0], &request);
    bed.sim.run_for(Duration::from_secs(46 * 60));
    assert_eq!(bed.announce(&hosts[1], &request).peers, []);
}

#[test]
fn it_fails_in_every_way_over_http() {
    let mut bed = Bed::new(TrackerOptions::default());
    let host = bed.sim.add_host(address(1));
    let url = announce_url(&bed.tracker.http_url(), &Bed::request(1, 1, AnnounceEvent::None));
    let mut fail = |mode| {
        bed.tracker.set_mode(bed.sim.now(), mode);
        bed.get(&host, &url)
    };
    assert_eq!(
        fail(TrackerMode::Down),
        Err(HttpError::Transport("Connection refused".into()))
    );
    assert_eq!(fail(TrackerMode::Silent), Err(HttpError::Timeout));
    assert_eq!(
        fail(TrackerMode::Slow(Duration::from_secs(30))),
        Err(HttpError::Timeout)
    );
    assert!(fail(TrackerMode::Slow(Duration::from_secs(3))).is_ok());
    assert_eq!(fail(TrackerMode::Status(503)).unwrap().0, 503);
    assert!(read_announce(&fail(TrackerMode::Garbage).unwrap().1, 9).is_err());
    let refusal = read_announce(&fail(TrackerMode::Failure("go away".into())).unwrap().1, 9);
    assert_eq!(refusal.unwrap_err().to_string(), "the tracker refused: go away");
    assert!(fail(TrackerMode::Truncated).is_err());
    let dead = vec![address(77)];
    assert_eq!(
        read_announce(&fail(TrackerMode::Peers(dead.clone())).unwrap().1, 9)
            .unwrap()
            .peers,
        dead
    );
    assert!(fail(TrackerMode::Up).is_ok());
}

#[test]
fn names_partitions_and_wrong_places_fail_requests() {
    let mut bed = Bed::new(TrackerOptions::default());
    let host = bed.sim.add_host(address(1));
    bed.sim.names().set("tracker.example", [[10, 0, 0, 99].into()]);
    let named = announce_url(
        "http://Tracker.example/announce",
        &Bed::request(1, 1, AnnounceEvent::None),
    );
    assert!(bed.get(&host, &named).is_ok());
    for (service, takes) in [(NameService::Silent, 20), (NameService::Failing, 0)] {
        bed.sim.names().set_service(service);
        let begin = bed.sim.now();
        assert!(matches!(
            bed.get(&host, &named),
            Err(HttpError::Timeout | HttpError::Transport(_))
        ));
        assert_eq!(bed.sim.now().since(begin).as_secs(), takes, "{service:?}");
    }
    bed.sim.names().set_service(NameService::Up);
    assert!(bed.get(&host, &named).is_ok());
    assert!(matches!(
        bed.get(&host, "http://nobody/announce"),
        Err(HttpError::Transport(_))
    ));
    assert!(matches!(
        bed.get(&host, "http://10.0.0.99:81/announce"),
        Err(HttpError::Transport(_))
    ));
    assert_eq!(bed.get(&host, "http://10.0.0.55/announce"), Err(HttpError::Timeout));
    assert_eq!(bed.get(&host, "ftp://10.0.0.99/"), Err(HttpError::BadUrl));
    assert_eq!(bed.get(&host, "http://10.0.0.99/other").unwrap().0, 404);
    let tracker = bed.sim.fabric().net.listener(bed.tracker.address()).unwrap();
    bed.sim.net().partition(&[tracker], &[host.id()]);
    assert_eq!(bed.get(&host, &named), Err(HttpError::Timeout));
}

#[test]
fn bodies_are_bounded() {
    let mut bed = Bed::new(TrackerOptions::default());
    let host = bed.sim.add_host(address(1));
    let reply = |_, _, _: &str| super::super::HttpReply::new(200, vec![b'x'; 5000]);
    bed.sim.add_http_host(([10, 0, 0, 98], 80).into(), reply);
    assert_eq!(bed.get(&host, "http://10.0.0.98/"), Err(HttpError::TooLarge(4000)));
}

/// A packet of BEP 15.
fn packet(connection: u64, action: u32, rest: &[u8]) -> Vec<u8> {
    let transaction = 0xabcd_u32;
    [
        &connection.to_be_bytes()[..],
        &action.to_be_bytes(),
        &transaction.to_be_bytes(),
        rest,
    ]
    .concat()
}

fn announce_packet(connection: u64, left: u64) -> Vec<u8> {
    let mut rest = TORRENT.0.to_vec();
    rest.extend([b'p'; 20]);
    [2, left, 1]
        .iter()
        .for_each(|number: &u64| rest.extend(number.to_be_bytes()));
    [2, 0, 3, u32::MAX]
        .iter()
        .for_each(|number: &u32| rest.extend(number.to_be_bytes()));
    rest.extend(6881u16.to_be_bytes());
    packet(connection, 1, &rest)
}

#[test]
fn peers_find_each_other_over_udp() {
    let mut bed = Bed::new(TrackerOptions::default());
    let mut hosts: Vec<SimNet> = (1..=2).map(|last| bed.sim.add_host(address(last))).collect();
    let connect = packet(0x0417_2710_1980, 0, &[]);
    let mut peers = Vec::new();
    for host in &mut hosts {
        let connected = bed.exchange_udp(host, connect.clone()).unwrap();
        assert_eq!(&connected[..8], [0, 0, 0, 0, 0, 0, 0xab, 0xcd]);
        let connection = u64::from_be_bytes(connected[8..].try_into().unwrap());
        let answer = bed.exchange_udp(host, announce_packet(connection, 7)).unwrap();
        assert_eq!(answer[8..12], 1800u32.to_be_bytes());
        peers = answer[20..].to_vec();
        let scraped = bed.exchange_udp(host, packet(connection, 2, &TORRENT.0)).unwrap();
        assert_eq!(scraped.len(), 20);
        bed.sim.run_for(Duration::from_secs(121));
        let late = bed.exchange_udp(host, announce_packet(connection, 7)).unwrap();
        assert_eq!(late[..4], 3u32.to_be_bytes(), "an old connection is an error");
    }
    assert_eq!(peers, [10, 0, 0, 1, 0x1a, 0xe1]);
    assert_eq!(bed.tracker.announces().len(), 2);
}

#[test]
fn it_fails_in_every_way_over_udp() {
    let mut bed = Bed::new(TrackerOptions::default());
    let mut host = bed.sim.add_host(address(1));
    let connect = packet(0x0417_2710_1980, 0, &[]);
    let mut fail = |mode| {
        bed.tracker.set_mode(bed.sim.now(), mode);
        bed.exchange_udp(&mut host, connect.clone())
    };
    assert_eq!(fail(TrackerMode::Down), None);
    assert_eq!(fail(TrackerMode::Silent), None);
    assert_eq!(fail(TrackerMode::Slow(Duration::from_secs(1))), None);
    assert_ne!(fail(TrackerMode::WrongTransaction).unwrap()[4..8], [0, 0, 0xab, 0xcd]);
    assert_eq!(fail(TrackerMode::Failure("no".into())).unwrap()[..4], [0, 0, 0, 3]);
    assert_eq!(fail(TrackerMode::Truncated).unwrap().len(), 8);
    // The datagram belongs to no protocol, and does not reach the world.
    assert_eq!(fail(TrackerMode::Garbage), None);
}
