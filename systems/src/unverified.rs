//! Pieces that are held without a check: each is hashed before its first byte leaves for a peer or a reader.
//!
//! The user may skip the check of existing data when a torrent is added. Then files of the right length count as
//! complete ([`Unverified`]). Uploads and readers do not read such a piece; they request its verification
//! ([`VerifyRequests`]) and continue when it is verified. The first bad piece shows that the files differ from what the
//! user assumed, so all unverified pieces are checked then, as on request.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bevy_app::{App, Plugin};
use bevy_ecs::entity::EntityHashSet;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::{Clock, Wakeup};
use ecs_torrent_components::commands::{CheckScope, CommandQueue, PauseOrStart, RecheckTorrent, Reply};
use ecs_torrent_components::messages::{CheckSkipped, FailTorrent, PieceConfirmed, PiecesKnown, SessionLoaded};
use ecs_torrent_components::peer::{ServeQueue, UploadQueue};
use ecs_torrent_components::settings::Settings;
use ecs_torrent_components::torrent::{Content, Layout, Lifecycle, Storage, Torrent};
use ecs_torrent_components::unverified::{SkipsChecking, Unverified, VerifyRequest, VerifyRequests, is_unverified};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::disk::{DiskDone, DiskRequest, ReadPurpose};
use ecs_torrent_engine::ports::hash::{HashKind, HashRequest};
use ecs_torrent_engine::ports::{DiskPort, HashPort};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::Span;

use crate::checking::CheckPieces;
use crate::conditions::has_messages_of_two;
use crate::{AnnounceSet, VerifySet, uploading};

/// Verifies pieces that are held without a check, when they are read for the first time.
pub struct UnverifiedPlugin;

impl Plugin for UnverifiedPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<VerifyRequests>()
            .init_resource::<Verifications>()
            .add_message::<PieceConfirmed>()
            .add_observer(skip_check)
            .add_observer(restore)
            .add_observer(take_unverified)
            .add_observer(forget)
            .add_systems(
                Tick,
                (
                    (collect_reads, collect_hashes, read_pieces)
                        .chain()
                        .run_if(has_work)
                        .in_set(VerifySet::Unverified),
                    follow_checks
                        .run_if(has_messages_of_two::<PiecesKnown, CheckPieces>)
                        .in_set(AnnounceSet::Unverified),
                ),
            );
    }
}

const READ: Purpose = purpose!("read to verify");
const HASH: Purpose = purpose!("hash when read");

/// The files of a torrent that skips the check of existing data were examined. Triggered even if no piece is taken.
#[derive(EntityEvent, Debug, Clone)]
pub(crate) struct TakenUnverified {
    /// The torrent.
    #[event_target]
    pub(crate) torrent: Entity,
    /// The pieces that count as held without a check.
    pub(crate) pieces: Bitfield,
}

/// A piece by torrent and index.
type Piece = (Entity, u32);

/// The pieces that are to be verified, and those that are being read or hashed.
#[derive(Resource, Debug, Default)]
struct Verifications {
    /// The peers whose requests continue when the piece is verified.
    requested: BTreeMap<Piece, BTreeSet<Entity>>,
    /// Requested pieces that are not being read yet, in the order of the requests.
    queue: VecDeque<Piece>,
    jobs: Jobs<Verification>,
    used_bytes: u64,
    /// Torrents whose unverified pieces are about to be checked, because one was bad.
    condemned: EntityHashSet,
}

/// A piece that is read and hashed. It may outlive its torrent.
#[derive(Debug, Clone, Copy)]
struct Verification {
    piece: Piece,
    span: Span,
}

impl Verifications {
    fn request(&mut self, request: VerifyRequest) {
        if self.condemned.contains(&request.torrent) {
            return;
        }
        let piece = (request.torrent, request.piece);
        let queue = &mut self.queue;
        let peers = self.requested.entry(piece).or_insert_with(|| {
            queue.push_back(piece);
            BTreeSet::new()
        });
        peers.extend(request.peer);
    }
}

/// Remembers that the user skips the check of a torrent's existing data.
fn skip_check(skipped: On<CheckSkipped>, mut commands: Commands) {
    commands.entity(skipped.torrent).insert(SkipsChecking);
}

