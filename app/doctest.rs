// Environment of the documentation's examples: an engine on loopback, and a folder with `album.torrent`, whose data
// lies in the subfolder `music`. Each example includes this file.

use std::path::PathBuf;

use ecs_torrent::making::{MakeOptions, Plan};
use ecs_torrent::{Engine, Error, Settings, TorrentPlugins, Torrents};

#[allow(dead_code)]
pub fn run<F: Future<Output = Result<(), Error>>>(example: impl FnOnce(Torrents, PathBuf) -> F) {
    run_blocking(|torrents, folder| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(example(torrents, folder))
    });
}

pub fn run_blocking(example: impl FnOnce(Torrents, PathBuf) -> Result<(), Error>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::create_dir_all(path.join("music/album")).unwrap();
    std::fs::write(path.join("music/album/song.flac"), vec![7; 100_000]).unwrap();
    let plan = Plan::new(&path.join("music/album"), MakeOptions::default()).unwrap();
    std::fs::write(path.join("album.torrent"), plan.make(&|_| {}).unwrap()).unwrap();
    let mut settings = Settings::default();
    settings.net.listen = vec![([127, 0, 0, 1], 0).into()];
    settings.session.state_dir = Some(path.join("state"));
    settings.storage.download_dir = path.join("downloads");
    let engine = Engine::builder().plugins(TorrentPlugins).settings(settings).start().unwrap();
    example(engine.torrents(), path).unwrap();
}
