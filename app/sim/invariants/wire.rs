//! The messages of an engine to its peers are true, and every request is sent once and answered once.
//!
//! Outgoing bytes are decoded again, so that the check does not rely on the engine's own state.

use std::collections::BTreeMap;

use bevy_ecs::entity::EntityHashMap;
use bevy_ecs::prelude::*;
use bevy_ecs::system::SystemParam;
use ecs_torrent_components::clock::Clock;
use ecs_torrent_components::ids::StreamId;
use ecs_torrent_components::messages::{
    ChokeReceived, PeerDisconnected, ReceivedBlocks, RejectReceived, UploadRequested,
};
use ecs_torrent_components::peer::{PeerExtensions, PeerState, Requests, Wire};
use ecs_torrent_components::torrent::{Content, Have, Lifecycle, PeerOf, Torrent};
use ecs_torrent_engine::ports::NetPort;
use ecs_torrent_engine::ports::net::{NetRequest, Streams};
use ecs_torrent_protocol::bitfield::Bitfield;
use ecs_torrent_protocol::geometry::BlockRequest;
use ecs_torrent_protocol::tally::Tally;
use ecs_torrent_protocol::wire::{Block, Frame, FrameLimits, Message, PeerCodec};

use super::{Invariant, Truth, Violations, privacy};

/// Every connection on which a message was sent or received.
#[derive(Resource, Default)]
pub(super) struct Conversations {
    by_peer: EntityHashMap<Conversation>,
    /// Requests answered in this tick; a cancel may cross the answer.
    answered: Vec<(Entity, BlockRequest)>,
    /// Connections closed by us.
    closed: std::collections::BTreeSet<StreamId>,
}

/// One connection, from our side.
struct Conversation {
    /// Decoder of the bytes that we send.
    codec: PeerCodec,
    has_shaken_hands: bool,
    sent: SentRequests,
    /// Requests of the peer without an answer, with their counts.
    owed: Tally<BlockRequest>,
    /// Requests that no longer need an answer, but may still be answered.
    forgiven: Tally<BlockRequest>,
}

/// Our requests without an answer, and whether they have timed out.
#[derive(Default)]
pub(super) struct SentRequests {
    is_late: BTreeMap<BlockRequest, bool>,
    late_count: usize,
}

impl SentRequests {
    pub(super) fn len(&self) -> usize {
        self.is_late.len()
    }

    pub(super) fn late_count(&self) -> usize {
        self.late_count
    }

    pub(super) fn contains(&self, request: BlockRequest) -> bool {
        self.is_late.contains_key(&request)
    }

    /// Records that a request has timed out.
    pub(super) fn expire(&mut self, request: BlockRequest) {
        if let Some(is_late) = self.is_late.get_mut(&request)
            && !std::mem::replace(is_late, true)
        {
            self.late_count += 1;
        }
    }

    /// Adds a request. Returns false if it was already in flight.
    fn insert(&mut self, request: BlockRequest) -> bool {
        let before = self.is_late.insert(request, false);
        self.late_count -= usize::from(before == Some(true));
        before.is_none()
    }

    /// Removes a request. Returns false if it was not in flight.
    fn remove(&mut self, request: BlockRequest) -> bool {
        let before = self.is_late.remove(&request);
        self.late_count -= usize::from(before == Some(true));
        before.is_some()
    }
}

impl Conversations {
    /// Returns our requests in flight to a peer, if a message was exchanged with it.
    pub(super) fn sent_requests(&mut self, peer: Entity) -> Option<&mut SentRequests> {
        self.by_peer.get_mut(&peer).map(|conversation| &mut conversation.sent)
    }
}

impl Conversation {
    fn new() -> Self {
        Self {
            codec: PeerCodec::new(FrameLimits::default()),
            has_shaken_hands: false,
            sent: SentRequests::default(),
            owed: Tally::default(),
            forgiven: Tally::default(),
        }
    }

    /// Matches an answer with a request. Returns false if there is none.
    fn answer(&mut self, request: BlockRequest) -> bool {
        self.owed.remove(&request) || self.forgiven.remove(&request)
    }

    fn forgive(&mut self, request: BlockRequest) {
        if self.owed.remove(&request) {
            self.forgiven.add(request);
        }
    }
}

