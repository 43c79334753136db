//! Engines that contact the peers of private torrents that strangers named, or announce such torrents elsewhere (BEP
//! 27). The packets show it, independently of the engine's own tables.

use ecs_torrent::components::candidates::CandidatesFound;
use ecs_torrent::components::commands::{CommandQueue, Reply, SupplyMetadata};
use ecs_torrent::engine::ports::HttpPort;
use ecs_torrent::engine::ports::http::{HttpGet, HttpRequest, LocalPaths};
use ecs_torrent::protocol::dht::krpc::PutItem;
use ecs_torrent::protocol::magnet::MutableLink;

use super::*;

/// Announces every torrent to a tracker that the torrent does not name.
#[derive(Clone)]
struct AnnouncesElsewhere;

impl Plugin for AnnouncesElsewhere {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            announce_elsewhere.after(TickSet::Announce).before(TickSet::Decide),
        );
    }
}

fn announce_elsewhere(mut started: MessageReader<TorrentStarted>, mut http: ResMut<HttpPort>, all: Query<&Torrent>) {
    for &TorrentStarted { torrent } in started.read() {
        let Ok(names) = all.get(torrent) else { continue };
        let hash: String = names.id().0.iter().map(|byte| format!("%{byte:02X}")).collect();
        http.push(HttpRequest::Get(HttpGet {
            tag: JobTag::new(purpose!("a tracker of a plugin"), torrent),
            url: format!("http://10.0.0.99:80/announce?info_hash={hash}"),
            local_paths: LocalPaths::Trackers,
            family: None,
            range: None,
            timeout: Duration::from_secs(1),
            max_body_bytes: 1000,
            credit: 1000,
        }));
    }
}

#[test]
fn announces_of_private_torrents_to_other_trackers_are_found_out() {
    let over_udp = |hash: &InfoHash| {
        let head = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 9, 9, 9, 9];
        [&head[..], &hash.0, &[0; 62]].concat()
    };
    let tracked = |name: &str| {
        scenario(name).torrent(NewContent {
            is_private: true,
            trackers: vec![vec!["http://10.0.0.98:80/announce".to_owned()]],
            ..NewContent::default()
        })
    };
    for (leak, text) in [
        (
            tracked("announces over UDP").plugins(Names(over_udp)),
            "10.0.0.99:6881 names",
        ),
        (
            tracked("announces over HTTP").plugins(AnnouncesElsewhere),
            "10.0.0.99:80/announce",
        ),
    ] {
        let outcome = leak.run();
        assert!(finds_text(&outcome, Invariant::Private, &[text]), "{text}: {outcome}");
    }
}

/// A publisher puts an item that names a private torrent (BEP 46). Its target is no info-hash.
#[test]
fn items_that_name_private_torrents_are_found_out() {
    let put = |hash: &InfoHash| {
        query(Method::Put {
            token: b"token",
            item: PutItem {
                value: &MutableLink::value_of(*hash),
                signed: None,
                salt: b"",
                cas: None,
            },
        })
    };
    let outcome = private("publishes an item").plugins(Names(put)).run();
    let text = ["put to 10.0.0.99:6881 names"];
    assert!(finds_text(&outcome, Invariant::Private, &text), "{outcome}");
}

/// A source of peers that a torrent without the rule lets in.
#[derive(Clone)]
struct Finds(CandidateSource);

impl Plugin for Finds {
    fn build(&self, app: &mut App) {
        let source = self.0;
        let find = move |mut started: MessageReader<TorrentStarted>, mut found: MessageWriter<CandidatesFound>| {
            for &TorrentStarted { torrent } in started.read() {
                let stranger = std::net::SocketAddr::from(([10, 0, 0, 99], 6881));
                found.write(CandidatesFound {
                    torrent,
                    peers: vec![stranger.into()],
                    source,
                    informant: Some(stranger.ip()),
                });
            }
        };
        app.add_plugins(AllowsAll)
            .add_systems(Tick, find.after(TickSet::Announce).before(TickSet::Decide));
    }
}

#[test]
fn messages_of_private_torrents_to_strangers_are_found_out() {
    for source in [
        CandidateSource::PEER_EXCHANGE,
        CandidateSource::DHT,
        CandidateSource::LOCAL_DISCOVERY,
        CandidateSource::MAGNET,
        CandidateSource::UNFETCHED_SESSION,
    ] {
        let outcome = private("contacts strangers").plugins(Finds(source)).run();
        let text = ["a message goes to 10.0.0.99:6881, known from"];
        assert!(finds_text(&outcome, Invariant::Private, &text), "{source:?} {outcome}");
    }
    // The tracker and the user may name peers.
    for source in [CandidateSource::TRACKER, CandidateSource::USER] {
        let outcome = private("contacts peers").plugins(Finds(source)).run();
        let text = ["a message goes to"];
        assert!(!finds_text(&outcome, Invariant::Private, &text), "{source:?} {outcome}");
    }
}

