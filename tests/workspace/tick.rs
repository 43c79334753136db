//! The schedule of the tick: no ambiguous order between systems, and an up-to-date diagram in ARCHITECTURE.md.

use std::net::IpAddr;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::schedule::{LogLevel, ScheduleBuildSettings, Schedules};
use ecs_torrent::automation::{self, AutomationSettings, Hook};
use ecs_torrent::components::settings::Settings;
use ecs_torrent::engine::schedule::{Tick, TickSet};
use ecs_torrent::engine::sim::Simulation;
use ecs_torrent::events::EventsPlugin;
use ecs_torrent::systems::TorrentPlugins;

/// Returns all plugins of a daemon that has hooks.
fn daemon() -> (TorrentPlugins, EventsPlugin, automation::NoticePlugin) {
    let settings = AutomationSettings {
        hooks: vec![Hook::default()],
        ..AutomationSettings::default()
    };
    let (notices, _) = automation::listen(&settings).expect("there are hooks");
    (TorrentPlugins, EventsPlugin::default(), notices)
}

fn with_schedule<T>(look: impl FnOnce(&mut World, &mut Schedule) -> T) -> T {
    let mut sim = Simulation::new(0, Duration::ZERO);
    let node = sim.add_node(IpAddr::from([10, 0, 0, 1]), Settings::default(), daemon());
    let world = sim.node(node).world_mut();
    let mut schedule = world
        .resource_mut::<Schedules>()
        .remove(Tick)
        .expect("the engine has a tick");
    look(world, &mut schedule)
}

/// Checks the schedule for ambiguous system orders.
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

/// The test above would detect an ambiguity.
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

/// Lists the systems that belong to no set of the tick, apart from those of bevy itself.
fn stray_systems(world: &mut World, schedule: &mut Schedule) -> Vec<String> {
    schedule.initialize(world).unwrap();
    let sets = TickSet::ALL.map(|set| schedule.graph().systems_in_set(set.intern()).unwrap());
    let systems = schedule.systems().unwrap();
    let stray = systems.filter(|(key, _)| !sets.iter().any(|members| members.contains(key)));
    let names = stray.map(|(_, system)| system.name().to_string());
    names.filter(|name| !name.starts_with("bevy_ecs::")).collect()
}

/// The diagram would not show a system that belongs to no set, and nothing would order it.
#[test]
fn each_system_belongs_to_a_set() {
    fn stray() {}
    with_schedule(|world, schedule| {
        assert_eq!(stray_systems(world, schedule), [""; 0]);
        schedule.add_systems(stray);
        assert_eq!(stray_systems(world, schedule).len(), 1);
    });
}

/// Lists the systems of each set of the tick by feature, in execution order.
fn diagram() -> String {
    with_schedule(|world, schedule| {
        schedule.initialize(world).unwrap();
        let mut rows: Vec<(String, String, Vec<String>)> = Vec::new();
        for set in TickSet::ALL {
            let members = schedule.graph().systems_in_set(set.intern()).unwrap();
            for (_, system) in schedule.systems().unwrap().filter(|(key, _)| members.contains(key)) {
                let name = system.name().to_string();
                let path: Vec<&str> = name.split("::").collect();
                let feature = if path[0] == "ecs_torrent_engine" {
                    "engine"
                } else {
                    path[1]
                };
                let system = path[path.len() - 1].to_owned();
                let set = format!("{set:?}");
                match rows.last_mut() {
                    Some((row_set, row, systems)) if *row_set == set && row == feature => systems.push(system),
                    _ => rows.push((set, feature.to_owned(), vec![system])),
                }
            }
        }
        rows.iter().fold(String::new(), |diagram, (set, feature, systems)| {
            // The set's name appears only in its first row.
            let is_first = !diagram.lines().any(|line| line.starts_with(set.as_str()));
            let label = if is_first { set } else { "" };
            diagram + &wrap(&format!("{label:<9} {feature:<13} "), systems)
        })
    })
}

/// Joins names after `head`, wrapped before 110 columns.
fn wrap(head: &str, names: &[String]) -> String {
    let mut text = head.to_owned();
    let mut width = head.len();
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            text.push(',');
            if width + name.len() > 106 {
                text += &format!("\n{:width$}", "", width = head.len());
                width = head.len();
            } else {
                text.push(' ');
            }
        }
        text += name;
        width += name.len() + 2;
    }
    text + "\n"
}

const BEGIN: &str = "<!-- tick: written by `UPDATE=1 cargo test --test workspace` -->\n```text\n";
const END: &str = "```\n<!-- end of tick -->";

/// The diagram in ARCHITECTURE.md matches the schedule that runs.
#[test]
fn the_diagram_in_the_architecture_is_true() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let begin = text.find(BEGIN).expect("ARCHITECTURE.md marks where the tick begins") + BEGIN.len();
    let end = begin
        + text[begin..]
            .find(END)
            .expect("ARCHITECTURE.md marks where the tick ends");
    let diagram = diagram();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, format!("{}{diagram}{}", &text[..begin], &text[end..])).unwrap();
    } else {
        assert_eq!(
            &text[begin..end],
            diagram,
            "run it with UPDATE=1, and read what has changed"
        );
    }
}
