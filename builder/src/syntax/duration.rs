//! Durations as Go writes them: `1h30m`, `1.5s`, `100ms`.

use std::fmt;

/// A non-negative duration in nanoseconds, the unit of the image configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration {
    nanoseconds: i64,
}

/// The text is no duration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration `{0}`: write a number and a unit, such as `30s`, `1m30s` or `500ms`")]
pub struct DurationError(String);

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl Duration {
    /// Reads a duration.
    ///
    /// # Errors
    /// [`DurationError`] if the text is none, is negative or does not fit in 63 bits of nanoseconds.
    pub fn parse(text: &str) -> Result<Duration, DurationError> {
        let error = || DurationError(text.to_owned());
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Ok(Duration { nanoseconds: 0 });
        }
        if rest.is_empty() {
            return Err(error());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
            let (digits, after) = rest.split_at(number);
            let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, after) = after.split_at(unit);
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(error)?;
            let part = scaled(digits, *scale).ok_or_else(error)?;
            total = total.checked_add(part).ok_or_else(error)?;
            rest = after;
        }
        i64::try_from(total).map(|nanoseconds| Duration { nanoseconds }).map_err(|_| error())
    }

    /// Nanoseconds, never negative.
    pub fn nanoseconds(&self) -> i64 {
        self.nanoseconds
    }
}

/// `digits[.digits]` times the unit; what lies below a nanosecond is cut off.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut unit = scale;
    for digit in fraction.chars() {
        unit /= 10;
        total = total.checked_add(u64::from(digit.to_digit(10)?) * unit)?;
    }
    Some(total)
}

impl fmt::Display for Duration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}ns", self.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let good = [
            ("0", 0),
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("100ms", 100_000_000),
            ("1µs", 1_000),
            ("+1ns", 1),
        ];
        for (text, expected) in good {
            assert_eq!(Duration::parse(text).map(|d| d.nanoseconds()), Ok(expected), "{text}");
        }
        for text in ["", "-1s", "1", "s", "1x", "1.2.3s", ".s", "1s ", "9999999999h", "99999999999999999999s"]
        {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
    }
}
