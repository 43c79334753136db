//! Automation: watch folders, and programs and web servers that are notified of events.

mod hooks;
mod notices;
mod settings;
mod watching;
mod webhooks;

use ecs_torrent_components::settings::seconds;
use std::time::Duration;
use tokio::sync::mpsc::{Sender, channel};

use tokio::task::JoinSet;
use tokio::time::timeout;

use self::notices::Notice;
pub use self::notices::{NoticePlugin, Notices};
pub use self::settings::{AfterAdding, AutomationSettings, Hook, Occasion, WatchedFolder, Webhook};
use crate::torrents::Torrents;

/// The automation of a daemon. It ends at once when dropped.
#[derive(Debug)]
pub struct Automation {
    watchers: JoinSet<()>,
    /// Hooks and webhooks. They end with the engine, which holds the other end of their channel.
    listeners: JoinSet<()>,
}

/// Returns the plugin that sends notices of events, and the receiving end, if there are hooks or webhooks.
#[must_use]
pub fn listen(settings: &AutomationSettings) -> Option<(NoticePlugin, Notices)> {
    let is_used = !settings.hooks.is_empty() || !settings.webhooks.is_empty();
    is_used.then(|| notices::notices(settings.max_waiting_events))
}

/// A queue of notices for the hooks or for a webhook.
struct NoticeQueue {
    name: String,
    events: Vec<Occasion>,
    sender: Sender<Notice>,
}

impl NoticeQueue {
    fn send(&self, notice: &Notice) {
        if self.events.contains(&notice.event) && self.sender.try_send(notice.clone()).is_err() {
            tracing::warn!("an event was not passed to {}: too many are waiting", self.name);
        }
    }
}

impl Automation {
    /// Starts watching folders and passing on events. Call it when the torrents of the last run are listed.
    ///
    /// # Errors
    /// If no client of web servers can be created.
    pub fn start(
        settings: &AutomationSettings,
        torrents: &Torrents,
        notices: Option<Notices>,
    ) -> Result<Self, reqwest::Error> {
        let mut watchers = JoinSet::new();
        for folder in &settings.watch {
            watchers.spawn(watching::watch(folder.clone(), settings.clone(), torrents.clone()));
        }
        let mut listeners = JoinSet::new();
        if let Some(mut notices) = notices {
            let queues = queues(settings, &mut listeners)?;
            listeners.spawn(async move {
                while let Some(notice) = notices.0.recv().await {
                    queues.iter().for_each(|queue| queue.send(&notice));
                }
            });
        }
        Ok(Self { watchers, listeners })
    }

    /// Ends the watch folders. Call it before the torrents are stopped.
    pub fn stop_watching(&mut self) {
        self.watchers.abort_all();
    }

    /// Waits at most `time` until the events that have occurred are passed on. Call it when the engine is dropped.
    pub async fn close(mut self, time: Duration) {
        let passed_on = async { while self.listeners.join_next().await.is_some() {} };
        if timeout(time, passed_on).await.is_err() {
            tracing::warn!("hooks or webhooks did not end in time, and were ended");
        }
    }
}

/// Returns settings without secrets, for users.
pub(crate) fn without_secrets(settings: &AutomationSettings) -> AutomationSettings {
    webhooks::without_secrets(settings)
}

/// Starts the tasks of hooks and webhooks, and returns their queues.
fn queues(settings: &AutomationSettings, tasks: &mut JoinSet<()>) -> Result<Vec<NoticeQueue>, reqwest::Error> {
    let mut queues = Vec::new();
    if !settings.hooks.is_empty() {
        let (sender, receiver) = channel(settings.max_waiting_events);
        tasks.spawn(hooks::run(receiver, settings.clone()));
        queues.push(NoticeQueue {
            name: "the hooks".to_owned(),
            events: settings.hooks.iter().flat_map(|hook| hook.on.clone()).collect(),
            sender,
        });
    }
    if settings.webhooks.is_empty() {
        return Ok(queues);
    }
    let client = webhooks::client(seconds(settings.webhook_timeout_s))?;
    for webhook in &settings.webhooks {
        let (sender, receiver) = channel(settings.max_waiting_events);
        tasks.spawn(webhooks::run(receiver, webhook.clone(), client.clone()));
        queues.push(NoticeQueue {
            name: format!("the webhook {}", webhooks::shown(&webhook.url)),
            events: webhook.on.clone(),
            sender,
        });
    }
    Ok(queues)
}
