//! From a request to its answer: find the endpoint, ask for the right, call the handler, dress the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{self, ConnectInfo, Request};
use axum::http::header::{
    ALLOW, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION, ORIGIN, WARNING,
};
use axum::http::{Method, StatusCode, request};
use axum::response::{IntoResponse, Response};
use rimg_formats::digest::Digest;

use super::access::{self, Caller};
use super::error::{ApiError, Cause, Code};
use super::event::Event;
use super::limits::{TARGET_BYTES_MAX, WARNING_BYTES_MAX};
use super::peer::Peer;
use super::query::Query;
use super::route::Route;
use super::{ServerError, State, blobs, listings, manifests, receive, referrers, uploads};

/// An answer.
pub(super) type Reply = Response;

pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NOSNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Characters of a target that events carry.
const SHOWN_TARGET_CHARS_MAX: usize = 512;

/// A request whose endpoint is known and allowed.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: Query,
    pub(super) caller: Caller,
    pub(super) body: Body,
}

impl Call {
    /// The length announced for the body; `None` when it is chunked. hyper has refused malformed and
    /// contradicting ones, and knows that a request with neither has no body.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// A header as text; one that is not is as good as absent.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The service: one handler for every path.
pub(super) fn router(state: Arc<State>) -> Router {
    Router::new().fallback(respond).with_state(state)
}

/// Answers a request. Never fails: a failure is an answer too.
async fn respond(
    extract::State(state): extract::State<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<Arc<Peer>>,
    request: Request,
) -> Reply {
    let started = Instant::now();
    let observed = state.options.observer.is_some().then(|| Observed::of(peer.address, &request));
    let mut reply = handle(&state, &peer, request).await.into_response();
    dress(&state, reply.headers_mut());
    if let Some(observed) = observed {
        let cause = reply.extensions_mut().remove::<Cause>().map(|Cause(cause)| cause);
        state.notify(|| observed.event(reply.status(), started.elapsed(), cause));
    }
    reply
}

async fn handle(state: &Arc<State>, peer: &Peer, request: Request) -> Result<Reply, ApiError> {
    let (parts, body) = request.into_parts();
    match check(state, peer, &parts) {
        Ok((route, query, caller)) => {
            let (method, headers) = (parts.method, parts.headers);
            dispatch(state, route, Call { method, headers, query, caller, body }).await
        }
        Err(refused) => {
            receive::refuse_body(&parts.headers, body).await;
            Err(refused)
        }
    }
}

/// Everything that can be said about a request without looking at the store.
fn check(state: &State, peer: &Peer, parts: &request::Parts) -> Result<(Route, Query, Caller), ApiError> {
    if parts.uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, Code::NameInvalid, "the URL is too long"));
    }
    state.names.check(parts)?;
    if is_cross_site(&parts.method, &parts.headers) {
        let message = "a page of another site may not change anything here";
        return Err(ApiError::new(StatusCode::FORBIDDEN, Code::Denied, message));
    }
    let route = Route::parse(parts.uri.path())?;
    let caller = Caller::new(&state.options.authorize, &parts.headers, peer, state.users.as_ref());
    caller.require(access::action(&route, &parts.method), route.repository())?;
    if !route.methods().split(", ").any(|allowed| allowed == parts.method.as_str()) {
        let message = format!("{} is not possible here", parts.method);
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
            .with_header(ALLOW, HeaderValue::from_static(route.methods())));
    }
    Ok((route, Query::parse(parts.uri.query())?, caller))
}

/// Whether a browser sends this on behalf of somebody else's page. Without it, any page that the user of a
/// registry on a loopback address looks at could fill the disk: a plain POST needs nobody's permission. Only
/// browsers send `Origin`, and they do with everything but GET and HEAD. Those change nothing here, and the
/// browser does not show their answers to the page. A page that took our place by its name is stopped by
/// [`names`](super::names).
fn is_cross_site(method: &Method, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    let site = origin.as_bytes().splitn(2, |byte| *byte == b':').nth(1);
    let own = site.and_then(|site| site.strip_prefix(b"//")).is_some_and(|site| Some(site) == host);
    !own && *method != Method::GET && *method != Method::HEAD
}

