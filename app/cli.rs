//! The command line: commands, options, exit codes, and the conversion of results to output.

#[macro_use]
mod output;

mod choice;
#[cfg(feature = "daemon")]
mod client;
#[cfg(feature = "daemon")]
mod config;
mod create;
#[cfg(feature = "daemon")]
mod daemon;
mod demo;
#[cfg(feature = "daemon")]
mod doctor;
mod fetch;
#[cfg(feature = "daemon")]
mod labels;
mod limits;
mod log;
mod magnet;
mod peers;
mod placement;
mod searching;
mod show;
mod signals;
#[cfg(feature = "daemon")]
mod state;
mod torrent_file;
mod transfer;
mod verify;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use ecs_torrent::Error;
use ecs_torrent::engine::backends::StartError;
use ecs_torrent::folders::FolderError;
use ecs_torrent::making::MakeError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// A BitTorrent client.
#[derive(Debug, Parser)]
#[command(
    name = "ecs-torrent",
    version,
    about,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "\
Examples:
  ecs-torrent demo                              watch a download on this machine
  ecs-torrent download linux.torrent -o ~/iso   download, then seed until Ctrl-C
  ecs-torrent create ./album -o album.torrent   create a torrent
  ecs-torrent seed album.torrent --data .       seed existing data
  ecs-torrent daemon                            serve `add`, `list`, `stop`, ...

`ecs-torrent help COMMAND` describes a command. RUST_LOG=debug logs more.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download torrents, then seed them.
    Download(transfer::DownloadArgs),
    /// Check existing data, then seed it.
    Seed(transfer::SeedArgs),
    /// Show a torrent file's contents.
    Show(show::ShowArgs),
    /// Print a torrent file's magnet link.
    Magnet(magnet::MagnetArgs),
    /// Get a magnet link's torrent file from peers.
    Fetch(fetch::FetchArgs),
    /// Create a torrent from a file or folder.
    Create(create::CreateArgs),
    /// Verify files against a torrent.
    Verify(verify::VerifyArgs),
    /// Run a tracker, a seeder and a download in this process.
    Demo(demo::DemoArgs),
    /// Run an engine for the commands below and for other programs.
    #[cfg(feature = "daemon")]
    Daemon(daemon::DaemonArgs),
    /// Add torrents to the daemon.
    #[cfg(feature = "daemon")]
    Add(client::AddArgs),
    /// List the daemon's torrents.
    #[cfg(feature = "daemon")]
    List(client::listing::ListArgs),
    /// Show a torrent's state.
    #[cfg(feature = "daemon")]
    Stats(client::StatsArgs),
    /// List a torrent's files.
    #[cfg(feature = "daemon")]
    Files(client::FilesArgs),
    /// Play a file of a torrent while it is downloaded.
    #[cfg(feature = "daemon")]
    Play(client::reading::PlayArgs),
    /// Print a file of a torrent while it is downloaded.
    #[cfg(feature = "daemon")]
    Cat(client::reading::CatArgs),
    /// List and add peers of a torrent.
    #[cfg(feature = "daemon")]
    Peers(client::peers::PeersArgs),
    /// List, add, remove and announce to a torrent's trackers.
    #[cfg(feature = "daemon")]
    Trackers(client::trackers::TrackersArgs),
    /// Refuse peers by their addresses, or list the blocked ones.
    #[cfg(feature = "daemon")]
    Block(client::blocking::BlockArgs),
    /// Accept blocked peers again.
    #[cfg(feature = "daemon")]
    Unblock(client::blocking::UnblockArgs),
    /// Limit the transfer rates of a torrent of the daemon, and how much it seeds.
    #[cfg(feature = "daemon")]
    Limit(client::limits::LimitArgs),
    /// Show or change the order in which torrents of the daemon run.
    #[cfg(feature = "daemon")]
    Queue(client::queue::QueueArgs),
    /// Label a torrent of the daemon, or set its category.
    #[cfg(feature = "daemon")]
    Label(client::labels::LabelArgs),
    /// Pause a torrent of the daemon, or all.
    #[cfg(feature = "daemon")]
    Pause(client::PauseArgs),
    /// Start a paused or failed torrent of the daemon, or all.
    #[cfg(feature = "daemon")]
    Start(client::StartArgs),
    /// Check all data of a torrent of the daemon again.
    #[cfg(feature = "daemon")]
    Recheck(client::rechecking::RecheckArgs),
    /// Move the files of a torrent of the daemon to another folder.
    #[cfg(feature = "daemon")]
    Move(client::moving::MoveArgs),
    /// Rename files of a torrent of the daemon, or its folder.
    #[cfg(feature = "daemon")]
    Rename(client::renaming::RenameArgs),
    /// Say that the files of a torrent of the daemon are in another folder now.
    #[cfg(feature = "daemon")]
    Relocate(client::moving::RelocateArgs),
    /// Stop a torrent of the daemon, or all, gracefully.
    #[cfg(feature = "daemon")]
    Stop(client::StopArgs),
    /// Resume a stopped torrent of the daemon, or all.
    #[cfg(feature = "daemon")]
    Resume(client::ResumeArgs),
    /// Stop a torrent of the daemon and delete its state.
    #[cfg(feature = "daemon")]
    Remove(client::RemoveArgs),
    /// Stop the daemon.
    #[cfg(feature = "daemon")]
    Shutdown(client::ShutdownArgs),
    /// Ask the daemon's DHT node: its state, peers, items.
    #[cfg(feature = "daemon")]
    Dht(client::dht::DhtArgs),
    /// Read or change settings of the daemon, or check a configuration file.
    #[cfg(feature = "daemon")]
    Config(config::ConfigArgs),
    /// Export or import all state in one archive.
    #[cfg(feature = "daemon")]
    State(state::StateArgs),
    /// Check folders, ports, limits and the daemon, and say what to do.
    #[cfg(feature = "daemon")]
    Doctor(doctor::DoctorArgs),
    /// Print a shell completion script.
    #[command(after_help = "Example:\n  ecs-torrent completions bash > /etc/bash_completion.d/ecs-torrent")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    #[command(after_help = "\
