//! The end of a session: saved or deleted, when its torrent stops.

use std::collections::BTreeSet;
use std::sync::Arc;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::torrent::{Content, Storage};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::disk::DiskRequest;
use ecs_torrent_engine::ports::state::StateRequest;

use super::Job;
use super::saving::{Clerk, Saved, SavedItem};
use super::spilling::Spiller;

const FORGET: Purpose = Purpose("forget session");
const DELETE: Purpose = Purpose("delete data");

/// How a stopped torrent's session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Saved.
    Save,
    /// Deleted, and maybe the data with it.
    Forget { delete_data: bool },
}

/// Sessions that are to end, and those that have.
#[derive(Resource, Debug, Default)]
pub(crate) struct Endings {
    /// Written by the stop, taken by the sessions.
    pub(crate) wanted: Vec<(Entity, Ending)>,
    /// As which the stop began each of them.
    pub(crate) began: EntityHashMap<Ending>,
    /// Written by the sessions: how it went.
    pub(crate) ended: EntityHashMap<Result<(), Arc<str>>>,
}

/// What stopped torrents' sessions come to.
pub(super) fn end_sessions(
    mut clerk: Clerk,
    spiller: Spiller,
    mut torrents: Query<Saved>,
    others: Query<(Entity, &Storage, &Content)>,
) {
    for (entity, ending) in std::mem::take(&mut clerk.endings.wanted) {
        let Ok(mut saved) = torrents.get_mut(entity) else {
            continue;
        };
        if !saved.state.is_loaded {
            // It was stopped while it was being added; the folder will have answered soon.
            clerk.endings.wanted.push((entity, ending));
            clerk.wakeup.at(clerk.clock.now());
            continue;
        }
        saved.state.is_last = true;
        match ending {
            Ending::Save => clerk.begin(&mut saved, &spiller),
            Ending::Forget { delete_data } => {
                let mut left = 1;
                clerk.port.push(StateRequest::Remove {
                    tag: JobTag::new(FORGET, entity),
                    torrent: saved.torrent.id(),
                });
                if delete_data {
                    left += 1;
                    clerk.disk.push(DiskRequest::Delete {
                        tag: JobTag::new(DELETE, entity),
                        storage: saved.storage.id,
                        keep: shared_files(&saved, &others),
                    });
                }
                saved.state.job = Job::Forgetting { left, error: None };
            }
        }
    }
    let forgotten = clerk.port.take(FORGET).map(|event| {
        let error = event.outcome.err().map(|error| error.0);
        (event.tag.owner, error)
    });
    let mut steps: Vec<(Entity, Option<Arc<str>>)> = forgotten.collect();
    steps.extend(clerk.disk.take(DELETE).map(|event| {
        let error = event.outcome.err().map(|error| error.to_string().into());
        (event.tag.owner, error)
    }));
    for (entity, failure) in steps {
        let Ok(mut saved) = torrents.get_mut(entity) else {
            continue;
        };
        let Job::Forgetting { left, error } = &mut saved.state.job else {
            continue;
        };
        *left -= 1;
        *error = error.take().or(failure);
        if *left == 0 {
            let result = error.take().map_or(Ok(()), Err);
            clerk.end(&mut saved, result);
        }
    }
}

/// Files that another torrent has under the same path. Looks at all torrents: removing is rare.
fn shared_files(saved: &SavedItem<'_, '_>, others: &Query<(Entity, &Storage, &Content)>) -> Vec<usize> {
    let paths = |content: &Content| {
        let files = content.0.info.files.files().iter();
        files.map(|file| file.path.clone()).collect::<Vec<_>>()
    };
    let same_root = others
        .iter()
        .filter(|(entity, storage, _)| *entity != saved.entity && storage.root == saved.storage.root);
    let taken: BTreeSet<Box<str>> = same_root.flat_map(|(.., content)| paths(content)).collect();
    let mine = paths(saved.content).into_iter().enumerate();
    mine.filter(|(_, path)| taken.contains(path))
        .map(|(index, _)| index)
        .collect()
}
