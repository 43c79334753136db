//! Peers that magnet links name by a host name: the names are looked up while the torrent connects to peers. The
//! addresses are checked like those in a link.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::candidates::{AllowedSources, CandidateSource, CandidatesFound};
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::deadlines::Deadlines;
use ecs_torrent_components::hints::KeptHints;
use ecs_torrent_components::messages::LifecycleChanged;
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Lifecycle, Torrent};
use ecs_torrent_engine::port::{JobTag, Purpose};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetEvent, NetRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_protocol::host_port::HostPort;
use ecs_torrent_protocol::time::Timestamp;

use crate::conditions::is_due;

/// The inbox of looked-up names.
pub(super) const NAMES: Purpose = purpose!("peers of magnet links");

/// Time until a name that was not found is looked up again. A name that was found longer ago is looked up again when
/// the torrent begins to connect, because its address may have changed.
const RETRY: Duration = Duration::from_secs(300);

/// Maximum number of addresses that are taken from one name.
const MAX_ADDRESSES: usize = 4;

/// The peers of a torrent that links name by a host name.
#[derive(Component, Debug, Default)]
#[component(storage = "SparseSet")]
pub struct LinkedPeers(Vec<LinkedPeer>);

#[derive(Debug)]
struct LinkedPeer {
    host: HostPort,
    progress: Progress,
}

/// The progress of looking a name up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Requested,
    Found(Timestamp),
    Missing,
}

/// Deadline at which names of a torrent are looked up.
#[derive(Debug)]
pub(super) struct LookupDue(Entity);

/// Lists the peers that a new link names.
pub(super) fn list_peers(
    given: On<Insert<KeptHints>>,
    mut commands: Commands,
    (clock, wakeup): (Res<Clock>, Res<Wakeup>),
    mut due: ResMut<Deadlines<LookupDue>>,
    hints: Query<&KeptHints>,
    mut listed: Query<&mut LinkedPeers>,
) {
    let torrent = given.entity;
    let hosts = hints.get(torrent).map_or(&[][..], |hints| &hints.0.peer_hosts);
    if hosts.is_empty() {
        return;
    }
    match listed.get_mut(torrent) {
        Ok(mut peers) => peers.add(hosts),
        Err(_) => {
            let mut peers = LinkedPeers::default();
            peers.add(hosts);
            commands.entity(torrent).insert(peers);
        }
    }
    due.set(clock.now(), LookupDue(torrent));
    wakeup.at(clock.now());
}

impl LinkedPeers {
    fn add(&mut self, hosts: &[HostPort]) {
        for host in hosts {
            if !self.0.iter().any(|known| known.host == *host) {
                let (host, progress) = (host.clone(), Progress::Waiting);
                self.0.push(LinkedPeer { host, progress });
            }
        }
    }
}

/// Returns whether a torrent may begin to connect, a name is to be looked up, or one was found. If not, requests a tick
/// at the next lookup.
pub(super) fn has_work(
    changed: Res<Messages<LifecycleChanged>>,
    net: Res<NetPort>,
    due: Res<Deadlines<LookupDue>>,
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
) -> bool {
    is_due(due.next(), &clock, &wakeup) || !changed.is_empty() || net.has_events_for(NAMES)
}

#[derive(SystemParam)]
pub(super) struct Lookups<'w, 's> {
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    settings: Res<'w, Settings>,
    net: ResMut<'w, NetPort>,
    due: ResMut<'w, Deadlines<LookupDue>>,
    found: MessageWriter<'w, CandidatesFound>,
    torrents: Query<
        'w,
        's,
        (
            &'static Torrent,
            &'static Lifecycle,
            &'static AllowedSources,
            &'static mut LinkedPeers,
        ),
    >,
}

/// Looks up the names of torrents that connect to peers, and finds the peers at their addresses.
pub(super) fn find_peers(mut changed: MessageReader<LifecycleChanged>, mut lookups: Lookups) {
    let now = lookups.clock.now();
    let events: Vec<NetEvent> = lookups.net.take(NAMES).collect();
    for event in events {
        if let NetEvent::Resolved { tag, result } = event {
            lookups.take(tag, result);
        }
    }
    for changed in changed.read().filter(|changed| changed.begins_to_connect()) {
        lookups.look_up(changed.torrent, |progress| match progress {
            Progress::Waiting | Progress::Missing => true,
            Progress::Requested => false,
            Progress::Found(at) => now.since(at) >= RETRY,
        });
    }
    while let Some(LookupDue(torrent)) = lookups.due.pop_due(now) {
        let is_open = |progress| matches!(progress, Progress::Waiting | Progress::Missing);
        lookups.look_up(torrent, is_open);
    }
    lookups.wakeup.at_next(lookups.due.next());
}

impl Lookups<'_, '_> {
    fn look_up(&mut self, torrent: Entity, is_open: impl Fn(Progress) -> bool) {
        let Ok((_, lifecycle, allowed, mut peers)) = self.torrents.get_mut(torrent) else {
            return;
        };
        if !lifecycle.connects() || !allowed.has(CandidateSource::MAGNET) {
            return;
        }
        let max = self.settings.peers.max_linked_names;
        for (number, peer) in (0..).zip(peers.0.iter_mut().take(max)) {
            if is_open(peer.progress) {
                peer.progress = Progress::Requested;
                let tag = JobTag {
                    number,
                    ..JobTag::new(NAMES, torrent)
                };
                let HostPort { host, port } = peer.host.clone();
                self.net.push(NetRequest::Resolve { tag, host, port });
            }
        }
    }

    fn take(&mut self, tag: JobTag, result: Result<Vec<SocketAddr>, Arc<str>>) {
        let torrent = tag.owner;
        let Ok((data, .., mut peers)) = self.torrents.get_mut(torrent) else {
            return;
        };
        let Some(linked) = peers.0.get_mut(tag.number as usize) else {
            return;
        };
        match result {
            Ok(addresses) => {
                linked.progress = Progress::Found(self.clock.now());
                self.found.write(CandidatesFound {
                    torrent,
                    peers: addresses.into_iter().take(MAX_ADDRESSES).map(Into::into).collect(),
                    source: CandidateSource::MAGNET,
                    informant: None,
                });
            }
            Err(reason) => {
                linked.progress = Progress::Missing;
                tracing::debug!(
                    torrent = %data.label(),
                    %reason,
                    "a host that its magnet link names was not found: {}",
                    linked.host
                );
                self.due.set(self.clock.now() + RETRY, LookupDue(torrent));
            }
        }
    }
}
