//! Receiving bodies: blobs into an ingest, documents into memory, and refused ones into nothing.
//!
//! A blob's bytes are gathered on the async side and handed over in batches to a blocking job that hashes and
//! writes them; while it works the next batch is gathered. When a body breaks off, all that came before is
//! written, so that a resumed upload goes on at the very byte.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::StatusCode;
use axum::http::header::{EXPECT, HeaderMap};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use rimg_formats::store::{Ingest, StoreError};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::State;
use super::error::{ApiError, Code};
use super::limits::{
    BYTES_PER_SECOND_MIN, DRAIN_BYTES_MAX, DRAIN_TIMEOUT, SMALL_DOCUMENT_BYTES, WRITE_BATCH_BYTES,
};
use super::patience::Patience;
use super::places::{Full, Place};
use super::sessions::Writing;

/// How many bytes a body may bring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Exactly so many, when the client has announced it.
    pub(super) exact: Option<u64>,
    /// How many at most, those to be skipped included.
    pub(super) at_most: u64,
    /// How many of the first of them are stored already.
    pub(super) skip: u64,
}

/// Appends `body` to `ingest`. The ingest is returned even when the body was refused or broke off, with what
/// came before; only a failure of the store loses it.
pub(super) async fn into_ingest(
    state: &State,
    ingest: Ingest,
    body: Body,
    allowance: Allowance,
    writing: &Writing,
) -> (Option<Ingest>, Result<(), ApiError>) {
    let mut intake = Intake { allowance, taken: 0, refused: false, ended: None };
    let mut writer = Writer { idle: Some(ingest), busy: None, failed: None };
    let mut batch = Batch::default();
    let mut body = Arriving::new(state, body);
    loop {
        if writer.idle.is_some() && batch.is_ready(intake.ended.is_some()) {
            writer.start(state, batch.take()).await;
        }
        let wants_more = intake.ended.is_none() && batch.bytes < WRITE_BATCH_BYTES;
        tokio::select! {
            frame = body.next_bytes(), if wants_more => {
                if let Some(bytes) = intake.take(frame) {
                    batch.push(bytes);
                }
            }
            () = writing.taken_over(), if intake.ended.is_none() => intake.ended = Some(Err(taken_over())),
            () = writer.finish(), if writer.busy.is_some() => {
                if let Some(ingest) = &writer.idle {
                    writing.advance(ingest.len());
                }
            }
            else => break,
        }
        if let Some(error) = writer.failed.take() {
            return (writer.idle, Err(error));
        }
    }
    let outcome = intake.ended.unwrap_or(Ok(()));
    // Whoever sends too much may still be writing.
    if intake.refused {
        drain(body.stream).await;
    }
    (writer.idle, outcome)
}

/// A body that comes in, and what patience is left with its sender.
struct Arriving {
    stream: BodyDataStream,
    patience: Patience,
    idle: Duration,
}

impl Arriving {
    fn new(state: &State, body: Body) -> Arriving {
        let idle = state.options.limits.body_idle;
        Arriving { stream: body.into_data_stream(), patience: Patience::new(idle), idle }
    }

    /// The next bytes: `None` at the end. Safe to drop and to call again.
    async fn next_bytes(&mut self) -> Result<Option<Bytes>, ApiError> {
        let next = poll_fn(|context| match Pin::new(&mut self.stream).poll_next(context) {
            Poll::Ready(frame) => {
                let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).map_or(0, Bytes::len);
                self.patience.moved(bytes);
                Poll::Ready(Ok(frame))
            }
            Poll::Pending => self.patience.poll_spent(context).map(|()| Err(stalled(self.idle))),
        });
        next.await?.transpose().map_err(|error| {
            ApiError::bad_request(Code::BlobUploadInvalid, format!("the body broke off: {error}"))
        })
    }
}

fn stalled(limit: Duration) -> ApiError {
    let message = format!(
        "the body stood still for {} s in all, or came more slowly than {BYTES_PER_SECOND_MIN} bytes a second; \
         what had arrived of a session is kept",
        limit.as_secs()
    );
    ApiError::new(StatusCode::REQUEST_TIMEOUT, Code::BlobUploadInvalid, message)
}

fn taken_over() -> ApiError {
    let message = "another request goes on with this upload";
    ApiError::new(StatusCode::CONFLICT, Code::BlobUploadInvalid, message)
}

/// Counts what comes in and says when it is over, and how.
struct Intake {
    allowance: Allowance,
    taken: u64,
    /// Whether the body brought more than it may.
    refused: bool,
    ended: Option<Result<(), ApiError>>,
}

impl Intake {
    fn take(&mut self, frame: Result<Option<Bytes>, ApiError>) -> Option<Bytes> {
        match frame {
            Err(error) => {
                self.ended = Some(Err(error));
                None
            }
            Ok(None) => {
                self.ended = Some(self.complete());
                None
            }
            Ok(Some(bytes)) => Some(self.admit(bytes)),
        }
    }

    fn complete(&self) -> Result<(), ApiError> {
        match self.allowance.exact {
            Some(exact) if exact != self.taken => {
                let message = format!("the body has {} bytes, `Content-Range` says {exact}", self.taken);
                Err(ApiError::bad_request(Code::SizeInvalid, message))
            }
            _ => Ok(()),
        }
    }

