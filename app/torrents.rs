//! Operations on an engine's torrents.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bevy_ecs::world::World;
use ecs_torrent_components::commands::{
    AddOptions, AddPeers, AddTorrent, AnnounceTorrent, CheckScope, EditTrackers, GetFiles, GetStats, ListStopped,
    ListTorrents, MoveTorrent, MovedFiles, PauseAll, PauseOrStart, PauseTorrent, RecheckTorrent, RemoveError,
    RemoveOptions, RemoveTorrent, Removed, Reply, ResumeAll, ResumeTorrent, ResumeTorrentError, ScrapeTorrent,
    SetFiles, SetLabels, SetLimits, SetQueue, SetSeeding, StartAll, StartTorrent, StopAll, StopTorrent,
};
use ecs_torrent_components::labels::LabelsPatch;
use ecs_torrent_components::links::FollowLink;
use ecs_torrent_components::names::NewNames;
use ecs_torrent_components::networks::Network;
use ecs_torrent_components::queue::QueueChange;
use ecs_torrent_components::rate_limit::{LimitsPatch, RateLimits};
use ecs_torrent_components::seeding::SeedingPatch;
use ecs_torrent_components::selection::FileSelection;
use ecs_torrent_components::settings::{
    BlockedEdit, ChangeError, ChangeSettings, ChangedSettings, EditBlocked, INCOMPLETE_DIR, SettingChanges,
    SettingLayers, Settings, SettingsPatch,
};
use ecs_torrent_components::stats::{FileStats, StoppedTorrent, TorrentStats};
use ecs_torrent_components::wanted::{FilePriority, PieceOrderChange};
use ecs_torrent_engine::backends::net::check_addresses;
use ecs_torrent_engine::mailbox::{EngineGone, EngineHandle, ReservedPlace};
use ecs_torrent_protocol::tracker::ScrapeCounts;
use futures_channel::oneshot;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::events::{Events, Subscription};
use crate::folders::check_incomplete_dir;
use crate::id::TorrentId;
use crate::selection::{Field, Selection};
use crate::source::Source;

/// Maximum number of torrents that a call moves at a time. More would only compete for the disks.
const MOVES_AT_ONCE: usize = 8;

/// Handle to an engine's torrents. It is cheap to clone and works from any thread and any async runtime.
#[derive(Debug, Clone)]
pub struct Torrents {
    handle: EngineHandle,
    events: Events,
}

impl Torrents {
    pub(crate) fn new(handle: EngineHandle, events: Events) -> Self {
        Self { handle, events }
    }

    /// Adds a torrent with default options: downloads missing data into the download folder of the settings, then
    /// seeds.
    ///
    /// Adding a torrent that is already present returns the same id. The torrent gets the trackers of the source,
    /// unless it is private. Without metadata, it takes the metadata of the source, or the hints of a magnet link. A
    /// torrent that has failed for good is tried again. A paused torrent stays paused.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// assert_eq!(torrents.list().await?, [id]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// If the source cannot be read or is not a torrent; [`Error::Add`] if its files would collide with those of
    /// another torrent or of the user. Nothing is written in these cases.
    pub async fn download(&self, source: impl Into<Source>) -> Result<TorrentId, Error> {
        self.download_with(source, AddOptions::default()).await
    }

