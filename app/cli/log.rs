//! The log: lines for the standard error stream and for a file, each written by a dedicated thread.
//!
//! Logging only queues a line. A stalled reader of the log (a terminal on Ctrl-S, a full pipe) stalls neither the
//! engine, nor the API, nor the file. If a queue is full, new lines are dropped and counted. The count is written as
//! soon as lines can be written again. Repeated lines of one kind are summed up ([`Repeats`]).

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

/// Maximum number of lines in each queue: less than 1 MiB at the usual line length. Further lines are dropped.
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

/// A handle that queues lines for the log's threads. Clones share the threads.
#[derive(Clone)]
pub(super) struct Log {
    queue: Sender<Entry>,
    dropped: Dropped,
}

/// The numbers of lines that did not fit into a queue.
#[derive(Clone, Default)]
struct Dropped {
    /// Lines that the file lacks.
    unwritten: Arc<AtomicU64>,
    /// Lines that the standard error stream lacks.
    unshown: Arc<AtomicU64>,
}

/// An entry in the queue of the first thread, which writes the file.
enum Entry {
    Line(Vec<u8>),
    /// A request to answer when all earlier entries are written, and the time after which no caller waits for that.
    Written(Sender<()>, Instant),
    /// A file that gets all later lines too.
    AddFile(Box<RotatingFile>),
}

/// An entry in the queue of the second thread, which writes the standard error stream.
enum Shown {
    Line(Vec<u8>),
    /// A request to answer when all earlier lines are written.
    Written(Sender<()>),
}

impl Log {
    /// Starts the log's threads, which pass each line to `write`. `write` may block indefinitely.
    pub(super) fn start(
        time: LineTime,
        repeats: Repeats,
        write: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, entries) = bounded(MAX_LINES);
        let (screen, shown) = bounded(MAX_LINES);
        let dropped = Dropped::default();
        let log = Self {
            queue,
            dropped: dropped.clone(),
        };
        let unshown = Report::new(&dropped.unshown, "the log is read too slowly", time);
        thread::Builder::new()
            .name("ecs-torrent-log".into())
            .spawn(move || show_lines(&shown, unshown, write))?;
        let output = Output {
            screen,
            file: None,
            has_failed: false,
            unwritten: Report::new(&dropped.unwritten, "the log file is written too slowly", time),
            dropped,
            time,
        };
        thread::Builder::new()
            .name("ecs-torrent-log-file".into())
            .spawn(move || write_lines(&entries, output, &repeats))?;
        Ok(log)
    }

    /// Adds a file, which gets all later lines.
    #[cfg_attr(not(feature = "daemon"), allow(dead_code, reason = "only the daemon has a log file"))]
    pub(super) fn add_file(&self, file: RotatingFile) {
        // This fails only if the thread is gone, and the log with it.
        let _ = self.queue.send(Entry::AddFile(Box::new(file)));
    }

    /// Waits until all queued lines are written, but at most for [`CLOSE_TIMEOUT`].
    pub(super) fn close(&self) {
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let (answer, is_written) = bounded(1);
        let request = Entry::Written(answer, deadline);
        if self.queue.send_deadline(request, deadline).is_ok() {
            // Fails at the deadline, or if a thread is gone: the command ends in either case.
            let _ = is_written.recv_deadline(deadline);
        }
    }
}