    /// Cuts off what is too much, and what is known.
    fn admit(&mut self, mut bytes: Bytes) -> Bytes {
        let limit = self.allowance.exact.unwrap_or(u64::MAX).min(self.allowance.at_most);
        let room = limit - self.taken;
        if bytes.len() as u64 > room {
            self.refused = true;
            self.ended = Some(Err(match self.allowance.exact {
                Some(exact) if exact <= self.allowance.at_most => ApiError::bad_request(
                    Code::SizeInvalid,
                    format!("the body has more bytes than the {exact} that `Content-Range` says"),
                ),
                _ => too_large(),
            }));
            bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        let known = self.allowance.skip.saturating_sub(self.taken);
        self.taken += bytes.len() as u64;
        bytes.split_off(usize::try_from(known).map_or(bytes.len(), |known| known.min(bytes.len())))
    }
}

/// 413 for a blob.
pub(super) fn too_large() -> ApiError {
    let message = "the blob is larger than this registry accepts";
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message)
}

/// Bytes waiting for the writer.
#[derive(Default)]
struct Batch {
    parts: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        self.parts.push(bytes);
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.parts)
    }

    /// A job is worth its while from a quarter of a batch on; at the end the rest must go.
    fn is_ready(&self, ended: bool) -> bool {
        self.bytes >= WRITE_BATCH_BYTES / 4 || (ended && !self.parts.is_empty())
    }
}

type Written = (Ingest, Result<(), StoreError>);

/// The ingest, which is either here or with a blocking job.
struct Writer {
    idle: Option<Ingest>,
    busy: Option<JoinHandle<Written>>,
    failed: Option<ApiError>,
}

impl Writer {
    async fn start(&mut self, state: &State, parts: Vec<Bytes>) {
        let (Ok(permit), Some(mut ingest)) = (state.jobs.clone().acquire_owned().await, self.idle.take())
        else {
            return;
        };
        self.busy = Some(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let result = parts.iter().try_for_each(|part| ingest.append(part));
            (ingest, result)
        }));
    }

    /// Waits for the job. Safe to drop and to call again.
    async fn finish(&mut self) {
        let Some(job) = self.busy.as_mut() else { return };
        match job.await {
            Ok((ingest, result)) => {
                self.idle = Some(ingest);
                self.failed = result.err().map(ApiError::from);
            }
            Err(error) => self.failed = Some(ApiError::internal(error)),
        }
        self.busy = None;
    }
}

/// A place among the large documents in memory; 429 when all are taken, or all that `peer` may have.
pub(super) fn large_document(state: &State, peer: IpAddr) -> Result<Place, ApiError> {
    state.large_documents.take(peer).map_err(|full| {
        ApiError::too_many(match full {
            Full::All => "too many large documents at once; try again in a moment",
            Full::Share { .. } => "too many large documents at once from your address; try again in a moment",
        })
    })
}

/// Reads a whole document of at most `limit` bytes from `peer`; `what` names it in the refusal.
pub(super) async fn document(
    state: &State,
    peer: IpAddr,
    body: Body,
    limit: usize,
    what: &str,
) -> Result<Vec<u8>, ApiError> {
    let mut body = Arriving::new(state, body);
    let (mut document, mut place) = (Vec::new(), None);
    while let Some(bytes) = body.next_bytes().await? {
        let length = document.len() + bytes.len();
        if length > limit {
            drain(body.stream).await;
            return Err(document_too_large(limit, what));
        }
        if length > SMALL_DOCUMENT_BYTES && place.is_none() {
            match large_document(state, peer) {
                Ok(free) => place = Some(free),
                Err(refused) => {
                    drain(body.stream).await;
                    return Err(refused);
                }
            }
        }
        document.extend_from_slice(&bytes);
    }
    Ok(document)
}

/// Reads a body that the request has no use for. A broken one still refuses the request: whoever sends it does not
/// speak HTTP as we do, and what would be read as the next request is not one.
pub(super) async fn ignore(state: &State, headers: &HeaderMap, body: Body) -> Result<(), ApiError> {
    if headers.contains_key(EXPECT) {
        return Ok(());
    }
    let (mut body, mut ignored) = (Arriving::new(state, body), 0);
    while ignored <= DRAIN_BYTES_MAX {
        let Some(bytes) = body.next_bytes().await? else { break };
        ignored += bytes.len();
    }
    Ok(())
}

/// 413 for a document.
pub(super) fn document_too_large(limit: usize, what: &str) -> ApiError {
    let message = format!("{what} may have at most {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message)
}

/// Reads some of a refused body, so that a client which is still writing gets to read the refusal instead of a
/// reset connection.
async fn drain(mut body: BodyDataStream) {
    let reading = async {
        let mut drained = 0;
        while let Some(Ok(bytes)) = body.next().await {
            drained += bytes.len();
            if drained > DRAIN_BYTES_MAX {
                return;
            }
        }
    };
    let _ = timeout(DRAIN_TIMEOUT, reading).await;
}

/// Reads some of the body of a request that is refused by its head, unless the client waits to be told to send it:
/// that one has its answer before it begins.
pub(super) async fn refuse_body(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(EXPECT) {
        drain(body.into_data_stream()).await;
    }
}
