//! Operations on an engine's torrents for programs without async code.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bevy_ecs::world::World;
use ecs_torrent_components::commands::{AddOptions, MovedFiles, RemoveOptions, Removed, Reply};
use ecs_torrent_components::labels::LabelsPatch;
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::networks::Network;
use ecs_torrent_components::queue::QueueChange;
use ecs_torrent_components::rate_limit::LimitsPatch;
use ecs_torrent_components::seeding::SeedingPatch;
use ecs_torrent_components::selection::FileSelection;
use ecs_torrent_components::settings::{BlockedEdit, ChangedSettings, SettingsPatch};
use ecs_torrent_components::stats::{FileStats, StoppedTorrent, TorrentStats};
use ecs_torrent_components::wanted::{FilePriority, PieceOrderChange};
use ecs_torrent_protocol::tracker::ScrapeCounts;
use pollster::block_on;

use crate::error::Error;
use crate::events::Subscription;
use crate::id::TorrentId;
use crate::reader::BlockingFileReader;
use crate::selection::{Field, Selection};
use crate::source::Source;
use crate::torrents::{SettingsReport, Torrents};

/// The operations of [`Torrents`], each of which blocks the calling thread until the engine has answered. It comes from
/// [`Torrents::blocking`] and is cheap to clone.
///
/// ```
/// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
/// use ecs_torrent::events::Event;
/// # setup::run_blocking(|torrents, folder| {
/// # let options = ecs_torrent::AddOptions { root: Some(folder.join("music")), ..Default::default() };
/// let torrents = torrents.blocking();
/// let mut events = torrents.subscribe();
/// let id = torrents.download_with(folder.join("album.torrent"), options)?;
/// while events.next_blocking() != Some(Event::Started(id)) {}
/// assert_eq!(torrents.stats(id)?.progress(), 1.0);
/// torrents.stop_and_serialize(id)?;
/// assert!(torrents.list()?.is_empty());
/// # Ok(())
/// # });
/// ```
///
/// Do not call these methods from async code: they block the executor's thread.
#[derive(Debug, Clone)]
pub struct BlockingTorrents(Torrents);

impl Torrents {
    /// Returns the same operations as blocking functions, for programs without async code.
    #[must_use]
    pub fn blocking(&self) -> BlockingTorrents {
        BlockingTorrents(self.clone())
    }
}

impl BlockingTorrents {
    /// Blocking form of [`Torrents::download`].
    ///
    /// # Errors
    /// As [`Torrents::download`].
    pub fn download(&self, source: impl Into<Source>) -> Result<TorrentId, Error> {
        block_on(self.0.download(source))
    }

    /// Blocking form of [`Torrents::download_with`].
    ///
    /// # Errors
    /// As [`Torrents::download_with`].
    pub fn download_with(&self, source: impl Into<Source>, options: AddOptions) -> Result<TorrentId, Error> {
        block_on(self.0.download_with(source, options))
    }

    /// Blocking form of [`Torrents::list`].
    ///
    /// # Errors
    /// As [`Torrents::list`].
    pub fn list(&self) -> Result<Vec<TorrentId>, Error> {
        block_on(self.0.list())
    }

    /// Blocking form of [`Torrents::stats`].
    ///
    /// # Errors
    /// As [`Torrents::stats`].
    pub fn stats(&self, id: impl Into<TorrentId>) -> Result<TorrentStats, Error> {
        block_on(self.0.stats(id))
    }

    /// Blocking form of [`Torrents::stats_of`].
    ///
    /// # Errors
    /// As [`Torrents::stats_of`].
    pub fn stats_of(&self, id: impl Into<TorrentId>, fields: &[Field]) -> Result<Selection, Error> {
        block_on(self.0.stats_of(id, fields))
    }

    /// Blocking form of [`Torrents::list_files`].
    ///
    /// # Errors
    /// As [`Torrents::list_files`].
    pub fn list_files(&self, id: impl Into<TorrentId>) -> Result<Vec<FileStats>, Error> {
        block_on(self.0.list_files(id))
    }

    /// Blocking form of [`Torrents::read_file`].
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # use ecs_torrent::AddOptions;
    /// use std::io::{Read, Seek, SeekFrom};
    /// # setup::run_blocking(|torrents, folder| {
    /// # let options = AddOptions { root: Some(folder.join("music")), ..AddOptions::default() };
    /// let torrents = torrents.blocking();
    /// let id = torrents.download_with(folder.join("album.torrent"), options)?;
    /// let mut song = torrents.read_file(id, 0)?;
    /// // Waits for the end of the file, although its beginning is not there yet.
    /// let mut last = Vec::new();
    /// song.seek(SeekFrom::End(-10)).unwrap();
    /// song.read_to_end(&mut last).unwrap();
    /// assert_eq!(last, [7; 10]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// As [`Torrents::read_file`].
    pub fn read_file(&self, id: impl Into<TorrentId>, file: u32) -> Result<BlockingFileReader, Error> {
        block_on(self.0.read_file(id, file)).map(BlockingFileReader)
    }

