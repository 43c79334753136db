//! The mailbox: the channel through which the host program reaches an engine's world.

use std::fmt;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::CommandQueue;
use tokio::sync::mpsc;

use crate::wake::Waker;

type Letter = Box<dyn FnOnce(&mut World) + Send>;

/// Capacity of the mailbox, in letters not yet taken by the engine; senders wait while it is full.
const CAPACITY: usize = 1024;

/// The engine has stopped, or its thread has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineGone;

/// The sending end of the mailbox; clones reach the same engine.
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
    /// Sends a command to the feature that initialized its [`CommandQueue`]. Without such a feature, the command and
    /// its reply are dropped.
    ///
    /// # Errors
    /// Returns [`EngineGone`] if the engine has stopped.
    pub async fn send<C: Send + Sync + 'static>(&self, command: C) -> Result<(), EngineGone> {
        self.with_world(move |world| {
            if let Some(mut queue) = world.get_resource_mut::<CommandQueue<C>>() {
                queue.0.push_back(command);
            }
        })
        .await
    }

    /// Runs `look` on the engine's world, in the engine's thread, right after the ports are drained. Gives tests and
    /// hosts access to state that no command reports.
    ///
    /// # Errors
    /// Returns [`EngineGone`] if the engine has stopped.
    pub async fn with_world(&self, look: impl FnOnce(&mut World) + Send + 'static) -> Result<(), EngineGone> {
        self.sender.send(Box::new(look)).await.map_err(|_| EngineGone)?;
        self.waker.wake();
        Ok(())
    }
}

/// The receiving end, owned by the engine.
#[derive(Resource)]
pub(crate) struct Mailbox {
    receiver: mpsc::Receiver<Letter>,
}

impl Mailbox {
    /// Creates a mailbox and its sending end.
    pub(crate) fn new(waker: Waker) -> (Self, EngineHandle) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { receiver }, EngineHandle { sender, waker })
    }

    /// Runs at most `max` letters; returns true if there may be more.
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
