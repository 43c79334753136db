// Downloads the first and last pieces of each torrent first. The engine does so for each file of a torrent whose user
// requests it (`PieceOrder::ends_first`); this plugin does it for all torrents.

use ecs_torrent::prelude::*;

/// Gives the first and last `count` pieces of every torrent a higher priority.
#[derive(Resource, Debug, Clone, Copy)]
pub struct EndsFirstPlugin {
    /// Number of pieces at each end.
    pub count: u32,
}

impl Plugin for EndsFirstPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(*self).add_observer(raise_priorities);
    }
}

/// Runs when the picker is put on a torrent, before it chooses the first piece. Only a torrent that downloads has one.
fn raise_priorities(
    added: On<Add<Picker>>,
    ends: Res<EndsFirstPlugin>,
    mut random: ResMut<Random>,
    mut torrents: Query<(&mut Picker, &Have, &ActivePieces)>,
) {
    let Ok((mut picker, have, active)) = torrents.get_mut(added.entity) else {
        return;
    };
    let piece_count = have.len();
    let last = piece_count.saturating_sub(ends.count).max(ends.count);
    for piece in (0..ends.count.min(piece_count)).chain(last..piece_count) {
        let is_missing = !have.contains(piece) && !active.all.contains_key(&piece);
        let priority = NORMAL_PRIORITY + 1;
        picker.order.set_priority(piece, priority, is_missing, &mut random);
    }
}
