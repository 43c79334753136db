//! Tests of metadata that arrives after its torrent.

use super::*;
use crate::sessions::SaveTorrent;

fn supply(bed: &mut Bed, info: Bytes) -> Answer<(), SupplyError> {
    let (reply, answer) = reply();
    let torrent = bed.get::<Torrent>(bed.torrent).id();
    let command = SupplyMetadata { torrent, info, reply };
    let mut queue = bed.world.resource_mut::<CommandQueue<SupplyMetadata>>();
    queue.0.push_back(command);
    bed.run(metadata::supply_metadata);
    answer
}

/// Metadata is taken when the files of all torrents are known.
#[test]
fn supplied_metadata_waits_for_the_survey() {
    for is_surveyed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        save(&mut bed);
        bed.world
            .init_resource::<ecs_torrent_components::candidates::CandidateSources>();
        if !is_surveyed {
            *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        }
        let info = bed.get::<Content>(bed.torrent).0.info_bytes.clone();
        let answer = supply(&mut bed, info);
        assert_eq!(answer.try_recv().is_ok(), is_surveyed);
    }
}

/// The info dictionary has the torrent's hash, but describes no torrent that this engine can use.
#[test]
fn unusable_metadata_fails_its_torrent() {
    for (info, is_its) in [
        (&b"d4:name1:xe"[..], true),
        (b"d4:name1:ye", false),
        (b"d4:name1:xe1:a1:b", false),
    ] {
        let mut bed = bed(Lifecycle::FetchingMetadata, None);
        save(&mut bed);
        bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
        let hashes = InfoHashes::of(b"d4:name1:xe", true, false);
        bed.get_mut::<Torrent>(bed.torrent).hashes = hashes;
        let entity = bed.torrent;
        bed.world.resource_mut::<TorrentIndex>().insert(&hashes, entity);
        let answer = supply(&mut bed, info.to_vec().into());
        match (answer.try_recv().unwrap().unwrap_err(), is_its) {
            (SupplyError::Invalid { .. }, true) | (SupplyError::WrongHash(_), false) => {}
            (error, _) => panic!("{error}"),
        }
        let failed: Vec<_> = bed.world.resource_mut::<Messages<FailTorrent>>().drain().collect();
        assert_eq!(failed.len(), usize::from(is_its));
        let is_plain = |fail: &FailTorrent| fail.reason.starts_with("its metadata cannot be used: ");
        assert!(failed.iter().all(is_plain), "{failed:?}");
    }
}

/// Unusable metadata still says whether its torrent is private, and the session keeps that.
#[test]
fn unusable_metadata_may_be_private() {
    for (info, is_private) in [(&b"d4:name1:xe"[..], false), (b"d4:name1:x7:privatei1ee", true)] {
        let mut bed = bed(Lifecycle::FetchingMetadata, None);
        save(&mut bed);
        bed.world.resource_mut::<Messages<SaveTorrent>>().clear();
        bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
        let hashes = InfoHashes::of(info, true, false);
        bed.get_mut::<Torrent>(bed.torrent).hashes = hashes;
        let entity = bed.torrent;
        bed.world.resource_mut::<TorrentIndex>().insert(&hashes, entity);
        supply(&mut bed, info.to_vec().into());
        assert_eq!(bed.get::<Torrent>(entity).private, is_private);
        assert_eq!(!bed.world.resource::<Messages<SaveTorrent>>().is_empty(), is_private);
    }
}

/// A session says that its torrent is private before anything else can name the torrent.
#[test]
fn a_session_keeps_that_a_torrent_is_private() {
    for private in [false, true] {
        let mut bed = bed(Lifecycle::Adding, Some(Opening::default()));
        bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
        let session = Session { private, ..saved(true) };
        let loaded = Loaded {
            session: Some(session),
            ..Loaded::default()
        };
        let tag = JobTag::new(opening::LOAD, bed.torrent);
        let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
        bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
        bed.run(opening::loading::collect_loaded);
        assert_eq!(bed.get::<Torrent>(bed.torrent).private, private);
    }
}

/// The session of a torrent whose metadata the state folder has is read when that metadata is taken, however long that
/// takes.
#[test]
fn a_session_waits_for_stored_metadata() {
    let mut bed = bed(Lifecycle::FetchingMetadata, Some(Opening::default()));
    *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
    let loaded = loaded(&bed, Some(saved(false)));
    bed.world.entity_mut(bed.torrent).remove::<(Content, Layout)>();
    let tag = JobTag::new(opening::LOAD, bed.torrent);
    let outcome = Ok(StateDone::Loaded(Box::new(loaded)));
    bed.open_port::<StateRequest, StateEvent>(vec![StateEvent { tag, outcome }]);
    for _ in 0..3 {
        bed.run(opening::loading::collect_loaded);
        bed.run(metadata::supply_metadata);
        assert!(!bed.get::<SessionState>(bed.torrent).is_loaded());
    }
    bed.world.resource_mut::<crate::ownership::Survey>().end_resuming(true);
    bed.run(metadata::supply_metadata);
    bed.run(opening::loading::collect_loaded);
    assert!(bed.get::<SessionState>(bed.torrent).is_loaded());
    assert!(bed.get::<Opening>(bed.torrent).is_known);
}

/// Metadata is taken whether the saved state is known or not, but not while the torrent is being paused.
#[test]
fn supplied_metadata_waits_for_the_end_of_a_pause() {
    let stopping = Lifecycle::Stopping {
        phase: StopPhase::HaltDownloads,
    };
    for (lifecycle, is_taken) in [(stopping, false), (Lifecycle::Paused, true)] {
        let mut bed = bed(lifecycle, None);
        bed.world.entity_mut(bed.torrent).insert(Desired::Pause);
        let info = bed.get::<Content>(bed.torrent).0.info_bytes.clone();
        let answer = supply(&mut bed, info);
        assert_eq!(answer.try_recv().is_ok(), is_taken);
    }
}
