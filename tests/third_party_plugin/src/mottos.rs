//! An extension of the plugin's own (BEP 10): clients send each other a short text.

use std::str;

use ecs_torrent::components::peer::{ExtensionRegistry, FlushQueue, Outbox, PeerExtensions};
use ecs_torrent::prelude::*;
use ecs_torrent::protocol::wire;

/// Name of the extension in handshakes.
const EXTENSION: &str = "tp_motto";

/// Maximum length of a motto, in bytes.
const MAX_LEN: usize = 64;

/// Maximum number of mottos that a torrent keeps.
const MAX_KEPT: usize = 100;

/// Sends each peer a motto, and collects the mottos of peers.
#[derive(Resource, Debug, Clone)]
pub struct MottoPlugin(pub String);

/// The mottos that a torrent's peers have sent, in order of arrival; at most 100 are kept.
#[derive(Component, Debug, Clone, Default, PartialEq, Eq)]
pub struct Mottos(pub Vec<String>);

/// The exchange with a peer: each side sends one motto.
#[derive(Component, Debug, Default)]
struct MottoExchange {
    is_sent: bool,
    is_received: bool,
}

impl Plugin for MottoPlugin {
    fn build(&self, app: &mut App) {
        // The engine's own plugins are added before others.
        app.world_mut().resource_mut::<ExtensionRegistry>().register(EXTENSION);
        app.register_required_components::<PeerState, MottoExchange>();
        app.register_required_components::<Torrent, Mottos>();
        app.insert_resource(self.clone()).add_systems(
            Tick,
            (send_mottos, receive_mottos)
                .chain()
                .after(DecideSet::Extensions)
                .before(DecideSet::Availability)
                .in_set(TickSet::Decide),
        );
    }
}

/// Sends the motto to peers whose handshake names the extension, under the id that they chose for it.
fn send_mottos(
    mut greeted: MessageReader<ExtensionHandshakeReceived>,
    own: Res<MottoPlugin>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&PeerExtensions, &mut MottoExchange, &mut Outbox)>,
) {
    for &ExtensionHandshakeReceived { peer, .. } in greeted.read() {
        let Ok((extensions, mut exchange, mut outbox)) = peers.get_mut(peer) else {
            continue;
        };
        // A peer may send any number of handshakes.
        if let Some(id) = extensions.id_of(EXTENSION).filter(|_| !exchange.is_sent) {
            exchange.is_sent = true;
            let payload = own.0.clone().into_bytes().into();
            flush.send(peer, &mut outbox, &wire::Message::Extended { id, payload });
        }
    }
}

fn receive_mottos(
    mut received: MessageReader<ExtensionReceived>,
    mut reaper: ResMut<Reaper>,
    mut peers: Query<(&PeerOf, &mut MottoExchange)>,
    mut torrents: Query<&mut Mottos>,
) {
    for ExtensionReceived {
        peer,
        extension,
        payload,
    } in received.read()
    {
        let Ok((of, mut exchange)) = peers.get_mut(*peer) else {
            continue;
        };
        if *extension != EXTENSION || std::mem::replace(&mut exchange.is_received, true) {
            continue;
        }
        let motto = str::from_utf8(payload).ok().filter(|motto| motto.len() <= MAX_LEN);
        match (motto, torrents.get_mut(of.0)) {
            (None, _) => reaper.close(*peer, PluginReason::new("mottos", "a motto is too long, or no text")),
            (Some(motto), Ok(mut kept)) if kept.0.len() < MAX_KEPT => kept.0.push(motto.to_owned()),
            _ => {}
        }
    }
}
