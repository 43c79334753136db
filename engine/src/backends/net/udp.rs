//! UDP: datagrams are received and sent in batches, as far as the system can.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::time::sleep;

use super::Shared;
use super::multicast::includes;
use crate::ports::net::DatagramKind;

/// Maximum length of a datagram that is taken. Trackers and DHT nodes send less than an Ethernet frame.
const MAX_DATAGRAM: usize = 4096;

/// Buffers of one receive call (`recvmmsg`). Each takes a datagram, or a run of them from one sender (GRO).
const RECEIVED_TOGETHER: usize = 8;

/// Length of a buffer for a run of datagrams: the longest that UDP carries. Untouched memory costs nothing.
const RUN_BYTES: usize = 1 << 16;

/// Maximum number of bytes of one send call: a UDP payload over IPv4 (GSO).
const MAX_RUN: usize = 65_507;

/// Pause of a socket that has received all waiting datagrams, if they were messages of the DHT only: per message, and
/// the maximum. Datagrams that arrive meanwhile wait in the socket, so that one call receives several messages and the
/// engine ticks once for them. A message that comes alone is received at once. The answers of distant nodes take some
/// hundred milliseconds anyway.
const PAUSE_PER_MESSAGE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(10);

/// Maximum number of datagrams that arrive in a pause, at the rate of the last one. A socket holds about 270 small ones
/// by Linux' default, and loses datagrams that do not fit, of every kind.
const MAX_PER_PAUSE: u32 = 128;

/// Time without pauses after a datagram of another kind. uTP measures delays, so its packets must not wait.
const TIME_WITHOUT_PAUSES: Duration = Duration::from_secs(1);

/// Pause after a failed registration: the process has no free descriptor.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);

/// A UDP socket that does not block.
pub(super) struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Udp {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let local = socket.local_addr()?;
        Ok(Self { socket, state, local })
    }

    /// Registers the socket for readiness, until the returned handle is dropped. The handle has a descriptor of its
    /// own.
    fn register(&self) -> io::Result<tokio::net::UdpSocket> {
        tokio::net::UdpSocket::from_std(self.socket.try_clone()?)
    }

    fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, metas)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.try_send((&self.socket).into(), transmit)
    }
}

/// Receives datagrams for as long as the engine lives.
pub(super) async fn receive(udp: Arc<Udp>, shared: Arc<Shared>) {
    let mut memory = vec![0; RECEIVED_TOGETHER * RUN_BYTES];
    let mut pauses = Pauses::default();
    // While the socket is registered, each datagram wakes the runtime's thread, so it is not registered in a pause.
    loop {
        let registered = match udp.register() {
            Ok(registered) => registered,
            Err(error) => {
                tracing::warn!("no datagrams are received for a second: {error}");
                sleep(REGISTER_PAUSE).await;
                continue;
            }
        };
        let pause = loop {
            if registered.readable().await.is_err() {
                return;
            }
            let receive = || receive_once(&udp, &mut memory, &mut pauses, &shared);
            match registered.try_io(Interest::READABLE, receive) {
                Ok(None) => {}
                Ok(Some(pause)) => break pause,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Linux reports on this socket that an earlier datagram was undeliverable.
                Err(error) => tracing::debug!("receive: {error}"),
            }
        };
        drop(registered);
        sleep(pause).await;
    }
}