Examples:
  ecs-torrent man > ecs-torrent.1               the page of the program
  ecs-torrent man --dir /usr/share/man/man1     and one page for each command")]
    Man {
        /// Folder for all pages. Default: the program's page goes to standard output.
        #[arg(long, value_name = "DIR")]
        dir: Option<std::path::PathBuf>,
    },
}

impl Command {
    /// Whether only errors are printed.
    fn is_quiet(&self) -> bool {
        match self {
            Self::Download(args) => args.is_quiet(),
            Self::Seed(args) => args.is_quiet(),
            Self::Fetch(args) => args.quiet,
            _ => false,
        }
    }
}

/// Result of a command that ran without an error of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The command succeeded.
    Done,
    /// The command failed, and has printed why.
    Failed,
    /// A signal interrupted the command, which has printed a message.
    Interrupted,
}

/// Exit codes of the process.
struct ExitCodes;

impl ExitCodes {
    const DONE: u8 = 0;
    const FAILED: u8 = 1;
    // clap reports most usage errors, with the same code.
    const USAGE: u8 = 2;
    const INTERRUPTED: u8 = 7;
}

/// Error of a command; printed as one line.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Torrent(#[from] Error),
    #[error("{0}{advice}", advice = start_advice(.0))]
    Start(#[from] StartError),
    #[error(transparent)]
    Make(#[from] MakeError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Config(#[from] ecs_torrent::config::ConfigError),
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Api(#[from] ecs_torrent::daemon::ApiError),
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Archive(#[from] ecs_torrent::archive::ArchiveError),
    /// The failed operation, and the reason.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("interrupted")]
    Interrupted,
    #[cfg(feature = "daemon")]
    #[error("ended by a second signal: unsaved progress is lost")]
    Forced,
    /// An invalid command line. Ends the process as clap's own usage errors do.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

/// Returns the options that help where an engine cannot start.
fn start_advice(error: &StartError) -> &'static str {
    match error {
        StartError::StateDirInUse { .. } if cfg!(feature = "daemon") => {
            "; if that is a daemon, `ecs-torrent add` gives it a torrent; --state-dir names another folder"
        }
        StartError::StateDirInUse { .. } => "; --state-dir names another folder",
        _ => "",
    }
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Torrent(Error::Magnet(_))
            | Self::Make(MakeError::PieceLength(_) | MakeError::Url { .. }) => ExitCodes::USAGE,
            _ => ExitCodes::FAILED,
        }
    }

    /// Adds the subject to an I/O error.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

/// Runs the command line and returns the exit code: 0 done, 1 failed, 2 usage, 7 interrupted.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to the standard output.
        Err(message) if !message.use_stderr() => {
            output::check_output(message.print().and_then(|()| std::io::stdout().flush()));
            return ExitCode::SUCCESS;
        }
        Err(mistake) => return report_usage(&mistake),
    };
    let screen = output::Screen::default();
    let log = start_log(&screen, if cli.command.is_quiet() { "error" } else { "warn" });
    raise_descriptor_limit();
    let result = match cli.command {
        Command::Download(args) => block_on(transfer::download(args, screen)),
        Command::Seed(args) => block_on(transfer::seed(args, screen)),
        Command::Demo(args) => block_on(demo::run(args, screen)),
        Command::Show(args) => show::run(&args),
        Command::Magnet(args) => magnet::run(&args, &screen),
        Command::Fetch(args) => block_on(fetch::run(args, screen)),
        Command::Create(args) => create::run(args, &screen),
        Command::Verify(args) => verify::run(&args, &screen),
        #[cfg(feature = "daemon")]
        Command::Daemon(args) => block_on(daemon::run(args, screen, log.as_ref().ok())),
        #[cfg(feature = "daemon")]
        Command::Add(args) => block_on(client::add(args)),
        #[cfg(feature = "daemon")]
        Command::List(args) => block_on(client::listing::run(args)),
        #[cfg(feature = "daemon")]
        Command::Stats(args) => block_on(client::stats(args)),
        #[cfg(feature = "daemon")]
        Command::Dht(args) => block_on(client::dht::run(args, screen)),
        #[cfg(feature = "daemon")]
        Command::Files(args) => block_on(client::files(args)),
        #[cfg(feature = "daemon")]
        Command::Play(args) => block_on(client::reading::play(args)),
        #[cfg(feature = "daemon")]
        Command::Cat(args) => block_on(client::reading::cat(args)),
        #[cfg(feature = "daemon")]
        Command::Peers(args) => block_on(client::peers::run(args)),
        #[cfg(feature = "daemon")]
        Command::Block(args) => block_on(client::blocking::block(args)),
        #[cfg(feature = "daemon")]
        Command::Unblock(args) => block_on(client::blocking::unblock(args)),
        #[cfg(feature = "daemon")]
        Command::Trackers(args) => block_on(client::trackers::run(args)),
        #[cfg(feature = "daemon")]
        Command::Limit(args) => block_on(client::limits::run(args)),
        #[cfg(feature = "daemon")]
        Command::Queue(args) => block_on(client::queue::run(args)),
        #[cfg(feature = "daemon")]
        Command::Label(args) => block_on(client::labels::run(args)),
        #[cfg(feature = "daemon")]
        Command::Pause(args) => block_on(client::pause(args)),
        #[cfg(feature = "daemon")]
        Command::Start(args) => block_on(client::start(args)),
        #[cfg(feature = "daemon")]
        Command::Recheck(args) => block_on(client::rechecking::run(args)),
        #[cfg(feature = "daemon")]
        Command::Move(args) => block_on(client::moving::run(args)),
        #[cfg(feature = "daemon")]
        Command::Rename(args) => block_on(client::renaming::run(args)),
        #[cfg(feature = "daemon")]
        Command::Relocate(args) => block_on(client::moving::relocate(args)),
        #[cfg(feature = "daemon")]
        Command::Stop(args) => block_on(client::stop(args)),
        #[cfg(feature = "daemon")]
        Command::Resume(args) => block_on(client::resume(args)),
        #[cfg(feature = "daemon")]
        Command::Remove(args) => block_on(client::remove(args)),
        #[cfg(feature = "daemon")]
        Command::Shutdown(args) => block_on(client::shutdown(args)),
        #[cfg(feature = "daemon")]
        Command::Config(args) => block_on(config::run(args)),
        #[cfg(feature = "daemon")]
        Command::State(args) => block_on(state::run(args, screen)),
        #[cfg(feature = "daemon")]
        Command::Doctor(args) => block_on(doctor::run(args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ecs-torrent", &mut script);
            output::print(format_args!("{}", String::from_utf8_lossy(&script)));
            Ok(Outcome::Done)
        }
        Command::Man { dir } => write_manual(dir.as_deref()),
    };
    if let Ok(log) = log {
        log.close();
    }
    match result {
        Ok(Outcome::Done) => ExitCodes::DONE,
        Ok(Outcome::Failed) => ExitCodes::FAILED,
        Ok(Outcome::Interrupted) => ExitCodes::INTERRUPTED,
        Err(error) => {
            output::error(&error);
            error.exit_code()
        }
    }
    .into()
}

/// Writes the manual pages of all commands to a folder, or the program's page to standard output.
fn write_manual(dir: Option<&std::path::Path>) -> Result<Outcome, CliError> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
                .map_err(CliError::io(dir.display().to_string()))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(CliError::io("the manual page"))?;
            output::print(format_args!("{}", String::from_utf8_lossy(&page)));
        }
    }
    Ok(Outcome::Done)
}

