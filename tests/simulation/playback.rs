//! Players of files that are being downloaded.

use ecs_torrent::components::readers::{OpenedReader, ReadError};
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};

use super::*;
use crate::readers::{Bed, LATENCY, megabits};

/// Bytes that a player reads ahead.
const AHEAD: u64 = 8 << 20;

/// A torrent of one long file. Its bytes are zeros, which take no memory.
fn movie(len: usize, piece_length: u32) -> Content {
    let bytes = Bytes::from(vec![0; len]);
    let full = sha1([&bytes[..piece_length as usize]]);
    let torrent = NewTorrent {
        name: "movie.mkv".into(),
        files: vec![NewFile {
            path: Vec::new(),
            len: len as u64,
        }],
        piece_length,
        pieces: vec![full; len / piece_length as usize],
        ..NewTorrent::default()
    };
    let encoded = torrent.encode().unwrap();
    let metainfo = Metainfo::parse(&encoded.into(), &MetainfoLimits::default()).unwrap();
    Content::new(metainfo.into(), bytes)
}

/// A player: it reads ahead, and plays at a constant rate.
struct Player {
    reader: OpenedReader,
    /// Bytes received so far, from `start` on.
    received: u64,
    start: u64,
    reading: Option<Receiver<Result<Bytes, ReadError>>>,
    /// When the first byte came.
    began: Option<Timestamp>,
    /// Bytes that were not there when they had to be played.
    stalls: u32,
}

impl Player {
    fn new(reader: OpenedReader, start: u64) -> Self {
        Self {
            reader,
            received: 0,
            start,
            reading: None,
            began: None,
            stalls: 0,
        }
    }

    /// Plays for a while at a rate in bytes per second. A stall moves the rest.
    fn play(&mut self, bed: &mut Bed, bytes_per_s: u64, time: Duration) {
        let end = bed.sim.now() + time;
        while bed.sim.now() < end {
            let now = bed.sim.now();
            let mut played = self
                .began
                .map_or(0, |began| (now.since(began).as_secs_f64() * bytes_per_s as f64) as u64);
            if played > self.received {
                self.stalls += 1;
                // It goes on with the next byte.
                self.began = None;
                self.start += self.received;
                self.received = 0;
                played = 0;
            }
            match self.reading.take() {
                Some(reading) => match reading.try_recv() {
                    Ok(bytes) => {
                        let bytes = bytes.unwrap();
                        let at = (self.start + self.received) as usize;
                        assert_eq!(bytes, bed.content.bytes().slice(at..at + bytes.len()));
                        self.received += bytes.len() as u64;
                        self.began.get_or_insert(now);
                    }
                    Err(_) => self.reading = Some(reading),
                },
                None if self.received < played + AHEAD => {
                    self.reading = Some(bed.begin(self.reader.id, self.start + self.received, 512 << 10));
                }
                None => {}
            }
            bed.sim.run_for(Duration::from_millis(2));
        }
        bed.check("playing");
    }
}

/// The first byte after a seek comes within two round trips and the time of one piece. The swarm is busy with other pieces
/// at the time of the seek.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes long without optimization")]
fn the_first_byte_after_a_seek_comes_within_two_round_trips_and_a_piece() {
    let piece_length = 1 << 20;
    for (seed, uplinks) in [
        vec![megabits(25)],
        vec![megabits(5); 5],
        vec![megabits(10), megabits(10), megabits(5)],
    ]
    .into_iter()
    .enumerate()
    {
        let mut bed = Bed::new(seed as u64, movie(2 << 30, piece_length), &uplinks);
        bed.warm_up(8 << 20);
        let reader = bed.open(0).unwrap();
        let mut player = Player::new(reader.clone(), 0);
        player.play(&mut bed, megabits(20), Duration::from_secs(10));
        let rate: u64 = uplinks.iter().sum();
        let piece_time = Duration::from_secs_f64(f64::from(piece_length) / rate as f64);
        for place in [1 << 30, 3 << 29, 100 << 20] {
            let began = bed.sim.now();
            let answer = bed.begin(reader.id, place, 1);
            assert_eq!(bed.wait(&answer).unwrap().len(), 1);
            let took = bed.sim.now().since(began);
            println!("{} seeds: {took:?}, of which {piece_time:?} for a piece", uplinks.len());
            assert!(
                took <= LATENCY * 4 + piece_time,
                "{took:?} with {} seeds",
                uplinks.len()
            );
            Player::new(reader.clone(), place).play(&mut bed, megabits(20), Duration::from_secs(5));
        }
    }
}