/// Receives the datagrams of one call. Returns the pause after it, if there is to be one.
fn receive_once(udp: &Udp, memory: &mut [u8], pauses: &mut Pauses, shared: &Shared) -> io::Result<Option<Duration>> {
    let mut metas = [RecvMeta::default(); RECEIVED_TOGETHER];
    let mut slices = memory.chunks_mut(RUN_BYTES);
    let mut buffers: [IoSliceMut<'_>; RECEIVED_TOGETHER] =
        std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
    let count = udp.receive(&mut buffers, &mut metas)?;
    let has_others = take_in(&metas[..count], &buffers, udp.local, shared);
    Ok(pauses.after(count, has_others, Instant::now()))
}

/// Decides about pauses between receive calls.
#[derive(Default)]
struct Pauses {
    /// Datagrams or runs received since the last pause.
    count: usize,
    /// The start of the last pause.
    last_pause: Option<Instant>,
    /// The time of the last datagram that was not a message of the DHT.
    last_other: Option<Instant>,
}

impl Pauses {
    /// Returns the pause after a call that has received `count` datagrams or runs.
    fn after(&mut self, count: usize, has_others: bool, now: Instant) -> Option<Duration> {
        self.count += count;
        if has_others {
            self.last_other = Some(now);
        }
        // More may be waiting behind a full call.
        if count >= RECEIVED_TOGETHER {
            return None;
        }
        let received = u32::try_from(std::mem::take(&mut self.count)).unwrap_or(u32::MAX);
        let since_other = self.last_other.map(|last| now.duration_since(last));
        let may_wait = since_other.is_none_or(|since| since >= TIME_WITHOUT_PAUSES);
        let period = self.last_pause.map_or(Duration::MAX, |last| now.duration_since(last));
        self.last_pause = Some(now);
        let until_full = period.saturating_mul(MAX_PER_PAUSE) / received.max(1);
        may_wait.then(|| {
            PAUSE_PER_MESSAGE
                .saturating_mul(received)
                .min(MAX_PAUSE)
                .min(until_full)
        })
    }
}

/// Puts the datagrams of one receive call into their rings, and wakes the engine once. Returns whether one of them is
/// not a message of the DHT.
fn take_in(metas: &[RecvMeta], buffers: &[IoSliceMut<'_>], local: SocketAddr, shared: &Shared) -> bool {
    let (mut is_any, mut has_others) = (false, false);
    let mut rings = shared.datagrams();
    for (meta, buffer) in metas.iter().zip(buffers) {
        let arrived = shared.epoch.elapsed().saturating_sub(age(meta));
        let arrived = Timestamp::ZERO + arrived;
        let to = SocketAddr::new(meta.dst_ip.unwrap_or(local.ip()), local.port());
        for data in buffer[..meta.len].chunks(meta.stride.max(1)) {
            let data = &data[..data.len().min(MAX_DATAGRAM)];
            if rings.push(meta.addr, to, arrived, data, || Bytes::copy_from_slice(data)) {
                is_any = true;
                has_others |= DatagramKind::of(data) != Some(DatagramKind::Dht);
            }
        }
    }
    drop(rings);
    if is_any {
        shared.sink.wake();
    }
    has_others
}

/// Maximum time that a datagram can have waited in the socket. A longer time means that the clock was set meanwhile.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Returns how long a datagram has waited in the socket, if the kernel reports its arrival time.
fn age(meta: &RecvMeta) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = meta.timestamp.and_then(|came| now.ok()?.checked_sub(came));
    age.filter(|age| *age <= MAX_AGE).unwrap_or_default()
}

/// Our address of a datagram, if the sender names it, and the destination.
type Way = (Option<SocketAddr>, SocketAddr);

/// Datagrams that leave together: equally long ones to one address, of which the last may be shorter.
#[derive(Default)]
pub(super) struct Outbox {
    way: Option<Way>,
    datagrams: Vec<Bytes>,
    bytes: usize,
    /// Memory for runs.
    run: Vec<u8>,
}

impl Outbox {
    /// Adds a datagram. Sends the earlier ones if it does not fit behind them.
    pub(super) fn push(&mut self, sockets: &[Arc<Udp>], way: Way, data: Bytes) {
        let max_count = socket_for(sockets, way).map_or(1, |udp| udp.state.max_gso_segments());
        if !self.fits(max_count, way, data.len()) {
            self.flush(sockets);
        }
        self.add(way, data);
    }

    fn add(&mut self, way: Way, data: Bytes) {
        self.way = Some(way);
        self.bytes += data.len();
        self.datagrams.push(data);
    }

    /// Whether a datagram can leave together with the earlier ones. The system sends at most `max_count` together.
    fn fits(&self, max_count: usize, way: Way, len: usize) -> bool {
        let (Some(first), Some(last)) = (self.datagrams.first(), self.datagrams.last()) else {
            return true;
        };
        self.way == Some(way)
            && self.datagrams.len() < max_count
            && last.len() == first.len()
            && (1..=first.len()).contains(&len)
            && self.bytes + len <= MAX_RUN
    }

    /// Sends the datagrams, or drops them if they cannot be sent at once: UDP may lose them anyway.
    pub(super) fn flush(&mut self, sockets: &[Arc<Udp>]) {
        let Some(way @ (from, to)) = self.way.take() else {
            return;
        };
        let Some(udp) = socket_for(sockets, way) else {
            self.datagrams.clear();
            self.bytes = 0;
            return;
        };
        let contents = match &self.datagrams[..] {
            [single] => &single[..],
            several => {
                self.run.clear();
                several.iter().for_each(|datagram| self.run.extend_from_slice(datagram));
                &self.run
            }
        };
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents,
            segment_size: (self.datagrams.len() > 1).then(|| self.datagrams[0].len()),
            // A socket that is bound to one address sends from it.
            src_ip: from.map(|from| from.ip()).filter(|_| udp.local.ip().is_unspecified()),
        };
        if let Err(error) = udp.send(&transmit) {
            tracing::debug!("{} datagrams to {to} were not sent: {error}", self.datagrams.len());
        }
        self.datagrams.clear();
        self.bytes = 0;
    }
}

