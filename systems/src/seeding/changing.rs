//! Changes of a torrent's seeding limits: checked, applied, saved, and answered. They are undone if they cannot be
//! saved.

use ecs_torrent_components::commands::{Reply, SetSeeding, SetSeedingError, Unsaved};
use ecs_torrent_components::seeding::SeedingLimits;
use ecs_torrent_components::settings::Settings;

use crate::durable::{SetComponent, SettleComponents, TakeComponents};

impl SetComponent for SetSeeding {
    type Component = SeedingLimits;
    type Error = SetSeedingError;

    fn changed(&self, current: &SeedingLimits, _: &Settings) -> Result<SeedingLimits, SetSeedingError> {
        let after = self.patch.apply(current);
        after.check()?;
        Ok(after)
    }

    fn unsaved(error: Unsaved) -> SetSeedingError {
        SetSeedingError::Unsaved(error)
    }

    fn into_reply(self) -> Reply<Result<(), SetSeedingError>> {
        self.reply
    }
}

/// Checks and applies new limits, and saves the torrents with them.
pub(super) fn take_changes(mut taking: TakeComponents<SetSeeding>) {
    taking.take();
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(mut settling: SettleComponents<SetSeeding>) {
    settling.settle();
}
