//! [`Token`]s: getting them from a token server, by the distribution token specification (GET with Basic) and
//! its OAuth2 form (POST with an identity token), and for how long they are good.
//!
//! A registry names its token server itself, and credentials of that registry go there. This gives nothing
//! away to a registry that the credentials belong to anyway, but they must not leave the protection of TLS: a
//! registry spoken to by HTTPS may only name an HTTPS realm, and one spoken to without TLS only such a realm without
//! TLS as the user would let the registry be: its own host, this machine, or what [`PlainHttp`] allows.

use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::PlainHttp;
use super::challenge::Bearer;
use super::credentials::{Credential, Secret};
use super::endpoint;
use super::error::ClientError;
use super::session::Scopes;
use super::wire::{Request, Retries, Wire, host_of, protocol};

/// Largest answer of a token server. Tokens reach 20 KiB where every right is listed in them.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;
/// What a token that says nothing is good for, and the least that servers may give (token specification).
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// Longest time a token is reused without asking again, whatever its server claims.
const LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// A token this close to its end is not used any more: the request has yet to arrive.
const LIFETIME_MARGIN: Duration = Duration::from_secs(10);

/// Permission to do something at a registry for a while.
#[derive(Clone, Debug)]
pub(super) struct Token {
    text: Secret,
    good_until: Option<Instant>,
}

impl Token {
    /// A token that the user gave, good until it is refused.
    pub(super) fn fixed(text: Secret) -> Token {
        Token { text, good_until: None }
    }

    pub(super) fn is_good(&self) -> bool {
        self.good_until.is_none_or(|until| Instant::now() < until)
    }

    /// The header to send; `None` for a token with characters that headers cannot carry.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        sensitive(format!("Bearer {}", self.text.reveal()))
    }
}

/// `Authorization` by name and password (RFC 7617).
pub(super) fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    use base64::Engine as _;
    let pair = format!("{username}:{}", password.reveal());
    sensitive(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Number>,
}

/// Gets a token for `scopes` from the realm of `challenge`, which the registry at `registry` sent.
pub(super) async fn fetch(
    wire: &Wire,
    registry: &Url,
    challenge: &Bearer,
    scopes: &Scopes,
    credential: Option<&Credential>,
) -> Result<Token, ClientError> {
    let what = format!("a token for {}", scopes.shown());
    let realm = judged_realm(registry, &challenge.realm, &wire.options.plain_http)
        .map_err(|reason| protocol(registry, &what, reason))?;
    let (request, authorization) = match credential {
        Some(Credential::RegistryToken(token)) => return Ok(Token::fixed(token.clone())),
        Some(Credential::IdentityToken(token)) => (exchange(realm, challenge, scopes, token, &what), None),
        Some(Credential::Password { username, password }) => {
            (question(realm, challenge, scopes, &what), basic(username, password))
        }
        None => (question(realm, challenge, scopes, &what), None),
    };
    let asked = Instant::now();
    let mut retries = Retries::new(wire);
    let response = loop {
        let outcome = wire.once(&request, authorization.as_ref()).await;
        if let Some(response) = retries.settle(outcome, &what).await? {
            break response;
        }
    };
    if !response.status().is_success() {
        return Err(wire.refusal(response, &what, credential.is_some()).await);
    }
    let body = wire.read(response, &what, TOKEN_BYTES_MAX).await?;
    read_answer(&body, asked).ok_or_else(|| protocol(&request.url, &what, "there is no token in its answer"))
}

/// The realm as a URL, if credentials may go there.
fn judged_realm(registry: &Url, realm: &str, plain_http: &PlainHttp) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|_| "its token realm is not a URL".to_owned())?;
    let as_private = registry.scheme() == "http"
        && (url.host_str() == registry.host_str() || plain_http.allows(&host_of(&url)));
    if url.scheme() == "http" && !as_private {
        return Err("its token realm is plain HTTP, which would expose the credentials".to_owned());
    }
    endpoint::follow(registry, realm).map_err(|reason| format!("of its token realm: {reason}"))
}

fn question(mut realm: Url, challenge: &Bearer, scopes: &Scopes, what: &str) -> Request {
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = &challenge.service {
            query.append_pair("service", service);
        }
        for scope in scopes.iter() {
            query.append_pair("scope", scope);
        }
    }
    if realm.query() == Some("") {
        realm.set_query(None);
    }
    Request::new(Method::GET, realm, what).header(ACCEPT, HeaderValue::from_static("application/json"))
}

