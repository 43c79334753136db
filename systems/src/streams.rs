//! Stream events: bytes go to the decoders of their peers, credit goes back to the streams.

use std::net::SocketAddr;
use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use bytes::Bytes;
use ecs_torrent_components::buckets::TorrentBuckets;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::messages::{BlockSent, OutboxDrained};
use ecs_torrent_components::peer::{
    CloseReason, EmptiedUploads, Outbox, Peer, Requests, ServeQueue, Stage, Transport, UploadMemory, UploadQueue, Wire,
};
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{NetSettings, Settings};
use ecs_torrent_components::torrent::PeerOf;
use ecs_torrent_components::work_list::WorkList;
use ecs_torrent_engine::port::OpenInbox;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{DatagramCounts, NetEvent, NetRequest, STREAMS, StreamError, Streams, read_cost};
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::geometry::BLOCK_SIZE;
use ecs_torrent_protocol::time::Timestamp;

use crate::IntakeSet;
use crate::conditions::{has_events, has_messages};

/// Moves bytes between the Net port and peers.
pub struct StreamsPlugin;

impl Plugin for StreamsPlugin {
    fn build(&self, app: &mut App) {
        app.open_inbox::<NetRequest, NetEvent>(STREAMS)
            .add_message::<StreamAccepted>()
            .add_message::<StreamConnected>()
            .add_message::<StreamClosed>()
            .add_message::<BlockSent>()
            .add_message::<OutboxDrained>()
            .init_resource::<ReceivedChunks>()
            .init_resource::<ReadyPeers>()
            .init_resource::<LimitedPeers>()
            .init_resource::<ServeQueue>()
            .init_resource::<UploadMemory>()
            .init_resource::<EmptiedUploads>()
            .init_resource::<DatagramCounts>()
            .add_systems(
                Tick,
                (
                    sort_stream_events
                        .run_if(has_events::<NetRequest, NetEvent>(STREAMS))
                        .in_set(IntakeSet::Streams),
                    push_chunks.in_set(IntakeSet::Bytes),
                    record_closed_streams
                        .run_if(has_messages::<StreamClosed>)
                        .in_set(IntakeSet::Closed),
                    grant_credit.in_set(TickSet::Flush).in_set(crate::FlushSet::Streams),
                ),
            );
    }
}

/// A peer connected to us.
#[derive(Message, Debug, Clone)]
pub(crate) struct StreamAccepted {
    /// The peer's connection.
    pub stream: StreamId,
    /// The peer's address.
    pub remote: SocketAddr,
    /// The transport of the stream.
    pub transport: Transport,
}

/// A connection that we opened is established.
#[derive(Message, Debug, Clone)]
pub(crate) struct StreamConnected {
    /// The peer.
    pub peer: Entity,
    /// The transport of the stream.
    pub transport: Transport,
}

/// A connection ended without being closed by us.
#[derive(Message, Debug, Clone)]
struct StreamClosed {
    stream: StreamId,
    reason: StreamError,
}

/// Bytes received in this tick, kept until their peers exist.
#[derive(Resource, Debug, Default)]
struct ReceivedChunks(Vec<(StreamId, Bytes)>);

/// Peers with undecoded bytes.
#[derive(Resource, Debug, Default)]
pub(crate) struct ReadyPeers(pub(crate) WorkList<Wire>);

/// Returns whether a peer has undecoded bytes.
pub(crate) fn has_ready_peers(ready: Res<ReadyPeers>) -> bool {
    !ready.0.is_empty()
}

impl ReadyPeers {
    /// Creates the reading side of a new stream, and lists its peer, so that the stream gets its first credit at the
    /// end of this tick. Until then, the port reads nothing.
    pub(crate) fn open(&mut self, peer: Entity, now: Timestamp, settings: &NetSettings) -> Wire {
        let mut wire = Wire {
            ungranted_bytes: settings.first_window().into(),
            ..Wire::new(now)
        };
        self.0.add(peer, &mut wire.listed);
        wire
    }
}

