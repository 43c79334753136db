//! Tests of session files.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::names::NewNames;
use crate::seeding::{OwnLimit, Seeded, SeedingLimit};
use crate::settings::{SeedingAction, SeedingSettings};

const SEEDING: SeedingLimits = SeedingLimits {
    ratio_percent: OwnLimit::Value(150),
    time_s: OwnLimit::Unlimited,
    idle_s: OwnLimit::Inherit,
    action: Some(SeedingAction::Remove),
};

const ID: FileId = FileId {
    device: 3,
    inode: 4,
    born_ns: Some(5),
};
const KEY: OwnerKey = OwnerKey([0xab; 16]);

fn session() -> Session {
    Session {
        version: VERSION,
        info_hash: InfoHash([7; 20]),
        name: "a \"name\"".into(),
        renamed: Some("another".into()),
        file_names: [(0, "a/b".into())].into(),
        part_suffix: true,
        root: "/data/ü".into(),
        complete_root: Some("/complete/ü".into()),
        resolved: Some("/mnt/ü".into()),
        folder: Some(NearestFolder {
            id: FileId {
                device: 1,
                inode: 2,
                born_ns: Some(3),
            },
            rest: "ü".into(),
        }),
        volume: Some("/".into()),
        volume_id: Some(VolumeId {
            kind: 0xef53,
            id: "9dc94ceefc3b22d4".into(),
        }),
        lacks_metadata: false,
        private: true,
        total_size: 100,
        piece_length: 10,
        pieces: 10,
        have: Runs::of([0, 1, 2, 5, 9]),
        partial: vec![PartialPiece {
            piece: 3,
            blocks: Runs::of([0]),
        }],
        uploaded: 1,
        downloaded: 2,
        corrupt: 3,
        dropped: 2,
        wasted: 4,
        seconds_active: 5,
        seconds_seeding: 4,
        added_at: Some(1_700_000_000),
        completed_at: Some(1_700_000_060),
        active_at: None,
        require_complete: false,
        files: vec![
            None,
            Some(FileStamp {
                len: 100,
                seconds: -1,
                nanos: 999_999_999,
                changed_ns: Some(12),
            }),
        ],
        created: Runs::of([1]),
        ids: vec![None, Some(ID)],
        owner_key: Some(KEY),
        permitted: Runs::of([0]),
        overwrite: false,
        overwrite_ns: Some(13),
        lost: Runs::of([3]),
        paused: true,
        stopped: true,
        recheck: true,
        recheck_pieces: Runs::of([1]),
        unverified: Runs::of([2]),
        skip_checking: true,
        moving: Some(Box::new(SavedMove {
            root: "/mnt/other".into(),
            names: NewNames {
                name: Some("before".into()),
                files: [(0, "a/c".into())].into(),
            },
            stage: MoveStage::DeletingOld,
            volume: Some("/mnt".into()),
            volume_id: None,
            created: Runs::of([0]),
            ids: vec![Some(FileId {
                device: 1,
                inode: 2,
                born_ns: None,
            })],
        })),
        labels: vec!["linux".into(), "über".into()],
        category: Some("iso".into()),
        limits: TransferLimits {
            download_bytes_per_s: Some(20_000),
            upload_bytes_per_s: None,
        },
        seeding: SEEDING,
        seeding_record: {
            let limits = SEEDING.in_force(&SeedingSettings::default());
            let seeded = Seeded {
                uploaded: 3,
                basis: 1,
                time: Duration::from_secs(5),
                idle: Duration::ZERO,
            };
            SeedingRecord::default().with_reached(SeedingLimit::Ratio, &limits, &seeded)
        },
        queue_order: Some(-3),
        is_forced: true,
        skipped: Runs::of([1, 2]),
        low: Runs::of([3]),
        high: Runs::of([0]),
        sequential: true,
        ends_first: true,
        parted: Runs::of([2]),
        selected: FileSelection::new([1..=4], ["*.flac"]).unwrap(),
        hints: LinkHints {
            web_seeds: vec!["https://w.example/a b".into()],
            peer_hosts: vec!["peer.example:6881".parse().unwrap()],
        },
        peers: vec!["[::1]:6881".parse().unwrap()],
        trackers: vec![SessionTracker {
            url: "http://t/".into(),
            tier: 2,
            was_completed: true,
            seeders: Some(3),
            leechers: None,
        }],
        are_trackers_edited: true,
    }
}

#[test]
fn a_session_comes_back_as_it_was() {
    let text = session().to_text();
    assert!(text.contains("have: \"0-2,5,9\""), "{text}");
    assert!(
        text.contains("\n        Some((len: 100, seconds: -1, nanos: 999999999, changed_ns: Some(12))),\n"),
        "{text}"
    );
    assert_eq!(Session::parse(text.as_bytes(), InfoHash([7; 20])), Ok(session()));
}

