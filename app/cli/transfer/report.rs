//! Progress reports: bars on a terminal, lines elsewhere, JSON for programs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::board::{Board, Line};
use super::saved;
use ecs_torrent::components::stats::{PieceCounts, Speed};
use ecs_torrent::protocol::magnet::MutableLink;
use ecs_torrent::{Source, TorrentId, TorrentState, TorrentStats, Torrents};
use serde_json::json;

use super::INTERVALS;
use crate::cli::output::{self, Layout, Screen};
use crate::cli::searching::{TrackerAnswer, Ways};

/// Minimum time between two plain lines of one torrent.
pub(super) const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Reports the progress and the results of one command's torrents.
pub(super) struct Reporter {
    screen: Screen,
    manner: Manner,
    board: Option<Board>,
    /// The folder from which an interrupted download continues.
    state_dir: PathBuf,
    torrents: BTreeMap<TorrentId, Reported>,
    ways: Ways,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Quiet,
    Json,
    Bars,
    Lines,
}

struct Reported {
    name: String,
    line: Line,
    /// Number of torrents that were added before.
    number: usize,
    began: Instant,
    last_line: Instant,
    /// Bytes downloaded by earlier runs.
    downloaded_before: Option<u64>,
    /// Whether this run has downloaded the last wanted piece.
    is_completed: bool,
    /// Size in bytes, once the metadata is known.
    size: Option<u64>,
    /// Missing bytes. `None` until existing data is verified.
    missing: Option<u64>,
    /// Whether the torrent searches for peers, and has none.
    lacks_peers: bool,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Failed,
}

impl Reporter {
    pub(super) fn new(screen: Screen, quiet: bool, json: bool, state_dir: PathBuf, ways: Ways) -> Self {
        let manner = match (quiet, json, screen.is_terminal()) {
            (true, ..) => Manner::Quiet,
            (_, true, _) => Manner::Json,
            (.., true) => Manner::Bars,
            (.., false) => Manner::Lines,
        };
        Self {
            board: (manner == Manner::Bars).then(|| Board::new(&screen)),
            screen,
            manner,
            state_dir,
            torrents: BTreeMap::new(),
            ways,
        }
    }

    /// Reports the addresses that accept peers.
    pub(super) fn listening(&self, addresses: &[SocketAddr]) {
        if matches!(self.manner, Manner::Bars | Manner::Lines) {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            self.screen
                .line(format_args!("listening on {}", addresses.join(" and ")));
        }
    }

    /// Warns if only incoming peers can help a torrent.
    pub(super) fn warn(&self, source: &Source, peers: &[SocketAddr]) {
        if self.manner != Manner::Quiet
            && let Some(warning) = self.ways.warning(source, peers)
        {
            self.screen.warning(warning);
        }
    }

    /// Updates the display of the search for peers, if a torrent has none.
    pub(super) async fn update_ways(&mut self, torrents: &Torrents) {
        let is_shown = matches!(self.manner, Manner::Bars | Manner::Lines);
        if is_shown && self.torrents.values().any(|torrent| torrent.lacks_peers) {
            self.ways.update(torrents).await;
        }
    }

    /// Reports that the torrent of a link is searched for in the DHT.
    pub(super) fn searching(&self, link: &MutableLink) {
        self.note(&format!("searching the DHT for {link}"));
    }

    /// Prints a line about a search, unless only errors are wanted.
    pub(super) fn note(&self, text: &str) {
        if matches!(self.manner, Manner::Bars | Manner::Lines) {
            self.screen.line(format_args!("{text}"));
        }
    }

    /// Returns the interval between updates.
    pub(super) fn interval(&self) -> Duration {
        if self.manner == Manner::Bars {
            INTERVALS.0
        } else {
            INTERVALS.1
        }
    }

    pub(super) fn added(&mut self, stats: &TorrentStats, root: &Path) {
        if self.torrents.contains_key(&stats.info_hash.into()) {
            return;
        }
        let now = Instant::now();
        match self.manner {
            Manner::Json => self.json("added", stats),
            Manner::Lines => self.screen.line(format!(
                "{}: {}, in {}",
                stats.name,
                size_and_pieces(stats),
                root.display()
            )),
            Manner::Quiet | Manner::Bars => {}
        }
        self.torrents.insert(
            stats.info_hash.into(),
            Reported {
                name: stats.name.clone(),
                line: line_of(stats, self.ways),
                number: self.torrents.len(),
                began: now,
                last_line: now,
                downloaded_before: None,
                is_completed: false,
                size: stats.size,
                missing: None,
                lacks_peers: lacks_peers(stats),
                end: None,
            },
        );
    }

