//! [`Epoch`]: the one time that a build's entries and configuration carry.
//!
//! `SOURCE_DATE_EPOCH` (reproducible-builds.org, specification of that name) when it is set, else a fixed date.
//! The fixed date lies a day after 1980-01-01 because zip archives and Python's `zipfile` cannot tell earlier
//! times, in any time zone.

use std::fmt;

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(i64);

/// Why `SOURCE_DATE_EPOCH` was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SOURCE_DATE_EPOCH is `{0}`: expected seconds since 1970 as a decimal number up to 253402300799")]
pub struct EpochError(String);

impl Epoch {
    /// 1980-01-02T00:00:00Z.
    pub const DEFAULT: Epoch = Epoch(315_619_200);
    /// 9999-12-31T23:59:59Z: the last second that RFC 3339 can write.
    pub const MAX: Epoch = Epoch(253_402_300_799);

    /// The time `seconds` after 1970; `None` outside of 1970 to 9999.
    pub fn from_seconds(seconds: i64) -> Option<Epoch> {
        (0..=Self::MAX.0).contains(&seconds).then_some(Epoch(seconds))
    }

    /// The value of `SOURCE_DATE_EPOCH`, given as text.
    pub fn parse(text: &str) -> Result<Epoch, EpochError> {
        let refuse = || EpochError(text.chars().take(40).collect());
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = text.parse().ok().filter(|_| digits).ok_or_else(refuse)?;
        Epoch::from_seconds(seconds).ok_or_else(refuse)
    }

    /// What the environment asks for; [`Epoch::DEFAULT`] when it is silent.
    pub fn from_environment() -> Result<Epoch, EpochError> {
        match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) if !text.is_empty() => Epoch::parse(&text),
            _ => Ok(Epoch::DEFAULT),
        }
    }

    /// The present.
    pub fn now() -> Epoch {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Epoch(i64::try_from(since.as_secs()).unwrap_or(Self::MAX.0).min(Self::MAX.0))
    }

    /// Seconds since 1970.
    pub fn seconds(self) -> i64 {
        self.0
    }

    /// Reads RFC 3339 as configurations carry it; fractions are cut off, offsets applied.
    pub fn parse_rfc3339(text: &str) -> Option<Epoch> {
        let number = |range: std::ops::Range<usize>| {
            let digits = text.get(range)?;
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
        };
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let rest = text.get(19..)?;
        let rest = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        let offset = match rest.as_bytes() {
            [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
                let hours: i64 = rest.get(1..3)?.parse().ok()?;
                let minutes: i64 = rest.get(4..6)?.parse().ok()?;
                let seconds = hours * 3600 + minutes * 60;
                if *sign == b'-' { -seconds } else { seconds }
            }
            _ => return None,
        };
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let seconds =
            days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
        Epoch::from_seconds(seconds)
    }
}

impl fmt::Display for Epoch {
    /// RFC 3339 in UTC: `1980-01-02T00:00:00Z`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Days since 1970-01-01 of a date of the Gregorian calendar. Years start in March, so that the leap day
/// comes last and every month's first day has a closed form.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (315_619_200, "1980-01-02T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            let epoch = Epoch::from_seconds(seconds).unwrap();
            assert_eq!(epoch.to_string(), text);
            assert_eq!(Epoch::parse_rfc3339(text), Some(epoch));
        }
        assert_eq!(
            Epoch::parse_rfc3339("2023-11-14T23:13:20.123456789+01:00").unwrap().seconds(),
            1_700_000_000
        );
        for bad in [
            "",
            "2023",
            "2023-13-01T00:00:00Z",
            "2023-01-01T00:00:00",
            "2023-01-01T00:00:00+1:00",
            "+023-01-01T00:00:00Z",
        ] {
            assert_eq!(Epoch::parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn source_date_epoch_is_strict() {
        assert_eq!(Epoch::parse("1700000000").unwrap().seconds(), 1_700_000_000);
        for bad in ["", "-1", "+1", "1.5", "x", "253402300800", "99999999999999999999"] {
            assert!(Epoch::parse(bad).is_err(), "{bad}");
        }
    }
}
