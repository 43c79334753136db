//! The table of costs and the rows that exceed a limit.

use serde::Serialize;

use crate::meter::Cost;

/// Maximum CPU time per byte in nanoseconds.
const MAX_TIME: f64 = 100.0;

/// Maximum peak memory in bytes per byte of input.
const MAX_MEMORY: f64 = 64.0;

/// Cost of one kind of input.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Where the input enters.
    group: &'static str,
    /// Description of the input.
    name: &'static str,
    /// Number of bytes of input.
    bytes: usize,
    ns_per_byte: f64,
    memory_per_byte: f64,
    /// The bound on the cost of a row that is not limited per byte.
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

    /// Exempts the row from the limits per byte if `bound` names another bound.
    pub fn exempt(self, bound: Option<&'static str>) -> Self {
        Self { exempt: bound, ..self }
    }

    /// Describes how the row exceeds a limit.
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

/// Prints the rows and returns descriptions of those that exceed a limit.
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
