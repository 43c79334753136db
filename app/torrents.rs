//! What can be done with an engine's torrents.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bevy_ecs::world::World;
use ecs_torrent_components::commands::{
    AddError, AddOptions, AddPeers, AddTorrent, GetFiles, GetStats, ListTorrents, RemoveError, RemoveOptions,
    RemoveTorrent, Removed, Reply, ResumeAll, ResumeError, ScrapeError, ScrapeTorrent, StopAll, StopError, StopTorrent,
    TorrentNotFound,
};
use ecs_torrent_components::stats::{FileStats, TorrentStats};
use ecs_torrent_engine::backends::StartError;
use ecs_torrent_engine::mailbox::{EngineGone, EngineHandle};
use ecs_torrent_protocol::hash::{InfoHash, InfoHashError};
use ecs_torrent_protocol::metainfo::MetainfoError;
use ecs_torrent_protocol::tracker::ScrapeCounts;
use futures_channel::oneshot;

use crate::events::{Events, Subscription};
use crate::selection::{Field, Selection};
use crate::source::Source;

/// Why something could not be done: what, which, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No torrent has this hash.
    #[error(transparent)]
    TorrentNotFound(#[from] TorrentNotFound),
    /// Not a torrent, or not one that can be used.
    #[error("{name}: {error}")]
    Metainfo {
        /// The file it came from.
        name: String,
        /// What is wrong with it.
        error: MetainfoError,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A source of a kind that is not supported yet, like a magnet link.
    #[error("{name}: {what} are not supported yet; give a .torrent file")]
    Unsupported {
        /// The source.
        name: String,
        /// Its kind.
        what: &'static str,
    },
    /// A torrent is refused: nothing of it is kept, and no file has been touched.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The engine cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The engine has stopped.
    #[error(transparent)]
    EngineGone(#[from] EngineGone),
    /// No tracker told anything.
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    /// A session could not be saved.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Something of a removed torrent could not be deleted.
    #[error(transparent)]
    Remove(RemoveError),
    /// The saved sessions cannot be read.
    #[error(transparent)]
    Resume(#[from] ResumeError),
}

/// Names a torrent: by its info-hash, which [`Torrents::download`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TorrentId(pub InfoHash);

impl From<InfoHash> for TorrentId {
    fn from(hash: InfoHash) -> Self {
        Self(hash)
    }
}

impl FromStr for TorrentId {
    type Err = InfoHashError;

    fn from_str(text: &str) -> Result<Self, InfoHashError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for TorrentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An engine's torrents. Cheap to clone; works from any thread and any async runtime.
#[derive(Debug, Clone)]
pub struct Torrents {
    handle: EngineHandle,
    events: Events,
}

impl Torrents {
    pub(crate) fn new(handle: EngineHandle, events: Events) -> Self {
        Self { handle, events }
    }

    /// Adds a torrent with default options: what is missing is downloaded into the download folder of the settings,
    /// then it seeds.
    ///
    /// Adding one that is there already changes nothing and returns the same id.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// assert_eq!(torrents.list().await?, [id.0]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// Where the source cannot be read or is no torrent, and [`Error::Add`] where its files would meet those of another
    /// torrent or of the user. Nothing is written then.
    pub async fn download(&self, source: impl Into<Source>) -> Result<TorrentId, Error> {
        self.download_with(source, AddOptions::default()).await
    }

    /// Adds a torrent, and returns when the next run would find it.
    ///
    /// Files that are there already are never overwritten, unless [`AddOptions::overwrite`] says so: what of them is right
    /// is used, and a torrent that would have to change the rest is refused, or fails once they have been checked. It can
    /// be added with other options then. Adding a torrent that is there gives it the peers of the options.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::AddOptions;
    /// # setup::run(async |torrents, folder| {
    /// // Seeds what is there, and fails if it is not all there.
    /// let options = AddOptions {
    ///     root: Some(folder.join("music")),
    ///     require_complete: true,
    ///     ..AddOptions::default()
    /// };
    /// let id = torrents.download_with(folder.join("album.torrent"), options).await?;
    /// assert_eq!(torrents.stats(id).await?.root, folder.join("music"));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// As [`Torrents::download`], and [`Error::Add`] where the torrent is refused.
    pub async fn download_with(&self, source: impl Into<Source>, mut options: AddOptions) -> Result<TorrentId, Error> {
        let source = source.into();
        options.root = options.root.map(absolute).transpose()?;
        let metainfo = aside(|| source.load()).await??;
        let add = |reply| AddTorrent {
            metainfo,
            options,
            is_resumed: false,
            reply,
        };
        Ok(TorrentId(self.ask(add).await??))
    }

    /// The hashes of all torrents, in the order in which they were added.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// for torrent in torrents.list().await? {
    ///     println!("{torrent} {}", torrents.stats(torrent).await?.name);
    /// }
    /// # assert_eq!(torrents.list().await?, [id.0]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// Where the engine is gone.
    pub async fn list(&self) -> Result<Vec<InfoHash>, Error> {
        Ok(self.ask(|reply| ListTorrents { reply }).await?)
    }

    /// A torrent's state.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let stats = torrents.stats(id).await?;
    /// println!("{}: {} of {} bytes, {} a second", stats.name, stats.downloaded, stats.bytes_size, stats.speed.download);
    /// # assert_eq!((&*stats.name, stats.bytes_size), ("album", 100_000));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`].
    pub async fn stats(&self, id: impl Into<TorrentId>) -> Result<TorrentStats, Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| GetStats { torrent, reply }).await??)
    }

    /// A torrent's files and how much of each is there, padding left out.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// for file in torrents.list_files(id).await? {
    ///     println!("{}: {} of {} bytes", file.path, file.completed, file.len);
    /// }
    /// # assert_eq!(torrents.list_files(id).await?[0].path, "album/song.flac");
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`].
    pub async fn list_files(&self, id: impl Into<TorrentId>) -> Result<Vec<FileStats>, Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| GetFiles { torrent, reply }).await??)
    }

    /// Asks a torrent's trackers for the size of its swarm, without announcing (BEP 48).
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// match torrents.scrape(id).await {
    ///     Ok(swarm) => println!("{} have it", swarm.seeders),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`], or why no tracker told.
    pub async fn scrape(&self, id: impl Into<TorrentId>) -> Result<ScrapeCounts, Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| ScrapeTorrent { torrent, reply }).await??)
    }

    /// Adds addresses at which peers of a torrent may be.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.add_peers(id, vec!["192.0.2.7:6881".parse().unwrap()]).await?;
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// Where the engine is gone.
    pub async fn add_peers(&self, id: impl Into<TorrentId>, peers: Vec<SocketAddr>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.handle.send(AddPeers { torrent, peers }).await?)
    }

    /// The selected fields of a torrent's state.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::Field;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let some = torrents.stats_of(id, &[Field::Name, Field::Progress]).await?;
    /// assert_eq!(some.get(Field::Name).unwrap(), "album");
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`].
    pub async fn stats_of(&self, id: impl Into<TorrentId>, fields: &[Field]) -> Result<Selection, Error> {
        Ok(Selection::of(&self.stats(id).await?, fields))
    }

    /// Stops a torrent in order: peers are told, then trackers, then its session is saved, then it is gone. Stopping
    /// one that is not there is no error; a second stop while one runs joins it.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_and_serialize(id).await?;
    /// assert_eq!(torrents.list().await?, []);
    /// // The next start goes on where this one was.
    /// assert_eq!(torrents.resume_all().await?, 1);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::Stop`] where the session could not be saved; the torrent stays listed then, as failed.
    pub async fn stop_and_serialize(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| StopTorrent { torrent, reply }).await??)
    }

    /// Stops all torrents, side by side.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_all_and_serialize().await?;
    /// assert_eq!(torrents.list().await?, []);
    /// # let _ = id;
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// The first [`Error::Stop`]; the other torrents are stopped all the same.
    pub async fn stop_all_and_serialize(&self) -> Result<(), Error> {
        Ok(self.ask(|reply| StopAll { reply }).await??)
    }

    /// Stops a torrent and forgets it: its session is deleted, and with `delete_data` the files that it created, then
    /// folders that became empty. Files that were there before stay, also where the torrent completed them. A torrent that
    /// is stopped already is removed the same way.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::RemoveOptions;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let removed = torrents.remove(id, RemoveOptions { delete_data: true }).await?;
    /// for kept in &removed.kept {
    ///     println!("{} stays: {}", kept.path, kept.reason);
    /// }
    /// assert_eq!(torrents.resume_all().await?, 0);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Remove`] where something could not be deleted.
    pub async fn remove(&self, id: impl Into<TorrentId>, options: RemoveOptions) -> Result<Removed, Error> {
        let TorrentId(torrent) = id.into();
        let remove = |reply| RemoveTorrent {
            torrent,
            options,
            reply,
        };
        match self.ask(remove).await? {
            Err(RemoveError::NotFound(error)) => Err(error.into()),
            result => result.map_err(Error::Remove),
        }
    }

    /// Adds every torrent that has a session in the state folder; answers with their number.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// println!("{} torrents", torrents.resume_all().await?);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::Resume`] where the state folder cannot be read. A session that is damaged is set aside and logged,
    /// and is no error.
    pub async fn resume_all(&self) -> Result<usize, Error> {
        Ok(self.ask(|reply| ResumeAll { reply }).await??)
    }

    /// What happens from now on.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::events::Event;
    /// # setup::run(async |torrents, folder| {
    /// let mut events = torrents.subscribe();
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// assert_eq!(events.next().await, Some(Event::Added(id.0)));
    /// # Ok(())
    /// # });
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.events.subscribe()
    }

    /// Runs `look` on the engine's world, in its thread, and returns what it saw: the way to a plugin's own
    /// components and resources.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::Settings;
    /// # setup::run(async |torrents, folder| {
    /// let settings = torrents.with_world(|world| world.resource::<Settings>().clone()).await?;
    /// assert_eq!(settings.storage.download_dir, folder.join("downloads"));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// Where the engine is gone.
    pub async fn with_world<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let look = move |world: &mut World| drop(sender.send(look(world)));
        self.handle.with_world(look).await?;
        Ok(receiver.await.map_err(|_| EngineGone)?)
    }

    async fn ask<C, T>(&self, command: impl FnOnce(Reply<T>) -> C) -> Result<T, EngineGone>
    where
        C: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        // Who asked may not wait any more.
        let reply = Reply::new(move |answer| drop(sender.send(answer)));
        self.handle.send(command(reply)).await?;
        receiver.await.map_err(|_| EngineGone)
    }
}

/// A path that still leads there when a later run has another current folder.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|error| Error::Read { path, error })
}

/// Does something that blocks in a thread of its own, since the caller's runtime may not have one for that.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, EngineGone> {
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.await.map_err(|_| EngineGone)
}