fn sort_stream_events(
    mut net: ResMut<NetPort>,
    streams: Res<Streams>,
    clock: Res<Clock>,
    mut accepted: MessageWriter<StreamAccepted>,
    mut connected: MessageWriter<StreamConnected>,
    mut closed: MessageWriter<StreamClosed>,
    mut chunks: ResMut<ReceivedChunks>,
    mut serve: ResMut<ServeQueue>,
    mut memory: ResMut<UploadMemory>,
    mut emptied: ResMut<EmptiedUploads>,
    mut datagrams: ResMut<DatagramCounts>,
    (mut sent, mut drained): (MessageWriter<BlockSent>, MessageWriter<OutboxDrained>),
    mut peers: Query<(&mut Outbox, Option<&mut UploadQueue>, Option<&PeerOf>)>,
) {
    for event in net.take(STREAMS) {
        match event {
            NetEvent::Accepted {
                stream,
                remote,
                transport,
            } => drop(accepted.write(StreamAccepted {
                stream,
                remote,
                transport,
            })),
            NetEvent::Connected { stream, transport } => {
                if let Some(peer) = streams.get(stream) {
                    connected.write(StreamConnected { peer, transport });
                }
            }
            NetEvent::Received { stream, chunk } => chunks.0.push((stream, chunk)),
            NetEvent::Sent { stream, bytes } => {
                let Some(peer) = streams.get(stream) else { continue };
                let Ok((mut outbox, uploads, of)) = peers.get_mut(peer) else {
                    continue;
                };
                outbox.record_sent(bytes, clock.now());
                while let (Some(of), Some(len)) = (of, outbox.take_sent_block()) {
                    let torrent = of.0;
                    sent.write(BlockSent { torrent, peer, len });
                }
                if outbox.take_room() {
                    drained.write(OutboxDrained { peer });
                }
                let Some(mut uploads) = uploads else { continue };
                let had_some = uploads.charged_bytes > 0;
                memory.release(&mut uploads, bytes as u64);
                if !uploads.waiting.is_empty() {
                    serve.add(peer, &mut uploads);
                } else if had_some && uploads.is_empty() {
                    uploads.emptied = clock.now();
                    emptied.0.push(peer);
                }
            }
            NetEvent::Closed { stream, reason } => drop(closed.write(StreamClosed { stream, reason })),
            NetEvent::DatagramsDropped { kind, count } => datagrams.add(kind, count),
            NetEvent::Gone { .. }
            | NetEvent::Datagram { .. }
            | NetEvent::AddressesChanged
            | NetEvent::Resolved { .. } => {}
        }
    }
}

fn push_chunks(
    streams: Res<Streams>,
    mut chunks: ResMut<ReceivedChunks>,
    mut ready: ResMut<ReadyPeers>,
    mut limits: ResMut<RateLimits>,
    mut peers: Query<(&mut Wire, Option<&PeerOf>)>,
    mut torrents: Query<&mut TorrentBuckets>,
) {
    for (stream, chunk) in chunks.0.drain(..) {
        let Some(peer) = streams.get(stream) else { continue };
        let Ok((mut wire, of)) = peers.get_mut(peer) else {
            continue;
        };
        let cost = read_cost(chunk.len());
        // A short read uses up more credit than it carries.
        let unused = u64::from(cost) - chunk.len() as u64;
        limits.download.give_back(unused);
        if limits.torrent_count > 0
            && let Some(Ok(mut buckets)) = of.map(|of| torrents.get_mut(of.0))
        {
            buckets.download.give_back(unused);
        }
        wire.ungranted_bytes += i64::from(cost);
        wire.codec.push(chunk);
        ready.0.add(peer, &mut wire.listed);
    }
}

/// Closes the peers whose streams are closed. Runs after the frames, so that the last messages of a peer are still
/// handled.
fn record_closed_streams(
    mut closed: MessageReader<StreamClosed>,
    streams: Res<Streams>,
    peers: Query<&Peer>,
    mut reaper: ResMut<Reaper>,
) {
    for StreamClosed { stream, reason } in closed.read() {
        let Some(peer) = streams.get(*stream) else { continue };
        let is_connecting = peers.get(peer).is_ok_and(|peer| peer.stage == Stage::Connecting);
        let reason: Arc<str> = reason.to_string().into();
        reaper.close(
            peer,
            match is_connecting {
                true => CloseReason::ConnectFailed(reason),
                false => CloseReason::Remote(reason),
            },
        );
    }
}

/// Peers that wait for credit because downloads are limited, in the order in which they get it.
#[derive(Resource, Debug, Default)]
struct LimitedPeers {
    peers: WorkList<LimitedPeers>,
    /// The torrents whose own limits other peers wait for.
    torrents: Vec<Entity>,
}

/// Receive window of a peer that owes us no blocks while downloads are limited. Credit that a peer does not use is lost
/// to the others.
const LIMITED_IDLE_WINDOW: u32 = 4096;

