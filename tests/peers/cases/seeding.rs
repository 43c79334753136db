//! Each client downloads from ecs-torrent alone.

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
                let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.address(), &[]);
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
                let ip = lab.address();
                let share = Share::file(lab, &[opentracker::udp_url(ip)]);
                seed_through_tracker(lab, &share, ip, |folder| {
                    libtorrent::Libtorrent::download(&share.torrent, folder, lab.address(), &[])
                });
            },
        },
        Case {
            name: "seed_to_transmission_through_http_tracker",
            needs: &[Transmission, Opentracker],
            run: |lab| {
                let ip = lab.address();
                let share = Share::file(lab, &[opentracker::http_url(ip)]);
                seed_through_tracker(lab, &share, ip, |folder| {
                    transmission::Transmission::start(lab, &share.torrent, folder, lab.address()).ready()
                });
            },
        },
        Case {
            name: "seed_to_aria2_through_http_tracker",
            needs: &[Aria2, Opentracker],
            run: |lab| {
                let ip = lab.address();
                let share = Share::file(lab, &[opentracker::http_url(ip)]);
                seed_through_tracker(lab, &share, ip, |folder| {
                    aria2::Aria2::download(&share.torrent, folder, lab.address())
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

fn seed_through_tracker<P: Peer>(
    lab: &Lab,
    share: &Share,
    ip: std::net::IpAddr,
    start_leecher: impl FnOnce(&std::path::Path) -> P,
) {
    let tracker = opentracker::Opentracker::start(lab, ip, share.info_hash);
    let seeder = ours::Ours::seed(&share.torrent, &share.origin, lab.address(), &[]);
    tracker.wait_for_counts(share.info_hash, (1, 0));
    let mut leecher = start_leecher(&lab.folder("downloads"));
    share.assert_arrives(&mut leecher);
    drop(leecher);
    seeder.stop();
}
