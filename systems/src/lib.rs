//! The features of ecs-torrent, one plugin per file.
//!
//! A block's way through the code is the order of this list:
//!
//! | stage | feature | does |
//! |---|---|---|
//! | Intake | [`links`], [`accepting`], [`handshaking`], [`greeting`], [`frames`] | bytes become facts |
//! | Assemble | [`assembly`] | blocks find their piece |
//! | Verify | [`verification`], [`checking`], [`smart_ban`] | pieces are hashed; who sent bad ones goes |
//! | Store | [`storage`] | verified pieces are written |
//! | Announce | [`having`], [`ownership`], [`lifecycle`], [`trackers`] | what is here becomes known |
//! | Decide | [`lifecycle`], [`sessions`], [`extensions`], [`availability`], [`choking`], [`uploading`], [`suggesting`], [`timeouts`], [`dialing`], [`picking`], [`stats`] | what to do next |
//! | Respond | [`uploading`] | peers are served |
//! | Flush | [`flushing`] | what was said leaves |
//! | Reap | [`reaping`] | what has ended goes |
//!
//! [`counters`] reads along; `admission` decides who gives way when there is no room. Each feature joins the sets below; none calls another one's systems.

use bevy_app::{App, Plugin, PluginGroup, PluginGroupBuilder};
use bevy_ecs::prelude::*;
use ecs_torrent_engine::core::{FlushToPorts, IntakeFromPorts};
use ecs_torrent_engine::schedule::{Tick, TickSet};

pub mod accepting;
mod admission;
pub mod assembly;
pub mod availability;
pub mod checking;
pub mod choking;
pub mod counters;
pub mod dialing;
pub mod extensions;
pub mod flushing;
pub mod frames;
pub mod greeting;
pub mod handshaking;
pub mod having;
pub mod lifecycle;
pub mod links;
pub mod ownership;
pub mod picking;
pub mod reaping;
pub mod sessions;
pub mod smart_ban;
pub mod stats;
pub mod storage;
pub mod suggesting;
pub mod timeouts;
pub mod trackers;
pub mod uploading;
pub mod verification;

/// All features of a BitTorrent engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct TorrentPlugins;

impl PluginGroup for TorrentPlugins {
    fn build(self) -> PluginGroupBuilder {
        PluginGroupBuilder::start::<Self>()
            .add(OrderPlugin)
            .add(links::LinksPlugin)
            .add(accepting::AcceptingPlugin)
            .add(handshaking::HandshakingPlugin)
            .add(greeting::GreetingPlugin)
            .add(frames::FramesPlugin)
            .add(assembly::AssemblyPlugin)
            .add(verification::VerificationPlugin)
            .add(smart_ban::SmartBanPlugin)
            .add(checking::CheckingPlugin)
            .add(storage::StoragePlugin)
            .add(having::HavingPlugin)
            .add(ownership::OwnershipPlugin)
            .add(lifecycle::LifecyclePlugin)
            .add(sessions::SessionsPlugin)
            .add(trackers::TrackersPlugin)
            .add(extensions::ExtensionsPlugin)
            .add(availability::AvailabilityPlugin)
            .add(choking::ChokingPlugin)
            .add(uploading::UploadingPlugin)
            .add(suggesting::SuggestingPlugin)
            .add(timeouts::TimeoutsPlugin)
            .add(dialing::DialingPlugin)
            .add(picking::PickingPlugin)
            .add(stats::StatsPlugin)
            .add(flushing::FlushingPlugin)
            .add(counters::CountersPlugin)
            .add(reaping::ReapingPlugin)
    }
}

/// The order of [`TickSet::Intake`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntakeSet {
    /// Connections' events are sorted by kind.
    Links,
    /// New connections become peers.
    Accept,
    /// Received bytes reach their peers.
    Bytes,
    /// Handshakes decide which torrent a peer is for.
    Handshakes,
    /// Peers that have just been accepted are told what there is.
    Greet,
    /// Bytes become messages.
    Frames,
    /// Connections that have ended are noted, after the last they said.
    Closed,
}

