//! A torrent in a temporary folder, and engines on loopback that seed or download it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use ecs_torrent::bevy_app::Plugins;
use ecs_torrent::events::{Event, Subscription};
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::prelude::*;

pub const PIECE_LENGTH: u32 = 16384;

pub struct Swarm {
    pub folder: tempfile::TempDir,
    pub data: Vec<u8>,
}

pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    settings
}

pub fn engine<M>(plugins: impl Plugins<M> + Clone + Send + 'static, settings: Settings) -> Engine {
    let builder = Engine::builder().plugins(TorrentPlugins).plugins(plugins);
    builder.settings(settings).start().unwrap()
}

/// Waits for an event that satisfies `is_it`.
pub fn wait_for(mut events: Subscription, is_it: impl Fn(&Event) -> bool + Send + 'static) {
    let (done, waiter) = channel();
    std::thread::spawn(move || {
        while let Some(event) = events.next_blocking() {
            if is_it(&event) {
                let _ = done.send(());
                return;
            }
        }
    });
    waiter.recv_timeout(Duration::from_secs(60)).expect("the event");
}

impl Swarm {
    pub fn new(len: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..len).map(|i| (i ^ (i >> 7)) as u8).collect();
        std::fs::create_dir(folder.path().join("there")).unwrap();
        let file = folder.path().join("there/data");
        std::fs::write(&file, &data).unwrap();
        let options = MakeOptions {
            piece_length: Some(PIECE_LENGTH),
            ..MakeOptions::default()
        };
        let torrent = Plan::new(&file, options).unwrap().make(&|_| {}).unwrap();
        std::fs::write(folder.path().join("it.torrent"), torrent).unwrap();
        Self { folder, data }
    }

    pub fn torrent(&self) -> PathBuf {
        self.folder.path().join("it.torrent")
    }

    pub fn download_dir(&self) -> PathBuf {
        self.folder.path().join("here")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Adds the torrent to `engine` and returns when its data has been checked.
    pub fn seed(&self, engine: &Engine) -> SocketAddr {
        let torrents = engine.torrents().blocking();
        let events = torrents.subscribe();
        let options = AddOptions {
            root: Some(self.folder.path().join("there")),
            ..AddOptions::default()
        };
        let id = torrents.download_with(self.torrent(), options).unwrap();
        wait_for(events, move |event| *event == Event::Started(id));
        engine.local_addresses()[0]
    }

    /// Adds the torrent to `engine`, with the seed as its peer, and returns the events since then.
    pub fn download(&self, engine: &Engine, seed: SocketAddr) -> (TorrentId, Subscription) {
        let torrents = engine.torrents().blocking();
        let events = torrents.subscribe();
        let options = AddOptions {
            root: Some(self.download_dir()),
            peers: vec![seed],
            ..AddOptions::default()
        };
        std::fs::create_dir_all(self.download_dir()).unwrap();
        (torrents.download_with(self.torrent(), options).unwrap(), events)
    }

    /// Downloads the torrent with `engine` from the seed and compares it.
    pub fn complete(&self, engine: &Engine, seed: SocketAddr) {
        let (id, events) = self.download(engine, seed);
        wait_for(events, move |event| *event == Event::Completed(id));
        self.assert_downloaded();
    }

    pub fn assert_downloaded(&self) {
        assert!(std::fs::read(self.download_dir().join("data")).unwrap() == self.data);
    }
}
