// Names peers for torrents: a source of peers of the plugin's own.

use std::net::SocketAddr;

use ecs_torrent::prelude::*;

/// Names the same peers for every torrent that starts. It may be added several times, once for each source.
#[derive(Debug, Clone)]
pub struct PeerListPlugin {
    /// Name of the source, as statistics show it.
    pub name: &'static str,
    /// Whether private torrents may have its peers (BEP 27): only if the torrent's tracker or the user controls the
    /// list.
    pub serves_private: bool,
    /// The addresses. The plugin claims that they are seeds.
    pub peers: Vec<SocketAddr>,
}

#[derive(Resource, Default)]
struct PeerLists(Vec<(CandidateSource, Vec<SocketAddr>)>);

impl Plugin for PeerListPlugin {
    fn build(&self, app: &mut App) {
        // The engine keeps an existing registry, so that the order of the plugins does not matter.
        let mut sources = app.world_mut().get_resource_or_init::<CandidateSources>();
        let source = sources.register(self.name, self.serves_private);
        if !app.world().contains_resource::<PeerLists>() {
            app.add_systems(Tick, name_peers.in_set(DecideSet::Discovery));
        }
        let mut lists = app.world_mut().get_resource_or_init::<PeerLists>();
        lists.0.push((source, self.peers.clone()));
    }

    fn is_unique(&self) -> bool {
        false
    }
}

fn name_peers(
    mut started: MessageReader<TorrentStarted>,
    lists: Res<PeerLists>,
    torrents: Query<&AllowedSources>,
    mut found: MessageWriter<CandidatesFound>,
) {
    for &TorrentStarted { torrent } in started.read() {
        let Ok(allowed) = torrents.get(torrent) else { continue };
        // The engine refuses peers of a source that the torrent does not allow. A source that asks other hosts has to
        // check before it asks: they would learn of a private torrent.
        for (source, peers) in lists.0.iter().filter(|(source, _)| allowed.has(*source)) {
            let flags = CandidateFlags::SEED;
            let peers = peers.iter().map(|&address| FoundPeer { address, flags });
            found.write(CandidatesFound {
                torrent,
                peers: peers.collect(),
                source: *source,
                // No other host has named these peers.
                informant: None,
            });
        }
    }
}
