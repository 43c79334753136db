//! Small swarms whose peers find each other by means other than a tracker, and private ones in the same engines.

use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::sim::{NewContent, Path, TrackerMode};
use ecs_torrent::sim::hostile::{Hostility, NodeHostility};
use ecs_torrent::sim::{Act, Link, Scenario, Who};

use super::{Dice, LINK, MIB, seconds};

/// The peers know nothing but nodes of the DHT, some of which are hostile. Nodes by which the network is entered, and
/// leechers, are killed and come back.
pub fn by_dht(dice: &mut Dice) -> Scenario {
    let (count, nodes) = (dice.within(3, 8), dice.within(3, 7));
    let path = Path::new(dice.millis(1, 100)).with_jitter(dice.millis(0, 10));
    let mut scenario = Scenario::new("a swarm found by the DHT alone")
        .torrent(dice.torrent())
        .seeds(dice.within(1, 3), LINK)
        .leeches(count, LINK)
        .bystanders(nodes, LINK)
        .path(Path {
            loss: dice.one(&[0.0, 0.0, 0.01]),
            ..path
        })
        .without_tracker()
        .within(3.0, seconds(120));
    scenario = with_hostile_nodes(dice, scenario, &[Who::Bystander(0), Who::Bystander(1)]);
    for number in 0..dice.within(0, 4) {
        let who = match dice.within(0, 2) {
            0 => Who::Bystander(number % nodes),
            _ => dice.leech(count),
        };
        let time = dice.moment(10, 6_000);
        scenario = scenario
            .at(time, Act::Killed(who))
            .at(time + dice.moment(10, 10_000), Act::Starts(who));
    }
    scenario
}

/// Adds some hostile nodes. The DHT is entered by `honest` nodes and by one hostile one.
fn with_hostile_nodes(dice: &mut Dice, mut scenario: Scenario, honest: &[Who]) -> Scenario {
    for _ in 0..dice.within(1, 4) {
        scenario = scenario.hostile_nodes(1, dice.one(&NodeHostility::ALL));
    }
    scenario.with_dht(honest.iter().copied().chain([Who::HostileNode(0)]))
}

/// A private torrent with a tracker, while the same engines exchange public ones by every other means. Outsiders that
/// know the private torrent's info-hash search for it in the DHT and in the local network.
pub fn private_beside_public(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 6);
    let torrent = NewContent {
        is_private: true,
        ..dice.torrent()
    };
    let mut scenario = Scenario::new("a private torrent beside public ones")
        .torrent(torrent)
        .settings(Settings::default())
        .seeds(1, LINK)
        .leeches(count, LINK)
        .beside(dice.within(1, 3))
        .bystanders(dice.within(1, 3), LINK)
        .by_outsiders()
        .within(3.0, seconds(90));
    // Public peers meet in the local network or in the DHT.
    if dice.within(0, 2) == 0 {
        scenario = scenario.in_reach_of_multicast();
    }
    scenario = with_hostile_nodes(dice, scenario, &[Who::Seed(0), Who::Bystander(0)]);
    for _ in 0..dice.within(0, 2) {
        let (who, time) = (dice.leech(count), dice.moment(10, 6_000));
        scenario = scenario
            .at(time, Act::Killed(who))
            .at(time + dice.moment(10, 5_000), Act::Starts(who));
    }
    scenario
}

/// The tracker names one peer to all others, and never answers again. That peer leaves when the others know each other.
pub fn after_the_tracker(dice: &mut Dice) -> Scenario {
    let (seeds, count) = (dice.within(1, 3), dice.within(3, 10));
    let known = std::net::SocketAddr::from(([10, 0, 0, seeds as u8 + 1], 6881));
    let slow = Link::symmetric(64 << 10);
    let mut scenario = Scenario::new("a swarm whose tracker is gone for good")
        .torrent(NewContent {
            len: MIB + dice.within(0, MIB),
            ..dice.torrent()
        })
        .seeds(seeds, LINK)
        .leeches(count, LINK)
        .at(dice.millis(0, 1), Act::Tracker(TrackerMode::Peers(vec![known])))
        .at(dice.millis(2_000, 5_000), Act::Tracker(TrackerMode::Down))
        .at(dice.millis(8_000, 12_000), Act::Killed(Who::Leech(0)))
        .within(8.0, seconds(90));
    for number in 0..seeds {
        scenario = scenario.at(dice.millis(300, 600), Act::LinkIs(Who::Seed(number), slow));
    }
    scenario
}

/// The metadata has several pieces. Most peers that offer it send wrong bytes, lie about its size, refuse to send it,
/// or never answer.
pub fn hostile_metadata(dice: &mut Dice) -> Scenario {
    let count = dice.within(2, 6);
    let torrent = NewContent {
        len: dice.within(420 << 10, 560 << 10),
        piece_length: 512,
        ..NewContent::default()
    };
    let mut scenario = Scenario::new("hostile peers with metadata")
        .torrent(torrent)
        .seeds(1, LINK)
        .leeches(count, LINK)
        .path(Path::new(dice.millis(1, 100)).with_jitter(dice.millis(0, 10)))
        .introduced_by(Who::Seed(0))
        .by_magnet_links()
        .within(3.0, seconds(120));
    for _ in 0..dice.within(2, 6) {
        scenario = scenario.hostiles(1, dice.one(&Hostility::METADATA), LINK);
    }
    scenario
}

/// One peer has the metadata, which has several pieces, and a slow link. All others arrive within two seconds.
pub fn flash_crowd_with_links(dice: &mut Dice) -> Scenario {
    let count = dice.within(4, 10);
    let torrent = NewContent {
        len: dice.within(420 << 10, 560 << 10),
        piece_length: 512,
        ..NewContent::default()
    };
    let path = Path::new(dice.millis(1, 150)).with_jitter(dice.millis(0, 20));
    let mut scenario = Scenario::new("a flash crowd with magnet links")
        .torrent(torrent)
        .seeds(1, Link::symmetric(dice.one(&[32 << 10, 64 << 10, 256 << 10])))
        .late_leeches(count, LINK)
        .path(path)
        .introduced_by(Who::Seed(0))
        .by_magnet_links()
        .within(2.5, seconds(60));
    for who in (0..count).map(Who::Leech) {
        scenario = scenario.at(dice.moment(0, 2_000), Act::Starts(who));
    }
    scenario
}
