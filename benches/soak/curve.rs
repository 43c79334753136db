//! Measurements over time, and the verdict on them.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;

/// Maximum time that an authenticated client may wait for an answer.
const MAX_ANSWER: Duration = Duration::from_secs(2);

/// Maximum growth of memory from the first quarter of the attacks to the last, in KiB.
const MAX_GROWTH_KIB: u64 = 64 << 10;

/// One measurement of the daemon.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Sample {
    /// Seconds since the start.
    pub seconds: f64,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Processor time used so far, in seconds.
    pub cpu_seconds: f64,
    /// Bytes of the honest transfer so far.
    pub bytes: u64,
    /// Time for an authenticated answer of the API, in seconds; `None` if there was no answer.
    pub answer_seconds: Option<f64>,
    /// Whether the process is running.
    pub is_running: bool,
}

impl Sample {
    pub const HEADING: &str = "  time     memory      CPU   honest transfer    API answer";

    pub fn take(time: Duration, daemon: &Daemon, bytes: u64) -> Self {
        let begun = Instant::now();
        let answer = daemon.request("GET", "/api/v1/torrents?fields=name", b"");
        let answer_seconds = answer
            .filter(|(status, _)| *status == 200)
            .map(|_| begun.elapsed().as_secs_f64());
        let (resident_kib, cpu) = daemon.usage();
        Self {
            seconds: time.as_secs_f64(),
            resident_kib,
            cpu_seconds: cpu.as_secs_f64(),
            bytes,
            answer_seconds,
            is_running: daemon.is_running(),
        }
    }
}

pub struct Curve {
    quiet: f64,
    samples: Vec<Sample>,
    after: Option<Sample>,
}

