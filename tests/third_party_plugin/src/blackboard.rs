//! A source of peers of the plugin's own: a list of addresses that it names for every torrent.

use std::net::SocketAddr;

use ecs_torrent::components::candidates::{
    CandidateFlags, CandidateSource, CandidateSources, CandidatesFound, FoundPeer,
};
use ecs_torrent::prelude::*;

/// Names the same peers for every torrent that starts.
#[derive(Debug, Clone)]
pub struct BlackboardPlugin {
    /// Name of the source.
    pub name: &'static str,
    /// Whether private torrents may have its peers.
    pub serves_private: bool,
    /// The addresses. The plugin claims that they are seeds.
    pub peers: Vec<SocketAddr>,
}

#[derive(Resource)]
struct Blackboards(Vec<(CandidateSource, Vec<SocketAddr>)>);

impl Plugin for BlackboardPlugin {
    fn build(&self, app: &mut App) {
        let world = app.world_mut();
        let mut sources = world.get_resource_or_init::<CandidateSources>();
        let source = sources.register(self.name, self.serves_private);
        match world.get_resource_mut::<Blackboards>() {
            Some(mut known) => known.0.push((source, self.peers.clone())),
            None => {
                app.insert_resource(Blackboards(vec![(source, self.peers.clone())]))
                    .add_systems(Tick, name_peers.after(TickSet::Announce).before(TickSet::Decide));
            }
        }
    }

    /// The plugin may be added several times, once for each source.
    fn is_unique(&self) -> bool {
        false
    }
}

fn name_peers(
    mut started: MessageReader<TorrentStarted>,
    blackboards: Res<Blackboards>,
    mut found: MessageWriter<CandidatesFound>,
) {
    for &TorrentStarted { torrent } in started.read() {
        for (source, peers) in &blackboards.0 {
            let flags = CandidateFlags::SEED;
            let peers = peers.iter().map(|&address| FoundPeer { address, flags });
            found.write(CandidatesFound {
                torrent,
                peers: peers.collect(),
                source: *source,
                // The user of the plugin named them: peers in our own network only, or in the Internet.
                informant: None,
            });
        }
    }
}
