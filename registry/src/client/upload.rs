//! Blobs going out (distribution-spec, *Pushing blobs*).
//!
//! 1. `HEAD`: the registry may have the blob. [`mount`]: it may have it in another repository.
//! 2. `POST` opens an upload; `PUT` sends the whole blob and closes it. Every registry takes this, and it is
//!    the fastest.
//! 3. When that breaks off, `GET` on the upload tells how far it came, `PATCH` sends the rest from there, and
//!    an empty `PUT` closes. A registry that forgot the upload gets a new one from the start.
//! 4. A registry, or a proxy before it, that finds the request too large (413) gets the blob in chunks.
//! 5. Where a request with content is redirected (307, 308), the content is read again and sent there, without
//!    `Authorization` if that is another host.
//!
//! Content is read on the caller's thread, through an opener that can start at any offset: that is what makes
//! going on from the middle possible.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Response, StatusCode, Url};
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::reference::RepositoryName;

use super::Client;
use super::endpoint;
use super::error::ClientError;
use super::pipe::{Fed, body, feed, pipe};
use super::retry::{self, Resumptions};
use super::session::{Access, Session};
use super::wire::{REDIRECTS_MAX, Request, protocol, redirect, too_many_redirects};

/// Opens the content of a blob at an offset. Called again for every new attempt.
pub type BlobOpener<'a> = dyn FnMut(u64) -> io::Result<Box<dyn Read + Send + 'a>> + 'a;

/// Size of chunks, or half the blob's, where the whole is too large for one request; it halves while that is
/// not enough. The strictest common proxy takes 100 MB.
const CHUNK_BYTES: u64 = 64 * 1024 * 1024;
/// Chunks are not made smaller than this, even where they are still found too large.
const CHUNK_BYTES_MIN: u64 = 1024 * 1024;
/// Largest `OCI-Chunk-Min-Length` obeyed; real ones are 5 or 10 MiB, for object stores.
const CHUNK_MIN_BYTES_MAX: u64 = 5 * 1024 * 1024 * 1024;

/// An upload that the registry opened.
#[derive(Clone, Debug)]
pub(super) struct UploadSession {
    url: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// `OCI-Chunk-Min-Length`.
    chunk_min_bytes: u64,
}

