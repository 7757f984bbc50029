//! [`Content`]: the content of the entry that a reader stands at, sparse files expanded.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use super::error::{LayerError, failure};
use super::sparse::Segment;
use super::stream::LayerStream;
use crate::digest::{Algorithm, Digest, DigestWriter};

/// What is left of the current entry's content.
#[derive(Default)]
pub(super) struct Stored {
    /// Stored bytes not yet read.
    pub(super) left: u64,
    pub(super) padding: u64,
    /// Logical length.
    pub(super) size: u64,
    /// Logical position.
    pub(super) position: u64,
    /// Where the stored bytes begin in the tar.
    pub(super) offset: u64,
    /// The map of a sparse file; empty for others.
    pub(super) segments: Vec<Segment>,
    /// The segment that holds the next stored byte.
    pub(super) next_segment: usize,
    pub(super) sparse: bool,
}

impl Stored {
    /// Makes the content empty; what is stored of it will be skipped.
    pub(super) fn discard(&mut self) {
        *self = Stored { padding: self.left + self.padding, offset: self.offset, ..Stored::default() };
    }
}

/// The content of one entry. Reading yields the whole file, holes as zeros; what is not read is skipped.
pub struct Content<'r, 'a> {
    input: &'r mut BufReader<LayerStream<'a>>,
    /// Bytes of tar consumed by the reader.
    tar_position: &'r mut u64,
    current: &'r mut Stored,
}

impl<'r, 'a> Content<'r, 'a> {
    pub(super) fn new(
        input: &'r mut BufReader<LayerStream<'a>>,
        tar_position: &'r mut u64,
        current: &'r mut Stored,
    ) -> Content<'r, 'a> {
        Content { input, tar_position, current }
    }

    /// The digest of the content, holes as zeros.
    pub(super) fn hash(&mut self, algorithm: Algorithm) -> io::Result<Digest> {
        let mut hasher = DigestWriter::new(io::sink(), algorithm);
        loop {
            match self.next_run() {
                (0, 0) => return Ok(hasher.finish().0),
                (0, stored) => drop(self.copy_stored(stored, &mut hasher)?),
                (hole, _) => {
                    io::copy(&mut io::repeat(0).take(hole), &mut hasher)?;
                    self.current.position += hole;
                }
            }
        }
    }

    /// Writes the content to `file` from its current start, leaving holes of a sparse file as holes, and returns its
    /// length. The file must be empty.
    ///
    /// # Errors
    /// Those of reading the layer, as a wrapped [`LayerError`], and those of writing.
    pub fn copy_to(&mut self, file: &mut File) -> io::Result<u64> {
        if !self.current.sparse {
            return self.copy_stored(self.current.left, file);
        }
        for segment in std::mem::take(&mut self.current.segments) {
            file.seek(SeekFrom::Start(segment.offset))?;
            self.copy_stored(segment.length, file)?;
        }
        let size = self.current.size;
        self.current.position = size;
        file.set_len(size)?;
        Ok(size)
    }

    fn copy_stored(&mut self, length: u64, out: &mut impl Write) -> io::Result<u64> {
        let mut left = length;
        while left > 0 {
            let available = self.available()?;
            let step = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            out.write_all(&available[..step])?;
            self.advance(step);
            left -= step as u64;
        }
        Ok(length)
    }

    /// Stored bytes that are at hand, at least one.
    fn available(&mut self) -> io::Result<&[u8]> {
        let offset = *self.tar_position;
        let bytes =
            self.input.fill_buf().map_err(|error| io::Error::other(failure(error, "a file", offset)))?;
        if bytes.is_empty() {
            return Err(io::Error::other(LayerError::Truncated { what: "a file", offset }));
        }
        Ok(bytes)
    }

    fn advance(&mut self, step: usize) {
        self.input.consume(step);
        *self.tar_position += step as u64;
        self.current.left -= step as u64;
        self.current.position += step as u64;
    }

    /// How many bytes from here on are zeros, and how many stored ones follow.
    fn next_run(&mut self) -> (u64, u64) {
        let current = &mut *self.current;
        if !current.sparse {
            return (0, current.left);
        }
        while let Some(segment) = current.segments.get(current.next_segment) {
            let end = segment.offset + segment.length;
            if current.position < end {
                let hole = segment.offset.saturating_sub(current.position);
                return (hole, end - current.position.max(segment.offset));
            }
            current.next_segment += 1;
        }
        (current.size - current.position, 0)
    }
}

impl Read for Content<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len() as u64;
        let (hole, stored) = self.next_run();
        if room == 0 || hole + stored == 0 {
            return Ok(0);
        }
        if hole > 0 {
            let step = hole.min(room) as usize;
            buffer[..step].fill(0);
            self.current.position += step as u64;
            return Ok(step);
        }
        let limit = stored.min(room) as usize;
        let available = self.available()?;
        let step = available.len().min(limit);
        buffer[..step].copy_from_slice(&available[..step]);
        self.advance(step);
        Ok(step)
    }
}

impl std::fmt::Debug for Content<'_, '_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Content({} of {} bytes)", self.current.position, self.current.size)
    }
}