/// The parameters for granting credit.
#[derive(SystemParam)]
struct Granting<'w, 's> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    net: ResMut<'w, NetPort>,
    limits: ResMut<'w, RateLimits>,
    peers: Query<
        'w,
        's,
        (
            &'static Peer,
            &'static mut Wire,
            Option<&'static Requests>,
            Option<&'static PeerOf>,
        ),
    >,
    torrents: Query<'w, 's, &'static mut TorrentBuckets>,
}

/// Grants credit to the streams: a new one its first window, then portions. Decoded bytes use up at most a quarter of a
/// peer's window. The window holds the blocks that the peer owes us, and a little more for its other messages, so that
/// strangers cannot make us hold more for them than we requested. Peers that have more to decode stay listed.
///
/// If downloads are limited, the peers get equal shares in turn. The peers of a torrent that has used up its own limit
/// wait for that first.
fn grant_credit(mut granting: Granting, mut ready: ResMut<ReadyPeers>, mut limited: ResMut<LimitedPeers>) {
    let now = granting.clock.now();
    if !limited.torrents.is_empty() {
        granting.recall_limited(&mut limited);
    }
    let allowed = granting.limits.download.portion(now);
    let mut shares = Shares::new(allowed, ready.0.len() + limited.peers.len());
    for _ in 0..limited.peers.len() {
        if shares.is_empty() {
            break;
        }
        let Some(entity) = limited.peers.pop() else { break };
        if let Ok((_, mut wire, ..)) = granting.peers.get_mut(entity) {
            wire.waits.clear();
            granting.grant(entity, Turn::Waited, &mut shares, &mut limited);
        }
    }
    ready
        .0
        .retain(|entity| granting.grant(*entity, Turn::Ready, &mut shares, &mut limited) > 0);
    for torrent in &limited.torrents {
        if let Ok(mut buckets) = granting.torrents.get_mut(*torrent) {
            buckets.download.record_waiting(now);
            granting.wakeup.at(buckets.download.next_common(now));
        }
    }
    if !limited.peers.is_empty() {
        granting.limits.download.record_waiting(now);
        granting.wakeup.at(granting.limits.download.next(now));
    }
}

/// Why a peer gets credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The stream has waited for credit.
    Waited,
    /// Its bytes have been decoded.
    Ready,
}

impl Granting<'_, '_> {
    /// Returns peers of torrents whose own limits allow some bytes again to the turns of all peers: one peer for each
    /// turn that the bytes suffice for.
    fn recall_limited(&mut self, limited: &mut LimitedPeers) {
        let now = self.clock.now();
        let LimitedPeers { peers: all, torrents } = limited;
        // A torrent that is gone has no peers.
        torrents.retain(|torrent| {
            let Ok(mut buckets) = self.torrents.get_mut(*torrent) else {
                return false;
            };
            let portion = buckets.download.portion(now);
            let turns = portion.map_or(usize::MAX, |portion| portion.div_ceil(Shares::LEAST) as usize);
            let turns = turns.min(buckets.downloads.len());
            buckets.share = portion.unwrap_or(0) / turns.max(1) as u64;
            for _ in 0..turns {
                let Some(entity) = buckets.downloads.pop() else { break };
                if let Ok((_, mut wire, ..)) = self.peers.get_mut(entity) {
                    wire.waits.clear();
                    all.add(entity, &mut wire.waits);
                }
            }
            !buckets.downloads.is_empty()
        });
    }

