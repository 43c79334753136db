//! Tests of streams over real carriers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::peer::Transport;
use ecs_torrent_components::settings::NetSettings;
use ecs_torrent_protocol::time::Timestamp;
use tokio::io::duplex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{ByteStream, Carrier, Carriers, Pending, SharedRuntime, TokioNet};
use crate::port::Backend;
use crate::ports::net::{
    Cipher, Datagram, DatagramKind, Filter, NetEvent, NetRequest, StreamError, TRACKER_DATAGRAMS, TransportChoice,
};
use crate::wake::Waker;

const DEADLINE: Duration = Duration::from_secs(60);
const PIPE: Transport = Transport::Other("pipe");

/// The Net port of one end, driven by the test's thread.
struct Host {
    net: TokioNet,
    waker: Waker,
    address: SocketAddr,
}

impl Host {
    fn new(carriers: Vec<Arc<dyn Carrier>>) -> Self {
        Self::with_epoch(carriers, Instant::now())
    }

    fn with_epoch(carriers: Vec<Arc<dyn Carrier>>, epoch: Instant) -> Self {
        let settings = NetSettings {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            ..NetSettings::default()
        };
        let runtime = SharedRuntime::start(1).unwrap();
        let waker = Waker::for_this_thread();
        let (net, local) = TokioNet::start(&settings, &Carriers::from(carriers), epoch, runtime, &waker).unwrap();
        let address = local.0[0];
        Self { net, waker, address }
    }

    fn ask(&mut self, request: NetRequest) {
        self.net.submit(&mut vec![request]);
    }

    fn connect(&mut self, to: SocketAddr, transport: TransportChoice) -> StreamId {
        let (stream, timeout) = (StreamId(2), DEADLINE);
        self.ask(NetRequest::Connect {
            stream,
            to,
            transport,
            timeout,
        });
        stream
    }

    fn send(&mut self, stream: StreamId, bytes: &[u8]) {
        let frames = vec![Bytes::copy_from_slice(bytes)];
        self.ask(NetRequest::Send { stream, frames });
    }

    fn grant(&mut self, stream: StreamId) {
        let bytes = 1 << 20;
        self.ask(NetRequest::Grant { stream, bytes });
    }

    /// Waits for events until `find` returns something.
    fn wait<T>(&mut self, mut find: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.waker.begin_tick();
            if let Some(found) = find(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "nothing came");
            self.waker.wait(Duration::from_millis(100));
        }
    }

    fn wait_for<T>(&mut self, mut find: impl FnMut(NetEvent) -> Option<T>) -> T {
        self.wait(|host| {
            let mut events = Vec::new();
            host.net.poll(1, &mut events);
            events.into_iter().find_map(&mut find)
        })
    }

    fn accepted(&mut self) -> (StreamId, Transport) {
        self.wait_for(|event| match event {
            NetEvent::Accepted { stream, transport, .. } => Some((stream, transport)),
            _ => None,
        })
    }

    fn connected(&mut self) -> Transport {
        self.wait_for(|event| match event {
            NetEvent::Connected { transport, .. } => Some(transport),
            NetEvent::Closed { reason, .. } => panic!("{reason}"),
            _ => None,
        })
    }

    fn failure(&mut self) -> StreamError {
        self.wait_for(|event| match event {
            NetEvent::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    }

    /// Waits for this many received bytes.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.wait_for(|event| {
            if let NetEvent::Received { chunk, .. } = event {
                bytes.extend(chunk);
            }
            (bytes.len() >= len).then(|| std::mem::take(&mut bytes))
        })
    }

    /// Waits until this many received bytes are ready, and does not take them.
    fn wait_untaken(&mut self, len: usize) {
        let len_of = |event: &NetEvent| match event {
            NetEvent::Received { chunk, .. } => chunk.len(),
            _ => 0,
        };
        self.wait(|host| {
            let waiting = host
                .net
                .shared
                .sink
                .change(|events| events.iter().map(len_of).sum::<usize>());
            (waiting >= len).then_some(())
        });
    }
}

type Accepted = (Box<dyn ByteStream>, SocketAddr);

/// A carrier of in-memory pipes. Its streams reach the carrier that it was created with.
struct Pipes {
    other: UnboundedSender<Accepted>,
    incoming: tokio::sync::Mutex<UnboundedReceiver<Accepted>>,
    is_refusing: bool,
}

fn pipes(is_refusing: bool) -> [Arc<dyn Carrier>; 2] {
    let ((one, here), (other, there)) = (unbounded_channel(), unbounded_channel());
    [(other, here), (one, there)].map(|(other, incoming)| {
        let incoming = tokio::sync::Mutex::new(incoming);
        Arc::new(Pipes {
            other,
            incoming,
            is_refusing,
        }) as Arc<dyn Carrier>
    })
}

impl Carrier for Pipes {
    fn transport(&self) -> Transport {
        PIPE
    }

    fn connect(&self, _to: SocketAddr) -> Pending<'_, Box<dyn ByteStream>> {
        Box::pin(async {
            if self.is_refusing {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (here, there) = duplex(1000);
            let _ = self.other.send((Box::new(there), (Ipv4Addr::LOCALHOST, 1).into()));
            Ok(Box::new(here) as Box<dyn ByteStream>)
        })
    }

    fn accept(&self) -> Pending<'_, Accepted> {
        Box::pin(async {
            let next = self.incoming.lock().await.recv().await;
            next.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
        })
    }
}

/// Flips all bits, and remembers how many bytes passed.
struct Flip(Arc<Mutex<usize>>);

