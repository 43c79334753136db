//! Survey of stopped torrents: reads their names and files from the state folder before the first new torrent is
//! decided on.

use std::path::{Path, PathBuf};

use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Wakeup;
use ecs_torrent_components::session::Session;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::TorrentIndex;
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::StatePort;
use ecs_torrent_engine::ports::state::{Loaded, StateDone, StateRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::hash::InfoHash;
use ecs_torrent_protocol::time::Timestamp;

use super::whole::whole_files;
use super::{FileRegistry, FolderKeys};

const LIST: Purpose = purpose!("list sessions for their files");
const LOOK: Purpose = purpose!("look at sessions for their files");

/// Maximum number of sessions that are read at a time: each comes with its metainfo, which may take megabytes.
const MAX_LOOKS: usize = 64;

/// Progress of reading stopped torrents.
#[derive(Resource, Debug, Default)]
pub(crate) struct Survey {
    stage: Stage,
    is_wanted: bool,
    /// Saved torrents are being added; they leave little or nothing for the survey.
    is_resuming: bool,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    NotBegun,
    Listing,
    Looking {
        rest: Vec<InfoHash>,
        requested_count: usize,
    },
    Done,
}

impl Survey {
    /// Requests the survey. It begins with the next tick, which `wakeup` triggers, unless it has begun already.
    pub(crate) fn request(&mut self, wakeup: &Wakeup, now: Timestamp) -> &Self {
        if !std::mem::replace(&mut self.is_wanted, true) {
            wakeup.at(now);
        }
        self
    }

    /// Returns whether the files of all torrents are known. If not, the caller has to look again later.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    fn may_begin(&self) -> bool {
        matches!(self.stage, Stage::NotBegun) && self.is_wanted && !self.is_resuming
    }

    /// Records that saved torrents are being added, which reads all of them.
    pub(crate) fn begin_resuming(&mut self) {
        self.is_resuming = true;
    }

    /// Records that all saved torrents were read, or could not be.
    pub(crate) fn end_resuming(&mut self, is_complete: bool) {
        // If they could not be read, the survey reads them.
        self.is_resuming = false;
        if is_complete {
            self.stage = Stage::Done;
        }
    }
}

/// Returns whether the survey may begin, or sessions have arrived.
pub(super) fn may_continue(survey: Res<Survey>, state: Res<StatePort>) -> bool {
    survey.may_begin() || state.has_events()
}

pub(super) fn survey_sessions(
    mut survey: ResMut<Survey>,
    mut state: ResMut<StatePort>,
    mut registry: ResMut<FileRegistry>,
    index: Res<TorrentIndex>,
    settings: Res<Settings>,
) {
    let tag = |purpose| JobTag::new(purpose, Entity::PLACEHOLDER);
    if survey.may_begin() {
        survey.stage = Stage::Listing;
        state.push(StateRequest::List { tag: tag(LIST) });
    }
    let listed: Vec<_> = state.take(LIST).collect();
    for event in listed {
        survey.stage = match event.outcome {
            Ok(StateDone::Listed(stored)) => Stage::Looking {
                rest: stored.iter().map(|stored| stored.torrent).collect(),
                requested_count: 0,
            },
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!("the files of stopped torrents are not known: {error}");
                Stage::Done
            }
        };
    }
    let looked: Vec<_> = state.take(LOOK).collect();
    let Stage::Looking { rest, requested_count } = &mut survey.stage else {
        return;
    };
    *requested_count -= looked.len();
    for event in looked {
        match event.outcome {
            Ok(StateDone::Loaded(loaded)) => {
                register_stopped(&mut registry, &index, *loaded, &settings.storage.download_dir);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("the files of a stopped torrent are not known: {error}"),
        }
    }
    while *requested_count < MAX_LOOKS
        && let Some(torrent) = rest.pop()
    {
        if index.get(torrent).is_none() && !registry.contains(torrent) {
            *requested_count += 1;
            state.push(StateRequest::Load {
                tag: tag(LOOK),
                torrent,
                with_metainfo: true,
                is_peek: true,
            });
        }
    }
    if *requested_count == 0 {
        survey.stage = Stage::Done;
    }
}

/// Registers the files of a stopped torrent; only its name, if its metadata is not known.
pub(crate) fn register_stopped(
    registry: &mut FileRegistry,
    index: &TorrentIndex,
    mut loaded: Loaded,
    download_dir: &Path,
) {
    loaded.repair(None);
    if let Some(session) = loaded.session.as_ref()
        && index.get(session.info_hash).is_none()
    {
        let name = session.renamed.as_deref().unwrap_or(&session.name);
        registry.set_name(session.info_hash, &name.into());
        if session.private {
            registry.set_private(session.info_hash);
        }
    }
    let Some(Ok(mut metainfo)) = loaded.metainfo else {
        return;
    };
    let torrent = metainfo.hashes.primary();
    if index.get(torrent).is_some() || registry.contains(torrent) {
        return;
    }
    if metainfo.info.private {
        registry.set_private(torrent);
    }
    let session = loaded.session.as_ref();
    // Nothing says that the torrent may use files that it has never examined.
    if session.is_some_and(Session::is_unexamined) {
        return;
    }
    if let Some(session) = session {
        metainfo = session.names().apply(&metainfo);
    }
    let known = session.map(|session| session.resolved.clone().unwrap_or_else(|| session.root.clone()));
    let root: PathBuf = known.or(loaded.salvage.root).unwrap_or_else(|| download_dir.to_owned());
    let info = &metainfo.info;
    let ids = session.map(|session| session.ids.as_slice()).unwrap_or_default();
    let folder = session.and_then(|session| session.folder.as_ref());
    let keys = FolderKeys::new(&root).with_saved(folder);
    let keys = keys.of_table(&info.files, |index| ids.get(index).copied().flatten());
    registry.set(torrent, &info.name.as_str().into(), keys);
    if let Some(root) = session.and_then(|session| session.complete_root.as_deref()) {
        let keys = FolderKeys::new(root).of_table(&info.files, |_| None);
        registry.add(torrent, &info.name.as_str().into(), keys);
    }
    if let Some(moving) = session.and_then(|session| session.moving.as_ref()) {
        let files = moving.names.table(&info.files);
        let keys = FolderKeys::new(&moving.root).of_table(&files, |_| None);
        registry.add(torrent, &info.name.as_str().into(), keys);
    }
    let have = session.and_then(|session| session.have.to_set(info.geometry.piece_count()));
    let have = have.unwrap_or_else(|| Bitfield::new(info.geometry.piece_count()));
    registry.stop(torrent, whole_files(&info.files, &info.geometry, &have));
}

