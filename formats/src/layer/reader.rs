//! [`LayerReader`]: entries and contents out of a layer that anybody may have written.
//!
//! Understood: v7, ustar, GNU (long names and links, base-256 numbers, sparse), PAX (global headers, sparse 0.0, 0.1
//! and 1.0) and star's prefix, plain or compressed. Tolerated: an archive without its closing zero blocks, and
//! anything behind them. What is suspicious is refused with a reason rather than guessed at, because the other tools
//! that read the same layer guess differently:
//!
//! | name or entry | answer |
//! |---|---|
//! | `/etc/x`, `./etc//x` | `etc/x` |
//! | `..` as a component, NUL, too long | refused |
//! | `dir/.wh.x` | [`EntryKind::Whiteout`] of `dir/x` |
//! | `dir/.wh..wh..opq` | [`EntryKind::OpaqueMarker`] of `dir` |
//! | other `.wh..wh.` names | skipped: they are AUFS's own bookkeeping |
//! | `.wh.`, `.wh..`, `.wh...`, below a `.wh.` name, a whiteout that is no regular file | refused |
//! | a link, device or FIFO with content; a hard link to the root | refused |
//! | attributes of [`is_machine_xattr`] | dropped |
//! | types other than those of [`EntryKind`] | refused |
//! | a global PAX header with paths, sizes or attributes | refused |
//!
//! The entries are what the layer says, one after the other; what they come to together is for [`super::own_tree`].

mod kind;

use std::io::{self, BufRead, BufReader, Read};

use super::block::HeaderBlock;
use super::content::{Content, Stored};
use super::error::{LayerError, failure};

use super::entry::{Entry, EntryKind, Mtime, is_machine_xattr};
use super::header::{BLOCK_BYTES, padding_of};
use super::limits::Limits;
use super::names::markers;
use super::path::{LayerPath, printable};
use super::pax::{Extensions, PAX_BYTES_MAX};
use super::prefixes::DirectoryCount;
use super::sparse::Segment;
use super::stream::{LayerStream, StreamEnd};
use crate::digest::{Algorithm, DiffId};

/// How names beginning with `.wh.` are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// As removals: the stream is a layer.
    Layer,
    /// As errors: the stream is an archive that ADD unpacks, and a layer cannot hold such names.
    Archive,
}

/// Reads one layer from front to back.
pub struct LayerReader<'a> {
    input: BufReader<LayerStream<'a>>,
    limits: Limits,
    mode: ReadMode,
    /// Bytes of tar consumed.
    position: u64,
    entries: u64,
    metadata: u64,
    globals: Extensions,
    directories: DirectoryCount,
    current: Stored,
    ended: bool,
}

/// The extended headers before one entry.
#[derive(Default)]
struct Pending {
    pax: Option<Extensions>,
    gnu_name: Option<Vec<u8>>,
    gnu_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.gnu_name.is_none() && self.gnu_link.is_none()
    }
}

impl<'a> LayerReader<'a> {
    /// Begins to read a layer, compressed or not.
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub fn new(input: impl Read + Send + 'a, limits: Limits) -> Result<LayerReader<'a>, LayerError> {
        LayerReader::with_mode(input, limits, ReadMode::Layer)
    }

    /// As [`LayerReader::new`], and hashes the uncompressed tar on the way: see [`LayerReader::diff_id`].
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub fn hashing(
        input: impl Read + Send + 'a,
        limits: Limits,
        algorithm: Algorithm,
    ) -> Result<LayerReader<'a>, LayerError> {
        let stream = LayerStream::new(Box::new(input), limits, Some(algorithm)).map_err(LayerError::Read)?;
        Ok(LayerReader::over(stream, limits, ReadMode::Layer))
    }

    /// The digest of the uncompressed tar of a reader made by [`LayerReader::hashing`], once
    /// [`LayerReader::next_entry`] has said that there is no more; `None` before, and for other readers.
    #[must_use]
    pub fn diff_id(self) -> Option<DiffId> {
        let ended = self.ended;
        self.into_end().diff_id.filter(|_| ended)
    }

