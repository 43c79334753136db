//! A plugin that keeps a diary of each torrent and stops a torrent at a share ratio.
//!
//! Uses only the public interface of ecs-torrent. The package depends on nothing else. The other modules are the
//! examples of the plugin guide, `ecs_torrent::guide`.

use ecs_torrent::prelude::*;

/// The guide's example of a policy.
#[path = "../../../app/guide/client_block.rs"]
pub mod client_block;
/// The guide's example of commands.
#[path = "../../../app/guide/client_count.rs"]
pub mod client_count;
/// The guide's example of statistics.
#[path = "../../../app/guide/client_stats.rs"]
pub mod client_stats;
/// The guide's example of picking.
#[path = "../../../app/guide/ends_first.rs"]
pub mod ends_first;
/// The guide's example of a source of peers.
#[path = "../../../app/guide/peer_list.rs"]
pub mod peer_list;
/// The guide's example of a stop participant.
#[path = "../../../app/guide/stop_log.rs"]
pub mod stop_log;
/// The guide's example of rates.
#[path = "../../../app/guide/upload_limit.rs"]
pub mod upload_limit;

/// Compiles the README's code as a package that depends on ecs-torrent only.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod mottos;
mod run_count;
mod shelf;

pub use self::mottos::{MottoPlugin, Mottos};
pub use self::run_count::{GetRunCount, RunCountPlugin};
pub use self::shelf::{ShelfPlugin, Shelves};

/// Keeps a [`Diary`] on every torrent, and stops it at a share ratio.
#[derive(Debug, Clone, Copy)]
pub struct DiaryPlugin {
    /// Share ratio at which a torrent is stopped: uploaded bytes divided by the torrent's size.
    pub stop_at_ratio: f64,
}

/// The completed pieces of a torrent, in order of completion.
#[derive(Component, Debug, Clone, Default, PartialEq, Eq)]
pub struct Diary {
    /// Piece indexes.
    pub pieces: Vec<u32>,
}

/// Share ratio that a torrent must reach before it is stopped.
#[derive(Resource, Debug)]
struct StopAtRatio(f64);

impl Plugin for DiaryPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(StopAtRatio(self.stop_at_ratio)).add_systems(
            Tick,
            (
                begin_diaries.after(TickSet::Announce).before(TickSet::Decide),
                write_diaries.in_set(TickSet::Decide),
                stop_at_ratio.in_set(TickSet::Decide),
            ),
        );
    }
}

fn begin_diaries(mut added: MessageReader<TorrentAdded>, mut commands: Commands) {
    for TorrentAdded { torrent, .. } in added.read() {
        commands.entity(*torrent).insert(Diary::default());
    }
}

fn write_diaries(mut stored: MessageReader<PieceStored>, mut diaries: Query<&mut Diary>) {
    for PieceStored { torrent, index, .. } in stored.read() {
        if let Ok(mut diary) = diaries.get_mut(*torrent) {
            diary.pieces.push(*index);
        }
    }
}

fn stop_at_ratio(
    mut sent: MessageReader<BlockSent>,
    limit: Res<StopAtRatio>,
    torrents: Query<(&Counters, &Layout)>,
    mut stops: MessageWriter<RequestStop>,
) {
    for &BlockSent { torrent, .. } in sent.read() {
        let Ok((counters, Layout(geometry))) = torrents.get(torrent) else {
            continue;
        };
        if counters.uploaded as f64 >= geometry.total_size() as f64 * limit.0 {
            stops.write(RequestStop { torrent });
        }
    }
}

/// Writes each diary to the log before its torrent's session is written: the stop waits for it.
#[derive(Debug, Clone, Copy)]
pub struct CloseDiaryPlugin;

/// The stop participant that closes diaries.
struct Diaries;

/// Diaries that were closed: the number of pieces in each.
#[derive(Resource, Debug, Default)]
pub struct ClosedDiaries(pub Vec<usize>);

impl Plugin for CloseDiaryPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<ClosedDiaries>()
            .add_stop_participant::<Diaries>(StopPhase::WriteSession, None)
            .add_systems(Tick, close_diaries.in_set(TickSet::Respond));
    }
}

fn close_diaries(
    mut duty: StopDuty<Diaries>,
    mut waiting: Local<Vec<(Entity, u32)>>,
    mut closed: ResMut<ClosedDiaries>,
    diaries: Query<&Diary>,
) {
    // Work that takes three ticks.
    waiting.extend(duty.take().into_iter().map(|turn| (turn.torrent, 3)));
    waiting.retain_mut(|(torrent, left)| {
        *left -= 1;
        if *left > 0 {
            duty.wake();
            return true;
        }
        closed
            .0
            .push(diaries.get(*torrent).map_or(0, |diary| diary.pieces.len()));
        duty.finish(*torrent);
        false
    });
}
