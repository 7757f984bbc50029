//! [`Body`]: what responses are made of, and above all the way blobs leave.
//!
//! A blob is read in large blocks on the blocking threads, one block ahead of the socket, and no thread waits
//! for a slow client: a job ends with its block. A failing read breaks the connection off, so that the client
//! sees a short body and never a wrong one.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use rimg_formats::digest::Digest;
use tokio::sync::Semaphore;

use super::event::{Event, Observer};
use super::limits::READ_BLOCK_BYTES;
use super::range::Span;

/// The body of a response.
pub(super) enum Body {
    /// Nothing.
    Empty,
    /// A document.
    Document(Option<Bytes>),
    /// All or parts of a blob.
    Blob(Box<BlobBody>),
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body::Document(Some(bytes.into()))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            Body::Document(document) => Poll::Ready(document.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Blob(blob) => blob.poll(context).map(|block| block.map(|block| block.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Body::Empty => 0,
            Body::Document(document) => document.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Body::Blob(blob) => blob.remaining,
        })
    }
}

/// One piece of a blob's body.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes between the pieces of a `multipart/byteranges`.
    Text(Bytes),
    /// Bytes of the blob.
    Span(Span),
}

type Read = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

/// The pieces of a blob that are still to be sent.
pub(super) struct BlobBody {
    file: Arc<File>,
    digest: Digest,
    parts: VecDeque<Part>,
    remaining: u64,
    read: Option<Read>,
    jobs: Arc<Semaphore>,
    observer: Option<Observer>,
}

impl BlobBody {
    pub(super) fn new(
        file: File,
        digest: Digest,
        parts: Vec<Part>,
        jobs: Arc<Semaphore>,
        observer: Option<Observer>,
    ) -> BlobBody {
        let length = |part: &Part| match part {
            Part::Text(text) => text.len() as u64,
            Part::Span(span) => span.length,
        };
        let remaining = parts.iter().map(length).sum();
        let parts = VecDeque::from(parts);
        BlobBody { file: Arc::new(file), digest, parts, remaining, read: None, jobs, observer }
    }

    /// Bytes still to be sent.
    pub(super) fn len(&self) -> u64 {
        self.remaining
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some(read) = self.read.as_mut() else {
            return match self.start() {
                None => Poll::Ready(None),
                Some(Started::Text(text)) => Poll::Ready(Some(Ok(text))),
                Some(Started::Read) => self.poll(context),
            };
        };
        let result = ready!(read.as_mut().poll(context));
        self.read = None;
        match result {
            Ok(block) => {
                self.remaining -= block.len() as u64;
                self.read_ahead(context);
                Poll::Ready(Some(Ok(block)))
            }
            Err(error) => {
                self.parts.clear();
                if let Some(observer) = &self.observer {
                    observer(Event::BodyFailed { digest: self.digest.to_string(), cause: error.to_string() });
                }
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// Begins the next piece.
    fn start(&mut self) -> Option<Started> {
        match self.parts.front_mut()? {
            Part::Text(text) => {
                let text = std::mem::take(text);
                self.parts.pop_front();
                self.remaining -= text.len() as u64;
                Some(Started::Text(text))
            }
            Part::Span(span) => {
                let length = span.length.min(READ_BLOCK_BYTES as u64);
                let offset = span.offset;
                span.offset += length;
                span.length -= length;
                if span.length == 0 {
                    self.parts.pop_front();
                }
                self.read = Some(Box::pin(read_block(self.file.clone(), offset, length, self.jobs.clone())));
                Some(Started::Read)
            }
        }
    }

    /// Sets the next read going while the block before it is being sent.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        if !matches!(self.parts.front(), Some(Part::Span(_))) || self.start().is_none() {
            return;
        }
        if let Some(read) = self.read.as_mut()
            && let Poll::Ready(result) = read.as_mut().poll(context)
        {
            self.read = Some(Box::pin(std::future::ready(result)));
        }
    }
}

enum Started {
    Text(Bytes),
    Read,
}

async fn read_block(file: Arc<File>, offset: u64, length: u64, jobs: Arc<Semaphore>) -> io::Result<Bytes> {
    let permit = jobs.acquire_owned().await.map_err(io::Error::other)?;
    let job = move || {
        let _permit = permit;
        let mut block = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut block, offset)?;
        Ok(Bytes::from(block))
    };
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
}