/// Whether the repository has the blob, in the right size.
pub(super) async fn exists(
    session: &Session,
    access: &Access,
    name: &RepositoryName,
    blob: &Descriptor,
) -> Result<bool, ClientError> {
    let url = session.endpoint.blob(name, &blob.digest);
    let request = Request::new(Method::HEAD, url, format!("blob {}", blob.digest));
    match session.send(access, &request).await {
        Ok(response) => {
            let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            let length: Option<u64> = length.and_then(|text| text.trim().parse().ok());
            // A registry that lost the end of a blob still lists it; pushing again is the only cure.
            Ok(length.is_none_or(|length| length == blob.size))
        }
        Err(ClientError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Asks for the blob from `source`, another repository of the same registry. A registry that declines opens
/// an upload instead.
pub(super) async fn mount(
    session: &Session,
    name: &RepositoryName,
    source: &RepositoryName,
    digest: &Digest,
) -> Result<Option<UploadSession>, ClientError> {
    let mut url = session.endpoint.uploads(name);
    url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", source.as_str());
    let request = Request::new(Method::POST, url, format!("blob {digest} of {source}"));
    let response = session.send(&Access::push(name).mounting(source), &request).await?;
    match response.status() {
        StatusCode::CREATED => Ok(None),
        _ => opened(&response, &request.what).map(Some),
    }
}

/// Gives up an upload that is not needed. Registries may not know how to, and then forget it after a while.
pub(super) async fn cancel(session: &Session, name: &RepositoryName, upload: &UploadSession) {
    let request = Request::new(Method::DELETE, upload.url.clone(), "an upload that is not needed");
    let _ = session.send(&Access::push(name), &request).await;
}

/// One blob on its way out.
pub(super) struct Upload<'a, 'o> {
    client: &'a Client,
    session: Arc<Session>,
    name: &'a RepositoryName,
    access: Access,
    blob: &'a Descriptor,
    open: &'a mut BlobOpener<'o>,
    /// Chunks are at most this long; `None` sends the whole blob at once.
    chunk_bytes: Option<u64>,
    what: String,
}

impl<'a, 'o> Upload<'a, 'o> {
    pub(super) fn new(
        client: &'a Client,
        session: Arc<Session>,
        name: &'a RepositoryName,
        blob: &'a Descriptor,
        open: &'a mut BlobOpener<'o>,
    ) -> Upload<'a, 'o> {
        let chunk_bytes = session.wire.options.chunk_bytes.map(|bytes| bytes.max(1));
        let what = format!("blob {}", blob.digest);
        Upload { client, session, name, access: Access::push(name), blob, open, chunk_bytes, what }
    }

    /// Sends the blob; success means that the registry has confirmed its digest. `begun` is an upload that
    /// the registry opened already.
    pub(super) fn run(mut self, begun: Option<UploadSession>) -> Result<(), ClientError> {
        let mut upload = begun;
        let mut resumptions = Resumptions::new(self.session.wire.options.retry, 0);
        loop {
            let error = match self.attempt(&mut upload) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match &error {
                ClientError::Refused { status: 413, .. } if self.halve_chunks() => {
                    upload = None;
                    continue;
                }
                // The upload was forgotten, still belongs to the connection that broke, or disagrees on how far
                // it came.
                ClientError::NotFound { .. } | ClientError::Refused { status: 409 | 416, .. }
                    if upload.is_some() => {}
                _ if error.is_transient() => {}
                _ => return Err(error),
            }
            upload = self.client.run(self.take_up(upload))?;
            let offset = upload.as_ref().map_or(0, |upload| upload.offset);
            let Some(wait) = resumptions.wait_after(offset) else { return Err(error) };
            if resumptions.is_stuck() {
                // A registry that keeps nothing of a request that broke off may keep smaller ones.
                self.halve_chunks();
            }
            std::thread::sleep(wait);
            if self.client.run(exists(&self.session, &self.access, self.name, self.blob))? {
                return Ok(());
            }
        }
    }

    /// Smaller requests, if there is any point in it.
    fn halve_chunks(&mut self) -> bool {
        let half = (self.chunk_bytes.unwrap_or(self.blob.size) / 2).min(CHUNK_BYTES);
        if half < CHUNK_BYTES_MIN {
            return false;
        }
        self.chunk_bytes = Some(half);
        true
    }

    /// Asks how far a broken upload came. `None`: begin anew.
    async fn take_up(&self, upload: Option<UploadSession>) -> Result<Option<UploadSession>, ClientError> {
        let Some(upload) = upload else { return Ok(None) };
        let request = Request::new(Method::GET, upload.url.clone(), &self.what);
        let Ok(response) = self.session.send(&self.access, &request).await else { return Ok(None) };
        let has = received(response.headers());
        let url = location(&response, &self.what).unwrap_or(upload.url);
        // Some registries say `0-0` for nothing, which also means one byte: not worth guessing.
        Ok(match has {
            Some(has) if has > 1 && has <= self.blob.size => {
                Some(UploadSession { url, offset: has, ..upload })
            }
            _ => None,
        })
    }

    fn attempt(&mut self, upload: &mut Option<UploadSession>) -> Result<(), ClientError> {
        let mut current = match upload.take() {
            Some(upload) => upload,
            None => self.client.run(self.post())?,
        };
        *upload = Some(current.clone());
        if current.offset == 0 && self.chunk_bytes.is_none_or(|bytes| bytes >= self.blob.size) {
            let url = closing_url(&current.url, &self.blob.digest);
            return self.stream(Method::PUT, url, 0, self.blob.size).map(drop);
        }
        while current.offset < self.blob.size {
            current = self.patch(current)?;
            *upload = Some(current.clone());
        }
        let request = Request::new(Method::PUT, closing_url(&current.url, &self.blob.digest), &self.what)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        self.client.run(async { self.session.send(&self.access, &request).await.map(drop) })
    }

    async fn post(&self) -> Result<UploadSession, ClientError> {
        let request = Request::new(Method::POST, self.session.endpoint.uploads(self.name), &self.what);
        let response = self.session.send(&self.access, &request).await?;
        opened(&response, &self.what)
    }

    /// Sends the next chunk: all the rest, or at most `chunk_bytes` but never less than the registry takes.
    fn patch(&mut self, upload: UploadSession) -> Result<UploadSession, ClientError> {
        let rest = self.blob.size - upload.offset;
        let limit = self.chunk_bytes.map_or(rest, |bytes| bytes.max(upload.chunk_min_bytes));
        let length = rest.min(limit);
        let response = self.stream(Method::PATCH, upload.url.clone(), upload.offset, length)?;
        let url = location(&response, &self.what)?;
        let offset = received(response.headers()).unwrap_or(upload.offset + length);
        let progress = offset > upload.offset && offset <= upload.offset + length;
        if !progress {
            return Err(protocol(&url, &self.what, format!("it claims to have {offset} bytes")));
        }
        Ok(UploadSession { url, offset, ..upload })
    }

    /// Sends `length` bytes from `offset` on as the body of one request, to wherever it is redirected.
    fn stream(
        &mut self,
        method: Method,
        url: Url,
        offset: u64,
        length: u64,
    ) -> Result<Response, ClientError> {
        let mut request = Request::new(method, url.clone(), &self.what);
        request.headers = stream_headers(&request.method, offset, length).map_err(ClientError::Setup)?;
        let mut to = url;
        for _ in 0..=REDIRECTS_MAX {
            match self.stream_to(&request, &to, offset, length)? {
                Sent::Accepted(response) => return Ok(response),
                Sent::Redirected(next) => to = next,
            }
        }
        Err(too_many_redirects(&request))
    }

    fn stream_to(
        &mut self,
        request: &Request,
        to: &Url,
        offset: u64,
        length: u64,
    ) -> Result<Sent, ClientError> {
        let source = |source| ClientError::Source { what: self.what.clone(), source };
        let mut content = (self.open)(offset).map_err(source)?;
        let (sender, receiver) = pipe();
        let progress = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&progress);
        let body = body(receiver, move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let exchange = Exchange {
            session: Arc::clone(&self.session),
            access: self.access.clone(),
            request: request.clone(),
            to: to.clone(),
            body: reqwest::Body::wrap_stream(body),
            progress,
        };
        let exchange = self.client.runtime()?.spawn(exchange.run());
        let fed = feed(&mut *content, length, &sender);
        drop(sender);
        let answered = self.client.run(async {
            exchange.await.map_err(|error| ClientError::Setup(format!("the upload stopped: {error}")))?
        });
        match fed {
            Fed::Source(error) => Err(source(error)),
            Fed::All | Fed::RequestEnded => answered,
        }
    }
}

/// What became of a request with a streamed body.
enum Sent {
    /// It succeeded.
    Accepted(Response),
    /// It belongs here; its body is spent.
    Redirected(Url),
}

/// One request with a streamed body, which therefore cannot be repeated by itself.
struct Exchange {
    session: Arc<Session>,
    access: Access,
    /// As it was meant at first; its body is `body`.
    request: Request,
    /// Where it goes: the request's own URL, or where that was redirected to.
    to: Url,
    body: reqwest::Body,
    progress: Arc<AtomicU64>,
}

impl Exchange {
    async fn run(self) -> Result<Sent, ClientError> {
        let (session, to, what) = (self.session, self.to, self.request.what.clone());
        // A place that was led to from outside of the registry gets no credentials either.
        let ours = session.endpoint.owns(&self.request.url) && session.endpoint.owns(&to);
        let authorization = if ours { session.authorization(&self.access, &what).await? } else { None };
        let mut headers = self.request.headers.clone();
        headers.extend(authorization.iter().map(|value| (AUTHORIZATION, value.clone())));
        let builder = session.wire.pool(&to)?.request(self.request.method.clone(), to.clone());
        let sending = builder.headers(headers).body(self.body).send();
        tokio::pin!(sending);
        let response = loop {
            let seen = self.progress.load(Ordering::Relaxed);
            match tokio::time::timeout(session.wire.options.idle_timeout, &mut sending).await {
                Ok(sent) => break sent.map_err(|error| session.wire.network(&to, &what, &error))?,
                Err(_) if self.progress.load(Ordering::Relaxed) == seen => {
                    return Err(session.wire.silent(&to, &what));
                }
                Err(_) => {}
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Sent::Accepted(response));
        }
        if let Some(next) = redirect(&to, &self.request, &response)? {
            return Ok(Sent::Redirected(next));
        }
        if status == StatusCode::UNAUTHORIZED && ours {
            let refused = authorization.as_ref();
            let renewed = session.renew(&self.access, &what, refused, response.headers()).await?;
            if renewed.is_some() {
                // Sent again as after a broken connection, with the new token.
                let reason = "the permission ended during the upload".to_owned();
                return Err(ClientError::Unreachable {
                    host: session.endpoint.host.to_string(),
                    what,
                    reason,
                });
            }
        }
        let retry_after = retry::retry_after(response.headers(), SystemTime::now());
        let (host, detail) = match session.refusal(&self.access, response, &what).await {
            ClientError::TooManyRequests { host, detail, .. }
            | ClientError::ServerFailed { host, detail, .. }
            | ClientError::Refused { host, status: 408, detail, .. } => (host, detail),
            other => return Err(other),
        };
        let wait = retry_after.unwrap_or_default();
        if wait > session.wire.options.retry.retry_after_max {
            return Err(ClientError::TooManyRequests { host, retry_after, detail });
        }
        // The body is spent, so the wait happens here and the repetition where the body can be had again.
        tokio::time::sleep(wait).await;
        Err(ClientError::ServerFailed { host, what, status: status.as_u16(), detail })
    }
}

fn stream_headers(method: &Method, offset: u64, length: u64) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let value = |text: String| HeaderValue::from_str(&text).map_err(|error| error.to_string());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, length.into());
    if *method == Method::PATCH && length > 0 {
        // Without a unit, unlike everywhere else in HTTP (distribution-spec, *Pushing a blob in chunks*).
        headers.insert(CONTENT_RANGE, value(format!("{offset}-{}", offset + length - 1))?);
    }
    Ok(headers)
}

/// The upload that a POST opened.
fn opened(response: &Response, what: &str) -> Result<UploadSession, ClientError> {
    let minimum = response.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok());
    let chunk_min_bytes = minimum.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    Ok(UploadSession {
        url: location(response, what)?,
        offset: 0,
        chunk_min_bytes: chunk_min_bytes.min(CHUNK_MIN_BYTES_MAX),
    })
}

