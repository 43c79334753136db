//! Changes of a torrent's limits: checked, applied, saved, and answered. They are undone if they cannot be saved.

use ecs_torrent_components::commands::{Reply, SetLimits, SetLimitsError, Unsaved};
use ecs_torrent_components::rate_limit::TransferLimits;
use ecs_torrent_components::settings::Settings;

use crate::durable::{SetComponent, SettleComponents, TakeComponents};

impl SetComponent for SetLimits {
    type Component = TransferLimits;
    type Error = SetLimitsError;

    fn changed(&self, current: &TransferLimits, _: &Settings) -> Result<TransferLimits, SetLimitsError> {
        let after = self.patch.apply(current);
        after.check()?;
        Ok(after)
    }

    fn unsaved(error: Unsaved) -> SetLimitsError {
        SetLimitsError::Unsaved(error)
    }

    fn into_reply(self) -> Reply<Result<(), SetLimitsError>> {
        self.reply
    }
}

/// Checks and applies new limits, and saves the torrents with them.
pub(super) fn take_changes(mut taking: TakeComponents<SetLimits>) {
    taking.take();
}

/// Answers the changes that are durable, and undoes those that cannot be saved.
pub(super) fn settle_changes(mut settling: SettleComponents<SetLimits>) {
    settling.settle();
}