    /// Grants a peer the credit that it lacks, or else its share; then the peer waits for the rest. Returns the bytes
    /// left to decode.
    fn grant(&mut self, entity: Entity, turn: Turn, shares: &mut Shares, limited: &mut LimitedPeers) -> u32 {
        let now = self.clock.now();
        let Ok((peer, mut wire, requests, of)) = self.peers.get_mut(entity) else {
            return 0;
        };
        let torrent = of.filter(|_| self.limits.torrent_count > 0).map(|of| of.0);
        let mut buckets = torrent.and_then(|torrent| self.torrents.get_mut(torrent).ok());
        let own = buckets.as_mut().and_then(|buckets| match turn {
            Turn::Waited => buckets.download.left(),
            // The peers that wait come first.
            Turn::Ready if !buckets.downloads.is_empty() => buckets.download.left().map(|_| 0),
            Turn::Ready => buckets.download.portion(now),
        });
        let is_limited = shares.left.is_some() || own.is_some();
        let settings = &self.settings.net;
        let first = settings.first_window();
        let idle = if is_limited {
            first.min(LIMITED_IDLE_WINDOW)
        } else {
            first
        };
        let widest = settings.receive_window_bytes - first;
        let owed = requests.map_or(0, |requests| requests.pending().len() as u64 * u64::from(BLOCK_SIZE));
        let extra = i64::try_from(owed).map_or(widest, |owed| owed.min(widest.into()) as u32);
        let held = std::mem::take(&mut wire.held_bytes);
        if held == 0 {
            wire.listed.clear();
        }
        let portion = ((idle + extra) / 4).max(1);
        let lacking = wire.ungranted_bytes - i64::from(first - idle) + i64::from(extra) - i64::from(held);
        let Some(lacking) = u32::try_from(lacking).ok().filter(|lacking| *lacking >= portion) else {
            return held;
        };
        let most = match (&buckets, own) {
            (Some(buckets), Some(own)) => own.min(buckets.share.max(Shares::LEAST)).min(lacking.into()) as u32,
            _ => lacking,
        };
        let bytes = shares.take(most);
        if bytes > 0 {
            self.limits.download.take(bytes.into());
            wire.ungranted_bytes -= i64::from(bytes);
            self.net.push(NetRequest::Grant {
                stream: peer.stream,
                bytes,
            });
        }
        if let Some(buckets) = &mut buckets {
            buckets.download.take(bytes.into());
        }
        if bytes < lacking {
            wire.last_limited = Some(now);
            match (buckets, torrent) {
                (Some(mut buckets), Some(torrent)) if bytes == most && own.is_some() => {
                    if buckets.downloads.is_empty() && !wire.waits.is_listed() {
                        limited.torrents.push(torrent);
                    }
                    buckets.downloads.add(entity, &mut wire.waits);
                }
                _ => limited.peers.add(entity, &mut wire.waits),
            }
        }
        held
    }
}

/// The bytes that one tick may grant, in equal shares; `None` without a limit.
struct Shares {
    left: Option<u64>,
    each: u64,
}

impl Shares {
    /// The least cost of a read, so that each share carries some bytes.
    const LEAST: u64 = 2048;

    fn new(left: Option<u64>, peers: usize) -> Self {
        let each = left.map_or(0, |left| (left / peers.max(1) as u64).max(Self::LEAST));
        Self { left, each }
    }

    /// Takes a peer's share of the bytes that it lacks.
    fn take(&mut self, lacking: u32) -> u32 {
        let Some(left) = &mut self.left else { return lacking };
        let bytes = self.each.min(*left).min(lacking.into());
        *left -= bytes;
        bytes as u32
    }

