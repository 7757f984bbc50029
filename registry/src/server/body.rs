//! The way blobs leave: read in large blocks on the blocking threads, one block ahead of the socket.
//!
//! No thread waits for a slow client: a job ends with its block. A failing read breaks the connection off, so that
//! the client sees a short body and never a wrong one. Memory is bounded whatever clients do: when many bodies are
//! under way, or stand still, further blocks are small.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{READ_BLOCK_BYTES, SMALL_READ_BLOCK_BYTES};
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
}

/// Reads the blocks of one blob.
#[derive(Clone)]
pub(super) struct Reader {
    file: Arc<File>,
    jobs: Arc<Semaphore>,
    large_blocks: Arc<Semaphore>,
}

impl Reader {
    /// Reads `file` with a permit of `jobs`, in large blocks while there is one of `large_blocks`.
    pub(super) fn new(file: File, jobs: Arc<Semaphore>, large_blocks: Arc<Semaphore>) -> Reader {
        Reader { file: Arc::new(file), jobs, large_blocks }
    }

    /// The next block of `parts`: how large it is to be is decided when its turn comes.
    fn next(&self, parts: &mut VecDeque<Part>) -> Option<Planned> {
        let span = match parts.pop_front()? {
            Part::Text(text) => return Some(Planned::Text(text)),
            Part::Span(span) => span,
        };
        let large = match span.length > SMALL_READ_BLOCK_BYTES as u64 {
            true => self.large_blocks.clone().try_acquire_owned().ok(),
            false => None,
        };
        let bytes = if large.is_some() { READ_BLOCK_BYTES } else { SMALL_READ_BLOCK_BYTES };
        let (span, rest) = span.split(bytes);
        if let Some(rest) = rest {
            parts.push_front(Part::Span(rest));
        }
        Some(Planned::Span(span, large))
    }

    async fn read(self, planned: Planned) -> io::Result<Bytes> {
        let (span, large) = match planned {
            Planned::Text(text) => return Ok(text),
            Planned::Span(span, large) => (span, large),
        };
        let permit = self.jobs.acquire_owned().await.map_err(io::Error::other)?;
        let job = move || {
            let _permit = permit;
            let mut bytes = vec![0; usize::try_from(span.length).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut bytes, span.offset)?;
            Ok(Bytes::from_owner(Block { bytes, _large: large }))
        };
        tokio::task::spawn_blocking(job).await.map_err(io::Error::other)?
    }
}

/// A block that is due.
enum Planned {
    Text(Bytes),
    /// With the permit for a large one.
    Span(Span, Option<OwnedSemaphorePermit>),
}

/// A block in memory, which holds its permit until it has been sent.
struct Block {
    bytes: Vec<u8>,
    _large: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The body made of `parts`. Its length is for the caller to announce; `on_failure` is told of a read that fails.
pub(super) fn of_blob(
    reader: Reader,
    parts: Vec<Part>,
    on_failure: impl Fn(&io::Error) + Send + 'static,
) -> Body {
    let mut parts = VecDeque::from(parts);
    let next = move || reader.next(&mut parts).map(|planned| reader.clone().read(planned));
    let reads = stream::iter(std::iter::from_fn(next));
    Body::from_stream(reads.buffered(BLOCKS_UNDER_WAY).inspect_err(on_failure))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_small_where_there_are_many_and_cover_everything_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        let content: Vec<u8> = (0..READ_BLOCK_BYTES * 4).map(|number| number.to_le_bytes()[1]).collect();
        std::fs::write(&path, &content).unwrap();
        let jobs = Arc::new(Semaphore::new(1));
        let reader = Reader::new(File::open(&path).unwrap(), jobs, Arc::new(Semaphore::new(2)));
        let span = Span { offset: 1, length: content.len() as u64 - 1 };
        let mut parts = VecDeque::from([Part::Text(Bytes::from_static(b"head")), Part::Span(span)]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut body, mut held) = (Vec::new(), Vec::new());
        while let Some(planned) = reader.next(&mut parts) {
            let block = runtime.block_on(reader.clone().read(planned)).unwrap();
            body.extend_from_slice(&block);
            held.push(block);
            if held.len() == 5 {
                held.clear();
            }
        }
        assert!(body == [b"head", &content[1..]].concat());
        held.clear();
        // Two large ones are in memory, so small ones follow.
        let mut parts = VecDeque::from([Part::Span(span)]);
        let lengths: Vec<u64> = (0..4)
            .map(|_| match reader.next(&mut parts).unwrap() {
                Planned::Span(span, large) => {
                    held.extend(
                        large.map(|large| Bytes::from_owner(Block { bytes: vec![0], _large: Some(large) })),
                    );
                    span.length
                }
                Planned::Text(text) => panic!("{text:?}"),
            })
            .collect();
        let (large, small) = (READ_BLOCK_BYTES as u64, SMALL_READ_BLOCK_BYTES as u64);
        assert_eq!(lengths, [large, large, small, small]);
        held.clear();
        assert_eq!(reader.large_blocks.available_permits(), 2);
    }
}
