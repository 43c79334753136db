// Counts the connected peers by client, on the command of the host program.

use std::collections::BTreeMap;

use ecs_torrent::prelude::*;

/// Answers [`CountClients`].
#[derive(Debug, Clone, Copy)]
pub struct ClientCountPlugin;

/// Command: counts the connected peers by client. `torrents.ask(|reply| CountClients { reply })` sends it.
#[derive(Debug)]
pub struct CountClients {
    /// Number of peers, by name and version of the client.
    pub reply: Reply<BTreeMap<String, usize>>,
}

impl Plugin for ClientCountPlugin {
    fn build(&self, app: &mut App) {
        // A host's command arrives between two ticks, and starts a tick.
        app.init_resource::<CommandQueue<CountClients>>()
            .add_systems(Tick, count_clients.run_if(has_commands).in_set(TickSet::Decide));
    }
}

/// A tick without commands costs nothing.
fn has_commands(commands: Res<CommandQueue<CountClients>>) -> bool {
    !commands.0.is_empty()
}

/// Visits all peers, once for each command.
fn count_clients(mut commands: ResMut<CommandQueue<CountClients>>, peers: Query<&Peer, With<PeerState>>) {
    for CountClients { reply } in commands.0.drain(..) {
        let mut clients = BTreeMap::new();
        for peer in &peers {
            *clients.entry(peer.client.to_string()).or_default() += 1;
        }
        reply.send(clients);
    }
}
