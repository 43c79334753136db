//! Limits on the transfer rates of all torrents together. The streams take downloads from them, uploads the blocks that
//! are read.

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::settings::{Settings, SettingsChanged};

/// Limits transfer rates, as the settings say.
pub struct LimitsPlugin;

impl Plugin for LimitsPlugin {
    fn build(&self, app: &mut App) {
        let settings = app.world().get_resource::<Settings>();
        let limits = settings.map(|settings| RateLimits::new(&settings.limits));
        app.insert_resource(limits.unwrap_or_default())
            .add_observer(follow_settings);
    }
}

/// Applies changed limits. Transfers that wait go on in this tick, at the new rate.
fn follow_settings(
    _: On<SettingsChanged>,
    settings: Res<Settings>,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut limits: ResMut<RateLimits>,
) {
    let now = clock.now();
    limits.download.set(settings.limits.download_limit(), now);
    limits.upload.set(settings.limits.upload_limit(), now);
    wakeup.at(now);
}
