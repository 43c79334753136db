//! Torrents that other clients began continue here.

use std::path::Path;
use std::process::Command;

use ecs_torrent::components::session::Session;

use super::Share;
use crate::Case;
use crate::clients::Program::{Libtorrent, Transmission};
use crate::clients::{Peer, libtorrent, ours, transmission};

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a_torrent_of_transmission_seeds_here",
            needs: &[Libtorrent, Transmission],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let folder = lab.folder("downloads");
                let transmission =
                    transmission::Transmission::start(lab, &share.torrent, &folder, lab.address()).ready();
                let peers = [transmission.address()];
                let _seeder = libtorrent::Libtorrent::seed(&share.torrent, &share.origin, lab.address(), &peers);
                let config = transmission.seeding().stop();
                let session = import(&share, &folder, "transmission", &config);
                assert_eq!(session.have.to_set(session.pieces).unwrap().count(), session.pieces);
                assert!(session.files.iter().all(Option::is_some), "nothing has to be hashed");
                assert_eq!((session.downloaded, session.paused), (super::FILE_BYTES as u64, false));
                // Without any peer.
                let mut ours = ours::Ours::download(&share.torrent, &folder, lab.address(), &[]);
                share.assert_arrives(&mut ours);
            },
        },
        Case {
            name: "a_torrent_of_libtorrent_is_completed_here",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let folder = lab.folder("downloads");
                let rate = 4 << 20;
                let seeder = libtorrent::Libtorrent::seed_slowly(&share.torrent, &share.origin, lab.address(), rate);
                let peer = seeder.address();
                let resume = libtorrent::Libtorrent::download_partly(&share.torrent, &folder, lab.address(), peer);
                let backup = lab.folder("BT_backup");
                let path = backup.join(format!("{}.fastresume", share.info_hash));
                std::fs::write(&path, resume).unwrap();
                std::fs::copy(&share.torrent, path.with_extension("torrent")).unwrap();
                let session = import(&share, &folder, "qbittorrent", &backup);
                let count = session.have.to_set(session.pieces).unwrap().count();
                assert!((5..session.pieces).contains(&count), "{count}");
                assert!(session.files.iter().all(Option::is_some), "nothing has to be hashed");
                let held: u64 = u64::from(count) * u64::from(session.piece_length);
                let mut ours = ours::Ours::download(&share.torrent, &folder, lab.address(), &[peer]);
                share.assert_arrives(&mut ours);
                let after = saved(&share, &folder);
                let blocks = session
                    .partial
                    .iter()
                    .map(|partial| partial.blocks.to_numbers(1 << 10).unwrap().len());
                let held = held + blocks.sum::<usize>() as u64 * 16_384;
                let most = super::FILE_BYTES as u64 + session.downloaded + (1 << 20) - held;
                assert!(after.downloaded <= most, "{} of {most}: {after:?}", after.downloaded);
                assert_eq!(after.corrupt, 0);
            },
        },
    ]
}

/// Imports the state of another client into the state folder of a download folder.
fn import(share: &Share, folder: &Path, client: &str, from: &Path) -> Session {
    let output = Command::new(env!("CARGO_BIN_EXE_ecs-torrent"))
        .args(["state", "import", "--from", client])
        .arg(from)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    saved(share, folder)
}

fn saved(share: &Share, folder: &Path) -> Session {
    let path = folder.join(format!(".ecs_torrent/state/{}.ron", share.info_hash));
    Session::parse(&std::fs::read(path).unwrap(), share.info_hash).unwrap()
}
