//! The features of ecs-torrent, one plugin per file.
//!
//! A block passes [`streams`], [`frames`], [`assembly`], [`verification`], [`storage`] and [`having`], in this order:
//! [`TickSet`] is the order, and ARCHITECTURE.md lists the features and systems of each set.
//!
//! [`counters`] only observes; `admission` decides which connection is evicted at a limit. Each feature joins the sets
//! below; none calls another one's systems.

use bevy_app::{App, Plugin, PluginGroup, PluginGroupBuilder};
use bevy_ecs::prelude::*;
use ecs_torrent_components::messages::PeerDisconnected;
use ecs_torrent_engine::core::{FlushToPorts, IntakeFromPorts};
use ecs_torrent_engine::schedule::{Tick, TickSet};

pub mod accepting;
mod admission;
pub mod assembly;
pub mod availability;
mod blame;
pub mod changes;
pub mod checking;
pub mod choking;
pub mod conditions;
pub mod counters;
pub mod dates;
pub mod dht;
pub mod dialing;
pub mod disconnecting;
mod durable;
pub mod extensions;
pub mod files;
pub mod flushing;
pub mod following;
pub mod frames;
pub mod greeting;
pub mod handshaking;
pub mod having;
pub mod hints;
pub mod incomplete;
pub mod labels;
pub mod lifecycle;
pub mod limits;
pub mod lsd;
pub mod metadata;
pub mod ownership;
pub mod pex;
pub mod picking;
pub mod queue;
pub mod readers;
pub mod reaping;
pub mod seeding;
pub mod sessions;
pub mod settings;
pub mod smart_ban;
pub mod stats;
pub mod stop_participants;
pub mod storage;
pub mod streams;
pub mod suggesting;
#[cfg(test)]
mod testing;
pub mod timeouts;
pub mod trackers;
pub mod unverified;
pub mod uploading;
pub mod verification;

/// All features of a BitTorrent engine, for `Engine::builder().plugins(TorrentPlugins)`.
///
/// A single feature is left out by name:
///
/// ```
/// use bevy_app::{App, PluginGroup};
/// use ecs_torrent_systems::TorrentPlugins;
/// use ecs_torrent_systems::suggesting::SuggestingPlugin;
///
/// /// A plugin for `Engine::builder()`.
/// fn without_super_seeding(app: &mut App) {
///     app.add_plugins(TorrentPlugins.build().disable::<SuggestingPlugin>());
/// }
/// # let _ = without_super_seeding;
/// ```
///
/// A Bevy program does not add them to its own `App`: it adds the host plugin `EcsTorrentPlugin`, which starts an
/// engine beside it.
///
/// Some features are optional: [`smart_ban`], [`suggesting`], [`trackers`] (with or without scrapes and edits),
/// [`pex`], [`lsd`], [`following`] (with or without [`dht`], which it needs), [`labels`], [`seeding`], [`queue`],
/// [`extensions`], [`metadata`], [`hints`], [`readers`], [`stats`], [`changes`], [`dates`] and [`incomplete`] can be
/// left out with [`PluginGroupBuilder::disable`](bevy_app::PluginGroupBuilder::disable).
///
/// # Panics
/// In an `App` that is not an engine's, when it is built.
#[derive(Debug, Clone, Copy, Default)]
pub struct TorrentPlugins;

