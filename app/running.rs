//! Starting an engine.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bevy_app::{App, Plugins};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_engine::backends::StartError;
use ecs_torrent_engine::backends::net::Carrier;
use ecs_torrent_engine::runner::Runner;

use crate::events::{Events, EventsPlugin};
use crate::folders::check_incomplete_dir;
use crate::torrents::Torrents;

/// A running engine. Dropping it ends it at once; stop its torrents first if peers and trackers are to be notified.
///
/// Engines share nothing. Any number of them can run in one process.
#[derive(Debug)]
pub struct Engine {
    runner: Runner,
    events: Events,
}

impl Engine {
    /// Creates a builder without plugins and with default settings.
    #[must_use]
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// Returns a handle to this engine's torrents, which is cheap to clone.
    #[must_use]
    pub fn torrents(&self) -> Torrents {
        Torrents::new(self.runner.handle(), self.events.clone())
    }

    /// Returns the addresses that peers can connect to, with the actual ports.
    #[must_use]
    pub fn local_addresses(&self) -> &[SocketAddr] {
        &self.runner.local_addresses().0
    }
}

type AddPlugins = Box<dyn Fn(&mut App) + Send>;

/// Builder of an [`Engine`]: its settings and plugins.
#[derive(Default)]
pub struct EngineBuilder {
    settings: Settings,
    plugins: Vec<AddPlugins>,
    carriers: Vec<Arc<dyn Carrier>>,
}

impl fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl EngineBuilder {
    /// Adds plugins: [`TorrentPlugins`](crate::TorrentPlugins) for a complete BitTorrent client, then your own. Plugins
    /// are cloned because the engine is built again after a system panics. A closure that takes an `&mut App` is a
    /// plugin too; it clones what it captures.
    #[must_use]
    pub fn plugins<M>(mut self, plugins: impl Plugins<M> + Clone + Send + 'static) -> Self {
        self.plugins.push(Box::new(move |app| {
            app.add_plugins(plugins.clone());
        }));
        self
    }

    /// Replaces the settings.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Adds a carrier of streams. Peers are dialed over the carriers in the order in which they were added, and then
    /// over TCP, until one connects.
    #[must_use]
    pub fn carrier(mut self, carrier: Arc<dyn Carrier>) -> Self {
        self.carriers.push(carrier);
        self
    }

    /// Starts the engine in a thread of its own.
    ///
    /// # Errors
    /// If a setting is out of range, the folder for incomplete torrents cannot be used, a listen address cannot be
    /// bound, or a thread cannot be started.
    pub fn start(mut self) -> Result<Engine, StartError> {
        let events_plugin = EventsPlugin::default();
        let events = events_plugin.events();
        self.settings.check()?;
        if let Some(folder) = &self.settings.storage.incomplete_dir {
            check_incomplete_dir(folder)?;
        }
        // Absolute paths stay valid when the current folder changes.
        let folders = [
            Some(&mut self.settings.storage.download_dir),
            self.settings.storage.incomplete_dir.as_mut(),
            self.settings.session.state_dir.as_mut(),
        ];
        for folder in folders.into_iter().flatten() {
            if let Ok(absolute) = std::path::absolute(&*folder) {
                *folder = absolute;
            }
        }
        let plugins = self.plugins;
        let runner = Runner::start_with(self.settings, self.carriers.into(), move |app| {
            plugins.iter().for_each(|add| add(app));
            app.add_plugins(events_plugin.clone());
        })?;
        Ok(Engine { runner, events })
    }
}