    /// Adds a torrent and returns once the next run would find it.
    ///
    /// Existing files are never overwritten unless [`AddOptions::overwrite`] says so. Their correct data is used. A
    /// torrent that would have to change the rest is refused, or fails once the files have been checked; it can then be
    /// added with other options. If the options select no files, the files that a magnet link selects (`so=`, BEP 53)
    /// are downloaded.
    ///
    /// Adding a torrent that is already present gives it the peers and the labels of the options, and changes it as
    /// [`Torrents::download`] does. The other options apply to a torrent without metadata, and to one that has failed
    /// for good and is tried again.
    ///
    /// A link with a public key (BEP 46) is followed as by [`Dht::follow`](crate::dht::Dht::follow).
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::AddOptions;
    /// # setup::run(async |torrents, folder| {
    /// // Seeds complete data, and fails if some of it is missing.
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
    /// As [`Torrents::download`], and [`Error::Add`] if the torrent is refused. For a link with a public key also those
    /// of [`Dht::follow`](crate::dht::Dht::follow).
    pub async fn download_with(&self, source: impl Into<Source>, mut options: AddOptions) -> Result<TorrentId, Error> {
        let source = source.into();
        options.root = options.root.map(absolute).transpose()?;
        options.requested_ns = options.requested_ns.or_else(now_ns);
        let (requested, overwrite) = (Instant::now(), options.overwrite);
        let added = match source.link()? {
            Some(link) => {
                let follow = |reply| FollowLink { link, options, reply };
                self.ask(follow).await?.map_err(Error::from)
            }
            None => {
                let (source, selected) = spawn_blocking(|| source.resolve()).await??;
                if options.select.is_empty() {
                    options.select = selected;
                }
                let add = |reply| AddTorrent {
                    source,
                    options,
                    is_resumed: false,
                    reply,
                };
                self.ask(add).await?.map_err(Error::from)
            }
        };
        let rest = FILE_TIMES_LAG.saturating_sub(requested.elapsed());
        if overwrite && added.is_ok() && !rest.is_zero() {
            // The permission covers no file that is created after the answer.
            spawn_blocking(move || thread::sleep(rest)).await?;
        }
        Ok(TorrentId(added?))
    }

