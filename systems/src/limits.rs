//! Limits on the transfer rates of all torrents together. The streams take downloads from them, uploads the blocks that
//! are read.

use bevy_app::{App, Plugin};
use ecs_torrent_components::rate_limit::RateLimits;
use ecs_torrent_components::settings::Settings;

/// Limits transfer rates, as the settings say.
pub struct LimitsPlugin;

impl Plugin for LimitsPlugin {
    fn build(&self, app: &mut App) {
        let settings = app.world().get_resource::<Settings>();
        let limits = settings.map(|settings| RateLimits::new(&settings.limits));
        app.insert_resource(limits.unwrap_or_default());
    }
}
