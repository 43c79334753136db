//! Link events: bytes go to the decoders of their peers, credit goes back to the links.

use std::sync::Arc;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bytes::Bytes;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::ids::LinkId;
use ecs_torrent_components::peer::{
    CloseReason, EmptiedUploads, Outbox, Peer, Requests, ServeQueue, Stage, UploadMemory, UploadQueue, Wire,
};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{DatagramCounts, LINKS, Links, NetEvent, NetRequest, read_cost};
use ecs_torrent_engine::schedule::{Tick, TickSet};
use ecs_torrent_protocol::geometry::BLOCK_SIZE;

use crate::IntakeSet;

/// Moves bytes between the Net port and peers.
pub struct LinksPlugin;

impl Plugin for LinksPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<LinkAccepted>()
            .add_message::<LinkConnected>()
            .add_message::<LinkClosed>()
            .init_resource::<ReceivedChunks>()
            .init_resource::<ReadyPeers>()
            .init_resource::<ServeQueue>()
            .init_resource::<UploadMemory>()
            .init_resource::<EmptiedUploads>()
            .init_resource::<Reaper>()
            .init_resource::<DatagramCounts>()
            .add_systems(
                Tick,
                (
                    sort_link_events.in_set(IntakeSet::Links),
                    push_chunks.in_set(IntakeSet::Bytes),
                    note_closed_links.in_set(IntakeSet::Closed),
                    grant_credit.in_set(TickSet::Flush).in_set(crate::FlushSet::Links),
                ),
            );
    }
}

/// A peer connected to us.
#[derive(Message, Debug, Clone)]
pub struct LinkAccepted {
    /// The peer's connection.
    pub link: LinkId,
    /// The peer's address.
    pub remote: std::net::SocketAddr,
}

/// A connection that we opened is established.
#[derive(Message, Debug, Clone)]
pub struct LinkConnected {
    /// The peer.
    pub peer: Entity,
}

/// A connection ended without being closed by us.
#[derive(Message, Debug, Clone)]
struct LinkClosed {
    link: LinkId,
    reason: Arc<str>,
}

/// Bytes received in this tick, kept until their peers exist.
#[derive(Resource, Debug, Default)]
struct ReceivedChunks(Vec<(LinkId, Bytes)>);

/// Peers with undecoded bytes.
#[derive(Resource, Debug, Default)]
pub(crate) struct ReadyPeers(pub(crate) Vec<Entity>);

fn sort_link_events(
    mut net: ResMut<NetPort>,
    links: Res<Links>,
    clock: Res<Clock>,
    mut accepted: MessageWriter<LinkAccepted>,
    mut connected: MessageWriter<LinkConnected>,
    mut closed: MessageWriter<LinkClosed>,
    mut chunks: ResMut<ReceivedChunks>,
    mut serve: ResMut<ServeQueue>,
    mut memory: ResMut<UploadMemory>,
    mut emptied: ResMut<EmptiedUploads>,
    mut datagrams: ResMut<DatagramCounts>,
    mut peers: Query<(&mut Outbox, Option<&mut UploadQueue>)>,
) {
    for event in net.take(LINKS) {
        match event {
            NetEvent::Accepted { link, remote } => drop(accepted.write(LinkAccepted { link, remote })),
            NetEvent::Connected { link } => {
                if let Some(peer) = links.get(link) {
                    connected.write(LinkConnected { peer });
                }
            }
            NetEvent::Received { link, chunk } => chunks.0.push((link, chunk)),
            NetEvent::Sent { link, bytes } => {
                let Some(peer) = links.get(link) else { continue };
                let Ok((mut outbox, uploads)) = peers.get_mut(peer) else {
                    continue;
                };
                outbox.unsent_bytes = outbox.unsent_bytes.saturating_sub(bytes);
                outbox.last_progress = clock.now();
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
            NetEvent::Closed { link, reason } => drop(closed.write(LinkClosed { link, reason })),
            NetEvent::DatagramsDropped { count, .. } => datagrams.dropped += count,
            NetEvent::Gone { .. } | NetEvent::Datagram { .. } | NetEvent::Resolved { .. } => {}
        }
    }
}

fn push_chunks(
    links: Res<Links>,
    mut chunks: ResMut<ReceivedChunks>,
    mut ready: ResMut<ReadyPeers>,
    mut peers: Query<&mut Wire>,
) {
    for (link, chunk) in chunks.0.drain(..) {
        let Some(peer) = links.get(link) else { continue };
        let Ok(mut wire) = peers.get_mut(peer) else { continue };
        wire.ungranted_bytes += i64::from(read_cost(chunk.len()));
        wire.codec.push(chunk);
        if !wire.is_listed {
            wire.is_listed = true;
            ready.0.push(peer);
        }
    }
}

/// Closes the peers whose links are closed. Runs after the frames, so that the last messages of a peer are still
/// handled.
fn note_closed_links(
    mut closed: MessageReader<LinkClosed>,
    links: Res<Links>,
    peers: Query<&Peer>,
    mut reaper: ResMut<Reaper>,
) {
    for LinkClosed { link, reason } in closed.read() {
        let Some(peer) = links.get(*link) else { continue };
        let is_connecting = peers.get(peer).is_ok_and(|peer| peer.stage == Stage::Connecting);
        reaper.close(
            peer,
            match is_connecting {
                true => CloseReason::ConnectFailed(reason.clone()),
                false => CloseReason::Remote(reason.clone()),
            },
        );
    }
}

/// Returns credit to the links in portions: decoded bytes use up at most a quarter of a peer's window. The window is as
/// wide as the blocks that the peer owes us, and a little more for its other messages, so that strangers cannot make us
/// hold more for them than we requested. Peers that have more to decode stay listed.
fn grant_credit(
    mut net: ResMut<NetPort>,
    mut ready: ResMut<ReadyPeers>,
    settings: Res<Settings>,
    mut peers: Query<(&Peer, &mut Wire, Option<&Requests>)>,
) {
    let idle = settings.net.first_window();
    let widest = settings.net.receive_window_bytes - idle;
    ready.0.retain(|entity| {
        let Ok((peer, mut wire, requests)) = peers.get_mut(*entity) else {
            return false;
        };
        let owed = requests.map_or(0, |requests| requests.pending.len() as u64 * u64::from(BLOCK_SIZE));
        let extra = i64::try_from(owed).map_or(widest, |owed| owed.min(widest.into()) as u32);
        let held = std::mem::take(&mut wire.held_bytes);
        let portion = ((idle + extra) / 4).max(1);
        let bytes = wire.ungranted_bytes + i64::from(extra) - i64::from(held);
        if let Ok(bytes) = u32::try_from(bytes)
            && bytes >= portion
        {
            wire.ungranted_bytes -= i64::from(bytes);
            net.push(NetRequest::Grant { link: peer.link, bytes });
        }
        wire.is_listed = held > 0;
        wire.is_listed
    });
}