/// Records the requests and answers of peers.
pub(super) fn read_events(
    mut conversations: ResMut<Conversations>,
    mut requested: MessageReader<UploadRequested>,
    mut rejected: MessageReader<RejectReceived>,
    mut choked: MessageReader<ChokeReceived>,
    blocks: Res<ReceivedBlocks>,
    peers: Query<&Wire>,
) {
    let Conversations { by_peer, answered, .. } = &mut *conversations;
    let conversations = by_peer;
    answered.clear();
    for &UploadRequested {
        peer,
        request,
        is_cancel,
    } in requested.read()
    {
        let Ok(wire) = peers.get(peer) else { continue };
        let conversation = conversations.entry(peer).or_insert_with(Conversation::new);
        match is_cancel {
            false => conversation.owed.add(request),
            // BEP 6: a canceled request is answered nonetheless.
            true if wire.session.fast => {}
            true => conversation.forgive(request),
        }
    }
    for (peer, block) in &blocks.0 {
        if let Some(conversation) = conversations.get_mut(peer) {
            conversation.sent.remove(block.request);
            answered.push((*peer, block.request));
        }
    }
    for RejectReceived { peer, request } in rejected.read() {
        if let Some(conversation) = conversations.get_mut(peer) {
            conversation.sent.remove(*request);
            answered.push((*peer, *request));
        }
    }
    for ChokeReceived { peer, is_choking } in choked.read() {
        let is_fast = peers.get(*peer).is_ok_and(|wire| wire.session.fast);
        if let Some(conversation) = conversations.get_mut(peer)
            && *is_choking
            && !is_fast
        {
            conversation.sent = SentRequests::default();
        }
    }
}

/// The facts known about the recipient of a message.
#[derive(SystemParam)]
pub(super) struct Facts<'w, 's> {
    clock: Res<'w, Clock>,
    violations: ResMut<'w, Violations>,
    peers: Query<
        'w,
        's,
        (
            &'static Wire,
            Option<&'static PeerOf>,
            Option<&'static PeerState>,
            Option<&'static Requests>,
        ),
    >,
    torrents: Query<'w, 's, (&'static Torrent, &'static Have, &'static Lifecycle)>,
    extensions: Query<'w, 's, &'static PeerExtensions>,
    contents: Query<'w, 's, &'static Content>,
    truth: Option<Res<'w, Truth>>,
}

/// Decodes and checks outgoing bytes.
pub(super) fn listen(
    net: Res<NetPort>,
    streams: Res<Streams>,
    mut conversations: ResMut<Conversations>,
    mut facts: Facts,
) {
    let Conversations {
        by_peer,
        answered,
        closed,
    } = &mut *conversations;
    for request in net.outgoing() {
        match request {
            NetRequest::Close { stream, .. } if closed.insert(*stream) => {}
            NetRequest::Close { stream, .. } => facts.report(|| format!("{stream:?} is closed twice")),
            NetRequest::Send { stream, .. } if closed.contains(stream) => {
                facts.report(|| format!("something is sent to {stream:?}, which is closed"));
            }
            NetRequest::Send { stream, frames } => {
                let Some(peer) = streams.get(*stream) else { continue };
                let conversation = by_peer.entry(peer).or_insert_with(Conversation::new);
                for frame in frames {
                    conversation.codec.push(frame.clone());
                }
                facts.decode(peer, conversation, answered);
            }
            _ => {}
        }
    }
}

impl Facts<'_, '_> {
    fn report(&mut self, what: impl FnOnce() -> String) {
        self.violations.report(&self.clock, Invariant::Wire, what);
    }

    fn decode(&mut self, peer: Entity, conversation: &mut Conversation, answered: &[(Entity, BlockRequest)]) {
        if !conversation.has_shaken_hands {
            match conversation.codec.handshake() {
                Ok(Some(handshake)) => {
                    conversation.has_shaken_hands = true;
                    if handshake.reserved.has_dht() && self.is_private(peer) {
                        self.report_leak(peer, "the bit of the DHT");
                    }
                }
                Ok(None) => return,
                Err(error) => return self.report(|| format!("our handshake: {error}")),
            }
        }
        let Ok((wire, ..)) = self.peers.get(peer) else { return };
        let session = wire.session.clone();
        loop {
            match conversation.codec.next_frame(&session) {
                Ok(Some(frame)) => self.check_frame(peer, conversation, frame, session.fast, answered),
                Ok(None) => return,
                Err(error) => return self.report(|| format!("what we send to {peer}: {error}")),
            }
        }
    }

