//! Making a [`LayerIndex`] out of a blob that somebody else wrote, in one pass.
//!
//! The index says what unpacking the layer by itself would leave behind: each path once, without links of the layer
//! on the way to it. [`super::own_tree`] has the rules.

use std::collections::HashMap;
use std::io::{self, Read};

use super::entry::{EntryKind, layer_order};
use super::error::{LayerError, failure};
use super::index::{IndexEntry, LayerIndex};
use super::limits::Limits;
use super::own_tree::{Action, OwnTree};
use super::path::LayerPath;
use super::reader::{LayerReader, ReadMode};
use super::sparse::Segment;
use super::stream::LayerStream;
use crate::compression::Padding;
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
        scan(input, limits, expected, Padding::Refused)
    }

    /// As [`LayerIndex::scan`], for an archive that is the caller's own and no layer: however well it compresses, and
    /// with the zeros behind a gzip stream that tapes and copies in blocks leave, which GNU gzip passes over and
    /// BuildKit never reads.
    ///
    /// # Errors
    /// As [`LayerIndex::scan`].
    pub fn scan_archive(
        input: impl Read + Send,
        limits: Limits,
        expected: Expected,
    ) -> Result<LayerIndex, LayerError> {
        scan(input, limits.without_ratio(), expected, Padding::Allowed)
    }
}

fn scan(
    input: impl Read + Send,
    limits: Limits,
    expected: Expected,
    padding: Padding,
) -> Result<LayerIndex, LayerError> {
    let algorithm = expected.blob.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let mut blob = BlobHash { input, hasher: Hasher::new(algorithm), size: 0 };
    // What turns out to have the digest that an image names is no bomb, however small it was.
    let limits = if expected.diff_id.is_some() { limits.without_ratio() } else { limits };
    let hash = expected.diff_id.map_or(Algorithm::Sha256, |diff_id| diff_id.digest().algorithm());
    let scanned = scan_stream(&mut blob, limits, hash, padding);
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
    hash: Algorithm,
    padding: Padding,
) -> Result<(IndexBuilder, super::stream::StreamEnd), LayerError> {
    let stream =
        LayerStream::new(Box::new(blob), limits, Some(hash)).map_err(LayerError::Read)?.with_padding(padding);
    let mut reader = LayerReader::over(stream, limits, ReadMode::Layer);
    let mut builder = IndexBuilder::new(&limits);
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
struct IndexBuilder {
    entries: Vec<IndexEntry>,
    tree: OwnTree,
    /// Hard links to entries of the layer, and those entries.
    links: Vec<(u32, u32)>,
    /// Hard links whose target was not there when they came.
    later: Vec<u32>,
}

impl IndexBuilder {
    fn new(limits: &Limits) -> IndexBuilder {
        IndexBuilder { entries: Vec::new(), tree: OwnTree::new(limits), links: Vec::new(), later: Vec::new() }
    }

    fn push(&mut self, mut entry: IndexEntry) -> Result<(), LayerError> {
        // The reader's limit on entries is far below.
        let number = self.entries.len() as u32;
        let placed = self.tree.place(number, &entry.entry)?;
        entry.entry.path = placed.path;
        match placed.action {
            Action::Link { carrier, .. } | Action::LinkLater { carrier: Some(carrier), .. } => {
                self.links.push((number, carrier));
            }
            Action::LinkLater { carrier: None, .. } => self.later.push(number),
            _ => {}
        }
        self.entries.push(entry);
        Ok(())
    }

    /// What unpacking would leave, in layer order.
    fn finish(mut self) -> Vec<IndexEntry> {
        let mut standing = self.tree.standing(self.entries.len());
        for number in std::mem::take(&mut self.later) {
            if let EntryKind::Hardlink { target } = &mut self.entries[number as usize].entry.kind
                && let Some(found) = self.tree.link_target(target)
            {
                *target = found;
            }
        }
        self.settle_links(&standing);
        let markers = self.entries.iter().zip(&mut standing).filter(|(entry, _)| entry.entry.is_marker());
        for (entry, standing) in markers {
            *standing = self.tree.marks(&entry.entry);
        }
        let kept = self.entries.into_iter().zip(standing).filter(|(_, standing)| *standing);
        let mut entries: Vec<IndexEntry> = kept.map(|(entry, _)| entry).collect();
        entries.sort_by(|left, right| layer_order(&left.entry, &right.entry));
        // Only markers can be there twice.
        entries.dedup_by(|next, kept| layer_order(&next.entry, &kept.entry).is_eq());
        entries
    }

    /// Lets each hard link name a path at which its file still is. Where the file's first name is gone, the first of
    /// its links takes over its content and attributes.
    fn settle_links(&mut self, standing: &[bool]) {
        let mut names: HashMap<u32, LayerPath> = HashMap::new();
        for &(number, carrier) in &self.links {
            let (number, carrier_at) = (number as usize, carrier as usize);
            if !standing[number] {
                continue;
            }
            let at = if standing[carrier_at] { carrier_at } else { number };
            let target = names.entry(carrier).or_insert_with(|| self.entries[at].path().clone()).clone();
            if target == *self.entries[number].path() {
                self.entries[number] = self.entries[carrier_at].clone();
                self.entries[number].entry.path = target;
            } else {
                self.entries[number].entry.kind = EntryKind::Hardlink { target };
            }
        }
    }
}
