//! Dates of torrents: when they were added and completed.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{SessionLoaded, TorrentCompleted};
use ecs_torrent_components::torrent::{Dates, Torrent};
use ecs_torrent_engine::schedule::{Tick, TickSet};

use crate::DecideSet;
use crate::conditions::has_messages;

/// Records the dates of torrents.
pub struct DatesPlugin;

impl Plugin for DatesPlugin {
    fn build(&self, app: &mut App) {
        app.add_observer(record_added).add_observer(restore_dates).add_systems(
            Tick,
            record_completed
                .run_if(has_messages::<TorrentCompleted>)
                .after(DecideSet::Lifecycle)
                .before(DecideSet::Sessions)
                .in_set(TickSet::Decide),
        );
    }
}

/// Dates a new torrent. A torrent of an earlier run gets the date in its session.
fn record_added(added: On<Add<Torrent>>, clock: Res<Clock>, mut torrents: Query<&mut Dates>) {
    if let Ok(mut dates) = torrents.get_mut(added.entity) {
        dates.added = clock.unix_seconds();
    }
}

/// Takes the dates of an earlier run. Sessions of earlier versions have none: their torrents keep the date of this
/// start.
fn restore_dates(loaded: On<SessionLoaded>, mut torrents: Query<&mut Dates>) {
    if let Ok(mut dates) = torrents.get_mut(loaded.torrent) {
        let session = &loaded.session;
        *dates = Dates {
            added: session.added_at.unwrap_or(dates.added),
            completed: session.completed_at.or(dates.completed),
            active_before: session.active_at.or(dates.active_before),
        };
    }
}

fn record_completed(
    clock: Res<Clock>,
    mut completed: MessageReader<TorrentCompleted>,
    mut torrents: Query<&mut Dates>,
) {
    for message in completed.read() {
        if let Ok(mut dates) = torrents.get_mut(message.torrent) {
            dates.completed = Some(clock.unix_seconds());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ecs_torrent_components::session::Session;

    use super::*;
    use crate::testing::{Bed, torrent};

    #[test]
    fn a_torrent_has_the_dates_of_its_session_and_of_its_completion() {
        let mut bed = Bed::new(());
        bed.world.add_observer(record_added);
        bed.world.add_observer(restore_dates);
        bed.world
            .resource_mut::<Clock>()
            .set_epoch(Duration::from_secs(2_000_000));
        bed.world.entity_mut(bed.torrent).insert(torrent());
        let now = bed.world.resource::<Clock>().unix_seconds();
        let dates = |bed: &Bed| *bed.get::<Dates>(bed.torrent);
        assert_eq!((dates(&bed).added, dates(&bed).completed), (now, None));

        // A session of an earlier version has no dates.
        let id = torrent().id();
        let load = |bed: &mut Bed, session: Session| {
            bed.world.trigger(SessionLoaded {
                torrent: bed.torrent,
                session: session.into(),
            });
        };
        load(&mut bed, Session::new(id));
        assert_eq!(dates(&bed).added, now);
        let session = Session {
            added_at: Some(7),
            completed_at: Some(8),
            active_at: Some(9),
            ..Session::new(id)
        };
        load(&mut bed, session);
        let expected = Dates {
            added: 7,
            completed: Some(8),
            active_before: Some(9),
        };
        assert_eq!(dates(&bed), expected);

        let torrent = bed.torrent;
        bed.run_after(TorrentCompleted { torrent }, record_completed);
        assert_eq!((dates(&bed).added, dates(&bed).completed), (7, Some(now)));
    }
}
