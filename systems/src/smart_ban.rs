//! Smart ban: bans only the peers that sent corrupt blocks, not every contributor to the piece.
//!
//! If a failed piece has a single contributor, that peer is banned. Otherwise the digests of the blocks are kept, and
//! the piece is downloaded again from one peer alone. When it passes, every peer that sent a block that differs from
//! the good one is banned.

use std::collections::BTreeMap;

use bevy_app::{App, Plugin};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::PieceRejected;
use ecs_torrent_components::piece::{ActivePiece, VerifiedPieces};
use ecs_torrent_engine::jobs::Jobs;
use ecs_torrent_engine::port::Purpose;
use ecs_torrent_engine::ports::HashPort;
use ecs_torrent_engine::ports::hash::{Digests, HashKind, HashRequest};
use ecs_torrent_engine::purpose;
use ecs_torrent_engine::schedule::Tick;
use ecs_torrent_protocol::geometry::BLOCK_SIZE;
use ecs_torrent_protocol::hash::Sha1Digest;

use crate::VerifySet;
use crate::blame::{Blame, Culprit};
use crate::conditions::has_messages;

/// Finds and bans peers that send corrupt blocks.
pub struct SmartBanPlugin;

impl Plugin for SmartBanPlugin {
    fn build(&self, app: &mut App) {
        app.init_resource::<Suspects>()
            .init_resource::<Jobs<BadBlocks>>()
            .init_resource::<Jobs<GoodBlocks>>()
            .add_systems(
                Tick,
                (
                    collect_digests.run_if(has_digests),
                    blame_rejected.run_if(has_messages::<PieceRejected>),
                    examine_verified,
                )
                    .chain()
                    .in_set(VerifySet::Blame),
            );
    }
}

/// Digests of the blocks of a failed piece.
const BAD_BLOCKS: Purpose = purpose!("digest bad blocks");

/// Digests of the blocks of the same piece after it passed.
const GOOD_BLOCKS: Purpose = purpose!("digest good blocks");

/// Blocks are hashed one by one.
const BLOCKS: HashKind = HashKind::Sha1Blocks(BLOCK_SIZE);

/// Maximum number of failed attempts remembered per piece.
const MAX_ATTEMPTS: usize = 4;

/// Maximum number of pieces under suspicion at a time, over all torrents.
const MAX_PIECES: usize = 256;

/// One failed attempt at a piece: the sender and the digest of each block.
#[derive(Debug)]
struct Attempt {
    number: u64,
    senders: Vec<Option<Culprit>>,
    digests: Vec<Sha1Digest>,
}

/// The blocks of a failed attempt, while they are hashed.
#[derive(Debug)]
struct BadBlocks {
    piece: (Entity, u32),
    attempt: u64,
}

/// The blocks of a piece that passed, while they are hashed.
#[derive(Debug)]
struct GoodBlocks {
    torrent: Entity,
    index: u32,
}

/// Failed attempts, by torrent and piece.
#[derive(Resource, Debug, Default)]
struct Suspects {
    attempts: BTreeMap<(Entity, u32), Vec<Attempt>>,
    last: u64,
}

impl Suspects {
    /// Records a failed attempt at a piece and returns its number. At a limit, another record is dropped: the first of
    /// the other pieces, or the oldest of the same piece.
    fn add(&mut self, piece: (Entity, u32), senders: Vec<Option<Culprit>>) -> u64 {
        if self.attempts.len() >= MAX_PIECES && !self.attempts.contains_key(&piece) {
            self.attempts.pop_first();
        }
        let attempts = self.attempts.entry(piece).or_default();
        if attempts.len() == MAX_ATTEMPTS {
            attempts.remove(0);
        }
        self.last += 1;
        attempts.push(Attempt {
            number: self.last,
            senders,
            digests: Vec::new(),
        });
        self.last
    }
}

/// Bans the only contributor to a failed piece at once; records the blocks of several contributors (Fault 26, Fault
/// 27).
fn blame_rejected(
    mut rejected: MessageReader<PieceRejected>,
    mut hash: ResMut<HashPort>,
    mut jobs: ResMut<Jobs<BadBlocks>>,
    mut suspects: ResMut<Suspects>,
    mut blame: Blame,
) {
    for PieceRejected {
        torrent,
        index,
        contributors,
        senders,
        data,
        ..
    } in rejected.read()
    {
        if let [only] = contributors[..] {
            if let Some(culprit) = blame.identify(only) {
                blame.ban(&culprit, *torrent, format_args!("corrupt data in piece {index}"));
            }
            continue;
        }
        let senders = senders.iter().map(|sender| blame.identify((*sender)?)).collect();
        let piece = (*torrent, *index);
        let attempt = suspects.add(piece, senders);
        hash.push(HashRequest {
            tag: jobs.add(BAD_BLOCKS, BadBlocks { piece, attempt }),
            kind: BLOCKS,
            spans: data.clone(),
        });
    }
}

/// Requests the digests of the good blocks of a piece that passed after it had failed.
fn examine_verified(
    verified: Res<VerifiedPieces>,
    suspects: Res<Suspects>,
    mut hash: ResMut<HashPort>,
    mut jobs: ResMut<Jobs<GoodBlocks>>,
    pieces: Query<&ActivePiece>,
) {
    for piece in pieces.iter_many(verified.iter()).flatten() {
        let &ActivePiece { torrent, index, .. } = piece;
        if piece.is_suspect && suspects.attempts.contains_key(&(torrent, index)) {
            hash.push(HashRequest {
                tag: jobs.add(GOOD_BLOCKS, GoodBlocks { torrent, index }),
                kind: BLOCKS,
                spans: piece.verified_data().to_vec(),
            });
        }
    }
}

