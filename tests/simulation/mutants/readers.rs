//! Broken readers of files.

use ecs_torrent::bevy_ecs::schedule::Schedules;
use ecs_torrent::bevy_ecs::system::ScheduleSystem;
use ecs_torrent::components::readers::PieceDeadlines;
use ecs_torrent::engine::ports::disk::ReadPurpose;
use ecs_torrent::sim::invariants::{Violation, Violations};
use ecs_torrent::systems::readers::READS;

use super::*;
use crate::readers::{Bed, megabits};

/// Reads the beginning of a file with a broken engine, and some more of it a while later. Returns what the simulator
/// finds.
fn violations<M>(mutant: impl IntoScheduleConfigs<ScheduleSystem, M>) -> Vec<Violation> {
    let content = NewContent {
        len: 16 << 20,
        piece_length: 64 << 10,
        ..NewContent::default()
    };
    let mut bed = Bed::new(9, content.make(), &[megabits(8)]);
    let mut schedules = bed.leecher_world().resource_mut::<Schedules>();
    schedules.add_systems(Tick, mutant.after(DecideSet::Readers).before(TickSet::Respond));
    let reader = bed.open(0).unwrap();
    bed.sim.run_for(Duration::from_secs(1));
    for offset in [0, 64 << 10] {
        drop(bed.begin(reader.id, offset, 1));
        bed.sim.run_for(Duration::from_secs(2));
    }
    bed.close(reader.id);
    bed.sim.run_for(Duration::from_secs(1));
    bed.leecher_world().resource_mut::<Violations>().take()
}

fn has(found: &[Violation], what: &str) -> bool {
    let is_such = |violation: &Violation| violation.invariant == Invariant::Readers && violation.what.contains(what);
    found.iter().any(is_such)
}

#[test]
fn intact_readers_raise_no_violations() {
    assert_eq!(violations(|| ()), []);
}

/// A torrent that keeps the deadlines of readers that are closed.
fn keep_deadlines(
    mut commands: Commands,
    mut last: Local<Option<PieceDeadlines>>,
    torrents: Query<(Entity, Option<&PieceDeadlines>), With<Torrent>>,
) {
    for (torrent, deadlines) in &torrents {
        if let Some(deadlines) = deadlines {
            *last = Some(deadlines.clone());
        } else if let Some(last) = &*last {
            commands.entity(torrent).insert(last.clone());
        }
    }
}

#[test]
fn deadlines_without_a_reader_are_found_out() {
    let found = violations(keep_deadlines);
    assert!(has(&found, "is not ahead of a reader"), "{found:?}");
}

/// A window with a piece that the reader has got already.
fn add_held(clock: Res<Clock>, mut torrents: Query<&mut PieceDeadlines>) {
    for mut deadlines in &mut torrents {
        let with_first = deadlines.iter().chain([(clock.now(), 0)]);
        let with_first = PieceDeadlines::new(with_first);
        deadlines.set_if_neq(with_first);
    }
}

#[test]
fn a_deadline_of_a_held_piece_is_found_out() {
    let found = violations(add_held);
    assert!(has(&found, "is held"), "{found:?}");
}

/// A reader that reads pieces that are not verified.
fn read_all(mut disk: ResMut<DiskPort>, torrents: Query<(Entity, &Storage, &PieceDeadlines), Added<PieceDeadlines>>) {
    for (torrent, storage, deadlines) in &torrents {
        let Some((_, piece)) = deadlines.iter().next() else {
            continue;
        };
        disk.push(DiskRequest::Read {
            tag: JobTag::new(READS, torrent),
            storage: storage.id,
            span: Span {
                offset: u64::from(piece) * (64 << 10),
                len: 16 << 10,
            },
            purpose: ReadPurpose::Serve,
        });
    }
}

#[test]
fn a_reader_of_unverified_bytes_is_found_out() {
    let found = violations(read_all);
    assert!(has(&found, "is read and not held"), "{found:?}");
}
