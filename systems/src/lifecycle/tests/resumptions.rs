//! Tests of resumed torrents.

use super::*;

/// Resumes a torrent whose saved state is `loaded`. Returns the answer, if any.
fn resume(bed: &mut Bed, loaded: Loaded) -> Option<Result<(), ResumeTorrentError>> {
    let (reply, answer) = reply();
    let command = ResumeTorrent {
        torrent: bed.get::<Torrent>(bed.torrent).id(),
        reply,
    };
    let tag = bed
        .world
        .resource_mut::<Jobs<resuming::Resumption>>()
        .add(resuming::LOAD, resuming::Resumption::of(command));
    state_events(bed, tag.purpose, tag.number, loaded);
    bed.run(resuming::list_resumed);
    answer.try_recv().ok()
}

fn stopped() -> Session {
    Session {
        stopped: true,
        ..session()
    }
}

#[test]
fn a_torrent_that_was_added_meanwhile_is_not_resumed_again() {
    let mut bed = bed(Lifecycle::Downloading, None);
    for session in [session(), stopped()] {
        let loaded = loaded(&bed, Some(session));
        assert_eq!(resume(&mut bed, loaded), Some(Ok(())));
        assert!(bed.world.resource::<StatePort>().outgoing().is_empty());
        assert_eq!(bed.world.query::<&Torrent>().iter(&bed.world).count(), 1);
    }
}

/// A session is changed only if the torrent can be listed then.
#[test]
fn a_stopped_torrent_without_a_usable_torrent_file_stays_stopped() {
    for (is_usable, request_count) in [(true, 1), (false, 0)] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let hashes = bed.get::<Torrent>(bed.torrent).hashes;
        bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
        let mut loaded = loaded(&bed, Some(stopped()));
        if !is_usable {
            loaded.metainfo = Some(Err("damaged".into()));
        }
        let answer = resume(&mut bed, loaded);
        assert_eq!(answer.is_some_and(|answer| answer.is_err()), !is_usable);
        assert_eq!(bed.world.resource::<StatePort>().outgoing().len(), request_count);
    }
}
