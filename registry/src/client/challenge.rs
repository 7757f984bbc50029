//! [`Challenge`]: what a registry demands in `WWW-Authenticate` (RFC 9110, section 11.6.1).
//!
//! Registries and the proxies before them write this header in every way the grammar allows and some it does
//! not: several challenges in one line or in several lines, quoted strings with commas in them, capitals. The
//! parser takes what it understands and skips the rest; it never fails. Judging a realm is left to
//! [`super::token`].

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Longest header value looked at. Real ones are under 500 bytes.
const CHALLENGE_BYTES_MAX: usize = 8 * 1024;
/// Most challenges kept of one answer; nobody sends more than three.
const CHALLENGES_MAX: usize = 8;
/// Most parameters kept of one challenge; `Bearer` has five.
const PARAMETERS_MAX: usize = 16;

/// One way to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password in every request (RFC 7617).
    Basic,
    /// A token from `realm` (the distribution token specification).
    Bearer(Bearer),
}

/// The parameters of a `Bearer` challenge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    /// Where tokens are to be had: a URL, not yet judged.
    pub(super) realm: String,
    /// The registry's name for itself.
    pub(super) service: Option<String>,
    /// What the refused request would have needed, scopes separated by spaces.
    pub(super) scope: Option<String>,
}

/// The strongest challenge that rimg can meet: `Bearer` with a realm, else `Basic`.
pub(super) fn choose(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in parse(text) {
            match challenge {
                Challenge::Bearer(_) => return Some(challenge),
                Challenge::Basic => basic = Some(challenge),
            }
        }
    }
    basic
}

/// The challenges of one header value that rimg understands, in order.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    if text.len() > CHALLENGE_BYTES_MAX {
        return found;
    }
    let mut scanner = Scanner { rest: text };
    while found.len() < CHALLENGES_MAX {
        scanner.skip(|c| c == ',' || c.is_whitespace());
        let Some(scheme) = scanner.token() else { break };
        let parameters = scanner.parameters();
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            found.extend(bearer(parameters).map(Challenge::Bearer));
        }
    }
    found
}

fn bearer(parameters: Vec<(String, String)>) -> Option<Bearer> {
    let mut bearer = Bearer::default();
    for (name, value) in parameters {
        match name.to_ascii_lowercase().as_str() {
            "realm" => bearer.realm = value,
            "service" => bearer.service = Some(value),
            "scope" => bearer.scope = Some(value),
            _ => {}
        }
    }
    (!bearer.realm.is_empty()).then_some(bearer)
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    /// A token of RFC 9110, section 5.6.2, or what stands in its place up to a separator. A character that
    /// can start nothing is dropped, so that every call makes progress.
    fn token(&mut self) -> Option<&'a str> {
        let separates = |c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"' | ';');
        self.skip(separates);
        let end = self.rest.find(separates).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// `name=value` pairs up to the next scheme. A name not followed by `=` is that scheme, and is left there.
    fn parameters(&mut self) -> Vec<(String, String)> {
        let mut parameters = Vec::new();
        loop {
            self.skip(|c| c == ',' || c == ';' || c.is_whitespace());
            let before = self.rest;
            let Some(name) = self.token() else { break };
            self.skip(char::is_whitespace);
            let Some(rest) = self.rest.strip_prefix('=') else {
                self.rest = before;
                break;
            };
            self.rest = rest.trim_start();
            let value = self.value();
            if parameters.len() < PARAMETERS_MAX {
                parameters.push((name.to_owned(), value));
            }
        }
        parameters
    }

    fn value(&mut self) -> String {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let end = self.rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest.len());
            let (value, rest) = self.rest.split_at(end);
            self.rest = rest;
            return value.to_owned();
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return value;
                }
                '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                other => value.push(other),
            }
        }
        self.rest = "";
        value
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wanted(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let hub = wanted(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:a/b:pull,push"),
        );
        let table = [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![hub.clone()],
            ),
            (
                r#"bearer scope="repository:a/b:pull,push" , SERVICE=registry.docker.io, Realm = "https://auth.docker.io/token""#,
                vec![hub.clone()],
            ),
            (r#"Basic realm="a, Bearer realm=b""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Negotiate abc==, Basic realm="x", Bearer realm="https://t""#,
                vec![Challenge::Basic, wanted("https://t", None, None)],
            ),
            (r#"Negotiate, Bearer realm="https://t""#, vec![wanted("https://t", None, None)]),
            (r#"Bearer realm="a\"b\\c""#, vec![wanted(r#"a"b\c"#, None, None)]),
            (r#"Bearer realm="unterminated"#, vec![wanted("unterminated", None, None)]),
            ("Bearer", vec![]),
            ("Bearer service=x", vec![]),
            ("", vec![]),
            (",,,==,\"\"", vec![]),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert!(parse(&format!("Basic realm=\"{}\"", "x".repeat(CHALLENGE_BYTES_MAX))).is_empty());
        assert!(parse(&"Basic,".repeat(100)).len() <= CHALLENGES_MAX);
    }

    #[test]
    fn bearer_wins_over_basic_in_any_line() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        assert_eq!(choose(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"https://t\"".parse().unwrap());
        assert_eq!(choose(&headers), Some(wanted("https://t", None, None)));
        assert_eq!(choose(&HeaderMap::new()), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_a_server_sends_breaks_the_parser(text in "[a-zA-Z=\", \\\\;é]{0,80}") {
            parse(&text);
        }
    }
}
