//! The way blobs leave: read in large blocks on the blocking threads, one block ahead of the socket.
//!
//! No thread waits for a slow client: a job ends with its block. A failing read breaks the connection off, so that
//! the client sees a short body and never a wrong one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::limits::READ_BLOCK_BYTES;
use super::range::Span;

/// Blocks of one body in memory: one on its way to the disk's end, one to the socket's.
const BLOCKS_UNDER_WAY: usize = 2;

/// One piece of a blob's body.
#[derive(Debug)]
pub(super) enum Part {
    /// Bytes between the pieces of a `multipart/byteranges`.
    Text(Bytes),
    /// Bytes of the blob.
    Span(Span),
}

impl Part {
    pub(super) fn length(&self) -> u64 {
        match self {
            Part::Text(text) => text.len() as u64,
            Part::Span(span) => span.length,
        }
    }

    fn blocks(self) -> Box<dyn Iterator<Item = Part> + Send> {
        match self {
            Part::Text(_) => Box::new(std::iter::once(self)),
            Part::Span(span) => Box::new(span.blocks(READ_BLOCK_BYTES).map(Part::Span)),
        }
    }
}

/// The body made of `parts` of `file`. Its length is for the caller to announce; `on_failure` is told of a read
/// that fails.
pub(super) fn of_blob(
    file: File,
    parts: Vec<Part>,
    jobs: Arc<Semaphore>,
    on_failure: impl Fn(&io::Error) + Send + 'static,
) -> Body {
    let file = Arc::new(file);
    let blocks = parts.into_iter().flat_map(Part::blocks);
    let reads = blocks.map(move |block| read(file.clone(), block, jobs.clone()));
    Body::from_stream(stream::iter(reads).buffered(BLOCKS_UNDER_WAY).inspect_err(on_failure))
}

async fn read(file: Arc<File>, part: Part, jobs: Arc<Semaphore>) -> io::Result<Bytes> {
    let span = match part {
        Part::Text(text) => return Ok(text),
        Part::Span(span) => span,
    };
    let permit = jobs.acquire_owned().await.map_err(io::Error::other)?;
    let job = move || {
        let _permit = permit;
        let mut block = vec![0; usize::try_from(span.length).map_err(io::Error::other)?];
        file.read_exact_at(&mut block, span.offset)?;
        Ok(Bytes::from(block))
    };
    tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
}