#[cfg(test)]
mod tests {
    use ecs_torrent_components::clock::Clock;
    use ecs_torrent_engine::ports::state::{StateEvent, StoredTorrent};

    use super::*;
    use crate::testing::{Bed, content};

    fn is_done(bed: &mut Bed) -> bool {
        bed.world.resource_scope(|world, mut survey: Mut<Survey>| {
            survey
                .request(world.resource::<Wakeup>(), world.resource::<Clock>().now())
                .is_done()
        })
    }

    fn run(bed: &mut Bed, purpose: Purpose, done: Option<StateDone>) -> usize {
        let tag = JobTag::new(purpose, Entity::PLACEHOLDER);
        let events = done.into_iter().map(|done| StateEvent { tag, outcome: Ok(done) });
        bed.open_port::<StateRequest, StateEvent>(events.collect());
        bed.run(survey_sessions);
        bed.world.resource::<StatePort>().outgoing().len()
    }

    fn bed() -> Bed {
        let mut bed = Bed::new(());
        bed.world.init_resource::<Survey>();
        bed.world.init_resource::<FileRegistry>();
        bed.world.init_resource::<TorrentIndex>();
        bed
    }

    #[test]
    fn the_survey_begins_when_it_is_wanted_and_nothing_is_resumed() {
        let mut survey = Survey::default();
        let wakeup = Wakeup::default();
        assert!(!survey.may_begin());
        assert!(!survey.request(&wakeup, Timestamp::ZERO).is_done() && survey.may_begin());
        survey.begin_resuming();
        assert!(!survey.may_begin());
        survey.end_resuming(false);
        assert!(survey.may_begin());
        survey.end_resuming(true);
        assert!(!survey.may_begin() && survey.request(&wakeup, Timestamp::ZERO).is_done());
    }

    /// Metainfo may take megabytes: only so much of it is read at a time, and only of torrents that are not known.
    #[test]
    fn stopped_torrents_are_read_a_few_at_a_time() {
        let mut bed = bed();
        assert!(!is_done(&mut bed));
        assert_eq!(run(&mut bed, LIST, None), 1, "they are listed");
        let hash = |number: usize| InfoHash([number as u8; 20]);
        let [listed, registered] = [0, 1].map(hash);
        let mut names = crate::testing::torrent();
        names.hashes.v1 = Some(listed);
        names.hashes.v2 = None;
        let torrent = bed.torrent;
        bed.world.resource_mut::<TorrentIndex>().insert(&names.hashes, torrent);
        bed.world
            .resource_mut::<FileRegistry>()
            .set(registered, &"other".into(), Vec::new());
        let stored = |number| StoredTorrent {
            torrent: hash(number),
            has_session: true,
            has_metainfo: true,
        };
        let all = (0..MAX_LOOKS + 5).map(stored).collect();
        assert_eq!(run(&mut bed, LIST, Some(StateDone::Listed(all))), MAX_LOOKS);
        assert_eq!(run(&mut bed, LOOK, Some(StateDone::Loaded(Box::default()))), 1);
        for _ in 0..2 {
            assert_eq!(run(&mut bed, LOOK, Some(StateDone::Loaded(Box::default()))), 1);
        }
        assert_eq!(
            run(&mut bed, LOOK, Some(StateDone::Loaded(Box::default()))),
            0,
            "two are known"
        );
        assert!(!is_done(&mut bed));
        for _ in 0..MAX_LOOKS - 1 {
            run(&mut bed, LOOK, Some(StateDone::Loaded(Box::default())));
        }
        assert!(is_done(&mut bed));
    }

    #[test]
    fn a_torrent_that_is_listed_is_not_registered_as_stopped() {
        for is_listed in [false, true] {
            let mut registry = FileRegistry::default();
            let mut index = TorrentIndex::default();
            let metainfo = content().0;
            let torrent = metainfo.hashes.primary();
            if is_listed {
                index.insert(&metainfo.hashes, Entity::PLACEHOLDER);
            }
            let loaded = Loaded {
                metainfo: Some(Ok(metainfo)),
                ..Loaded::default()
            };
            register_stopped(&mut registry, &index, loaded, Path::new("/downloads"));
            assert_eq!(registry.contains(torrent), !is_listed);
        }
    }

    #[test]
    fn nothing_runs_before_the_survey_is_wanted() {
        let mut bed = bed();
        bed.open_port::<StateRequest, StateEvent>(Vec::new());
        assert!(!bed.holds(may_continue));
        is_done(&mut bed);
        assert!(bed.holds(may_continue));
    }
}
