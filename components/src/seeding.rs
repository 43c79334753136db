//! Seeding limits of a torrent, and the effects of reaching them.
//!
//! | component | kind | content |
//! |---|---|---|
//! | [`SeedingLimits`] | intent | the torrent's own limits; those of the settings apply to the others |
//! | [`SeedingTime`] | fact | how long the torrent has been seeding |
//! | [`SeedingRecord`] | fact | the limits that were reached |

use std::fmt;
use std::time::Duration;

use bevy_ecs::prelude::*;
use bevy_ecs::query::QueryData;
use ecs_torrent_protocol::time::Timestamp;
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::lifecycle::Desired;
use crate::settings::{NO_RATIO, NO_TIME, Numbers, SeedingAction, SeedingSettings, SettingError};
use crate::torrent::{Activity, Counters, Have, Layout, Lifecycle, TorrentRates};

/// A kind of limit by which a torrent has seeded enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedingLimit {
    /// The ratio of sent to received payload.
    Ratio,
    /// The time for which the torrent has been seeding.
    Time,
    /// The time without a transfer.
    Idle,
}

impl SeedingLimit {
    /// All limits, in the order in which they are examined.
    pub const ALL: [Self; 3] = [Self::Ratio, Self::Time, Self::Idle];

    /// Returns the limit's name, as the JSON shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Time => "time",
            Self::Idle => "idle",
        }
    }
}

/// A torrent's own value of a seeding limit. In JSON: `null`, `"none"` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnLimit {
    /// The limit of the settings applies.
    #[default]
    Inherit,
    /// The torrent has no limit.
    Unlimited,
    /// The torrent has a limit of its own.
    Value(u64),
}

/// Text of a value without a limit.
const UNLIMITED: &str = "none";

impl Serialize for OwnLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Inherit => serializer.serialize_none(),
            Self::Unlimited => serializer.serialize_str(UNLIMITED),
            Self::Value(value) => serializer.serialize_u64(*value),
        }
    }
}

impl<'de> Deserialize<'de> for OwnLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OwnLimitVisitor)
    }
}

struct OwnLimitVisitor;

