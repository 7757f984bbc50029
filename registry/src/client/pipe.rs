//! Bytes between the asynchronous half of the client and the synchronous rest of rimg: two bounded channels of
//! large pieces. A slow reader stops the network and a slow network stops the reader, so a transfer holds
//! [`PIECES_MAX`] pieces whatever the size of the blob.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Size of a piece: large enough that handing it over costs nothing beside copying it.
pub(super) const PIECE_BYTES: usize = 256 * 1024;
/// Pieces under way in one direction of one transfer: 1 MiB.
const PIECES_MAX: usize = 4;

/// What travels: bytes, or why there are no more.
pub(super) type Piece = io::Result<Bytes>;

/// A channel for one transfer.
pub(super) fn pipe() -> (Sender<Piece>, Receiver<Piece>) {
    channel(PIECES_MAX)
}

/// The reading end of a download of known length.
#[derive(Debug)]
pub(super) struct PipeReader<K> {
    pieces: Receiver<Piece>,
    current: Bytes,
    left_bytes: u64,
    /// What the sender needs to live as long as the reader.
    _keep: K,
}

impl<K> PipeReader<K> {
    /// Reads the `length` bytes that come out of `pieces`, and keeps `keep` until they have been read. To be
    /// used outside of asynchronous code only.
    pub(super) fn new(pieces: Receiver<Piece>, length: u64, keep: K) -> PipeReader<K> {
        PipeReader { pieces, current: Bytes::new(), left_bytes: length, _keep: keep }
    }
}

impl<K> Read for PipeReader<K> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None if self.left_bytes == 0 => return Ok(0),
                // The sender is gone without a reason: the client's runtime ended under it.
                None => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download was given up"));
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        self.left_bytes = self.left_bytes.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Collects the small frames of a network into pieces.
#[derive(Debug, Default)]
pub(super) struct Gather {
    held: BytesMut,
}

impl Gather {
    /// Adds a frame and gives back what is large enough to be handed on.
    pub(super) fn add(&mut self, frame: Bytes) -> Option<Bytes> {
        if self.held.is_empty() && frame.len() >= PIECE_BYTES {
            return Some(frame);
        }
        if self.held.is_empty() {
            self.held.reserve(PIECE_BYTES + frame.len());
        }
        self.held.extend_from_slice(&frame);
        (self.held.len() >= PIECE_BYTES).then(|| self.held.split().freeze())
    }

    /// What is left at the end.
    pub(super) fn rest(&mut self) -> Option<Bytes> {
        (!self.held.is_empty()).then(|| self.held.split().freeze())
    }
}

/// Why feeding an upload ended.
pub(super) enum Fed {
    /// All bytes went out.
    All,
    /// The request ended first; its own result says why.
    RequestEnded,
    /// The local content failed.
    Source(io::Error),
}

/// Sends exactly `length` bytes of `source` into an upload. An error of the source is also sent, so that the
/// request breaks off instead of ending as if complete.
pub(super) fn feed(source: &mut dyn Read, length: u64, pieces: &Sender<Piece>) -> Fed {
    let mut left = length;
    while left > 0 {
        let want = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        match read_piece(source, want) {
            Ok(piece) => {
                left -= piece.len() as u64;
                if pieces.blocking_send(Ok(piece)).is_err() {
                    return Fed::RequestEnded;
                }
            }
            Err(error) => {
                // The request may be over already; then there is nobody to tell.
                let _ = pieces.blocking_send(Err(io::Error::from(error.kind())));
                return Fed::Source(error);
            }
        }
    }
    Fed::All
}

fn read_piece(source: &mut dyn Read, want: usize) -> io::Result<Bytes> {
    let mut piece = vec![0; want];
    let mut filled = 0;
    while filled < want {
        match source.read(&mut piece[filled..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the content ends early")),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(piece.into())
}

/// The body of an upload; `on_piece` is told whenever the network takes a piece.
pub(super) fn body(
    pieces: Receiver<Piece>,
    on_piece: impl Fn() + Send + 'static,
) -> impl Stream<Item = Piece> + Send {
    futures_util::stream::unfold((pieces, on_piece), |(mut pieces, on_piece)| async move {
        let piece = pieces.recv().await?;
        on_piece();
        Some((piece, (pieces, on_piece)))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_gathered_in_order() {
        let mut gather = Gather::default();
        let mut out = Vec::new();
        let frame: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        for _ in 0..10 {
            if let Some(piece) = gather.add(Bytes::from(frame.clone())) {
                assert!(piece.len() >= PIECE_BYTES);
                out.extend_from_slice(&piece);
            }
        }
        out.extend_from_slice(&gather.rest().unwrap());
        assert_eq!(out, frame.repeat(10));
        assert_eq!(gather.rest(), None);
    }

    #[test]
    fn a_pipe_carries_bytes_and_errors() {
        let (sender, receiver) = pipe();
        let feeder = std::thread::spawn(move || {
            let content = vec![7; 3 * PIECE_BYTES + 5];
            assert!(matches!(feed(&mut &content[..], content.len() as u64, &sender), Fed::All));
            assert!(matches!(feed(&mut &content[..5], 6, &sender), Fed::Source(_)));
        });
        let mut out = Vec::new();
        let error = PipeReader::new(receiver, u64::MAX, ()).read_to_end(&mut out).unwrap_err();
        assert!(!error.to_string().contains("given up"), "{error}");
        assert_eq!(out.len(), 3 * PIECE_BYTES + 5);
        feeder.join().unwrap();
    }

    #[test]
    fn a_sender_that_vanishes_is_not_the_end() {
        for (length, whole) in [(0, true), (1, false)] {
            let (sender, receiver) = pipe();
            drop(sender);
            let read = PipeReader::new(receiver, length, ()).read_to_end(&mut Vec::new());
            assert_eq!(read.is_ok(), whole);
        }
    }

    #[test]
    fn feeding_stops_when_the_request_is_over() {
        let (sender, receiver) = pipe();
        drop(receiver);
        assert!(matches!(feed(&mut io::repeat(1), u64::MAX, &sender), Fed::RequestEnded));
    }
}