/// Supplies the metadata of a magnet link as soon as a peer connects: peers do not send that of a private torrent.
#[derive(Clone)]
struct Supplies(Bytes);

impl Plugin for Supplies {
    fn build(&self, app: &mut App) {
        let info = self.0.clone();
        let supply = move |mut connected: MessageReader<PeerConnected>,
                           torrents: Query<&Torrent, Without<Content>>,
                           mut queue: ResMut<CommandQueue<SupplyMetadata>>| {
            for PeerConnected { torrent, .. } in connected.read() {
                let Ok(torrent) = torrents.get(*torrent) else { continue };
                queue.0.push_back(SupplyMetadata {
                    torrent: torrent.id(),
                    info: info.clone(),
                    reply: Reply::ignored(),
                });
            }
        };
        app.add_systems(Tick, supply.in_set(TickSet::Decide));
    }
}

/// Claims that the tracker named every address that is known before the metadata is.
#[derive(Clone)]
struct Launders;

impl Plugin for Launders {
    fn build(&self, app: &mut App) {
        let launder = |mut all: Query<&mut Candidates, Without<Content>>| {
            for mut candidates in &mut all {
                for address in candidates.iter().collect::<Vec<_>>() {
                    candidates.add(address, CandidateSource::TRACKER, 0, 1000);
                }
            }
        };
        app.add_systems(Tick, launder.in_set(TickSet::Intake));
    }
}

/// A link names the seed, and the metadata says that the torrent is private.
#[test]
fn peers_of_a_link_that_stay_with_a_private_torrent_are_found_out() {
    let content = NewContent {
        is_private: true,
        ..NewContent::default()
    };
    let link = |name: &str| {
        scenario(name)
            .torrent(content.clone())
            .introduced_by(Who::Seed(0))
            .by_magnet_links()
            .plugins(Supplies(content.make().metainfo().info_bytes.clone()))
            .may_fail()
    };
    let outcome = link("a private link").run();
    assert!(outcome.is_good(), "{outcome}");
    let outcome = link("keeps the peers of a link").plugins(Launders).run();
    let text = ["a message goes to 10.0.0.1:6881, known from"];
    assert!(finds_text(&outcome, Invariant::Private, &text), "{outcome}");
}

/// An engine that forgets which torrents are private, after it has read their metadata.
#[derive(Clone)]
struct ForgetsPrivacy;

impl Plugin for ForgetsPrivacy {
    fn build(&self, app: &mut App) {
        app.add_systems(
            Tick,
            forget_privacy.after(AnnounceSet::Prepare).before(AnnounceSet::Privacy),
        );
    }
}

fn forget_privacy(mut torrents: Query<&mut Torrent>) {
    for mut torrent in torrents.iter_mut().filter(|torrent| torrent.private) {
        torrent.private = false;
    }
}

/// An engine that offers the metadata of every torrent.
#[derive(Clone)]
struct OffersMetadata;

impl Plugin for OffersMetadata {
    fn build(&self, app: &mut App) {
        app.add_systems(Tick, offer_metadata.after(TickSet::Announce).before(TickSet::Respond));
    }
}

fn offer_metadata(
    mut connected: MessageReader<PeerConnected>,
    mut flush: ResMut<FlushQueue>,
    mut peers: Query<&mut Outbox>,
) {
    for PeerConnected { peer, .. } in connected.read() {
        if let Ok(mut outbox) = peers.get_mut(*peer) {
            let payload = Bytes::from_static(b"d1:md11:ut_metadatai2eee");
            flush.send(*peer, &mut outbox, &Message::Extended { id: 0, payload });
        }
    }
}

/// The metadata of a private torrent is offered, or sent to a leecher that knows the torrent's hash and one address.
#[test]
fn metadata_of_private_torrents_that_is_served_is_found_out() {
    let outcome = private("offers metadata").plugins(OffersMetadata).run();
    let text = ["ut_metadata is sent to"];
    assert!(finds_text(&outcome, Invariant::Private, &text), "{outcome}");
    let outcome = private("serves metadata")
        .introduced_by(Who::Seed(0))
        .by_magnet_links()
        .plugins(ForgetsPrivacy)
        .may_fail()
        .run();
    let served = outcome.troubles.iter().filter_map(|trouble| match trouble {
        Trouble::Violation(Who::Seed(0), violation) => Some(&*violation.what),
        _ => None,
    });
    let served = served.filter(|what| what.contains("the metadata is sent to")).count();
    assert!(served > 0, "{outcome}");
}