impl Cipher for Flip {
    fn apply(&mut self, bytes: &mut [u8]) {
        *self.0.lock().unwrap() += bytes.len();
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
    }
}

#[test]
fn a_transport_without_a_carrier_is_an_error() {
    let mut host = Host::new(Vec::new());
    let choice = TransportChoice::Only(Transport::Utp);
    host.connect((Ipv4Addr::LOCALHOST, 1).into(), choice);
    let error = host.failure();
    assert_eq!(error, StreamError::NoCarrier(choice));
    assert_eq!(error.to_string(), "no carrier for utp");
}

#[test]
fn the_first_carrier_that_connects_is_taken() {
    for (is_refusing, choice, expected) in [
        (false, TransportChoice::Either, PIPE),
        (true, TransportChoice::Either, Transport::Tcp),
        (false, TransportChoice::Only(Transport::Tcp), Transport::Tcp),
        (false, TransportChoice::Only(PIPE), PIPE),
    ] {
        let [one, other] = pipes(is_refusing).map(|carrier| vec![carrier]);
        let (mut one, mut other) = (Host::new(one), Host::new(other));
        let from = one.connect(other.address, choice);
        assert_eq!(one.connected(), expected);
        let (stream, transport) = other.accepted();
        assert_eq!(transport, expected);
        one.send(from, b"hello");
        other.grant(stream);
        assert_eq!(other.bytes(5), b"hello");
        let is_orderly = true;
        one.ask(NetRequest::Close {
            stream: from,
            is_orderly,
            tag: None,
        });
        assert_eq!(other.failure(), StreamError::EndOfStream);
    }
}

/// Bytes that the world has not taken when it sets a filter pass it too, whether they have arrived or not.
#[test]
fn a_filter_begins_at_its_position() {
    let (mut one, mut other) = (Host::new(Vec::new()), Host::new(Vec::new()));
    let from = one.connect(other.address, TransportChoice::Either);
    one.connected();
    let (to, _) = other.accepted();
    let passed = Arc::new(Mutex::new(0));
    let filter = |from| Some(Filter::new(from, Flip(passed.clone())));
    let message: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
    // The sender's filter begins in the middle of a frame. The receiver's filter comes when some of the bytes already
    // wait.
    one.send(from, &message[..10]);
    one.ask(NetRequest::Filter {
        stream: from,
        incoming: None,
        outgoing: filter(15),
    });
    one.send(from, &message[10..40]);
    other.grant(to);
    other.wait_untaken(40);
    other.ask(NetRequest::Filter {
        stream: to,
        incoming: filter(15),
        outgoing: None,
    });
    one.send(from, &message[40..]);
    assert_eq!(other.bytes(message.len()), message);
    assert_eq!(
        *passed.lock().unwrap(),
        2 * (message.len() - 15),
        "both ends did their part"
    );
    // An orderly close sends the rest through the filter too.
    one.send(from, &message);
    let is_orderly = true;
    one.ask(NetRequest::Close {
        stream: from,
        is_orderly,
        tag: None,
    });
    assert_eq!(other.bytes(message.len()), message);
}

impl Host {
    /// Waits for this many datagrams of a kind. Returns their payloads and arrival times.
    fn datagrams(&mut self, wanted: DatagramKind, count: usize) -> Vec<Datagram> {
        let mut found = Vec::new();
        self.wait_for(|event| {
            if let NetEvent::Datagram { kind, datagram } = event {
                assert_eq!(kind, wanted);
                found.push(datagram);
            }
            (found.len() == count).then(|| std::mem::take(&mut found))
        })
    }
}

/// A datagram of a tracker with a number in it.
fn numbered(number: u32, len: usize) -> Bytes {
    let mut data = vec![0; len.max(12)];
    data[3] = 1;
    data[8..12].copy_from_slice(&number.to_be_bytes());
    data.into()
}

/// Datagrams of different lengths and to different hosts leave in one submission. Each arrives whole and in order, with
/// the time of its arrival.
#[test]
fn datagrams_travel_in_batches() {
    let epoch = Instant::now();
    let mut hosts = [(); 3].map(|()| Host::with_epoch(Vec::new(), epoch));
    let addresses = [hosts[1].address, hosts[2].address];
    let lens = [100, 100, 60, 100, 100, 100, 2000, 2000, 12, 1300];
    hosts[1].net.open_inbox(TRACKER_DATAGRAMS);
    hosts[2].net.open_inbox(TRACKER_DATAGRAMS);
    let sent: Vec<Bytes> = (0..100)
        .map(|number| numbered(number, lens[number as usize % lens.len()]))
        .collect();
    let mut requests = Vec::new();
    for (number, data) in sent.iter().enumerate() {
        let (to, data) = (addresses[number / 7 % 2], data.clone());
        requests.push(NetRequest::Datagram { from: None, to, data });
    }
    let sender = &mut hosts[0].net;
    let earliest = epoch.elapsed();
    sender.submit(&mut requests);
    for (position, host) in hosts[1..].iter_mut().enumerate() {
        let expected: Vec<&Bytes> = (0..100)
            .filter(|number| number / 7 % 2 == position)
            .map(|number| &sent[number])
            .collect();
        let found = host.datagrams(DatagramKind::Tracker, expected.len());
        assert!(found.iter().map(|datagram| &datagram.data).eq(expected));
        let times = Timestamp::ZERO + earliest..=Timestamp::ZERO + epoch.elapsed();
        for datagram in found {
            // The kernel's clock and ours are read at different times.
            assert!(
                times.contains(&(datagram.arrived + Duration::from_millis(1))) || times.contains(&datagram.arrived)
            );
        }
    }
}