    pub(super) fn update(&mut self, stats: &TorrentStats) {
        self.take_metadata(stats);
        let Some(torrent) = self.torrents.get_mut(&stats.info_hash.into()) else {
            return;
        };
        if stats.state != TorrentState::Adding {
            torrent.downloaded_before.get_or_insert(stats.downloaded);
        }
        torrent.line = line_of(stats, self.ways);
        torrent.lacks_peers = lacks_peers(stats);
        let is_checked = !matches!(stats.state, TorrentState::Adding | TorrentState::Checking);
        torrent.missing = stats.left.filter(|_| is_checked);
        let is_due = torrent.last_line.elapsed() >= LINE_INTERVAL;
        let is_complete = match stats.state {
            TorrentState::Seeding => stats.is_complete(),
            TorrentState::Finished => true,
            _ => false,
        };
        if torrent.end.is_none() && is_complete {
            torrent.end = Some(End::Complete);
            self.complete(stats);
        } else if self.manner == Manner::Json {
            self.json("progress", stats);
        } else if self.manner == Manner::Lines && is_due {
            torrent.last_line = Instant::now();
            let progress = stats.progress() * 100.0;
            self.screen.line(format!(
                "{}: {progress:.1} %, {}",
                stats.name,
                describe(stats, self.ways, Layout::Wide)
            ));
        }
    }

    /// Takes over and reports metadata that has just become known.
    fn take_metadata(&mut self, stats: &TorrentStats) {
        let torrent = self.torrents.get_mut(&stats.info_hash.into());
        let Some(torrent) = torrent.filter(|torrent| torrent.size.is_none() && stats.size.is_some()) else {
            return;
        };
        torrent.name.clone_from(&stats.name);
        torrent.size = stats.size;
        match self.manner {
            Manner::Json => self.json("metadata", stats),
            Manner::Lines => self.screen.line(format!("{}: {}", stats.name, size_and_pieces(stats))),
            Manner::Quiet | Manner::Bars => {}
        }
    }

    /// Updates the missing bytes from the saved state of the stopped torrents. A torrent whose last pieces were stored
    /// during the stop is complete.
    pub(super) fn read_saved(&mut self) {
        for (id, torrent) in &mut self.torrents {
            // Data that was not checked may be complete, whatever the saved state says.
            let (Some(missing), None) = (&mut torrent.missing, torrent.end) else {
                continue;
            };
            *missing = saved::missing_bytes(&self.state_dir, *id).unwrap_or(*missing);
            if *missing == 0 {
                torrent.end = Some(End::Complete);
            }
        }
    }

    /// Records that a torrent's last wanted piece was downloaded.
    pub(super) fn completed(&mut self, id: TorrentId) {
        if let Some(torrent) = self.torrents.get_mut(&id) {
            torrent.is_completed = true;
        }
    }

    fn complete(&self, stats: &TorrentStats) {
        let Some(torrent) = self.torrents.get(&stats.info_hash.into()) else {
            return;
        };
        let time = torrent.began.elapsed();
        let mut downloaded = stats.downloaded - torrent.downloaded_before.unwrap_or(0).min(stats.downloaded);
        if downloaded == 0 && torrent.is_completed {
            // The first statistics came after the download.
            downloaded = stats.downloaded;
        }
        match self.manner {
            Manner::Quiet => {}
            Manner::Json => self.json("complete", stats),
            Manner::Bars | Manner::Lines if downloaded == 0 => {
                let wanted = stats.wanted.map_or_else(|| size(stats), output::bytes);
                self.screen.line(format!("{}: already complete, {wanted}", stats.name));
            }
            Manner::Bars | Manner::Lines => {
                let average = (downloaded as f64 / time.as_secs_f64().max(0.001)) as u64;
                self.screen.line(format!(
                    "{}: complete, {} in {} ({})",
                    stats.name,
                    output::bytes(downloaded),
                    output::duration(time),
                    output::speed(average),
                ));
            }
        }
    }

    /// Reports a temporary condition, as JSON only. Users read it in the log.
    pub(super) fn report_condition(&self, id: TorrentId, event: &str, reason: &str) {
        if let (Some(torrent), Manner::Json) = (self.torrents.get(&id), self.manner) {
            let line = json!({"event": event, "info_hash": id.to_string(), "name": torrent.name, "reason": reason});
            self.screen.line(line);
        }
    }

    pub(super) fn failed(&mut self, id: TorrentId, reason: &str) {
        let Some(torrent) = self.torrents.get_mut(&id) else {
            return;
        };
        torrent.end = Some(End::Failed);
        torrent.line.message = "failed".to_owned();
        torrent.line.speed = Speed::default();
        match self.manner {
            Manner::Json => {
                let line =
                    json!({"event": "error", "info_hash": id.to_string(), "name": torrent.name, "error": reason});
                self.screen.line(line);
            }
            _ => self.screen.error(format!("{}: {reason}", torrent.name)),
        }
    }

