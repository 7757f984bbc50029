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
//! | a link, device or FIFO with content; a hard link to itself | refused |
//! | attributes of [`is_machine_xattr`] | dropped |
//! | types other than those of [`EntryKind`] | refused |
//! | a global PAX header with paths, sizes or attributes | refused |
//!
//! The entries are what the layer says, one after the other; duplicates and entries beneath links are judged by
//! [`super::index`] and by whoever unpacks.

use std::io::{self, BufRead, BufReader, Read};

use super::block::{self, HeaderBlock};
use super::content::{Content, Stored};
use super::entry::{Entry, EntryKind, Mtime, is_machine_xattr};
use super::header::{BLOCK_BYTES, WHITEOUT_PREFIX, padding_of};
use super::limits::Limits;
use super::names::markers;
use super::path::{LayerPath, PATH_BYTES_MAX, printable};
use super::pax::{Extensions, PAX_BYTES_MAX};
use super::prefixes::DirectoryCount;
use super::sparse::{self, MapParser, SEGMENTS_MAX, Segment};
use super::stream::{LayerStream, StreamEnd};
use crate::digest::{DiffId, Digest};

/// How names beginning with `.wh.` are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// As removals: the stream is a layer.
    Layer,
    /// As errors: the stream is an archive that ADD unpacks, and a layer cannot hold such names.
    Archive,
}

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The input failed; trying again may help.
    #[error("failed to read the layer: {0}")]
    Read(#[source] io::Error),
    /// The stream ends too early; fetching it again may help.
    #[error("layer ends in the middle of {what}, at byte {offset} of its tar")]
    Truncated {
        /// What is incomplete.
        what: &'static str,
        /// Offset in the uncompressed tar.
        offset: u64,
    },
    /// The stream is not what it claims to be.
    #[error("layer is damaged at byte {offset} of its tar: {reason}")]
    Malformed {
        /// Offset in the uncompressed tar.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry that rimg does not let in.
    #[error("layer entry `{name}` is refused: {reason}")]
    Refused {
        /// Its name as the archive has it, made printable.
        name: String,
        /// Why.
        reason: String,
    },
    /// One of the [`Limits`] is exceeded.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// The content is not the one asked for.
    #[error("{what} of the layer is {actual}, expected {expected}")]
    Mismatch {
        /// `digest` or `diff_id`.
        what: &'static str,
        /// What was asked for.
        expected: Box<Digest>,
        /// What was found.
        actual: Box<Digest>,
    },
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
    pub fn hashing(input: impl Read + Send + 'a, limits: Limits) -> Result<LayerReader<'a>, LayerError> {
        let stream = LayerStream::new(Box::new(input), limits, true).map_err(LayerError::Read)?;
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
        let stream = LayerStream::new(Box::new(input), limits, false).map_err(LayerError::Read)?;
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
        if matches!(&kind, EntryKind::Hardlink { target } if *target == path || target.is_root()) {
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

    /// What the entry is; also sets up its content.
    fn kind(
        &mut self,
        header: &HeaderBlock,
        pax: &Extensions,
        name: &[u8],
        link: Vec<u8>,
    ) -> Result<EntryKind, Trouble> {
        let size = or_else(pax.size, || header.size())?;
        let device = || header.device();
        self.current = Stored { offset: self.position, ..Stored::default() };
        if pax.sparse.name.is_some()
            && !(pax.sparse.is_map() && matches!(header.type_flag(), 0 | b'0' | b'7'))
        {
            // Some readers give any entry that name, others only such files.
            return Err(Trouble::Refused("it has the name of a sparse file but is none".to_owned()));
        }
        match header.type_flag() {
            // v7 knew directories by the slash alone.
            0 if name.ends_with(b"/") => Ok(EntryKind::Directory),
            0 | b'0' | b'7' | b'S' => self.regular(header, pax, size),
            // POSIX wants 0 here; some readers skip that much content, others take it for the next header.
            b'1' | b'2' | b'3' | b'4' | b'6' if size != 0 => {
                Err(Trouble::Refused("it is a link or device with content of its own".to_owned()))
            }
            b'1' => {
                let target = LayerPath::parse(&link)
                    .map_err(|error| Trouble::Refused(format!("its target: {error}")))?;
                if target.components().any(|name| name.starts_with(WHITEOUT_PREFIX)) {
                    return Err(Trouble::Refused("it is a hard link to a whiteout".to_owned()));
                }
                Ok(EntryKind::Hardlink { target })
            }
            b'2' if link.is_empty() || link.contains(&0) || link.len() >= PATH_BYTES_MAX => {
                Err(Trouble::Refused(
                    "the target of the symbolic link is empty, too long or holds a NUL byte".to_owned(),
                ))
            }
            b'2' => Ok(EntryKind::Symlink { target: link }),
            b'3' => device()
                .map(|(major, minor)| EntryKind::CharDevice { major, minor })
                .map_err(Trouble::Damaged),
            b'4' => device()
                .map(|(major, minor)| EntryKind::BlockDevice { major, minor })
                .map_err(Trouble::Damaged),
            b'5' => Ok(EntryKind::Directory),
            b'6' => Ok(EntryKind::Fifo),
            other => Err(Trouble::Refused(format!("its type `{}` is not supported", other.escape_ascii()))),
        }
    }

    fn regular(&mut self, header: &HeaderBlock, pax: &Extensions, stored: u64) -> Result<EntryKind, Trouble> {
        let records = &pax.sparse;
        let padding = padding_of(stored) as u64;
        let in_content = records.map_in_content();
        let (segments, size) = if header.type_flag() == b'S' {
            (Some(self.gnu_map(header)?), header.gnu_real_size()?)
        } else if records.is_map() {
            let size = records.real_size.ok_or("the sparse file has no real size".to_owned())?;
            (Some(if in_content { Vec::new() } else { records.segments.clone() }), size)
        } else if records.major.is_some() || records.minor.is_some() {
            return Err(Trouble::Refused("its sparse format is not supported".to_owned()));
        } else {
            (None, stored)
        };
        if size > self.limits.max_file {
            return Err(LayerError::Limit { what: "bytes in one file", limit: self.limits.max_file }.into());
        }
        let (segments, left) = match segments {
            Some(_) if in_content => self.map_in_content(stored)?,
            other => (other, stored),
        };
        if let Some(segments) = &segments {
            sparse::check(segments, size, left)?;
        }
        let sparse = segments.is_some();
        let segments = segments.unwrap_or_default();
        self.current =
            Stored { left, padding, size, offset: self.position, segments, sparse, ..Stored::default() };
        Ok(EntryKind::Regular { size })
    }

    /// The map in the header block and the blocks after it.
    fn gnu_map(&mut self, header: &HeaderBlock) -> Result<Vec<Segment>, Trouble> {
        let (mut segments, mut more) = header.gnu_segments()?;
        while more {
            let block = self.block("a sparse map")?.ok_or_else(|| self.truncated("a sparse map"))?;
            let (further, continues) = block::gnu_continuation(&block)?;
            if segments.len() + further.len() > SEGMENTS_MAX || (further.is_empty() && continues) {
                return Err(Trouble::Damaged(format!(
                    "the sparse map is empty or over {SEGMENTS_MAX} segments"
                )));
            }
            segments.extend(further);
            more = continues;
        }
        Ok(segments)
    }

    /// The map at the head of the content, and how much content is left behind it.
    fn map_in_content(&mut self, stored: u64) -> Result<(Option<Vec<Segment>>, u64), Trouble> {
        let mut parser = MapParser::default();
        let mut left = stored;
        loop {
            left = left
                .checked_sub(BLOCK_BYTES as u64)
                .ok_or("the sparse map is longer than its file".to_owned())?;
            let block = self.block("a sparse map")?.ok_or_else(|| self.truncated("a sparse map"))?;
            if let Some(segments) = parser.block(&block)? {
                return Ok((Some(segments), left));
            }
        }
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

/// An error on the way to an entry, before its name and place are attached.
enum Trouble {
    Damaged(String),
    Refused(String),
    Layer(LayerError),
}

impl Trouble {
    fn or_refuse(self, name: &[u8], offset: u64) -> LayerError {
        match self {
            Trouble::Damaged(reason) => LayerError::Malformed { offset, reason },
            Trouble::Refused(reason) => LayerError::Refused { name: printable(name), reason },
            Trouble::Layer(error) => error,
        }
    }
}

impl From<LayerError> for Trouble {
    fn from(error: LayerError) -> Trouble {
        Trouble::Layer(error)
    }
}

impl From<String> for Trouble {
    fn from(reason: String) -> Trouble {
        Trouble::Damaged(reason)
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

/// An error of the stream below, told apart by what it means for the layer.
pub(super) fn failure(error: io::Error, what: &'static str, offset: u64) -> LayerError {
    let error = match error.downcast::<LayerError>() {
        Ok(layer) => return layer,
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated { what, offset },
        io::ErrorKind::InvalidData => LayerError::Malformed { offset, reason: error.to_string() },
        _ => LayerError::Read(error),
    }
}
