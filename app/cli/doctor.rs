//! `doctor`: checks a daemon's environment, and gives advice on problems.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use console::style;
use ecs_torrent::config::Config;
use ecs_torrent::daemon::ApiAddress;
use indicatif::HumanBytes;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::Value;

use super::client::DaemonAddress;
use super::client::connection::Daemon;
use super::daemon::{DaemonArgs, bind_tcp};
use super::output::{self, printable};
use super::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent doctor
  ecs-torrent doctor --config /etc/ecs-torrent.ron
  ecs-torrent doctor --json | jq '.[] | select(.verdict == \"problem\")'

Takes the options of `daemon`, and checks what a daemon with them would need:
the configuration, folders, disk space, ports, the limit on open files and the
clock; and the daemon itself, if one runs. Changes nothing. The exit code is 1
if there is a problem.")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Warning,
    Problem,
}

/// The result of a check.
#[derive(Debug, Serialize)]
struct Finding {
    /// The part that was checked.
    area: &'static str,
    verdict: Verdict,
    /// The state, human-readable.
    text: String,
    /// Advice for the user, if there is any.
    advice: Option<String>,
}

/// The results of all checks, in order.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, area: &'static str, text: impl Into<String>) {
        self.add(area, Verdict::Good, text, None);
    }

    fn warn(&mut self, area: &'static str, text: impl Into<String>, advice: impl Into<String>) {
        self.add(area, Verdict::Warning, text, Some(advice.into()));
    }

    fn fail(&mut self, area: &'static str, text: impl Into<String>, advice: impl Into<String>) {
        self.add(area, Verdict::Problem, text, Some(advice.into()));
    }

    fn add(&mut self, area: &'static str, verdict: Verdict, text: impl Into<String>, advice: Option<String>) {
        let text = printable(&text.into());
        self.0.push(Finding {
            area,
            verdict,
            text,
            advice,
        });
    }

    fn print(&self) {
        for Finding {
            area,
            verdict,
            text,
            advice,
        } in &self.0
        {
            let mark = match verdict {
                Verdict::Good => style("good   ").green(),
                Verdict::Warning => style("warning").yellow(),
                Verdict::Problem => style("problem").red(),
            };
            let mut lines = wrapped(&format!("{area}: {text}")).into_iter();
            say!("{mark}  {}", lines.next().unwrap_or_default());
            for line in lines.chain(advice.iter().flat_map(|advice| wrapped(advice))) {
                say!("{:INDENT$}{line}", "");
            }
        }
    }
}

/// Number of columns before the text of a finding.
const INDENT: usize = 9;

/// Returns the lines of a text, which is wrapped at words to the width of the terminal, if there is one.
fn wrapped(text: &str) -> Vec<String> {
    let width = output::width().map_or(usize::MAX, |width| width.saturating_sub(INDENT).max(INDENT));
    let lines = textwrap::wrap(text, width).into_iter();
    lines.map(std::borrow::Cow::into_owned).collect()
}

/// The folders of a running daemon: the daemon's own settings count, not those that the doctor has read.
struct DaemonFolders {
    /// The folder in which the daemon runs, to which its paths may be relative.
    current: PathBuf,
    storage: Value,
}

impl DaemonFolders {
    async fn ask(state_dir: &Path, daemon: &ApiAddress) -> Option<Self> {
        let place = DaemonAddress {
            api: None,
            state_dir: state_dir.to_owned(),
        };
        let path = super::client::settings::PATH;
        let mut settings = Daemon::find(&place).ok()?.get(path).await.ok()?;
        Some(Self {
            current: fs::read_link(format!("/proc/{}/cwd", daemon.process)).unwrap_or_default(),
            storage: settings["settings"]["storage"].take(),
        })
    }

    fn get(&self, name: &str) -> Option<PathBuf> {
        Some(self.current.join(self.storage[name].as_str()?))
    }
}

pub(super) async fn run(args: DoctorArgs) -> Result<Outcome, CliError> {
    let is_json = args.json;
    let mut findings = Findings::default();
    match args.daemon.config() {
        Ok(config) => {
            findings.good("configuration", "all settings can be used");
            examine(&config, &mut findings).await;
        }
        Err(error) => findings.fail(
            "configuration",
            error.to_string(),
            "`ecs-torrent config default` shows all settings",
        ),
    }
    if is_json {
        output::print_json(&findings.0);
    } else {
        findings.print();
    }
    let has_problem = findings.0.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if has_problem { Outcome::Failed } else { Outcome::Done })
}