impl Visitor<'_> for OwnLimitVisitor {
    type Value = OwnLimit;

    fn expecting(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        form.write_str("a number, \"none\" or null")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<OwnLimit, E> {
        Ok(OwnLimit::Inherit)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<OwnLimit, E> {
        Ok(OwnLimit::Inherit)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<OwnLimit, E> {
        Ok(OwnLimit::Value(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<OwnLimit, E> {
        let value = u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))?;
        Ok(OwnLimit::Value(value))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<OwnLimit, E> {
        match text {
            UNLIMITED => Ok(OwnLimit::Unlimited),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

impl OwnLimit {
    /// Returns the limit in force, given the one of the settings. The end of the range means no limit.
    fn or(self, inherited: u64, none: u64) -> Option<u64> {
        let value = match self {
            Self::Inherit => inherited,
            Self::Unlimited => none,
            Self::Value(value) => value,
        };
        Some(value).filter(|value| *value < none)
    }
}

/// The user's seeding limits for one torrent. Only torrents with limits of their own have this component.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeedingLimits {
    /// Ratio of sent to received payload, in percent.
    pub ratio_percent: OwnLimit,
    /// Time for which the torrent seeds, in seconds over all runs.
    pub time_s: OwnLimit,
    /// Time without a transfer, in seconds.
    pub idle_s: OwnLimit,
    /// Effect of a limit that is reached; `None` takes the one of the settings.
    #[serde(with = "action_name")]
    pub action: Option<SeedingAction>,
}

/// The form of a [`SeedingAction`] in JSON: its name, or `null`.
pub mod action_name {
    use super::{Deserialize, Deserializer, SeedingAction, Serialize, Serializer};

    /// Writes the name.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(action: &Option<SeedingAction>, to: S) -> Result<S::Ok, S::Error> {
        action.map(SeedingAction::name).serialize(to)
    }

    /// Reads a name.
    ///
    /// # Errors
    /// If no action has the name.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SeedingAction>, D::Error> {
        let name = Option::<String>::deserialize(from)?;
        let action = |name: String| {
            let unknown = || serde::de::Error::unknown_variant(&name, &["pause", "remove", "super_seed"]);
            SeedingAction::from_name(&name).ok_or_else(unknown)
        };
        name.map(action).transpose()
    }
}

/// A change of [`SeedingLimits`]: `None` keeps a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeedingPatch {
    /// The limit on the ratio, in percent.
    pub ratio_percent: Option<OwnLimit>,
    /// The limit on the seeding time, in seconds.
    pub time_s: Option<OwnLimit>,
    /// The limit on the time without a transfer, in seconds.
    pub idle_s: Option<OwnLimit>,
    /// The effect of a limit that is reached; `Some(None)` takes the one of the settings.
    pub action: Option<Option<SeedingAction>>,
}

impl SeedingPatch {
    /// Returns the changed limits.
    #[must_use]
    pub fn apply(&self, limits: &SeedingLimits) -> SeedingLimits {
        SeedingLimits {
            ratio_percent: self.ratio_percent.unwrap_or(limits.ratio_percent),
            time_s: self.time_s.unwrap_or(limits.time_s),
            idle_s: self.idle_s.unwrap_or(limits.idle_s),
            action: self.action.unwrap_or(limits.action),
        }
    }
}

impl SeedingLimits {
    /// Whether all values are those of the settings.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// If a limit is outside the range that the setting of the same name has.
    pub fn check(&self) -> Result<(), SettingError> {
        let own = [
            ("ratio_percent", self.ratio_percent),
            ("time_s", self.time_s),
            ("idle_s", self.idle_s),
        ];
        let numbers = SeedingSettings::default().numbers();
        for (name, limit) in own {
            let number = numbers.iter().find(|number| number.name == name);
            if let (Some(number), OwnLimit::Value(value)) = (number, limit) {
                number.check(value.into())?;
            }
        }
        Ok(())
    }

    /// Returns the limits in force.
    #[must_use]
    pub fn in_force(&self, settings: &SeedingSettings) -> LimitsInForce {
        LimitsInForce {
            values: Values {
                ratio: self.ratio_percent.or(settings.ratio_percent, NO_RATIO),
                time: self.time_s.or(settings.time_s, NO_TIME),
                idle: self.idle_s.or(settings.idle_s, NO_TIME),
            },
            action: self.action.unwrap_or(settings.action),
        }
    }
}

/// Values of limits: the ratio in percent, the times in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Values {
    ratio: Option<u64>,
    time: Option<u64>,
    idle: Option<u64>,
}

impl Values {
    fn get(&self, limit: SeedingLimit) -> Option<u64> {
        match limit {
            SeedingLimit::Ratio => self.ratio,
            SeedingLimit::Time => self.time,
            SeedingLimit::Idle => self.idle,
        }
    }

    fn slot(&mut self, limit: SeedingLimit) -> &mut Option<u64> {
        match limit {
            SeedingLimit::Ratio => &mut self.ratio,
            SeedingLimit::Time => &mut self.time,
            SeedingLimit::Idle => &mut self.idle,
        }
    }
}

/// The limits that apply to a torrent: its own, and those of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsInForce {
    values: Values,
    /// The effect of a limit that is reached.
    pub action: SeedingAction,
}

/// How much a torrent has seeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeded {
    /// Payload bytes sent.
    pub uploaded: u64,
    /// Payload bytes by which the sent ones are divided ([`ratio_basis`]).
    pub basis: u64,
    /// Seeding time over all runs.
    pub time: Duration,
    /// Time since the latest transfer, or since the torrent began to seed in this run.
    pub idle: Duration,
}

