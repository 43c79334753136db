//! Medians, ratios and goals, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::clients::Client;
use crate::options::Options;
use crate::rows::{Bound, Goal, Metric, Row};
use crate::work::Results;

/// The client whose figures are compared with the others'.
pub const OURS: &str = "ecs-torrent";

pub struct Report<'a> {
    pub rows: &'a [&'a Row],
    clients: Vec<(&'static str, String)>,
    results: Results,
    machine: String,
    size: u64,
    runs: usize,
}

/// A figure of ours compared with its goal.
pub struct Verdict {
    pub reached: f64,
    pub bound: f64,
}

impl Verdict {
    pub fn is_met(&self) -> bool {
        self.reached <= self.bound
    }
}

impl<'a> Report<'a> {
    pub fn new(rows: &'a [&'a Row], clients: &[Box<dyn Client>], results: Results, options: &Options) -> Self {
        Self {
            rows,
            clients: clients
                .iter()
                .map(|client| (client.name(), client.version().to_owned()))
                .collect(),
            results,
            machine: machine(),
            size: options.size,
            runs: options.runs,
        }
    }

    /// The clients with a figure in a row.
    pub fn clients(&self, row: &Row) -> Vec<&'static str> {
        let names = self.clients.iter().map(|(name, _)| *name);
        names
            .filter(|name| self.results.contains_key(&(row.name, *name)))
            .collect()
    }

    /// The median of a client's successful runs.
    pub fn median(&self, row: &Row, client: &str, metric: Metric) -> Option<f64> {
        let runs = self
            .results
            .iter()
            .find(|((name, who), _)| *name == row.name && *who == client)?
            .1;
        let measured = runs.iter().flatten().flatten().filter(|(which, _)| *which == metric);
        let mut values: Vec<f64> = measured.map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            len if len % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
            _ => Some(values[middle]),
        }
    }

    /// Compares a figure with its goal. Returns `None` if a figure is missing.
    pub fn verdict(&self, row: &Row, goal: &Goal) -> Option<Verdict> {
        let ours = self.median(row, OURS, goal.metric)?;
        Some(match goal.bound {
            Bound::AtMost(bound) => Verdict { reached: ours, bound },
            Bound::Times(bound, client) => Verdict {
                reached: ours / self.median(row, client, goal.metric)?,
                bound,
            },
            Bound::TimesOwn(bound, metric) => Verdict {
                reached: ours / self.median(row, OURS, metric)?,
                bound,
            },
        })
    }

    fn metrics(&self, row: &Row) -> Vec<Metric> {
        let runs = self.results.iter().filter(|((name, _), _)| *name == row.name);
        let measured = runs.flat_map(|(_, runs)| runs.iter().flatten().flatten());
        let mut metrics: Vec<Metric> = measured.map(|(metric, _)| *metric).collect();
        metrics.sort();
        metrics.dedup();
        metrics
    }

    pub fn title(&self) -> String {
        format!("{} MiB, medians of {} runs, {}", self.size, self.runs, self.machine)
    }

    pub fn print(&self) {
        println!("\n{}", self.title());
        for (name, version) in &self.clients {
            print!("{name} {version}  ");
        }
        println!();
        for row in self.rows {
            println!("\n{}: {}", row.name, row.what);
            print!("{}", self.table(row));
            for goal in row.goals {
                match self.verdict(row, goal) {
                    Some(verdict) if verdict.is_met() => println!("  met     {:.2}  {goal}", verdict.reached),
                    Some(verdict) => println!("  MISSED  {:.2}  {goal}", verdict.reached),
                    None => println!("  unknown       {goal}"),
                }
            }
        }
    }

    fn table(&self, row: &Row) -> String {
        let metrics = self.metrics(row);
        let mut text = format!("  {:<14}", "");
        for metric in &metrics {
            let _ = write!(text, "{:>20}", metric.name());
        }
        text.push('\n');
        for client in self.clients(row) {
            let _ = write!(text, "  {client:<14}");
            for metric in &metrics {
                let Some(median) = self.median(row, client, *metric) else {
                    let _ = write!(text, "{:>20}", "-");
                    continue;
                };
                let ratio = self.median(row, OURS, *metric).map(|ours| ours / median);
                let ratio = ratio.filter(|_| client != OURS).map(|ratio| format!(" ({ratio:.2})"));
                let _ = write!(text, "{:>20}", format!("{median:.2}{}", ratio.unwrap_or_default()));
            }
            text.push('\n');
        }
        text
    }

    /// All figures of all runs.
    pub fn json(&self) -> Value {
        let clients: Vec<Value> = self
            .clients
            .iter()
            .map(|(name, version)| json!({ "name": name, "version": version }))
            .collect();
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({ "machine": self.machine, "mib": self.size, "runs": self.runs, "clients": clients, "rows": rows })
    }

    fn row_json(&self, row: &Row) -> Value {
        let mut figures = serde_json::Map::new();
        for client in self.clients(row) {
            let runs = self.results.get(&(row.name, client)).into_iter().flatten();
            let runs: Vec<Value> = runs
                .map(|run| match run {
                    Ok(measured) => measured
                        .iter()
                        .map(|(metric, value)| (metric.name().to_owned(), json!(value)))
                        .collect::<serde_json::Map<_, _>>()
                        .into(),
                    Err(reason) => json!({ "error": reason }),
                })
                .collect();
            let medians: serde_json::Map<_, _> = self
                .metrics(row)
                .into_iter()
                .filter_map(|metric| Some((metric.name().to_owned(), json!(self.median(row, client, metric)?))))
                .collect();
            figures.insert(client.to_owned(), json!({ "median": medians, "runs": runs }));
        }
        let goals: Vec<Value> = row
            .goals
            .iter()
            .map(|goal| {
                let verdict = self.verdict(row, goal);
                json!({
                    "goal": goal.to_string(),
                    "reached": verdict.as_ref().map(|verdict| verdict.reached),
                    "met": verdict.map(|verdict| verdict.is_met()),
                })
            })
            .collect();
        json!({ "row": row.name, "what": row.what, "figures": figures, "goals": goals })
    }

    pub fn write_json(&self, path: Option<&Path>) -> Result<(), String> {
        let Some(path) = path else {
            return Ok(());
        };
        let text = format!("{:#}\n", self.json());
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Describes the machine: processors, memory, kernel.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = read("/proc/meminfo");
    let kib = meminfo
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    let version = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores of {}, {} GiB, Linux {}",
        model.map_or("an unknown processor", |(_, name)| name.trim()),
        kib.unwrap_or(0) >> 20,
        version.trim()
    )
}
