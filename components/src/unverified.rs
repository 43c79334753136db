//! Held pieces that are not verified: the user added the torrent with the wish to skip the check of existing data.

use bevy_ecs::prelude::*;
use ecs_torrent_protocol::bitfield::Bitfield;

/// The held pieces that were never hashed. A torrent without such pieces has no such component.
///
/// Each of these pieces is hashed before a byte of it is sent to a peer or to a reader.
#[derive(Component, Debug, Clone, PartialEq, Eq)]
#[component(storage = "SparseSet")]
pub struct Unverified(pub Bitfield);

/// The user's intent for a torrent whose files are not examined yet: existing files of the right length count as
/// complete without a check.
#[derive(Component, Debug, Clone, Copy, PartialEq, Eq)]
#[component(storage = "SparseSet")]
pub struct SkipsChecking;

/// A held piece that is to be hashed because somebody wants to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyRequest {
    /// The torrent.
    pub torrent: Entity,
    /// The piece's index.
    pub piece: u32,
    /// The peer whose requests continue when the piece is verified.
    pub peer: Option<Entity>,
}

/// Requests to verify held pieces, made in this tick.
#[derive(Resource, Debug, Default)]
pub struct VerifyRequests(pub Vec<VerifyRequest>);

/// Whether a piece is among the unverified ones.
#[must_use]
pub fn is_unverified(unverified: Option<&Unverified>, piece: u32) -> bool {
    unverified.is_some_and(|Unverified(pieces)| pieces.contains(piece))
}