/// Restores the pieces that an earlier run has not verified either.
fn restore(loaded: On<SessionLoaded>, mut commands: Commands) {
    let session = &loaded.session;
    let mut torrent = commands.entity(loaded.torrent);
    if session.skip_checking && session.is_unexamined() {
        torrent.insert(SkipsChecking);
    }
    let pieces = session.unverified.to_set(session.pieces);
    if let Some(pieces) = pieces.filter(|pieces| !pieces.is_empty()) {
        torrent.insert(Unverified(pieces));
    }
}

/// Takes the pieces that count as held without a check.
fn take_unverified(taken: On<TakenUnverified>, mut commands: Commands, torrents: Query<&Torrent>) {
    commands.entity(taken.torrent).remove::<SkipsChecking>();
    if taken.pieces.is_empty() {
        return;
    }
    if let Ok(torrent) = torrents.get(taken.torrent) {
        let count = taken.pieces.count();
        tracing::info!(torrent = %torrent.label(), count, "existing pieces are taken as held without a check");
    }
    commands.entity(taken.torrent).insert(Unverified(taken.pieces.clone()));
}

fn forget(removed: On<Remove<Unverified>>, mut verifications: ResMut<Verifications>) {
    verifications.condemned.remove(&removed.entity);
}

/// Drops pieces that are not held any more, and those that a check hashes.
fn follow_checks(
    mut known: MessageReader<PiecesKnown>,
    mut checks: MessageReader<CheckPieces>,
    mut commands: Commands,
    mut verifications: ResMut<Verifications>,
    mut torrents: Query<&mut Unverified>,
) {
    for PiecesKnown { torrent, have, .. } in known.read() {
        verifications.condemned.remove(torrent);
        if let Ok(mut unverified) = torrents.get_mut(*torrent) {
            let lost = match unverified.0.len() == have.len() {
                true => unverified.0.without(have),
                false => unverified.0.clone(),
            };
            unverified.0 = unverified.0.without(&lost);
            remove_if_empty(&mut commands, *torrent, &unverified);
        }
    }
    for CheckPieces { torrent, doubtful, .. } in checks.read() {
        if let Ok(mut unverified) = torrents.get_mut(*torrent) {
            for piece in doubtful {
                unverified.0.remove(*piece);
            }
            remove_if_empty(&mut commands, *torrent, &unverified);
        }
    }
}

fn remove_if_empty(commands: &mut Commands, torrent: Entity, unverified: &Unverified) {
    if unverified.0.is_empty() {
        commands.entity(torrent).remove::<Unverified>();
    }
}

/// Returns whether pieces are to be verified, or are being read or hashed.
fn has_work(requests: Res<VerifyRequests>, verifications: Res<Verifications>) -> bool {
    !requests.0.is_empty() || !verifications.requested.is_empty() || !verifications.jobs.is_empty()
}

/// Submits the read pieces for hashing. A piece that cannot be read is a fault of its torrent, as in an upload.
fn collect_reads(
    mut disk: ResMut<DiskPort>,
    mut hash: ResMut<HashPort>,
    mut verifications: ResMut<Verifications>,
    mut failed: MessageWriter<FailTorrent>,
    torrents: Query<&Content>,
) {
    for event in disk.take(READ) {
        let Some(&Verification { piece, span }) = verifications.jobs.get(event.tag) else {
            continue;
        };
        let (torrent, index) = piece;
        let content = torrents.get(torrent).ok();
        let kind = content.and_then(|content| content.0.info.expected_digest(index));
        match (event.outcome, kind.map(HashKind::from)) {
            (Ok(DiskDone::Read(data)), Some(kind)) => {
                let (tag, spans) = (event.tag.followed_by(HASH), vec![data]);
                hash.push(HashRequest { tag, kind, spans });
                continue;
            }
            (Err(error), Some(_)) => drop(failed.write(uploading::fault(torrent, &error, span))),
            _ => {}
        }
        verifications.jobs.take(event.tag);
        verifications.used_bytes -= u64::from(span.len);
        verifications.requested.remove(&piece);
    }
}

