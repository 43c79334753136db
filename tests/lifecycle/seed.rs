//! A seed with a configurable speed and block limit, which counts the blocks that it sends.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ecs_torrent::protocol::geometry::BlockRequest;
use ecs_torrent::protocol::wire::{
    Frame, FrameLimits, HANDSHAKE_LEN, Message, PeerCodec, Reserved, Session, write_block_header,
};

use crate::bed::{Torrent, wait_until};
use crate::peer::{handshake, unique_id};

/// A seed on a loopback address with its own port. It runs as long as the process.
#[derive(Clone)]
pub struct Seed {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    torrent: Arc<Torrent>,
    /// Delay per block.
    pace: Duration,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    /// Blocks that may still be sent.
    allowance: u64,
    /// How often each block was sent, by piece and offset.
    served: BTreeMap<(u32, u32), u32>,
}

impl Seed {
    /// Creates a seed that sends everything at once.
    pub fn free(torrent: &Arc<Torrent>) -> Self {
        Self::new(torrent, Duration::ZERO, u64::MAX)
    }

    /// Creates a seed that waits `pace` for each block.
    pub fn slow(torrent: &Arc<Torrent>, pace: Duration) -> Self {
        Self::new(torrent, pace, u64::MAX)
    }

    /// Creates a seed that sends `allowance` blocks until [`Seed::release`].
    pub fn limited(torrent: &Arc<Torrent>, allowance: u64) -> Self {
        Self::new(torrent, Duration::ZERO, allowance)
    }

    fn new(torrent: &Arc<Torrent>, pace: Duration, allowance: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let progress = Progress {
            allowance,
            ..Progress::default()
        };
        let shared = Arc::new(Shared {
            torrent: torrent.clone(),
            pace,
            progress: Mutex::new(progress),
            changed: Condvar::new(),
        });
        let seed = Self { address, shared };
        let serving = seed.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seed = serving.clone();
                // A downloader that disconnects is no error: tests kill downloaders.
                thread::spawn(move || seed.serve(stream));
            }
        });
        seed
    }

    /// Removes the limit.
    pub fn release(&self) {
        self.shared.progress.lock().unwrap().allowance = u64::MAX;
        self.shared.changed.notify_all();
    }

    pub fn served_count(&self) -> usize {
        self.shared.progress.lock().unwrap().served.len()
    }

    /// Waits until the seed has sent `count` different blocks.
    pub fn wait_served(&self, count: usize) {
        wait_until("blocks to be served", || self.served_count() >= count);
    }

    /// Returns how often each block was sent.
    pub fn served(&self) -> BTreeMap<(u32, u32), u32> {
        self.shared.progress.lock().unwrap().served.clone()
    }

    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let torrent = &self.shared.torrent;
        let geometry = torrent.geometry();
        stream.set_nodelay(true).ok()?;
        stream.read_exact(&mut [0; HANDSHAKE_LEN]).ok()?;
        let mut out = handshake(torrent.info_hash(), unique_id(), Reserved::ours());
        Message::HaveAll.write(&mut out);
        stream.write_all(&out).ok()?;
        let session = Session {
            geometry: Some(geometry.clone()),
            fast: true,
            extended: true,
            dht: false,
        };
        let mut codec = PeerCodec::new(FrameLimits::default());
        let mut buffer = vec![0; 64 << 10];
        loop {
            out.clear();
            match codec.next_frame(&session).ok()? {
                Some(Frame::Message(Message::Interested)) => Message::Unchoke.write(&mut out),
                Some(Frame::Message(Message::Request(request))) => {
                    self.allow(request);
                    let span = geometry.span(request);
                    write_block_header(&mut out, request);
                    out.extend_from_slice(&torrent.data[span.offset as usize..span.end() as usize]);
                }
                Some(_) => {}
                None => {
                    let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
                    codec.push(Bytes::copy_from_slice(&buffer[..len]));
                }
            }
            stream.write_all(&out).ok()?;
        }
    }

    /// Waits until the seed may send a block, and counts the block.
    fn allow(&self, BlockRequest { piece, begin, .. }: BlockRequest) {
        thread::sleep(self.shared.pace);
        let progress = self.shared.progress.lock().unwrap();
        let is_held = |progress: &mut Progress| progress.allowance == 0;
        let mut progress = self.shared.changed.wait_while(progress, is_held).unwrap();
        progress.allowance = progress.allowance.saturating_sub(1);
        *progress.served.entry((piece, begin)).or_default() += 1;
    }
}