impl PluginGroup for TorrentPlugins {
    fn build(self) -> PluginGroupBuilder {
        PluginGroupBuilder::start::<Self>()
            .add(OrderPlugin)
            .add(settings::SettingsPlugin)
            .add(limits::LimitsPlugin)
            .add(labels::LabelsPlugin)
            .add(streams::StreamsPlugin)
            .add(accepting::AcceptingPlugin)
            .add(handshaking::HandshakingPlugin)
            .add(greeting::GreetingPlugin)
            .add(frames::FramesPlugin)
            .add(assembly::AssemblyPlugin)
            .add(verification::VerificationPlugin)
            .add(smart_ban::SmartBanPlugin)
            .add(checking::CheckingPlugin)
            .add(unverified::UnverifiedPlugin)
            .add(storage::StoragePlugin)
            .add(having::HavingPlugin)
            .add(ownership::OwnershipPlugin)
            .add(lifecycle::LifecyclePlugin)
            .add(files::FilesPlugin)
            .add(hints::HintsPlugin)
            .add(disconnecting::DisconnectingPlugin)
            .add(sessions::SessionsPlugin)
            .add(incomplete::IncompletePlugin)
            .add(seeding::SeedingPlugin)
            .add(queue::QueuePlugin)
            .add(trackers::TrackersPlugin)
            .add(trackers::ScrapePlugin)
            .add(trackers::TrackerControlPlugin)
            .add(extensions::ExtensionsPlugin)
            .add(metadata::MetadataPlugin)
            .add(availability::AvailabilityPlugin)
            .add(choking::ChokingPlugin)
            .add(uploading::UploadingPlugin)
            .add(suggesting::SuggestingPlugin)
            .add(timeouts::TimeoutsPlugin)
            .add(pex::PexPlugin)
            .add(dht::DhtPlugin)
            .add(following::FollowingPlugin)
            .add(lsd::LsdPlugin)
            .add(dialing::DialingPlugin)
            .add(readers::ReadersPlugin)
            .add(picking::PickingPlugin)
            .add(stats::StatsPlugin)
            .add(changes::ChangesPlugin)
            .add(flushing::FlushingPlugin)
            .add(counters::CountersPlugin)
            .add(dates::DatesPlugin)
            .add(reaping::ReapingPlugin)
    }
}

/// The order of [`TickSet::Intake`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntakeSet {
    /// Changes settings, before the systems of this tick read them.
    Settings,
    /// Sets the limits on transfer rates.
    Schedule,
    /// Sorts connection events by kind.
    Streams,
    /// Counts the blocks that have left, before anything of this tick is decided.
    Count,
    /// Turns new connections into peers.
    Accept,
    /// Passes received bytes to their peers.
    Bytes,
    /// Reads handshakes, which decide the torrent of a peer.
    Handshakes,
    /// Sends the opening messages to newly accepted peers.
    Greet,
    /// Decodes bytes into messages.
    Frames,
    /// Records closed connections, after their last messages.
    Closed,
}

/// The order of [`TickSet::Assemble`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AssembleSet {
    /// Assembles blocks received from peers.
    Received,
    /// Assembles blocks that an earlier run left on the disk.
    Restored,
}

/// The order of [`TickSet::Verify`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifySet {
    /// Collects finished hashes and compares them.
    Collect,
    /// Finds the peers to blame for a failed hash.
    Blame,
    /// Checks existing data.
    Check,
    /// Verifies pieces that are held without a check, before they are read.
    Unverified,
    /// Submits full pieces for hashing.
    Submit,
}

/// The order of [`TickSet::Announce`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AnnounceSet {
    /// Records which files other torrents use.
    Ownership,
    /// Adds and starts torrents.
    Begin,
    /// Changes which files are wanted.
    Files,
    /// Changes the limits of torrents.
    Limits,
    /// Changes the labels of torrents.
    Labels,
    /// Changes the seeding limits of torrents.
    SeedingLimits,
    /// Changes the positions of torrents in the queue.
    Queue,
    /// Prepares the files that are wanted now.
    Prepare,
    /// Drops the peers that a torrent may not have, as its metadata says, before its session is saved.
    Privacy,
    /// Sets bits in the have bitfield and broadcasts `Have`.
    Have,
    /// Records which held pieces are not verified.
    Unverified,
    /// Derives the states of torrents.
    Lifecycle,
    /// Sends updates to the peers of newly complete torrents.
    Completion,
    /// Queues announces to trackers.
    Trackers,
}

/// The order of [`TickSet::Decide`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecideSet {
    /// Ends the seeding of torrents that have seeded enough.
    Seeding,
    /// Decides which torrents run.
    Queue,
    /// Fails and stops torrents, and derives their states.
    Lifecycle,
    /// Closes the connections of torrents that no longer run.
    Disconnect,
    /// Saves sessions.
    Sessions,
    /// Handles extension messages.
    Extensions,
    /// Updates the pieces of each peer, and our interest in it.
    Availability,
    /// Selects the peers to unchoke.
    Choking,
    /// Serves requests of peers.
    Uploads,
    /// Sends suggestions of pieces to peers.
    Suggestions,
    /// Handles peers that timed out.
    Timeouts,
    /// Finds addresses of peers.
    Discovery,
    /// Finds addresses of peers in the distributed hash table.
    Dht,
    /// Follows links to torrents that change.
    Following,
    /// Finds addresses of peers in the local network.
    LocalDiscovery,
    /// Looks up the peers that magnet links name by a host name.
    LinkedPeers,
    /// Selects addresses to connect to.
    Dialing,
    /// Serves readers of files, and decides which pieces they need next.
    Readers,
    /// Selects the blocks to request.
    Picking,
    /// Updates the statistics for users.
    Stats,
}

