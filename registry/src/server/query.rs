//! The query part of a request's target, percent-decoded once, and the numbers in it.

use std::borrow::Cow;

use super::error::{ApiError, Code};
use super::limits::PAGE_ENTRIES_MAX;

/// The parameters in their order; a name may occur more than once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `name=value&…`; what is not UTF-8 after decoding is refused.
    pub(super) fn parse(text: Option<&str>) -> Result<Query, ApiError> {
        let mut parameters = Vec::new();
        for part in text.unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " ")).map(Cow::into_owned);
            match (decode(name), decode(value)) {
                (Some(name), Some(value)) => parameters.push((name, value)),
                _ => {
                    return Err(ApiError::bad_request(
                        Code::ParameterInvalid,
                        "a parameter of the URL is not percent-encoded UTF-8",
                    ));
                }
            }
        }
        Ok(Query(parameters))
    }

    /// The first value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// All values of `name`.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The page asked for: `n` entries after `last`.
    pub(super) fn page(&self) -> Result<Page<'_>, ApiError> {
        let entries = match self.get("n") {
            None => PAGE_ENTRIES_MAX,
            Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                // A number too large to hold is still a number, and capped like one.
                text.parse().unwrap_or(usize::MAX).min(PAGE_ENTRIES_MAX)
            }
            Some(_) => {
                return Err(ApiError::bad_request(
                    Code::ParameterInvalid,
                    "`n` must be a whole number of entries",
                ));
            }
        };
        Ok(Page { entries, after: self.get("last").filter(|last| !last.is_empty()) })
    }
}

/// Part of a sorted listing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<'a> {
    /// How many entries at most.
    pub(super) entries: usize,
    /// The entry before the first one.
    pub(super) after: Option<&'a str>,
}

/// Decodes `%XX`; `None` when an escape is broken or the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        decoded.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// Encodes everything but the characters that need no thought in any part of a URL.
pub(super) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once() {
        let query = Query::parse(Some("digest=sha256%3Aab&from=a%2Fb&tag=x&tag=y&flag&e=%2525")).unwrap();
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.get("from"), Some("a/b"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("e"), Some("%25"));
        assert_eq!(query.get("none"), None);
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["a=%", "a=%4", "a=%zz", "a=%ff", "%=1"] {
            assert!(Query::parse(Some(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn pages() {
        let page = |text: &str| Query::parse(Some(text)).unwrap().page().map(|page| page.entries).ok();
        for (text, expected) in [
            ("", Some(PAGE_ENTRIES_MAX)),
            ("n=0", Some(0)),
            ("n=7", Some(7)),
            ("n=99999999999999999999999", Some(PAGE_ENTRIES_MAX)),
            ("n=-1", None),
            ("n=", None),
            ("n=1.5", None),
            ("n=%2B5", None),
        ] {
            assert_eq!(page(text), expected, "{text}");
        }
    }

    #[test]
    fn encoding_is_undone_by_decoding() {
        for text in ["v1.0-rc_1", "a b&c=d/e%f", "ü"] {
            assert_eq!(percent_decode(&percent_encode(text)).unwrap(), text);
        }
    }
}