/// Returns the socket of a datagram: that of our address, or the first one of the family.
fn socket_for(sockets: &[Arc<Udp>], (from, to): Way) -> Option<&Arc<Udp>> {
    let mut usable = sockets.iter().filter(|udp| udp.local.is_ipv4() == to.is_ipv4());
    match from {
        Some(from) => usable.find(|udp| includes(udp.local, from.ip()) && udp.local.port() == from.port()),
        None => usable.next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_pauses_when_it_has_received_all_and_only_messages_of_the_dht() {
        let (mut pauses, begun) = (Pauses::default(), Instant::now());
        let at = |millis| begun + Duration::from_millis(millis);
        let millis = |millis| Some(Duration::from_millis(millis));
        assert_eq!(pauses.after(1, false, at(0)), millis(2));
        assert_eq!(
            pauses.after(RECEIVED_TOGETHER, false, at(4)),
            None,
            "more may be waiting"
        );
        assert_eq!(pauses.after(1, false, at(5)), millis(10), "many came together");
        assert_eq!(pauses.after(2, false, at(15)), millis(4));
        assert_eq!(pauses.after(3, true, at(20)), None);
        assert_eq!(pauses.after(1, false, at(1019)), None, "another kind came a moment ago");
        assert_eq!(pauses.after(1, false, at(1020)), millis(2));
        for _ in 0..40 {
            assert_eq!(pauses.after(RECEIVED_TOGETHER, false, at(1029)), None);
        }
        assert_eq!(
            pauses.after(0, false, at(1030)),
            millis(4),
            "320 in 10 ms: 128 arrive in 4 ms"
        );
    }

    fn datagram(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[test]
    fn datagrams_of_one_length_to_one_address_leave_together() {
        let [to, other] = [1, 2].map(|port| -> Way { (None, ([127, 0, 0, 1], port).into()) });
        let mut outbox = Outbox::default();
        assert!(outbox.fits(1, to, 900), "the first one fits");
        outbox.add(to, datagram(100));
        assert!(outbox.fits(2, to, 100));
        assert!(!outbox.fits(1, to, 100), "the system sends one at a time");
        assert!(!outbox.fits(2, other, 100), "another address");
        assert!(!outbox.fits(2, to, 101) && !outbox.fits(2, to, 0));
        assert!(outbox.fits(2, to, 99), "the last one may be shorter");
        outbox.add(to, datagram(99));
        assert!(!outbox.fits(9, to, 99), "a shorter one was the last");
        let mut outbox = Outbox::default();
        (0..6).for_each(|_| outbox.add(to, datagram(10_000)));
        assert!(
            !outbox.fits(9, to, 5_508) && outbox.fits(9, to, 5_507),
            "all are at most one payload of UDP"
        );
    }

    /// A run that was sent by one call arrives as one run, also on loopback.
    #[test]
    fn a_call_sends_and_receives_a_run() {
        let open = || Arc::new(Udp::new(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap());
        let (sender, receiver) = (open(), open());
        receiver.socket.set_nonblocking(false).unwrap();
        let to = receiver.local;
        let sockets = [sender];
        let mut outbox = Outbox::default();
        let lens = [100, 100, 60, 100, 100, 100, 2000, 2000, 12, 1300];
        for len in lens {
            outbox.push(&sockets, (None, to), datagram(len));
        }
        outbox.flush(&sockets);
        let mut runs = Vec::new();
        while runs.iter().map(|(len, _)| len).sum::<usize>() < lens.iter().sum() {
            let mut memory = vec![0; RUN_BYTES];
            let mut meta = [RecvMeta::default()];
            receiver
                .receive(&mut [IoSliceMut::new(&mut memory)], &mut meta)
                .unwrap();
            runs.push((meta[0].len, meta[0].stride));
        }
        let [sends, receives] = [sockets[0].state.max_gso_segments(), receiver.state.gro_segments()];
        match sends.min(receives) {
            1 => assert_eq!(runs.len(), lens.len(), "this system has no runs"),
            _ => assert_eq!(runs, [(260, 100), (300, 100), (4012, 2000), (1300, 1300)]),
        }
    }
}
