//! Timeouts: closes peers that time out, and sends keep-alives so that peers do not time us out.

use std::time::Duration;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::peer::{CloseReason, FlushQueue, Outbox, Peer, Stage, TimeoutKind, Wire};
use ecs_torrent_components::reaper::Reaper;
use ecs_torrent_components::settings::{PeerSettings, Settings, seconds};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::time::Timestamp;
use ecs_torrent_protocol::wire::Message;

use crate::DecideSet;

/// Times peers out, and sends keep-alives.
pub struct TimeoutsPlugin;

impl Plugin for TimeoutsPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Deadlines<PeerCheck>>()
            .add_systems(Tick, check_peers.in_set(DecideSet::Timeouts))
            .add_observer(watch_new_peer);
    }
}

/// Deadline of a peer's next check. Each peer has exactly one; each check sets the next.
#[derive(Debug)]
struct PeerCheck(Entity);

/// Interval between two checks of a peer: a timeout is detected at most this late.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Schedules the first check of a new peer. An observer, since a system that looks for new peers would visit all peers
/// in each tick.
fn watch_new_peer(new: On<Add<Peer>>, clock: Res<Clock>, mut checks: ResMut<Deadlines<PeerCheck>>) {
    checks.set(clock.now() + LOOK_INTERVAL, PeerCheck(new.entity));
}

fn check_peers(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    settings: Res<Settings>,
    mut checks: ResMut<Deadlines<PeerCheck>>,
    mut reaper: ResMut<Reaper>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<(&Peer, &Wire, &mut Outbox)>,
) {
    let now = clock.now();
    while let Some(PeerCheck(entity)) = checks.pop_due(now) {
        let Ok((peer, wire, mut outbox)) = peers.get_mut(entity) else {
            continue;
        };
        if let Some(kind) = overdue(now, peer, wire, &outbox, &settings.peers) {
            reaper.close(entity, CloseReason::Timeout(kind));
            continue;
        }
        if peer.stage == Stage::Connected && now.since(outbox.last_sent) >= seconds(settings.peers.keep_alive_s) {
            flush.send(entity, &mut outbox, &Message::KeepAlive);
        }
        checks.set(now + LOOK_INTERVAL, PeerCheck(entity));
    }
    wakeup.at_next(checks.next());
}

/// Returns the timeout that a peer has exceeded, if any. Connecting has its own limit, at the Net port.
fn overdue(now: Timestamp, peer: &Peer, wire: &Wire, outbox: &Outbox, limits: &PeerSettings) -> Option<TimeoutKind> {
    let has_passed = |since: Timestamp, limit: u64| now.since(since) >= seconds(limit);
    // Time in which we read nothing, because downloads are limited, does not count.
    let not_limited = |since: Timestamp| wire.limited_until(now).map_or(since, |limited| limited.max(since));
    let is_past_send = outbox.unsent_bytes > 0 && has_passed(outbox.last_progress, limits.send_timeout_s);
    match peer.stage {
        Stage::Connecting => None,
        // Fault 21: bytes that trickle in do not extend the limit; the whole handshake has to arrive in time.
        Stage::Handshaking => {
            has_passed(not_limited(peer.since), limits.handshake_timeout_s).then_some(TimeoutKind::Handshake)
        }
        Stage::Connected
            if wire
                .frame_since
                .is_some_and(|since| has_passed(not_limited(since), limits.frame_timeout_s)) =>
        {
            Some(TimeoutKind::Frame)
        }
        // Fault 25.
        Stage::Connected if is_past_send => Some(TimeoutKind::Send),
        Stage::Connected => {
            has_passed(not_limited(wire.last_message), limits.idle_timeout_s).then_some(TimeoutKind::Idle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, NOW};

    #[test]
    fn a_connection_without_messages_is_kept_alive() {
        for (stage, silence, is_sent) in [
            (Stage::Connected, 110, true),
            (Stage::Connected, 109, false),
            (Stage::Handshaking, 110, false),
        ] {
            let mut bed = Bed::new(TimeoutsPlugin);
            let peer = bed.peer();
            let since = |seconds: u64| Timestamp::from_nanos(NOW.as_nanos() - seconds * 1_000_000_000);
            let mut connection = bed.get_mut::<Peer>(peer);
            (connection.stage, connection.since) = (stage, NOW);
            bed.get_mut::<Wire>(peer).last_message = NOW;
            bed.get_mut::<Outbox>(peer).last_sent = since(silence);
            bed.world
                .resource_mut::<Deadlines<PeerCheck>>()
                .set(NOW, PeerCheck(peer));
            bed.run(check_peers);
            assert!(bed.has_sent(peer, &[Message::KeepAlive][..usize::from(is_sent)]));
            let next = bed.world.resource::<Deadlines<PeerCheck>>().next();
            assert_eq!(next, Some(NOW + LOOK_INTERVAL));
        }
    }
}
