//! The test cases, each with the client programs that it needs.

mod discovery;
mod downloading;
mod magnets;
mod migration;
mod networks;
mod seeding;
mod special;
mod stopping;
mod swarms;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ecs_torrent::InfoHash;
use ecs_torrent::making::MakeOptions;

use crate::Case;
use crate::clients::Peer;
use crate::clients::libtorrent::Libtorrent;
use crate::clients::opentracker::Opentracker;
use crate::clients::ours::Ours;
use crate::content::{compare, make_torrent, write_file};
use crate::lab::Lab;

/// Returns every case.
pub fn all() -> Vec<Case> {
    [
        discovery::cases(),
        downloading::cases(),
        seeding::cases(),
        magnets::cases(),
        migration::cases(),
        networks::cases(),
        swarms::cases(),
        special::cases(),
        stopping::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A torrent and the folder with its complete data.
pub struct Share {
    /// The torrent file.
    torrent: PathBuf,
    info_hash: InfoHash,
    trackers: Vec<String>,
    /// The folder that holds the torrent's file or folder.
    origin: PathBuf,
    /// Name of the torrent's file or folder.
    name: &'static str,
}

/// Size in bytes of the file that most cases transfer: odd, and some pieces larger than a request queue holds.
const FILE_BYTES: usize = (24 << 20) + 4321;

impl Share {
    /// Creates a torrent of one file.
    fn file(lab: &Lab, trackers: &[String]) -> Self {
        let origin = lab.folder("origin");
        write_file(&origin, "file.bin", 1, FILE_BYTES);
        Self::of(lab, "file.bin", trackers, MakeOptions::default())
    }

    /// Creates a torrent of the file or folder `name` in the case's origin folder.
    fn of(lab: &Lab, name: &'static str, trackers: &[String], options: MakeOptions) -> Self {
        let origin = lab.folder("origin");
        let options = MakeOptions {
            trackers: trackers.to_vec(),
            ..options
        };
        let bytes = make_torrent(&origin.join(name), options);
        let torrent = lab.folder("torrents").join(format!("{name}.torrent"));
        std::fs::write(&torrent, &bytes).unwrap();
        let source = ecs_torrent::Source::from(bytes::Bytes::from(bytes));
        Self {
            torrent,
            info_hash: source.load().unwrap().hashes.primary(),
            trackers: trackers.to_vec(),
            origin,
            name,
        }
    }

    /// Creates a torrent of one file with a tracker, and starts the tracker. `url` is the tracker's URL at an address.
    fn tracked(lab: &Lab, url: fn(IpAddr) -> String) -> (Self, Opentracker) {
        let ip = lab.address();
        let share = Self::file(lab, &[url(ip)]);
        let tracker = Opentracker::start(lab, ip, share.info_hash);
        (share, tracker)
    }

    /// Starts libtorrent as a seed.
    fn seed_by_libtorrent(&self, lab: &Lab) -> Libtorrent {
        Libtorrent::seed(&self.torrent, &self.origin, lab.address(), &[])
    }

    /// Starts ecs-torrent as a seed.
    fn seed_by_us(&self, lab: &Lab) -> Ours {
        Ours::seed(&self.torrent, &self.origin, lab.address(), &[])
    }

    /// Starts ecs-torrent as a seed that the tracker knows.
    fn seed_by_us_through(&self, lab: &Lab, tracker: &Opentracker) -> Ours {
        let seeder = self.seed_by_us(lab);
        tracker.wait_for_counts(self.info_hash, (1, 0));
        seeder
    }

    /// Downloads with ecs-torrent from peers and trackers. Returns the client, which has completed the torrent.
    fn download_by_us(&self, lab: &Lab, peers: &[SocketAddr]) -> Ours {
        let folder = lab.folder("downloads");
        let mut leecher = Ours::download(&self.torrent, &folder, lab.address(), peers);
        self.assert_arrives(&mut leecher);
        leecher
    }

    /// Waits until a client has completed the torrent, and compares every byte.
    fn assert_arrives(&self, peer: &mut impl Peer) {
        peer.wait_complete();
        self.assert_same(peer);
    }

    fn assert_same(&self, peer: &impl Peer) {
        let result = compare(&self.origin.join(self.name), &peer.folder().join(self.name));
        assert_eq!(result, Ok(()));
    }
}
