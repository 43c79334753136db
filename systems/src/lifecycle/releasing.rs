//! The last phase of a stop: the files are closed.

use bevy_ecs::prelude::*;
use ecs_torrent_components::torrent::Storage;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::DiskPort;
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::purpose;

use crate::stop_participants::StopDuty;

pub(super) const RELEASE: Purpose = purpose!("release files");

/// The stop participant that closes a torrent's files.
pub(super) struct OpenFiles;

/// Closes the files of stopping torrents, and waits until every handle to them is closed.
pub(super) fn release_files(mut duty: StopDuty<OpenFiles>, mut disk: ResMut<DiskPort>, torrents: Query<&Storage>) {
    for turn in duty.take() {
        if let Ok(storage) = torrents.get(turn.torrent) {
            disk.push(DiskRequest::Close {
                tag: Some(JobTag::new(RELEASE, turn.torrent)),
                storage: storage.id,
            });
        }
    }
    for event in disk.take(RELEASE) {
        duty.finish(event.tag.owner);
    }
}