async fn examine(config: &Config, findings: &mut Findings) {
    let state_dir = config.session.state_dir.clone().unwrap_or_default();
    let running = ApiAddress::read(&state_dir).ok().filter(ApiAddress::is_alive);
    check_folder("state folder", &state_dir, "--state-dir names another one", findings);
    let asked = match &running {
        Some(daemon) => DaemonFolders::ask(&state_dir, daemon).await,
        None => None,
    };
    let (download_dir, incomplete_dir) = match &asked {
        Some(folders) => (folders.get("download_dir"), folders.get("incomplete_dir")),
        None => (None, config.storage.incomplete_dir.clone()),
    };
    check_folder(
        "download folder",
        download_dir.as_ref().unwrap_or(&config.storage.download_dir),
        "--download-dir names another one",
        findings,
    );
    if let Some(folder) = incomplete_dir {
        let area = "folder for incomplete torrents";
        check_folder(area, &folder, "storage.incomplete_dir names another one", findings);
    }
    for category in &config.labels.categories {
        let folder = config.storage.download_dir.join(&category.folder);
        check_folder(
            "category folder",
            &folder,
            "labels.categories names another one",
            findings,
        );
    }
    for watched in &config.automation.watch {
        check_folder(
            "watch folder",
            &watched.path,
            "automation.watch names another one",
            findings,
        );
    }
    match running {
        Some(address) => check_daemon(&state_dir, address, findings).await,
        None => check_ports(config, findings),
    }
    check_descriptors(config, findings);
    check_clock(&state_dir, findings);
}

/// Free space below which a warning is given.
const LITTLE_SPACE: u64 = 1 << 30;

/// Checks that a folder, or the nearest one above it that exists, can be written to and has space.
fn check_folder(area: &'static str, folder: &Path, other: &str, findings: &mut Findings) {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let shown = absolute.display();
    let Some(existing) = absolute.ancestors().find(|path| path.exists()) else {
        return findings.fail(area, format!("{shown}: nothing of this path exists"), other);
    };
    if !existing.is_dir() {
        let text = format!("{shown}: {} is not a folder", existing.display());
        return findings.fail(area, text, other);
    }
    // The file has no name, so that no other program sees it.
    if let Err(error) = tempfile::tempfile_in(existing) {
        let text = format!("{shown}: {} cannot be written to: {error}", existing.display());
        return findings.fail(area, text, format!("give its user the right to write there; {other}"));
    }
    let space = rustix::fs::statvfs(existing).map(|system| system.f_bavail.saturating_mul(system.f_frsize));
    let will_be = if existing == absolute { "" } else { ", will be created" };
    match space {
        Ok(free) if free < LITTLE_SPACE => {
            let text = format!("{shown}: only {} are free", HumanBytes(free));
            findings.warn(
                area,
                text,
                "downloads are blocked while the disk is full, and continue by themselves",
            );
        }
        Ok(free) => findings.good(area, format!("{shown}{will_be}, {} free", HumanBytes(free))),
        Err(error) => findings.warn(area, format!("{shown}: the free space is not known: {error}"), ""),
    }
}

/// Checks that the addresses are free. Ports that the system chooses always are.
fn check_ports(config: &Config, findings: &mut Findings) {
    let is_fixed = |address: &&SocketAddr| address.port() != 0;
    for address in config.net.listen.iter().filter(is_fixed) {
        let bound = bind_tcp(*address).and_then(|()| UdpSocket::bind(address).map(drop));
        match bound {
            Ok(()) => findings.good("port for peers", format!("{address} is free, by TCP and UDP")),
            Err(error) if config.net.listen_fallback && error.kind() == io::ErrorKind::AddrInUse => {
                let text = format!("{address}: {}; the daemon takes another port", in_words(&error));
                findings.warn(
                    "port for peers",
                    text,
                    "a router that forwards this port would not reach the daemon",
                );
            }
            Err(error) => refuse("port for peers", *address, &error, "--listen", findings),
        }
    }
    if let Some(address) = Some(&config.api.listen).filter(is_fixed) {
        match bind_tcp(*address) {
            Ok(()) => findings.good("port of the API", format!("{address} is free")),
            Err(error) => refuse("port of the API", *address, &error, "--api", findings),
        }
    }
    findings.good("daemon", "none runs in this state folder");
}

fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program uses it".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".to_owned(),
        io::ErrorKind::PermissionDenied => "only root may use ports below 1024".to_owned(),
        _ => error.to_string(),
    }
}

fn refuse(area: &'static str, address: SocketAddr, error: &io::Error, option: &str, findings: &mut Findings) {
    let advice = format!("end that program, or name another address with {option}");
    findings.fail(area, format!("{address}: {}", in_words(error)), advice);
}

