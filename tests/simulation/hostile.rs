//! How much harm hostile peers do: honest ones take a stated multiple of the time that they take among themselves.

use std::time::Duration;

use ecs_torrent::engine::sim::NewContent;
use ecs_torrent::sim::hostile::Hostility;
use ecs_torrent::sim::{Line, Scenario};

use crate::scenarios::MIB;

const LINE: Line = Line::symmetric(2 << 20);

/// One seed and eight leechers, and hostile peers that have lines as good as theirs.
fn crowd(seed: u64, hostiles: &[Hostility]) -> Scenario {
    let crowd = Scenario::new(format!("eight and {hostiles:?}"))
        .seed(seed)
        .torrent(NewContent {
            len: 4 * MIB,
            piece_length: 256 << 10,
            ..NewContent::default()
        })
        .seeds(1, LINE)
        .leeches(8, LINE)
        .within(6.0, Duration::from_secs(240));
    let add = |crowd: Scenario, hostility: &Hostility| crowd.hostiles(1, *hostility, LINE);
    hostiles.iter().fold(crowd, add)
}

/// How many times as long the last leecher takes because of hostile peers, over a few seeds.
#[track_caller]
fn harm(hostiles: &[Hostility]) -> f64 {
    let time = |hostiles: &[Hostility]| -> f64 {
        let times = (1..=5).map(|seed| {
            let outcome = crowd(seed, hostiles).run();
            assert!(outcome.is_good(), "{outcome}");
            outcome.efficiency()
        });
        times.sum()
    };
    time(hostiles) / time(&[])
}

#[track_caller]
fn expect_harm(hostiles: &[Hostility], most: f64) {
    let harm = harm(hostiles);
    eprintln!("{hostiles:?}: {harm:.2} x the time without");
    assert!(
        harm <= most,
        "{hostiles:?}: {harm:.2} x the time without, at most {most}"
    );
}

/// What was asked of who sends nothing is soon asked of others.
#[test]
fn silent_peers_hold_nobody_up_for_long() {
    for hostility in [Hostility::EmptyPromises, Hostility::LateData, Hostility::Floods] {
        expect_harm(&[hostility; 4], 2.0);
    }
}

/// A piece that failed is to have one author: who has been silent is not chosen.
#[test]
fn liars_do_not_help_the_silent() {
    use Hostility::{BadData, EmptyPromises, SomeBadData};
    expect_harm(&[EmptyPromises, EmptyPromises, BadData, SomeBadData], 1.75);
}

#[test]
fn one_of_each_costs_less_than_as_much_again() {
    expect_harm(&Hostility::ALL, 1.6);
}
