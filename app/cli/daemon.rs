//! `daemon`: a long-running engine that serves the other commands and other programs.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use ecs_torrent::automation::{self, Automation, AutomationSettings, Notices};
use ecs_torrent::config::{Config, ConfigError, ConfigFile};
use ecs_torrent::daemon::{Api, ApiAddress, Phase};
use ecs_torrent::{Engine, TorrentPlugins, Torrents};

use super::limits::LimitArgs;
use super::log::{Log, RotatingFile};
use super::output::{Screen, count};
use super::peers::{ListenArgs, address};
use super::signals::Signals;
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent daemon --download-dir /srv/torrents
  ecs-torrent daemon --config /etc/ecs-torrent.ron --state-dir /var/lib/ecs
  ecs-torrent add linux.torrent        in a second terminal, in the same folder

The daemon runs until SIGINT, SIGTERM, SIGHUP or `ecs-torrent shutdown`, then
stops all torrents gracefully. A second signal ends it within two seconds, with
exit code 1. `ecs-torrent config default` prints all settings.
/api/v1/openapi.json describes the HTTP API.")]
pub(super) struct DaemonArgs {
    /// Configuration file; command-line options override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Address of the HTTP API. Port 0 takes any free port. Default: 127.0.0.1:6880.
    #[arg(long, value_name = "IP:PORT", value_parser = address)]
    api: Option<SocketAddr>,
    /// Folder for the state of torrents and the API token. Default: .ecs_torrent in the current folder.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Download folder. Default: the current folder.
    #[arg(long, value_name = "DIR")]
    download_dir: Option<PathBuf>,
    /// Log file, which is renamed when it is full (log.max_bytes, log.max_files).
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
}

impl DaemonArgs {
    pub(super) fn config(self) -> Result<Config, ConfigError> {
        let file = self.config.as_deref().map(ConfigFile::read).transpose()?;
        let mut config = file.as_ref().map_or_else(|| Ok(Config::default()), ConfigFile::parse)?;
        self.listen
            .apply(&mut config.net, &mut config.dht, &mut config.lsd, &mut config.pex);
        self.limits.apply(&mut config.limits);
        config.api.listen = self.api.unwrap_or(config.api.listen);
        config.session.state_dir = self.state_dir.or(config.session.state_dir);
        config.storage.download_dir = self.download_dir.unwrap_or(config.storage.download_dir);
        config.log.file = self.log_file.or(config.log.file);
        match (config.check(), file) {
            (Ok(()), _) => Ok(config),
            (Err(error), Some(file)) => Err(file.place(error)),
            (Err(error), None) => Err(error),
        }
    }
}

pub(super) async fn run(args: DaemonArgs, screen: Screen, log: Option<&Log>) -> Result<Outcome, CliError> {
    let config = args.config()?;
    if let (Some(log), Some(path)) = (log, &config.log.file) {
        let file = RotatingFile::open(path, config.log.max_bytes, config.log.max_files);
        log.add_file(file.map_err(CliError::io(path.display().to_string()))?);
    }
    let mut signals = Signals::new()?;
    let state_dir = config.session.state_dir.clone().unwrap_or_default();
    check_api(config.api.listen, &state_dir)?;
    let mut builder = Engine::builder().plugins(TorrentPlugins).settings(config.settings());
    let mut notices = None;
    if let Some((plugin, receiver)) = automation::listen(&config.automation) {
        builder = builder.plugins(plugin);
        notices = Some(receiver);
    }
    let engine = builder.start()?;
    let torrents = engine.torrents();
    // The API answers clients while saved torrents are still being added.
    let folders = (state_dir.as_path(), config.storage.download_dir.as_path());
    let api = Api::start(&config.api, config.file_sections(), folders, torrents.clone()).await?;
    let peers: Vec<String> = engine.local_addresses().iter().map(ToString::to_string).collect();
    screen.line(format!(
        "API at http://{}, peers at {}",
        api.address(),
        peers.join(" and ")
    ));
    let mut automated = None;
    tokio::select! {
        result = run_engine(&torrents, &api, &config.automation, notices, &mut automated) => result?,
        () = signals.next() => {}
        () = api.shutdown_requested() => {}
    }
    let began = Instant::now();
    api.set_phase(Phase::Stopping);
    if let Some(automation) = &mut automated {
        automation.stop_watching();
    }
    let stop = async {
        if let Ok(list) = torrents.list().await {
            let count = count(list.len(), "torrent");
            tracing::info!(count = list.len(), "stopping all torrents");
            if screen.is_terminal() {
                let notice = format!("stopping {count}; Ctrl-C again ends at once\n");
                // A terminal that is stopped must not hold up the stop.
                std::thread::spawn(move || screen.log(notice.as_bytes()));
            }
        }
        torrents.stop_all_and_serialize().await
    };
    tokio::select! {
        result = stop => result?,
        () = signals.next() => return Err(CliError::Forced),
    }
    api.close().await;
    // The notices end with the engine.
    drop(engine);
    if let Some(automation) = automated {
        automation.close(close_time(began.elapsed())).await;
    }
    Ok(Outcome::Done)
}

/// Time from the signal to the end of the process, of which hooks and webhooks get the part that the stop of the
/// torrents leaves. The stop itself ends within 9 s by default, and container runtimes kill after 10 s.
const STOP_TIME: Duration = Duration::from_millis(9_500);

/// Time that hooks and webhooks get even if the stop took longer.
const LEAST_CLOSE_TIME: Duration = Duration::from_millis(300);

/// Returns the time that hooks and webhooks get after a stop that took `stop`.
fn close_time(stop: Duration) -> Duration {
    STOP_TIME.saturating_sub(stop).max(LEAST_CLOSE_TIME)
}

/// Refuses to start if another program, such as another daemon, listens on the API's address. A daemon with the same
/// state folder is a problem of its own, which the engine reports.
fn check_api(address: SocketAddr, state_dir: &Path) -> Result<(), CliError> {
    let has_daemon = ApiAddress::read(state_dir).is_ok_and(|found| found.is_alive());
    match bind_tcp(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && !has_daemon => Err(CliError::Other(format!(
            "cannot serve the API on {address}: another program, perhaps another daemon, uses this address; --api names \
             another one, `ecs-torrent doctor` checks what a daemon needs"
        ))),
        _ => Ok(()),
    }
}

/// Interval between two checks that the engine is alive.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Adds the saved torrents, starts the automation, and returns only when the engine has ended by itself. The daemon's
/// supervisor then starts the daemon again.
async fn run_engine(
    torrents: &Torrents,
    api: &Api,
    settings: &AutomationSettings,
    notices: Option<Notices>,
    automated: &mut Option<Automation>,
) -> Result<(), CliError> {
    let resumed = torrents.restore().await?;
    let started = Automation::start(settings, torrents, notices);
    *automated = Some(started.map_err(|error| CliError::Other(format!("webhooks: {error}")))?);
    tracing::info!(resumed, "running");
    api.set_phase(Phase::Running);
    loop {
        torrents.with_world(|_| ()).await?;
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Checks that an address is free.
pub(super) fn bind_tcp(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// README.md promises 10 s, and the longest stop of the torrents takes 9 s.
    #[test]
    fn hooks_do_not_prolong_a_stop_beyond_its_limit() {
        for stop in [0, 3, 9].map(Duration::from_secs) {
            assert!(stop + close_time(stop) < Duration::from_secs(10));
        }
        assert_eq!(close_time(Duration::from_secs(60)), LEAST_CLOSE_TIME);
    }
}
