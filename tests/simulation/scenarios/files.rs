//! Swarms whose files move, have other names or are in another folder.

use ecs_torrent::components::settings::Settings;
use ecs_torrent::sim::{Act, Scenario, Who};

use super::{Dice, LINK, everybody, seconds, start_all};

/// Files are moved while they are downloaded and seeded, and in any trouble: kills hit every step of a move.
pub(super) fn moved(dice: &mut Dice) -> Scenario {
    with_files_elsewhere(dice, "moved to other folders", Act::MovesFiles)
}

/// Files get other names while they are downloaded and seeded, and in the same trouble.
pub(super) fn renamed(dice: &mut Dice) -> Scenario {
    with_files_elsewhere(dice, "renamed", Act::RenamesFiles)
}

/// Files have a suffix until they are complete, also if kills, power failures and broken disks come between the last
/// piece and the sync after which a file loses the suffix.
pub(super) fn suffixed(dice: &mut Dice) -> Scenario {
    let mut settings = Settings::default();
    settings.storage.part_suffix = true;
    in_trouble(dice, "files with a suffix", settings)
}

/// Files are in another folder until the torrent is complete, in the same trouble.
pub(super) fn in_another_folder(dice: &mut Dice) -> Scenario {
    let mut settings = Settings::default();
    settings.storage.incomplete_dir = Some("incomplete".into());
    settings.storage.part_suffix = dice.within(0, 2) == 0;
    in_trouble(dice, "a folder for incomplete torrents", settings)
}

fn in_trouble(dice: &mut Dice, name: &'static str, mut settings: Settings) -> Scenario {
    let count = dice.within(1, 6);
    settings.dht.enabled = false;
    settings.storage.preallocate = dice.within(0, 3) == 0;
    settings.session.checkpoint_interval_s = dice.within(0, 3) as u64;
    let mut scenario = Scenario::new(name)
        .settings(settings)
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(200));
    for _ in 0..dice.within(2, 8) {
        let who = dice.anybody(count);
        let act = match dice.within(0, 8) {
            0 | 1 => Act::Killed(who),
            2 | 3 => Act::PowerFails(who),
            4 => Act::Stops(who),
            5 => Act::DiskFails(who, dice.millis(10, 1_000)),
            6 => Act::SyncsFail(who, 1),
            _ => Act::Rechecks(who),
        };
        let time = dice.moment(0, 12_000);
        scenario = scenario
            .at(time, act)
            .at(time + dice.moment(100, 4_000), Act::Starts(who));
    }
    for who in everybody(count) {
        scenario = scenario.at(seconds(25), Act::Starts(who));
    }
    scenario
}

fn with_files_elsewhere(dice: &mut Dice, name: &'static str, moves: fn(Who, usize) -> Act) -> Scenario {
    let count = dice.within(1, 6);
    let mut settings = Settings::default();
    settings.dht.enabled = false;
    settings.storage.part_suffix = dice.within(0, 2) == 0;
    let mut scenario = Scenario::new(name)
        .settings(settings)
        .torrent(dice.torrent())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .within(3.0, seconds(300));
    for _ in 0..dice.within(2, 8) {
        let who = dice.anybody(count);
        let time = dice.moment(0, 20_000);
        // The steps take about as long as the time to the trouble.
        let slow = dice.within(1, 300);
        let near = time + dice.moment(0, 2_000);
        let other = match dice.within(0, 9) {
            0 => Act::Pauses(who),
            1 => Act::Unpauses(who),
            2 | 3 => Act::Killed(who),
            4 | 5 => Act::PowerFails(who),
            6 => Act::Stops(who),
            7 => Act::DiskFails(who, dice.millis(10, 1_000)),
            8 => Act::Rechecks(who),
            _ => Act::DiskFills(who),
        };
        scenario = scenario
            .at(time, Act::DiskSlows(who, slow as f64))
            .at(time, moves(who, dice.within(0, 3)))
            .at(near, other)
            .at(near + seconds(3), Act::DiskSlows(who, 1.0))
            .at(near + seconds(3), Act::DiskHasRoom(who));
        // Some of those that were killed in the middle are killed again while the next run ends the move.
        if dice.within(0, 2) == 0 {
            let again = near + dice.moment(0, 1_000);
            scenario = scenario
                .at(again, Act::Starts(who))
                .at(again + dice.moment(0, 500), Act::Killed(who));
        }
    }
    for who in everybody(count) {
        scenario = scenario.at(seconds(35), Act::Starts(who));
    }
    start_all(scenario, count, seconds(45))
}
