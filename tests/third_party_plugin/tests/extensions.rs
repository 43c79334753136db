//! An extension from outside (BEP 10), between engines that transfer a torrent.

use std::sync::mpsc::channel;
use std::time::Duration;

use ecs_torrent::prelude::*;
use third_party_plugin::{MottoPlugin, Mottos};

use crate::swarm::{Swarm, engine, settings};

fn motto(text: &str) -> MottoPlugin {
    MottoPlugin(text.to_owned())
}

fn mottos(engine: &Engine) -> Vec<String> {
    let read = |world: &mut World| world.query::<&Mottos>().single(world).unwrap().0.clone();
    engine.torrents().blocking().with_world(read).unwrap()
}

/// Each engine gets the other one's message. Messages come before blocks, so that they are there when the torrent is.
#[test]
fn a_plugins_extension_is_announced_sent_and_received() {
    let swarm = Swarm::new(200_000);
    let (seed, leecher) = (engine(motto("give"), settings()), engine(motto("take"), settings()));
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    assert_eq!(mottos(&leecher), ["give"]);
    assert_eq!(mottos(&seed), ["take"]);
}

/// A client without the extension gets no message of it: that would end the connection or disturb another extension.
#[test]
fn a_client_without_the_extension_gets_nothing_of_it() {
    #[derive(Resource, Default)]
    struct Received(Vec<&'static str>);

    fn watch(app: &mut App) {
        fn record(mut received: MessageReader<ExtensionReceived>, mut names: ResMut<Received>) {
            names.0.extend(received.read().map(|message| message.extension));
        }
        app.init_resource::<Received>()
            .add_systems(Tick, record.in_set(TickSet::Decide));
    }
    let swarm = Swarm::new(200_000);
    let (seed, leecher) = (engine(motto("give"), settings()), engine(watch, settings()));
    let address = swarm.seed(&seed);
    swarm.complete(&leecher, address);
    let read = |world: &mut World| world.resource::<Received>().0.clone();
    let received = leecher.torrents().blocking().with_world(read).unwrap();
    assert!(!received.contains(&"tp_motto"), "{received:?}");
    assert!(mottos(&seed).is_empty());
}

#[test]
fn a_plugin_closes_a_peer_that_misuses_its_extension() {
    let swarm = Swarm::new(200_000);
    let (sender, reasons) = channel();
    let watch = move |app: &mut App| {
        let sender = sender.clone();
        let send = move |mut gone: MessageReader<PeerDisconnected>| {
            for message in gone.read() {
                let _ = sender.send(message.reason.clone());
            }
        };
        app.add_plugins(motto("give"));
        app.add_systems(Tick, send.after(TickSet::Reap));
    };
    let seed = engine(watch, settings());
    let leecher = engine(motto(&"take".repeat(17)), settings());
    let address = swarm.seed(&seed);
    let (_, _events) = swarm.download(&leecher, address);
    let reason = reasons.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(reason.to_string(), "mottos: a motto is too long, or no text");
    assert!(mottos(&seed).is_empty());
}