/// A name that leads out of its folder counts as damage, as if the checksum were wrong.
#[test]
fn a_session_cannot_name_another_place() {
    for name in ["../../pwn", ".ssh", "a/b", ""] {
        let renamed = Session {
            renamed: Some(name.into()),
            ..session()
        };
        let error = Session::parse(renamed.to_text().as_bytes(), InfoHash([7; 20])).unwrap_err();
        assert_eq!(error.word(), "damaged", "{name}: {error}");
    }
}

/// Version 1: lacks all later fields, is spread over more lines, and has a list of the files that were written.
#[test]
fn an_older_session_is_read() {
    let form = ron::ser::PrettyConfig::new().compact_arrays(false);
    let older = Session {
        version: 1,
        lost: Runs::default(),
        dropped: 0,
        renamed: None,
        resolved: None,
        folder: None,
        volume_id: None,
        created: Runs::default(),
        ids: Vec::new(),
        owner_key: None,
        permitted: Runs::default(),
        overwrite: false,
        overwrite_ns: None,
        paused: false,
        stopped: false,
        files: vec![None],
        hints: LinkHints::default(),
        moving: None,
        ..session()
    };
    let mut text = ron::ser::to_string_pretty(&older, form).unwrap();
    text = text.replace("    dropped: 0,\n", "");
    text = text.replace("created: \"\"", "written: \"0-1\"");
    for absent in [
        "lost",
        "dropped",
        "created",
        "overwrite",
        "ids",
        "paused",
        "stopped",
        "volume_id",
        "hints",
    ] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    assert!(text.contains("written: \"0-1\"") && text.contains("\n            piece: 3,"));
    assert_eq!(Session::parse(text.as_bytes(), InfoHash([7; 20])), Ok(older));
}

#[test]
fn only_data_binds_a_torrent_to_a_volume() {
    let claims = Session {
        created: Runs::of([0, 1]),
        ids: vec![None, None],
        ..Session::new(InfoHash([7; 20]))
    };
    assert!(!claims.has_data(), "files that were about to be created");
    let created = Session {
        ids: vec![None, Some(ID)],
        ..claims.clone()
    };
    let partial = session().partial;
    let (have, lost) = (Runs::of([1]), Runs::of([2]));
    let others = [
        Session { have, ..claims.clone() },
        Session { lost, ..claims.clone() },
        Session { partial, ..claims },
    ];
    assert!(created.has_data() && others.iter().all(Session::has_data));
}

#[test]
fn a_session_edited_by_hand_is_believed() {
    let text = session().to_text().replace("/data/ü", "/elsewhere");
    assert_eq!(
        Session::parse(text.as_bytes(), InfoHash([7; 20])),
        Err(SessionError::Damaged)
    );
    let end = text.find(CHECKSUM).unwrap();
    let parsed = Session::parse(&text.as_bytes()[..end], InfoHash([7; 20])).unwrap();
    assert_eq!(parsed.root, PathBuf::from("/elsewhere"));
}

/// Fault 82.
#[test]
fn newer_and_foreign_sessions_are_named() {
    let newer = Session {
        version: VERSION + 1,
        ..session()
    };
    // Fields of a later version do not matter: its version number identifies it.
    let text = newer.to_text();
    let body = text[..text.find(CHECKSUM).unwrap()].replace("name:", "later: 1, name:");
    assert_eq!(
        Session::parse(body.as_bytes(), InfoHash([7; 20])),
        Err(SessionError::Newer(VERSION + 1))
    );
    let error = Session::parse(session().to_text().as_bytes(), InfoHash([8; 20])).unwrap_err();
    assert_eq!((error.word(), error.to_string().contains("another")), ("foreign", true));
}

#[test]
fn a_damaged_session_may_still_tell_its_folder_and_its_files() {
    let hash = InfoHash([7; 20]);
    let text = session().to_text().replace("    uploaded:", "    uploadex:");
    assert!(Session::parse(text.as_bytes(), hash).is_err());
    let salvage = Session::salvage(text.as_bytes(), hash);
    assert_eq!(salvage.root, Some("/data/ü".into()));
    assert_eq!(salvage.created, BTreeMap::from([(1, Some(ID))]));
    assert_eq!(salvage.owner_key, Some(KEY));
    // A line altered to claim more files fails its checksum.
    let forged = text.replace("[1]", "[0-1]");
    let root_only = Salvage {
        root: Some("/data/ü".into()),
        ..Salvage::default()
    };
    let root_and_intent = Salvage {
        intent: salvage.intent,
        ..root_only.clone()
    };
    assert_eq!(Session::salvage(forged.as_bytes(), hash), root_and_intent);
    let of_another = Session::salvage(text.as_bytes(), InfoHash([8; 20]));
    assert_eq!(of_another, root_only);
    assert_eq!(Session::salvage(b"\xff\x00", hash), Salvage::default());
}

