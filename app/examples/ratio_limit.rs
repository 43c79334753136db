//! A plugin that stops a torrent at a given share ratio.
//!
//! ```text
//! cargo run --example ratio_limit -- file.torrent 1.5
//! ```
//!
//! The example shows the parts of every plugin: settings as a resource, state as a component, a system that joins a set
//! of the tick, facts read from messages, and a request made by writing a message.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]

use std::process::ExitCode;

use ecs_torrent::events;
use ecs_torrent::prelude::*;

/// Stops each torrent when its uploads reach `ratio` times its size.
#[derive(Debug, Clone)]
struct RatioLimitPlugin {
    ratio: f64,
}

/// The plugin's settings, as a resource for its systems.
#[derive(Resource)]
struct RatioLimit(f64);

/// Upload limit of a torrent: the bytes that it may send in total.
#[derive(Component)]
struct Allowance {
    upload_bytes: u64,
}

impl Plugin for RatioLimitPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(RatioLimit(self.ratio))
            // Intake counts the blocks that have left; Decide acts on them.
            .add_systems(Tick, (set_allowance, stop_at_limit).chain().in_set(TickSet::Decide));
    }
}

fn set_allowance(
    mut added: MessageReader<TorrentAdded>,
    limit: Res<RatioLimit>,
    torrents: Query<&Layout>,
    mut commands: Commands,
) {
    for TorrentAdded { torrent, .. } in added.read() {
        if let Ok(Layout(geometry)) = torrents.get(*torrent) {
            let upload_bytes = (geometry.total_size() as f64 * limit.0) as u64;
            commands.entity(*torrent).insert(Allowance { upload_bytes });
        }
    }
}

/// Stops torrents that have reached their limit. Looks only at torrents that have just sent a block, so the work is in
/// proportion to the changes.
fn stop_at_limit(
    mut sent: MessageReader<BlockSent>,
    torrents: Query<(&Counters, &Allowance)>,
    mut stops: MessageWriter<RequestStop>,
) {
    for &BlockSent { torrent, .. } in sent.read() {
        if torrents
            .get(torrent)
            .is_ok_and(|(counters, allowance)| counters.uploaded >= allowance.upload_bytes)
        {
            stops.write(RequestStop { torrent });
        }
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(torrent), ratio) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: ratio_limit FILE.torrent [RATIO]");
        return ExitCode::from(2);
    };
    let ratio = ratio.and_then(|ratio| ratio.parse().ok()).unwrap_or(1.0);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let result = runtime
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(run(torrent, ratio)).map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(torrent: String, ratio: f64) -> Result<(), ecs_torrent::Error> {
    let engine = Engine::builder()
        .plugins(TorrentPlugins)
        .plugins(RatioLimitPlugin { ratio })
        .start()?;
    let mut events = engine.torrents().subscribe();
    engine.torrents().download(torrent).await?;
    while let Some(event) = events.next().await {
        println!("{event:?}");
        if matches!(event, events::Event::Stopped(_)) {
            break;
        }
    }
    Ok(())
}