/// The effects of a verified or bad piece.
#[derive(SystemParam)]
struct Results<'w, 's> {
    commands: Commands<'w, 's>,
    confirmed: MessageWriter<'w, PieceConfirmed>,
    rechecks: ResMut<'w, CommandQueue<PauseOrStart>>,
    serve: ResMut<'w, ServeQueue>,
    clock: Res<'w, Clock>,
    wakeup: Res<'w, Wakeup>,
    peers: Query<'w, 's, &'static mut UploadQueue>,
}

/// Lets verified pieces be read. After a bad one, all unverified pieces of its torrent are checked.
fn collect_hashes(
    mut hash: ResMut<HashPort>,
    mut verifications: ResMut<Verifications>,
    mut results: Results,
    mut torrents: Query<(&Torrent, &Content, &mut Unverified)>,
) {
    for event in hash.take(HASH) {
        let Some(Verification { piece, span }) = verifications.jobs.take(event.tag) else {
            continue;
        };
        verifications.used_bytes -= u64::from(span.len);
        let peers = verifications.requested.remove(&piece).unwrap_or_default();
        let (entity, index) = piece;
        let Ok((torrent, content, mut unverified)) = torrents.get_mut(entity) else {
            continue;
        };
        let found = event.digests.as_ref().zip(content.0.info.expected_digest(index));
        if found.is_some_and(|(digests, expected)| digests.is(expected)) {
            unverified.0.remove(index);
            remove_if_empty(&mut results.commands, entity, &unverified);
            results.confirm(entity, index, peers);
        } else if unverified.0.contains(index) && verifications.condemned.insert(entity) {
            tracing::warn!(
                torrent = %torrent.label(),
                piece = index,
                "a piece that was taken as complete without a check is bad: all such pieces are checked now"
            );
            results.check(torrent);
        }
    }
}

impl Results<'_, '_> {
    fn confirm(&mut self, torrent: Entity, piece: u32, peers: BTreeSet<Entity>) {
        self.confirmed.write(PieceConfirmed { torrent, piece });
        return_peers(peers, &mut self.serve, &mut self.peers);
    }

    /// Lets all unverified pieces of a torrent be checked.
    fn check(&mut self, torrent: &Torrent) {
        let command = RecheckTorrent {
            torrent: torrent.id(),
            scope: CheckScope::Unverified,
            reply: Reply::ignored(),
        };
        self.rechecks.0.push_back(command.into());
        self.wakeup.at(self.clock.now());
    }
}

/// Returns peers to the queue of those that are served.
fn return_peers(waiting: BTreeSet<Entity>, serve: &mut ServeQueue, peers: &mut Query<&mut UploadQueue>) {
    for peer in waiting {
        if let Ok(mut uploads) = peers.get_mut(peer) {
            serve.add(peer, &mut uploads);
        }
    }
}

/// Reads requested pieces, as many at a time as the memory of checks allows.
fn read_pieces(
    settings: Res<Settings>,
    mut requests: ResMut<VerifyRequests>,
    mut disk: ResMut<DiskPort>,
    mut verifications: ResMut<Verifications>,
    mut serve: ResMut<ServeQueue>,
    mut peers: Query<&mut UploadQueue>,
    torrents: Query<(&Lifecycle, &Layout, &Storage, Option<&Unverified>)>,
) {
    for request in requests.0.drain(..) {
        verifications.request(request);
    }
    while verifications.used_bytes < settings.storage.check_memory_bytes {
        let Some(piece) = verifications.queue.pop_front() else {
            break;
        };
        let (torrent, index) = piece;
        // The peers of a torrent that serves nothing are disconnected, and its readers have ended.
        let found = torrents.get(torrent).ok();
        let Some((_, Layout(geometry), storage, unverified)) = found.filter(|found| found.0.may_serve()) else {
            verifications.requested.remove(&piece);
            continue;
        };
        if !is_unverified(unverified, index) {
            // The piece was verified in the tick of the request.
            let waiting = verifications.requested.remove(&piece).unwrap_or_default();
            return_peers(waiting, &mut serve, &mut peers);
            continue;
        }
        let span = geometry.piece_span(index);
        verifications.used_bytes += u64::from(span.len);
        let tag = verifications.jobs.add(READ, Verification { piece, span });
        disk.push(DiskRequest::Read {
            tag,
            storage: storage.id,
            span,
            purpose: ReadPurpose::Check,
        });
    }
}
