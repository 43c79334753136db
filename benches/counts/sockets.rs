//! The Net port's real backend over a TCP connection on loopback. Its tasks run on the thread that counts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ecs_torrent::components::ids::StreamId;
use ecs_torrent::components::settings::NetSettings;
use ecs_torrent::engine::backends::SharedRuntime;
use ecs_torrent::engine::backends::net::{Carriers, TokioNet};
use ecs_torrent::engine::port::Backend;
use ecs_torrent::engine::ports::net::{NetEvent, NetRequest};
use ecs_torrent::engine::wake::Waker;
use ecs_torrent::protocol::geometry::BLOCK_SIZE;
use tokio::runtime::Builder;
use tokio::task::yield_now;

/// A stream of the Net port, and the socket at its other end.
pub struct Loopback {
    runtime: Arc<SharedRuntime>,
    net: TokioNet,
    stream: StreamId,
    socket: TcpStream,
    block: Bytes,
}

impl Loopback {
    pub fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = Arc::new(SharedRuntime::new(runtime));
        let settings = NetSettings {
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
            ..NetSettings::default()
        };
        let waker = Waker::for_this_thread();
        let (net, local) =
            TokioNet::start(&settings, &Carriers::default(), Instant::now(), runtime.clone(), &waker).unwrap();
        let socket = TcpStream::connect(local.0[0]).unwrap();
        let mut this = Self {
            runtime,
            net,
            stream: StreamId(0),
            socket,
            block: vec![7; BLOCK_SIZE as usize].into(),
        };
        this.stream = this.wait_for(|event| match event {
            NetEvent::Accepted { stream, .. } => Some(stream),
            _ => None,
        });
        this
    }

    /// Moves one block from the socket to the stream, which grants it as the world does.
    pub fn receive(&mut self) {
        let (stream, bytes) = (self.stream, 2 * BLOCK_SIZE);
        self.net.submit(&mut vec![NetRequest::Grant { stream, bytes }]);
        self.socket.write_all(&self.block).unwrap();
        let mut left = self.block.len();
        self.wait_for(|event| match event {
            NetEvent::Received { chunk, .. } => {
                left -= chunk.len();
                (left == 0).then_some(())
            }
            _ => None,
        });
    }

    /// Moves one block from the stream to the socket.
    pub fn send(&mut self, buffer: &mut [u8]) {
        let (stream, frames) = (self.stream, vec![self.block.clone()]);
        self.net.submit(&mut vec![NetRequest::Send { stream, frames }]);
        let mut left = self.block.len();
        self.wait_for(|event| match event {
            NetEvent::Sent { bytes, .. } => {
                left -= bytes;
                (left == 0).then_some(())
            }
            _ => None,
        });
        self.socket.read_exact(&mut buffer[..self.block.len()]).unwrap();
    }

    /// Runs the backend's tasks until an event fits.
    fn wait_for<T>(&mut self, mut find: impl FnMut(NetEvent) -> Option<T>) -> T {
        let (runtime, net) = (self.runtime.clone(), &mut self.net);
        let mut events = Vec::new();
        runtime.block_on(async {
            loop {
                net.poll(usize::MAX, &mut events);
                if let Some(found) = events.drain(..).find_map(&mut find) {
                    return found;
                }
                yield_now().await;
            }
        })
    }
}
