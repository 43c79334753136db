//! A Bevy program with an engine beside it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ecs_torrent::bevy_app::{AppExit, ScheduleRunnerPlugin, Startup, TaskPoolPlugin, Update};
use ecs_torrent::events::Event;
use ecs_torrent::host::{
    Answer, EcsTorrentPlugin, EngineEnded, TorrentAnswer, TorrentCommand, TorrentEngine, TorrentEvent,
};
use ecs_torrent::prelude::*;

use crate::swarm::{Swarm, engine, settings};

/// The torrent that a game needs, and the observed progress of the download.
#[derive(Resource)]
struct Assets {
    download: TorrentCommand,
    id: Option<TorrentId>,
    frames: u32,
    deadline: Instant,
}

fn request_assets(assets: Res<Assets>, mut commands: MessageWriter<TorrentCommand>) {
    commands.write(assets.download.clone());
}

/// Counts frames, which the engine must not hold up, and gives up when the deadline has passed.
fn play(mut assets: ResMut<Assets>, mut exits: MessageWriter<AppExit>) {
    assets.frames += 1;
    if Instant::now() > assets.deadline {
        exits.write(AppExit::from_code(9));
    }
}

fn read_answers(mut answers: MessageReader<TorrentAnswer>, mut assets: ResMut<Assets>) {
    for answer in answers.read() {
        match answer.result.as_ref().unwrap() {
            Answer::Added(id) => assets.id = Some(*id),
            other => panic!("{other:?}"),
        }
    }
}

fn finish(mut events: MessageReader<TorrentEvent>, assets: Res<Assets>, mut exits: MessageWriter<AppExit>) {
    for TorrentEvent(event) in events.read() {
        if let Event::Completed(id) = event {
            assert!(assets.id.is_none_or(|added| added == *id));
            assert!(assets.frames > 0);
            exits.write(AppExit::Success);
        }
    }
}

fn game() -> App {
    let mut app = App::new();
    app.add_plugins((
        TaskPoolPlugin::default(),
        ScheduleRunnerPlugin::run_loop(Duration::from_millis(1)),
    ));
    app
}

/// The engine downloads beside the frames of the game, and stops in order when the game exits: the session says that
/// the torrent is complete, so that the next run has nothing to download.
#[test]
fn a_game_downloads_its_assets() {
    let swarm = Swarm::new(500_000);
    let seed = engine(|_: &mut App| {}, settings());
    let address = swarm.seed(&seed);
    let mut settings = settings();
    settings.session.state_dir = Some(swarm.state_dir());
    settings.storage.download_dir = swarm.download_dir();
    let download = TorrentCommand::Download {
        source: swarm.torrent().into(),
        options: AddOptions {
            peers: vec![address],
            ..AddOptions::default()
        },
    };
    let mut app = game();
    app.add_plugins(EcsTorrentPlugin {
        settings: settings.clone(),
    })
    .insert_resource(Assets {
        download,
        id: None,
        frames: 0,
        deadline: Instant::now() + Duration::from_secs(60),
    })
    .add_systems(Startup, request_assets)
    .add_systems(Update, (play, read_answers, finish).chain());
    assert_eq!(app.run(), AppExit::Success);
    swarm.assert_downloaded();

    let next = engine(|_: &mut App| {}, settings);
    let torrents = next.torrents().blocking();
    assert_eq!(torrents.resume_all().unwrap(), 1);
    let id = torrents.list().unwrap()[0];
    // The session is examined after the torrent is listed.
    let deadline = Instant::now() + Duration::from_secs(60);
    while torrents.stats(id).unwrap().progress() < 1.0 {
        assert!(Instant::now() < deadline, "the assets are still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Collects the messages that the host's world receives.
#[derive(Resource, Default)]
struct Received {
    ended: Vec<String>,
    errors: Vec<String>,
    listed: Vec<Vec<TorrentId>>,
}

fn receive(
    mut ended: MessageReader<EngineEnded>,
    mut answers: MessageReader<TorrentAnswer>,
    mut received: ResMut<Received>,
) {
    received
        .ended
        .extend(ended.read().map(|message| message.reason.clone()));
    for answer in answers.read() {
        match &answer.result {
            Ok(Answer::Listed(ids)) => received.listed.push(ids.clone()),
            Ok(_) => {}
            Err(error) => received.errors.push(error.to_string()),
        }
    }
}

/// Updates the app until `is_done`.
fn update_until(app: &mut App, is_done: impl Fn(&Received) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_done(app.world().resource()) {
        assert!(Instant::now() < deadline);
        app.update();
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_engine_that_cannot_start_is_reported_and_answers_commands() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut settings = settings();
    settings.net.listen = vec![taken.local_addr().unwrap()];
    settings.net.listen_fallback = false;
    let mut app = App::new();
    app.add_plugins(EcsTorrentPlugin { settings })
        .init_resource::<Received>()
        .add_systems(Update, receive);
    app.world_mut().write_message(TorrentCommand::List);
    update_until(&mut app, |received| {
        !received.ended.is_empty() && !received.errors.is_empty()
    });
    let received = app.world().resource::<Received>();
    let address: SocketAddr = taken.local_addr().unwrap();
    assert!(received.ended[0].contains(&address.to_string()), "{:?}", received.ended);
    assert_eq!(received.errors, ["the engine has stopped"]);
    assert!(!app.world().contains_resource::<TorrentEngine>());
}

/// A host can start the engine itself, with plugins of its own, and commands reach that engine.
#[test]
fn a_host_brings_an_engine_of_its_own() {
    #[derive(Resource)]
    struct Mine;
    let mine = |app: &mut App| {
        app.insert_resource(Mine);
    };
    let mut app = App::new();
    app.insert_resource(TorrentEngine::from(engine(mine, settings())))
        .add_plugins(EcsTorrentPlugin::default())
        .init_resource::<Received>()
        .add_systems(Update, receive);
    app.world_mut().write_message(TorrentCommand::List);
    update_until(&mut app, |received| !received.listed.is_empty());
    let torrents = app.world().resource::<TorrentEngine>().torrents().blocking();
    assert!(torrents.with_world(|world| world.contains_resource::<Mine>()).unwrap());
    assert!(!app.world().contains_resource::<Mine>(), "the worlds are separate");
}

#[test]
#[should_panic(expected = "add ecs_torrent::host::EcsTorrentPlugin")]
fn the_plugins_of_an_engine_do_not_belong_to_a_bevy_app() {
    App::new().add_plugins(TorrentPlugins);
}