    fn is_empty(&self) -> bool {
        self.left == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::peer::Pending;
    use ecs_torrent_protocol::geometry::BlockRequest;

    use super::*;
    use crate::testing::{Bed, NOW};

    fn bed(events: Vec<NetEvent>) -> (Bed, Entity) {
        let mut bed = Bed::new(StreamsPlugin);
        bed.open_port::<NetRequest, NetEvent>(events);
        bed.world.init_resource::<Streams>();
        bed.world.init_resource::<ServeQueue>();
        bed.world.init_resource::<UploadMemory>();
        bed.world.init_resource::<EmptiedUploads>();
        let peer = bed.peer();
        let stream = bed.get::<Peer>(peer).stream;
        bed.world.resource_mut::<Streams>().insert(stream, peer);
        (bed, peer)
    }

    const REQUEST: BlockRequest = BlockRequest {
        piece: 0,
        begin: 0,
        len: 1,
    };

    /// A peer whose last block was sent is served again, or its slot may go to another one.
    #[test]
    fn the_last_sent_byte_ends_the_serving_of_a_peer() {
        for (charged, waits, is_emptied) in [(5, false, true), (9, false, false), (0, false, false), (5, true, false)] {
            let stream = StreamId(1);
            let (mut bed, peer) = bed(vec![NetEvent::Sent { stream, bytes: 5 }]);
            let mut memory = std::mem::take(&mut *bed.world.resource_mut::<UploadMemory>());
            let mut uploads = bed.get_mut::<UploadQueue>(peer);
            memory.charge(&mut uploads, charged);
            uploads.waiting = waits.then_some(REQUEST).into_iter().collect();
            bed.world.insert_resource(memory);
            bed.run(sort_stream_events);
            assert_eq!(bed.world.resource::<EmptiedUploads>().0.contains(&peer), is_emptied);
            assert_eq!(bed.get::<UploadQueue>(peer).emptied == NOW, is_emptied);
            assert_eq!(bed.world.resource_mut::<ServeQueue>().pop(), waits.then_some(peer));
            assert_eq!(bed.get::<UploadQueue>(peer).charged_bytes, u64::from(charged == 9) * 4);
        }
    }

    #[test]
    fn a_stream_that_ends_while_it_is_opened_was_not_connected() {
        for (stage, is_failure) in [
            (Stage::Connecting, true),
            (Stage::Handshaking, false),
            (Stage::Connected, false),
        ] {
            let (mut bed, peer) = bed(Vec::new());
            bed.get_mut::<Peer>(peer).stage = stage;
            let closed = StreamClosed {
                stream: StreamId(1),
                reason: StreamError::EndOfStream,
            };
            bed.run_after(closed, record_closed_streams);
            let reasons = bed.world.resource_mut::<Reaper>().take();
            assert_eq!(matches!(&reasons[..], [(_, CloseReason::ConnectFailed(_))]), is_failure);
        }
    }

    /// Grants credit once. Returns the granted bytes.
    fn grant(bed: &mut Bed, peer: Entity, ungranted: i64, held: u32) -> Option<u32> {
        let mut ready = std::mem::take(&mut *bed.world.resource_mut::<ReadyPeers>());
        let mut wire = bed.get_mut::<Wire>(peer);
        (wire.ungranted_bytes, wire.held_bytes) = (ungranted, held);
        ready.0.add(peer, &mut wire.listed);
        bed.world.insert_resource(ready);
        bed.open_port::<NetRequest, NetEvent>(Vec::new());
        bed.run(grant_credit);
        let is_listed = bed.world.resource::<ReadyPeers>().0.front().is_some();
        assert_eq!(is_listed, held > 0, "it has more to decode");
        match bed.world.resource::<NetPort>().outgoing() {
            [NetRequest::Grant { bytes, .. }] => Some(*bytes),
            [] => None,
            others => panic!("{others:?}"),
        }
    }

    /// The window holds the blocks that a peer owes; strangers cannot make us buffer more.
    #[test]
    fn credit_is_granted_in_portions_up_to_what_is_owed() {
        let (mut bed, peer) = bed(Vec::new());
        let settings = bed.world.resource::<Settings>().net.clone();
        let (idle, widest) = (settings.first_window(), settings.receive_window_bytes);
        let portion = idle / 4;
        assert_eq!(grant(&mut bed, peer, i64::from(idle), 0), Some(idle));
        assert_eq!(bed.get::<Wire>(peer).ungranted_bytes, 0);
        assert_eq!(grant(&mut bed, peer, i64::from(portion), 0), Some(portion));
        assert_eq!(grant(&mut bed, peer, i64::from(portion) - 1, 0), None);
        assert_eq!(bed.get::<Wire>(peer).ungranted_bytes, i64::from(portion) - 1);
        // Bytes that are not decoded are not granted again.
        assert_eq!(grant(&mut bed, peer, i64::from(idle), 10), Some(idle - 10));
        assert_eq!(grant(&mut bed, peer, i64::from(portion), 1), None);
        let request = |bed: &mut Bed| {
            bed.get_mut::<Requests>(peer).add(Pending {
                piece: Entity::PLACEHOLDER,
                block: 0,
                request: REQUEST,
                requested_at: NOW,
                is_late: false,
            });
        };
        (0..2).for_each(|_| request(&mut bed));
        let owed = 2 * BLOCK_SIZE;
        assert_eq!(grant(&mut bed, peer, 0, 0), Some(owed));
        let wide = (idle + owed) / 4;
        let below = i64::from(wide) - i64::from(owed) - 1;
        assert_eq!(grant(&mut bed, peer, below, 0), None, "a portion of the wider window");
        assert_eq!(grant(&mut bed, peer, below + 1, 0), Some(wide));
        (0..10_000).for_each(|_| request(&mut bed));
        assert_eq!(grant(&mut bed, peer, 0, 0), Some(widest - idle));
    }

    #[test]
    fn nothing_is_decoded_while_no_peer_is_ready() {
        let (mut bed, peer) = bed(Vec::new());
        assert!(!bed.holds(has_ready_peers));
        let mut ready = std::mem::take(&mut *bed.world.resource_mut::<ReadyPeers>());
        ready.0.add(peer, &mut bed.get_mut::<Wire>(peer).listed);
        bed.world.insert_resource(ready);
        assert!(bed.holds(has_ready_peers));
    }
}