/// The order of [`TickSet::Flush`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlushSet {
    /// Hands outboxes over.
    Outboxes,
    /// Returns credit to connections.
    Streams,
}

/// The order of [`TickSet::Reap`].
#[derive(SystemSet, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReapSet {
    /// Counts received blocks, after the tick has processed them.
    Count,
    /// Publishes `PeerDisconnected` for the peers that are about to be removed.
    Publish,
    /// Releases everything that the features hold for these peers. Runs only while there are [`PeerDisconnected`]
    /// messages.
    Release,
    /// Despawns these peers.
    Despawn,
    /// Logs the changes of this tick.
    Log,
    /// Reports the messages of this tick to the program around the engine.
    Report,
}

/// The order of the features within each set of the tick.
struct OrderPlugin;

impl Plugin for OrderPlugin {
    fn build(&self, app: &mut App) {
        assert!(
            app.get_schedule(Tick).is_some(),
            "TorrentPlugins belong to an engine, which has a world of its own: add ecs_torrent::host::EcsTorrentPlugin \
             to a Bevy App instead, or give them to ecs_torrent::Engine::builder()"
        );
        use IntakeSet::{Accept, Bytes, Closed, Count, Frames, Greet, Handshakes, Schedule, Settings, Streams};
        let intake = (
            Settings, Schedule, Streams, Count, Accept, Bytes, Handshakes, Greet, Frames, Closed,
        );
        app.configure_sets(Tick, (IntakeFromPorts, intake.chain()).chain())
            .configure_sets(Tick, intake.in_set(TickSet::Intake));
        app.configure_sets(
            Tick,
            (AssembleSet::Received, AssembleSet::Restored)
                .chain()
                .in_set(TickSet::Assemble),
        );
        use VerifySet::{Blame, Check, Collect, Submit, Unverified};
        let verify = (Collect, Blame, Check, Unverified, Submit);
        app.configure_sets(Tick, verify.chain().in_set(TickSet::Verify));
        order_announce(app);
        use DecideSet::{
            Availability, Choking, Dht, Dialing, Disconnect, Discovery, Extensions, Following, Lifecycle, LinkedPeers,
            LocalDiscovery, Picking, Queue, Readers, Seeding, Sessions, Stats, Suggestions, Timeouts, Uploads,
        };
        let decide = (
            Seeding,
            Queue,
            Lifecycle,
            Disconnect,
            Sessions,
            Extensions,
            Availability,
            Choking,
            Uploads,
            Suggestions,
            Timeouts,
            Discovery,
            Dht,
            Following,
            LocalDiscovery,
            LinkedPeers,
            Dialing,
            Readers,
            Picking,
            Stats,
        );
        app.configure_sets(Tick, decide.chain().in_set(TickSet::Decide));
        app.configure_sets(Tick, (FlushSet::Outboxes, FlushSet::Streams, FlushToPorts).chain())
            .configure_sets(Tick, (FlushSet::Outboxes, FlushSet::Streams).in_set(TickSet::Flush));
        use ReapSet::{Despawn, Log, Publish, Release, Report};
        let reap = (ReapSet::Count, Publish, Release, Despawn, Log, Report);
        app.configure_sets(Tick, reap.chain().in_set(TickSet::Reap))
            .configure_sets(Tick, Release.run_if(conditions::has_messages::<PeerDisconnected>));
    }
}

/// The order of the features within [`TickSet::Announce`].
fn order_announce(app: &mut App) {
    use AnnounceSet::{
        Begin, Completion, Files, Have, Labels, Lifecycle, Limits, Ownership, Prepare, Privacy, Queue, SeedingLimits,
        Trackers, Unverified,
    };
    let changes = (Files, Limits, SeedingLimits, Labels, Queue).chain();
    let states = (Prepare, Privacy, Have, Unverified, Lifecycle).chain();
    app.configure_sets(
        Tick,
        (Ownership, Begin, changes, states, Completion, Trackers)
            .chain()
            .in_set(TickSet::Announce),
    );
}
