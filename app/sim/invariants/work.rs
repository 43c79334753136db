//! The work that a tick does for peers is bounded, per peer and in total.

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::messages::{
    AllowedFastReceived, AvailabilityReceived, ChokeReceived, ExtensionReceived, InterestReceived, ReceivedBlocks,
    RejectReceived, SuggestReceived, UploadRequested,
};
use ecs_torrent_components::peer::Peer;
use ecs_torrent_components::settings::Settings;

use super::{Invariant, Violations};

/// Counts the events that resulted from peers' messages in this tick.
pub(super) fn check(
    clock: Res<Clock>,
    settings: Res<Settings>,
    mut violations: ResMut<Violations>,
    mut counts: Local<EntityHashMap<u32>>,
    blocks: Res<ReceivedBlocks>,
    mut availability: MessageReader<AvailabilityReceived>,
    mut chokes: MessageReader<ChokeReceived>,
    mut interests: MessageReader<InterestReceived>,
    mut uploads: MessageReader<UploadRequested>,
    mut rejects: MessageReader<RejectReceived>,
    mut allowed_fast: MessageReader<AllowedFastReceived>,
    mut suggests: MessageReader<SuggestReceived>,
    mut extensions: MessageReader<ExtensionReceived>,
    peers: Query<(), With<Peer>>,
) {
    // Messages that an extension derived in the last tick are read in this one, but were counted then.
    let announced = availability.read().filter(|message| !message.change.is_taken_back());
    let senders = announced
        .map(|message| message.peer)
        .chain(chokes.read().map(|message| message.peer))
        .chain(interests.read().map(|message| message.peer))
        .chain(uploads.read().map(|message| message.peer))
        .chain(rejects.read().map(|message| message.peer))
        .chain(allowed_fast.read().map(|message| message.peer))
        .chain(suggests.read().map(|message| message.peer))
        .chain(extensions.read().map(|message| message.peer))
        .chain(blocks.0.iter().map(|(peer, _)| *peer));
    counts.clear();
    senders.for_each(|peer| *counts.entry(peer).or_default() += 1);
    let most = settings.peers.max_messages_per_tick;
    let mut total = 0;
    for (peer, count) in &*counts {
        total += count;
        if *count > most {
            violations.report(&clock, Invariant::Work, || {
                format!("{count} messages of {peer} in a tick, at most {most}")
            });
        }
    }
    // At least one message per peer is processed, however many peers there are.
    let most = settings.tick.max_messages.max(peers.iter().count() as u32);
    if total > most {
        violations.report(&clock, Invariant::Work, || {
            format!("{total} messages in a tick, at most {most}")
        });
    }
}
