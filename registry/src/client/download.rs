//! Blobs coming in: a stream that survives broken connections (distribution-spec, *Pulling blobs*).
//!
//! 1. Ask for the blob, from the wanted offset by `Range`.
//! 2. Hand pieces on to a reader on another thread.
//! 3. When the connection breaks, ask for the rest by `Range` from where it broke. A server that ignores the
//!    range sends everything again, and what was handed on already is skipped; one that answers with another
//!    range than asked for is asked again without one.
//!
//! The reader gets exactly the promised number of bytes or an error, and sees nothing of all this. Whether they
//! are the right bytes is for whoever writes them down to check: the digest is computed there anyway.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use rimg_formats::descriptor::Descriptor;
use rimg_formats::reference::RepositoryName;
use tokio::sync::mpsc::{Receiver, Sender};

use super::endpoint;
use super::error::{ClientError, shown_url};
use super::pipe::{Gather, Piece, pipe};
use super::retry::Resumptions;
use super::session::{Access, Session};
use super::wire::{Request, host_of, protocol};

/// Most places outside of the registry that a foreign layer is looked for in.
const FOREIGN_URLS_MAX: usize = 5;

/// Begins to download `blob` from byte `offset`. Fails here when the blob is not there at all.
pub(super) async fn start(
    session: Arc<Session>,
    name: &RepositoryName,
    blob: &Descriptor,
    offset: u64,
) -> Result<Receiver<Piece>, ClientError> {
    let what = format!("blob {}", blob.digest);
    let url = session.endpoint.blob(name, &blob.digest);
    let access = Access::pull(name);
    let size = blob.size;
    let mut download = Download { session, access, url, size, received: offset, what };
    let (sender, receiver) = pipe();
    if offset >= size && size > 0 {
        return Ok(receiver);
    }
    let body = match download.connect().await {
        Err(missing @ ClientError::NotFound { .. }) => {
            download.connect_elsewhere(&blob.urls).await?.ok_or(missing)?
        }
        connected => connected?,
    };
    tokio::spawn(download.pump(body, sender));
    Ok(receiver)
}

struct Download {
    session: Arc<Session>,
    access: Access,
    url: Url,
    size: u64,
    /// Bytes received so far, thus the offset to go on from.
    received: u64,
    what: String,
}

/// A body and how many of its first bytes are known already.
struct Body {
    response: Response,
    skip: u64,
}

impl Download {
    /// Asks for everything from `received` on.
    async fn connect(&self) -> Result<Body, ClientError> {
        let whole = Request::new(Method::GET, self.url.clone(), &self.what);
        if self.received > 0 {
            let range = HeaderValue::from_str(&format!("bytes={}-", self.received))
                .map_err(|error| ClientError::Setup(error.to_string()))?;
            match self.session.send(&self.access, &whole.clone().header(RANGE, range)).await {
                Ok(response) if response.status() == StatusCode::PARTIAL_CONTENT => {
                    if self.is_asked_range(&response) {
                        return Ok(Body { response, skip: 0 });
                    }
                }
                Ok(response) => return self.whole(response),
                // 416: the server thinks the blob shorter. The whole of it will show.
                Err(ClientError::Refused { status: 416, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let response = self.session.send(&self.access, &whole).await?;
        self.whole(response)
    }

    /// A foreign layer may be had from elsewhere (image-spec, *Descriptors → urls*). No credentials go there.
    async fn connect_elsewhere(&mut self, urls: &[String]) -> Result<Option<Body>, ClientError> {
        for text in urls.iter().take(FOREIGN_URLS_MAX) {
            // Judged as a redirect of the registry would be: it is the registry's content that names them.
            let Ok(url) = endpoint::follow(&self.session.endpoint.root(), text) else { continue };
            let registry = std::mem::replace(&mut self.url, url);
            match self.connect().await {
                Ok(body) => return Ok(Some(body)),
                Err(_) => self.url = registry,
            }
        }
        Ok(None)
    }

    fn whole(&self, response: Response) -> Result<Body, ClientError> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Err(protocol(response.url(), &self.what, "it sends a range that was not asked for"));
        }
        match response.content_length() {
            Some(length) if length != self.size => {
                Err(self.damaged(&response, format!("it has {length} bytes instead of {}", self.size)))
            }
            _ => Ok(Body { response, skip: self.received }),
        }
    }

    /// Whether `Content-Range` (RFC 9110, section 14.4) says what was asked for: `bytes <received>-<last>/<size>`.
    fn is_asked_range(&self, response: &Response) -> bool {
        let parse = || {
            let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
            let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            let whole = total == "*" || total.parse() == Ok(self.size);
            Some(first == self.received && last < self.size && last >= first && whole)
        };
        parse() == Some(true)
    }

    fn damaged(&self, response: &Response, reason: String) -> ClientError {
        ClientError::Damaged { host: host_of(response.url()), what: self.what.clone(), reason }
    }

    /// Moves the body into the pipe, taking it up again whenever it breaks.
    async fn pump(mut self, body: Body, sender: Sender<Piece>) {
        let mut gather = Gather::default();
        let mut next = Ok(body);
        let mut resumptions = Resumptions::new(self.session.wire.options.retry, self.received);
        loop {
            let error = match next {
                Ok(body) => match self.drain(body, &mut gather, &sender).await {
                    Ok(true) => return,
                    Ok(false) => break,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match resumptions.wait_after(self.received) {
                Some(wait) if error.is_transient() => tokio::time::sleep(wait).await,
                _ => {
                    // The reader may have gone; then nobody needs the reason.
                    let _ = sender.send(Err(io::Error::other(error))).await;
                    return;
                }
            }
            next = self.connect().await;
        }
        if let Some(rest) = gather.rest() {
            // As above.
            let _ = sender.send(Ok(rest)).await;
        }
    }

    /// Moves one body into the pipe. `Ok(true)`: nobody reads any more. `Ok(false)`: everything arrived.
    async fn drain(
        &mut self,
        mut body: Body,
        gather: &mut Gather,
        sender: &Sender<Piece>,
    ) -> Result<bool, ClientError> {
        while let Some(mut frame) = self.session.wire.chunk(&mut body.response, &self.what).await? {
            skip_known(&mut frame, &mut body.skip);
            if frame.len() as u64 > self.size - self.received {
                return Err(self.damaged(&body.response, format!("it has more than its {} bytes", self.size)));
            }
            self.received += frame.len() as u64;
            if let Some(piece) = gather.add(frame)
                && sender.send(Ok(piece)).await.is_err()
            {
                return Ok(true);
            }
        }
        if self.received == self.size {
            return Ok(false);
        }
        let reason = format!("{} ends after {} of {} bytes", shown_url(&self.url), self.received, self.size);
        Err(ClientError::Unreachable { host: host_of(&self.url), what: self.what.clone(), reason })
    }
}

fn skip_known(frame: &mut Bytes, skip: &mut u64) {
    let known = usize::try_from(*skip).map_or(frame.len(), |skip| skip.min(frame.len()));
    drop(frame.split_to(known));
    *skip -= known as u64;
}
