//! Hints of magnet links: everything in a link beyond the torrent's name, trackers and peers. Hints are kept until the
//! metadata is known, also across restarts. Peers that a link names by a host name are looked up.

mod peers;
#[cfg(test)]
mod tests;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::hints::{KeptHints, LinkHints};
use ecs_torrent_components::messages::{HintsGiven, SessionLoaded};
use ecs_torrent_components::torrent::{Content, Torrent};
use ecs_torrent_engine::schedule::Tick;

pub use self::peers::LinkedPeers;
use crate::DecideSet;

/// Keeps the hints of magnet links, and looks up the peers among them.
pub struct HintsPlugin;

impl Plugin for HintsPlugin {
    fn build(&self, app: &mut App) {
        app.add_observer(take_hints)
            .add_observer(restore_hints)
            .add_observer(forget_hints)
            .add_observer(peers::list_peers)
            .init_resource::<Deadlines<peers::LookupDue>>()
            .add_systems(
                Tick,
                peers::find_peers.run_if(peers::has_work).in_set(DecideSet::LinkedPeers),
            );
    }
}

/// The torrents that keep hints: those without metadata.
type Unfetched = (With<Torrent>, Without<Content>);

/// Gives a torrent the hints of a link by which it was added.
fn take_hints(given: On<HintsGiven>, mut commands: Commands, torrents: Query<Option<&KeptHints>, Unfetched>) {
    add_hints(given.torrent, &given.hints, &mut commands, &torrents);
}

/// Gives a torrent the hints of an earlier run, after those of this run.
fn restore_hints(loaded: On<SessionLoaded>, mut commands: Commands, torrents: Query<Option<&KeptHints>, Unfetched>) {
    if loaded.session.lacks_metadata {
        add_hints(loaded.torrent, &loaded.session.hints, &mut commands, &torrents);
    }
}

fn add_hints(
    torrent: Entity,
    hints: &LinkHints,
    commands: &mut Commands,
    torrents: &Query<Option<&KeptHints>, Unfetched>,
) {
    let Ok(known) = torrents.get(torrent) else { return };
    let mut all = known.map_or_else(LinkHints::default, |known| known.0.clone());
    if all.merge(hints) {
        commands.entity(torrent).insert(KeptHints(all));
    }
}

/// Drops the hints of a torrent whose metadata has become known: its torrent file contains them.
fn forget_hints(known: On<Add<Content>>, mut commands: Commands) {
    commands.entity(known.entity).remove::<KeptHints>();
}
