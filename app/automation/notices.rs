//! Notices of events for hooks and webhooks. A notice describes a torrent even after the torrent is gone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_components::incomplete::IncompleteFolder;
use ecs_torrent_components::labels::Labels;
use ecs_torrent_components::lifecycle::Desired;
use ecs_torrent_components::messages::{
    FilesSettled, LifecycleChanged, TorrentAdded, TorrentCompleted, TorrentStopped,
};
use ecs_torrent_components::torrent::{Layout, Storage, Torrent};
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_systems::ReapSet;
use ecs_torrent_systems::conditions::has_messages;
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::settings::Occasion;

/// An event and its torrent.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Notice {
    #[serde(serialize_with = "name_of")]
    pub(super) event: Occasion,
    #[serde(serialize_with = "text_of")]
    pub(super) info_hash: InfoHash,
    pub(super) name: String,
    /// The download folder.
    pub(super) folder: PathBuf,
    /// The size in bytes, if the metadata is known.
    pub(super) size: Option<u64>,
    pub(super) category: Option<String>,
    pub(super) labels: Vec<String>,
}

fn name_of<S: serde::Serializer>(event: &Occasion, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(event.name())
}

fn text_of<S: serde::Serializer>(hash: &InfoHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(hash)
}

/// Sends a notice for each event of a torrent. It is added only to an engine that has hooks or webhooks.
#[derive(Debug, Clone)]
pub struct NoticePlugin(Sender<Notice>);

/// The receiving end of a [`NoticePlugin`].
#[derive(Debug)]
pub struct Notices(pub(super) Receiver<Notice>);

/// Creates a plugin whose notices wait in a channel, at most `max` of them.
pub(super) fn notices(max: usize) -> (NoticePlugin, Notices) {
    let (sender, receiver) = channel(max);
    (NoticePlugin(sender), Notices(receiver))
}

#[derive(Resource)]
struct NoticeSender {
    sender: Sender<Notice>,
    /// Notices about torrents that are being removed, for the end of the removal.
    removals: BTreeMap<InfoHash, Notice>,
}

impl Plugin for NoticePlugin {
    fn build(&self, app: &mut App) {
        let notice_sender = NoticeSender {
            sender: self.0.clone(),
            removals: BTreeMap::new(),
        };
        let has_news = has_messages::<TorrentAdded>
            .or_else(has_messages::<TorrentCompleted>)
            .or_else(has_messages::<FilesSettled>)
            .or_else(has_messages::<LifecycleChanged>)
            .or_else(has_messages::<TorrentStopped>);
        app.insert_resource(notice_sender)
            .add_systems(Tick, send_notices.run_if(has_news).in_set(ReapSet::Report));
    }
}

/// The parts of a torrent that a notice describes.
#[derive(QueryData)]
struct Noticed {
    torrent: &'static Torrent,
    storage: &'static Storage,
    layout: Option<&'static Layout>,
    labels: Option<&'static Labels>,
    desired: &'static Desired,
}

impl NoticedItem<'_, '_> {
    fn notice(&self, event: Occasion) -> Notice {
        let labels = self.labels.cloned().unwrap_or_default();
        Notice {
            event,
            info_hash: self.torrent.id(),
            name: self.torrent.name.to_string(),
            folder: self.storage.root.clone(),
            size: self.layout.map(|Layout(geometry)| geometry.total_size()),
            category: labels.category,
            labels: labels.labels.into_iter().collect(),
        }
    }
}

fn send_notices(
    mut notice_sender: ResMut<NoticeSender>,
    torrents: Query<Noticed>,
    mut added: MessageReader<TorrentAdded>,
    (mut completed, mut settled): (MessageReader<TorrentCompleted>, MessageReader<FilesSettled>),
    folder: Option<Res<IncompleteFolder>>,
    mut changed: MessageReader<LifecycleChanged>,
    mut stopped: MessageReader<TorrentStopped>,
) {
    let NoticeSender { sender, removals } = &mut *notice_sender;
    for message in added.read().filter(|message| !message.is_resumed) {
        if let Ok(torrent) = torrents.get(message.torrent) {
            send(sender, torrent.notice(Occasion::Added));
        }
    }
    // A program finds the files at their final place, if there is a feature that takes them there.
    let completed = completed
        .read()
        .map(|message| message.torrent)
        .filter(|_| folder.is_none());
    for torrent in completed.chain(settled.read().map(|message| message.torrent)) {
        if let Ok(torrent) = torrents.get(torrent) {
            send(sender, torrent.notice(Occasion::Completed));
        }
    }
    for message in changed.read().filter(|message| message.to.is_stopping()) {
        // A removal may join a stop in any phase.
        if let Ok(torrent) = torrents.get(message.torrent)
            && *torrent.desired == Desired::Remove
        {
            removals.insert(torrent.torrent.id(), torrent.notice(Occasion::Removed));
        }
    }
    for message in stopped.read() {
        if let Some(notice) = removals.remove(&message.info_hash)
            && message.is_removed
        {
            send(sender, notice);
        }
    }
}

fn send(sender: &Sender<Notice>, notice: Notice) {
    if let Err(error) = sender.try_send(notice) {
        tracing::warn!("an event was not passed to the hooks: {error}");
    }
}