/// Prints a usage error on one line, with an example of the command if an argument is missing.
fn report_usage(mistake: &clap::Error) -> ExitCode {
    if mistake.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // There is no other place to report that this failed.
        let _ = mistake.print();
        return ExitCodes::USAGE.into();
    }
    let mut line = one_line(&mistake.to_string());
    let is_incomplete = mistake.kind() == ErrorKind::MissingRequiredArgument;
    let example = || first_example(std::env::args().skip(1));
    if let Some(example) = is_incomplete.then(example).flatten() {
        line = format!("{line}; example: {example}");
    }
    output::error(&line);
    ExitCodes::USAGE.into()
}

/// Returns the error and the tip of clap's text, without the usage and the reference to `--help`.
fn one_line(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let lines = text.lines().map(str::trim);
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let mut joined = String::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let separator = match line {
            _ if joined.is_empty() => "",
            line if line.starts_with("tip:") => "; ",
            _ => " ",
        };
        joined.push_str(separator);
        joined.push_str(line);
    }
    joined
}

/// Returns the first example in the help of the command that the arguments begin with, without the rest of its line.
fn first_example(arguments: impl Iterator<Item = String>) -> Option<String> {
    let root = Cli::command();
    let mut command = &root;
    for argument in arguments {
        let Some(inner) = command.find_subcommand(argument) else {
            break;
        };
        command = inner;
    }
    let help = command
        .get_after_help()
        .filter(|_| !std::ptr::eq(command, &raw const root))?
        .to_string();
    let example = help
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("ecs-torrent "))?;
    example.split("  ").next().map(ToOwned::to_owned)
}

