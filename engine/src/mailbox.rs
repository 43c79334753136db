//! The mailbox: the channel through which the host program reaches an engine's world.
//!
//! Hosts are asynchronous: while the mailbox is full, a sender waits as a task and blocks no thread. So the channel is
//! tokio's; crossbeam-channel, which the log uses, would block.

use std::fmt;

use bevy_ecs::prelude::*;
use ecs_torrent_components::commands::CommandQueue;
use tokio::sync::{mpsc, oneshot};

use crate::wake::Waker;

type Command = Box<dyn FnOnce(&mut World) + Send>;

/// Capacity of the mailbox, in commands not yet taken by the engine; senders wait while it is full.
const CAPACITY: usize = 1024;

/// The engine has stopped, or its thread has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct EngineGone;

/// No plugin of the engine takes commands of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this engine has no plugin that takes the command {command}")]
pub struct UnsupportedCommand {
    /// The command's type.
    pub command: &'static str,
}

/// Reason why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The engine has stopped.
    #[error(transparent)]
    Gone(#[from] EngineGone),
    /// The engine lacks the plugin.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedCommand),
}

/// The sending end of the mailbox; clones reach the same engine.
#[derive(Clone)]
pub struct EngineHandle {
    sender: mpsc::Sender<Command>,
    waker: Waker,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineHandle")
    }
}

impl EngineHandle {
    /// Sends a command to the feature that initialized its [`CommandQueue`], and waits until the feature has it.
    ///
    /// # Errors
    /// If the engine has stopped, or has no such feature.
    pub async fn send<C: Send + Sync + 'static>(&self, command: C) -> Result<(), SendError> {
        let (sender, receiver) = oneshot::channel();
        self.with_world(move |world| {
            let queue = world.get_resource_mut::<CommandQueue<C>>();
            let is_taken = queue.map(|mut queue| queue.0.push_back(command)).is_some();
            // The caller may have stopped waiting.
            let _ = sender.send(is_taken);
        })
        .await?;
        match receiver.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let name = std::any::type_name::<C>();
                let command = name.rsplit("::").next().unwrap_or(name);
                Err(UnsupportedCommand { command }.into())
            }
            Err(_) => Err(EngineGone.into()),
        }
    }

    /// Reserves a place in the mailbox, for a command that has to be sent without waiting, such as in a destructor. The
    /// place is occupied until then.
    ///
    /// # Errors
    /// Returns [`EngineGone`] if the engine has stopped.
    pub async fn reserve(&self) -> Result<ReservedPlace, EngineGone> {
        let permit = self.sender.clone().reserve_owned().await.map_err(|_| EngineGone)?;
        let waker = self.waker.clone();
        Ok(ReservedPlace { permit, waker })
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

/// A reserved place in the mailbox.
pub struct ReservedPlace {
    permit: mpsc::OwnedPermit<Command>,
    waker: Waker,
}

impl fmt::Debug for ReservedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReservedPlace")
    }
}

impl ReservedPlace {
    /// Sends a command. An engine that has stopped, or has no feature for the command, drops it.
    pub fn send<C: Send + Sync + 'static>(self, command: C) {
        self.permit.send(Box::new(move |world| {
            if let Some(mut queue) = world.get_resource_mut::<CommandQueue<C>>() {
                queue.0.push_back(command);
            }
        }));
        self.waker.wake();
    }
}

/// The receiving end, owned by the engine.
#[derive(Resource)]
pub(crate) struct Mailbox {
    receiver: mpsc::Receiver<Command>,
}

impl Mailbox {
    /// Creates a mailbox and its sending end.
    pub(crate) fn new(waker: Waker) -> (Self, EngineHandle) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { receiver }, EngineHandle { sender, waker })
    }

    /// Runs at most `max` commands; returns true if there may be more.
    pub(crate) fn deliver(world: &mut World, max: usize) -> bool {
        let mut commands = Vec::new();
        {
            let mut mailbox = world.resource_mut::<Self>();
            while commands.len() < max
                && let Ok(command) = mailbox.receiver.try_recv()
            {
                commands.push(command);
            }
        }
        let has_more = commands.len() == max;
        commands.into_iter().for_each(|command| command(world));
        has_more
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker as TaskWaker};

    use super::*;

    struct Known;
    struct Strange;

    fn send<C: Send + Sync + 'static>(world: &mut World, handle: &EngineHandle, command: C) -> Result<(), SendError> {
        let mut context = Context::from_waker(TaskWaker::noop());
        let mut sending = pin!(handle.send(command));
        assert_eq!(sending.as_mut().poll(&mut context), Poll::Pending);
        Mailbox::deliver(world, 10);
        match sending.poll(&mut context) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("the command was delivered"),
        }
    }

    #[test]
    fn a_command_that_no_plugin_takes_is_unsupported() {
        let (mailbox, handle) = Mailbox::new(Waker::none());
        let mut world = World::new();
        world.insert_resource(mailbox);
        world.init_resource::<CommandQueue<Known>>();
        assert_eq!(send(&mut world, &handle, Known), Ok(()));
        assert_eq!(world.resource::<CommandQueue<Known>>().0.len(), 1);
        let error = send(&mut world, &handle, Strange).unwrap_err();
        assert_eq!(error, UnsupportedCommand { command: "Strange" }.into());
        assert!(error.to_string().contains("Strange"), "{error}");
    }

    #[test]
    fn a_reserved_place_takes_a_command_at_once() {
        let (mailbox, handle) = Mailbox::new(Waker::none());
        let mut world = World::new();
        world.insert_resource(mailbox);
        world.init_resource::<CommandQueue<Known>>();
        let mut context = Context::from_waker(TaskWaker::noop());
        for _ in 0..2 {
            let Poll::Ready(Ok(place)) = pin!(handle.reserve()).poll(&mut context) else {
                panic!("there is room");
            };
            place.send(Known);
        }
        Mailbox::deliver(&mut world, 10);
        assert_eq!(world.resource::<CommandQueue<Known>>().0.len(), 2);
        let place = pin!(handle.reserve()).poll(&mut context);
        drop(world);
        let Poll::Ready(Ok(place)) = place else {
            panic!("there is room");
        };
        place.send(Known);
    }

    #[test]
    fn an_engine_that_ends_with_the_command_is_gone() {
        let (mailbox, handle) = Mailbox::new(Waker::none());
        let mut context = Context::from_waker(TaskWaker::noop());
        let mut sending = pin!(handle.send(Known));
        assert_eq!(sending.as_mut().poll(&mut context), Poll::Pending);
        drop(mailbox);
        assert_eq!(sending.poll(&mut context), Poll::Ready(Err(EngineGone.into())));
    }
}