/// The facts that say whether a torrent seeds, and how much it has seeded.
#[derive(QueryData)]
pub struct SeedingFacts {
    desired: &'static Desired,
    lifecycle: &'static Lifecycle,
    counters: &'static Counters,
    rates: &'static TorrentRates,
    time: &'static SeedingTime,
    known: Option<(&'static Layout, &'static Have)>,
}

impl SeedingFactsItem<'_, '_> {
    /// Whether the torrent holds everything it wants, and is to run.
    #[must_use]
    pub fn is_seeding(&self) -> bool {
        self.lifecycle.is_finished() && *self.desired == Desired::Run
    }

    /// Returns how much the torrent has seeded.
    #[must_use]
    pub fn seeded(&self, now: Timestamp) -> Seeded {
        let since = self.time.0.since.unwrap_or(now);
        let active = self.rates.last_payload().map_or(since, |last| last.max(since));
        let completed = self.known.map_or(0, |(layout, have)| layout.0.size_of(have));
        Seeded {
            uploaded: self.counters.uploaded,
            basis: ratio_basis(self.counters.downloaded, completed),
            time: self.time.0.total(now),
            idle: now.since(active),
        }
    }
}

/// Returns the bytes by which the sent payload is divided for a torrent's ratio: the received ones. A torrent that
/// received less than a hundredth of its data found that data on the disk, so that the data counts.
#[must_use]
pub fn ratio_basis(downloaded: u64, completed: u64) -> u64 {
    if downloaded < completed / 100 || downloaded == 0 {
        completed
    } else {
        downloaded
    }
}

/// The limits that a torrent has reached. It stays when a user starts the torrent again: a limit that was reached has
/// an effect again only after its value has changed.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeedingRecord {
    /// The limit by which the torrent is paused or super-seeds now.
    pub reached: Option<SeedingLimit>,
    /// Whether that limit lets the torrent super-seed, and not pause.
    pub super_seeds: bool,
    /// The values of the limits that were reached.
    spent: Values,
}

impl SeedingRecord {
    /// Whether no limit was reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Forgets limits whose value has changed.
    #[must_use]
    pub fn updated(mut self, limits: &LimitsInForce) -> Self {
        for limit in SeedingLimit::ALL {
            let slot = self.spent.slot(limit);
            *slot = slot.filter(|spent| limits.values.get(limit) == Some(*spent));
        }
        self.reached = self.reached.filter(|limit| self.spent.get(*limit).is_some());
        self.super_seeds &= self.reached.is_some();
        self
    }

    /// Forgets the limit by which the torrent was paused, because the torrent runs again. The time without a transfer
    /// is counted again from its start.
    #[must_use]
    pub fn restarted(self) -> Self {
        Self {
            reached: None,
            super_seeds: false,
            spent: Values {
                idle: None,
                ..self.spent
            },
        }
    }

    /// Returns the record for a session that may be the last one. A torrent whose pause is not durable yet is paused
    /// again by the next run, and a paused one that is to run is not.
    #[must_use]
    pub fn to_save(self, is_paused_in_session: bool, is_paused: bool) -> Self {
        match self.reached {
            Some(_) if is_paused_in_session || self.super_seeds => self,
            Some(_) if is_paused => self.restarted(),
            Some(_) => Self::default(),
            None => self,
        }
    }

    /// Records that a limit is reached, and all others that are exceeded at the same time.
    #[must_use]
    pub fn with_reached(mut self, limit: SeedingLimit, limits: &LimitsInForce, seeded: &Seeded) -> Self {
        for other in SeedingLimit::ALL
            .into_iter()
            .filter(|other| limits.is_reached(*other, seeded))
        {
            *self.spent.slot(other) = limits.values.get(other);
        }
        self.reached = Some(limit);
        self.super_seeds = limits.action == SeedingAction::SuperSeed;
        self
    }
}

impl LimitsInForce {
    /// Whether a limit on the ratio applies.
    #[must_use]
    pub fn has_ratio(&self) -> bool {
        self.values.ratio.is_some()
    }

