//! [`ClientError`]: why talking to a registry failed, by what the caller can do about it.
//!
//! What a registry says about itself is shown, but as a stranger's words: control characters are dropped and
//! the length is capped. Passwords and tokens never get into an error, and neither do URLs with a query, since
//! signed storage URLs are passwords too.

use std::io;
use std::time::Duration;

use reqwest::Url;

use super::credentials::CredentialError;
use super::diagnosis::{Distrust, NoConnection, Target};

/// Most characters of a registry's own message that are shown.
const MESSAGE_CHARS_MAX: usize = 400;

/// Why talking to a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The registry wants to know who is asking, or does not accept the answer.
    #[error("{host} denies access to {what}{}", said(.detail))]
    Unauthorized {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Whether credentials were sent.
        with_credentials: bool,
        /// The registry's own words.
        detail: String,
    },
    /// The registry knows who is asking and refuses.
    #[error("{host} forbids access to {what}{}", said(.detail))]
    Denied {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words.
        detail: String,
    },
    /// There is no such thing.
    #[error("{what} was not found on {host}{}", said(.detail))]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words.
        detail: String,
    },
    /// The registry asks to slow down, for longer than rimg waits by itself.
    #[error("{host} limits the rate of requests{}{}", wait(.retry_after), said(.detail))]
    TooManyRequests {
        /// The registry.
        host: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
        /// The registry's own words.
        detail: String,
    },
    /// HTTPS was spoken to a server that speaks plain HTTP.
    #[error("{host} does not speak TLS: it answers plain HTTP")]
    TlsExpected {
        /// The registry.
        host: String,
    },
    /// The answer is no HTTP: probably the server wants TLS, or another protocol altogether.
    #[error("{host} answers with something other than HTTP")]
    HttpExpected {
        /// The server.
        host: String,
        /// Whether TLS was spoken.
        tls: bool,
    },
    /// The TLS handshake failed: mostly a certificate that nobody known has signed.
    #[error("no trusted connection to {host}: {reason}")]
    Tls {
        /// The server.
        host: String,
        /// What is wrong with its certificate, or what TLS says.
        reason: Distrust,
    },
    /// No connection came about.
    #[error("failed to reach {}: {reason}", .target.host)]
    NoConnection {
        /// Where it was to lead.
        target: Box<Target>,
        /// Why not.
        reason: NoConnection,
    },
    /// The connection broke, or nothing came over it for too long, once too often.
    #[error("the connection to {host} failed at {what}: {reason}")]
    Unreachable {
        /// The server.
        host: String,
        /// What was asked for.
        what: String,
        /// What the network says.
        reason: String,
    },
    /// The registry refuses the request for another reason (status 4xx).
    #[error("{host} refuses {what} with status {status}{}", said(.detail))]
    Refused {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        detail: String,
    },
    /// The registry failed (status 5xx), repeatedly.
    #[error("{host} failed with status {status} at {what}{}", said(.detail))]
    ServerFailed {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words.
        detail: String,
    },
    /// The answer breaks the protocol, or tries something that rimg does not follow.
    #[error("{host} answers {what} wrongly: {reason}")]
    Protocol {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The rule it breaks.
        reason: String,
    },
    /// The content is not what its digest or size promises.
    #[error("{what} from {host} is damaged: {reason}")]
    Damaged {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What does not fit.
        reason: String,
    },
    /// The answer is larger than rimg accepts for its kind.
    #[error("{what} from {host} is larger than the {limit_bytes} bytes accepted")]
    TooLarge {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit.
        limit_bytes: u64,
    },
    /// Stored credentials cannot be read or written.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The local content to be pushed cannot be read.
    #[error("reading {what} to push it: {source}")]
    Source {
        /// The content.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The client cannot work on this machine: no threads, or certificates that cannot be read.
    #[error("setting up the registry client: {0}")]
    Setup(String),
}

