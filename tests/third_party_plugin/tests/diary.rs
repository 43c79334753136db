//! The plugin in a running engine: its component is updated, and its stop request is carried out.

use std::net::Ipv4Addr;
use std::sync::mpsc::channel;

use ecs_torrent::Source;
use ecs_torrent::events;
use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::prelude::*;
use third_party_plugin::{Diary, DiaryPlugin};

fn engine(plugin: DiaryPlugin) -> Engine {
    let mut settings = Settings::default();
    settings.session.state_dir = None;
    settings.net.listen = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    Engine::builder()
        .plugins(TorrentPlugins)
        .plugins(plugin)
        .settings(settings)
        .start()
        .expect("an engine starts on a free port")
}

#[test]
fn a_plugin_from_outside_sees_pieces_and_stops_torrents() {
    let base = std::env::temp_dir().join(format!("third-party-plugin-{}", std::process::id()));
    let (there, here) = (base.join("there"), base.join("here"));
    std::fs::create_dir_all(&there).unwrap();
    std::fs::create_dir_all(&here).unwrap();
    let data: Vec<u8> = (0..200_000u32).map(|i| (i ^ (i >> 7)) as u8).collect();
    std::fs::write(there.join("data"), &data).unwrap();
    let torrent = Plan::new(&there.join("data"), MakeOptions::default())
        .unwrap()
        .make(&|_| {})
        .unwrap();
    std::fs::write(base.join("it.torrent"), &torrent).unwrap();
    let metainfo = Source::from(base.join("it.torrent")).load().unwrap();

    // The seeder stops when it has uploaded the torrent once; the leecher never does.
    let (seeder, leecher) = (
        engine(DiaryPlugin { stop_at_ratio: 1.0 }),
        engine(DiaryPlugin { stop_at_ratio: 9.0 }),
    );
    let mut seeding = seeder.torrents().subscribe();
    let options = AddOptions {
        root: Some(there),
        ..AddOptions::default()
    };
    let torrents = seeder.torrents().blocking();
    torrents.download_with(metainfo.clone(), options).unwrap();
    while !matches!(seeding.next_blocking(), Some(events::Event::Started(_)) | None) {}
    let options = AddOptions {
        root: Some(here.clone()),
        peers: vec![seeder.local_addresses()[0]],
        ..AddOptions::default()
    };
    let mut leeching = leecher.torrents().subscribe();
    let downloads = leecher.torrents().blocking();
    downloads.download_with(metainfo, options).unwrap();
    let (done, waiter) = channel();
    std::thread::spawn(move || {
        while !matches!(leeching.next_blocking(), Some(events::Event::Completed(_)) | None) {}
        while !matches!(seeding.next_blocking(), Some(events::Event::Stopped(_)) | None) {}
        let _ = done.send(());
    });
    waiter
        .recv_timeout(std::time::Duration::from_secs(60))
        .expect("completed there, stopped here");

    assert!(std::fs::read(here.join("data")).unwrap() == data);
    assert!(torrents.list().unwrap().is_empty(), "the plugin stopped it");
    let diaries = |world: &mut World| world.query::<&Diary>().iter(world).cloned().collect::<Vec<_>>();
    let diaries = downloads.with_world(diaries).unwrap();
    let [Diary { pieces }] = &diaries[..] else {
        panic!("{diaries:?}")
    };
    let mut sorted = pieces.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..13).collect::<Vec<_>>(), "every piece once");
    let _ = std::fs::remove_dir_all(base);
}