/// Checks that the limit on open files suffices for connections and files.
fn check_descriptors(config: &Config, findings: &mut Findings) {
    let needed = config.peers.max_connections + config.storage.max_open_files + 2 * config.api.max_connections + 64;
    let needed = needed as u64;
    // The program raises its own limit up to the maximum when it starts.
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < needed => {
            let text = format!("at most {limit}, and up to {needed} are needed");
            let advice = "raise it (ulimit -Hn, LimitNOFILE= of systemd), or lower peers.max_connections";
            findings.warn("open files", text, advice);
        }
        limit => {
            let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("at most {limit}"));
            findings.good("open files", format!("{limit}, up to {needed} are needed"));
        }
    }
}

/// A date before which no version of this program existed: 2025-01-01.
const EARLIEST: Duration = Duration::from_secs(1_735_689_600);

/// Time by which a file may be newer than the clock: file systems of other machines have clocks of their own.
const LEEWAY: Duration = Duration::from_secs(60);

/// Checks that the clock is not far in the past, without asking another host.
fn check_clock(state_dir: &Path, findings: &mut Findings) {
    let advice =
        "set the clock, for example with timedatectl set-ntp true: certificates of HTTPS trackers depend on it";
    let now = SystemTime::now();
    if now < SystemTime::UNIX_EPOCH + EARLIEST {
        return findings.fail("clock", "it shows a date before this program was written", advice);
    }
    let newest = newest_file(state_dir);
    if let Some((path, ahead)) = newest.and_then(|(path, modified)| Some((path, modified.duration_since(now).ok()?)))
        && ahead > LEEWAY
    {
        let text = format!("{} was written {} s in the future", path.display(), ahead.as_secs());
        return findings.warn("clock", text, advice);
    }
    findings.good("clock", "no file of the state folder is newer");
}

/// Returns the newest file of the state folder itself.
fn newest_file(state_dir: &Path) -> Option<(PathBuf, SystemTime)> {
    let entries = fs::read_dir(state_dir).ok()?.filter_map(Result::ok);
    let files = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?)));
    files.max_by_key(|(_, modified)| *modified)
}

/// Asks the running daemon for its health.
async fn check_daemon(state_dir: &Path, address: ApiAddress, findings: &mut Findings) {
    let place = DaemonAddress {
        api: None,
        state_dir: state_dir.to_owned(),
    };
    let asked = async {
        let daemon = Daemon::find(&place)?;
        let health = daemon.get("/api/v1/health").await?;
        let dht = daemon.get("/api/v1/dht").await.ok();
        let faulty = daemon
            .get("/api/v1/torrents?error=true&limit=5&fields=name,error")
            .await?;
        Ok::<_, CliError>((health, dht, faulty))
    };
    let (health, dht, faulty) = match asked.await {
        Ok(answers) => answers,
        Err(error) => {
            let text = format!("process {} does not answer: {error}", address.process);
            return findings.fail(
                "daemon",
                text,
                "look into its log; end it with SIGTERM and start it again",
            );
        }
    };
    let status = health["status"].as_str().unwrap_or("unknown");
    findings.good(
        "daemon",
        format!(
            "process {} is {status}, its API is at {}",
            address.process, address.address
        ),
    );
    for torrent in faulty.as_array().into_iter().flatten() {
        let word = |name: &str| torrent[name].as_str().unwrap_or_default().to_owned();
        findings.warn(
            "torrent",
            format!("{}: {}", word("name"), word("error")),
            "`ecs-torrent start` tries it again",
        );
    }
    check_dht(dht.as_ref(), findings);
}

fn check_dht(dht: Option<&Value>, findings: &mut Findings) {
    let Some(dht) = dht else { return };
    let count = |family: &str| dht[family]["nodes"].as_u64();
    let counts = [("IPv4", count("ipv4")), ("IPv6", count("ipv6"))];
    let known: Vec<String> = counts
        .iter()
        .filter_map(|(family, nodes)| Some(format!("{} of {family}", (*nodes)?)))
        .collect();
    if known.is_empty() {
        return findings.good("DHT", "off");
    }
    let text = format!("knows {} nodes", known.join(" and "));
    match counts.iter().any(|(_, nodes)| nodes.is_some_and(|nodes| nodes > 0)) {
        true => findings.good("DHT", text),
        false => {
            let advice =
                "let UDP through the firewall on the port for peers; dht.bootstrap or --dht-node names first nodes";
            findings.warn("DHT", text, advice);
        }
    }
}
