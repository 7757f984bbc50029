//! Numbers as people read them: sizes in docker's decimal units, ages, durations.

use std::time::Duration;

use rimg_formats::epoch::Epoch;

/// Bytes with three significant digits and decimal units, as docker shows them: `1.23MB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

/// How long ago `then` was, in docker's words: `3 days ago`. The constant date of reproducible builds says nothing
/// about the image's age, so it is `-`.
pub(crate) fn age(then: Epoch, now: Epoch) -> String {
    if then == Epoch::DEFAULT {
        return "-".to_owned();
    }
    const STEPS: [(i64, &str); 7] = [
        (365 * 86_400, "year"),
        (30 * 86_400, "month"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    let seconds = now.seconds().saturating_sub(then.seconds());
    match STEPS.iter().find(|(length, _)| seconds >= *length) {
        None => "just now".to_owned(),
        Some((length, name)) => match seconds / length {
            1 => format!("1 {name} ago"),
            count => format!("{count} {name}s ago"),
        },
    }
}

/// A duration for a progress line: `0.3s`, `12.0s`, `3m05s`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        _ => format!("{}m{:02}s", seconds / 60, seconds % 60),
    }
}

/// Reads a size as docker's flags take it: a number with an optional `b`, `k`, `m`, `g` or `t`, powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("`{text}` is not a size: expected a number with an optional unit, such as 512m or 2g");
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        Some(b't') => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: f64 = number.parse().ok().filter(|_| plain).ok_or_else(refuse)?;
    let bytes = value * (1u64 << shift) as f64;
    // 2^53 bytes are 9 petabytes: beyond, a float no longer counts bytes.
    if bytes < 9_007_199_254_740_992.0 { Ok(bytes as u64) } else { Err(refuse()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_dockers() {
        for (bytes, shown) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (12_345, "12.3kB"),
            (999_499, "999kB"),
            (999_999, "1.00MB"),
            (63_320_000, "63.3MB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn sizes_are_parsed_as_dockers_flags() {
        for (text, bytes) in
            [("1", 1), ("512m", 512 << 20), ("1.5g", 3 << 29), ("2GB", 2 << 30), ("4KiB", 4096), ("10b", 10)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "m", "-1m", "1x", "1e3", "inf", "9999999999t"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages_use_the_largest_unit() {
        let at = |seconds| Epoch::from_seconds(seconds).unwrap();
        for (seconds, shown) in [
            (0, "just now"),
            (1, "1 second ago"),
            (119, "1 minute ago"),
            (7200, "2 hours ago"),
            (86_400 * 800, "2 years ago"),
        ] {
            assert_eq!(age(at(0), at(seconds)), shown);
        }
        assert_eq!(age(at(100), at(0)), "just now");
        assert_eq!(age(Epoch::DEFAULT, at(1_700_000_000)), "-");
    }
}