    /// Begins to read a layer or another archive, compressed or not.
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub fn with_mode(
        input: impl Read + Send + 'a,
        limits: Limits,
        mode: ReadMode,
    ) -> Result<LayerReader<'a>, LayerError> {
        let stream = LayerStream::new(Box::new(input), limits, None).map_err(LayerError::Read)?;
        Ok(LayerReader::over(stream, limits, mode))
    }

    pub(super) fn over(stream: LayerStream<'a>, limits: Limits, mode: ReadMode) -> LayerReader<'a> {
        LayerReader {
            input: BufReader::with_capacity(128 * 1024, stream),
            limits,
            mode,
            position: 0,
            entries: 0,
            metadata: 0,
            globals: Extensions::default(),
            directories: DirectoryCount::default(),
            current: Stored::default(),
            ended: false,
        }
    }

    /// The next entry, or `None` at the end; content of the one before that was not read is skipped. The end is only
    /// reported when the whole stream has been read and its checksums held.
    ///
    /// # Errors
    /// See [`LayerError`]. After an error the reader is of no use.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut pending = Pending::default();
        while !self.ended {
            self.skip_content()?;
            let Some(header) = self.next_header()? else {
                if !pending.is_empty() {
                    return Err(self.truncated("an extended header"));
                }
                self.drain()?;
                break;
            };
            if self.extension(&header, &mut pending)? {
                continue;
            }
            let entry = self.entry(&header, std::mem::take(&mut pending))?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
        Ok(None)
    }

    /// The content of the entry that [`LayerReader::next_entry`] returned last; empty for everything but regular files.
    pub fn content(&mut self) -> Content<'_, 'a> {
        Content::new(&mut self.input, &mut self.position, &mut self.current)
    }

    /// Where the current entry's stored content begins in the uncompressed tar.
    pub fn content_offset(&self) -> u64 {
        self.current.offset
    }

    /// The stored parts of the current entry when it is a sparse file, `None` otherwise.
    pub fn segments(&self) -> Option<&[Segment]> {
        self.current.sparse.then_some(self.current.segments.as_slice())
    }

    pub(super) fn into_end(self) -> StreamEnd {
        self.input.into_inner().finish()
    }

    /// Reads what stands behind the end of the archive: compressed streams are only whole at their end.
    fn drain(&mut self) -> Result<(), LayerError> {
        self.ended = true;
        loop {
            let length =
                self.input.fill_buf().map_err(|error| failure(error, "its end", self.position))?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    fn skip_content(&mut self) -> Result<(), LayerError> {
        let mut left = self.current.left + self.current.padding;
        self.current = Stored::default();
        while left > 0 {
            let offset = self.position;
            let available = self.input.fill_buf().map_err(|error| failure(error, "a file", offset))?.len();
            if available == 0 {
                return Err(self.truncated("a file"));
            }
            let step = left.min(available as u64);
            self.input.consume(step as usize);
            self.position += step;
            left -= step;
        }
        Ok(())
    }

    /// One block; `None` at a clean end of the stream.
    fn block(&mut self, what: &'static str) -> Result<Option<[u8; BLOCK_BYTES]>, LayerError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.truncated(what)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(error, what, self.position)),
            }
        }
        self.position += BLOCK_BYTES as u64;
        Ok(Some(block))
    }

    fn next_header(&mut self) -> Result<Option<HeaderBlock>, LayerError> {
        let Some(block) = self.block("a header")? else { return Ok(None) };
        let parsed =
            HeaderBlock::parse(block).map_err(|reason| match self.position == BLOCK_BYTES as u64 {
                true => self.malformed("it is not a tar archive at all".to_owned()),
                false => self.malformed(reason),
            })?;
        if let Some(header) = parsed {
            return Ok(Some(header));
        }
        // Two zero blocks end an archive. After a single one some readers stop and others go on.
        match self.block("the end of the archive")? {
            Some(block) if block.iter().any(|&byte| byte != 0) => {
                Err(self.malformed("a single zero block stands before more entries".to_owned()))
            }
            _ => Ok(None),
        }
    }

    /// Takes in a header that speaks about the next entry; false when this is that entry.
    fn extension(&mut self, header: &HeaderBlock, pending: &mut Pending) -> Result<bool, LayerError> {
        let slot_taken = match header.type_flag() {
            b'x' => pending.pax.is_some(),
            b'L' => pending.gnu_name.is_some(),
            b'K' => pending.gnu_link.is_some(),
            b'g' | b'V' => false,
            _ => return Ok(false),
        };
        if slot_taken {
            return Err(self.malformed("one entry has two extended headers of a kind".to_owned()));
        }
        let bytes = self.payload(header)?;
        match header.type_flag() {
            b'x' => pending.pax = Some(Extensions::parse(&bytes).map_err(|reason| self.malformed(reason))?),
            b'L' => pending.gnu_name = Some(until_nul(bytes)),
            b'K' => pending.gnu_link = Some(until_nul(bytes)),
            b'g' => self.global(&bytes)?,
            // A volume label says nothing about files.
            _ => {}
        }
        Ok(true)
    }

    fn global(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        let records = Extensions::parse(bytes).map_err(|reason| self.malformed(reason))?;
        if let Some(key) = records.unfit_for_global() {
            return Err(self.malformed(format!("a global extended header sets `{key}` for every entry")));
        }
        self.globals.uid = records.uid.or(self.globals.uid);
        self.globals.gid = records.gid.or(self.globals.gid);
        self.globals.mtime = records.mtime.or(self.globals.mtime);
        Ok(())
    }

    /// The content of an extended header.
    fn payload(&mut self, header: &HeaderBlock) -> Result<Vec<u8>, LayerError> {
        let size = header.size().map_err(|reason| self.malformed(reason))?;
        if size > PAX_BYTES_MAX as u64 {
            return Err(LayerError::Limit {
                what: "bytes in an extended header",
                limit: PAX_BYTES_MAX as u64,
            });
        }
        let offset = self.position;
        let mut bytes = Vec::new();
        let padded = size + padding_of(size) as u64;
        let read = (&mut self.input).take(padded).read_to_end(&mut bytes);
        read.map_err(|error| failure(error, "an extended header", offset))?;
        self.position += bytes.len() as u64;
        if (bytes.len() as u64) < padded {
            return Err(self.truncated("an extended header"));
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    /// Puts an entry together; `None` when it is one to skip.
    fn entry(&mut self, header: &HeaderBlock, pending: Pending) -> Result<Option<Entry>, LayerError> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(LayerError::Limit { what: "entries", limit: self.limits.max_entries });
        }
        let mut pax = pending.pax.unwrap_or_default();
        pax.xattrs.retain(|name, _| !is_machine_xattr(name));
        let name =
            first_of([&pax.sparse.name, &pax.path, &pending.gnu_name]).unwrap_or_else(|| header.name());
        let link = first_of([&pax.link_path, &pending.gnu_link]).unwrap_or_else(|| header.link_name());
        let attributes: usize = pax.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.metadata = self.metadata.saturating_add((name.len() + link.len() + attributes) as u64);
        if self.metadata > self.limits.max_metadata {
            return Err(LayerError::Limit {
                what: "bytes of names and attributes",
                limit: self.limits.max_metadata,
            });
        }
        let refused = |reason: String| LayerError::Refused { name: printable(&name), reason };
        let kind =
            self.kind(header, &pax, &name, link).map_err(|error| error.or_refuse(&name, self.position))?;
        let path = LayerPath::clean(&name).map_err(|error| refused(error.to_string()))?;
        if path.is_root() && kind != EntryKind::Directory {
            return Err(refused("the root of a layer can only be a directory".to_owned()));
        }
        if matches!(&kind, EntryKind::Hardlink { target } if target.is_root()) {
            return Err(refused("it is a hard link to itself or to the root".to_owned()));
        }
        let Some((path, kind)) = markers(path, kind, self.mode).map_err(refused)? else { return Ok(None) };
        if matches!(kind, EntryKind::Whiteout | EntryKind::OpaqueMarker) {
            self.current.discard();
        }
        let path = path.measured().map_err(|error| refused(error.to_string()))?;
        let limit = self.limits.max_entries;
        if self.directories.add(&path, limit) > limit {
            return Err(LayerError::Limit { what: "directories", limit });
        }
        let number = |reason: String| LayerError::Malformed { offset: self.position, reason };
        let seconds = || header.mtime().map(|secs| Mtime { secs, nanos: 0 });
        Ok(Some(Entry {
            path,
            kind,
            mode: header.mode().map_err(number)?,
            uid: or_else(pax.uid.or(self.globals.uid), || header.uid()).map_err(number)?,
            gid: or_else(pax.gid.or(self.globals.gid), || header.gid()).map_err(number)?,
            mtime: or_else(pax.mtime.or(self.globals.mtime), seconds).map_err(number)?,
            xattrs: pax.xattrs,
        }))
    }

    fn truncated(&self, what: &'static str) -> LayerError {
        LayerError::Truncated { what, offset: self.position }
    }

    fn malformed(&self, reason: String) -> LayerError {
        LayerError::Malformed { offset: self.position, reason }
    }
}

impl std::fmt::Debug for LayerReader<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "LayerReader(entry {}, byte {})", self.entries, self.position)
    }
}

fn first_of<const N: usize>(candidates: [&Option<Vec<u8>>; N]) -> Option<Vec<u8>> {
    candidates.into_iter().flatten().next().cloned()
}

fn or_else<T, E>(value: Option<T>, fallback: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    value.map_or_else(fallback, Ok)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
