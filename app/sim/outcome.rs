//! What came of a scenario.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::invariants::Violation;
use super::scenario::Who;

/// What is wrong with a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// Something that always holds did not.
    Violation(Who, Violation),
    /// A leecher that was up has not got everything in time: how much it has, from 0 to 1, and in which state it is.
    Unfinished(Who, f64, String),
    /// Something else should be otherwise.
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

/// What came of a scenario.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The scenario's name.
    pub name: String,
    /// The seed that repeats it.
    pub seed: u64,
    /// A digest of everything that happened; 0 without a trace.
    pub trace: u64,
    /// Virtual time until the end.
    pub took: Duration,
    /// The least time possible.
    pub ideal: Duration,
    /// When each leecher had everything.
    pub finished: BTreeMap<Who, Duration>,
    /// How much each leecher had, from 0 to 1, at times that go up.
    pub progress: Vec<(Duration, BTreeMap<Who, f64>)>,
    /// Bytes that each node has sent and received over its line.
    pub traffic: BTreeMap<Who, (u64, u64)>,
    /// What happened, and when.
    pub timeline: Vec<(Duration, String)>,
    /// Ticks of all engines.
    pub ticks: u64,
    /// Events of the simulated world.
    pub events: u64,
    /// What is wrong, if anything.
    pub troubles: Vec<Trouble>,
}

impl Outcome {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.troubles.is_empty()
    }

    /// When the last leecher was done; the whole time where none was.
    #[must_use]
    pub fn last(&self) -> Duration {
        self.finished.values().max().copied().unwrap_or(self.took)
    }

    /// How many times the ideal time the last leecher took.
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