/// Returns whether digests of blocks have arrived.
fn has_digests(hash: Res<HashPort>) -> bool {
    hash.has_events_for(BAD_BLOCKS) || hash.has_events_for(GOOD_BLOCKS)
}

fn collect_digests(
    mut hash: ResMut<HashPort>,
    mut bad: ResMut<Jobs<BadBlocks>>,
    mut good: ResMut<Jobs<GoodBlocks>>,
    mut suspects: ResMut<Suspects>,
    mut blame: Blame,
) {
    for event in hash.take(BAD_BLOCKS) {
        let (Some(job), Some(Digests::Blocks(digests))) = (bad.take(event.tag), event.digests) else {
            continue;
        };
        let mut attempts = suspects.attempts.get_mut(&job.piece).into_iter().flatten();
        if let Some(attempt) = attempts.find(|attempt| attempt.number == job.attempt) {
            attempt.digests = digests;
        }
    }
    for event in hash.take(GOOD_BLOCKS) {
        let (Some(job), Some(Digests::Blocks(digests))) = (good.take(event.tag), event.digests) else {
            continue;
        };
        let GoodBlocks { torrent, index } = job;
        let attempts = suspects.attempts.remove(&(torrent, index)).unwrap_or_default();
        for culprit in attempts.iter().flat_map(|attempt| culprits(attempt, &digests)) {
            blame.ban(culprit, torrent, format_args!("corrupt data in piece {index}"));
        }
    }
}

/// Returns the peers that sent blocks that differ from the good ones, each peer once.
fn culprits<'a>(attempt: &'a Attempt, good: &[Sha1Digest]) -> Vec<&'a Culprit> {
    let blocks = attempt.senders.iter().zip(&attempt.digests).zip(good);
    let mut found: Vec<&Culprit> = Vec::new();
    for ((sender, sent), good) in blocks {
        if let Some(sender) = sender.as_ref().filter(|_| sent != good)
            && !found.iter().any(|known| known.entity == sender.entity)
        {
            found.push(sender);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use ecs_torrent_engine::port::JobTag;

    use super::*;

    #[test]
    fn failed_attempts_are_remembered_up_to_their_limits() {
        let mut suspects = Suspects::default();
        let torrent = Entity::from_raw_u32(1).unwrap();
        let pieces = |suspects: &Suspects| suspects.attempts.keys().map(|(_, index)| *index).collect::<Vec<_>>();
        let most = MAX_PIECES as u32;
        for index in 0..most {
            assert_eq!(suspects.add((torrent, index), Vec::new()), u64::from(index) + 1);
        }
        let again = suspects.add((torrent, 0), Vec::new());
        assert_eq!(
            pieces(&suspects),
            (0..most).collect::<Vec<_>>(),
            "a known piece needs no place"
        );
        assert_eq!(suspects.attempts[&(torrent, 0)].len(), 2);
        suspects.add((torrent, most), Vec::new());
        assert_eq!(pieces(&suspects), (1..=most).collect::<Vec<_>>());
        let numbers: Vec<u64> = (0..MAX_ATTEMPTS)
            .map(|_| suspects.add((torrent, 1), Vec::new()))
            .collect();
        let kept: Vec<u64> = suspects.attempts[&(torrent, 1)]
            .iter()
            .map(|attempt| attempt.number)
            .collect();
        assert_eq!(kept, numbers, "the oldest attempt is forgotten");
        assert!(numbers[0] > again);
    }

    #[test]
    fn only_senders_of_differing_blocks_are_named() {
        let culprit = |id: u32| Culprit {
            entity: Entity::from_raw_u32(id).unwrap(),
            address: ([10, 0, 0, id as u8], 1).into(),
        };
        let attempt = Attempt {
            number: 1,
            senders: vec![
                Some(culprit(1)),
                Some(culprit(2)),
                None,
                Some(culprit(2)),
                Some(culprit(3)),
            ],
            digests: vec![[1; 20], [9; 20], [3; 20], [9; 20], [5; 20]],
        };
        let good = [[1; 20], [2; 20], [3; 20], [4; 20], [5; 20]];
        let named: Vec<Entity> = culprits(&attempt, &good).iter().map(|culprit| culprit.entity).collect();
        assert_eq!(named, [Entity::from_raw_u32(2).unwrap()]);
    }

    #[test]
    fn digests_of_either_kind_are_seen() {
        let events = |purpose: Option<Purpose>| {
            let event = |purpose| ecs_torrent_engine::ports::hash::HashEvent {
                tag: JobTag::new(purpose, Entity::PLACEHOLDER),
                digests: None,
                spans: Vec::new(),
            };
            purpose.into_iter().map(event).collect::<Vec<_>>()
        };
        for (purpose, is_seen) in [(None, false), (Some(BAD_BLOCKS), true), (Some(GOOD_BLOCKS), true)] {
            let mut bed = crate::testing::Bed::new(());
            let mut port = HashPort::new(Box::new(crate::testing::Delivery(events(purpose))));
            port.open_inbox(BAD_BLOCKS);
            port.open_inbox(GOOD_BLOCKS);
            port.drain(9);
            bed.world.insert_resource(port);
            assert_eq!(bed.holds(has_digests), is_seen);
        }
    }
}