/// Writes the queued lines to the file, and passes them on.
fn write_lines(entries: &Receiver<Entry>, mut output: Output, repeats: &Repeats) {
    loop {
        let line = match entries.recv_timeout(SUM_INTERVAL) {
            Ok(Entry::Line(line)) => Some(line),
            Ok(Entry::Written(answer, deadline)) => {
                // If this fails, no caller waits any longer.
                let _ = output.screen.send_deadline(Shown::Written(answer), deadline);
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
            let sum = output.time.line(&sum);
            output.line(sum.into_bytes());
        }
        let Some(line) = line else { continue };
        output.line(line);
        if let Some(report) = output.unwritten.next() {
            output.write(report.as_bytes());
        }
    }
}

/// Writes the lines of the standard error stream.
fn show_lines(lines: &Receiver<Shown>, mut unshown: Report, mut write: impl FnMut(&[u8])) {
    for entry in lines {
        match entry {
            Shown::Line(line) => {
                write(&line);
                if let Some(report) = unshown.next() {
                    write(report.as_bytes());
                }
            }
            // If this fails, no caller waits any longer.
            Shown::Written(answer) => drop(answer.try_send(())),
        }
    }
}

/// A report on lines that a place of the log lacks.
struct Report {
    dropped: Arc<AtomicU64>,
    reported: u64,
    reason: &'static str,
    time: LineTime,
}

impl Report {
    fn new(dropped: &Arc<AtomicU64>, reason: &'static str, time: LineTime) -> Self {
        Self {
            dropped: dropped.clone(),
            reported: 0,
            reason,
            time,
        }
    }

    /// Returns a line with the number of lines that were dropped since the last report.
    fn next(&mut self) -> Option<String> {
        let dropped = self.dropped.load(Ordering::Acquire);
        let count = dropped - std::mem::replace(&mut self.reported, dropped);
        let text = |reason| format!(" WARN {count} log lines were dropped: {reason}");
        (count > 0).then(|| self.time.line(&text(self.reason)))
    }
}

/// The places that lines go to.
struct Output {
    screen: Sender<Shown>,
    file: Option<Box<RotatingFile>>,
    /// Whether the latest line could not be written to the file.
    has_failed: bool,
    unwritten: Report,
    dropped: Dropped,
    time: LineTime,
}

impl Output {
    /// Writes a line to the file, and queues it for the standard error stream.
    fn line(&mut self, line: Vec<u8>) {
        self.write(&line);
        self.show(line);
    }

    /// Writes a line to the file, if there is one.
    fn write(&mut self, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let written = file.write(&plain(line, self.time));
        let was_failed = std::mem::replace(&mut self.has_failed, written.is_err());
        if let Some(error) = written.err().filter(|_| !was_failed) {
            let text = format!(" WARN cannot write the log file: {error}");
            self.show(self.time.line(&text).into_bytes());
        }
    }

    fn show(&self, line: Vec<u8>) {
        if self.screen.try_send(Shown::Line(line)).is_err() {
            self.dropped.unshown.fetch_add(1, Ordering::AcqRel);
        }
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

/// A writer that queues each line. A line that does not fit is missing in the file and on the standard error stream.
pub(super) struct LogWriter<'l>(&'l Log);

impl Write for LogWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.0.dropped.unwritten.fetch_add(1, Ordering::AcqRel);
            self.0.dropped.unshown.fetch_add(1, Ordering::AcqRel);
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
        let (begin, is_begun) = channel();
        let (sender, written) = channel();
        let log = Log::start(
            LineTime { is_shown: false },
            Repeats::default(),
            move |line: &[u8]| {
                begin.send(()).unwrap();
                let _ = is_resumed.recv();
                sender.send(String::from_utf8(line.to_vec()).unwrap()).unwrap();
            },
        );
        let log = log.unwrap();
        let count = 3 * MAX_LINES;
        for number in 0..count {
            // One write is one line.
            log.make_writer().write_all(format!("{number}\n").as_bytes()).unwrap();
            if number == 0 {
                is_begun.recv().unwrap();
            }
        }
        // The stalled thread has one line, and its queue is full.
        let dropped = count - MAX_LINES - 1;
        while log.dropped.unshown.load(Ordering::Acquire) < dropped as u64 {
            thread::yield_now();
        }
        drop(resume);
        log.close();
        let lines: Vec<String> = written.try_iter().collect();
        let (reports, kept): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains("were dropped"));
        assert_eq!(kept.len(), MAX_LINES + 1);
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].contains(&format!("{dropped} log lines")), "{reports:?}");
    }

    /// Lines reach the file while the standard error stream stalls.
    #[test]
    fn a_stalled_reader_costs_the_file_nothing() {
        let (resume, is_resumed) = channel::<()>();
        let log = Log::start(LineTime { is_shown: false }, Repeats::default(), move |_: &[u8]| {
            let _ = is_resumed.recv();
        });
        let log = log.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        log.add_file(RotatingFile::open(&path, u64::MAX, 1).unwrap());
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        let mut count = 0;
        // More lines than the queues hold together, in parts that the first queue holds.
        for _ in 0..6 {
            for _ in 0..MAX_LINES / 2 {
                writeln!(log.make_writer(), "a line").unwrap();
            }
            count += MAX_LINES / 2;
            while lines() < count {
                thread::yield_now();
            }
        }
        drop(resume);
        assert_eq!(lines(), count);
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
