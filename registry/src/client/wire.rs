//! [`Wire`]: single HTTP exchanges, with redirects, limits, time-outs and retries; it knows nothing of who is
//! logged in. Authorization is added by [`super::session`].
//!
//! There is no limit on the time of a whole transfer: a blob of any size may take as long as bytes keep
//! coming. What is limited is the time without any progress.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client as HttpClient, Method, Response, StatusCode, Url};
use rimg_formats::compression::{Compression, decoder};
use rimg_formats::reference::RegistryHost;

use super::ClientOptions;
use super::diagnosis::{innermost, network};
use super::endpoint::{self, same_origin};
use super::error::{ClientError, message_of, sanitise};
use super::names::SystemResolver;
use super::no_proxy::NoProxy;
use super::retry;
use super::tls;

/// Most redirects followed for one request. Registries need one, some content networks two.
pub(super) const REDIRECTS_MAX: usize = 5;
/// Most bytes read of an error's body.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// A request that can be repeated.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Its body is a secret, which no redirect may carry to another host.
    pub(super) stays_at_home: bool,
    /// What it is about, for error messages: "manifest of app:1".
    pub(super) what: String,
}

impl Request {
    pub(super) fn new(method: Method, url: Url, what: impl Into<String>) -> Request {
        let (headers, body, what) = (HeaderMap::new(), Bytes::new(), what.into());
        Request { method, url, headers, body, stays_at_home: false, what }
    }

    pub(super) fn header(
        mut self,
        name: impl reqwest::header::IntoHeaderName,
        value: HeaderValue,
    ) -> Request {
        self.headers.insert(name, value);
        self
    }
}

/// Which connections may be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Pool {
    /// Plain HTTP to this machine, never through a proxy.
    Loopback,
    /// Plain HTTP elsewhere.
    Plain,
    /// HTTPS by the general roots.
    Tls,
    /// HTTPS with this folder of certificates besides.
    TlsWith(PathBuf),
}

/// Makes single exchanges.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) options: ClientOptions,
    resolver: SystemResolver,
    no_proxy: NoProxy,
    pools: Mutex<HashMap<(Pool, bool), HttpClient>>,
}

impl Wire {
    pub(super) fn new(options: ClientOptions) -> Wire {
        let (resolver, no_proxy) = (SystemResolver::default(), NoProxy::from_environment());
        Wire { options, resolver, no_proxy, pools: Mutex::new(HashMap::new()) }
    }

    /// The folder of certificates for `host`, as docker and podman keep them.
    pub(super) fn certificates_of(&self, host: &str) -> Option<PathBuf> {
        let folders = self.options.certificate_folders.iter().map(|folder| folder.join(host));
        folders.into_iter().find(|folder| folder.is_dir())
    }

    /// The pool of connections for `url`.
    pub(super) fn pool(&self, url: &Url) -> Result<HttpClient, ClientError> {
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        let host = format!("{}{port}", url.host_str().unwrap_or_default());
        let loopback = host.parse::<RegistryHost>().is_ok_and(|host| host.is_loopback());
        let pool = match url.scheme() {
            "https" => self.certificates_of(&host).map_or(Pool::Tls, Pool::TlsWith),
            _ if loopback => Pool::Loopback,
            _ => Pool::Plain,
        };
        let direct = loopback || self.no_proxy.covers(url);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (pool, direct);
        if let Some(client) = pools.get(&key) {
            return Ok(client.clone());
        }
        let client = self.new_pool(&key.0, direct)?;
        pools.insert(key, client.clone());
        Ok(client)
    }

    /// `direct` ones use no proxy.
    fn new_pool(&self, pool: &Pool, direct: bool) -> Result<HttpClient, ClientError> {
        let files = &self.options.ca_files;
        let tls = match pool {
            Pool::Loopback | Pool::Plain => tls::trust_nobody(),
            Pool::Tls => tls::trust(files, None),
            Pool::TlsWith(folder) => tls::trust(files, Some(folder)),
        };
        let here =
            [SocketAddr::from(([127, 0, 0, 1], 0)), SocketAddr::from(([0_u16, 0, 0, 0, 0, 0, 0, 1], 0))];
        let mut builder = HttpClient::builder()
            .tls_backend_preconfigured(tls.map_err(ClientError::Setup)?)
            .user_agent(&self.options.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.options.connect_timeout)
            .tcp_keepalive(Duration::from_secs(30))
            .dns_resolver(self.resolver.clone())
            // A name that needs no server, and must not be asked of one.
            .resolve_to_addrs("localhost", &here);
        if direct {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| ClientError::Setup(innermost(&error)))
    }