impl Curve {
    /// Creates a curve whose first `quiet` is without attacks.
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet: quiet.as_secs_f64(),
            samples: Vec::new(),
            after: None,
        }
    }

    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Records the measurement taken after the attacks.
    pub fn push_after(&mut self, sample: Sample) {
        self.after = Some(sample);
    }

    /// Returns the last minute in one line.
    pub fn last_line(&self) -> String {
        let Some(last) = self.samples.last() else {
            return String::new();
        };
        let first = self
            .samples
            .iter()
            .find(|sample| sample.seconds + 60.0 >= last.seconds)
            .unwrap_or(last);
        let answer = last
            .answer_seconds
            .map_or("none".to_owned(), |seconds| format!("{:.0} ms", seconds * 1000.0));
        format!(
            "{:>4.0} s  {:>6.1} MiB  {:>5.1} %   {:>8.1} MiB/s   {answer:>10}",
            last.seconds,
            last.resident_kib as f64 / 1024.0,
            rate(first, last, |sample| sample.cpu_seconds) * 100.0,
            rate(first, last, |sample| sample.bytes as f64) / f64::from(1 << 20),
        )
    }

    /// Returns one line with the results, or the reasons why they are not good.
    pub fn verdict(&self) -> Result<String, Vec<String>> {
        let (quiet, attacked): (Vec<&Sample>, Vec<&Sample>) =
            self.samples.iter().partition(|sample| sample.seconds <= self.quiet);
        let quarter = attacked.len().div_ceil(4).max(1);
        let memory = |samples: &[&Sample]| median(samples.iter().map(|sample| sample.resident_kib));
        let (begin, end) = (
            memory(&attacked[..quarter.min(attacked.len())]),
            memory(&attacked[attacked.len().saturating_sub(quarter)..]),
        );
        let slowest = attacked
            .iter()
            .map(|sample| sample.answer_seconds.unwrap_or(f64::INFINITY))
            .fold(0.0, f64::max);
        let mut failures = Vec::new();
        if self.samples.iter().any(|sample| !sample.is_running) {
            failures.push("the daemon ended".to_owned());
        }
        if end > begin + MAX_GROWTH_KIB {
            failures.push(format!("memory grew from {} to {} MiB", begin >> 10, end >> 10));
        }
        if slowest > MAX_ANSWER.as_secs_f64() {
            failures.push(format!("the API needed {slowest:.1} s for an answer"));
        }
        let still = attacked
            .windows(12)
            .filter(|minute| minute[0].bytes == minute[11].bytes)
            .count();
        if still > 0 {
            failures.push(format!("the honest transfer stood still for a minute, {still} times"));
        }
        if !failures.is_empty() {
            return Err(failures);
        }
        let speed = |samples: &[&Sample]| match samples {
            [first, .., last] => rate(first, last, |sample| sample.bytes as f64) / f64::from(1 << 20),
            _ => 0.0,
        };
        let peak = self.samples.iter().map(|sample| sample.resident_kib).max().unwrap_or(0);
        Ok(format!(
            "honest transfer: {:.1} MiB/s alone, {:.1} MiB/s under attack; memory: {} MiB at the begin of the attacks, {} MiB at their end, {} MiB at most, {} MiB behind them; slowest answer of the API: {:.0} ms",
            speed(&quiet),
            speed(&attacked),
            begin >> 10,
            end >> 10,
            peak >> 10,
            self.after.as_ref().map_or(0, |sample| sample.resident_kib >> 10),
            slowest * 1000.0
        ))
    }

    pub fn to_json(&self) -> String {
        let all: Vec<&Sample> = self.samples.iter().chain(&self.after).collect();
        serde_json::to_string_pretty(&all).unwrap_or_default()
    }

    /// Plots memory and throughput over time.
    pub fn to_svg(&self) -> String {
        const WIDTH: f64 = 720.0;
        const HEIGHT: f64 = 240.0;
        let end = self.samples.last().map_or(1.0, |sample| sample.seconds.max(1.0));
        let memory: Vec<(f64, f64)> = self
            .samples
            .iter()
            .map(|sample| (sample.seconds, sample.resident_kib as f64 / 1024.0))
            .collect();
        let speed: Vec<(f64, f64)> = self
            .samples
            .windows(2)
            .map(|pair| {
                (
                    pair[1].seconds,
                    rate(&pair[0], &pair[1], |sample| sample.bytes as f64) / f64::from(1 << 20),
                )
            })
            .collect();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
            WIDTH + 80.0,
            HEIGHT * 2.0 + 100.0
        );
        for (row, (title, points)) in [("memory, MiB", memory), ("honest transfer, MiB/s", speed)]
            .into_iter()
            .enumerate()
        {
            let top = 30.0 + row as f64 * (HEIGHT + 50.0);
            let most = points.iter().map(|point| point.1).fold(1.0, f64::max);
            let line: Vec<String> = points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", 50.0 + x / end * WIDTH, top + HEIGHT - y / most * HEIGHT))
                .collect();
            let begin = 50.0 + self.quiet / end * WIDTH;
            // Writing into a string cannot fail.
            let _ = writeln!(
                svg,
                "<text x=\"50\" y=\"{:.1}\">{title} (at most {most:.0}) over {:.0} minutes; the attacks begin at the line</text>\n\
                 <line x1=\"{begin:.1}\" y1=\"{top:.1}\" x2=\"{begin:.1}\" y2=\"{:.1}\" stroke=\"#c33\"/>\n\
                 <polyline fill=\"none\" stroke=\"#36c\" points=\"{}\"/>\n\
                 <line x1=\"50\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#888\"/>",
                top - 8.0,
                end / 60.0,
                top + HEIGHT,
                line.join(" "),
                top + HEIGHT,
                50.0 + WIDTH,
                top + HEIGHT,
            );
        }
        svg + "</svg>\n"
    }
}

/// Returns the growth of a figure per second.
fn rate(first: &Sample, last: &Sample, figure: impl Fn(&Sample) -> f64) -> f64 {
    let seconds = last.seconds - first.seconds;
    if seconds > 0.0 {
        (figure(last) - figure(first)) / seconds
    } else {
        0.0
    }
}

fn median(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
