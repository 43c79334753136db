//! The schedule: no two systems in an order that nobody chose, and a diagram that tells the truth.

use std::net::IpAddr;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::schedule::{LogLevel, ScheduleBuildSettings, Schedules};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::schedule::Tick;
use ecs_torrent::engine::sim::Simulation;
use ecs_torrent::systems::TorrentPlugins;

fn with_schedule<T>(look: impl FnOnce(&mut World, &mut Schedule) -> T) -> T {
    let mut sim = Simulation::new(0, Duration::ZERO);
    let node = sim.add_node(IpAddr::from([10, 0, 0, 1]), Settings::default(), TorrentPlugins);
    let world = sim.node(node).world_mut();
    let mut schedule = world
        .resource_mut::<Schedules>()
        .remove(Tick)
        .expect("the engine has a tick");
    look(world, &mut schedule)
}

/// What the build of the schedule says of its ambiguities.
fn ambiguities(world: &mut World, schedule: &mut Schedule) -> Result<(), String> {
    schedule.set_build_settings(ScheduleBuildSettings {
        ambiguity_detection: LogLevel::Error,
        ..ScheduleBuildSettings::default()
    });
    let result = schedule.initialize(world).map(drop);
    result.map_err(|error| error.to_string(schedule.graph(), world))
}

#[test]
fn no_two_systems_are_ambiguous() {
    with_schedule(|world, schedule| assert_eq!(ambiguities(world, schedule), Ok(())));
}

/// The test above would see one.
#[test]
fn an_ambiguity_is_found() {
    fn one(_: ResMut<Settings>) {}
    fn other(_: ResMut<Settings>) {}
    with_schedule(|world, schedule| {
        schedule.add_systems((one, other));
        let found = ambiguities(world, schedule).unwrap_err();
        assert!(found.contains("one") && found.contains("other"), "{found}");
    });
}
