//! Metadata from each client, and to each client (BEP 9).

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Share;
use crate::Case;
use crate::clients::Program::{Aria2, Libtorrent, Opentracker, Transmission};
use crate::clients::{Peer, aria2, libtorrent, opentracker, ours, transmission};
use crate::lab::Lab;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "magnet_download_from_libtorrent",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = share.seed_by_libtorrent(lab);
                download(lab, &share, &seeder);
            },
        },
        Case {
            name: "magnet_download_from_transmission",
            needs: &[Transmission],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let ip = lab.address();
                let seeder = transmission::Transmission::start(lab, &share.torrent, &share.origin, ip);
                download(lab, &share, &seeder.ready().seeding());
            },
        },
        Case {
            name: "magnet_download_from_aria2",
            needs: &[Aria2],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = aria2::Aria2::seed(&share.torrent, &share.origin, lab.address());
                download(lab, &share, &seeder);
            },
        },
        Case {
            name: "magnet_download_from_us_through_a_tracker",
            needs: &[Opentracker],
            run: |lab| {
                let (share, tracker) = Share::tracked(lab, opentracker::http_url);
                let seeder = share.seed_by_us_through(lab, &tracker);
                let folder = lab.folder("downloads");
                let mut leecher = ours::Ours::download(&link(&share), &folder, lab.address(), &[]);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "magnet_download_by_libtorrent",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = share.seed_by_us(lab);
                let folder = lab.folder("downloads");
                let (link, peers) = (link(&share), [seeder.address()]);
                let mut leecher = libtorrent::Libtorrent::download_magnet(&link, &folder, lab.address(), &peers);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "magnet_download_by_transmission",
            needs: &[Transmission, Opentracker],
            run: |lab| {
                serve(lab, |lab, link, folder| {
                    transmission::Transmission::start_magnet(lab, link, folder, lab.address())
                });
            },
        },
        Case {
            name: "magnet_download_by_aria2",
            needs: &[Aria2, Opentracker],
            run: |lab| {
                serve(lab, |lab, link, folder| {
                    aria2::Aria2::download(link, folder, lab.address())
                });
            },
        },
    ]
}

/// Returns the magnet link of a torrent in place of its file.
pub(super) fn link(share: &Share) -> PathBuf {
    let mut link = format!("magnet:?xt=urn:btih:{}&dn={}", share.info_hash, share.name);
    share.trackers.iter().for_each(|url| link += &format!("&tr={url}"));
    link.into()
}

/// Downloads from a seeder that the link names.
fn download(lab: &Lab, share: &Share, seeder: &impl Peer) {
    let folder = lab.folder("downloads");
    let address: SocketAddr = seeder.address();
    let mut link = link(share).into_os_string();
    link.push(format!("&x.pe={address}"));
    let mut leecher = ours::Ours::download(link.as_ref(), &folder, lab.address(), &[]);
    share.assert_arrives(&mut leecher);
}

/// Seeds to a client that knows a link with a tracker.
fn serve<P: Peer>(lab: &Lab, start: impl FnOnce(&Lab, &std::path::Path, &std::path::Path) -> P) {
    let (share, tracker) = Share::tracked(lab, opentracker::http_url);
    let seeder = share.seed_by_us_through(lab, &tracker);
    let mut leecher = start(lab, &link(&share), &lab.folder("downloads"));
    share.assert_arrives(&mut leecher);
    seeder.stop();
}