fn block_on(work: impl Future<Output = Result<Outcome, CliError>>) -> Result<Outcome, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(CliError::io("cannot start"))?;
    let result = runtime.block_on(work);
    // Its remaining tasks, such as waiting for a second signal, do not keep the command from ending.
    runtime.shutdown_background();
    result
}

/// Raises the limit on open files to the system's maximum. Most systems start programs with a low limit, for
/// compatibility.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Starts logging lines of this level or a worse one to the standard error stream, above the progress bars. If the
/// log's thread cannot be started, nothing is logged.
fn start_log(screen: &output::Screen, level: &str) -> std::io::Result<log::Log> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) => EnvFilter::try_new(&text).map_err(|error| (text, error)),
        Err(_) => Ok(EnvFilter::new(level)),
    };
    let filter = filter.unwrap_or_else(|(text, error)| {
        let text = output::printable(&text);
        screen.warning(format_args!("RUST_LOG={text}: {error}; logging warnings only"));
        EnvFilter::new("warn")
    });
    let screen = screen.clone();
    let is_terminal = std::io::stderr().is_terminal();
    let time = log::LineTime { is_shown: !is_terminal };
    let repeats = log::Repeats::default();
    let log = log::Log::start(time, repeats.clone(), move |line| screen.log(line))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(log.clone())
        .with_ansi(is_terminal)
        .with_target(false)
        .with_timer(time);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines.with_filter(repeats))
        .init();
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_missing_argument_shows_an_example_of_its_command() {
        let example = |words: &str| first_example(words.split(' ').map(ToOwned::to_owned));
        assert_eq!(example("magnet").unwrap(), "ecs-torrent magnet linux.torrent");
        assert_eq!(
            example("config check").unwrap(),
            "ecs-torrent config check /etc/ecs-torrent.ron"
        );
        assert_eq!(
            example("config").unwrap(),
            "ecs-torrent config default > ecs-torrent.ron"
        );
        assert_eq!(example("--nonsense"), None);
    }

    #[test]
    fn usage_errors_take_one_line() {
        let refusal = |words: &str| {
            let error = Cli::try_parse_from(format!("ecs-torrent {words}").split(' ')).unwrap_err();
            one_line(&error.to_string())
        };
        assert_eq!(
            refusal("list --stoppd"),
            "unexpected argument '--stoppd' found; tip: a similar argument exists: '--stopped'"
        );
        assert_eq!(
            refusal("seed"),
            "the following required arguments were not provided: --data <DIR> <TORRENT>..."
        );
        assert_eq!(
            refusal("block x"),
            "invalid value 'x' for '[IP[/PREFIX]]...': \"x\" is not an IP address, nor a network such as 192.0.2.0/24"
        );
        assert!(refusal("nonsense").starts_with("unrecognized subcommand 'nonsense'"));
    }

    /// clap wraps lines that are longer than the terminal, which destroys their layout.
    #[test]
    fn help_fits_the_narrowest_usual_terminal() {
        let root = Cli::command();
        for command in std::iter::once(&root).chain(root.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }
}
