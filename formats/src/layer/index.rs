//! [`LayerIndex`]: what one layer contains and where its bytes lie, without unpacking it.
//!
//! The writer makes the index of its own layers by the way; `scan` makes the same one from any blob; `index_format`
//! keeps it as a file. The entries stand in [`super::layer_order`], each path once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::entry::{Entry, EntryKind, Position};
use super::path::LayerPath;
use super::sparse::Segment;
use crate::compression::{Compression, Member, decoder};
use crate::digest::{DiffId, Digest, VerifyReader};

/// The index of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of the blob.
    pub blob: Digest,
    /// Length of the blob in bytes.
    pub blob_size: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Length of the tar in bytes.
    pub uncompressed_size: u64,
    /// What the layer says, in layer order.
    pub entries: Vec<IndexEntry>,
    /// Where decoding may start; empty for plain tars, and for compressions without members.
    pub members: Vec<Member>,
}

/// An entry and where its content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// The entry.
    pub entry: Entry,
    /// SHA-256 of a regular file's content, holes as zeros. `None` for everything else, and for sparse files whose
    /// holes are so large that reading them would take longer than the rest of the layer.
    pub content: Option<Digest>,
    /// Where the stored content begins in the uncompressed tar.
    pub offset: u64,
    /// The stored parts of a sparse file that has holes; empty for all others.
    pub segments: Vec<Segment>,
}

impl IndexEntry {
    /// The path.
    pub fn path(&self) -> &LayerPath {
        &self.entry.path
    }

    /// Bytes of content that the tar stores.
    pub fn stored_size(&self) -> u64 {
        match self.segments.is_empty() {
            true => self.entry.size(),
            false => self.segments.iter().map(|segment| segment.length).sum(),
        }
    }
}

/// A file that is not root's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`/{path}` belongs to {uid}:{gid}, and there are no ids but root's here: without other owners it would be another image"
)]
pub struct OtherOwner {
    /// Its path.
    pub path: LayerPath,
    /// Its user.
    pub uid: u64,
    /// Its group.
    pub gid: u64,
}

impl LayerIndex {
    /// Whether all files are root's.
    ///
    /// # Errors
    /// The first that is not.
    pub fn one_owner(&self) -> Result<(), OtherOwner> {
        let entries = self.entries.iter().map(|entry| &entry.entry).filter(|entry| !entry.is_marker());
        match entries.into_iter().find(|entry| (entry.uid, entry.gid) != (0, 0)) {
            Some(entry) => Err(OtherOwner { path: entry.path.clone(), uid: entry.uid, gid: entry.gid }),
            None => Ok(()),
        }
    }

    /// What the layer puts at `path`, markers aside.
    pub fn get(&self, path: &LayerPath) -> Option<&IndexEntry> {
        self.position(path).map(|at| &self.entries[at])
    }

    pub(super) fn position(&self, path: &LayerPath) -> Option<usize> {
        let wanted = Position::of_path(path);
        self.entries.binary_search_by(|probe| Position::of(&probe.entry).cmp(&wanted)).ok()
    }

    /// Follows hard links within the layer: the entry that carries the content and attributes of `entry`. `None` when
    /// the chain leaves the layer, runs in a circle, or ends at a directory, which came after the link to what was there.
    pub fn link_source<'i>(&'i self, entry: &'i IndexEntry) -> Option<&'i IndexEntry> {
        // A tar links to earlier names, so real chains have one step; some writers make two.
        const STEPS_MAX: usize = 16;
        let mut current = entry;
        for _ in 0..STEPS_MAX {
            let EntryKind::Hardlink { target } = &current.entry.kind else { return Some(current) };
            current = self.get(target).filter(|found| found.entry.kind != EntryKind::Directory)?;
        }
        None
    }

    /// The content of `entry`, which must be of this index, out of the layer's `blob`. Decoding starts at the member
    /// that holds the content's first byte, or at the blob's beginning where there are no members. The digest is
    /// verified when the last byte is read.
    ///
    /// # Errors
    /// When the entry is no regular file (follow hard links with [`LayerIndex::link_source`]), or the blob fails.
    pub fn read_file(&self, entry: &IndexEntry, blob: File) -> io::Result<FileContent> {
        let EntryKind::Regular { size } = entry.entry.kind else {
            let message = format!("`{}` is not a regular file", entry.path());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let stored = self.stream_at(entry.offset, blob)?.take(entry.stored_size());
        let expanded = Expanded { stored, segments: entry.segments.clone(), next: 0, position: 0, size };
        Ok(FileContent(match entry.content {
            Some(digest) => Box::new(VerifyReader::new(expanded, digest, size)),
            None => Box::new(expanded),
        }))
    }

    /// The uncompressed tar from `offset` on.
    fn stream_at(&self, offset: u64, blob: File) -> io::Result<Box<dyn Read + Send>> {
        let at = |position| FileAt { file: blob, position };
        if self.compression == Compression::None {
            return Ok(Box::new(at(offset)));
        }
        let after = self.members.partition_point(|member| member.uncompressed_offset <= offset);
        let member = after.checked_sub(1).map(|before| self.members[before]);
        let (uncompressed_start, blob_start) =
            member.map_or((0, 0), |m| (m.uncompressed_offset, m.blob_offset));
        let mut stream = decoder(self.compression, Box::new(at(blob_start)));
        let skip = offset - uncompressed_start;
        if io::copy(&mut (&mut stream).take(skip), &mut io::sink())? < skip {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the layer ends before the file's content",
            ));
        }
        Ok(Box::new(stream))
    }
}

/// The content of one file of a layer.
pub struct FileContent(Box<dyn Read + Send>);

impl Read for FileContent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("FileContent")
    }
}

/// Reads a file without its shared position, so that several readers may use one open blob.
struct FileAt {
    file: File,
    position: u64,
}

impl Read for FileAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// A file with its holes filled in; ends exactly at its size or with an error.
struct Expanded<R> {
    stored: R,
    segments: Vec<Segment>,
    next: usize,
    position: u64,
    size: u64,
}

impl<R: Read> Expanded<R> {
    /// The end of the run that `position` lies in, and whether it is stored.
    fn run(&mut self) -> (u64, bool) {
        if self.segments.is_empty() {
            return (self.size, true);
        }
        while let Some(segment) = self.segments.get(self.next) {
            if self.position < segment.offset {
                return (segment.offset, false);
            }
            if self.position < segment.offset + segment.length {
                return (segment.offset + segment.length, true);
            }
            self.next += 1;
        }
        (self.size, false)
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (end, stored) = self.run();
        let room = usize::try_from(end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..room];
        let count = if stored { self.stored.read(buffer)? } else { buffer.len() };
        if !stored {
            buffer.fill(0);
        }
        if count == 0 && room > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the layer ends within the file's content",
            ));
        }
        self.position += count as u64;
        Ok(count)
    }
}
