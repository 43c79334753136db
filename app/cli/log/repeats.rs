//! Repeated lines of the log: a few of each kind are written, and the others are summed up in one line.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

/// Lines of one kind that are written within [`WINDOW`]: enough to see what they have in common.
const MAX_LINES: u64 = 10;

/// Time after which the lines of one kind are summed up, and counted again from zero.
const WINDOW: Duration = Duration::from_secs(10);

/// Limits the lines that one statement of the program writes. Clones share the counts. Lines that a user asked for by a
/// debug level are not limited.
#[derive(Clone, Default)]
pub(in crate::cli) struct Repeats(Arc<Mutex<HashMap<Identifier, Kind>>>);

/// The lines of one statement.
struct Kind {
    level: Level,
    since: Instant,
    count: u64,
    /// The message of the first line that was not written.
    message: String,
}

impl Repeats {
    /// Counts a line; returns whether it is written.
    fn admit(&self, now: Instant, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kinds.entry(metadata.callsite()).or_insert_with(|| Kind {
            level: *metadata.level(),
            since: now,
            count: 0,
            message: String::new(),
        });
        if kind.count <= MAX_LINES && now - kind.since >= WINDOW {
            (kind.since, kind.count) = (now, 0);
        }
        kind.count += 1;
        if kind.count == MAX_LINES + 1 {
            kind.message.clear();
            event.record(&mut Message(&mut kind.message));
        }
        kind.count <= MAX_LINES
    }

    /// Returns the lines that sum up the suppressed ones, for the kinds whose window is over.
    pub(super) fn sums(&self, now: Instant) -> Vec<String> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = kinds
            .values_mut()
            .filter(|kind| kind.count > MAX_LINES && now - kind.since >= WINDOW);
        let sum = |kind: &mut Kind| {
            let more = kind.count - MAX_LINES;
            (kind.since, kind.count) = (now, 0);
            format!("{:>5} {more} more lines like this: {}", kind.level, kind.message)
        };
        over.map(sum).collect()
    }
}

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.admit(Instant::now(), event)
    }
}

/// Takes the message of an event, or else its fields.
struct Message<'m>(&'m mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::Layer as _;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Ten thousand torrents that meet a full disk are ten lines and a sum.
    #[test]
    fn repeated_warnings_are_summed() {
        let (lines, repeats) = (Lines::default(), Repeats::default());
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer.with_filter(repeats.clone()));
        tracing::subscriber::with_default(subscriber, || {
            for torrent in 0..10_000 {
                tracing::warn!(torrent, "blocked: no space left");
            }
            tracing::warn!("of another kind");
            for _ in 0..20 {
                tracing::debug!("asked for");
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let count = |what| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(count("no space left"), 10);
        assert_eq!((count("of another kind"), count("asked for")), (1, 20));
        assert!(repeats.sums(Instant::now()).is_empty(), "the time is not over");
        let later = Instant::now() + WINDOW;
        let sums = repeats.sums(later);
        assert_eq!(sums.len(), 1, "{sums:?}");
        assert!(sums[0].starts_with(" WARN 9990 more lines like this: "), "{sums:?}");
        assert!(sums[0].contains("blocked: no space left"), "{sums:?}");
        assert!(repeats.sums(later + WINDOW).is_empty(), "reported once");
    }
}
