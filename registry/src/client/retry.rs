//! [`RetryPolicy`]: how often, and after what wait, a failed request is repeated.
//!
//! Waits double from try to try and are spread at random between half and the whole of that, so that many
//! clients cut off at once do not come back at once. A `Retry-After` takes precedence as long as it is bearable.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};

/// How often, and after what wait, a failed request is repeated.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Tries in all, the first included; at least one is made.
    pub tries_max: u32,
    /// The wait before the second try.
    pub first_wait: Duration,
    /// No wait of our own is longer than this.
    pub wait_max: Duration,
    /// Longest `Retry-After` that is waited for; beyond it the caller gets an error that names it.
    pub retry_after_max: Duration,
}

impl Default for RetryPolicy {
    /// Five tries within about eight seconds: long enough for a restarting registry or a lost connection,
    /// short enough for somebody who mistyped a host.
    fn default() -> Self {
        RetryPolicy {
            tries_max: 5,
            first_wait: Duration::from_millis(300),
            wait_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    /// The wait after the `failed`-th failure (from 1); `None` when no further try is due.
    pub(super) fn wait_after(&self, failed: u32) -> Option<Duration> {
        if failed >= self.tries_max.max(1) {
            return None;
        }
        let doubled = self.first_wait.saturating_mul(1_u32.checked_shl(failed - 1).unwrap_or(u32::MAX));
        let whole = doubled.min(self.wait_max);
        Some(whole / 2 + whole.mul_f64(random_fraction() / 2.0))
    }
}

/// A connection that brings so much before it breaks is one of a working, if bad, network: taking a transfer up again
/// is worth its round trips.
const PROGRESS_BYTES_MIN: u64 = 1024 * 1024;
/// Most times in a row that a transfer is taken up again for less than that. Whoever hands out a byte at a time would
/// otherwise keep it for years.
const CRUMBS_MAX: u32 = 50;

/// Decides whether, and after what wait, one transfer that broke off is taken up again: for as long as each
/// connection brings it further, and as often as any request is repeated where none does.
#[derive(Debug)]
pub(super) struct Resumptions {
    policy: RetryPolicy,
    furthest: u64,
    /// Failures in a row without any progress; the last one with some is the first of them.
    failed: u32,
    /// Failures in a row with less than [`PROGRESS_BYTES_MIN`].
    crumbs: u32,
}

impl Resumptions {
    /// For a transfer that begins at byte `offset`.
    pub(super) fn new(policy: RetryPolicy, offset: u64) -> Resumptions {
        Resumptions { policy, furthest: offset, failed: 0, crumbs: 0 }
    }

    /// Whether the transfer has got nowhere since the last failure.
    pub(super) fn is_stuck(&self) -> bool {
        self.failed > 1
    }

    /// The transfer broke off at `offset`: the wait before the next try; `None` when none is due.
    pub(super) fn wait_after(&mut self, offset: u64) -> Option<Duration> {
        let brought = offset.saturating_sub(self.furthest);
        self.furthest = self.furthest.max(offset);
        self.failed = if brought > 0 { 1 } else { self.failed + 1 };
        self.crumbs = if brought >= PROGRESS_BYTES_MIN { 0 } else { self.crumbs + 1 };
        if self.crumbs > CRUMBS_MAX { None } else { self.policy.wait_after(self.failed) }
    }
}

/// Whether a server that answers so may answer otherwise a moment later.
pub(super) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date. What a date means is counted from the server's own
/// `Date`, if it sent one, since its clock and ours (`now`) need not agree.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    Some(until.duration_since(from).unwrap_or_default())
}

/// A number in [0, 1). The standard library's hash seeds come from the kernel; nothing more is needed to spread
/// waits.
fn random_fraction() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end() {
        let policy = RetryPolicy {
            tries_max: 40,
            first_wait: Duration::from_millis(100),
            wait_max: Duration::from_secs(1),
            ..RetryPolicy::default()
        };
        for (failed, whole_ms) in [(1, 100), (2, 200), (4, 800), (5, 1000), (39, 1000)] {
            let wait = policy.wait_after(failed).unwrap().as_millis();
            assert!(whole_ms / 2 <= wait && wait <= whole_ms, "{failed}: {wait}");
        }
        assert_eq!(policy.wait_after(40), None);
        assert_eq!(RetryPolicy { tries_max: 0, ..policy }.wait_after(1), None);
    }

    #[test]
    fn a_transfer_goes_on_while_it_gets_on() {
        let policy = RetryPolicy { tries_max: 3, ..RetryPolicy::default() };
        let failures = |step: u64| {
            let mut resumptions = Resumptions::new(policy, 7);
            (1..1000).take_while(|number| resumptions.wait_after(7 + number * step).is_some()).count()
        };
        assert_eq!(failures(0), 2);
        assert_eq!(failures(1), 50);
        assert_eq!(failures(PROGRESS_BYTES_MIN - 1), 50);
        assert_eq!(failures(PROGRESS_BYTES_MIN), 999);
        // What is lost again and again is no progress.
        let mut resumptions = Resumptions::new(policy, 0);
        let tries = (1..1000).take_while(|number| resumptions.wait_after(number % 2 * 5_000_000).is_some());
        assert_eq!(tries.count(), 2);
        assert!(resumptions.is_stuck());
    }

    #[test]
    fn retry_after_in_seconds_or_until_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let read = |text: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            headers.extend(date.map(|date| (DATE, date.parse().unwrap())));
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(read(" 7", None), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT", None), Some(30));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT", Some("Sun, 06 Nov 1994 08:50:00 GMT")), Some(7));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:07 GMT", Some("nonsense")), Some(30));
        assert_eq!(read("Sat, 05 Nov 1994 08:50:07 GMT", None), Some(0));
        for other in ["-1", "1e9", "99999999999999999999999", "Sun, 06 Nov", "tomorrow"] {
            assert_eq!(read(other, None), None, "{other}");
        }
    }
}
