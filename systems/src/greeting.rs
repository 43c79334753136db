//! First messages to a new peer: our extensions, our pieces, and its allowed-fast set.

use std::net::SocketAddr;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::relationship::RelationshipTarget;
use bytes::Bytes;
use ecs_torrent_components::messages::{LifecycleChanged, PeerConnected, TorrentCompleted};
use ecs_torrent_components::peer::{
    AllowedFast, ExtensionRegistry, FlushQueue, Outbox, Peer, PeerExtensions, Stage, UploadQueue, Wire,
};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Have, Lifecycle, Torrent, TorrentPeers};
use ecs_torrent_engine::ports::net::LocalAddresses;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::extension::{ExtensionHandshake, HANDSHAKE_ID};
use ecs_torrent_protocol::fast::allowed_fast_set;
use ecs_torrent_protocol::wire::Message;

use crate::conditions::has_messages;
use crate::{AnnounceSet, IntakeSet};

/// Client name and version in extension handshakes.
const CLIENT: &str = concat!("ecs-torrent ", env!("CARGO_PKG_VERSION"));

/// Sends the first messages to new peers.
pub struct GreetingPlugin;

impl Plugin for GreetingPlugin {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            (
                greet_peers
                    .run_if(has_messages::<PeerConnected>)
                    .in_set(IntakeSet::Greet),
                (
                    announce_held.run_if(has_messages::<LifecycleChanged>),
                    send_upload_only.run_if(has_messages::<TorrentCompleted>),
                )
                    .chain()
                    .in_set(AnnounceSet::Completion),
            ),
        );
    }
}

/// Sends our pieces, the extension handshake, and the allowed-fast set. Runs in the same tick as the handshake and
/// before any other message is sent: BEP 3 requires the bitfield first.
fn greet_peers(
    mut connected: MessageReader<PeerConnected>,
    settings: Res<Settings>,
    local: Res<LocalAddresses>,
    registry: Res<ExtensionRegistry>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&Torrent, Option<&Have>)>,
    mut peers: Query<(&Peer, &Wire, &mut Outbox, &mut UploadQueue)>,
) {
    for connection in connected.read() {
        let entity = connection.peer;
        let Ok((torrent, have)) = torrents.get(connection.torrent) else {
            continue;
        };
        let Ok((peer, wire, mut outbox, mut uploads)) = peers.get_mut(entity) else {
            continue;
        };
        let mut send = |message: Message| flush.send(entity, &mut outbox, &message);
        let session = &wire.session;
        if let Some(have) = have {
            // BEP 6: with the fast extension, one of the three messages is required. Without it, none means no pieces.
            if session.fast && have.is_full() {
                send(Message::HaveAll);
            } else if session.fast && have.is_empty() {
                send(Message::HaveNone);
            } else if !have.is_empty() {
                let mut bits = Vec::new();
                have.write_wire(&mut bits);
                send(Message::Bitfield(bits.into()));
            }
        } else if session.fast {
            send(Message::HaveNone);
        }
        let address = peer.endpoint.address();
        if session.extended {
            let is_seed = have.is_some_and(|have| have.is_full());
            let handshake = our_handshake(&registry, &settings, &local, address, is_seed);
            send(Message::Extended {
                id: HANDSHAKE_ID,
                payload: handshake.write().into(),
            });
        }
        // The allowed-fast set is for trading. A seed wants nothing in return, and a hundred newcomers would take its
        // uplink from the unchoked peers.
        let trading = have.filter(|have| !have.is_full());
        if let (true, Some(SocketAddr::V4(address)), Some(have)) = (session.fast, address, trading) {
            let count = settings.peers.allowed_fast;
            let mut set = allowed_fast_set(*address.ip(), torrent.id(), have.len(), count);
            set.retain(|piece| have.contains(*piece));
            set.iter().for_each(|piece| send(Message::AllowedFast(*piece)));
            uploads.allowed_fast = AllowedFast::new(&set);
        }
    }
}

fn our_handshake(
    registry: &ExtensionRegistry,
    settings: &Settings,
    local: &LocalAddresses,
    peer: Option<SocketAddr>,
    is_seed: bool,
) -> ExtensionHandshake {
    ExtensionHandshake {
        extensions: registry.iter().map(|(name, id)| (name.to_owned(), id)).collect(),
        client: Some(CLIENT.to_owned()),
        listen_port: peer
            .and_then(|peer| local.for_family_of(peer))
            .map(|local| local.port()),
        request_queue: u32::try_from(settings.uploads.max_queue).ok(),
        your_ip: peer.map(|peer| peer.ip().to_canonical()),
        // BEP 21.
        upload_only: is_seed.then_some(true),
        metadata_size: None,
    }
}

/// Sends our pieces to peers that connected before our pieces were known: the torrent got its metadata late, and its
/// data was on the disk already.
fn announce_held(
    mut changed: MessageReader<LifecycleChanged>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<(&Have, &TorrentPeers)>,
    mut peers: Query<(&Peer, &mut Outbox)>,
) {
    let is_examined = |changed: &&LifecycleChanged| {
        matches!(changed.from, Lifecycle::Adding | Lifecycle::Checking) && changed.to.is_running()
    };
    for LifecycleChanged { torrent, .. } in changed.read().filter(is_examined) {
        let Ok((have, connected)) = torrents.get(*torrent) else {
            continue;
        };
        for entity in connected.iter() {
            let Ok((peer, mut outbox)) = peers.get_mut(entity) else {
                continue;
            };
            if peer.stage == Stage::Connected {
                // BEP 3: a bitfield can only be the first message.
                have.iter()
                    .for_each(|piece| flush.send(entity, &mut outbox, &Message::Have(piece)));
            }
        }
    }
}

/// Sends `upload_only` to the peers of a completed torrent (BEP 21). A repeated extension handshake changes only the
/// keys that it contains (BEP 10).
fn send_upload_only(
    mut completed: MessageReader<TorrentCompleted>,
    mut flush: ResMut<FlushQueue>,
    torrents: Query<&TorrentPeers>,
    mut peers: Query<(&mut Outbox, &PeerExtensions)>,
) {
    for TorrentCompleted { torrent } in completed.read() {
        for peer in torrents.get(*torrent).into_iter().flat_map(RelationshipTarget::iter) {
            let Ok((mut outbox, extensions)) = peers.get_mut(peer) else {
                continue;
            };
            if !extensions.is_known {
                continue;
            }
            let payload = Bytes::from_static(b"d1:mde11:upload_onlyi1ee");
            flush.send(
                peer,
                &mut outbox,
                &Message::Extended {
                    id: HANDSHAKE_ID,
                    payload,
                },
            );
        }
    }
}
