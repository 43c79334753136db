//! Limits on transfer rates and on seeding, on the command line.

use bytesize::ByteSize;
use clap::Args;
use ecs_torrent::components::settings::{LimitSettings, NO_LIMIT, Number, Numbers};
#[cfg(feature = "daemon")]
use serde_json::{Value, json};

/// Options that limit transfer rates: of all torrents together, or of those that a command adds, each.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Maximum download rate in bytes per second, such as 500k, 2MB or 2MiB, or none.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download_limit: Option<u64>,
    /// Maximum upload rate in bytes per second, or none.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    upload_limit: Option<u64>,
}

impl LimitArgs {
    /// Adds the limits to the parameters of a request that adds a torrent.
    #[cfg(feature = "daemon")]
    pub(super) fn write(&self, query: &mut url::form_urlencoded::Serializer<'_, String>) {
        let limits = [
            ("download_limit", self.download_limit),
            ("upload_limit", self.upload_limit),
        ];
        for (name, limit) in limits {
            if let Some(limit) = limit.filter(|limit| *limit < NO_LIMIT) {
                query.append_pair(name, &limit.to_string());
            }
        }
    }

    /// Overrides settings.
    pub(super) fn apply(&self, limits: &mut LimitSettings) {
        limits.download_bytes_per_s = self.download_limit.unwrap_or(limits.download_bytes_per_s);
        limits.upload_bytes_per_s = self.upload_limit.unwrap_or(limits.upload_bytes_per_s);
    }
}

/// Parses a rate, or `none`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(NO_LIMIT);
    }
    let text = text.trim_end_matches("/s");
    let rate: ByteSize = text
        .parse()
        .map_err(|_| "not a number of bytes per second, such as 500k, 2MB or 2MiB, nor none".to_owned())?;
    let numbers = LimitSettings::default().numbers();
    let least = numbers.iter().map(Number::least).max().unwrap_or(0);
    match rate.as_u64() {
        rate if rate < least => Err(format!("it has to be at least {} KiB/s", least >> 10)),
        rate => Ok(rate.min(NO_LIMIT)),
    }
}

/// Options for the seeding limits of a torrent.
#[cfg(feature = "daemon")]
#[derive(Debug, Args)]
pub(super) struct SeedingArgs {
    /// Ratio of sent to received payload at which the torrent has seeded enough, such as 1.5, or none.
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    ratio: Option<Value>,
    /// Time for which the torrent seeds, such as 36h or 14d, or none.
    #[arg(long, value_name = "TIME", value_parser = time)]
    seeding_time: Option<Value>,
    /// Time without a transfer after which the torrent has seeded enough, such as 30m, or none.
    #[arg(long, value_name = "TIME", value_parser = time)]
    idle_time: Option<Value>,
    /// Effect of a limit that is reached: pause, remove (the data stays), super-seed (the torrent serves peers only
    /// while they lack a piece together).
    #[arg(long, value_name = "ACTION", value_parser = action)]
    then: Option<Value>,
}

#[cfg(feature = "daemon")]
impl SeedingArgs {
    fn named(&self) -> [(&'static str, &Option<Value>); 4] {
        [
            ("ratio_percent", &self.ratio),
            ("time_s", &self.seeding_time),
            ("idle_s", &self.idle_time),
            ("action", &self.then),
        ]
    }

    /// Returns the limits as the API takes them.
    pub(super) fn to_json(&self) -> Value {
        let mut limits = json!({});
        for (name, limit) in self.named() {
            if let Some(limit) = limit {
                limits[name] = limit.clone();
            }
        }
        limits
    }

    /// Adds the limits to the parameters of a request that adds a torrent.
    pub(super) fn write(&self, query: &mut url::form_urlencoded::Serializer<'_, String>) {
        for (name, limit) in self.named() {
            let text = match limit {
                None | Some(Value::Null) => continue,
                Some(Value::String(text)) => text.clone(),
                Some(number) => number.to_string(),
            };
            query.append_pair(&format!("seeding_{name}"), &text);
        }
    }
}

/// Parses a limit: `inherit`, `none` or a value.
#[cfg(feature = "daemon")]
fn own(text: &str, value: impl Fn(&str) -> Result<u64, String>) -> Result<Value, String> {
    match text {
        "inherit" => Ok(Value::Null),
        "none" => Ok(text.into()),
        text => value(text).map(Value::from),
    }
}

#[cfg(feature = "daemon")]
fn ratio(text: &str) -> Result<Value, String> {
    own(text, |text| {
        let ratio: Option<f64> = text.parse().ok();
        let ratio = ratio.filter(|ratio| (0.0..=10_000.0).contains(ratio));
        // In the range.
        let percent = ratio.map(|ratio| (ratio * 100.0).round() as u64);
        percent.ok_or_else(|| "not a ratio from 0 to 10000, such as 1.5, and neither none nor inherit".to_owned())
    })
}

#[cfg(feature = "daemon")]
fn time(text: &str) -> Result<Value, String> {
    own(text, |text| {
        let time = humantime::parse_duration(text).map(|time| time.as_secs());
        time.map_err(|_| "not a time, such as 30m, 36h or 14d, and neither none nor inherit".to_owned())
    })
}

#[cfg(feature = "daemon")]
fn action(text: &str) -> Result<Value, String> {
    match text {
        "inherit" => Ok(Value::Null),
        "pause" | "remove" => Ok(text.into()),
        "super-seed" => Ok("super_seed".into()),
        _ => Err("it is pause, remove, super-seed or inherit".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        assert_eq!(rate("500k"), Ok(500_000));
        assert_eq!(rate("2MiB/s"), Ok(2 << 20));
        assert_eq!((rate("10240"), rate("none")), (Ok(10_240), Ok(NO_LIMIT)));
        for wrong in ["", "fast", "-5k", "10k", "0", "1e400"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[cfg(feature = "daemon")]
    #[test]
    fn seeding_limits_have_units() {
        assert_eq!((ratio("1.5"), ratio("0")), (Ok(json!(150)), Ok(json!(0))));
        assert_eq!((ratio("none"), ratio("inherit")), (Ok(json!("none")), Ok(Value::Null)));
        assert_eq!((time("30m"), time("14d")), (Ok(json!(1800)), Ok(json!(14 * 86_400))));
        assert_eq!(
            (action("super-seed"), action("inherit")),
            (Ok(json!("super_seed")), Ok(Value::Null))
        );
        for wrong in ["", "-1", "1e9", "NaN", "twice"] {
            assert!(
                ratio(wrong).is_err() && time(wrong).is_err() && action(wrong).is_err(),
                "{wrong}"
            );
        }
    }
}