    /// Blocking form of [`Torrents::set_files`].
    ///
    /// # Errors
    /// As [`Torrents::set_files`].
    pub fn set_files(
        &self,
        id: impl Into<TorrentId>,
        priorities: impl IntoIterator<Item = (RangeInclusive<u32>, FilePriority)>,
    ) -> Result<(), Error> {
        block_on(self.0.set_files(id, priorities))
    }

    /// Blocking form of [`Torrents::edit_trackers`].
    ///
    /// # Errors
    /// As [`Torrents::edit_trackers`].
    pub fn edit_trackers<'u>(
        &self,
        id: impl Into<TorrentId>,
        remove: impl IntoIterator<Item = &'u str>,
        add: impl IntoIterator<Item = &'u str>,
    ) -> Result<(), Error> {
        block_on(self.0.edit_trackers(id, remove, add))
    }

    /// Blocking form of [`Torrents::announce`].
    ///
    /// # Errors
    /// As [`Torrents::announce`].
    pub fn announce(&self, id: impl Into<TorrentId>) -> Result<Duration, Error> {
        block_on(self.0.announce(id))
    }

    /// Blocking form of [`Torrents::set_order`].
    ///
    /// # Errors
    /// As [`Torrents::set_order`].
    pub fn set_order(&self, id: impl Into<TorrentId>, order: PieceOrderChange) -> Result<(), Error> {
        block_on(self.0.set_order(id, order))
    }

    /// Blocking form of [`Torrents::scrape`].
    ///
    /// # Errors
    /// As [`Torrents::scrape`].
    pub fn scrape(&self, id: impl Into<TorrentId>) -> Result<ScrapeCounts, Error> {
        block_on(self.0.scrape(id))
    }

    /// Blocking form of [`Torrents::add_peers`].
    ///
    /// # Errors
    /// As [`Torrents::add_peers`].
    pub fn add_peers(&self, id: impl Into<TorrentId>, peers: Vec<SocketAddr>) -> Result<(), Error> {
        block_on(self.0.add_peers(id, peers))
    }

    /// Blocking form of [`Torrents::pause`].
    ///
    /// # Errors
    /// As [`Torrents::pause`].
    pub fn pause(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.pause(id))
    }

    /// Blocking form of [`Torrents::start`].
    ///
    /// # Errors
    /// As [`Torrents::start`].
    pub fn start(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.start(id))
    }

    /// Blocking form of [`Torrents::move_files`].
    ///
    /// # Errors
    /// As [`Torrents::move_files`].
    pub fn move_files(&self, id: impl Into<TorrentId>, root: impl Into<PathBuf>) -> Result<MovedFiles, Error> {
        block_on(self.0.move_files(id, root))
    }

    /// Blocking form of [`Torrents::move_all_files`].
    pub fn move_all_files(
        &self,
        ids: impl IntoIterator<Item = TorrentId>,
        root: impl Into<PathBuf>,
    ) -> Vec<(TorrentId, Result<MovedFiles, Error>)> {
        block_on(self.0.move_all_files(ids, root))
    }

    /// Blocking form of [`Torrents::rename`].
    ///
    /// # Errors
    /// As [`Torrents::rename`].
    pub fn rename(&self, id: impl Into<TorrentId>, names: NewNames) -> Result<MovedFiles, Error> {
        block_on(self.0.rename(id, names))
    }

    /// Blocking form of [`Torrents::relocate`].
    ///
    /// # Errors
    /// As [`Torrents::relocate`].
    pub fn relocate(&self, id: impl Into<TorrentId>, root: impl Into<PathBuf>) -> Result<(), Error> {
        block_on(self.0.relocate(id, root))
    }

    /// Blocking form of [`Torrents::recheck`].
    ///
    /// # Errors
    /// As [`Torrents::recheck`].
    pub fn recheck(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.recheck(id))
    }

    /// Blocking form of [`Torrents::recheck_files`].
    ///
    /// # Errors
    /// As [`Torrents::recheck_files`].
    pub fn recheck_files(&self, id: impl Into<TorrentId>, files: FileSelection) -> Result<(), Error> {
        block_on(self.0.recheck_files(id, files))
    }

    /// Blocking form of [`Torrents::recheck_unverified`].
    ///
    /// # Errors
    /// As [`Torrents::recheck_unverified`].
    pub fn recheck_unverified(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.recheck_unverified(id))
    }

    /// Blocking form of [`Torrents::pause_all`].
    ///
    /// # Errors
    /// As [`Torrents::pause_all`].
    pub fn pause_all(&self) -> Result<(), Error> {
        block_on(self.0.pause_all())
    }

    /// Blocking form of [`Torrents::start_all`].
    ///
    /// # Errors
    /// As [`Torrents::start_all`].
    pub fn start_all(&self) -> Result<(), Error> {
        block_on(self.0.start_all())
    }

    /// Blocking form of [`Torrents::stop_and_serialize`].
    ///
    /// # Errors
    /// As [`Torrents::stop_and_serialize`].
    pub fn stop_and_serialize(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.stop_and_serialize(id))
    }

    /// Blocking form of [`Torrents::stop_all_and_serialize`].
    ///
    /// # Errors
    /// As [`Torrents::stop_all_and_serialize`].
    pub fn stop_all_and_serialize(&self) -> Result<(), Error> {
        block_on(self.0.stop_all_and_serialize())
    }

    /// Blocking form of [`Torrents::stop_all_until_resumed`].
    ///
    /// # Errors
    /// As [`Torrents::stop_all_until_resumed`].
    pub fn stop_all_until_resumed(&self) -> Result<(), Error> {
        block_on(self.0.stop_all_until_resumed())
    }

    /// Blocking form of [`Torrents::remove`].
    ///
    /// # Errors
    /// As [`Torrents::remove`].
    pub fn remove(&self, id: impl Into<TorrentId>, options: RemoveOptions) -> Result<Removed, Error> {
        block_on(self.0.remove(id, options))
    }

    /// Blocking form of [`Torrents::list_stopped`].
    ///
    /// # Errors
    /// As [`Torrents::list_stopped`].
    pub fn list_stopped(&self) -> Result<Vec<StoppedTorrent>, Error> {
        block_on(self.0.list_stopped())
    }

    /// Blocking form of [`Torrents::resume`].
    ///
    /// # Errors
    /// As [`Torrents::resume`].
    pub fn resume(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        block_on(self.0.resume(id))
    }

    /// Blocking form of [`Torrents::resume_all`].
    ///
    /// # Errors
    /// As [`Torrents::resume_all`].
    pub fn resume_all(&self) -> Result<usize, Error> {
        block_on(self.0.resume_all())
    }

    /// Blocking form of [`Torrents::restore`].
    ///
    /// # Errors
    /// As [`Torrents::restore`].
    pub fn restore(&self) -> Result<usize, Error> {
        block_on(self.0.restore())
    }

    /// Blocking form of [`Torrents::set_labels`].
    ///
    /// # Errors
    /// As [`Torrents::set_labels`].
    pub fn set_labels(&self, id: impl Into<TorrentId>, patch: LabelsPatch) -> Result<(), Error> {
        block_on(self.0.set_labels(id, patch))
    }

    /// Blocking form of [`Torrents::set_limits`].
    ///
    /// # Errors
    /// As [`Torrents::set_limits`].
    pub fn set_limits(&self, id: impl Into<TorrentId>, patch: LimitsPatch) -> Result<(), Error> {
        block_on(self.0.set_limits(id, patch))
    }

    /// Blocking form of [`Torrents::set_seeding`].
    ///
    /// # Errors
    /// As [`Torrents::set_seeding`].
    pub fn set_seeding(&self, id: impl Into<TorrentId>, patch: SeedingPatch) -> Result<(), Error> {
        block_on(self.0.set_seeding(id, patch))
    }

    /// Blocking form of [`Torrents::queue`].
    ///
    /// # Errors
    /// As [`Torrents::queue`].
    pub fn queue(&self, id: impl Into<TorrentId>, change: QueueChange) -> Result<(), Error> {
        block_on(self.0.queue(id, change))
    }

    /// Blocking form of [`Torrents::settings`].
    ///
    /// # Errors
    /// As [`Torrents::settings`].
    pub fn settings(&self) -> Result<SettingsReport, Error> {
        block_on(self.0.settings())
    }

    /// Blocking form of [`Torrents::change_settings`].
    ///
    /// # Errors
    /// As [`Torrents::change_settings`].
    pub fn change_settings(&self, patch: SettingsPatch) -> Result<ChangedSettings, Error> {
        block_on(self.0.change_settings(patch))
    }

    /// Blocking form of [`Torrents::edit_blocked`].
    ///
    /// # Errors
    /// As [`Torrents::edit_blocked`].
    pub fn edit_blocked(&self, edit: BlockedEdit) -> Result<Vec<Network>, Error> {
        block_on(self.0.edit_blocked(edit))
    }

    /// Blocking form of [`Torrents::ask`].
    ///
    /// # Errors
    /// As [`Torrents::ask`].
    pub fn ask<C, T>(&self, command: impl FnOnce(Reply<T>) -> C) -> Result<T, Error>
    where
        C: Send + Sync + 'static,
        T: Send + 'static,
    {
        block_on(self.0.ask(command))
    }

    /// Like [`Torrents::subscribe`]; [`Subscription::next_blocking`] waits for an event.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.0.subscribe()
    }

    /// Blocking form of [`Torrents::with_world`].
    ///
    /// # Errors
    /// As [`Torrents::with_world`].
    pub fn with_world<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, Error> {
        block_on(self.0.with_world(look))
    }
}
