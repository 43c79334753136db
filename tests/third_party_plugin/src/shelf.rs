//! A source of blocks that is not a connection: the plugin has the data of a torrent and takes part in its download.

use ecs_torrent::components::peer::{PeerExtensions, PeerPieces, Requests, SourceCommand, SourceQueue, WaitingSources};
use ecs_torrent::prelude::*;
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::wire::Block;

/// Offers the data of a torrent to every download.
#[derive(Debug, Clone)]
pub struct ShelfPlugin {
    /// The content.
    pub data: Vec<u8>,
    /// A piece that it offers and never sends.
    pub withheld: Option<u32>,
}

/// The engine's commands to the plugin.
#[derive(Resource, Debug, Clone)]
pub struct Shelves {
    data: Vec<u8>,
    withheld: Option<u32>,
    /// Requests that the plugin does not answer, until they are canceled.
    pub unanswered: Vec<BlockRequest>,
    /// Canceled requests.
    pub canceled: Vec<BlockRequest>,
}

/// A source of blocks.
#[derive(Component)]
struct Shelf;

impl Plugin for ShelfPlugin {
    fn build(&self, app: &mut App) {
        app.insert_resource(Shelves {
            data: self.data.clone(),
            withheld: self.withheld,
            unanswered: Vec::new(),
            canceled: Vec::new(),
        })
        .add_systems(
            Tick,
            (
                open_shelves.in_set(TickSet::Decide).before(DecideSet::Availability),
                serve.in_set(TickSet::Respond),
            ),
        );
    }
}

/// Adds a source to each torrent that starts. It has every piece and chokes nobody.
fn open_shelves(
    mut started: MessageReader<TorrentStarted>,
    clock: Res<Clock>,
    torrents: Query<&Layout>,
    mut announced: MessageWriter<AvailabilityReceived>,
    mut commands: Commands,
) {
    for &TorrentStarted { torrent } in started.read() {
        let Ok(Layout(geometry)) = torrents.get(torrent) else {
            continue;
        };
        let state = PeerState {
            peer_choking: false,
            ..PeerState::new(clock.now())
        };
        let source = commands.spawn((
            Shelf,
            SourceQueue::default(),
            PeerOf(torrent),
            state,
            PeerPieces::none(geometry.piece_count()),
            PeerRates::default(),
            PeerExtensions::default(),
            Requests::default(),
        ));
        announced.write(AvailabilityReceived {
            peer: source.id(),
            change: Availability::All,
        });
    }
}

/// Carries out the engine's commands: returns the requested blocks and records the canceled requests.
fn serve(
    clock: Res<Clock>,
    wakeup: Res<Wakeup>,
    mut waiting: ResMut<WaitingSources>,
    mut shelves: ResMut<Shelves>,
    mut blocks: ResMut<ReceivedBlocks>,
    torrents: Query<&Layout>,
    mut sources: Query<(&PeerOf, &mut SourceQueue), With<Shelf>>,
) {
    for source in waiting.take_if(|entity| sources.contains(entity)) {
        let Ok((of, mut queue)) = sources.get_mut(source) else {
            continue;
        };
        let Ok(Layout(geometry)) = torrents.get(of.0) else {
            continue;
        };
        for command in queue.take() {
            match command {
                SourceCommand::Request(request) if shelves.withheld == Some(request.piece) => {
                    shelves.unanswered.push(request);
                }
                SourceCommand::Request(request) => {
                    let span = geometry.span(request);
                    let bytes = shelves.data[span.offset as usize..span.end() as usize].to_vec();
                    let data = std::iter::once(bytes.into()).collect();
                    blocks.0.push((source, Block { request, data }));
                }
                SourceCommand::Cancel(request) => {
                    shelves.unanswered.retain(|known| *known != request);
                    shelves.canceled.push(request);
                }
            }
        }
        // The blocks enter their pieces in the next tick.
        wakeup.at(clock.now());
    }
}
