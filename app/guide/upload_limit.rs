// Limits the upload rate of each peer.

use std::time::Duration;

use ecs_torrent::prelude::*;

/// Sends at most this many bytes per second to each peer.
#[derive(Resource, Debug, Clone, Copy)]
pub struct UploadLimitPlugin {
    /// Payload bytes per second, at least 1.
    pub bytes_per_s: u32,
}

/// The bytes that a peer may be sent now. Every peer that has an [`UploadQueue`] has a budget too.
#[derive(Component, Debug, Default)]
struct Budget {
    /// Negative after more was sent than the budget allowed.
    bytes: i64,
    refilled: Timestamp,
    is_waiting: bool,
}

/// Deadline at which a peer's budget is positive again.
struct Refilled(Entity);

impl Plugin for UploadLimitPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(*self)
            .init_resource::<Deadlines<Refilled>>()
            .register_required_components::<UploadQueue, Budget>();
        // In Respond, uploading reads blocks for the peers that are in the serve queue.
        app.add_systems(
            Tick,
            (charge, hold_back)
                .chain()
                .after(TickSet::Decide)
                .before(TickSet::Respond),
        );
    }
}

fn charge(mut sent: MessageReader<BlockSent>, mut budgets: Query<&mut Budget>) {
    for message in sent.read() {
        if let Ok(mut budget) = budgets.get_mut(message.peer) {
            budget.bytes -= i64::from(message.len);
        }
    }
}

/// Takes peers without a budget out of the serve queue, and puts them back when they have one. Visits only peers that
/// wait to be served.
fn hold_back(
    limit: Res<UploadLimitPlugin>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut refilled: ResMut<Deadlines<Refilled>>,
    mut serve: ResMut<ServeQueue>,
    mut peers: Query<(&mut UploadQueue, &mut Budget)>,
) {
    let now = clock.now();
    while let Some(Refilled(peer)) = refilled.pop_due(now) {
        if let Ok((mut uploads, mut budget)) = peers.get_mut(peer) {
            budget.is_waiting = false;
            serve.add(peer, &mut uploads);
        }
    }
    for _ in 0..serve.len() {
        let Some(peer) = serve.pop() else { break };
        let Ok((mut uploads, mut budget)) = peers.get_mut(peer) else {
            continue;
        };
        uploads.unlist();
        let missing_bytes = budget.refill(now, limit.bytes_per_s);
        if missing_bytes == 0 {
            serve.add(peer, &mut uploads);
        } else if !budget.is_waiting {
            budget.is_waiting = true;
            let wait = Duration::from_secs(missing_bytes) / limit.bytes_per_s;
            refilled.set(now + wait, Refilled(peer));
        }
    }
    if let Some(next) = refilled.next() {
        wakeup.at(next);
    }
}

impl Budget {
    /// Adds the bytes of the time that has passed, up to those of a tenth of a second. Returns the bytes that are
    /// missing until the budget is positive.
    fn refill(&mut self, now: Timestamp, bytes_per_s: u32) -> u64 {
        let earned = now.since(self.refilled).as_micros() * u128::from(bytes_per_s) / 1_000_000;
        if earned > 0 {
            let most = i64::from(bytes_per_s / 10).max(1);
            let earned = i64::try_from(earned).unwrap_or(i64::MAX);
            self.bytes = self.bytes.saturating_add(earned).min(most);
            self.refilled = now;
        }
        u64::try_from(1 - self.bytes).unwrap_or(0)
    }
}