    /// One exchange, redirects followed. `authorization` is sent to the origin that the request itself goes to,
    /// and dropped where a redirect leads elsewhere.
    pub(super) async fn once(
        &self,
        request: &Request,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, ClientError> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut headers = request.headers.clone();
            if let Some(value) = authorization
                && same_origin(&request.url, &url)
            {
                headers.insert(AUTHORIZATION, value.clone());
            }
            let sent = self.pool(&url)?.request(request.method.clone(), url.clone()).headers(headers);
            let response = self.await_answer(&url, &request.what, sent.body(request.body.clone())).await?;
            match redirect(&url, request, &response)? {
                None => return Ok(response),
                Some(next) => url = next,
            }
        }
        Err(too_many_redirects(request))
    }

    async fn await_answer(
        &self,
        url: &Url,
        what: &str,
        builder: reqwest::RequestBuilder,
    ) -> Result<Response, ClientError> {
        match tokio::time::timeout(self.options.idle_timeout, builder.send()).await {
            Ok(sent) => sent.map_err(|error| self.network(url, what, &error)),
            Err(_) => Err(self.silent(url, what)),
        }
    }

    /// The error behind a request that got no answer.
    pub(super) fn network(&self, url: &Url, what: &str, error: &reqwest::Error) -> ClientError {
        network(url, what, self.options.connect_timeout, error)
    }

    /// The error of a server that says nothing for too long.
    pub(super) fn silent(&self, url: &Url, what: &str) -> ClientError {
        let reason = format!("no answer within {} s", self.options.idle_timeout.as_secs());
        ClientError::Unreachable { host: host_of(url), what: what.to_owned(), reason }
    }

    /// The next piece of a body.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        what: &str,
    ) -> Result<Option<Bytes>, ClientError> {
        match tokio::time::timeout(self.options.idle_timeout, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.network(response.url(), what, &error)),
            Err(_) => Err(self.silent(response.url(), what)),
        }
    }

    /// A whole document of at most `limit_bytes`. Some servers compress unasked.
    pub(super) async fn read(
        &self,
        mut response: Response,
        what: &str,
        limit_bytes: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let (host, what_owned) = (host_of(response.url()), what.to_owned());
        let too_large = ClientError::TooLarge { host, what: what_owned, limit_bytes: limit_bytes as u64 };
        if response.content_length().is_some_and(|length| length > limit_bytes as u64) {
            return Err(too_large);
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, what).await? {
            if body.len() + chunk.len() > limit_bytes {
                return Err(too_large);
            }
            body.extend_from_slice(&chunk);
        }
        let refused = |reason: String| protocol(response.url(), what, reason);
        match decoded(body, response.headers(), limit_bytes).map_err(refused)? {
            Some(body) => Ok(body),
            None => Err(too_large),
        }
    }

    /// The error that a status other than success means.
    pub(super) async fn refusal(
        &self,
        mut response: Response,
        what: &str,
        with_credentials: bool,
    ) -> ClientError {
        let (status, host, what) = (response.status(), host_of(response.url()), what.to_owned());
        let retry_after = retry::retry_after(response.headers(), SystemTime::now());
        let mut body = Vec::new();
        // A body that cannot be read leaves the status to speak for itself.
        while let Ok(Some(chunk)) = self.chunk(&mut response, &what).await {
            let room = ERROR_BYTES_MAX - body.len();
            body.extend_from_slice(&chunk[..room.min(chunk.len())]);
            if body.len() == ERROR_BYTES_MAX {
                break;
            }
        }
        let detail = message_of(&body);
        match status.as_u16() {
            401 => ClientError::Unauthorized { host, what, with_credentials, detail },
            403 => ClientError::Denied { host, what, detail },
            404 => ClientError::NotFound { host, what, detail },
            429 => ClientError::TooManyRequests { host, retry_after, detail },
            status @ 400..=499 => ClientError::Refused { host, what, status, detail },
            status @ 500..=599 => ClientError::ServerFailed { host, what, status, detail },
            other => ClientError::Protocol { host, what, reason: format!("status {other} is not expected") },
        }
    }
}

/// A body as it was before the server compressed it for the way; `None` when it is larger than `limit_bytes`.
fn decoded(body: Vec<u8>, headers: &HeaderMap, limit_bytes: usize) -> Result<Option<Vec<u8>>, String> {
    let encoding = headers.get(CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("").trim();
    match encoding.to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Some(body)),
        "gzip" | "x-gzip" => {
            let mut decoded = Vec::new();
            let plain = decoder(Compression::Gzip, Box::new(body.as_slice()));
            let read = plain.take(limit_bytes as u64 + 1).read_to_end(&mut decoded);
            read.map_err(|error| format!("its `Content-Encoding: gzip` is not valid: {error}"))?;
            Ok(Some(decoded).filter(|decoded| decoded.len() <= limit_bytes))
        }
        other => {
            Err(format!("it is sent as `Content-Encoding: {}`, which was not asked for", sanitise(other)))
        }
    }
}