    /// Returns the ids of all torrents, in the order in which they were added.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// for torrent in torrents.list().await? {
    ///     println!("{torrent} {}", torrents.stats(torrent).await?.name);
    /// }
    /// # assert_eq!(torrents.list().await?, [id]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn list(&self) -> Result<Vec<TorrentId>, Error> {
        let listed = self.ask(|reply| ListTorrents { reply }).await?;
        Ok(listed.into_iter().map(TorrentId).collect())
    }

    /// Returns a torrent's state.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let stats = torrents.stats(id).await?;
    /// // The size is unknown while the torrent fetches its metadata.
    /// let size = stats.size.unwrap_or_default();
    /// println!("{}: {} of {size} bytes, {} a second", stats.name, stats.downloaded, stats.speed.download);
    /// # assert_eq!((&*stats.name, stats.size), ("album", Some(100_000)));
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

    /// Returns a torrent's files and how much of each is present, without padding files.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// for file in torrents.list_files(id).await? {
    ///     println!("{}: {} of {} bytes", file.path, file.completed, file.length);
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

    /// Removes trackers from a torrent and adds others, each in a tier of its own after those that stay. Trackers to
    /// remove are named by their URL, in full or as
    /// [`TrackerStats::url`](ecs_torrent_components::stats::TrackerStats::url) shows it. Returns when the change is
    /// durable and in force: new trackers are announced to at once, and removed ones learn that the torrent leaves.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.edit_trackers(id, [], ["http://127.0.0.1:9/announce"]).await?;
    /// assert_eq!(torrents.stats(id).await?.trackers.last().unwrap().url, "http://127.0.0.1:9/announce");
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::EditTrackers`] if the torrent is private, if a URL cannot be used or does
    /// not exist, or if the session could not be saved. Nothing is changed then.
    pub async fn edit_trackers<'u>(
        &self,
        id: impl Into<TorrentId>,
        remove: impl IntoIterator<Item = &'u str>,
        add: impl IntoIterator<Item = &'u str>,
    ) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        let remove = remove.into_iter().map(str::to_owned).collect();
        let add = add.into_iter().map(|url| vec![url.to_owned()]).collect();
        let edit = |reply| EditTrackers {
            torrent,
            remove,
            add,
            reply,
        };
        Ok(self.ask(edit).await??)
    }

    /// Announces a torrent to its trackers as early as they allow, instead of at the end of their intervals. Returns
    /// the time until the first announce.
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Announce`] if the torrent does not run or has no tracker.
    pub async fn announce(&self, id: impl Into<TorrentId>) -> Result<Duration, Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| AnnounceTorrent { torrent, reply }).await??)
    }

    /// Sets priorities of a torrent's files, named by their index in [`Torrents::list_files`]. A skipped file is not
    /// downloaded; files of a higher priority come first. Files that are not named keep their priority. Returns when
    /// the priorities are durable and in force. A torrent that holds every wanted file, and not all others, is
    /// `finished`.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::components::wanted::FilePriority;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.set_files(id, [(0..=0, FilePriority::High)]).await?;
    /// assert_eq!(torrents.list_files(id).await?[0].priority, FilePriority::High);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetFiles`] if a file does not exist, if the files are not known yet, or if
    /// the session could not be saved. Nothing is changed then.
    pub async fn set_files(
        &self,
        id: impl Into<TorrentId>,
        priorities: impl IntoIterator<Item = (RangeInclusive<u32>, FilePriority)>,
    ) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        let priorities = priorities.into_iter().collect();
        let set = |reply| SetFiles {
            torrent,
            priorities,
            order: PieceOrderChange::default(),
            reply,
        };
        Ok(self.ask(set).await??)
    }

    /// Sets the order in which pieces of files with equal priority are requested: by default the rarest come first,
    /// which is best for the swarm. Returns when the order is durable and in force. It can be set before the files are
    /// known.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::components::wanted::PieceOrderChange;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let change = PieceOrderChange {
    ///     sequential: Some(true),
    ///     ..PieceOrderChange::default()
    /// };
    /// torrents.set_order(id, change).await?;
    /// assert!(torrents.stats(id).await?.sequential);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetFiles`] if the session could not be saved. Nothing is changed then.
    pub async fn set_order(&self, id: impl Into<TorrentId>, order: PieceOrderChange) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        let set = |reply| SetFiles {
            torrent,
            priorities: Vec::new(),
            order,
            reply,
        };
        Ok(self.ask(set).await??)
    }

    /// Requests the size of a torrent's swarm from its trackers, without announcing (BEP 48).
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
    /// [`Error::TorrentNotFound`], or the reason why no tracker answered.
    pub async fn scrape(&self, id: impl Into<TorrentId>) -> Result<ScrapeCounts, Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| ScrapeTorrent { torrent, reply }).await??)
    }

    /// Adds addresses of possible peers of a torrent. The torrent connects to them as it needs peers.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.add_peers(id, vec!["192.0.2.7:6881".parse().unwrap()]).await?;
    ///
    /// torrents.stop_and_serialize(id).await?;
    /// let refused = torrents.add_peers(id, vec!["192.0.2.7:6881".parse().unwrap()]).await;
    /// assert!(matches!(refused, Err(ecs_torrent::Error::TorrentNotFound(_))));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`].
    pub async fn add_peers(&self, id: impl Into<TorrentId>, peers: Vec<SocketAddr>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| AddPeers { torrent, peers, reply }).await??)
    }

    /// Returns the selected fields of a torrent's state.
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

    /// Pauses a torrent: it stays listed, and does nothing until [`Torrents::start`]. Its peers and trackers are
    /// notified as at a stop, its session is saved, and its files are closed, so that their volume can be unmounted. It
    /// is still paused after a restart of the program. Pausing a paused torrent is not an error.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::components::lifecycle::TorrentState;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.pause(id).await?;
    /// assert_eq!(torrents.stats(id).await?.state, TorrentState::Paused);
    /// torrents.start(id).await?;
    /// assert_ne!(torrents.stats(id).await?.state, TorrentState::Paused);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Pause`] if the session could not be saved. The torrent is then listed as
    /// failed.
    pub async fn pause(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self
            .ask(|reply| PauseOrStart::from(PauseTorrent { torrent, reply }))
            .await??)
    }

    /// Starts a paused torrent again. Data that did not change meanwhile is not hashed again. A failed or blocked
    /// torrent is tried again at once. Starting a torrent that runs changes nothing and is not an error. A torrent that
    /// is being paused starts when that is over; pauses and starts of a torrent take effect in the order of the calls.
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::StartTorrent`] if the session could not be saved. The torrent then stays
    /// paused.
    pub async fn start(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self
            .ask(|reply| PauseOrStart::from(StartTorrent { torrent, reply }))
            .await??)
    }

    /// Checks all data of a torrent again: no piece counts as held before it is hashed. The torrent leaves its peers
    /// and trackers as in a pause, and is [checking](crate::TorrentState::Checking) then; `checked` in its
    /// [statistics](crate::TorrentStats) shows the progress. Pieces that are missing or bad are downloaded again. A
    /// paused torrent is paused again after the check, and a failed or blocked one is tried again. The check is durable
    /// when this returns: a kill repeats it in the next run.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.recheck(id).await?;
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Recheck`] if such a check is running already, if the torrent has no
    /// metadata yet, or if the session could not be saved. In the last case the torrent is then listed as failed.
    pub async fn recheck(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        self.check(id.into(), CheckScope::All).await
    }

    /// Checks the data of some files again, like [`Torrents::recheck`]. Only the pieces that have bytes of these files
    /// are hashed; all others stay held.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::components::selection::FileSelection;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.recheck_files(id, FileSelection::new([0..=0], ["*.flac"]).unwrap()).await?;
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// As [`Torrents::recheck`]; also [`Error::Recheck`] if none of the files is selected.
    pub async fn recheck_files(&self, id: impl Into<TorrentId>, files: FileSelection) -> Result<(), Error> {
        self.check(id.into(), CheckScope::Files(files)).await
    }

    /// Checks the data that counts as held without a check, because it was there when the torrent was added with
    /// [`AddOptions::skip_checking`]; like [`Torrents::recheck`].
    ///
    /// # Errors
    /// As [`Torrents::recheck`]; also [`Error::Recheck`] if there is no such data.
    pub async fn recheck_unverified(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        self.check(id.into(), CheckScope::Unverified).await
    }

    async fn check(&self, id: TorrentId, scope: CheckScope) -> Result<(), Error> {
        let TorrentId(torrent) = id;
        let command = |reply| PauseOrStart::from(RecheckTorrent { torrent, scope, reply });
        Ok(self.ask(command).await??)
    }

    /// Moves a torrent's files to another download folder, and returns when that is done. The torrent leaves its peers
    /// and trackers as in a pause, and is [moving](crate::TorrentState::Moving) then; `moving` in its
    /// [statistics](crate::TorrentStats) shows the progress. After that it continues as before.
    ///
    /// The files get second names if both folders are on one file system, and are copied, verified and synced
    /// otherwise. The old files are deleted when the session names the new folder, durably: a kill at any moment leaves
    /// the whole data at one of the two places, and the next run ends the move. Files that the torrent did not create
    /// are copied, and stay. Nothing at the new place is overwritten. A pause or a stop interrupts the move until the
    /// torrent starts again; a move to the folder where the files are then undoes it.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let moved = torrents.move_files(id, folder.join("elsewhere")).await?;
    /// assert_eq!(moved.root, folder.join("elsewhere"));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Move`] with the reason why the files stay where they are, or why the move
    /// is interrupted.
    pub async fn move_files(&self, id: impl Into<TorrentId>, root: impl Into<PathBuf>) -> Result<MovedFiles, Error> {
        self.place_files(id.into(), Some(root.into()), NewNames::default(), false)
            .await
    }

    /// Moves the files of several torrents to another download folder, like [`Torrents::move_files`]. Returns each
    /// torrent with its own result, in the given order: a torrent that cannot be moved does not affect the others.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let moved = torrents.move_all_files([id], folder.join("elsewhere")).await;
    /// assert!(moved.iter().all(|(torrent, result)| *torrent == id && result.is_ok()));
    /// # Ok(())
    /// # });
    /// ```
    pub async fn move_all_files(
        &self,
        ids: impl IntoIterator<Item = TorrentId>,
        root: impl Into<PathBuf>,
    ) -> Vec<(TorrentId, Result<MovedFiles, Error>)> {
        let root = root.into();
        let one = |id| {
            let root = root.clone();
            async move { (id, self.move_files(id, root).await) }
        };
        let moves: Vec<_> = ids.into_iter().map(one).collect();
        stream::iter(moves).buffered(MOVES_AT_ONCE).collect().await
    }

    /// Records that a torrent's files are in another folder now: their volume is mounted at another path, or the user
    /// has moved them. Nothing is moved. Every file that the torrent has must be there with its length. Files that are
    /// the same as before are not hashed again; others are. A torrent that is blocked because its volume is gone
    /// continues.
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Move`] with the reason why the torrent stays where it was.
    pub async fn relocate(&self, id: impl Into<TorrentId>, root: impl Into<PathBuf>) -> Result<(), Error> {
        let root = Some(root.into());
        self.place_files(id.into(), root, NewNames::default(), true)
            .await
            .map(drop)
    }

    /// Renames files of a torrent, or its folder, on the disk and for the torrent, and returns when that is durable. It
    /// is a move to other names: a kill at any moment leaves every file with its old name or with its new one, and
    /// nothing is overwritten. Files that the torrent did not create are copied, and stay with their old names too. A
    /// file cannot get a name that another file or folder of the torrent has now.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// use ecs_torrent::NewNames;
    ///
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let names = NewNames { name: Some("My album".into()), ..NewNames::default() };
    /// torrents.rename(id, names).await?;
    /// assert_eq!(torrents.stats(id).await?.name, "My album");
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::Move`] with the reason why the files keep their names, or why the move is
    /// interrupted.
    pub async fn rename(&self, id: impl Into<TorrentId>, names: NewNames) -> Result<MovedFiles, Error> {
        self.place_files(id.into(), None, names, false).await
    }

    /// Moves a torrent's files to a folder or to other names, or records that they are there.
    async fn place_files(
        &self,
        id: TorrentId,
        root: Option<PathBuf>,
        names: NewNames,
        is_there: bool,
    ) -> Result<MovedFiles, Error> {
        let TorrentId(torrent) = id;
        let command = |reply| {
            PauseOrStart::from(MoveTorrent {
                torrent,
                root,
                names,
                is_there,
                reply,
            })
        };
        Ok(self.ask(command).await??)
    }

    /// Pauses all torrents that are listed now, concurrently.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.pause_all().await?;
    /// torrents.start_all().await?;
    /// # assert_eq!(torrents.list().await?, [id]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// The first [`Error::Pause`]; the other torrents are paused regardless.
    pub async fn pause_all(&self) -> Result<(), Error> {
        Ok(self.ask(|reply| PauseOrStart::from(PauseAll { reply })).await??)
    }

    /// Starts all torrents that are listed now, as [`Torrents::start`] starts one.
    ///
    /// # Errors
    /// The first [`Error::StartTorrent`]; the other torrents are started regardless.
    pub async fn start_all(&self) -> Result<(), Error> {
        Ok(self.ask(|reply| PauseOrStart::from(StartAll { reply })).await??)
    }

    /// Stops a torrent in order: notifies its peers, then its trackers, saves its session, and removes it from the
    /// list. Stopping a torrent that is not listed is not an error. A second stop joins one that is already running.
    ///
    /// The torrent stays stopped until [`Torrents::resume`], [`Torrents::resume_all`] or [`Torrents::download`] brings
    /// it back: [`Torrents::restore`] leaves it out.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_and_serialize(id).await?;
    /// assert_eq!(torrents.list().await?, []);
    /// // The next start continues where this one stopped.
    /// assert_eq!(torrents.resume_all().await?, 1);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::Stop`] if the session could not be saved. The torrent then stays listed as failed.
    pub async fn stop_and_serialize(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        Ok(self.ask(|reply| StopTorrent { torrent, reply }).await??)
    }

    /// Stops all torrents concurrently, before the program ends. The next run's [`Torrents::restore`] brings them back.
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
    /// The first [`Error::Stop`]; the other torrents are stopped regardless.
    pub async fn stop_all_and_serialize(&self) -> Result<(), Error> {
        self.stop_all(false).await
    }

    /// Stops all torrents as [`Torrents::stop_and_serialize`] stops one: they stay stopped until they are resumed.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_all_until_resumed().await?;
    /// assert_eq!(torrents.restore().await?, 0);
    /// assert_eq!(torrents.resume_all().await?, 1);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// As [`Torrents::stop_all_and_serialize`].
    pub async fn stop_all_until_resumed(&self) -> Result<(), Error> {
        self.stop_all(true).await
    }

    async fn stop_all(&self, until_resumed: bool) -> Result<(), Error> {
        Ok(self.ask(|reply| StopAll { until_resumed, reply }).await??)
    }

    /// Stops a torrent and forgets it: deletes its session and, with `delete_data`, the files that the torrent created,
    /// then the folders that became empty. Files that existed before the torrent stay, even if the torrent completed
    /// them. A torrent that is already stopped is removed the same way.
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
    /// [`Error::TorrentNotFound`]; [`Error::Remove`] if something could not be deleted. With `delete_data`, a torrent
    /// whose volume is not mounted stays as it was ([`RemoveError::Kept`]).
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

    /// Returns the stopped torrents, which have a session in the state folder and are not listed.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_and_serialize(id).await?;
    /// let stopped = torrents.list_stopped().await?;
    /// assert_eq!((stopped[0].info_hash, stopped[0].name.as_deref()), (id.0, Some("album")));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::ListStopped`] if the state folder cannot be read.
    pub async fn list_stopped(&self) -> Result<Vec<StoppedTorrent>, Error> {
        Ok(self.ask(|reply| ListStopped { reply }).await??)
    }

    /// Adds a stopped torrent again, from its session in the state folder and as it was: a torrent that was paused is
    /// listed as paused. A torrent that is listed stays as it is; one that is being stopped is added when that is over.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::{Error, RemoveOptions};
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_and_serialize(id).await?;
    /// torrents.resume(id).await?;
    /// assert_eq!(torrents.list().await?, [id]);
    ///
    /// torrents.remove(id, RemoveOptions::default()).await?;
    /// assert!(matches!(torrents.resume(id).await, Err(Error::TorrentNotFound(_))));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`] if there is no session of the torrent; [`Error::ResumeTorrent`] if it cannot be read,
    /// or cannot be rewritten to say that the torrent runs.
    pub async fn resume(&self, id: impl Into<TorrentId>) -> Result<(), Error> {
        let TorrentId(torrent) = id.into();
        match self.ask(|reply| ResumeTorrent { torrent, reply }).await? {
            Err(ResumeTorrentError::NotFound(error)) => Err(error.into()),
            result => result.map_err(Error::ResumeTorrent),
        }
    }

    /// Adds every torrent that has a session in the state folder, stopped ones too, and returns their number. Torrents
    /// that were paused are listed as paused.
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
    /// [`Error::Resume`] if the state folder cannot be read, or if a torrent stays stopped because its state cannot be
    /// saved; the other torrents are resumed regardless. A damaged session is set aside and logged; it is not an error.
    pub async fn resume_all(&self) -> Result<usize, Error> {
        let include_stopped = true;
        let resume = |reply| ResumeAll { include_stopped, reply };
        Ok(self.ask(resume).await??)
    }

    /// Restores the list of the last run, and returns the number of torrents: adds every torrent that has a session,
    /// except those that a user stopped.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// torrents.stop_all_and_serialize().await?; // before the program ends
    /// assert_eq!(torrents.restore().await?, 1);
    ///
    /// torrents.stop_and_serialize(id).await?; // the user's wish
    /// assert_eq!(torrents.restore().await?, 0);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// As [`Torrents::resume_all`].
    pub async fn restore(&self) -> Result<usize, Error> {
        let include_stopped = false;
        let restore = |reply| ResumeAll { include_stopped, reply };
        Ok(self.ask(restore).await??)
    }

    /// Changes the limits of a torrent's transfer rates, and returns when they are durable and in force. They apply in
    /// addition to the engine's limits.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::LimitsPatch;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let patch = LimitsPatch { upload_bytes_per_s: Some(Some(500_000)), ..LimitsPatch::default() };
    /// torrents.set_limits(id, patch).await?;
    /// assert_eq!(torrents.stats(id).await?.limits.upload_bytes_per_s, Some(500_000));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetLimits`] if a limit is outside its range, or cannot be saved.
    pub async fn set_limits(&self, id: impl Into<TorrentId>, patch: LimitsPatch) -> Result<(), Error> {
        let torrent = id.into().0;
        let set = |reply| SetLimits { torrent, patch, reply };
        Ok(self.ask(set).await??)
    }

    /// Changes the seeding limits of a torrent, and returns when they are durable and in force.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::{OwnLimit, SeedingPatch};
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let patch = SeedingPatch { ratio_percent: Some(OwnLimit::Value(150)), ..SeedingPatch::default() };
    /// torrents.set_seeding(id, patch).await?;
    /// assert_eq!(torrents.stats(id).await?.seeding.ratio_percent, OwnLimit::Value(150));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetSeeding`] if a limit is outside its range, or cannot be saved.
    pub async fn set_seeding(&self, id: impl Into<TorrentId>, patch: SeedingPatch) -> Result<(), Error> {
        let torrent = id.into().0;
        let set = |reply| SetSeeding { torrent, patch, reply };
        Ok(self.ask(set).await??)
    }

    /// Changes a torrent's place in the queue, and returns when the change is durable and in force. The settings of the
    /// section `queue` limit the number of running torrents.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::{QueueChange, QueueMove};
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let change = QueueChange { movement: Some(QueueMove::Top), forced: Some(true) };
    /// torrents.queue(id, change).await?;
    /// assert!(torrents.stats(id).await?.queue.forced);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetQueue`] if the change cannot be saved.
    pub async fn queue(&self, id: impl Into<TorrentId>, change: QueueChange) -> Result<(), Error> {
        let torrent = id.into().0;
        let set = |reply| SetQueue { torrent, change, reply };
        Ok(self.ask(set).await??)
    }

    /// Changes the labels and the category of a torrent, and returns when they are durable. The torrent's files stay
    /// where they are, also if the new category has a download folder of its own.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::LabelsPatch;
    /// # setup::run(async |torrents, folder| {
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// let patch = LabelsPatch { add: vec!["music".into()], ..LabelsPatch::default() };
    /// torrents.set_labels(id, patch).await?;
    /// assert_eq!(torrents.stats(id).await?.labels, ["music"]);
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// [`Error::TorrentNotFound`]; [`Error::SetLabels`] if a label cannot be used, if there would be too many, or if
    /// they cannot be saved.
    pub async fn set_labels(&self, id: impl Into<TorrentId>, patch: LabelsPatch) -> Result<(), Error> {
        let torrent = id.into().0;
        let set = |reply| SetLabels { torrent, patch, reply };
        Ok(self.ask(set).await??)
    }

    /// Returns the settings in force, and the changes made at run time.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::SettingsPatch;
    /// # setup::run(async |torrents, _| {
    /// let patch = SettingsPatch::default().set("limits.upload_bytes_per_s", 500_000);
    /// let changed = torrents.change_settings(patch).await?;
    /// assert!(changed.needs_restart.is_empty());
    /// let report = torrents.settings().await?;
    /// assert_eq!(report.settings.limits.upload_bytes_per_s, 500_000);
    /// assert!(report.changes.0.contains_key("limits.upload_bytes_per_s"));
    /// # Ok(())
    /// # });
    /// ```
    ///
    /// # Errors
    /// If the engine has stopped.
    pub async fn settings(&self) -> Result<SettingsReport, Error> {
        self.with_world(|world| {
            let layers = world.get_resource::<SettingLayers>();
            let layers = layers.cloned().unwrap_or_default();
            SettingsReport {
                settings: world.resource::<Settings>().clone(),
                needs_restart: layers.needs_restart(),
                alternative_limits: world
                    .get_resource::<RateLimits>()
                    .is_some_and(|limits| limits.is_alternative),
                changes: layers.changes,
            }
        })
        .await
    }

    /// Changes settings while the engine runs, and returns when the changes are durable and in force. They override the
    /// settings with which the engine was started, in later runs too. A setting that needs a restart is saved, and
    /// named in the answer.
    ///
    /// # Errors
    /// [`Error::ChangeSettings`] with the name of the setting, if the settings would not be valid as a whole, cannot be
    /// saved, or name a folder that cannot be used or a listen address with which the next start would fail. Nothing is
    /// changed then.
    pub async fn change_settings(&self, patch: SettingsPatch) -> Result<ChangedSettings, Error> {
        check_listen(&patch)?;
        check_folder(&patch)?;
        Ok(self.ask(|reply| ChangeSettings { patch, reply }).await??)
    }

    /// Blocks and unblocks networks of peers (`peers.blocked`), and returns the blocked ones when the change is durable
    /// and in force. Changes that others make at the same time are kept.
    ///
    /// # Errors
    /// [`Error::ChangeSettings`] if a network to unblock is not blocked, there would be too many, or the change cannot
    /// be saved. Nothing is changed then.
    pub async fn edit_blocked(&self, edit: BlockedEdit) -> Result<Vec<Network>, Error> {
        Ok(self.ask(|reply| EditBlocked { edit, reply }).await??)
    }

    /// Subscribes to engine events that occur after this call.
    ///
    /// ```
    /// # mod setup { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/app/doctest.rs")); }
    /// use ecs_torrent::events::Event;
    /// # setup::run(async |torrents, folder| {
    /// let mut events = torrents.subscribe();
    /// let id = torrents.download(folder.join("album.torrent")).await?;
    /// assert_eq!(events.next().await, Some(Event::Added(id)));
    /// # Ok(())
    /// # });
    /// ```
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.events.subscribe()
    }

    /// Runs `look` on the engine's world, in the engine's thread, and returns its result. This gives access to a
    /// plugin's own components and resources.
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
    /// If the engine has stopped.
    pub async fn with_world<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let look = move |world: &mut World| drop(sender.send(look(world)));
        self.handle.with_world(look).await?;
        Ok(receiver.await.map_err(|_| EngineGone)?)
    }

    /// Sends a command to the plugin that takes it, and returns the plugin's answer. `command` is given the return
    /// channel. The plugin initializes a [`CommandQueue`] of the command's type; [`guide`](crate::guide#commands) shows
    /// how.
    ///
    /// ```
    /// use ecs_torrent::prelude::*;
    ///
    /// struct CountPeers {
    ///     reply: Reply<usize>,
    /// }
    ///
    /// fn count_peers(mut queue: ResMut<CommandQueue<CountPeers>>, peers: Query<&Peer>) {
    ///     queue.0.drain(..).for_each(|command| command.reply.send(peers.iter().len()));
    /// }
    ///
    /// fn plugin(app: &mut App) {
    ///     app.init_resource::<CommandQueue<CountPeers>>().add_systems(Tick, count_peers);
    /// }
    ///
    /// # async fn example() -> Result<(), ecs_torrent::Error> {
    /// let engine = Engine::builder().plugins(TorrentPlugins).plugins(plugin).start()?;
    /// println!("{} peers", engine.torrents().ask(|reply| CountPeers { reply }).await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`CommandQueue`]: ecs_torrent_components::commands::CommandQueue
    ///
    /// # Errors
    /// [`Error::UnsupportedCommand`] if no plugin takes the command; [`Error::EngineGone`] if the engine stops, or if
    /// the plugin drops the command without an answer.
    pub async fn ask<C, T>(&self, command: impl FnOnce(Reply<T>) -> C) -> Result<T, Error>
    where
        C: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        // The caller may have stopped waiting.
        let reply = Reply::new(move |answer| drop(sender.send(answer)));
        self.handle.send(command(reply)).await?;
        Ok(receiver.await.map_err(|_| EngineGone)?)
    }
}

