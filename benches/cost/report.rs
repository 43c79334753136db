//! The table, and what in it is too much.

use serde::Serialize;

use crate::meter::Cost;

/// Most nanoseconds of a processor for each byte of a stranger.
const MAX_TIME: f64 = 100.0;

/// Most bytes of memory for each byte of a stranger.
const MAX_MEMORY: f64 = 64.0;

/// What one kind of input cost.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where the input goes in.
    group: &'static str,
    /// What it is.
    name: &'static str,
    /// Bytes of it.
    bytes: usize,
    ns_per_byte: f64,
    memory_per_byte: f64,
    /// What bounds the cost, where it is no multiple of the bytes.
    exempt: Option<&'static str>,
}

impl Row {
    pub fn new(group: &'static str, name: &'static str, bytes: usize, cost: Cost) -> Self {
        let per_byte = |what: f64| what / bytes.max(1) as f64;
        Self {
            group,
            name,
            bytes,
            ns_per_byte: per_byte(cost.time.as_nanos() as f64),
            memory_per_byte: per_byte(cost.memory as f64),
            exempt: None,
        }
    }

    /// A row that may cost more for each byte, since something else than bytes bounds it.
    pub fn exempt(self, bound: Option<&'static str>) -> Self {
        Self { exempt: bound, ..self }
    }

    /// What is too much about it.
    fn excess(&self) -> Option<String> {
        let is_excessive = self.ns_per_byte > MAX_TIME || self.memory_per_byte > MAX_MEMORY;
        (is_excessive && self.exempt.is_none()).then(|| {
            let Self {
                group,
                name,
                ns_per_byte,
                memory_per_byte,
                ..
            } = self;
            format!("{group}, {name}: {ns_per_byte:.1} ns and {memory_per_byte:.1} bytes a byte")
        })
    }

    fn print(&self) {
        let Self { group, name, bytes, .. } = self;
        let note = match self.exempt {
            _ if self.excess().is_some() => "TOO MUCH",
            Some(bound) => bound,
            None => "",
        };
        println!(
            "{group:<10} {name:<44} {:>9} {:>10.2} {:>10.2}  {note}",
            bytes >> 10,
            self.ns_per_byte,
            self.memory_per_byte
        );
    }
}

/// Prints the rows, and returns those that cost too much.
pub fn report(rows: &[Row], is_json: bool) -> Vec<String> {
    if is_json {
        println!("{}", serde_json::to_string_pretty(rows).unwrap());
    } else {
        println!(
            "{:<10} {:<44} {:>9} {:>10} {:>10}",
            "input", "what", "KiB", "ns/byte", "bytes/byte"
        );
        rows.iter().for_each(Row::print);
    }
    rows.iter().filter_map(Row::excess).collect()
}
