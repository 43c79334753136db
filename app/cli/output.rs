//! Human-readable output: lines, bars, sizes and times.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use super::signals::Signals;
use super::{CliError, ExitCodes};
use console::style;
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Makes untrusted text safe to print: it cannot control the terminal.
pub(super) fn printable(words: &str) -> String {
    ecs_torrent::protocol::text::printable(words.as_bytes(), 4096)
}

/// The layout of a line with a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// For terminals of fewer than [`WIDE`] columns: a short name, a short bar and the most important numbers.
    Narrow,
    Wide,
}

/// Number of columns from which a terminal has the wide layout.
const WIDE: u16 = 100;

impl Layout {
    /// Longest name in front of a progress bar, in columns.
    fn prefix_width(self) -> usize {
        match self {
            Self::Narrow => 14,
            Self::Wide => 24,
        }
    }

    /// Shortens a name that stands in front of a progress bar.
    pub(super) fn prefix(self, name: &str) -> String {
        console::truncate_str(&printable(name), self.prefix_width(), "…").into_owned()
    }

    /// Returns the style of a progress bar: its size and a message.
    fn bar_style(self) -> ProgressStyle {
        let width = self.bar_width();
        let template =
            format!("{{prefix:.bold}} {{bar:{width}.cyan/dim}} {{percent:>3}}% of {{total_bytes}}  {{wide_msg}}");
        ProgressStyle::with_template(&template)
            .expect("the template is fixed")
            .progress_chars("━╸─")
    }

    fn bar_width(self) -> usize {
        match self {
            Self::Narrow => 6,
            Self::Wide => 16,
        }
    }

    /// Returns a line with the look of a progress bar: `done` of `total` bytes, and a message. There is no bar while
    /// the size is unknown.
    pub(super) fn row(self, name: &str, progress: Option<(u64, u64)>, message: &str) -> String {
        let name = style(self.prefix(name)).for_stderr().bold();
        let Some((done, total)) = progress else {
            return format!("{name} {message}");
        };
        let width = self.bar_width();
        let percent = percent(done, total);
        let full = width * percent as usize / 100;
        let head = if full < width { "╸" } else { "" };
        let filled = style("━".repeat(full) + head).for_stderr().cyan();
        let empty = style("─".repeat(width.saturating_sub(full + 1))).for_stderr().dim();
        format!("{name} {filled}{empty} {percent:>3}% of {}  {message}", bytes(total))
    }
}

/// Returns the share of `done` in `total` in percent, rounded down, so that 100 means complete.
pub(super) fn percent(done: u64, total: u64) -> u64 {
    let share = u128::from(done.min(total)) * 100;
    // A share of at most 100 fits.
    share.checked_div(total.into()).unwrap_or(100) as u64
}

/// The terminal, shared by progress bars and log lines.
#[derive(Debug, Clone)]
pub(super) struct Screen {
    bars: MultiProgress,
    is_terminal: bool,
}

impl Default for Screen {
    fn default() -> Self {
        // A dumb terminal, as in Emacs, cannot move its cursor.
        let is_terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let target = match is_terminal {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            is_terminal,
        }
    }
}

impl Screen {
    /// Returns whether progress bars can be drawn.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns the layout that fits the terminal.
    pub(super) fn layout() -> Layout {
        match console::Term::stderr().size_checked() {
            Some((_, columns)) if columns < WIDE => Layout::Narrow,
            _ => Layout::Wide,
        }
    }

