//! Settings of watch folders, hooks and webhooks.

use std::path::PathBuf;

use ecs_torrent_components::setting_ranges;
use serde::{Deserialize, Serialize};
use url::Url;

/// Watch folders, hooks and webhooks. Only this file sets them, because hooks run programs: clients of the API cannot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutomationSettings {
    /// Folders whose torrent files (`.torrent`) and magnet links (`.magnet`, a text file with a link) are added, such
    /// as `(path: "/srv/watch", then: Delete, category: "linux")`. Default none.
    pub watch: Vec<WatchedFolder>,
    /// Time between two scans of a watch folder. A file is added once it did not change between two scans. Default 5 s.
    pub watch_interval_s: u64,
    /// Maximum number of files in a watch folder that are examined; others wait until there are fewer. Default 10,000.
    pub max_watched_files: usize,
    /// Programs that run at events, such as `(on: [Completed], program: "/usr/local/bin/sort-downloads")`: without a
    /// shell, with the event in their environment (`ECS_TORRENT_EVENT`, `_HASH`, `_NAME`, `_FOLDER`, `_SIZE`,
    /// `_CATEGORY`, `_LABELS`). Their output goes to the log. Default none.
    pub hooks: Vec<Hook>,
    /// Time after which a program and its child processes are killed. Default 60 s.
    pub hook_timeout_s: u64,
    /// Maximum number of programs that run at a time. Default 4.
    pub max_running_hooks: usize,
    /// Requests at events, such as `(on: [Added, Completed], url: "http://nas.local:8123/hook")`: a POST of the event
    /// as JSON. Default none.
    pub webhooks: Vec<Webhook>,
    /// Time for a web server to answer. Three attempts are made. Default 10 s.
    pub webhook_timeout_s: u64,
    /// Events that may wait for the hooks, and for each webhook. Beyond it, events are not passed on, and the log says
    /// how many. Default 10,000.
    pub max_waiting_events: usize,
}

setting_ranges!(AutomationSettings, "automation" {
    watch_interval_s: 1..=3600,
    max_watched_files: 1..=1_000_000,
    hook_timeout_s: 1..=86_400,
    max_running_hooks: 1..=64,
    webhook_timeout_s: 1..=300,
    max_waiting_events: 1..=1_000_000,
});

impl Default for AutomationSettings {
    fn default() -> Self {
        Self {
            watch: Vec::new(),
            watch_interval_s: 5,
            max_watched_files: 10_000,
            hooks: Vec::new(),
            hook_timeout_s: 60,
            max_running_hooks: 4,
            webhooks: Vec::new(),
            webhook_timeout_s: 10,
            max_waiting_events: 10_000,
        }
    }
}

/// A folder whose files are added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchedFolder {
    /// The folder.
    pub path: PathBuf,
    /// The fate of a file whose torrent was added.
    pub then: AfterAdding,
    /// The download folder of the torrents, if it is another one than theirs by the other settings.
    pub folder: Option<PathBuf>,
    /// The category of the torrents.
    pub category: Option<String>,
    /// Labels of the torrents.
    pub labels: Vec<String>,
}

/// The fate of a watched file whose torrent was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterAdding {
    /// The file gets `.added` at the end of its name.
    #[default]
    Rename,
    /// The file is deleted.
    Delete,
}

/// An event of which hooks and webhooks are notified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Occasion {
    /// A torrent was added. Torrents of earlier runs are not added again.
    Added,
    /// The last wanted data of a torrent has been downloaded.
    Completed,
    /// A torrent was removed.
    Removed,
}

impl Occasion {
    /// Returns the name for programs and servers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Completed => "completed",
            Self::Removed => "removed",
        }
    }
}

/// A program that runs at events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hook {
    /// The events.
    pub on: Vec<Occasion>,
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// A web server that gets a request at events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhook {
    /// The events.
    pub on: Vec<Occasion>,
    /// The address, of `http` or `https`.
    pub url: String,
    /// A secret that the request carries as `Authorization: Bearer …`.
    pub token: Option<String>,
}

impl AutomationSettings {
    /// Returns the name of the first setting that cannot work, with the reason.
    pub(crate) fn fault(&self) -> Option<(&'static str, String)> {
        self.watch_fault()
            .map(|reason| ("watch", reason))
            .or_else(|| self.hook_fault().map(|reason| ("hooks", reason)))
            .or_else(|| self.webhook_fault().map(|reason| ("webhooks", reason)))
    }

    fn watch_fault(&self) -> Option<String> {
        let mut earlier: Vec<&PathBuf> = Vec::new();
        for WatchedFolder { path, .. } in &self.watch {
            if path.as_os_str().is_empty() {
                return Some("a watch folder has no path".to_owned());
            }
            if earlier.contains(&path) {
                return Some(format!("{} is there twice", path.display()));
            }
            earlier.push(path);
        }
        None
    }

    fn hook_fault(&self) -> Option<String> {
        self.hooks.iter().find_map(|Hook { on, program, .. }| {
            let shown = program.display();
            match (program.is_absolute(), on.is_empty()) {
                (false, _) => Some(format!("\"{shown}\" is not an absolute path")),
                (true, true) => Some(format!("{shown} has no event (on: [Added, Completed, Removed])")),
                (true, false) => None,
            }
        })
    }

    fn webhook_fault(&self) -> Option<String> {
        self.webhooks
            .iter()
            .find_map(|Webhook { on, url, .. }| match (Url::parse(url), on.is_empty()) {
                (Err(error), _) => Some(format!("\"{url}\": {error}")),
                (Ok(url), _) if !matches!(url.scheme(), "http" | "https") => {
                    Some(format!("\"{url}\" is neither of http nor of https"))
                }
                (Ok(_), true) => Some(format!("\"{url}\" has no event (on: [Added, Completed, Removed])")),
                (Ok(_), false) => None,
            })
    }
}
