//! UDP: datagrams are received and sent in batches, as far as the system can.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use ecs_torrent_protocol::time::Timestamp;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::Shared;

/// Maximum length of a datagram that is taken. Trackers and DHT nodes send less than an Ethernet frame.
const MAX_DATAGRAM: usize = 4096;

/// Buffers of one receive call (`recvmmsg`). Each takes a datagram, or a run of them from one sender (GRO).
const RECEIVED_TOGETHER: usize = 8;

/// Length of a buffer for a run of datagrams: the longest that UDP carries. Untouched memory costs nothing.
const RUN_BYTES: usize = 1 << 16;

/// Maximum number of bytes of one send call: a UDP payload over IPv4 (GSO).
const MAX_RUN: usize = 65_507;

/// A UDP socket.
pub(super) struct Udp {
    pub(super) socket: UdpSocket,
    state: UdpSocketState,
    is_ipv4: bool,
}

impl Udp {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let is_ipv4 = socket.local_addr()?.is_ipv4();
        Ok(Self { socket, state, is_ipv4 })
    }

    fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let receive = || self.state.recv((&self.socket).into(), buffers, metas);
        self.socket.try_io(Interest::READABLE, receive)
    }

    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let send = || self.state.try_send((&self.socket).into(), transmit);
        self.socket.try_io(Interest::WRITABLE, send)
    }
}

/// Receives datagrams for as long as the engine lives.
pub(super) async fn receive(udp: Arc<Udp>, shared: Arc<Shared>) {
    let mut memory = vec![0; RECEIVED_TOGETHER * RUN_BYTES];
    let mut metas = [RecvMeta::default(); RECEIVED_TOGETHER];
    loop {
        if udp.socket.readable().await.is_err() {
            return;
        }
        let mut slices = memory.chunks_mut(RUN_BYTES);
        let mut buffers: [IoSliceMut<'_>; RECEIVED_TOGETHER] =
            std::array::from_fn(|_| IoSliceMut::new(slices.next().unwrap_or_default()));
        match udp.receive(&mut buffers, &mut metas) {
            Ok(count) => take_in(&metas[..count], &buffers, &shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Linux reports on this socket that an earlier datagram was undeliverable.
            Err(error) => tracing::debug!("receive: {error}"),
        }
    }
}

/// Puts the datagrams of one receive call into their rings, and wakes the engine once.
fn take_in(metas: &[RecvMeta], buffers: &[IoSliceMut<'_>], shared: &Shared) {
    let mut is_any = false;
    let mut rings = shared.datagrams();
    for (meta, buffer) in metas.iter().zip(buffers) {
        let arrived = shared.epoch.elapsed().saturating_sub(age(meta));
        let arrived = Timestamp::ZERO + arrived;
        for data in buffer[..meta.len].chunks(meta.stride.max(1)) {
            let data = &data[..data.len().min(MAX_DATAGRAM)];
            is_any |= rings.push(meta.addr, arrived, data, || Bytes::copy_from_slice(data));
        }
    }
    drop(rings);
    if is_any {
        shared.sink.wake();
    }
}

/// Maximum time that a datagram can have waited in the socket. A longer time means that the clock was set meanwhile.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Returns how long a datagram has waited in the socket, if the kernel reports its arrival time.
fn age(meta: &RecvMeta) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = meta.timestamp.and_then(|came| now.ok()?.checked_sub(came));
    age.filter(|age| *age <= MAX_AGE).unwrap_or_default()
}

/// Datagrams that leave together: equally long ones to one address, of which the last may be shorter.
#[derive(Default)]
pub(super) struct Outbox {
    to: Option<SocketAddr>,
    datagrams: Vec<Bytes>,
    bytes: usize,
    /// Memory for runs.
    run: Vec<u8>,
}

impl Outbox {
    /// Adds a datagram. Sends the earlier ones if it does not fit behind them.
    pub(super) fn push(&mut self, sockets: &[Arc<Udp>], to: SocketAddr, data: Bytes) {
        if !self.fits(sockets, to, data.len()) {
            self.flush(sockets);
        }
        self.to = Some(to);
        self.bytes += data.len();
        self.datagrams.push(data);
    }

    fn fits(&self, sockets: &[Arc<Udp>], to: SocketAddr, len: usize) -> bool {
        let (Some(first), Some(last)) = (self.datagrams.first(), self.datagrams.last()) else {
            return true;
        };
        let most = socket_for(sockets, to).map_or(1, |udp| udp.state.max_gso_segments());
        self.to == Some(to)
            && self.datagrams.len() < most
            && last.len() == first.len()
            && (1..=first.len()).contains(&len)
            && self.bytes + len <= MAX_RUN
    }

    /// Sends the datagrams, or drops them if they cannot be sent at once: UDP may lose them anyway.
    pub(super) fn flush(&mut self, sockets: &[Arc<Udp>]) {
        let Some(to) = self.to.take() else { return };
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
            src_ip: None,
        };
        if let Some(Err(error)) = socket_for(sockets, to).map(|udp| udp.send(&transmit)) {
            tracing::debug!("{} datagrams to {to} were not sent: {error}", self.datagrams.len());
        }
        self.datagrams.clear();
        self.bytes = 0;
    }
}

fn socket_for(sockets: &[Arc<Udp>], to: SocketAddr) -> Option<&Arc<Udp>> {
    sockets.iter().find(|udp| udp.is_ipv4 == to.is_ipv4())
}
