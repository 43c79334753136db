//! The command line: what can be asked, and how it is answered.

#[macro_use]
mod output;

#[cfg(feature = "daemon")]
mod client;
#[cfg(feature = "daemon")]
mod config;
mod create;
#[cfg(feature = "daemon")]
mod daemon;
mod demo;
mod log;
mod placement;
mod show;
mod signals;
mod transfer;
mod verify;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ecs_torrent::Error;
use ecs_torrent::engine::backends::StartError;
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
  ecs-torrent demo                                see a download happen, on this machine alone
  ecs-torrent download linux.torrent -o ~/iso     download, then seed until Ctrl-C
  ecs-torrent create ./album -o album.torrent --tracker http://tracker.example/announce
  ecs-torrent seed album.torrent --data .         share what is there
  ecs-torrent daemon                              stay, and do what `add`, `list`, `stop` and others ask

`ecs-torrent help COMMAND` tells more of each. RUST_LOG=debug shows what the engine does.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Download torrents, then seed them.
    Download(transfer::DownloadArgs),
    /// Check and seed data that is there.
    Seed(transfer::SeedArgs),
    /// Print what a torrent file says.
    Show(show::ShowArgs),
    /// Make a torrent of a file or folder.
    Create(create::CreateArgs),
    /// Check files against a torrent.
    Verify(verify::VerifyArgs),
    /// Download a torrent from a seeder and a tracker in this same process.
    Demo(demo::DemoArgs),
    /// Run in the background for the commands below, and for programs.
    #[cfg(feature = "daemon")]
    Daemon(daemon::DaemonArgs),
    /// Add torrents to the daemon.
    #[cfg(feature = "daemon")]
    Add(client::AddArgs),
    /// List the daemon's torrents.
    #[cfg(feature = "daemon")]
    List(client::ListArgs),
    /// Tell a torrent's state.
    #[cfg(feature = "daemon")]
    Stats(client::StatsArgs),
    /// List a torrent's files.
    #[cfg(feature = "daemon")]
    Files(client::FilesArgs),
    /// Stop a torrent of the daemon in order, or all.
    #[cfg(feature = "daemon")]
    Stop(client::StopArgs),
    /// Stop a torrent of the daemon and forget it.
    #[cfg(feature = "daemon")]
    Remove(client::RemoveArgs),
    /// Check a configuration of the daemon, or print the default one.
    #[cfg(feature = "daemon")]
    Config(config::ConfigArgs),
    /// Print a script that completes commands in your shell.
    #[command(
        after_help = "Example:\n  ecs-torrent completions bash > ~/.local/share/bash-completion/completions/ecs-torrent"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How a command ended when nothing went wrong in its doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// As was wanted.
    Done,
    /// Not as was wanted; what there was to say has been said.
    Failed,
    /// Interrupted before it was done; the user has been told.
    Interrupted,
}

/// Exit codes of the process.
struct ExitCodes;

impl ExitCodes {
    const DONE: u8 = 0;
    const FAILED: u8 = 1;
    // 2 is a usage error, which clap reports.
    const INTERRUPTED: u8 = 7;
}

/// Why a command could not do its work; shown as one line.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Torrent(#[from] Error),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Make(#[from] MakeError),
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Config(#[from] ecs_torrent::config::ConfigError),
    #[cfg(feature = "daemon")]
    #[error(transparent)]
    Api(#[from] ecs_torrent::daemon::ApiError),
    /// What could not be done, and why.
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("interrupted")]
    Interrupted,
    #[cfg(feature = "daemon")]
    #[error("ended by a second signal: unsaved progress is lost")]
    Forced,
    #[error("{0}")]
    Other(String),
}

impl CliError {
    /// Names what an I/O error was about.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io(what, error)
    }
}

/// Runs the command line, and tells the exit code: 0 done, 1 failed, 2 usage, 7 interrupted before it was done.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to the standard output.
        Err(told) if !told.use_stderr() => {
            output::check_output(told.print().and_then(|()| std::io::stdout().flush()));
            return ExitCode::SUCCESS;
        }
        Err(mistake) => mistake.exit(),
    };
    let screen = output::Screen::default();
    let log = start_log(&screen);
    raise_descriptor_limit();
    let result = match cli.command {
        Command::Download(args) => block_on(transfer::download(args, screen)),
        Command::Seed(args) => block_on(transfer::seed(args, screen)),
        Command::Demo(args) => block_on(demo::run(args, screen)),
        Command::Show(args) => show::run(&args),
        Command::Create(args) => create::run(args, &screen),
        Command::Verify(args) => verify::run(&args, &screen),
        #[cfg(feature = "daemon")]
        Command::Daemon(args) => block_on(daemon::run(args, screen)),
        #[cfg(feature = "daemon")]
        Command::Add(args) => block_on(client::add(args)),
        #[cfg(feature = "daemon")]
        Command::List(args) => block_on(client::list(args)),
        #[cfg(feature = "daemon")]
        Command::Stats(args) => block_on(client::stats(args)),
        #[cfg(feature = "daemon")]
        Command::Files(args) => block_on(client::files(args)),
        #[cfg(feature = "daemon")]
        Command::Stop(args) => block_on(client::stop(args)),
        #[cfg(feature = "daemon")]
        Command::Remove(args) => block_on(client::remove(args)),
        #[cfg(feature = "daemon")]
        Command::Config(args) => config::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ecs-torrent", &mut script);
            output::print(format_args!("{}", String::from_utf8_lossy(&script)));
            Ok(Outcome::Done)
        }
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
            ExitCodes::FAILED
        }
    }
    .into()
}

fn block_on(work: impl Future<Output = Result<Outcome, CliError>>) -> Result<Outcome, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.map_err(CliError::io("cannot start"))?;
    let result = runtime.block_on(work);
    // What is left of it, like waiting for a second signal, does not keep the command from ending.
    runtime.shutdown_background();
    result
}

/// Takes as many open files as the system lets us; most systems begin with few, for the sake of old programs.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Starts logging to the standard error stream, above the progress bars. If the log's thread cannot be started, nothing
/// is logged.
fn start_log(screen: &output::Screen) -> std::io::Result<log::Log> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
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
}
