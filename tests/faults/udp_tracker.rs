//! UDP trackers: one whose answers are forged, and one that records its requests.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, channel};

use crate::bed::{Bed, Seen, Torrent};

/// A request to a tracker: the action and the whole packet.
type Datagram = (u32, Vec<u8>);

fn word(packet: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(packet[at..at + 4].try_into().unwrap())
}

/// Starts a tracker that answers each request with the datagrams from `answer`. The flag of a datagram says whether it
/// comes from the tracker's own socket.
fn serve(answer: impl Fn(u32, u32, &[u8]) -> Vec<(bool, Vec<u8>)> + Send + 'static) -> (String, Receiver<Datagram>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forger = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address: SocketAddr = socket.local_addr().unwrap();
    let (sender, received) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let packet = &buffer[..len];
            let (action, transaction) = (word(packet, 8), word(packet, 12));
            for (is_own, reply) in answer(action, transaction, packet) {
                let from_socket = if is_own { &socket } else { &forger };
                from_socket.send_to(&reply, from).unwrap();
            }
            if sender.send((action, packet.to_vec())).is_err() {
                break;
            }
        }
    });
    (format!("udp://{address}/announce"), received)
}

fn packet(words: &[u32], rest: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    bytes.extend(rest);
    bytes
}

fn connected(transaction: u32) -> Vec<u8> {
    packet(&[0, transaction, 0x0bad, 0xcafe], &[])
}

/// Fault 57: answers that are too short, have another transaction id, or come from another address are ignored; the
/// correct answer counts.
#[test]
fn forged_answers_are_ignored() {
    let (url, received) = serve(|action, transaction, _| {
        let forged_peers = [9, 9, 9, 9, 0, 9];
        match action {
            0 => vec![
                (true, vec![0, 0, 0]),
                (true, connected(transaction ^ 1)),
                (true, packet(&[0, transaction], &[])),
                (false, connected(transaction)),
                (true, connected(transaction)),
            ],
            _ => vec![
                (true, packet(&[1, transaction ^ 1, 900, 0, 0], &forged_peers)),
                (false, packet(&[1, transaction, 900, 0, 0], &forged_peers)),
                (
                    true,
                    packet(&[1, transaction, 900, 2, 1], &[127, 0, 0, 5, 0, 9, 127, 0, 0, 6, 0, 9]),
                ),
            ],
        }
    });
    let torrent = Torrent::with_trackers(100_000, 16384, &[url]);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    bed.wait_for("the right answer", |seen| matches!(seen, Seen::TrackerAnswered(2)));
    let actions: Vec<u32> = received.try_iter().map(|(action, _)| action).collect();
    assert_eq!(actions, [0, 1], "nothing had to be repeated");
    let tracker = &bed.stats(id).trackers[0];
    assert_eq!(
        (tracker.seeders, tracker.leechers, tracker.status),
        (Some(1), Some(2), "working")
    );
}

/// BEP 15: the announce carries the required fields, and `stopped` is sent at the end over the same connection.
#[test]
fn a_session_as_its_tracker_sees_it() {
    let (url, received) = serve(|action, transaction, _| match action {
        0 => vec![(true, connected(transaction))],
        _ => vec![(true, packet(&[1, transaction, 900, 0, 0], &[]))],
    });
    let torrent = Torrent::with_trackers(100_000, 16384, &[url]);
    let mut bed = Bed::new();
    let id = bed.download(&torrent, &[]);
    bed.wait_for("the answer", |seen| matches!(seen, Seen::TrackerAnswered(0)));
    bed.block_on(bed.torrents().stop_and_serialize(id)).unwrap();
    let received: Vec<Datagram> = received.try_iter().collect();
    let [(0, _), (1, started), (1, stopped)] = &received[..] else {
        panic!("{received:?}")
    };
    for announce in [started, stopped] {
        assert_eq!(announce[..8], [0, 0, 0x0b, 0xad, 0, 0, 0xca, 0xfe]);
        assert_eq!(announce[16..36], torrent.info_hash().0);
        assert_eq!(announce[36..44], *b"-EC0100-");
        assert_eq!(announce[64..72], 100_000u64.to_be_bytes(), "left");
        assert_eq!(announce[96..98], bed.address().port().to_be_bytes());
    }
    assert_eq!((word(started, 80), word(stopped, 80)), (2, 3));
    assert_eq!(started[88..92], stopped[88..92], "the key stays");
}

/// BEP 48 and BEP 15: a scrape, and the error reported when it is refused.
#[test]
fn scrapes_over_udp() {
    let (url, _received) = serve(|action, transaction, _| match action {
        0 => vec![(true, connected(transaction))],
        1 => vec![(true, packet(&[1, transaction, 900, 0, 0], &[]))],
        _ => vec![(true, packet(&[2, transaction, 3, 9, 4], &[]))],
    });
    let mut bed = Bed::new();
    let id = bed.download(&Torrent::with_trackers(100_000, 16384, &[url]), &[]);
    let counts = bed.block_on(bed.torrents().scrape(id)).unwrap();
    assert_eq!((counts.seeders, counts.completed, counts.leechers), (3, 9, 4));

    let (url, _received) = serve(|action, transaction, _| match action {
        0 => vec![(true, connected(transaction))],
        1 => vec![(true, packet(&[1, transaction, 900, 0, 0], &[]))],
        _ => vec![(true, packet(&[3, transaction], b"not\x07today"))],
    });
    let mut bed = Bed::new();
    let id = bed.download(&Torrent::with_trackers(200_000, 16384, &[url]), &[]);
    let error = bed.block_on(bed.torrents().scrape(id)).unwrap_err();
    assert!(
        error.to_string().ends_with("the tracker refused: not\u{fffd}today"),
        "{error}"
    );
}