    fn is_reached(&self, limit: SeedingLimit, seeded: &Seeded) -> bool {
        let Some(value) = self.values.get(limit) else {
            return false;
        };
        match limit {
            SeedingLimit::Ratio => {
                let is_there = seeded.basis > 0;
                is_there && u128::from(seeded.uploaded) * 100 >= u128::from(seeded.basis) * u128::from(value)
            }
            SeedingLimit::Time => seeded.time >= Duration::from_secs(value),
            SeedingLimit::Idle => seeded.idle >= Duration::from_secs(value),
        }
    }

    /// Returns the first limit that is reached and has had no effect yet.
    #[must_use]
    pub fn reached(&self, seeded: &Seeded, record: &SeedingRecord) -> Option<SeedingLimit> {
        let is_due = |limit: &SeedingLimit| record.spent.get(*limit).is_none() && self.is_reached(*limit, seeded);
        SeedingLimit::ALL.into_iter().find(is_due)
    }

    /// Returns the time until a limit is reached if nothing is transferred; `None` if that never happens.
    #[must_use]
    pub fn next(&self, seeded: &Seeded, record: &SeedingRecord) -> Option<Duration> {
        let left = |limit, passed: Duration| {
            let value = self.values.get(limit).filter(|_| record.spent.get(limit).is_none());
            value.map(|value| Duration::from_secs(value).saturating_sub(passed))
        };
        let time = left(SeedingLimit::Time, seeded.time);
        let idle = left(SeedingLimit::Idle, seeded.idle);
        time.into_iter().chain(idle).min()
    }
}