impl Torrents {
    /// Reserves a place for a command that is sent without waiting.
    pub(crate) async fn reserve(&self) -> Result<ReservedPlace, EngineGone> {
        self.handle.reserve().await
    }
}

/// Refuses listen addresses that this machine does not have: otherwise only the next start would fail.
fn check_listen(patch: &SettingsPatch) -> Result<(), ChangeError> {
    let name = "net.listen";
    let value = patch.0.get(name).and_then(Option::as_ref);
    // A value of another kind is refused with the rest of the patch.
    let Some(addresses) = value.and_then(|value| Vec::<SocketAddr>::deserialize(value).ok()) else {
        return Ok(());
    };
    check_addresses(&addresses).map_err(|error| ChangeError::Value {
        name: name.to_owned(),
        reason: error.to_string(),
    })
}

/// Checks the new folder for incomplete torrents. An empty path is refused with the rest of the patch.
fn check_folder(patch: &SettingsPatch) -> Result<(), ChangeError> {
    let value = patch.0.get(INCOMPLETE_DIR).and_then(Option::as_ref);
    let Some(folder) = value.and_then(Value::as_str).filter(|folder| !folder.is_empty()) else {
        return Ok(());
    };
    if !Path::new(folder).is_absolute() {
        return Err(ChangeError::Value {
            name: INCOMPLETE_DIR.to_owned(),
            reason: format!("{folder}: the path has to be absolute"),
        });
    }
    Ok(check_incomplete_dir(Path::new(folder))?)
}

/// The settings of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingsReport {
    /// The settings in force.
    pub settings: Settings,
    /// The changes made at run time, by name. Changes that need a restart are not in force yet.
    pub changes: SettingChanges,
    /// The settings that a restart would change.
    pub needs_restart: Vec<String>,
    /// Whether the alternative limits on transfer rates are in force now.
    pub alternative_limits: bool,
}

/// Maximum lag of file times behind the clock: the kernel takes them from its last tick.
const FILE_TIMES_LAG: Duration = Duration::from_millis(10);

/// Returns the time in nanoseconds since 1970.
fn now_ns() -> Option<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

/// Makes a path absolute, so that a later run with another current folder still finds it.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, Error> {
    std::path::absolute(&path).map_err(|error| Error::Read { path, error })
}

/// Runs blocking work in a thread of its own, since the caller's runtime may have no thread pool for it.
async fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, EngineGone> {
    let (sender, receiver) = oneshot::channel();
    thread::spawn(move || drop(sender.send(work())));
    receiver.await.map_err(|_| EngineGone)
}
