//! `limit`: the limits of a torrent's transfer rates.

use clap::{Args, ValueEnum};
use ecs_torrent::components::settings::NO_LIMIT;
use serde_json::{Value, json};

use super::connection::Daemon;
use super::{DaemonAddress, print_json};
use crate::cli::limits::rate;
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The limits of a torrent hold beneath those of all torrents together, which
`config set limits.download_bytes_per_s` changes. Without options, the command
prints the limits.

Examples:
  ecs-torrent limit 0c1f3b --download 500k --upload 1MB
  ecs-torrent limit 0c1f3b --upload none
  ecs-torrent limit --alternative always")]
pub(in crate::cli) struct LimitArgs {
    /// Info-hash of the torrent, or its first 6 or more digits.
    #[arg(required_unless_present = "alternative")]
    hash: Option<String>,
    /// When the alternative limits of all torrents together are in force. `config set` changes them and their schedule.
    #[arg(long, value_name = "WHEN", conflicts_with_all = ["hash", "download", "upload", "json"])]
    alternative: Option<Alternative>,
    /// Maximum download rate in bytes per second, such as 500k, 2MB or 2MiB, or none.
    #[arg(long, value_name = "RATE", value_parser = rate_or_none)]
    download: Option<u64>,
    /// Maximum upload rate in bytes per second, or none.
    #[arg(long, value_name = "RATE", value_parser = rate_or_none)]
    upload: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// When the alternative limits are in force.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Alternative {
    /// Never.
    Never,
    /// Always.
    Always,
    /// At the times of limits.alternative_schedule.
    Scheduled,
}

fn rate_or_none(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(NO_LIMIT),
        text => rate(text),
    }
}

pub(in crate::cli) async fn run(args: LimitArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    if let Some(alternative) = args.alternative {
        let value = format!("{alternative:?}");
        daemon
            .patch("/api/v1/settings", &json!({"limits": {"alternative": value}}))
            .await?;
        let answer = daemon.get("/api/v1/settings").await?;
        let now = match answer["alternative_limits"].as_bool() {
            Some(true) => "alternative",
            _ => "usual",
        };
        say!("alternative limits: {}; now the {now} ones", value.to_lowercase());
        return Ok(Outcome::Done);
    }
    let hash = daemon.resolve_running(&args.hash.unwrap_or_default()).await?;
    let path = format!("/api/v1/torrents/{hash}");
    let mut limits = json!({});
    for (name, rate) in [
        ("download_bytes_per_s", args.download),
        ("upload_bytes_per_s", args.upload),
    ] {
        if let Some(rate) = rate {
            limits[name] = Some(rate).filter(|rate| *rate < NO_LIMIT).into();
        }
    }
    if limits != json!({}) {
        daemon.patch(&path, &json!({"limits": limits})).await?;
    }
    let stats = daemon.get(&format!("{path}?fields=limits")).await?;
    let limits = &stats["limits"];
    if args.json {
        print_json(limits);
        return Ok(Outcome::Done);
    }
    let shown = |limit: &Value| match limit.as_u64() {
        Some(rate) => format!("{rate} bytes/s"),
        None => "no limit".to_owned(),
    };
    say!("download: {}", shown(&limits["download_bytes_per_s"]));
    say!("upload: {}", shown(&limits["upload_bytes_per_s"]));
    Ok(Outcome::Done)
}
