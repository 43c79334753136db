//! The progress of all torrents on a terminal, drawn together: a line for each torrent, or for the busiest ones that
//! fit, and a total.

use std::cmp::Reverse;

use ecs_torrent::components::stats::Speed;
use indicatif::ProgressBar;

use crate::cli::output::{self, Layout, Screen};

/// The lines on the terminal.
pub(super) struct Board(ProgressBar);

/// The line of one torrent.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    pub(super) name: String,
    /// Bytes of the wanted files that are there, or that are checked, and their size. `None` while the size is unknown.
    pub(super) progress: Option<(u64, u64)>,
    pub(super) message: String,
    pub(super) speed: Speed,
    /// Missing bytes of the wanted files.
    pub(super) left: u64,
    /// Whether the torrent downloads, checks its data, or fetches its metadata.
    pub(super) is_active: bool,
    pub(super) is_complete: bool,
}

impl Board {
    pub(super) fn new(screen: &Screen) -> Self {
        Self(screen.block())
    }

    /// Draws the lines once, in this order or, if they do not all fit, the busiest ones first.
    pub(super) fn draw(&self, lines: &[&Line]) {
        let (rows, columns) = Screen::size();
        let text = arranged(lines, rows, columns, Screen::layout());
        self.0.clone().with_message(text.join("\n")).force_draw();
    }

    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// Returns the lines that fit a terminal: at most two less than it has rows, and a total of several torrents.
fn arranged(lines: &[&Line], rows: usize, columns: usize, layout: Layout) -> Vec<String> {
    let most = rows.saturating_sub(2).max(1);
    let mut shown = lines.to_vec();
    if shown.len() > most {
        shown.sort_by_key(|line| Reverse((line.speed.download, line.is_active, line.speed.upload)));
        shown.truncate(most);
    }
    let shown = shown
        .into_iter()
        .map(|line| layout.row(&line.name, line.progress, &line.message));
    let total = (lines.len() > 1).then(|| total(lines));
    let fitted = |line: String| console::truncate_str(&line, columns, "…").into_owned();
    shown.chain(total).map(fitted).collect()
}

/// Sums up torrents: `40 torrents, 12 complete, 31 %, 1.2 MiB/s, ETA 12 min`.
fn total(lines: &[&Line]) -> String {
    let sum = |value: fn(&Line) -> u64| lines.iter().map(|line| value(line)).fold(0, u64::saturating_add);
    let size = sum(|line| line.progress.map_or(0, |(_, size)| size));
    let (left, speed) = (sum(|line| line.left), sum(|line| line.speed.download));
    let complete = lines.iter().filter(|line| line.is_complete).count();
    let share = (size > 0).then(|| format!("{} %", output::percent(size.saturating_sub(left), size)));
    let eta = output::eta(left, speed).filter(|_| left > 0);
    let parts = [
        Some(output::count(lines.len(), "torrent")),
        Some(format!("{complete} complete")),
        share,
        Some(output::speed(speed)),
        eta.map(|eta| format!("ETA {}", output::duration(eta))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: u64) -> Vec<Line> {
        let line = |number: u64| Line {
            name: format!("torrent {number}"),
            progress: Some((number, 100)),
            message: "a message that is much too long for a terminal of eighty columns, whatever it says".to_owned(),
            speed: Speed {
                download: number << 10,
                upload: 0,
            },
            left: 100 - number,
            is_active: true,
            is_complete: number == 0,
        };
        (0..count).map(line).collect()
    }

    #[test]
    fn the_busiest_torrents_and_a_total_fit_the_terminal() {
        let lines = lines(40);
        let text = arranged(&lines.iter().collect::<Vec<_>>(), 24, 80, Layout::Narrow);
        assert_eq!(text.len(), 23);
        assert!(
            text.iter().all(|line| console::measure_text_width(line) <= 80),
            "{text:#?}"
        );
        for (line, number) in text.iter().zip((18..40).rev()) {
            assert!(
                console::strip_ansi_codes(line).starts_with(&format!("torrent {number} ")),
                "{line}"
            );
        }
        assert_eq!(text[22], "40 torrents, 1 complete, 19 %, 780.00 KiB/s, ETA 1 s");
    }

    #[test]
    fn torrents_that_all_fit_keep_their_order() {
        let lines = lines(2);
        let text = arranged(&lines.iter().collect::<Vec<_>>(), 24, 200, Layout::Wide);
        assert!(
            console::strip_ansi_codes(&text[0]).starts_with("torrent 0 "),
            "{text:#?}"
        );
        assert_eq!(text.len(), 3);
        let text = arranged(&[&lines[0]], 24, 80, Layout::Wide);
        assert_eq!(text.len(), 1, "{text:#?}");
        let text = arranged(&lines.iter().collect::<Vec<_>>(), 1, 80, Layout::Narrow);
        assert_eq!(text.len(), 2, "{text:#?}");
    }
}
