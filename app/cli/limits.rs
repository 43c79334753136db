//! Limits on transfer rates, on the command line.

use bytesize::ByteSize;
use clap::Args;
use ecs_torrent::components::settings::{LimitSettings, NO_LIMIT, Number, Numbers};

/// Options that limit transfer rates: of all torrents together, or of those that a command adds, each.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Maximum download rate in bytes per second, such as 500k, 2MB or 2MiB.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    download_limit: Option<u64>,
    /// Maximum upload rate in bytes per second.
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
            if let Some(limit) = limit {
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

pub(super) fn rate(text: &str) -> Result<u64, String> {
    let text = text.trim_end_matches("/s");
    let rate: ByteSize = text
        .parse()
        .map_err(|_| "not a number of bytes per second, such as 500k, 2MB or 2MiB".to_owned())?;
    let numbers = LimitSettings::default().numbers();
    let least = numbers.iter().map(Number::least).max().unwrap_or(0);
    match rate.as_u64() {
        rate if rate < least => Err(format!("it has to be at least {} KiB/s", least >> 10)),
        rate => Ok(rate.min(NO_LIMIT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        assert_eq!(rate("500k"), Ok(500_000));
        assert_eq!(rate("2MiB/s"), Ok(2 << 20));
        assert_eq!(rate("10240"), Ok(10_240));
        for wrong in ["", "fast", "-5k", "10k", "0", "1e400"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }
}