/// Where the next request of an upload goes.
fn location(response: &Response, what: &str) -> Result<Url, ClientError> {
    let refuse = |reason: String| protocol(response.url(), what, reason);
    match response.headers().get(LOCATION).map(HeaderValue::to_str) {
        Some(Ok(location)) => endpoint::follow(response.url(), location).map_err(refuse),
        _ => Err(refuse("it does not say where the upload goes".to_owned())),
    }
}

/// How many bytes the registry has, by `Range: 0-<last>`.
fn received(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(RANGE)?.to_str().ok()?.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    (first == "0").then_some(last.parse::<u64>().ok()?.checked_add(1)?)
}

/// The upload's URL with the digest added; what it carries already is the registry's state and stays as it is.
fn closing_url(upload: &Url, digest: &Digest) -> Url {
    let mut url = upload.clone();
    url.query_pairs_mut().append_pair("digest", &digest.to_string());
    url
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_uploads() {
        for (text, bytes) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("1-9", None),
            ("0-", None),
            ("-1", None),
            ("0-18446744073709551615", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, text.parse().unwrap());
            assert_eq!(received(&headers), bytes, "{text}");
        }
    }

    #[test]
    fn the_registrys_state_stays_in_the_url() {
        let digest = Digest::sha256(b"");
        let url = closing_url(&"http://r/u?_state=a%2Bb%3D%3D&x".parse().unwrap(), &digest);
        assert_eq!(url.as_str(), format!("http://r/u?_state=a%2Bb%3D%3D&x&digest=sha256%3A{}", digest.hex()));
    }

    #[test]
    fn chunks_name_their_range() {
        let headers = stream_headers(&Method::PATCH, 10, 5).unwrap();
        assert_eq!(
            (&headers[CONTENT_RANGE], &headers[CONTENT_LENGTH]),
            (&"10-14".parse().unwrap(), &5.into())
        );
        assert!(!stream_headers(&Method::PUT, 0, 5).unwrap().contains_key(CONTENT_RANGE));
    }
}