    /// Reports an interrupted download: the missing bytes, and how to resume.
    pub(super) fn interrupted(&self) {
        let open = |torrent: &&Reported| torrent.end.is_none();
        if self.manner == Manner::Json {
            for (id, torrent) in self.torrents.iter().filter(|(_, torrent)| open(torrent)) {
                self.screen.line(json!({
                    "event": "interrupted",
                    "info_hash": id.to_string(),
                    "name": torrent.name,
                    "left": torrent.missing,
                }));
            }
            return;
        }
        let open: Vec<&Reported> = self.torrents.values().filter(open).collect();
        let resume = format!(
            "the same command continues from the state in {}",
            self.state_dir.display()
        );
        if open.is_empty() {
            self.screen
                .error(format_args!("interrupted before any torrent was added; {resume}"));
            return;
        }
        let missing = open.iter().map(|torrent| torrent.missing).sum::<Option<u64>>();
        let size = output::bytes(open.iter().filter_map(|torrent| torrent.size).sum());
        let missing = match missing {
            Some(missing) => format!("{} of {size} missing", output::bytes(missing)),
            None if open.iter().any(|torrent| torrent.size.is_none()) => "the metadata has not arrived yet".into(),
            None => "existing data is not checked yet".into(),
        };
        let which = match &open[..] {
            [one] => one.name.clone(),
            several => format!("{} of {} torrents", several.len(), self.torrents.len()),
        };
        self.screen
            .error(format_args!("interrupted: {which}: {missing}; {resume}"));
    }

    /// Draws the progress of all torrents on a terminal.
    pub(super) fn draw(&self) {
        let Some(board) = &self.board else {
            return;
        };
        let mut torrents: Vec<&Reported> = self.torrents.values().collect();
        torrents.sort_by_key(|torrent| torrent.number);
        board.draw(&torrents.iter().map(|torrent| &torrent.line).collect::<Vec<_>>());
    }

    /// Shows that the torrents are stopping.
    pub(super) fn stopping(&mut self) {
        for torrent in self.torrents.values_mut() {
            torrent.line.message = "stopping".to_owned();
        }
        self.draw();
    }

    /// Clears the progress.
    pub(super) fn end(&self) {
        if let Some(board) = &self.board {
            board.clear();
        }
    }

    /// Returns the torrents that have not failed.
    pub(super) fn unfinished(&self) -> Vec<TorrentId> {
        let running = self
            .torrents
            .iter()
            .filter(|(_, torrent)| torrent.end != Some(End::Failed));
        running.map(|(id, _)| *id).collect()
    }

    pub(super) fn all_settled(&self) -> bool {
        self.torrents.values().all(|torrent| torrent.end.is_some())
    }

    pub(super) fn all_complete(&self) -> bool {
        // Without any torrent yet, nothing is complete.
        !self.torrents.is_empty() && self.torrents.values().all(|torrent| torrent.end == Some(End::Complete))
    }

    pub(super) fn all_failed(&self) -> bool {
        self.torrents.values().all(|torrent| torrent.end == Some(End::Failed))
    }

    pub(super) fn any_failed(&self) -> bool {
        self.torrents.values().any(|torrent| torrent.end == Some(End::Failed))
    }

    fn json(&self, event: &str, stats: &TorrentStats) {
        let line = json!({
            "event": event,
            "info_hash": stats.info_hash.to_string(),
            "name": stats.name,
            "state": stats.state,
            "progress": stats.progress(),
            "size": stats.size,
            "completed": stats.completed,
            "wanted": stats.wanted,
            "left": stats.left,
            "pieces": stats.pieces,
            "downloaded": stats.downloaded,
            "uploaded": stats.uploaded,
            "speed": stats.speed,
            "peers": stats.peers.len(),
        });
        self.screen.line(line);
    }
}

/// Returns a torrent's line on a terminal.
fn line_of(stats: &TorrentStats, ways: Ways) -> Line {
    use TorrentState::{Adding, Checking, Downloading, FetchingMetadata, Finished, Seeding};
    let left = stats.left.unwrap_or_default();
    let done = |wanted: u64| match stats.state {
        Checking => stats.checked,
        _ => wanted.saturating_sub(left),
    };
    Line {
        name: stats.name.clone(),
        progress: stats.wanted.map(|wanted| (done(wanted), wanted)),
        message: describe(stats, ways, Screen::layout()),
        speed: stats.speed,
        left,
        is_active: matches!(stats.state, Adding | Checking | Downloading | FetchingMetadata),
        is_complete: matches!(stats.state, Finished | Seeding),
    }
}

/// Formats a torrent's size: `1.2 GiB in 1200 pieces`.
fn size_and_pieces(stats: &TorrentStats) -> String {
    match stats.pieces {
        Some(pieces) => format!("{} in {} pieces", size(stats), pieces.total),
        None => "fetching metadata".into(),
    }
}

