//! Making a [`LayerIndex`] out of a blob that somebody else wrote, in one pass.
//!
//! The index says what unpacking the layer would leave behind. Of several entries for one path the last one counts;
//! a file that takes a directory's place takes what was in the directory with it. An entry beneath a path that the
//! same layer made something other than a directory is refused: unpacked naively it would be written through a
//! symbolic link, and no tool that makes layers has a reason for it.

use std::collections::HashMap;
use std::io::{self, Read};

use super::entry::{EntryKind, layer_order};
use super::error::{LayerError, failure};
use super::index::{IndexEntry, LayerIndex};
use super::limits::Limits;
use super::path::{LayerPath, printable};
use super::prefixes::PathHashes;
use super::reader::{LayerReader, ReadMode};
use super::sparse::Segment;
use super::stream::LayerStream;
use crate::digest::{Algorithm, DiffId, Digest, Hasher};

/// What a blob has to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// Digest of the blob; its algorithm is used for the index too. Without one the index has the SHA-256.
    pub blob: Option<Digest>,
    /// Digest of the uncompressed tar.
    pub diff_id: Option<DiffId>,
}

/// Holes of a sparse file that are hashed as zeros; beyond, the file has no content digest. 1 GiB takes half a second.
const HASHED_HOLES_MAX: u64 = 1 << 30;

impl LayerIndex {
    /// Reads a whole layer blob and indexes it.
    ///
    /// # Errors
    /// [`LayerError::Mismatch`] when the blob or its tar is not the expected one, otherwise why it cannot be read.
    pub fn scan(
        input: impl Read + Send,
        limits: Limits,
        expected: Expected,
    ) -> Result<LayerIndex, LayerError> {
        let algorithm = expected.blob.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut blob = BlobHash { input, hasher: Hasher::new(algorithm), size: 0 };
        let scanned = scan_stream(&mut blob, limits);
        // A wrong blob should be called wrong, not malformed, and nothing about it is worth knowing.
        if scanned.is_err() && expected.blob.is_some() {
            io::copy(&mut blob, &mut io::sink()).map_err(LayerError::Read)?;
        }
        let (digest, blob_size) = (blob.hasher.finish(), blob.size);
        check("digest", expected.blob, digest)?;
        let (builder, end) = scanned?;
        let diff_id = end.diff_id.unwrap_or_else(|| DiffId::new(digest));
        check("diff_id", expected.diff_id.map(|diff_id| *diff_id.digest()), *diff_id.digest())?;
        Ok(LayerIndex {
            diff_id,
            blob: digest,
            blob_size,
            compression: end.compression,
            uncompressed_size: end.uncompressed_size,
            entries: builder.finish(),
            members: end.members,
        })
    }
}

fn check(what: &'static str, expected: Option<Digest>, actual: Digest) -> Result<(), LayerError> {
    match expected {
        Some(expected) if expected != actual => {
            Err(LayerError::Mismatch { what, expected: Box::new(expected), actual: Box::new(actual) })
        }
        _ => Ok(()),
    }
}

fn scan_stream(
    blob: impl Read + Send,
    limits: Limits,
) -> Result<(IndexBuilder, super::stream::StreamEnd), LayerError> {
    let stream = LayerStream::new(Box::new(blob), limits, true).map_err(LayerError::Read)?;
    let mut reader = LayerReader::over(stream, limits, ReadMode::Layer);
    let mut builder = IndexBuilder::default();
    while let Some(entry) = reader.next_entry()? {
        let offset = reader.content_offset();
        let mut segments = reader.segments().unwrap_or_default().to_vec();
        let content = match entry.kind {
            EntryKind::Regular { size } => content_digest(&mut reader, size, &segments)?,
            _ => None,
        };
        // A file that is one hole: without a segment it would be taken for one that is stored whole.
        if reader.segments().is_some_and(<[_]>::is_empty) && entry.size() > 0 {
            segments.push(Segment { offset: entry.size(), length: 0 });
        }
        builder.push(IndexEntry { entry, content, offset, segments })?;
    }
    Ok((builder, reader.into_end()))
}

fn content_digest(
    reader: &mut LayerReader<'_>,
    size: u64,
    segments: &[Segment],
) -> Result<Option<Digest>, LayerError> {
    let stored: u64 = segments.iter().map(|segment| segment.length).sum();
    let holes = if reader.segments().is_some() { size - stored } else { 0 };
    if holes > HASHED_HOLES_MAX {
        return Ok(None);
    }
    let offset = reader.content_offset();
    let hash = reader.content().hash(Algorithm::Sha256);
    hash.map(Some).map_err(|error| failure(error, "a file", offset))
}

struct BlobHash<R> {
    input: R,
    hasher: Hasher,
    size: u64,
}

impl<R: Read> Read for BlobHash<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// Collects the entries of a tar in its own order.
#[derive(Default)]
struct IndexBuilder {
    entries: Vec<IndexEntry>,
    hashes: PathHashes,
    /// The latest entry of each path, markers aside, by the path's hash.
    latest: HashMap<u64, usize>,
    /// The directory of the entry before, known to be good.
    parent: Option<LayerPath>,
}

impl IndexBuilder {
    fn push(&mut self, entry: IndexEntry) -> Result<(), LayerError> {
        let parent = entry.path().parent();
        if parent != self.parent {
            if let Some(parent) = &parent {
                self.check_ancestors(&entry, parent)?;
            }
            self.parent = parent;
        }
        if !entry.entry.is_marker() {
            let here = self.latest.insert(self.hashes.of(entry.path()), self.entries.len());
            // What was a directory may be none any more.
            if here.is_some() {
                self.parent = None;
            }
        }
        self.entries.push(entry);
        Ok(())
    }

    fn check_ancestors(&self, entry: &IndexEntry, parent: &LayerPath) -> Result<(), LayerError> {
        for hash in self.hashes.down_to(parent) {
            let Some(found) = self.latest.get(&hash).map(|&at| &self.entries[at].entry) else { continue };
            if found.kind != EntryKind::Directory && parent.starts_with(&found.path) {
                let reason = format!(
                    "it lies under `{}`, which the same layer makes something other than a directory",
                    found.path
                );
                return Err(LayerError::Refused { name: printable(entry.path().as_bytes()), reason });
            }
        }
        Ok(())
    }

    /// What unpacking would leave, in layer order.
    fn finish(self) -> Vec<IndexEntry> {
        let mut numbered: Vec<(usize, IndexEntry)> = self.entries.into_iter().enumerate().collect();
        // Later ones first among equals, so that `dedup` keeps them.
        numbered.sort_by(|(left_at, left), (right_at, right)| {
            layer_order(&left.entry, &right.entry).then(right_at.cmp(left_at))
        });
        numbered.dedup_by(|next, kept| layer_order(&next.1.entry, &kept.1.entry).is_eq());
        drop_replaced(&mut numbered);
        numbered.into_iter().map(|(_, entry)| entry).collect()
    }
}

/// Drops what lay in a directory before something else took the directory's place.
fn drop_replaced(numbered: &mut Vec<(usize, IndexEntry)>) {
    let mut blocker: Option<LayerPath> = None;
    numbered.retain(|(_, entry)| {
        let below = blocker
            .as_ref()
            .is_some_and(|blocker| entry.path().starts_with(blocker) && entry.path() != blocker);
        if below {
            return false;
        }
        if !entry.entry.is_marker() && entry.entry.kind != EntryKind::Directory {
            blocker = Some(entry.path().clone());
        }
        true
    });
}
