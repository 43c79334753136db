//! The mailbox: how the outside world talks to an engine's world.

use std::fmt;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::CommandQueue;
use tokio::sync::mpsc;

use crate::wake::Waker;

type Letter = Box<dyn FnOnce(&mut World) + Send>;

/// Letters that wait while the engine has not taken them; who sends more waits.
const CAPACITY: usize = 1024;

/// The engine has stopped, or its thread has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineGone;

/// The outside end; clones reach the same engine.
#[derive(Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Letter>,
    waker: Waker,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHandle")
    }
}

impl EngineHandle {
    /// Sends a command to the feature that initialized its [`CommandQueue`]; one that nobody takes is dropped, and
    /// its reply with it.
    ///
    /// # Errors
    /// Where the engine is gone.
    pub async fn send<C: Send + Sync + 'static>(&self, command: C) -> Result<(), EngineGone> {
        self.with_world(move |world| {
            if let Some(mut queue) = world.get_resource_mut::<CommandQueue<C>>() {
                queue.0.push_back(command);
            }
        })
        .await
    }

    /// Runs `look` on the engine's world, between draining the ports and everything else, in the engine's thread:
    /// the way for tests and hosts to see what no command tells.
    ///
    /// # Errors
    /// Where the engine is gone.
    pub async fn with_world(&self, look: impl FnOnce(&mut World) + Send + 'static) -> Result<(), EngineGone> {
        self.sender.send(Box::new(look)).await.map_err(|_| EngineGone)?;
        self.waker.wake();
        Ok(())
    }
}

/// The engine's end.
#[derive(Resource)]
pub(crate) struct Mailbox {
    receiver: mpsc::Receiver<Letter>,
}

impl Mailbox {
    /// A mailbox and its outside end.
    pub(crate) fn new(waker: Waker) -> (Self, EngineHandle) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { receiver }, EngineHandle { sender, waker })
    }

    /// Opens at most `max` letters; true if there may be more.
    pub(crate) fn deliver(world: &mut World, max: usize) -> bool {
        let mut letters = Vec::new();
        {
            let mut mailbox = world.resource_mut::<Self>();
            while letters.len() < max
                && let Ok(letter) = mailbox.receiver.try_recv()
            {
                letters.push(letter);
            }
        }
        let has_more = letters.len() == max;
        letters.into_iter().for_each(|letter| letter(world));
        has_more
    }
}
