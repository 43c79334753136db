//! The log: lines for the standard error stream, written by a thread of its own.
//!
//! Whoever logs only queues a line: a reader of the log that stalls, like a terminal on Ctrl-S or a full pipe, stalls
//! neither the engine nor the API. Lines that find the queue full are dropped and counted, and the count is written as
//! soon as lines are read again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the reader of the log; with lines of usual length that is less than a MiB.
const MAX_LINES: usize = 4096;

/// Time that the last lines get when the command ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue's inner end; clones lead to the same thread.
#[derive(Clone)]
pub(super) struct Log {
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    queued: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
}

impl Log {
    /// Starts the thread. It hands each line to `write`, which may take as long as it likes.
    pub(super) fn start(write: impl FnMut(&[u8]) + Send + 'static) -> io::Result<Self> {
        let (lines, queue) = sync_channel(MAX_LINES);
        let counts = Arc::new(Counts::default());
        let log = Self {
            lines,
            counts: counts.clone(),
        };
        thread::Builder::new()
            .name("ecs-torrent-log".into())
            .spawn(move || write_lines(&queue, &counts, write))?;
        Ok(log)
    }

    /// Waits until all lines are written, for a second at most.
    pub(super) fn close(&self) {
        let began = Instant::now();
        let is_written = || {
            let written = self.counts.written.load(Ordering::Acquire);
            written >= self.counts.queued.load(Ordering::Acquire)
        };
        while !is_written() && began.elapsed() < CLOSE_TIMEOUT {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_lines(queue: &Receiver<Vec<u8>>, counts: &Counts, mut write: impl FnMut(&[u8])) {
    let mut told = 0;
    loop {
        let line = match queue.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let Ok(line) = queue.recv() else { return };
                line
            }
        };
        write(&line);
        let dropped = counts.dropped.load(Ordering::Acquire);
        if dropped > told {
            let lines = dropped - std::mem::replace(&mut told, dropped);
            write(format!(" WARN {lines} log lines were dropped: nobody has read them in time\n").as_bytes());
        }
        counts.written.fetch_add(1, Ordering::Release);
    }
}

/// Queues a line.
pub(super) struct LogWriter<'l>(&'l Log);

impl Write for LogWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let counts = &self.0.counts;
        // Counted before it is sent, so that it cannot be written first.
        counts.queued.fetch_add(1, Ordering::AcqRel);
        if self.0.lines.try_send(line.to_vec()).is_err() {
            counts.queued.fetch_sub(1, Ordering::AcqRel);
            counts.dropped.fetch_add(1, Ordering::AcqRel);
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

    /// While the reader stalls, lines are taken and then dropped, and nobody waits; then the count is told, once.
    #[test]
    fn a_stalled_reader_costs_lines() {
        let (resume, is_resumed) = channel::<()>();
        let (sender, written) = channel();
        let log = Log::start(move |line: &[u8]| {
            let _ = is_resumed.recv();
            sender.send(String::from_utf8(line.to_vec()).unwrap()).unwrap();
        });
        let log = log.unwrap();
        let count = 3 * MAX_LINES;
        for number in 0..count {
            writeln!(log.make_writer(), "{number}").unwrap();
        }
        drop(resume);
        log.close();
        let lines: Vec<String> = written.try_iter().collect();
        let (told, kept): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line.contains("were dropped"));
        // Every line is written with its end apart.
        assert!(kept.len() <= MAX_LINES + 1, "{} lines kept", kept.len());
        assert_eq!(told.len(), 1, "{told:?}");
        let dropped: usize = told[0].split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(dropped >= count - MAX_LINES - 1, "{dropped} of {count}");
    }
}
