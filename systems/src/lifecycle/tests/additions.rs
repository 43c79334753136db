//! Tests of adds.

use super::*;

/// The engine resumes what it finds; only a user may renew a torrent that failed for good.
#[test]
fn a_failed_torrent_is_renewed_by_users_only() {
    for (is_resumed, retry_at, is_renewed) in [(false, None, true), (true, None, false), (false, Some(NOW), false)] {
        let mut bed = bed(failed(retry_at), None);
        add(&mut bed, AddOptions::default(), is_resumed);
        let opening = bed.world.get::<Opening>(bed.torrent);
        assert_eq!(opening.is_some_and(|opening| opening.is_renewed), is_renewed);
    }
}

#[test]
fn an_add_that_joins_another_is_answered_when_the_session_is_durable() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let first = add(&mut bed, AddOptions::default(), false);
    assert!(first.try_recv().is_err(), "the session is not durable");
    save(&mut bed);
    let second = add(&mut bed, AddOptions::default(), false);
    assert!(second.try_recv().is_err(), "the callers of before come first");
    let id = bed.get::<Torrent>(bed.torrent).id();
    bed.world.resource_mut::<Adds>().answer(bed.torrent, &Ok(id));
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(id)), Ok(Ok(id))));
    let third = add(&mut bed, AddOptions::default(), false);
    assert_eq!(third.try_recv(), Ok(Ok(id)));
}

/// The disk reports whether a new torrent may use its files; until then a durable session answers nobody.
#[test]
fn an_add_is_answered_when_the_files_are_decided_on() {
    for (opening, is_answered) in [(Opening::supplied(), false), (Opening::again(), true)] {
        let mut bed = bed(Lifecycle::Adding, Some(opening));
        let answer = add(&mut bed, AddOptions::default(), false);
        save(&mut bed);
        let written = SessionWritten {
            torrent: bed.torrent,
            result: Ok(()),
        };
        bed.run_after(written, adding::settle_adds);
        assert_eq!(answer.try_recv().is_ok(), is_answered);
        if !is_answered {
            open(&mut bed, Ok(nothing_there()));
            assert!(matches!(answer.try_recv(), Ok(Ok(_))));
        }
    }
}

/// Knowledge of the files is kept if the folder stays the same.
#[test]
fn a_renewed_torrent_has_moved_if_its_folder_is_another_one() {
    for (root, has_moved) in [(None, false), (Some("/downloads"), false), (Some("/other"), true)] {
        let mut bed = bed(failed(None), None);
        let (sender, given) = channel();
        let sender = std::sync::Mutex::new(sender);
        bed.world.add_observer(move |given: On<OptionsGiven>| {
            let _ = sender.lock().unwrap().send(given.has_moved);
        });
        let options = AddOptions {
            root: root.map(Into::into),
            ..AddOptions::default()
        };
        add(&mut bed, options, false);
        assert_eq!(given.try_recv(), Ok(has_moved));
        assert_eq!(
            bed.get::<Storage>(bed.torrent).root.to_str(),
            root.or(Some("/downloads"))
        );
    }
}

/// A torrent that cannot be saved is refused only while a caller waits for its first session.
#[test]
fn a_session_that_cannot_be_written_refuses_a_new_torrent_only() {
    for (is_pending, is_durable, is_refused) in [(true, false, true), (true, true, false), (false, false, false)] {
        let mut bed = bed(Lifecycle::Adding, None);
        let joined = add(&mut bed, AddOptions::default(), false);
        let _answer = is_pending.then(|| await_new(&mut bed));
        if is_durable {
            save(&mut bed);
        }
        let written = SessionWritten {
            torrent: bed.torrent,
            result: Err("no space".into()),
        };
        bed.run_after(written, adding::settle_adds);
        assert_eq!(bed.world.resource::<Adds>().refused.contains(&bed.torrent), is_refused);
        let is_failed = matches!(joined.try_recv(), Ok(Err(AddError::Unsaved { .. })));
        assert_eq!(is_failed, !is_pending, "a torrent that was listed before stays listed");
    }
}

/// Only users' adds are compared with the files of stopped torrents; a torrent that the engine resumes has its own.
#[test]
fn a_user_waits_for_the_survey_of_stopped_torrents() {
    for is_resumed in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        add(&mut bed, AddOptions::default(), is_resumed);
        assert_eq!(bed.world.resource::<Adds>().waiting.len(), usize::from(!is_resumed));
    }
}

/// A command about a torrent whose add is not decided yet waits for the decision.
#[test]
fn commands_about_an_undecided_add_wait() {
    for is_added in [false, true] {
        let mut bed = bed(Lifecycle::Downloading, None);
        let hashes = bed.get::<Torrent>(bed.torrent).hashes;
        bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
        *bed.world.resource_mut::<crate::ownership::Survey>() = Default::default();
        if is_added {
            add(&mut bed, AddOptions::default(), false);
        }
        assert_eq!(pause(&mut bed), (!is_added, false));
    }
}

/// Adds the bed's torrent as a new one. Returns it.
fn add_new(bed: &mut Bed, root: Option<&str>, is_resumed: bool) -> Entity {
    let hashes = bed.get::<Torrent>(bed.torrent).hashes;
    bed.world.resource_mut::<TorrentIndex>().remove(&hashes);
    let options = AddOptions {
        root: root.map(Into::into),
        ..AddOptions::default()
    };
    add(bed, options, is_resumed);
    bed.world.resource::<TorrentIndex>().get(hashes.primary()).unwrap()
}

#[test]
fn a_new_torrent_has_the_folder_of_its_user_and_a_storage_of_its_own() {
    let mut bed = bed(Lifecycle::Downloading, None);
    let mut storages = Vec::new();
    for (root, is_resumed) in [(None, false), (Some("/other"), false), (None, true)] {
        let added = add_new(&mut bed, root, is_resumed);
        let opening: &Opening = bed.get(added);
        assert_eq!((opening.has_root, opening.is_resumed), (root.is_some(), is_resumed));
        storages.push(bed.get::<Storage>(added).id);
    }
    storages.dedup();
    assert_eq!(storages.len(), 3);
}
