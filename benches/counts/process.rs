//! Runs each scenario in its own process, under valgrind if it is installed.

use std::env;
use std::process::{self, Command, Stdio};
use std::sync::Arc;

use crate::baseline::ScenarioCounts;
use crate::meter::{Meter, TOGGLE};
use crate::scenarios::Scenario;

/// The argument that precedes the name of the scenario to run.
pub const SCENARIO: &str = "--scenario";

/// Runs a scenario in this process and prints the counted units and allocations.
pub fn run_here(scenario: &Scenario) {
    let meter = Arc::new(Meter::default());
    let units = (scenario.run)(&meter);
    println!("{units} {}", meter.allocations());
}

/// Returns whether valgrind is installed and instructions can be counted.
pub fn has_valgrind() -> bool {
    let version = Command::new("valgrind").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// A process that runs a scenario.
pub struct Child(process::Child);

impl Child {
    pub fn spawn(scenario: &Scenario, under_valgrind: bool) -> Self {
        let here = env::current_exe().unwrap();
        let mut command = if under_valgrind {
            let mut command = Command::new("valgrind");
            command.args([
                "--tool=callgrind",
                "--callgrind-out-file=/dev/null",
                "--collect-atstart=no",
            ]);
            command.arg(format!("--toggle-collect={TOGGLE}")).arg(here);
            command
        } else {
            Command::new(here)
        };
        command.args([SCENARIO, scenario.name]);
        let piped = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(piped.spawn().unwrap())
    }

    /// Waits for the process to end. Returns its counts per unit.
    pub fn counts(self, scenario: &Scenario) -> Result<ScenarioCounts, String> {
        let Scenario { name, unit, .. } = scenario;
        let output = self.0.wait_with_output().unwrap();
        let (out, log) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        let mut printed = out.split_whitespace().map(str::parse::<f64>);
        let (Some(Ok(units)), Some(Ok(allocations))) = (printed.next(), printed.next()) else {
            return Err(format!("{name} did not run ({}):\n{log}", output.status));
        };
        let mut counts = ScenarioCounts::new();
        counts.insert(format!("allocations per {unit}"), allocations / units);
        if let Some(instructions) = instructions(&log) {
            if instructions == 0.0 {
                return Err(format!("{name}: valgrind saw nothing that fits {TOGGLE}"));
            }
            counts.insert(format!("instructions per {unit}"), instructions / units);
        }
        Ok(counts)
    }
}

/// Parses the number of instructions in the last line of callgrind's log: `==123== Collected : 456`.
fn instructions(log: &str) -> Option<f64> {
    let (_, number) = log.lines().rev().find_map(|line| line.split_once("Collected : "))?;
    number.trim().parse().ok()
}
