//! Stored counts and their comparison with new ones.

use std::collections::BTreeMap;
use std::fs;

/// Counts of one scenario per unit, by the kind of count.
pub type ScenarioCounts = BTreeMap<String, f64>;

/// Counts by scenario.
pub type Counts = BTreeMap<String, ScenarioCounts>;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/counts/baseline.json");

/// Tolerated relative growth of a count.
const TOLERANCE: f64 = 0.05;

/// Additional tolerated growth of an allocation count: from none to one in a hundred units.
const FEW_ALLOCATIONS: f64 = 0.01;

/// Counts that new ones are compared with.
pub struct Baseline(Counts);

impl Baseline {
    pub fn read() -> Result<Self, String> {
        let text = fs::read_to_string(PATH).map_err(|error| format!("{PATH}: {error}"))?;
        let counts = serde_json::from_str(&text).map_err(|error| format!("{PATH}: {error}"))?;
        Ok(Self(counts))
    }

    /// Replaces the stored counts of these scenarios.
    pub fn update(counts: Counts) -> Result<(), String> {
        let mut all = Self::read().map_or_else(|_| Counts::new(), |baseline| baseline.0);
        all.extend(counts);
        let rounded = |count: &mut f64| *count = (*count * 1000.0).round() / 1000.0;
        all.values_mut().flat_map(BTreeMap::values_mut).for_each(rounded);
        let text = serde_json::to_string_pretty(&all).unwrap() + "\n";
        fs::write(PATH, text).map_err(|error| format!("{PATH}: {error}"))?;
        println!("written: {PATH}");
        Ok(())
    }

    /// Prints a table and returns descriptions of the counts that have grown too much.
    pub fn compare(&self, counts: &Counts) -> Vec<String> {
        let mut grown = Vec::new();
        println!(
            "{:<10} {:<26} {:>14} {:>14} {:>9}",
            "scenario", "what", "baseline", "now", "change"
        );
        for (scenario, counts) in counts {
            for (what, &now) in counts {
                let before = self.0.get(scenario).and_then(|counts| counts.get(what)).copied();
                let Some(before) = before else {
                    println!("{scenario:<10} {what:<26} {:>14} {now:>14.3}", "none");
                    grown.push(format!("{scenario}: no {what} in the baseline; UPDATE=1 writes them"));
                    continue;
                };
                let change = change(before, now);
                println!("{scenario:<10} {what:<26} {before:>14.3} {now:>14.3} {change:>9}");
                if has_grown(what, before, now) {
                    grown.push(format!(
                        "{scenario}: {what} have grown from {before:.3} to {now:.3} ({change})"
                    ));
                }
            }
        }
        grown
    }
}

fn has_grown(what: &str, before: f64, now: f64) -> bool {
    let few = if what.starts_with("allocations") {
        FEW_ALLOCATIONS
    } else {
        0.0
    };
    now > before * (1.0 + TOLERANCE) + few
}

fn change(before: f64, now: f64) -> String {
    if before == 0.0 {
        return if now == 0.0 { "none".into() } else { "new".into() };
    }
    format!("{:+.2} %", (now / before - 1.0) * 100.0)
}
