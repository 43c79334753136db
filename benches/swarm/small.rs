//! Many small torrents.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ecs_torrent::AddOptions;
use ecs_torrent::components::commands::{AddTorrent, CommandQueue, Reply};
use ecs_torrent::components::torrent::Lifecycle;
use ecs_torrent::engine::sim::{Content, NodeId, Simulation};
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};

const LEN: usize = 4096;

/// Returns the name, .torrent file and data of a torrent with one small file.
fn make(number: u32) -> (String, Vec<u8>, Vec<u8>) {
    let name = format!("small-{number:06}");
    let data: Vec<u8> = name.bytes().cycle().take(LEN).collect();
    let torrent = NewTorrent {
        name: name.clone(),
        files: vec![NewFile {
            path: vec![],
            len: LEN as u64,
        }],
        piece_length: 16 << 10,
        pieces: vec![sha1([data.as_slice()])],
        ..NewTorrent::default()
    };
    (name, torrent.encode().unwrap(), data)
}

/// Writes `count` torrents and their data.
pub fn write(torrents: &Path, data: &Path, count: u32) {
    for number in 0..count {
        let (name, torrent, bytes) = make(number);
        fs::write(torrents.join(format!("{name}.torrent")), torrent).unwrap();
        fs::write(data.join(name), bytes).unwrap();
    }
}

/// Adds `count` torrents to a simulated engine, with their data on its disk.
pub fn add_complete(sim: &mut Simulation, node: NodeId, count: u32) {
    for number in 0..count {
        let (name, torrent, bytes) = make(number);
        let metainfo = Arc::new(Metainfo::parse(&Bytes::from(torrent), &MetainfoLimits::default()).unwrap());
        sim.put(node, &name, &Content::new(metainfo.clone(), bytes.into()));
        let command = AddTorrent {
            source: metainfo.into(),
            options: AddOptions {
                root: Some(name.into()),
                ..AddOptions::default()
            },
            is_resumed: false,
            reply: Reply::ignored(),
        };
        let world = sim.node(node).world_mut();
        world.resource_mut::<CommandQueue<AddTorrent>>().0.push_back(command);
    }
    sim.nudge(node);
}

/// Number of complete torrents of a simulated engine.
pub fn count_seeding(sim: &mut Simulation, node: NodeId) -> usize {
    let world = sim.node(node).world_mut();
    let mut all = world.query::<&Lifecycle>();
    all.iter(world)
        .filter(|lifecycle| **lifecycle == Lifecycle::Seeding)
        .count()
}
