//! A plugin that filters all streams of an engine.

use ecs_torrent::Tick;
use ecs_torrent::bevy_app::{App, Plugin};
use ecs_torrent::bevy_ecs::prelude::*;
use ecs_torrent::components::peer::Peer;
use ecs_torrent::engine::ports::NetPort;
use ecs_torrent::engine::ports::net::{Cipher, Filter, NetRequest};
use ecs_torrent::engine::schedule::TickSet;

/// Length of a handshake, which stays as it is.
pub const HANDSHAKE: usize = 68;

/// XORs each stream with a mask, in both directions, from the end of the handshake on.
#[derive(Clone)]
pub struct Masking;

impl Plugin for Masking {
    fn build(&self, app: &mut App) {
        // Behind the dialing of peers and before their first bytes are sent.
        app.add_systems(Tick, mask_streams.in_set(TickSet::Respond));
    }
}

fn mask_streams(mut net: ResMut<NetPort>, peers: Query<&Peer, Added<Peer>>) {
    for peer in &peers {
        let filter = || Some(Filter::new(HANDSHAKE as u64, Mask(0)));
        net.push(NetRequest::Filter {
            stream: peer.stream,
            incoming: filter(),
            outgoing: filter(),
        });
    }
}

/// XORs each byte with a number that depends on its position.
pub struct Mask(u64);

impl Cipher for Mask {
    fn apply(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 += 1;
            *byte ^= (self.0 * 31 + self.0 / 256) as u8 | 1;
        }
    }
}
