//! Times of the week.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u16 = 24 * 60;

/// A moment of the week: seconds since Monday 0:00, local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WeekTime(u32);

impl WeekTime {
    /// Length of a week in seconds.
    pub const WEEK_S: u64 = 7 * 24 * 3600;

    /// Returns the moment this many seconds after a Monday 0:00.
    #[must_use]
    pub fn new(seconds: u64) -> Self {
        Self((seconds % Self::WEEK_S) as u32)
    }

    /// Returns the number of seconds until the next whole minute.
    #[must_use]
    pub fn seconds_to_next_minute(self) -> u64 {
        60 - u64::from(self.0 % 60)
    }

    fn day(self) -> usize {
        self.0 as usize / (24 * 3600)
    }

    fn minute(self) -> u16 {
        (self.0 / 60) as u16 % DAY_MINUTES
    }
}

/// A time span on some days of the week, such as `mon-fri 08:00-18:00`, `sat,sun 00:00-24:00` or `daily 22:00-06:00`. A
/// span that ends before it begins lasts into the next day.
///
/// ```
/// use ecs_torrent_components::week::{WeekSpan, WeekTime};
///
/// let span: WeekSpan = "fri 22:00-06:00".parse().unwrap();
/// let hour = |day: u64, hour: u64| WeekTime::new((day * 24 + hour) * 3600);
/// assert!(span.contains(hour(4, 23)) && span.contains(hour(5, 5)) && !span.contains(hour(5, 6)));
/// assert_eq!(span.to_string(), "fri 22:00-06:00");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WeekSpan {
    /// The days on which the span begins, by their numbers from Monday.
    days: [bool; 7],
    /// Minute of the day at which it begins.
    from: u16,
    /// Minute of the day at which it ends.
    to: u16,
}

impl WeekSpan {
    /// Whether the span contains a moment.
    #[must_use]
    pub fn contains(&self, time: WeekTime) -> bool {
        let (today, minute) = (time.day(), time.minute());
        let yesterday = (today + 6) % 7;
        match self.from < self.to {
            true => self.days[today] && (self.from..self.to).contains(&minute),
            false => (self.days[today] && minute >= self.from) || (self.days[yesterday] && minute < self.to),
        }
    }
}

/// The text is not a time span.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time span, such as \"mon-fri 08:00-18:00\", \"sat,sun 00:00-24:00\" or \"daily 22:00-06:00\"")]
pub struct WeekSpanError(Box<str>);

impl FromStr for WeekSpan {
    type Err = WeekSpanError;

    fn from_str(text: &str) -> Result<Self, WeekSpanError> {
        let parse = || {
            let (days, times) = text.trim().split_once(' ')?;
            let (from, to) = times.trim().split_once('-')?;
            let (from, to) = (parse_minute(from)?, parse_minute(to)?);
            let days = parse_days(&days.to_ascii_lowercase())?;
            (from != to && from < DAY_MINUTES).then_some(Self { days, from, to })
        };
        parse().ok_or_else(|| WeekSpanError(text.chars().take(100).collect()))
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    if text == "daily" {
        return Some([true; 7]);
    }
    let number = |day: &str| DAYS.iter().position(|known| *known == day);
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (number(first)?, number(last)?);
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Some(days)
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let is_number = |text: &str| text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| is_number(text));
    let (hour, minute) = (number(hour)?, number(minute)?);
    let time = hour * 60 + minute;
    (minute < 60 && time <= DAY_MINUTES).then_some(time)
}

impl fmt::Display for WeekSpan {
    fn fmt(&self, form: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = match self.days {
            [true, true, true, true, true, true, true] => "daily".to_owned(),
            days => {
                let named = DAYS.iter().zip(days).filter(|(_, is_named)| *is_named);
                named.map(|(day, _)| *day).collect::<Vec<_>>().join(",")
            }
        };
        let (from, to) = (self.from, self.to);
        let [(h, m), (to_h, to_m)] = [from, to].map(|time| (time / 60, time % 60));
        write!(form, "{days} {h:02}:{m:02}-{to_h:02}:{to_m:02}")
    }
}

impl TryFrom<String> for WeekSpan {
    type Error = WeekSpanError;

    fn try_from(text: String) -> Result<Self, WeekSpanError> {
        text.parse()
    }
}

impl From<WeekSpan> for String {
    fn from(span: WeekSpan) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(day: u64, hour: u64, minute: u64) -> WeekTime {
        WeekTime::new((day * 24 + hour) * 3600 + minute * 60)
    }

    #[test]
    fn spans_have_days_and_times() {
        let span = |text: &str| text.parse::<WeekSpan>().unwrap();
        let work = span("Mon-Fri 08:00-18:00");
        assert!(work.contains(at(0, 8, 0)) && work.contains(at(4, 17, 59)));
        assert!(!work.contains(at(0, 7, 59)) && !work.contains(at(4, 18, 0)) && !work.contains(at(5, 12, 0)));
        let weekend = span("sat,sun 00:00-24:00");
        assert!(weekend.contains(at(5, 0, 0)) && weekend.contains(at(6, 23, 59)) && !weekend.contains(at(0, 0, 0)));
        let night = span("sun 23:30-01:15");
        assert!(night.contains(at(6, 23, 30)) && night.contains(at(0, 1, 14)));
        assert!(!night.contains(at(0, 1, 15)) && !night.contains(at(6, 1, 0)));
        let long = span("fri-mon 10:00-11:00");
        assert_eq!(long.to_string(), "mon,fri,sat,sun 10:00-11:00");
        assert_eq!(span("daily 00:00-06:00").to_string(), "daily 00:00-06:00");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "mon",
            "mon 8:00-9:00",
            "mon 08:00",
            "mon 08:00-08:00",
            "mon 24:00-01:00",
            "mon 08:60-09:00",
            "may 08:00-09:00",
            "mon 08:00-25:00",
            "mon- 08:00-09:00",
            "mon +1:00-02:00",
            "mon 08:00-09:00 x",
        ] {
            assert!(text.parse::<WeekSpan>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_span_is_the_same(days in proptest::array::uniform7(any::<bool>()), from in 0..DAY_MINUTES, to in 0..=DAY_MINUTES) {
            prop_assume!(from != to && days.contains(&true));
            let span = WeekSpan { days, from, to };
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }

        #[test]
        fn no_text_is_too_much(text in ".{0,40}") {
            let _ = text.parse::<WeekSpan>();
        }
    }
}