impl ClientError {
    /// What the user can do next, if anything is known to help.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Unauthorized { host, with_credentials: false, .. } => {
                Some(format!("log in with `rimg login {}`", shown_host(host)))
            }
            ClientError::Unauthorized { host, .. } => Some(format!(
                "the stored credentials were not accepted: check the name, or `rimg login {}` again",
                shown_host(host)
            )),
            ClientError::Denied { host, .. } => Some(format!(
                "the account may lack rights to this repository: see `rimg login {}`",
                shown_host(host)
            )),
            ClientError::TooManyRequests { host, .. } => {
                Some(format!("wait, or log in with `rimg login {}` for a higher limit", shown_host(host)))
            }
            ClientError::TlsExpected { .. } => {
                Some("if the network between is trusted, allow it with `--plain-http`".to_owned())
            }
            ClientError::HttpExpected { tls: false, .. } => {
                Some("if it speaks TLS, leave out `--plain-http`".to_owned())
            }
            ClientError::Tls { host, reason } => reason.hint(host),
            ClientError::NoConnection { target, reason } => reason.hint(target),
            _ => None,
        }
    }

    /// Whether the same request may succeed when repeated.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            ClientError::NoConnection { reason, .. } => reason.is_transient(),
            ClientError::Unreachable { .. } | ClientError::ServerFailed { .. } => true,
            _ => false,
        }
    }

    /// Whether it says that the thing is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::NotFound { .. })
    }
}

/// Docker Hub is logged in to by its short name.
fn shown_host(host: &str) -> &str {
    if host == rimg_formats::reference::DOCKER_HUB_HOST { rimg_formats::reference::DOCKER_HUB } else { host }
}

fn said(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn wait(retry_after: &Option<Duration>) -> String {
    retry_after.map_or(String::new(), |wait| format!(" and asks to wait {} s", wait.as_secs()))
}

/// A stranger's words made fit to print: one line, no control or direction-changing characters, not too long.
pub(super) fn sanitise(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let one_line = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|&c| !hidden(c));
    let mut shown: String = one_line.take(MESSAGE_CHARS_MAX + 1).collect();
    if let Some((cut, _)) = shown.char_indices().nth(MESSAGE_CHARS_MAX) {
        shown.truncate(cut);
        shown.push('…');
    }
    shown.trim().to_owned()
}

/// The registry's own message within an error body: the `errors` list of distribution-spec, *Error Codes*, the
/// `details` or `message` of token servers, or the first line of plain text.
pub(super) fn message_of(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("");
        return if line.starts_with('<') { String::new() } else { sanitise(line) };
    };
    let errors = value.get("errors").and_then(|errors| errors.as_array());
    let parts: Vec<String> = errors.into_iter().flatten().take(3).filter_map(one_error).collect();
    if !parts.is_empty() {
        return sanitise(&parts.join("; "));
    }
    let plain = ["details", "message", "error_description", "error"];
    sanitise(plain.iter().find_map(|key| value.get(key)?.as_str()).unwrap_or(""))
}

fn one_error(error: &serde_json::Value) -> Option<String> {
    let field = |name| error.get(name).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
    match (field("code"), field("message")) {
        (Some(code), Some(message)) => Some(format!("{message} ({code})")),
        (one, other) => one.or(other).map(str::to_owned),
    }
}

/// A URL as it may be shown: without user, query and fragment.
pub(super) fn shown_url(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    sanitise(&format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or(""), url.path()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn registries_messages_are_found_and_tamed() {
        let table: [(&[u8], &str); 9] = [
            (
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"x":1}}]}"#,
                "manifest unknown (MANIFEST_UNKNOWN)",
            ),
            (br#"{"errors":[{"code":"A"},{"message":"b"}]}"#, "A; b"),
            (br#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (br#"{"errors":"nonsense"}"#, ""),
            (b"404 page not found\nmore", "404 page not found"),
            (b"<html><body>", ""),
            (b"", ""),
            (b"a\x1b[31mred\x07", "a[31mred"),
            ("a\u{202e}b".as_bytes(), "ab"),
        ];
        for (body, expected) in table {
            assert_eq!(message_of(body), expected, "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(sanitise(&"é".repeat(10_000)).chars().count(), MESSAGE_CHARS_MAX + 1);
    }

    #[test]
    fn signatures_in_urls_are_not_shown() {
        let url: Url = "https://u:p@host:444/path?X-Amz-Signature=secret#f".parse().unwrap();
        assert_eq!(shown_url(&url), "https://host:444/path");
    }
}
