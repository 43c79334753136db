//! Downloads that are killed at random moments, and one that stops in order.

use std::sync::Arc;
use std::time::Duration;

use crate::bed::{Torrent, settings};
use crate::child::{NO_LIMITS, Process};
use crate::content::noise;
use crate::seed::Seed;

/// Rounds of [`killed_at_any_moment`].
const ROUNDS: u64 = 60;

/// Fault 96: a downloader that is killed repeatedly never saves a false claim about its data, and completes.
#[test]
fn killed_at_any_moment() {
    let files = [
        ("a", 5_000_000),
        ("b/c", 70_000),
        ("b/d", 11_000_001),
        ("e", 8_000_000),
        ("f", 3),
    ];
    let torrent = Arc::new(Torrent::album(96, "album", &files, 64 << 10));
    let seed = Seed::slow(&torrent, Duration::from_micros(1500));
    let mut folder = tempfile::tempdir().unwrap();
    let (mut completed_count, mut resumed_count, mut saved_had) = (0, 0, 0);
    for round in 0..ROUNDS {
        let random = u64::from_le_bytes(noise(9600 + round, 8).try_into().unwrap());
        let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
        let mut settings = settings(Some(&state));
        // Some rounds save without a pause, so that many kills occur while a session is being written.
        settings.session.checkpoint_interval_s = u64::from(random % 4 == 0);
        let mut child = Process::start(&settings, &[(&torrent, &root, seed.address)], NO_LIMITS);
        child.wait("the torrent", |line| line["life"].is_string());
        let is_complete = child.wait_at_most(Duration::from_millis(30 + (random >> 8) % 600), |line| {
            if line["life"] == "downloading" || line["life"] == "seeding" {
                // Saved pieces are not lost: all of them are on the disk, so that checking finds them.
                assert!(
                    line["completed"].as_u64().unwrap() >= saved_had,
                    "{line}, {saved_had} saved"
                );
            }
            line["life"] == "seeding"
        });
        child.kill();
        let session = torrent.session(&state);
        saved_had = session.as_ref().map_or(0, |session| {
            torrent.assert_true(session, &root);
            u64::from(session.have.to_set(session.pieces).unwrap().count())
        });
        resumed_count += u64::from(saved_had > 0);
        if is_complete {
            torrent.assert_whole(&root);
            completed_count += 1;
            saved_had = 0;
            folder = tempfile::tempdir().unwrap();
        }
    }
    // The last run is not killed.
    let (root, state) = (folder.path().join("data"), folder.path().join("state-dir"));
    let mut child = Process::start(&settings(Some(&state)), &[(&torrent, &root, seed.address)], NO_LIMITS);
    child.wait_life(&torrent, "seeding");
    torrent.assert_whole(&root);
    child.stop();
    torrent.assert_true(&torrent.session(&state).unwrap(), &root);
    eprintln!("{ROUNDS} kills: {completed_count} completed, {resumed_count} left pieces in a session");
    assert!(completed_count > 0 && resumed_count > ROUNDS / 2);
}