/// Formats a torrent's size.
fn size(stats: &TorrentStats) -> String {
    stats.size.map_or_else(|| "unknown size".to_owned(), output::bytes)
}

/// The numbers of a running download that are shown.
struct Download {
    speed: Speed,
    peers: usize,
    pieces: Option<PieceCounts>,
    left: Option<u64>,
}

impl Download {
    /// Formats the progress: `12.3 MiB/s down, 8 peers, 452/1000 pieces, ETA 12 s`; in the narrow layout
    /// `12.3 MiB/s, ETA 12 s, 8 peers`.
    fn parts(&self, layout: Layout) -> Vec<String> {
        let speed = output::speed(self.speed.download);
        let peers = output::count(self.peers, "peer");
        let eta = self.left.and_then(|left| output::eta(left, self.speed.download));
        let eta = eta.map(|eta| format!("ETA {}", output::duration(eta)));
        if layout == Layout::Narrow {
            return [Some(speed), eta, Some(peers)].into_iter().flatten().collect();
        }
        let upload = (self.speed.upload > 0).then(|| format!("{} up", output::speed(self.speed.upload)));
        let pieces = self.pieces;
        let pieces = pieces.map(|pieces| format!("{}/{} pieces", pieces.held, pieces.total));
        let parts = [Some(format!("{speed} down")), upload, Some(peers), pieces, eta];
        parts.into_iter().flatten().collect()
    }
}

/// Whether a torrent searches for peers, and has none.
fn lacks_peers(stats: &TorrentStats) -> bool {
    use TorrentState::{Downloading, FetchingMetadata};
    stats.peers.is_empty() && matches!(stats.state, Downloading | FetchingMetadata)
}

/// Formats a torrent's progress. `ways` are the methods of the search for peers.
pub(in crate::cli) fn describe(stats: &TorrentStats, ways: Ways, layout: Layout) -> String {
    let mut parts = Vec::new();
    match stats.state {
        TorrentState::Downloading => {
            let download = Download {
                speed: stats.speed,
                peers: stats.peers.len(),
                pieces: stats.pieces,
                left: stats.left,
            };
            parts.extend(download.parts(layout));
        }
        state @ (TorrentState::Finished | TorrentState::Seeding) => {
            parts.push(format!("{state}, {} up", output::speed(stats.speed.upload)));
            parts.push(output::count(stats.peers.len(), "peer"));
        }
        TorrentState::Checking => parts.push(format!("checking, {} of {}", output::bytes(stats.checked), size(stats))),
        state @ TorrentState::Moving => parts.push(state.to_string()),
        TorrentState::FetchingMetadata => {
            let metadata = stats.metadata.filter(|metadata| metadata.pieces > 1);
            let pieces = metadata.map(|metadata| format!(", {}/{} pieces", metadata.received, metadata.pieces));
            parts.push(format!("fetching metadata{}", pieces.unwrap_or_default()));
            let peers = output::count(stats.peers.len(), "peer");
            match stats.peers.is_empty() {
                true => parts.push(peers),
                false => parts.push(format!("{peers}; {}", ways.describe(stats.trackers.len()))),
            }
        }
        other => parts.push(other.name().replace(['/', '_'], " ")),
    }
    if lacks_peers(stats) {
        let answers: Vec<TrackerAnswer<'_>> = stats.trackers.iter().map(TrackerAnswer::from).collect();
        parts.push(ways.explain(stats.private, &answers));
    } else if let Some(problem) = stats.trackers.iter().find_map(|tracker| tracker.message.as_ref())
        && stats.peers.is_empty()
    {
        parts.push(format!("tracker: {problem}"));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest usual numbers are not cut off at 80 columns, and the wide layout shows everything.
    #[test]
    fn progress_fits_a_terminal_of_80_columns() {
        let download = Download {
            speed: Speed {
                download: (12 << 20) + (350 << 10),
                upload: 1 << 20,
            },
            peers: 100,
            pieces: Some(PieceCounts {
                total: 100_000,
                held: 50_000,
                size: 1 << 20,
            }),
            left: Some(3599 * ((12 << 20) + (350 << 10))),
        };
        let message = download.parts(Layout::Narrow).join(", ");
        assert_eq!(message, "12.34 MiB/s, ETA 59 min 59 s, 100 peers");
        let line = Layout::Narrow.row("a name of many characters", Some((5, 1482 << 20)), &message);
        assert!(console::measure_text_width(&line) <= 80, "{line}");
        let message = download.parts(Layout::Wide).join(", ");
        assert_eq!(
            message,
            "12.34 MiB/s down, 1.00 MiB/s up, 100 peers, 50000/100000 pieces, ETA 59 min 59 s"
        );
    }
}
