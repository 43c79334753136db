//! Players of files that are being downloaded.

use ecs_torrent::components::readers::{OpenedReader, ReadError};
use ecs_torrent::components::torrent::Counters;
use ecs_torrent::protocol::create::{NewFile, NewTorrent};
use ecs_torrent::protocol::hash::sha1;
use ecs_torrent::protocol::metainfo::{Metainfo, MetainfoLimits};

use super::*;
use crate::readers::{Bed, LATENCY, megabits};
use crate::skipping::is_unoptimized;

/// Bytes that a player reads ahead.
const AHEAD: u64 = 8 << 20;

/// Playing time that a player buffers before it begins: ExoPlayer buffers 2.5 s by default, and 5 s after a stall.
const FIRST_BUFFER: Duration = Duration::from_millis(2500);

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

/// A player: it reads ahead, and plays at a constant rate as soon as it has filled its first buffer.
struct Player {
    reader: OpenedReader,
    /// Bytes per second.
    rate: u64,
    /// Bytes received so far, from `start` on.
    received: u64,
    start: u64,
    reading: Option<Receiver<Result<Bytes, ReadError>>>,
    /// When it began to play.
    began: Option<Timestamp>,
    /// Offset and time of each stall: the bytes that were missing when they had to be played.
    stalls: Vec<(u64, Timestamp)>,
}

impl Player {
    fn new(reader: OpenedReader, start: u64, rate: u64) -> Self {
        Self {
            reader,
            rate,
            received: 0,
            start,
            reading: None,
            began: None,
            stalls: Vec::new(),
        }
    }

    /// Bytes that it buffers before it begins to play, and again after a stall.
    fn first_buffer(&self) -> u64 {
        (self.rate as f64 * FIRST_BUFFER.as_secs_f64()) as u64
    }

    /// Plays for a while.
    fn play(&mut self, bed: &mut Bed, time: Duration) {
        let end = bed.sim.now() + time;
        while bed.sim.now() < end {
            let now = bed.sim.now();
            let since = |began| (now.since(began).as_secs_f64() * self.rate as f64) as u64;
            let mut played = self.began.map_or(0, since);
            if played > self.received {
                self.stalls.push((self.start + self.received, now));
                // The player continues with the next byte.
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
                        if self.received >= self.first_buffer() {
                            self.began.get_or_insert(now);
                        }
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

/// The first byte after a seek comes within two round trips and the time of one piece. The swarm is busy with other
/// pieces at the time of the seek.
#[test]
fn the_first_byte_after_a_seek_comes_within_two_round_trips_and_a_piece() {
    if is_unoptimized(
        "the_first_byte_after_a_seek_comes_within_two_round_trips_and_a_piece",
        "takes long without optimization",
    ) {
        return;
    }
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
        let mut player = Player::new(reader.clone(), 0, megabits(20));
        player.play(&mut bed, Duration::from_secs(10));
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
            Player::new(reader.clone(), place, megabits(20)).play(&mut bed, Duration::from_secs(5));
        }
    }
}

/// A player of 20 Mbit/s never stalls in a swarm that provides 25 Mbit/s, with any links and pieces.
#[test]
#[cfg_attr(debug_assertions, ignore = "takes long without optimization")]
fn playback_at_20_of_25_megabits_never_stalls() {
    let links: [&[u64]; 6] = [&[25], &[5; 5], &[10, 10, 5], &[20, 5], &[18, 4, 2, 1], &[1; 25]];
    let cases = links.iter().flat_map(|links| {
        let lengths = [256 << 10, 1 << 20, 4 << 20];
        lengths
            .into_iter()
            .flat_map(move |length| [20, 200].map(|millis| (links, length, Duration::from_millis(millis))))
    });
    for (seed, (links, piece_length, latency)) in (0..).zip(cases) {
        let case = format!("{links:?} Mbit/s, pieces of {} KiB, {latency:?}", piece_length >> 10);
        let uplinks: Vec<u64> = links.iter().copied().map(megabits).collect();
        let mut bed = Bed::apart(seed, movie(256 << 20, piece_length), &uplinks, latency);
        let reader = bed.open(0).unwrap();
        let opened = bed.sim.now();
        let mut player = Player::new(reader, 0, megabits(20));
        player.play(&mut bed, Duration::from_secs(60));
        let Counters { downloaded, wasted, .. } = bed.counters();
        let began = player.began.map(|began| began.since(opened));
        println!(
            "{case}: plays after {began:?}, {wasted} of {} bytes wasted",
            downloaded + wasted
        );
        assert_eq!(player.stalls, [], "{case}");
        assert!(began.is_some_and(|began| began < Duration::from_secs(10)), "{case}");
    }
}
