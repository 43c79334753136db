//! `download` while a daemon uses the state folder: the daemon gets the torrents, and the command follows them until
//! they are complete.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ecs_torrent::daemon::ApiAddress;
use ecs_torrent::{Source, TorrentState};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::board::{Board, Line};
use super::report::LINE_INTERVAL;
use super::{NetworkArgs, Selected};
use crate::cli::client::connection::Daemon;
use crate::cli::client::{Addable, DaemonAddress, absolute};
use crate::cli::output::{self, Screen, printable};
use crate::cli::signals::Signals;
use crate::cli::{CliError, Outcome};

/// Interval between two requests about a torrent.
const INTERVAL: Duration = Duration::from_millis(500);

/// The fields of a torrent that are followed.
const FIELDS: &str = "info_hash,name,state,progress,size,completed,wanted,left,pieces,downloaded,uploaded,speed,\
                      peer_count,error";

/// Returns whether a daemon uses a state folder.
pub(super) fn has_daemon(state_dir: &Path) -> bool {
    ApiAddress::read(state_dir).is_ok_and(|address| address.is_alive())
}

/// Gives torrents to the daemon, and follows them.
pub(super) async fn hand_over(
    selected: &Selected,
    network: &NetworkArgs,
    (sources, peers, state_dir): (Vec<Source>, &[SocketAddr], &Path),
    screen: &Screen,
    signals: &mut Signals,
) -> Result<Outcome, CliError> {
    let state_dir = state_dir.to_owned();
    let place = state_dir.display().to_string();
    let daemon = Daemon::find(&DaemonAddress { api: None, state_dir })?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("root", &absolute(&selected.root)?);
    if let Some(placement) = &selected.placement {
        placement.write(&mut query);
    }
    for peer in peers {
        query.append_pair("peer", &peer.to_string());
    }
    if let Some(choice) = &selected.choice {
        choice.write(&mut query);
    }
    network.limits.write(&mut query);
    let path = format!("/api/v1/torrents?{}", query.finish());
    let mut hashes = Vec::new();
    for source in sources {
        let (_, added) = Addable::of(source)?.send(&daemon, &path).await?;
        hashes.push(added["info_hash"].as_str().unwrap_or_default().to_owned());
    }
    if !network.quiet {
        screen.note(format_args!(
            "the daemon that uses {place} has the torrents, and seeds them then"
        ));
    }
    let follower = Follower {
        daemon,
        hashes,
        screen,
        board: (!network.quiet && !network.json && screen.is_terminal()).then(|| Board::new(screen)),
        is_quiet: network.quiet,
        is_json: network.json,
    };
    let outcome = tokio::select! {
        outcome = follower.follow() => outcome,
        () = signals.next() => Ok(Outcome::Interrupted),
    };
    if let Some(board) = &follower.board {
        board.clear();
    }
    if let Ok(Outcome::Interrupted) = outcome {
        screen.error("interrupted; the daemon continues");
    }
    outcome
}

struct Follower<'s> {
    daemon: Daemon,
    /// The torrents' info-hashes.
    hashes: Vec<String>,
    screen: &'s Screen,
    board: Option<Board>,
    is_quiet: bool,
    is_json: bool,
}

impl Follower<'_> {
    /// Reports the progress until every torrent is complete or has failed.
    async fn follow(&self) -> Result<Outcome, CliError> {
        let mut clock = tokio::time::interval(INTERVAL);
        let mut ended: Vec<Option<bool>> = vec![None; self.hashes.len()];
        let mut last_line: Option<Instant> = None;
        loop {
            clock.tick().await;
            let is_due = last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
            let mut lines = Vec::new();
            for (hash, ended) in self.hashes.iter().zip(&mut ended) {
                let stats = self
                    .daemon
                    .get(&format!("/api/v1/torrents/{hash}?fields={FIELDS}"))
                    .await?;
                let is_success = end_of(&stats);
                if ended.is_none() && is_success.is_some() {
                    self.report_end(&stats);
                } else if ended.is_none() {
                    self.report(&stats, is_due);
                }
                *ended = ended.or(is_success);
                lines.push(line_of(&stats));
            }
            if is_due {
                last_line = Some(Instant::now());
            }
            if let Some(board) = &self.board {
                board.draw(&lines.iter().collect::<Vec<_>>());
            }
            if ended.iter().all(Option::is_some) {
                return Ok(match ended.contains(&Some(false)) {
                    true => Outcome::Failed,
                    false => Outcome::Done,
                });
            }
        }
    }

    fn report(&self, stats: &Value, is_due: bool) {
        if self.is_json {
            self.screen.line(event("progress", stats));
        } else if is_due && !self.is_quiet && self.board.is_none() {
            let line = line_of(stats);
            let progress = stats["progress"].as_f64().unwrap_or_default() * 100.0;
            self.screen.line(format_args!(
                "{}: {progress:.1} %, {}",
                printable(&line.name),
                line.message
            ));
        }
    }

    fn report_end(&self, stats: &Value) {
        let name = printable(stats["name"].as_str().unwrap_or_default());
        match stats["error"].as_str() {
            Some(error) if self.is_json => {
                let mut failed = event("error", stats);
                failed["error"] = error.into();
                self.screen.line(failed);
            }
            Some(error) => self.screen.error(format_args!("{name}: {}", printable(error))),
            None if self.is_json => self.screen.line(event("complete", stats)),
            None if self.is_quiet => {}
            None => self.screen.line(format_args!("{name}: complete")),
        }
    }
}

/// Returns a line of JSON, as of a download by the command itself.
fn event(name: &str, stats: &Value) -> Value {
    let mut event = json!({ "event": name });
    for (field, value) in stats.as_object().into_iter().flatten() {
        match field.as_str() {
            "error" => {}
            "peer_count" => event["peers"] = value.clone(),
            field => event[field] = value.clone(),
        }
    }
    event
}

/// Returns whether a torrent has ended with success; `None` while it has not ended.
fn end_of(stats: &Value) -> Option<bool> {
    match state_of(stats)? {
        TorrentState::Finished | TorrentState::Seeding => Some(true),
        TorrentState::Failed => Some(false),
        _ => None,
    }
}

fn state_of(stats: &Value) -> Option<TorrentState> {
    stats["state"].as_str()?.parse().ok()
}

fn line_of(stats: &Value) -> Line {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let (wanted, left) = (stats["wanted"].as_u64(), number(&stats["left"]));
    let [download, upload] = ["download", "upload"].map(|way| number(&stats["speed"][way]));
    let is_complete = end_of(stats) == Some(true);
    let eta = output::eta(left, download).filter(|_| !is_complete);
    let message = match state_of(stats) {
        Some(TorrentState::Downloading) => [
            Some(output::speed(download)),
            eta.map(|eta| format!("ETA {}", output::duration(eta))),
            Some(output::count(number(&stats["peer_count"]) as usize, "peer")),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", "),
        _ => printable(stats["state"].as_str().unwrap_or_default()).replace(['/', '_'], " "),
    };
    Line {
        name: stats["name"].as_str().unwrap_or_default().to_owned(),
        progress: wanted.map(|wanted| (wanted.saturating_sub(left), wanted)),
        message,
        speed: ecs_torrent::components::stats::Speed { download, upload },
        left,
        is_active: !is_complete,
        is_complete,
    }
}
