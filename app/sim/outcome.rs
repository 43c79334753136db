//! The outcome of a scenario.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::invariants::Violation;
use super::scenario::Who;

/// A problem found in a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// A broken invariant.
    Violation(Who, Violation),
    /// A leecher that was up and did not finish in time: the fraction that it has, from 0 to 1, and its state.
    Unfinished(Who, f64, String),
    /// Any other problem.
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(who, violation) => write!(f, "{who}: {violation}"),
            Self::Unfinished(who, part, state) => {
                write!(f, "{who} has {:.1} % at the end, and is {state}", part * 100.0)
            }
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// The outcome of a scenario.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// The seed that repeats the run.
    pub seed: u64,
    /// A digest of all events; 0 without a trace.
    pub trace: u64,
    /// Virtual time until the end.
    pub took: Duration,
    /// Least possible time.
    pub ideal: Duration,
    /// Least possible time if peers forward whole pieces, as in
    /// [`Scenario::store_and_forward`](super::Scenario::store_and_forward).
    pub store_and_forward: Duration,
    /// Time at which each leecher finished.
    pub finished: BTreeMap<Who, Duration>,
    /// The part that each leecher had, from 0 to 1, at increasing times.
    pub progress: Vec<(Duration, BTreeMap<Who, f64>)>,
    /// Bytes that each node has sent and received over its link.
    pub traffic: BTreeMap<Who, (u64, u64)>,
    /// Acts and other events, with their times.
    pub timeline: Vec<(Duration, String)>,
    /// Number of ticks of all engines.
    pub ticks: u64,
    /// Number of events in the simulated world.
    pub events: u64,
    /// Problems found in the run.
    pub troubles: Vec<Trouble>,
}

impl Outcome {
    /// Returns whether there are no problems.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.troubles.is_empty()
    }

    /// Returns the time at which the last leecher finished, or the total time if none did.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.finished.values().max().copied().unwrap_or(self.took)
    }

    /// Returns the time of the last leecher as a multiple of the ideal time.
    #[must_use]
    pub fn efficiency(&self) -> f64 {
        self.last().as_secs_f64() / self.ideal.as_secs_f64()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, seed {}: {} leechers done after {:.1} s, {:.2} x the ideal",
            self.name,
            self.seed,
            self.finished.len(),
            self.took.as_secs_f64(),
            self.efficiency()
        )?;
        for trouble in &self.troubles {
            write!(f, "\n  {trouble}")?;
        }
        Ok(())
    }
}
