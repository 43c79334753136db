//! A Bevy program that downloads a torrent beside its own work.
//!
//! ```text
//! cargo run --example bevy_host -- assets.torrent
//! ```
//!
//! The program stands for a game: it runs 60 frames per second, shows the progress of the download, and exits when its
//! assets are complete.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]

use std::path::PathBuf;
use std::time::Duration;

use ecs_torrent::bevy_app::{App, AppExit, ScheduleRunnerPlugin, Startup, TaskPoolPlugin, Update};
use ecs_torrent::events::Event;
use ecs_torrent::host::{Answer, EcsTorrentPlugin, EngineEnded, TorrentAnswer, TorrentCommand, TorrentEvent};
use ecs_torrent::prelude::*;

/// The torrent that contains the game's assets.
#[derive(Resource)]
struct Assets {
    source: PathBuf,
    /// The torrent's id, once the engine has added it.
    torrent: Option<TorrentId>,
}

fn main() -> AppExit {
    let Some(source) = std::env::args_os().nth(1) else {
        eprintln!("usage: bevy_host FILE.torrent");
        return AppExit::from_code(2);
    };
    App::new()
        // Bevy's MinimalPlugins, as far as this program needs them.
        .add_plugins((
            TaskPoolPlugin::default(),
            ScheduleRunnerPlugin::run_loop(Duration::from_secs(1) / 60),
        ))
        .add_plugins(EcsTorrentPlugin {
            settings: Settings::default(),
        })
        .insert_resource(Assets {
            source: source.into(),
            torrent: None,
        })
        .add_systems(Startup, request_assets)
        .add_systems(Update, (read_answers, read_events, exit_without_engine).chain())
        .run()
}

fn request_assets(assets: Res<Assets>, mut commands: MessageWriter<TorrentCommand>) {
    commands.write(TorrentCommand::download(assets.source.clone()));
}

/// Reads the engine's answers: first the torrent's id, then its state, which is requested again each time.
fn read_answers(
    mut answers: MessageReader<TorrentAnswer>,
    mut assets: ResMut<Assets>,
    mut commands: MessageWriter<TorrentCommand>,
    mut exits: MessageWriter<AppExit>,
    mut shown: Local<u32>,
) {
    for answer in answers.read() {
        match &answer.result {
            Ok(Answer::Added(torrent)) => {
                assets.torrent = Some(*torrent);
                commands.write(TorrentCommand::GetStats(*torrent));
            }
            Ok(Answer::Stats(stats)) => {
                let percent = (stats.progress() * 100.0) as u32;
                if *shown < percent {
                    *shown = percent;
                    println!("{percent} % of {}", stats.name);
                }
                commands.write(TorrentCommand::GetStats(stats.info_hash.into()));
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("error: {error}");
                exits.write(AppExit::error());
            }
        }
    }
}

fn read_events(mut events: MessageReader<TorrentEvent>, mut exits: MessageWriter<AppExit>) {
    for TorrentEvent(event) in events.read() {
        println!("{event:?}");
        match event {
            Event::Completed(_) => exits.write(AppExit::Success),
            Event::Failed(..) => exits.write(AppExit::error()),
            _ => continue,
        };
    }
}

fn exit_without_engine(mut ended: MessageReader<EngineEnded>, mut exits: MessageWriter<AppExit>) {
    for EngineEnded { reason } in ended.read() {
        eprintln!("error: {reason}");
        exits.write(AppExit::error());
    }
}
