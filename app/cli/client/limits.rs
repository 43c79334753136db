//! `limit`: the limits of a torrent's transfer rates, and its seeding limits.

use std::time::Duration;

use clap::{Args, ValueEnum};
use ecs_torrent::components::settings::NO_LIMIT;
use serde_json::{Value, json};

use super::connection::Daemon;
use super::values::text;
use super::{DaemonAddress, print_json};
use crate::cli::limits::{SeedingArgs, rate};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
The limits of a torrent hold beneath those of all torrents together, which
`config set limits.download_bytes_per_s` changes. Its seeding limits replace
those of the settings (`seeding.ratio_percent` and so on); `inherit` takes these
again. A torrent that was paused by a limit runs again after `start`, until
another limit is reached. Without options, the command prints the limits.

Examples:
  ecs-torrent limit 0c1f3b --download 500k --upload 1MB
  ecs-torrent limit 0c1f3b --upload none
  ecs-torrent limit 0c1f3b --ratio 1.5 --idle-time 2d --then remove
  ecs-torrent limit --alternative always")]
pub(in crate::cli) struct LimitArgs {
    /// Name of the torrent, or the first 4 or more digits of its info-hash.
    #[arg(required_unless_present = "alternative")]
    hash: Option<String>,
    /// When the alternative limits of all torrents together are in force. `config set` changes them and their schedule.
    #[arg(long, value_name = "WHEN", conflicts_with_all = ["hash", "download", "upload", "json", "SeedingArgs"])]
    alternative: Option<Alternative>,
    /// Maximum download rate in bytes per second, such as 500k, 2MB or 2MiB, or none.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download: Option<u64>,
    /// Maximum upload rate in bytes per second, or none.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload: Option<u64>,
    #[command(flatten)]
    seeding: SeedingArgs,
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
    let seeding = args.seeding.to_json();
    let mut changes = json!({});
    for (name, change) in [("limits", limits), ("seeding", seeding)] {
        if change != json!({}) {
            changes[name] = change;
        }
    }
    if changes != json!({}) {
        daemon.patch(&path, &changes).await?;
    }
    let stats = daemon.get(&format!("{path}?fields=limits,seeding")).await?;
    let (limits, seeding) = (&stats["limits"], &stats["seeding"]);
    if args.json {
        let mut all = limits.clone();
        all["seeding"] = seeding.clone();
        print_json(&all);
        return Ok(Outcome::Done);
    }
    let shown = |limit: &Value| match limit.as_u64() {
        Some(rate) => format!("{rate} bytes/s"),
        None => "no limit".to_owned(),
    };
    say!("download: {}", shown(&limits["download_bytes_per_s"]));
    say!("upload: {}", shown(&limits["upload_bytes_per_s"]));
    let own = |name: &str, unit: fn(u64) -> String| match &seeding[name] {
        Value::Null => "as in the settings".to_owned(),
        Value::Number(number) => unit(number.as_u64().unwrap_or_default()),
        _ => "no limit".to_owned(),
    };
    let time = |seconds| humantime::format_duration(Duration::from_secs(seconds)).to_string();
    say!(
        "ratio: {}",
        own("ratio_percent", |percent| format!("{:.2}", percent as f64 / 100.0))
    );
    say!("seeding time: {}", own("time_s", time));
    say!("idle time: {}", own("idle_s", time));
    let action = match text(&seeding["action"]) {
        "" => "as in the settings".to_owned(),
        action => action.replace('_', "-"),
    };
    say!("then: {action}");
    Ok(Outcome::Done)
}