/// The intent of the user survives damage elsewhere; `paused` and `stopped` survive damage of their own line too.
#[test]
fn a_damaged_session_holds_what_the_user_wants() {
    let hash = InfoHash([7; 20]);
    let text = session().to_text().replace("    uploaded:", "    uploadex:");
    let geometry = Geometry::new(100, 10).unwrap();
    let salvaged = |text: &str| Session::salvage(text.as_bytes(), hash).session(Some(&geometry));
    let recovered = salvaged(&text).unwrap();
    let whole = session();
    assert_eq!(
        recovered,
        Session {
            folder: None,
            have: Runs::default(),
            lost: Runs::default(),
            partial: Vec::new(),
            // All data is hashed.
            unverified: Runs::default(),
            skip_checking: false,
            uploaded: 0,
            downloaded: 0,
            corrupt: 0,
            dropped: 0,
            wasted: 0,
            seconds_active: 0,
            seconds_seeding: 0,
            added_at: None,
            completed_at: None,
            files: Vec::new(),
            peers: Vec::new(),
            ..whole
        }
    );
    let unedited = Session {
        are_trackers_edited: false,
        ..session()
    };
    let unedited = unedited.to_text().replace("    uploaded:", "    uploadex:");
    assert_eq!(salvaged(&unedited).unwrap().trackers, [], "the metainfo has them");
    let later = text.replace("// intent ", "// intent x");
    let marks = salvaged(&later).unwrap();
    assert_eq!((marks.paused, marks.stopped, marks.renamed), (true, true, None));
    assert_eq!((marks.root, marks.created), (session().root, session().created));
    let runs = later.replace("paused: true,", "").replace("stopped: true,", "");
    assert_eq!(salvaged(&runs), None);
    assert_eq!(Session::salvage(later.as_bytes(), InfoHash([8; 20])).intent, None);
    // Without metadata, only the session has the trackers.
    let unfetched = Session {
        lacks_metadata: true,
        ..session()
    };
    let text = unfetched.to_text().replace("    uploaded:", "    uploadex:");
    let recovered = Session::salvage(text.as_bytes(), hash).session(None).unwrap();
    assert_eq!((recovered.trackers, recovered.pieces), (session().trackers, 0));
    assert_eq!(recovered.hints, session().hints);
}

/// The incomplete files that the user allowed to be changed, by identity.
#[test]
fn a_damaged_session_holds_the_users_permission() {
    let permitting = Session {
        created: Runs::default(),
        permitted: Runs::of([1]),
        ids: vec![None, Some(ID), Some(ID)],
        ..session()
    };
    let text = permitting.to_text().replace("    uploaded:", "    uploadex:");
    let salvage = Session::salvage(text.as_bytes(), InfoHash([7; 20]));
    let recovered = salvage.session(Geometry::new(100, 10).as_ref()).unwrap();
    assert_eq!(
        (recovered.permitted, recovered.ids),
        (Runs::of([1]), vec![None, Some(ID)])
    );
}

#[test]
fn a_mark_names_one_file_and_one_torrent() {
    let mark = KEY.mark(Some(1), ID);
    assert_eq!(mark, KEY.mark(Some(1), FileId { device: 9, ..ID }));
    let later = FileId { born_ns: Some(6), ..ID };
    let others = [
        OwnerKey([1; 16]).mark(Some(1), ID),
        KEY.mark(Some(2), ID),
        KEY.mark(None, ID),
        KEY.mark(Some(1), later),
        KEY.mark(Some(1), FileId { inode: 5, ..ID }),
    ];
    assert!(others.iter().all(|other| *other != mark && other.len() == 32));
    assert_eq!(OwnerKey::parse(&KEY.to_string()), Some(KEY));
    for bad in ["", "ab", "é", &"zz".repeat(16), &"ab".repeat(17)] {
        assert_eq!(OwnerKey::parse(bad), None);
    }
}

#[test]
fn stamps_are_compared_as_far_as_they_are_known() {
    let stamp = session().files[1].unwrap();
    let touched = FileStamp {
        changed_ns: Some(13),
        ..stamp
    };
    let older = FileStamp {
        changed_ns: None,
        ..stamp
    };
    assert!(stamp.matches(&older) && older.matches(&stamp) && !stamp.matches(&touched));
    assert!(stamp.has_same_data_as(&touched) && !stamp.matches(&FileStamp { len: 9, ..older }));
}

proptest! {
    /// Fault 80: no file that was cut or had a bit flipped is accepted.
    #[test]
    fn cuts_and_flips_are_found(position in 0.0..1.0f64, bit in 0..8u8, cut in any::<bool>()) {
        let mut bytes = session().to_text().into_bytes();
        let position = (position * bytes.len() as f64) as usize;
        if cut {
            bytes.truncate(position);
        } else {
            bytes[position] ^= 1 << bit;
        }
        match Session::parse(&bytes, InfoHash([7; 20])) {
            Err(_) => {}
            // The line break after the checksum may be missing.
            Ok(parsed) => prop_assert_eq!(parsed, session()),
        }
    }

    #[test]
    fn runs_are_sets(numbers in proptest::collection::btree_set(0u32..200, 0..60)) {
        let set = Runs::of(numbers.iter().copied()).to_set(200).unwrap();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), numbers.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn other_text_is_no_set(text in "[0-9,-]{0,9}") {
        let _ = Runs(text).to_set(50);
    }
}
