//! From bytes to facts: every message of a peer becomes one message of the kind that its feature reads.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{
    AllowedFastReceived, Availability, AvailabilityReceived, ChokeReceived, ExtensionReceived, InterestReceived,
    ReceivedBlocks, RejectReceived, SuggestReceived, UploadRequested,
};
use ecs_torrent_components::peer::{ExtensionRegistry, Peer, Stage, Wire};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::extension::HANDSHAKE_ID;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::{Frame, Message, WireError};

use crate::IntakeSet;
use crate::links::ReadyPeers;

/// Decodes what peers say.
pub struct FramesPlugin;

impl Plugin for FramesPlugin {
    fn build(&self, app: &mut App) {
        app.add_message::<AvailabilityReceived>()
            .add_message::<ChokeReceived>()
            .add_message::<InterestReceived>()
            .add_message::<UploadRequested>()
            .add_message::<RejectReceived>()
            .add_message::<AllowedFastReceived>()
            .add_message::<SuggestReceived>()
            .add_message::<ExtensionReceived>()
            .add_message::<ExtensionHandshakeReceived>()
            .init_resource::<ReceivedBlocks>()
            .init_resource::<ExtensionRegistry>()
            .add_systems(Tick, decode_frames.in_set(IntakeSet::Frames));
    }
}

/// An extension handshake, which every peer may send more than once (BEP 10).
#[derive(bevy_ecs::message::Message, Debug, Clone)]
pub(crate) struct ExtensionHandshakeReceived {
    pub(crate) peer: Entity,
    pub(crate) payload: bytes::Bytes,
}

/// The inboxes of all features that hear peers.
#[derive(SystemParam)]
struct Inboxes<'w> {
    blocks: ResMut<'w, ReceivedBlocks>,
    registry: Res<'w, ExtensionRegistry>,
    availability: MessageWriter<'w, AvailabilityReceived>,
    chokes: MessageWriter<'w, ChokeReceived>,
    interests: MessageWriter<'w, InterestReceived>,
    uploads: MessageWriter<'w, UploadRequested>,
    rejects: MessageWriter<'w, RejectReceived>,
    allowed_fast: MessageWriter<'w, AllowedFastReceived>,
    suggests: MessageWriter<'w, SuggestReceived>,
    extensions: MessageWriter<'w, ExtensionReceived>,
    handshakes: MessageWriter<'w, ExtensionHandshakeReceived>,
}

fn decode_frames(
    ready: Res<ReadyPeers>,
    clock: Res<Clock>,
    mut reaper: ResMut<Reaper>,
    mut inboxes: Inboxes,
    mut peers: Query<(&Peer, &mut Wire)>,
) {
    let now = clock.now();
    for &entity in &ready.0 {
        let Ok((peer, mut wire)) = peers.get_mut(entity) else {
            continue;
        };
        if peer.stage != Stage::Connected || reaper.is_doomed(entity) {
            continue;
        }
        let wire = &mut *wire;
        loop {
            match wire.codec.next_frame(&wire.session) {
                Ok(Some(frame)) => {
                    wire.last_message = now;
                    wire.frame_since = None;
                    if let Err(error) = inboxes.sort(now, entity, frame, wire) {
                        reaper.close(entity, error);
                        break;
                    }
                }
                Ok(None) => {
                    // Fault 21: what has begun must end; the clock runs from its first byte.
                    wire.frame_since = wire.codec.is_mid_frame().then(|| wire.frame_since.unwrap_or(now));
                    break;
                }
                Err(error) => {
                    reaper.close(entity, error);
                    break;
                }
            }
        }
    }
}

impl Inboxes<'_> {
    fn sort(&mut self, now: Timestamp, peer: Entity, frame: Frame, wire: &mut Wire) -> Result<(), WireError> {
        let message = match frame {
            Frame::Block(block) => {
                self.blocks.0.push((peer, block));
                return Ok(());
            }
            Frame::Message(message) => message,
        };
        let tells_all = matches!(message, Message::Bitfield(_) | Message::HaveAll | Message::HaveNone);
        if tells_all && !wire.bitfields.take(now) {
            return Err(WireError::TooManyBitfields);
        }
        match message {
            // BEP 5: a hint that this engine has no use for yet.
            Message::KeepAlive | Message::Port(_) => {}
            Message::Choke => drop(self.chokes.write(ChokeReceived { peer, is_choking: true })),
            Message::Unchoke => drop(self.chokes.write(ChokeReceived {
                peer,
                is_choking: false,
            })),
            Message::Interested => self.interest(peer, true),
            Message::NotInterested => self.interest(peer, false),
            Message::Have(piece) => self.change(peer, Availability::Have(piece)),
            Message::HaveAll => self.change(peer, Availability::All),
            Message::HaveNone => self.change(peer, Availability::None),
            Message::Bitfield(bytes) => {
                if let Some(geometry) = wire.session.geometry {
                    let pieces = Bitfield::from_wire(&bytes, geometry.piece_count())?;
                    self.change(peer, Availability::Bitfield(pieces));
                }
            }
            Message::Request(request) => self.upload(peer, request, false),
            Message::Cancel(request) => self.upload(peer, request, true),
            Message::RejectRequest(request) => drop(self.rejects.write(RejectReceived { peer, request })),
            Message::SuggestPiece(piece) => drop(self.suggests.write(SuggestReceived { peer, piece })),
            Message::AllowedFast(piece) => drop(self.allowed_fast.write(AllowedFastReceived { peer, piece })),
            Message::Extended {
                id: HANDSHAKE_ID,
                payload,
            } => {
                self.handshakes.write(ExtensionHandshakeReceived { peer, payload });
            }
            Message::Extended { id, payload } => {
                if let Some(extension) = self.registry.name_of(id) {
                    self.extensions.write(ExtensionReceived {
                        peer,
                        extension,
                        payload,
                    });
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, peer: Entity, change: Availability) {
        self.availability.write(AvailabilityReceived { peer, change });
    }

    fn interest(&mut self, peer: Entity, is_interested: bool) {
        self.interests.write(InterestReceived { peer, is_interested });
    }

    fn upload(&mut self, peer: Entity, request: ecs_torrent_protocol::geometry::BlockRequest, is_cancel: bool) {
        self.uploads.write(UploadRequested {
            peer,
            request,
            is_cancel,
        });
    }
}
