//! The log: lines for the standard error stream, written by a dedicated thread.
//!
//! Logging only queues a line. A stalled reader of the log (a terminal on Ctrl-S, a full pipe) stalls neither the
//! engine nor the API. If the queue is full, new lines are dropped and counted. The count is written as soon as the
//! reader reads again. Repeated lines of one kind are summed up ([`Repeats`]).

mod repeats;
#[cfg_attr(not(feature = "daemon"), allow(dead_code, reason = "only the daemon has a log file"))]
mod rotating;

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

pub(super) use self::repeats::Repeats;
pub(super) use self::rotating::RotatingFile;

/// Maximum number of queued lines: less than 1 MiB at the usual line length. Further lines are dropped.
const MAX_LINES: usize = 4096;

/// Time limit for writing the last lines when the command ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval at which repeated lines are summed up, while nothing else is logged.
const SUM_INTERVAL: Duration = Duration::from_secs(1);

/// The time at the head of a line: none on a terminal, where a user sees a line when it is written.
#[derive(Clone, Copy)]
pub(super) struct LineTime {
    pub(super) is_shown: bool,
}

impl FormatTime for LineTime {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        match self.is_shown {
            true => SystemTime.format_time(line),
            false => Ok(()),
        }
    }
}

impl LineTime {
    /// Formats a line of the log's own.
    fn line(self, text: &str) -> String {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = self.format_time(&mut Writer::new(&mut line));
        if self.is_shown {
            line.push(' ');
        }
        line + text + "\n"
    }
}

/// A handle that queues lines for the log's thread. Clones share the thread.
#[derive(Clone)]
pub(super) struct Log {
    queue: Sender<Entry>,
    /// Number of lines that did not fit into the queue.
    dropped: Arc<AtomicU64>,
}

/// An entry in the queue of the log's thread.
enum Entry {
    Line(Vec<u8>),
    /// A request to answer when all earlier entries are written.
    Written(Sender<()>),
    /// A file that gets all later lines too.
    AddFile(Box<RotatingFile>),
}

impl Log {
    /// Starts the log's thread, which passes each line to `write`. `write` may block indefinitely.
    pub(super) fn start(
        time: LineTime,
        repeats: Repeats,
        write: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, entries) = bounded(MAX_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Self {
            queue,
            dropped: dropped.clone(),
        };
        thread::Builder::new()
            .name("ecs-torrent-log".into())
            .spawn(move || write_lines(&entries, &dropped, time, &repeats, write))?;
        Ok(log)
    }

    /// Adds a file, which gets all later lines. The log's thread writes it, so that a slow disk stalls nothing else.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code, reason = "only the daemon has a log file"))]
    pub(super) fn add_file(&self, file: RotatingFile) {
        // This fails only if the thread is gone, and the log with it.
        let _ = self.queue.send(Entry::AddFile(Box::new(file)));
    }

    /// Waits until all queued lines are written, but at most for [`CLOSE_TIMEOUT`].
    pub(super) fn close(&self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let (answer, is_written) = bounded(1);
        if self.queue.send_deadline(Entry::Written(answer), deadline).is_ok() {
            // Fails at the deadline, or if the thread is gone: the command ends in either case.
            let _ = is_written.recv_deadline(deadline);
        }
    }
}

fn write_lines(
    entries: &Receiver<Entry>,
    dropped: &AtomicU64,
    time: LineTime,
    repeats: &Repeats,
    write: impl FnMut(&[u8]),
) {
    let mut reported = 0;
    let mut output = Output {
        write,
        file: None,
        has_failed: false,
        time,
    };
    loop {
        let line = match entries.recv_timeout(SUM_INTERVAL) {
            Ok(Entry::Line(line)) => Some(line),
            Ok(Entry::Written(answer)) => {
                // If this fails, no caller waits any longer.
                let _ = answer.try_send(());
                continue;
            }
            Ok(Entry::AddFile(file)) => {
                output.file = Some(file);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        for sum in repeats.sums(Instant::now()) {
            output.line(time.line(&sum).as_bytes());
        }
        let Some(line) = line else { continue };
        output.line(&line);
        let dropped = dropped.load(Ordering::Acquire);
        if dropped > reported {
            let lines = dropped - std::mem::replace(&mut reported, dropped);
            let text = format!(" WARN {lines} log lines were dropped: the log is read too slowly");
            output.line(time.line(&text).as_bytes());
        }
    }
}

/// The places that lines go to.
struct Output<W> {
    write: W,
    file: Option<Box<RotatingFile>>,
    /// Whether the latest line could not be written to the file.
    has_failed: bool,
    time: LineTime,
}

impl<W: FnMut(&[u8])> Output<W> {
    /// Writes a line to the file first, whose writing takes a bounded time.
    fn line(&mut self, line: &[u8]) {
        if let Some(file) = &mut self.file {
            let written = file.write(&plain(line, self.time));
            let was_failed = std::mem::replace(&mut self.has_failed, written.is_err());
            if let Some(error) = written.err().filter(|_| !was_failed) {
                let text = format!(" WARN cannot write the log file: {error}");
                (self.write)(self.time.line(&text).as_bytes());
            }
        }
        (self.write)(line);
    }
}

/// Returns a line as a file has it: with its time, and without colors.
fn plain(line: &[u8], time: LineTime) -> Cow<'_, [u8]> {
    if time.is_shown {
        return line.into();
    }
    let text = String::from_utf8_lossy(line);
    let text = console::strip_ansi_codes(&text);
    let time = LineTime { is_shown: true };
    time.line(text.trim_end_matches('\n')).into_bytes().into()
}

/// A writer that queues each line.
pub(super) struct LogWriter<'l>(&'l Log);

impl Write for LogWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.0.dropped.fetch_add(1, Ordering::AcqRel);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> LogWriter<'a> {
        LogWriter(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Queues and then drops lines without blocking while the reader stalls, and reports the count once afterward.
    #[test]
    fn a_stalled_reader_costs_lines() {
        let (resume, is_resumed) = channel::<()>();
        let (sender, written) = channel();
        let log = Log::start(
            LineTime { is_shown: false },
            Repeats::default(),
            move |line: &[u8]| {
                let _ = is_resumed.recv();
                sender.send(String::from_utf8(line.to_vec()).unwrap()).unwrap();
            },
        );
        let log = log.unwrap();
        let count = 3 * MAX_LINES;
        for number in 0..count {
            writeln!(log.make_writer(), "{number}").unwrap();
        }
        drop(resume);
        log.close();
        let lines: Vec<String> = written.try_iter().collect();
        let (reports, kept): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains("were dropped"));
        assert!(kept.len() <= MAX_LINES + 1, "{} lines kept", kept.len());
        assert_eq!(reports.len(), 1, "{reports:?}");
        let dropped: usize = reports[0].split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(dropped >= count - MAX_LINES - 1, "{dropped} of {count}");
    }

    /// A line in a file or a pipe begins with its time.
    #[test]
    fn a_line_has_its_time_unless_a_user_watches() {
        let line = |is_shown| LineTime { is_shown }.line(" WARN dropped");
        assert_eq!(line(false), " WARN dropped\n");
        let shown = line(true);
        let (time, text) = shown.split_once("  ").unwrap();
        assert_eq!(text, "WARN dropped\n");
        let is_time = time.len() > 20 && time.starts_with("20") && time.ends_with('Z');
        assert!(is_time && time.as_bytes()[10] == b'T', "{shown}");
    }
}