/// The order of [`TickSet::Assemble`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AssembleSet {
    /// What peers sent.
    Received,
    /// What an earlier run left on the disk.
    Restored,
}

/// The order of [`TickSet::Verify`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifySet {
    /// Finished hashes are judged.
    Collect,
    /// Whose fault was it.
    Blame,
    /// Existing data is checked.
    Check,
    /// Full pieces are submitted.
    Submit,
}

/// The order of [`TickSet::Announce`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnnounceSet {
    /// Bits are set and broadcast.
    Have,
    /// What follows from the last bit.
    Completion,
    /// It becomes known which files other torrents have.
    Ownership,
    /// Torrents are added and started.
    Begin,
    /// Trackers are told.
    Trackers,
}

/// The order of [`TickSet::Decide`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecideSet {
    /// Torrents fail and stop.
    Lifecycle,
    /// What they have is saved.
    Sessions,
    /// Extensions are heard.
    Extensions,
    /// What peers have, and whether we want it.
    Availability,
    /// Who is served.
    Choking,
    /// What they ask for.
    Uploads,
    /// What they had better ask for.
    Suggestions,
    /// Who has kept us waiting.
    Timeouts,
    /// Whom to connect to.
    Dialing,
    /// What to request.
    Picking,
    /// What users want to know.
    Stats,
}

/// The order of [`TickSet::Flush`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushSet {
    /// Outboxes are handed over.
    Outboxes,
    /// Credit is given back.
    Links,
}

/// The order of [`TickSet::Reap`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReapSet {
    /// Everybody hears which peers go.
    Tell,
    /// Everybody lets go of what they held.
    Release,
    /// They are gone.
    Despawn,
}

/// The order of the features within each set of the tick.
struct OrderPlugin;

impl Plugin for OrderPlugin {
    fn build(&self, app: &mut App) {
        use IntakeSet::{Accept, Bytes, Closed, Frames, Greet, Handshakes, Links};
        app.configure_sets(
            Tick,
            (IntakeFromPorts, Links, Accept, Bytes, Handshakes, Greet, Frames, Closed).chain(),
        )
        .configure_sets(
            Tick,
            (Links, Accept, Bytes, Handshakes, Greet, Frames, Closed).in_set(TickSet::Intake),
        );
        use AssembleSet::{Received, Restored};
        app.configure_sets(Tick, (Received, Restored).chain().in_set(TickSet::Assemble));
        use VerifySet::{Blame, Check, Collect, Submit};
        app.configure_sets(Tick, (Collect, Blame, Check, Submit).chain().in_set(TickSet::Verify));
        use AnnounceSet::{Begin, Completion, Have, Ownership, Trackers};
        app.configure_sets(
            Tick,
            (Have, Completion, Ownership, Begin, Trackers)
                .chain()
                .in_set(TickSet::Announce),
        );
        use DecideSet::{
            Availability, Choking, Dialing, Extensions, Lifecycle, Picking, Sessions, Stats, Suggestions, Timeouts,
            Uploads,
        };
        let decide = (
            Lifecycle,
            Sessions,
            Extensions,
            Availability,
            Choking,
            Uploads,
            Suggestions,
            Timeouts,
            Dialing,
            Picking,
            Stats,
        );
        app.configure_sets(Tick, decide.chain().in_set(TickSet::Decide));
        app.configure_sets(Tick, (FlushSet::Outboxes, FlushSet::Links, FlushToPorts).chain())
            .configure_sets(Tick, (FlushSet::Outboxes, FlushSet::Links).in_set(TickSet::Flush));
        app.configure_sets(
            Tick,
            (ReapSet::Tell, ReapSet::Release, ReapSet::Despawn)
                .chain()
                .in_set(TickSet::Reap),
        );
    }
}
