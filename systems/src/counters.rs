//! Transfer counters and rates, updated from messages outside the data path.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{BlockAccepted, BlockSent, BlockWasted, PieceRejected, SessionLoaded};
use ecs_torrent_components::peer::{PeerRates, PeerState};
use ecs_torrent_components::torrent::{Counters, EngineCounters, TorrentRates};
use ecs_torrent_engine::schedule::Tick;

use crate::conditions::has_messages;
use crate::picking::Supply;
use crate::{IntakeSet, ReapSet};

/// Counts transferred bytes.
pub struct CountersPlugin;

impl Plugin for CountersPlugin {
    fn build(&self, app: &mut App) {
        app.register_required_components::<PeerState, PeerRates>();
        app.init_resource::<EngineCounters>();
        app.add_observer(restore_counters).add_systems(
            Tick,
            (
                count_sent.run_if(has_messages::<BlockSent>).in_set(IntakeSet::Count),
                count_received.in_set(ReapSet::Count),
            ),
        );
    }
}

/// Continues the counters of an earlier run.
fn restore_counters(loaded: On<SessionLoaded>, mut torrents: Query<&mut Counters>) {
    if let Ok(mut counters) = torrents.get_mut(loaded.torrent) {
        *counters = loaded.session.counters();
    }
}

fn count_received(
    clock: Res<Clock>,
    mut accepted: MessageReader<BlockAccepted>,
    mut wasted: MessageReader<BlockWasted>,
    mut rejected: MessageReader<PieceRejected>,
    mut supply: ResMut<Supply>,
    mut engine: ResMut<EngineCounters>,
    mut torrents: Query<(&mut Counters, &mut TorrentRates)>,
) {
    for &BlockAccepted { torrent, len, .. } in accepted.read() {
        engine.downloaded += u64::from(len);
        let Ok((mut counters, mut rates)) = torrents.get_mut(torrent) else {
            continue;
        };
        counters.downloaded = counters.downloaded.saturating_add(len.into());
        rates.add_received(clock.now(), u64::from(len));
    }
    for &BlockWasted { torrent, len, .. } in wasted.read() {
        engine.wasted += u64::from(len);
        if let Ok((mut counters, _)) = torrents.get_mut(torrent) {
            counters.wasted = counters.wasted.saturating_add(len.into());
        }
    }
    for PieceRejected {
        torrent,
        received_bytes,
        ..
    } in rejected.read()
    {
        engine.corrupt += received_bytes;
        if let Ok((mut counters, _)) = torrents.get_mut(*torrent) {
            counters.corrupt = counters.corrupt.saturating_add(*received_bytes);
        }
    }
    for (torrent, bytes) in supply.dropped.drain(..) {
        engine.wasted += bytes;
        if let Ok((mut counters, _)) = torrents.get_mut(torrent) {
            counters.dropped = counters.dropped.saturating_add(bytes);
        }
    }
}

fn count_sent(
    clock: Res<Clock>,
    mut sent: MessageReader<BlockSent>,
    mut engine: ResMut<EngineCounters>,
    mut torrents: Query<(&mut Counters, &mut TorrentRates)>,
    mut peers: Query<&mut PeerRates>,
) {
    let now = clock.now();
    for &BlockSent { torrent, peer, len } in sent.read() {
        engine.uploaded += u64::from(len);
        if let Ok((mut counters, mut rates)) = torrents.get_mut(torrent) {
            counters.uploaded = counters.uploaded.saturating_add(len.into());
            rates.add_sent(now, u64::from(len));
        }
        if let Ok(mut rates) = peers.get_mut(peer) {
            rates.upload.add(now, u64::from(len));
            rates.uploaded += u64::from(len);
            rates.last_payload = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Bed, NOW};

    #[test]
    fn sent_blocks_count_for_the_torrent_and_the_peer() {
        let mut bed = Bed::new(());
        bed.world.init_resource::<EngineCounters>();
        bed.world.entity_mut(bed.torrent).insert(crate::testing::torrent());
        let peer = bed.peer();
        let torrent = bed.torrent;
        for _ in 0..2 {
            bed.run_after(BlockSent { torrent, peer, len: 7 }, count_sent);
        }
        assert_eq!(bed.get::<Counters>(torrent).uploaded, 14);
        assert_eq!(bed.world.resource::<EngineCounters>().uploaded, 14);
        let rates: &PeerRates = bed.get(peer);
        assert_eq!((rates.uploaded, rates.last_payload), (14, Some(NOW)));
    }
}