    fn check_frame(
        &mut self,
        peer: Entity,
        conversation: &mut Conversation,
        frame: Frame,
        is_fast: bool,
        answered: &[(Entity, BlockRequest)],
    ) {
        match frame {
            Frame::Block(block) => {
                self.expect_have(peer, block.request.piece, "serves");
                self.expect_right(peer, &block);
                if !conversation.answer(block.request) {
                    self.report(|| format!("{:?} is served to {peer}, who does not wait for it", block.request));
                }
            }
            Frame::Message(Message::RejectRequest(request)) => {
                if !conversation.answer(request) {
                    self.report(|| format!("{request:?} of {peer} is rejected, which does not wait for it"));
                }
            }
            Frame::Message(Message::Have(piece)) => self.expect_have(peer, piece, "announces"),
            Frame::Message(Message::Bitfield(bytes)) => {
                let claimed = self.have_of(peer).map(|have| Bitfield::from_wire(&bytes, have.len()));
                match claimed {
                    Some(Ok(claimed)) => claimed
                        .iter()
                        .for_each(|piece| self.expect_have(peer, piece, "announces")),
                    _ => self.report(|| format!("{peer} is sent a bitfield that is none")),
                }
            }
            Frame::Message(Message::HaveAll) => {
                if self.have_of(peer).is_none_or(|have| !have.is_full()) {
                    self.report(|| format!("{peer} is sent that we have all"));
                }
            }
            Frame::Message(Message::Request(request)) => self.expect_welcome(peer, conversation, request),
            Frame::Message(Message::Cancel(request)) => {
                if !conversation.sent.remove(request) && !answered.contains(&(peer, request)) {
                    self.report(|| format!("{request:?} is canceled at {peer}, which does not owe it"));
                }
            }
            Frame::Message(Message::Choke) if !is_fast => {
                let dropped: Vec<_> = conversation.owed.keys().copied().collect();
                dropped.into_iter().for_each(|request| conversation.forgive(request));
            }
            Frame::Message(Message::Port(_)) if self.is_private(peer) => self.report_leak(peer, "our node's port"),
            Frame::Message(Message::Extended { id, payload }) => self.expect_public(peer, id, &payload),
            Frame::Message(_) => {}
        }
    }

    /// Checks that a request is sent once, to a peer that serves us, and during a download.
    fn expect_welcome(&mut self, peer: Entity, conversation: &mut Conversation, request: BlockRequest) {
        if !conversation.sent.insert(request) {
            self.report(|| format!("{request:?} is requested twice from {peer}"));
        }
        if let Ok((_, _, Some(state), Some(requests))) = self.peers.get(peer)
            && state.peer_choking
            && !requests.allowed_fast.contains(&request.piece)
        {
            self.report(|| format!("{request:?} is requested from {peer}, who chokes us"));
        }
        let state = self.torrent_of(peer).map(|(.., state)| state.clone());
        if let Some(state) = state.filter(|state| *state != Lifecycle::Downloading) {
            self.report(|| format!("{request:?} is requested from {peer} by a torrent that is {state:?}"));
        }
    }

    fn expect_have(&mut self, peer: Entity, piece: u32, what: &str) {
        if self.have_of(peer).is_none_or(|have| !have.contains(piece)) {
            self.report(|| format!("an engine {what} piece {piece}, which it does not have"));
        }
    }

    /// Checks that a served block has the torrent's bytes.
    fn expect_right(&mut self, peer: Entity, block: &Block) {
        let is_right = self.truth.as_ref().is_none_or(|truth| {
            let torrent = self.torrent_of(peer).map(|(torrent, ..)| torrent);
            torrent.is_none_or(|torrent| truth.is_right(torrent, block))
        });
        if !is_right {
            self.report(|| format!("{peer} is served wrong bytes for {:?}", block.request));
        }
    }

    /// Checks that a private torrent's peers are not exchanged, and that none are asked for (BEP 27).
    fn expect_public(&mut self, peer: Entity, id: u8, payload: &[u8]) {
        if self.is_private(peer)
            && let Some(what) = privacy::leak(self.extensions.get(peer).ok(), id, payload)
        {
            self.report_leak(peer, what);
        }
    }

    fn is_private(&self, peer: Entity) -> bool {
        let of = self.peers.get(peer).ok().and_then(|(_, of, ..)| of);
        let content = of.and_then(|of| self.contents.get(of.0).ok());
        content.is_some_and(|content| content.0.info.private)
    }

    fn report_leak(&mut self, peer: Entity, what: &str) {
        let report = || format!("{what} is sent to {peer} for a private torrent");
        self.violations.report(&self.clock, Invariant::Private, report);
    }

    fn have_of(&self, peer: Entity) -> Option<&Bitfield> {
        self.torrent_of(peer).map(|(_, have, _)| &**have)
    }

    fn torrent_of(&self, peer: Entity) -> Option<(&Torrent, &Have, &Lifecycle)> {
        let (_, of, ..) = self.peers.get(peer).ok()?;
        self.torrents.get(of?.0).ok()
    }
}

/// Drops the requests of disconnected peers.
pub(super) fn forget(mut conversations: ResMut<Conversations>, mut gone: MessageReader<PeerDisconnected>) {
    for PeerDisconnected { peer, .. } in gone.read() {
        conversations.by_peer.remove(peer);
    }
}
