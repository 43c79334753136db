// Appends a line to a file for each torrent that has stopped.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use ecs_torrent::prelude::*;

/// Writes the names of stopped torrents to a file. A stop is complete when its line is written, or when the line takes
/// too long.
#[derive(Debug, Clone)]
pub struct StopLogPlugin {
    /// The file, which is created if missing.
    pub path: PathBuf,
}

/// The stop participant: a name for the plugin's part in a stop.
struct StopLog;

/// Time that a stop waits for its line: the disk may hang. The settings limit the whole phase too
/// (`lifecycle.release_timeout_ms`, 500 ms by default); the shorter of the two counts.
const LIMIT: Duration = Duration::from_millis(400);

/// Interval at which unwritten lines are checked, while there are any.
const LOOK: Duration = Duration::from_millis(10);

/// A line to write, and the slot for the result.
struct Line {
    text: String,
    outcome: Outcome,
}

/// Empty until the thread has written the line, or failed to.
type Outcome = Arc<OnceLock<Result<(), String>>>;

/// The channel to the thread that writes.
#[derive(Resource)]
struct Lines(Sender<Line>);

impl Plugin for StopLogPlugin {
    fn build(&self, app: &mut App) {
        let (sender, lines) = channel();
        let path = self.path.clone();
        // A tick never blocks, so a thread opens and writes the file. It ends with the world, which drops the sender.
        // If it cannot be started, every line fails.
        let _ = thread::Builder::new()
            .name("stop-log".into())
            .spawn(move || write_lines(&lines, &path));
        // The files of a torrent that reaches this phase are closed, and its session is saved.
        app.insert_resource(Lines(sender))
            .add_stop_participant::<StopLog>(StopPhase::Release, Some(LIMIT))
            .add_systems(Tick, log_stops.in_set(TickSet::Respond));
    }
}

/// Sends a line for each torrent whose stop has come this far, and reports those that are written. A tick without a
/// stop costs nothing.
fn log_stops(
    mut duty: StopDuty<StopLog>,
    mut waiting: Local<Vec<(Entity, Outcome)>>,
    lines: Res<Lines>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    torrents: Query<(&Torrent, &Counters)>,
) {
    for turn in duty.take() {
        let Ok((torrent, counters)) = torrents.get(turn.torrent) else {
            duty.finish(turn.torrent);
            continue;
        };
        let text = format!("{} uploaded {} bytes\n", torrent.label(), counters.uploaded);
        let outcome = Outcome::default();
        let line = Line {
            text,
            outcome: outcome.clone(),
        };
        if lines.0.send(line).is_err() {
            let _ = outcome.set(Err("its thread has ended".to_owned()));
        }
        waiting.push((turn.torrent, outcome));
    }
    waiting.retain(|(torrent, outcome)| match outcome.get() {
        None => true,
        Some(Ok(())) => {
            duty.finish(*torrent);
            false
        }
        Some(Err(reason)) => {
            duty.fail(*torrent, format!("the stop log was not written: {reason}").into());
            false
        }
    });
    if !waiting.is_empty() {
        wakeup.at(clock.now() + LOOK);
    }
}

fn write_lines(lines: &Receiver<Line>, path: &Path) {
    for Line { text, outcome } in lines {
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            file.write_all(text.as_bytes())
        };
        let _ = outcome.set(write().map_err(|error| error.to_string()));
    }
}