/// The time for which a torrent has been seeding: it holds everything wanted, and runs.
#[derive(Component, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeedingTime(pub Activity);

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(ratio_percent: OwnLimit, time_s: OwnLimit, idle_s: OwnLimit) -> LimitsInForce {
        let own = SeedingLimits {
            ratio_percent,
            time_s,
            idle_s,
            action: None,
        };
        own.in_force(&SeedingSettings::default())
    }

    fn seeded(uploaded: u64, time: u64, idle: u64) -> Seeded {
        Seeded {
            uploaded,
            basis: 1000,
            time: Duration::from_secs(time),
            idle: Duration::from_secs(idle),
        }
    }

    use OwnLimit::{Inherit, Unlimited, Value};
    use SeedingLimit::{Idle, Ratio, Time};

    #[test]
    fn each_limit_is_reached_at_its_value() {
        let none = SeedingRecord::default();
        let all = limits(Value(150), Value(60), Value(600));
        assert_eq!(all.reached(&seeded(1499, 59, 599), &none), None);
        assert_eq!(all.reached(&seeded(1500, 60, 600), &none), Some(Ratio));
        assert_eq!(all.reached(&seeded(0, 60, 600), &none), Some(Time));
        assert_eq!(all.reached(&seeded(0, 59, 600), &none), Some(Idle));
        assert_eq!(
            limits(Inherit, Inherit, Inherit).reached(&seeded(u64::MAX, 1 << 31, 1 << 31), &none),
            None
        );
        assert_eq!(
            limits(Value(0), Inherit, Inherit).reached(&seeded(0, 0, 0), &none),
            Some(Ratio)
        );
        let empty = Seeded {
            basis: 0,
            ..seeded(0, 0, 0)
        };
        assert_eq!(limits(Value(0), Inherit, Inherit).reached(&empty, &none), None);
        assert_eq!(all.next(&seeded(0, 10, 5), &none), Some(Duration::from_secs(50)));
        assert_eq!(all.next(&seeded(0, 10, 595), &none), Some(Duration::from_secs(5)));
        assert_eq!(limits(Value(1), Inherit, Unlimited).next(&seeded(0, 0, 0), &none), None);
    }

    #[test]
    fn own_limits_replace_those_of_the_settings() {
        let settings = SeedingSettings {
            ratio_percent: 100,
            action: SeedingAction::Remove,
            ..SeedingSettings::default()
        };
        let of = |ratio_percent| {
            let own = SeedingLimits {
                ratio_percent,
                ..SeedingLimits::default()
            };
            own.in_force(&settings).values.ratio
        };
        assert_eq!((of(Inherit), of(Unlimited), of(Value(50))), (Some(100), None, Some(50)));
        assert_eq!(of(Value(NO_RATIO)), None, "the end of the range is no limit");
        assert_eq!(
            SeedingLimits::default().in_force(&settings).action,
            SeedingAction::Remove
        );
    }

    /// A torrent that is started again runs until another limit is reached, or the limit changes.
    #[test]
    fn a_limit_has_its_effect_once() {
        let first = limits(Value(100), Value(60), Inherit);
        let enough = seeded(1000, 5, 0);
        let record = SeedingRecord::default().with_reached(Ratio, &first, &enough);
        assert_eq!((record.reached, first.reached(&enough, &record)), (Some(Ratio), None));
        let started = record.restarted().updated(&first);
        assert_eq!(started.reached, None);
        assert_eq!(first.reached(&seeded(5000, 59, 0), &started), None);
        assert_eq!(first.reached(&seeded(5000, 60, 0), &started), Some(Time));
        let raised = limits(Value(400), Value(60), Inherit);
        let updated = started.updated(&raised);
        assert_eq!(raised.reached(&seeded(3999, 5, 0), &updated), None);
        assert_eq!(raised.reached(&seeded(4000, 5, 0), &updated), Some(Ratio));
        assert_eq!(
            record.updated(&raised).reached,
            None,
            "the torrent is not held by it any more"
        );
    }

    #[test]
    fn limits_that_are_exceeded_together_are_reached_together() {
        let all = limits(Value(100), Value(60), Value(10));
        let enough = seeded(1000, 60, 10);
        let record = SeedingRecord::default().with_reached(Ratio, &all, &enough).restarted();
        assert_eq!(all.reached(&seeded(1000, 61, 9), &record), None);
        assert_eq!(
            all.reached(&seeded(1000, 61, 10), &record),
            Some(Idle),
            "counted again from the start"
        );
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        let own = SeedingLimits {
            ratio_percent: Value(150),
            time_s: Unlimited,
            idle_s: Inherit,
            action: Some(SeedingAction::SuperSeed),
        };
        let json = serde_json::to_value(own).unwrap();
        let expected =
            serde_json::json!({"ratio_percent": 150, "time_s": "none", "idle_s": null, "action": "super_seed"});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<SeedingLimits>(json).unwrap(), own);
        let text = ron::to_string(&own).unwrap();
        assert_eq!(ron::from_str::<SeedingLimits>(&text).unwrap(), own, "{text}");
        for wrong in [
            r#"{"time_s": -1}"#,
            r#"{"time_s": "x"}"#,
            r#"{"time_s": 1.5}"#,
            r#"{"action": "Pause"}"#,
        ] {
            assert!(serde_json::from_str::<SeedingLimits>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn own_limits_have_the_ranges_of_the_settings() {
        let of = |idle_s| {
            SeedingLimits {
                idle_s,
                ..SeedingLimits::default()
            }
            .check()
        };
        assert_eq!((of(Value(NO_TIME)), of(Unlimited)), (Ok(()), Ok(())));
        let error = of(Value(1)).unwrap_err();
        assert_eq!(error.key(), ("seeding", "idle_s"));
    }

    #[test]
    fn data_that_was_there_counts_for_the_ratio() {
        assert_eq!(ratio_basis(0, 500), 500);
        assert_eq!(ratio_basis(4, 500), 500);
        assert_eq!(ratio_basis(5, 500), 5);
        assert_eq!(ratio_basis(600, 500), 600);
        assert_eq!(ratio_basis(0, 0), 0);
        assert_eq!(ratio_basis(1, 50), 1);
    }
}
