// Closes connections to clients that are blocked by name.

use ecs_torrent::prelude::*;

/// Closes each connection to a client whose name begins with one of these.
#[derive(Resource, Debug, Clone)]
pub struct ClientBlockPlugin(pub Vec<String>);

impl Plugin for ClientBlockPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(self.clone()).add_systems(
            Tick,
            // The engine learns a client's name from the peer id, and later from the extension handshake.
            close_blocked
                .after(DecideSet::Extensions)
                .before(DecideSet::Availability)
                .in_set(TickSet::Decide),
        );
    }
}

fn close_blocked(
    mut connected: MessageReader<PeerConnected>,
    mut extended: MessageReader<ExtensionHandshakeReceived>,
    blocked: Res<ClientBlockPlugin>,
    peers: Query<&Peer>,
    mut reaper: ResMut<Reaper>,
) {
    let connected = connected.read().map(|message| message.peer);
    for peer in connected.chain(extended.read().map(|message| message.peer)) {
        let Ok(Peer { client, .. }) = peers.get(peer) else {
            continue;
        };
        if blocked.0.iter().any(|name| client.starts_with(name.as_str())) {
            // Logged, and part of `PeerDisconnected`. The address is not dialed again.
            let reason = PluginReason::new("client block", format!("{client} is blocked")).never_again();
            reaper.close(peer, reason);
        }
    }
}
