// Counts the bytes received from each kind of client.

use std::collections::BTreeMap;

use ecs_torrent::prelude::*;

/// Counts received bytes by client in [`ClientBytes`].
#[derive(Debug, Clone, Copy)]
pub struct ClientStatsPlugin;

/// Bytes received, by name and version of the sender's client.
#[derive(Resource, Debug, Clone, Default)]
pub struct ClientBytes(pub BTreeMap<String, u64>);

/// Maximum number of clients that are counted by name. Peers choose their names, so a stranger could fill the memory
/// with them.
const MAX_CLIENTS: usize = 1000;

impl Plugin for ClientStatsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ClientBytes>()
            .add_systems(Tick, count_bytes.in_set(TickSet::Decide));
    }
}

/// Counts the blocks that have arrived in this tick. A tick without blocks costs nothing.
fn count_bytes(mut accepted: MessageReader<BlockAccepted>, peers: Query<&Peer>, mut clients: ResMut<ClientBytes>) {
    for message in accepted.read() {
        let Ok(peer) = peers.get(message.peer) else { continue };
        if clients.0.len() < MAX_CLIENTS || clients.0.contains_key(&*peer.client) {
            *clients.0.entry(peer.client.to_string()).or_default() += u64::from(message.len);
        }
    }
}