async fn dispatch(state: &Arc<State>, route: Route, call: Call) -> Result<Reply, ApiError> {
    let method = call.method.clone();
    match (route, method) {
        (Route::Base, _) => Ok(json(b"{}".to_vec())),
        (Route::Catalog, _) => listings::catalog(state, call).await,
        (Route::Tags { name }, _) => listings::tags(state, name, call).await,
        (Route::Referrers { name, digest }, _) => referrers::list(state, name, digest, call).await,
        (Route::Blob { name, digest }, Method::DELETE) => blobs::delete(state, name, digest).await,
        (Route::Blob { name, digest }, _) => blobs::get(state, name, digest, call).await,
        (Route::Manifest { name, version }, Method::PUT) => manifests::put(state, name, version, call).await,
        (Route::Manifest { name, version }, Method::DELETE) => {
            manifests::delete(state, name, version, call).await
        }
        (Route::Manifest { name, version }, _) => manifests::get(state, name, version, call).await,
        (Route::UploadStart { name }, _) => uploads::start(state, name, call).await,
        (Route::Upload { name, id }, Method::PATCH) => uploads::append(state, name, id, call).await,
        (Route::Upload { name, id }, Method::PUT) => uploads::finish(state, name, id, call).await,
        (Route::Upload { name, id }, Method::DELETE) => uploads::cancel(state, name, id).await,
        (Route::Upload { name, id }, _) => uploads::status(state, name, id).await,
    }
}

/// Adds what every answer carries. Blobs are strangers' bytes: no browser is to guess what they are.
fn dress(state: &State, headers: &mut HeaderMap) {
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(NOSNIFF, HeaderValue::from_static("nosniff"));
    for warning in &state.warnings {
        headers.append(WARNING, warning.clone());
    }
}

/// Words warnings as headers: `299 - "text"` (distribution-spec, *Warnings*).
pub(super) fn warnings(texts: &[String]) -> Result<Vec<HeaderValue>, ServerError> {
    let mut bytes = 0;
    let word = |text: &String| {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        let value = format!("299 - \"{quoted}\"");
        bytes += value.len();
        let fits = bytes <= WARNING_BYTES_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let value = HeaderValue::try_from(value).ok().filter(|_| fits);
        value.ok_or_else(|| ServerError::Warning(text.clone()))
    };
    texts.iter().map(word).collect()
}

/// A 200 with a JSON document.
pub(super) fn json(document: Vec<u8>) -> Reply {
    ([(CONTENT_TYPE, JSON)], document).into_response()
}

/// Sets `Location`. Relative to the host, so that it is right behind any proxy.
pub(super) fn set_location(reply: &mut Reply, path: &str) {
    let value = HeaderValue::from_str(path).expect("names, digests and ids are ASCII without controls");
    reply.headers_mut().insert(LOCATION, value);
}

/// Sets `Link: <target>; rel="next"`.
pub(super) fn set_next(reply: &mut Reply, target: &str) {
    let value = HeaderValue::try_from(format!("<{target}>; rel=\"next\""));
    reply.headers_mut().insert(LINK, value.expect("names are ASCII and parameters are percent-encoded"));
}

/// Sets `Docker-Content-Digest`.
pub(super) fn set_digest(reply: &mut Reply, digest: &Digest) {
    let value = HeaderValue::try_from(digest.to_string()).expect("a digest is ASCII");
    reply.headers_mut().insert(DOCKER_CONTENT_DIGEST, value);
}

/// What an event needs of a request that will be gone by then.
struct Observed {
    peer: SocketAddr,
    method: String,
    target: String,
}

impl Observed {
    fn of(peer: SocketAddr, request: &Request) -> Observed {
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let target = target.chars().take(SHOWN_TARGET_CHARS_MAX).collect();
        Observed { peer, method: request.method().to_string(), target }
    }

    fn event(self, status: StatusCode, elapsed: Duration, cause: Option<String>) -> Event {
        let Observed { peer, method, target } = self;
        Event::Request { peer, method, target, status: status.as_u16(), elapsed, cause }
    }
}
