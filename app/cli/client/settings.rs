//! `config get`, `config set` and `config reset`: the settings of a running daemon.

use bytesize::ByteSize;
use clap::Args;
use ecs_torrent::components::settings::NO_LIMIT;
use serde_json::{Value, json};

use super::DaemonAddress;
use super::connection::Daemon;
use crate::cli::output::{print_json, printable};
use crate::cli::{CliError, Outcome};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  ecs-torrent config get
  ecs-torrent config get limits
  ecs-torrent config get limits.download_bytes_per_s
  ecs-torrent config get --json | jq .needs_restart")]
pub(in crate::cli) struct GetArgs {
    /// A setting, such as peers.max_connections, or a section. Default: all settings.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON: the settings, the changes made at run time, and those that need a restart.
    #[arg(long, conflicts_with = "name")]
    json: bool,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The change is saved in the state folder, where it outweighs the configuration
file and the command line of the daemon, until `config reset`. Settings that
need a restart say so. `ecs-torrent config default` describes all settings.

Examples:
  ecs-torrent config set limits.download_bytes_per_s 500k
  ecs-torrent config set peers.max_connections 1000")]
pub(in crate::cli) struct SetArgs {
    /// The setting, such as limits.upload_bytes_per_s.
    #[arg(value_name = "NAME")]
    name: String,
    /// The value. Bytes may have a unit: 500k, 2MB, 2MiB. A limit on a rate may be none.
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
    #[command(flatten)]
    daemon: DaemonAddress,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ecs-torrent config reset limits.download_bytes_per_s")]
pub(in crate::cli) struct ResetArgs {
    /// The setting that gets the value of the configuration again.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    daemon: DaemonAddress,
}

/// The path of the settings.
pub(in crate::cli) const PATH: &str = "/api/v1/settings";

pub(in crate::cli) async fn get(args: GetArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let answer = daemon.get(PATH).await?;
    if args.json {
        print_json(&answer);
        return Ok(Outcome::Done);
    }
    let settings = &answer["settings"];
    let pending = answer["needs_restart"].as_array().map_or(&[][..], Vec::as_slice);
    if let Some((section, name)) = args.name.as_deref().and_then(|name| name.split_once('.')) {
        let value = value_of(settings, section, name)?;
        say!("{}", shown_of(name, value));
        return Ok(Outcome::Done);
    }
    let sections = settings.as_object().into_iter().flatten();
    let mut is_known = args.name.is_none();
    for (section, settings) in sections.filter(|(section, _)| args.name.as_ref().is_none_or(|name| name == *section)) {
        is_known = true;
        for (name, value) in settings.as_object().into_iter().flatten() {
            let key = format!("{section}.{name}");
            let note = match &answer["changes"][&key] {
                changed if pending.contains(&json!(key)) && changed.is_null() => "  # another value after a restart",
                changed if pending.contains(&json!(key)) => &format!("  # {} after a restart", shown(changed)),
                Value::Null => "",
                _ => "  # changed at run time",
            };
            say!("{key} = {}{note}", shown_of(name, value));
        }
    }
    match is_known {
        true => Ok(Outcome::Done),
        false => Err(unknown(&args.name.unwrap_or_default())),
    }
}

pub(in crate::cli) async fn set(args: SetArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let (section, name) = args.name.split_once('.').ok_or_else(|| unknown(&args.name))?;
    let answer = daemon.get(PATH).await?;
    let value = parse(&args.value, name, value_of(&answer["settings"], section, name)?);
    change(&daemon, section, name, value).await
}

pub(in crate::cli) async fn reset(args: ResetArgs) -> Result<Outcome, CliError> {
    let daemon = Daemon::find(&args.daemon)?;
    let (section, name) = args.name.split_once('.').ok_or_else(|| unknown(&args.name))?;
    change(&daemon, section, name, Value::Null).await
}

/// Sends a change, and prints the value in force, or that the change needs a restart.
async fn change(daemon: &Daemon, section: &str, name: &str, value: Value) -> Result<Outcome, CliError> {
    let changed = daemon.patch(PATH, &json!({section: {name: value}})).await?;
    let needs_restart = changed["needs_restart"]
        .as_array()
        .is_some_and(|names| !names.is_empty());
    if needs_restart {
        say!("{section}.{name} is saved, and takes effect when the daemon is started again");
    } else {
        let answer = daemon.get(PATH).await?;
        say!(
            "{section}.{name} = {}",
            shown_of(name, value_of(&answer["settings"], section, name)?)
        );
    }
    Ok(Outcome::Done)
}

fn value_of<'a>(settings: &'a Value, section: &str, name: &str) -> Result<&'a Value, CliError> {
    let value = settings.get(section).and_then(|section| section.get(name));
    value.ok_or_else(|| unknown(&format!("{section}.{name}")))
}

fn unknown(name: &str) -> CliError {
    let name = printable(name);
    CliError::Other(format!(
        "{name}: there is no such setting; `ecs-torrent config default` lists them"
    ))
}

/// Reads a value as the kind that the setting has now. The daemon checks it.
fn parse(text: &str, name: &str, current: &Value) -> Value {
    let json = serde_json::from_str(text).ok();
    let bytes = || {
        text.trim_end_matches("/s")
            .parse()
            .map(|bytes: ByteSize| bytes.as_u64())
    };
    match (json, current) {
        (None, Value::Number(_)) if text == "none" && is_rate(name) => NO_LIMIT.into(),
        (Some(json @ Value::Number(_)), Value::Number(_)) => json,
        (_, Value::Number(_)) if name.contains("bytes") => bytes().map_or_else(|_| text.into(), Value::from),
        (_, Value::String(_)) => text.into(),
        (json, _) => json.unwrap_or_else(|| text.into()),
    }
}

/// Whether a setting limits a transfer rate.
fn is_rate(name: &str) -> bool {
    name.ends_with("bytes_per_s")
}

/// Shows the value of a setting. A transfer rate without a limit is `none`.
fn shown_of(name: &str, value: &Value) -> String {
    match is_rate(name) && value.as_u64().is_some_and(|rate| rate >= NO_LIMIT) {
        true => "none".to_owned(),
        false => shown(value),
    }
}

/// Shows a value on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
        value => printable(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_the_kind_of_the_setting() {
        let number = json!(1);
        assert_eq!(parse("500k", "upload_bytes_per_s", &number), 500_000);
        assert_eq!(parse("2MiB/s", "upload_bytes_per_s", &number), 2 << 20);
        assert_eq!(parse("none", "upload_bytes_per_s", &number), NO_LIMIT);
        assert_eq!(parse("20", "max_connections", &number), 20);
        assert_eq!(parse("-5", "max_connections", &number), -5);
        assert_eq!(parse("20k", "max_connections", &number), "20k", "the daemon refuses it");
        assert_eq!(parse("true", "enabled", &json!(false)), true);
        assert_eq!(parse("12", "reach", &json!("EachTier")), "12");
        assert_eq!(parse("[\"127.0.0.1:1\"]", "listen", &json!([])), json!(["127.0.0.1:1"]));
    }
}
