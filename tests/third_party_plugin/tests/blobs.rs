//! A plugin's own state between runs.

use std::sync::mpsc::channel;
use std::time::Duration;

use ecs_torrent::prelude::*;
use third_party_plugin::{GetRunCount, RunCountPlugin};

use crate::swarm::{engine, settings};

/// A plugin from outside finds the blob that it saved in an earlier run; a lost or damaged blob stops nobody.
#[test]
fn a_plugin_from_outside_keeps_a_blob_between_runs() {
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut settings = settings();
        settings.session.state_dir = Some(folder.path().to_owned());
        let engine = engine(RunCountPlugin, settings);
        let (sender, count) = channel();
        let reply = Reply::new(move |count| sender.send(count).unwrap());
        let push = |world: &mut World| {
            let mut queue = world.resource_mut::<CommandQueue<GetRunCount>>();
            queue.0.push_back(GetRunCount { reply });
        };
        engine.torrents().blocking().with_world(push).unwrap();
        count.recv_timeout(Duration::from_secs(60)).unwrap()
    };
    assert_eq!([run(), run(), run()], [1, 2, 3]);
    let path = folder.path().join("state/run-count.blob");
    std::fs::write(&path, "no number").unwrap();
    assert_eq!(run(), 1);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(run(), 1);
}
