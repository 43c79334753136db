//! Settings of seeding limits.

use serde::{Deserialize, Serialize};

/// Limits at which a torrent that holds everything it wants has seeded enough, and their effect. Torrents can have
/// limits of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeedingSettings {
    /// Ratio of sent to received payload, in percent, at which a torrent has seeded enough. 0 ends it as soon as it is
    /// complete. Default 1 000 000, which is no limit.
    pub ratio_percent: u64,
    /// Time for which a torrent seeds, over all runs. Default 100 years, which is no limit.
    pub time_s: u64,
    /// Time without a transfer after which a seeding torrent has seeded enough, counted from its start at the earliest.
    /// Default 100 years, which is no limit.
    pub idle_s: u64,
    /// Effect of a limit that is reached. Default pause.
    pub action: SeedingAction,
}

/// Effect of a seeding limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
pub enum SeedingAction {
    /// The torrent is paused. A user can start it again.
    #[default]
    Pause,
    /// The torrent leaves the list. Its data stays.
    Remove,
    /// The torrent serves peers only while no connected peer has some piece. One that holds only its wanted files is
    /// paused.
    SuperSeed,
}

/// A ratio in percent that means no limit.
pub const NO_RATIO: u64 = 1_000_000;

/// A time in seconds that means no limit: 100 years.
pub const NO_TIME: u64 = 100 * 365 * 86_400;

impl Default for SeedingSettings {
    fn default() -> Self {
        Self {
            ratio_percent: NO_RATIO,
            time_s: NO_TIME,
            idle_s: NO_TIME,
            action: SeedingAction::Pause,
        }
    }
}

impl SeedingAction {
    /// All actions.
    pub const ALL: [Self; 3] = [Self::Pause, Self::Remove, Self::SuperSeed];

    /// Returns the name of the action in the JSON of a torrent and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Remove => "remove",
            Self::SuperSeed => "super_seed",
        }
    }

    /// Returns the action with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}
