//! Each client downloads from ecs-torrent alone.

use std::net::IpAddr;
use std::path::Path;

use super::Share;
use crate::Case;
use crate::clients::Program::{Aria2, Libtorrent, Opentracker, Transmission};
use crate::clients::{Peer, aria2, libtorrent, opentracker, ours, transmission};
use crate::lab::Lab;

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "seed_to_libtorrent_by_peer",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let folder = lab.folder("downloads");
                let leecher = libtorrent::Libtorrent::download(&share.torrent, &folder, lab.address(), &[]);
                seed_by_peer(lab, &share, leecher);
            },
        },
        Case {
            name: "seed_to_transmission_by_peer",
            needs: &[Transmission],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let folder = lab.folder("downloads");
                let leecher = transmission::Transmission::start(lab, &share.torrent, &folder, lab.address()).ready();
                seed_by_peer(lab, &share, leecher);
            },
        },
        Case {
            name: "seed_to_aria2_by_peer",
            needs: &[Aria2],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let folder = lab.folder("downloads");
                let leecher = aria2::Aria2::download(&share.torrent, &folder, lab.address());
                seed_by_peer(lab, &share, leecher);
            },
        },
        Case {
            name: "libtorrent_connects_to_our_seed",
            needs: &[Libtorrent],
            run: |lab| {
                let share = Share::file(lab, &[]);
                let seeder = share.seed_by_us(lab);
                let peers = [seeder.address()];
                let folder = lab.folder("downloads");
                let mut leecher = libtorrent::Libtorrent::download(&share.torrent, &folder, lab.address(), &peers);
                share.assert_arrives(&mut leecher);
                seeder.stop();
            },
        },
        Case {
            name: "seed_to_libtorrent_through_udp_tracker",
            needs: &[Libtorrent, Opentracker],
            run: |lab| {
                seed_through_tracker(lab, opentracker::udp_url, |torrent, folder| {
                    libtorrent::Libtorrent::download(torrent, folder, lab.address(), &[])
                });
            },
        },
        Case {
            name: "seed_to_transmission_through_http_tracker",
            needs: &[Transmission, Opentracker],
            run: |lab| {
                seed_through_tracker(lab, opentracker::http_url, |torrent, folder| {
                    transmission::Transmission::start(lab, torrent, folder, lab.address()).ready()
                });
            },
        },
        Case {
            name: "seed_to_aria2_through_http_tracker",
            needs: &[Aria2, Opentracker],
            run: |lab| {
                seed_through_tracker(lab, opentracker::http_url, |torrent, folder| {
                    aria2::Aria2::download(torrent, folder, lab.address())
                });
            },
        },
    ]
}

fn seed_by_peer(lab: &Lab, share: &Share, mut leecher: impl Peer) {
    let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.address(), &[leecher.address()]);
    share.assert_arrives(&mut leecher);
    seeder.stop();
}

fn seed_through_tracker<P: Peer>(lab: &Lab, url: fn(IpAddr) -> String, start_leecher: impl FnOnce(&Path, &Path) -> P) {
    let (share, tracker) = Share::tracked(lab, url);
    let seeder = share.seed_by_us_through(lab, &tracker);
    let mut leecher = start_leecher(&share.torrent, &lab.folder("downloads"));
    share.assert_arrives(&mut leecher);
    drop(leecher);
    seeder.stop();
}