/// Decides after each exchange whether another is due.
#[derive(Debug)]
pub(super) struct Retries<'a> {
    wire: &'a Wire,
    failed: u32,
}

impl<'a> Retries<'a> {
    pub(super) fn new(wire: &'a Wire) -> Retries<'a> {
        Retries { wire, failed: 0 }
    }

    /// Gives back what is final; after the wait that is due, `None` asks for another try.
    pub(super) async fn settle(
        &mut self,
        outcome: Result<Response, ClientError>,
        what: &str,
    ) -> Result<Option<Response>, ClientError> {
        let (error, asked) = match outcome {
            Ok(response) if retry::is_transient(response.status()) => {
                let asked = retry::retry_after(response.headers(), SystemTime::now());
                (self.wire.refusal(response, what, false).await, asked)
            }
            Ok(response) => return Ok(Some(response)),
            Err(error) if error.is_transient() => (error, None),
            Err(error) => return Err(error),
        };
        self.failed += 1;
        let policy = &self.wire.options.retry;
        match (policy.wait_after(self.failed), asked) {
            (Some(_), Some(asked)) if asked <= policy.retry_after_max => tokio::time::sleep(asked).await,
            (Some(wait), None) => tokio::time::sleep(wait).await,
            _ => return Err(error),
        }
        Ok(None)
    }
}

/// Refuses a web page in place of what was asked for: a login page of the network, or a server that is no registry and
/// answers everything with 200.
pub(super) fn refuse_page(response: &Response, what: &str) -> Result<(), ClientError> {
    let content_type =
        response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    match content_type.trim_start().to_ascii_lowercase().starts_with("text/html") {
        true => Err(protocol(
            response.url(),
            what,
            "it answered with a web page: it is no registry, or a login page or proxy stands in between",
        )),
        false => Ok(()),
    }
}

/// The error of a request that is sent on for ever.
pub(super) fn too_many_redirects(request: &Request) -> ClientError {
    protocol(&request.url, &request.what, format!("it redirects more than {REDIRECTS_MAX} times"))
}

/// Where `response` of `from` sends `request`, if it does.
pub(super) fn redirect(
    from: &Url,
    request: &Request,
    response: &Response,
) -> Result<Option<Url>, ClientError> {
    let read_only = matches!(request.method, Method::GET | Method::HEAD);
    let follow = match response.status() {
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => read_only,
        _ => return Ok(None),
    };
    let refuse = |reason| Err(protocol(from, &request.what, reason));
    if !follow {
        return refuse(format!("it redirects a {} by status {}", request.method, response.status().as_u16()));
    }
    match response.headers().get(LOCATION).map(HeaderValue::to_str) {
        Some(Ok(location)) => match endpoint::follow(from, location) {
            Ok(next) if request.stays_at_home && !same_origin(&request.url, &next) => {
                refuse("it redirects a secret to another host".to_owned())
            }
            followed => followed.map(Some).or_else(refuse),
        },
        _ => refuse("it redirects without saying where to".to_owned()),
    }
}

/// An answer to a request for `url` that breaks the protocol.
pub(super) fn protocol(url: &Url, what: &str, reason: impl Into<String>) -> ClientError {
    ClientError::Protocol { host: host_of(url), what: what.to_owned(), reason: reason.into() }
}

/// `host[:port]` of a URL, as registries are named.
pub(super) fn host_of(url: &Url) -> String {
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    sanitise(&format!("{}{port}", url.host_str().unwrap_or_default()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_bounded_as_it_was_before_it_was_compressed() {
        // Nineteen bytes.
        const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x2a\x4e\xce\x48\xcd\x4d\x0c\x4b\x2d\x2a\xce\xcc\xcf\x53\xb2\x32\xaa\x05\x00\xc6\xf8\x27\x72\x13\x00\x00\x00";
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        assert_eq!(decoded(GZIP.to_vec(), &headers, 19).unwrap().unwrap().len(), 19);
        assert_eq!(decoded(GZIP.to_vec(), &headers, 18).unwrap(), None);
        assert_eq!(decoded(GZIP.to_vec(), &HeaderMap::new(), 18).unwrap().unwrap(), GZIP);
    }
}