    /// Creates a progress bar for `total` bytes. Without a terminal, the bar is invisible.
    pub(super) fn bar(&self, total: u64) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new(total));
        bar.set_style(Self::layout().bar_style());
        bar
    }

    /// Creates a line with a message, for work of unknown size. Without a terminal, the line is invisible.
    pub(super) fn status(&self) -> ProgressBar {
        let status = self.bars.add(ProgressBar::new(1));
        status.set_style(ProgressStyle::with_template("{prefix:.bold} {wide_msg}").expect("the template is fixed"));
        status
    }

    /// Creates lines whose text is their message. Without a terminal, they are invisible.
    pub(super) fn block(&self) -> ProgressBar {
        let block = self.bars.add(ProgressBar::new(1));
        block.set_style(ProgressStyle::with_template("{msg}").expect("the template is fixed"));
        block
    }

    /// Returns the rows and columns of the terminal.
    pub(super) fn size() -> (usize, usize) {
        let size = console::Term::stderr().size_checked();
        size.map_or((24, 80), |(rows, columns)| (rows.into(), columns.into()))
    }

    /// Creates a progress bar for hashing, which shows speed and remaining time by itself.
    pub(super) fn hashing_bar(&self, total: u64, what: &str) -> ProgressBar {
        let template = "{prefix:.bold} {bar:16.cyan/dim} {percent:>3}% of {total_bytes}  {bytes_per_sec}  ETA {eta}";
        let bar = self.bars.add(ProgressBar::new(total));
        bar.set_style(
            ProgressStyle::with_template(template)
                .expect("the template is fixed")
                .progress_chars("━╸─"),
        );
        bar.set_prefix(what.to_owned());
        bar
    }

    /// Clears the bars and ends the process when a signal arrives. For commands that leave nothing to clean up.
    pub(super) fn clear_when_interrupted(&self) -> Result<(), CliError> {
        let mut signals = Signals::new()?;
        let screen = self.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.map_err(CliError::io("cannot listen to signals"))?;
        let wait = move || {
            runtime.block_on(signals.next());
            // Nothing is drawn any more when this returns.
            let _ = screen.bars.clear();
            screen.bars.set_draw_target(ProgressDrawTarget::hidden());
            print_error(&"interrupted");
            std::process::exit(ExitCodes::INTERRUPTED.into());
        };
        let thread = std::thread::Builder::new().name("ecs-torrent-interrupt".into());
        thread.spawn(wait).map_err(CliError::io("cannot listen to signals"))?;
        Ok(())
    }

    /// Prints a line to the standard output, above the bars.
    pub(super) fn line(&self, line: impl Display) {
        self.bars.suspend(|| print(format_args!("{line}\n")));
    }

    /// Prints a line to the standard error stream, above the bars.
    pub(super) fn note(&self, line: impl Display) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// Prints a warning above the bars.
    pub(super) fn warning(&self, warning: impl Display) {
        self.bars
            .suspend(|| eprintln!("{} {warning}", style("warning:").for_stderr().yellow().bold()));
    }

    /// Writes a line to the standard error stream, above any bars. Ignores errors: there is no other place to report
    /// them.
    pub(super) fn log(&self, line: &[u8]) {
        let write = || drop(io::stderr().write_all(line));
        // Suspending the bars takes their lock, which `line` takes too. Without bars, a stalled reader of the log must
        // not block the standard output.
        if self.is_terminal {
            self.bars.suspend(write);
        } else {
            write();
        }
    }

    /// Prints an error above the bars.
    pub(super) fn error(&self, error: impl Display) {
        self.bars.suspend(|| print_error(&error));
    }
}

/// Prints to the standard output, or ends the process: with success if the output's reader has read enough and is gone,
/// as with `| head`; with an error if the output cannot be written, as on a full disk.
pub(super) fn print(text: std::fmt::Arguments<'_>) {
    let mut output = io::stdout().lock();
    check_output(output.write_fmt(text).and_then(|()| output.flush()));
}

/// Ends the process if writing to the standard output failed.
pub(super) fn check_output(result: io::Result<()>) {
    if let Err(error) = result {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(ExitCodes::DONE.into());
        }
        print_error(&format_args!("cannot write to the standard output: {error}"));
        std::process::exit(ExitCodes::FAILED.into());
    }
}

/// Prints indented JSON to the standard output without holding its text in memory.
pub(super) fn print_json(value: &impl serde::Serialize) {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from);
    check_output(written.and_then(|()| writeln!(out)).and_then(|()| out.flush()));
}

/// Returns the width of the terminal to which the standard output goes.
#[cfg(feature = "daemon")]
pub(super) fn width() -> Option<usize> {
    let terminal = console::Term::stdout();
    let size = terminal.is_term().then(|| terminal.size_checked()).flatten();
    size.map(|(_, columns)| columns.into())
}

/// Like `println!`, but handles a closed output.
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::cli::output::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}

/// Prints an error as one line.
pub(super) fn error(error: &impl Display) {
    print_error(error);
}

fn print_error(error: &impl Display) {
    eprintln!("{} {error}", style("error:").for_stderr().red().bold());
}

/// Formats a size: `1.50 MiB`.
pub(super) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// Formats a speed: `1.50 MiB/s`.
pub(super) fn speed(bytes_per_s: u64) -> String {
    format!("{}/s", HumanBytes(bytes_per_s))
}

/// Formats a duration: `3 s`, `2 min 5 s`, `1 h 0 min`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => format!("{} ms", time.as_millis()),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) if h < 48 => format!("{h} h {m} min"),
        (h, ..) => format!("{} days", h / 24),
    }
}

/// Formats a count with its noun: `1 peer`, `2 peers`.
pub(super) fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Estimates the remaining time at this speed. `None` if the speed is zero.
pub(super) fn eta(missing_bytes: u64, bytes_per_s: u64) -> Option<Duration> {
    let seconds = missing_bytes.checked_div(bytes_per_s)?;
    // Missing bytes always take some time.
    Some(Duration::from_secs(seconds.max(u64::from(missing_bytes > 0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_in_fitting_units() {
        let shown = |millis| duration(Duration::from_millis(millis));
        assert_eq!(shown(250), "250 ms");
        assert_eq!(shown(3_999), "3 s");
        assert_eq!(shown(125_000), "2 min 5 s");
        assert_eq!(shown(3_600_000), "1 h 0 min");
        assert_eq!(shown(86_400_000 * 3), "3 days");
        assert_eq!(
            (count(1, "peer"), count(0, "peer")),
            ("1 peer".into(), "0 peers".into())
        );
        assert_eq!(eta(1, 100), Some(Duration::from_secs(1)));
        assert_eq!((eta(100, 0), eta(100, 10)), (None, Some(Duration::from_secs(10))));
    }
}