/// The OAuth2 form, which alone takes identity tokens.
fn exchange(realm: Url, challenge: &Bearer, scopes: &Scopes, token: &Secret, what: &str) -> Request {
    // Only the query writer of a URL is at hand to encode a form; both are the same encoding.
    let mut form = realm.clone();
    form.set_query(None);
    form.query_pairs_mut()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "rimg")
        .append_pair("service", challenge.service.as_deref().unwrap_or(""))
        .append_pair("scope", &scopes.joined())
        .append_pair("refresh_token", token.reveal());
    let body = form.query().unwrap_or_default().to_owned();
    let mut request = Request::new(Method::POST, realm, what)
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    request.body = body.into();
    request.stays_at_home = true;
    request
}

fn read_answer(body: &[u8], asked: Instant) -> Option<Token> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let present = |text: Option<String>| text.filter(|text| !text.is_empty());
    let text = present(answer.token).or_else(|| present(answer.access_token))?;
    let seconds = answer.expires_in.and_then(|number| number.as_u64());
    let lifetime =
        seconds.map_or(LIFETIME_DEFAULT, Duration::from_secs).clamp(LIFETIME_DEFAULT, LIFETIME_MAX);
    let good_until = asked + lifetime.saturating_sub(LIFETIME_MARGIN);
    let token = Token { text: Secret::new(text), good_until: Some(good_until) };
    token.header().is_some().then_some(token)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn realms_are_judged() {
        let table = [
            ("https://r.io/v2/", "https://auth.r.io/token?a=b", true),
            ("https://r.io/v2/", "http://auth.r.io/token", false),
            ("https://r.io/v2/", "http://r.io/token", false),
            ("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/token", true),
            ("http://127.0.0.1:5000/v2/", "file:///etc/shadow", false),
            ("http://127.0.0.1:5000/v2/", "ldap://x", false),
            ("https://r.io/v2/", "https://u:p@r.io/", false),
            ("https://r.io/v2/", "/token", false),
            ("https://r.io/v2/", "token", false),
        ];
        for (registry, realm, good) in table {
            let judged = judged_realm(&registry.parse().unwrap(), realm, &PlainHttp::Loopback);
            assert_eq!(judged.is_ok(), good, "{realm}");
        }
    }

    #[test]
    fn a_realm_without_tls_is_one_that_the_user_allows() {
        let hosts = || PlainHttp::Hosts(["r.lan".parse().unwrap(), "auth.lan:81".parse().unwrap()].into());
        let table = [
            ("http://127.0.0.1:5000/v2/", "http://auth.example/token", PlainHttp::Loopback, false),
            ("http://localhost:5000/v2/", "http://localhost:5001/token", PlainHttp::Loopback, true),
            ("http://r.lan/v2/", "http://r.lan:81/token", hosts(), true),
            ("http://r.lan/v2/", "http://auth.lan:81/token", hosts(), true),
            ("http://r.lan/v2/", "http://auth.lan/token", hosts(), false),
            ("http://r.lan/v2/", "http://auth.lan/token", PlainHttp::Always, true),
            ("https://r.lan/v2/", "http://r.lan/token", PlainHttp::Always, false),
        ];
        for (registry, realm, plain_http, good) in table {
            let judged = judged_realm(&registry.parse().unwrap(), realm, &plain_http);
            assert_eq!(judged.is_ok(), good, "{registry} {realm} {plain_http:?}");
        }
    }

    #[test]
    fn answers_of_token_servers() {
        let now = Instant::now();
        let lifetime = |text: &str| {
            let token = read_answer(text.as_bytes(), now)?;
            Some(token.good_until.unwrap().duration_since(now).as_secs())
        };
        assert_eq!(lifetime(r#"{"token":"t","expires_in":300}"#), Some(290));
        assert_eq!(lifetime(r#"{"access_token":"t"}"#), Some(50));
        assert_eq!(lifetime(r#"{"token":"","access_token":"t","expires_in":-5}"#), Some(50));
        assert_eq!(lifetime(r#"{"token":"t","expires_in":18446744073709551615}"#), Some(3590));
        assert_eq!(lifetime(r#"{"token":"t","expires_in":0}"#), Some(50));
        for bad in ["", "{}", "[]", r#"{"token":"a\nb"}"#, r#"{"token":5}"#] {
            assert_eq!(lifetime(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let token = Token::fixed(Secret::new("hunter2"));
        assert!(!format!("{token:?}").contains("hunter2"));
        assert!(!format!("{:?}", token.header()).contains("hunter2"));
        assert!(!format!("{:?}", Credential::password("u", "hunter2")).contains("hunter2"));
    }
}
