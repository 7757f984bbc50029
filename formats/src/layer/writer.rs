//! [`LayerWriter`]: the one way layers are made.
//!
//! Entries come in [`layer_order`]; out comes an ordinary tar that every client reads, and with it, from the same
//! pass, the DiffID, the blob's digest and the index. The writer cuts the stream into members (see [`MemberRule`]);
//! `members` compresses and hashes them, `header` encodes the headers.
//!
//! Same entries and contents, same bytes: on any machine and with any number of threads. A change of the codec
//! library may change the compressed bytes, never the DiffID.

use std::fs::File;
use std::io::{self, Read, Write};

use super::entry::{Entry, EntryKind, Mtime, Position, is_machine_xattr, layer_order};
use super::header::{self, BLOCK_BYTES, Unrepresentable};
use super::index::{IndexEntry, LayerIndex};
use super::members::{ContentRun, MemberWriter, Piece};
use super::path::LayerPath;
use crate::compression::Compression;
use crate::digest::{DiffId, Digest};

/// Largest uncompressed length of a member. It is the grain of parallel work, of deltas and of seeking: larger ones
/// would make `cat` decode more than it shows and leave threads idle at the end of a layer, smaller ones cost size
/// (1 MiB members cost 0.17 % over one stream, 256 KiB ones about four times that).
pub const MEMBER_BYTES_MAX: usize = 1 << 20;

/// Files from this size on get members of their own, which hold their content and nothing else: the same content is
/// then the same member bytes in every layer. Smaller files share members, or each would cost a gzip header, a
/// Huffman table and a cold window.
pub const OWN_MEMBER_BYTES_MIN: u64 = 256 * 1024;

/// A shared member may end early from this length on, see [`MemberRule`].
const SHARED_MEMBER_BYTES_MIN: usize = 256 * 1024;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// gzip members by libdeflate, level 0 to 12.
    Gzip {
        /// 0 stores, 4 is the default, 12 is slowest.
        level: u8,
    },
    /// zstd frames, level 1 to 22.
    Zstd {
        /// 3 is the default.
        level: u8,
    },
    /// A plain tar.
    None,
}

impl LayerCompression {
    /// gzip at the level rimg uses when nobody asks: as small as Go's default and three times as fast.
    pub const GZIP_DEFAULT: LayerCompression = LayerCompression::Gzip { level: 4 };
    /// zstd at its own default level.
    pub const ZSTD_DEFAULT: LayerCompression = LayerCompression::Zstd { level: 3 };

    /// The compression without its level.
    pub fn compression(self) -> Compression {
        match self {
            LayerCompression::Gzip { .. } => Compression::Gzip,
            LayerCompression::Zstd { .. } => Compression::Zstd,
            LayerCompression::None => Compression::None,
        }
    }

    fn check(self) -> Result<(), WriteError> {
        match self {
            LayerCompression::Gzip { level: 13.. } => {
                Err(WriteError::Level { level: self.level(), range: "0 to 12" })
            }
            LayerCompression::Zstd { level: 0 | 23.. } => {
                Err(WriteError::Level { level: self.level(), range: "1 to 22" })
            }
            _ => Ok(()),
        }
    }

    fn level(self) -> u8 {
        match self {
            LayerCompression::Gzip { level } | LayerCompression::Zstd { level } => level,
            LayerCompression::None => 0,
        }
    }
}

/// Which times entries get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtimePolicy {
    /// Every entry gets this one: the layer does not depend on when its files were touched.
    Fixed(crate::epoch::Epoch),
    /// Entries keep theirs, to the nanosecond.
    Preserve,
}

/// How a layer is to be made.
#[derive(Clone, Copy, Debug)]
pub struct LayerOptions {
    /// Compression of the blob.
    pub compression: LayerCompression,
    /// Compressing threads; 0 means one for each processor. Does not change the result.
    pub threads: usize,
    /// Times of the entries.
    pub mtime: MtimePolicy,
}

impl Default for LayerOptions {
    fn default() -> Self {
        LayerOptions {
            compression: LayerCompression::GZIP_DEFAULT,
            threads: 0,
            mtime: MtimePolicy::Fixed(crate::epoch::Epoch::DEFAULT),
        }
    }
}

/// Why a layer could not be written. The writer is of no use after any of these.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error("failed to write the layer: {0}")]
    Output(#[source] io::Error),
    /// An entry's content failed.
    #[error("failed to read `{path}`: {source}")]
    Content {
        /// The entry.
        path: LayerPath,
        /// What happened.
        source: io::Error,
    },
    /// The content has another length than the entry says, most likely because the file changes while it is read.
    #[error("`{path}` has {found} bytes, expected {expected}: did it change while it was read?")]
    Size {
        /// The entry.
        path: LayerPath,
        /// Bytes the entry announced.
        expected: u64,
        /// `exactly N` or `more than N`.
        found: String,
    },
    /// The entry does not come after the one before it.
    #[error("`{path}` comes after `{previous}`: entries must be unique and in layer order")]
    Order {
        /// The entry.
        path: LayerPath,
        /// The entry before it.
        previous: LayerPath,
    },
    /// The entry lies under something that is not a directory.
    #[error("`{path}` lies under `{parent}`, which is not a directory")]
    NotADirectory {
        /// The entry.
        path: LayerPath,
        /// What it lies under.
        parent: LayerPath,
    },
    /// A hard link names something that is not a file, FIFO or device earlier in the same layer.
    #[error("`{path}` is a hard link to `{target}`, which is not an earlier file of the same layer")]
    HardlinkTarget {
        /// The entry.
        path: LayerPath,
        /// Its target.
        target: LayerPath,
    },
    /// A tar cannot say this.
    #[error("`{path}` cannot be in a layer: {reason}")]
    Unrepresentable {
        /// The entry.
        path: LayerPath,
        /// What is wrong with it.
        reason: Unrepresentable,
    },
    /// The compression level does not exist.
    #[error("compression level {level} does not exist: use {range}")]
    Level {
        /// The level asked for.
        level: u8,
        /// Those there are.
        range: &'static str,
    },
}

/// A layer that has been written.
#[derive(Debug)]
pub struct FinishedLayer<W> {
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Length of the tar in bytes.
    pub uncompressed_size: u64,
    /// What is in it.
    pub index: LayerIndex,
    /// Where the blob was written, flushed.
    pub out: W,
    /// How it is compressed.
    pub compression: LayerCompression,
}

/// Writes one layer. Dropping it unfinished leaves a useless blob in the output.
pub struct LayerWriter<W: Write> {
    members: MemberWriter<W>,
    piece: Piece,
    /// Bytes of tar before `piece`.
    piece_offset: u64,
    mtime: MtimePolicy,
    compression: LayerCompression,
    entries: Vec<IndexEntry>,
}

impl<W: Write + Send> LayerWriter<W> {
    /// Begins a layer on `out`.
    ///
    /// # Errors
    /// When the compression level does not exist.
    pub fn new(out: W, options: LayerOptions) -> Result<LayerWriter<W>, WriteError> {
        options.compression.check()?;
        Ok(LayerWriter {
            members: MemberWriter::new(out, options.compression, options.threads),
            piece: Piece::default(),
            piece_offset: 0,
            mtime: options.mtime,
            compression: options.compression,
            entries: Vec::new(),
        })
    }

    /// Adds an entry; `content` must yield exactly the size of a regular file, and nothing for anything else.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn append(&mut self, entry: &Entry, content: impl Read) -> Result<(), WriteError> {
        let entry = self.normalised(entry);
        self.check(&entry)?;
        let mut headers = Vec::with_capacity(BLOCK_BYTES);
        header::encode(&entry, &mut headers)
            .map_err(|reason| WriteError::Unrepresentable { path: entry.path.clone(), reason })?;
        let rule = MemberRule::of(&entry, headers.len());
        if rule.cuts_before(self.piece.bytes.len()) {
            self.cut()?;
        }
        self.piece.bytes.append(&mut headers);
        if rule.own_members {
            self.cut()?;
        }
        let offset = self.piece_offset + self.piece.bytes.len() as u64;
        if matches!(entry.kind, EntryKind::Regular { .. }) {
            self.append_content(&entry, content, rule.own_members)?;
        }
        self.entries.push(IndexEntry { entry, content: None, offset, segments: Vec::new() });
        Ok(())
    }

    /// Adds an entry that has no content: everything but regular files, and empty ones.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn append_empty(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.append(entry, io::empty())
    }

    /// Adds a regular file whose content is the rest of `file`, read straight into the layer.
    ///
    /// # Errors
    /// See [`WriteError`]; [`WriteError::Size`] when the file grew or shrank.
    pub fn append_file(&mut self, entry: &Entry, file: &File) -> Result<(), WriteError> {
        self.append(entry, file)
    }

    /// Ends the archive, waits for all compression, and flushes the output.
    ///
    /// # Errors
    /// [`WriteError::Output`].
    pub fn finish(mut self) -> Result<FinishedLayer<W>, WriteError> {
        // "At the end of the archive file there shall be two 512-octet logical records filled with binary zeros"
        // (POSIX.1-2001 pax, ustar Interchange Format).
        self.piece.bytes.resize(self.piece.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.cut()?;
        let blob = self.members.finish().map_err(WriteError::Output)?;
        let mut contents = blob.contents.into_iter();
        for entry in &mut self.entries {
            if matches!(entry.entry.kind, EntryKind::Regular { .. }) {
                entry.content = contents.next();
            }
        }
        let index = LayerIndex {
            diff_id: blob.diff_id,
            blob: blob.digest,
            blob_size: blob.size,
            compression: self.compression.compression(),
            uncompressed_size: blob.uncompressed_size,
            entries: self.entries,
            members: blob.members,
        };
        Ok(FinishedLayer {
            diff_id: blob.diff_id,
            digest: blob.digest,
            size: blob.size,
            uncompressed_size: blob.uncompressed_size,
            index,
            out: blob.out,
            compression: self.compression,
        })
    }

    /// The entry as it will stand in the layer: with the layer's time, without attributes of this machine, and markers
    /// without any.
    fn normalised(&self, entry: &Entry) -> Entry {
        let mut entry = entry.clone();
        if let MtimePolicy::Fixed(epoch) = self.mtime {
            entry.mtime = Mtime { secs: epoch.seconds(), nanos: 0 };
        }
        entry.xattrs.retain(|name, _| !is_machine_xattr(name));
        if entry.is_marker() {
            (entry.mode, entry.uid, entry.gid) = (0, 0, 0);
            entry.xattrs.clear();
        }
        entry
    }

    fn check(&self, entry: &Entry) -> Result<(), WriteError> {
        if let EntryKind::Hardlink { target } = &entry.kind
            && !self.is_file(target)
        {
            return Err(WriteError::HardlinkTarget { path: entry.path.clone(), target: target.clone() });
        }
        let Some(previous) = self.entries.last().map(|last| &last.entry) else { return Ok(()) };
        if layer_order(previous, entry).is_ge() {
            return Err(WriteError::Order { path: entry.path.clone(), previous: previous.path.clone() });
        }
        // In layer order whatever lies under an entry follows it directly.
        let holds_nothing =
            !matches!(previous.kind, EntryKind::Directory | EntryKind::Whiteout | EntryKind::OpaqueMarker);
        if holds_nothing && entry.path.starts_with(&previous.path) {
            return Err(WriteError::NotADirectory {
                path: entry.path.clone(),
                parent: previous.path.clone(),
            });
        }
        Ok(())
    }

    fn is_file(&self, target: &LayerPath) -> bool {
        let position = Position::of_path(target);
        let found = self.entries.binary_search_by(|probe| Position::of(&probe.entry).cmp(&position));
        // A FIFO or a device may have several names as well.
        let is_named = |kind: &EntryKind| {
            use EntryKind::{BlockDevice, CharDevice, Fifo, Regular};
            matches!(kind, Regular { .. } | Fifo | CharDevice { .. } | BlockDevice { .. })
        };
        found.is_ok_and(|at| is_named(&self.entries[at].entry.kind))
    }

    fn append_content(&mut self, entry: &Entry, mut content: impl Read, own: bool) -> Result<(), WriteError> {
        let size = entry.size();
        let mut left = size;
        loop {
            let room = if own { MEMBER_BYTES_MAX as u64 } else { left };
            // Either at most MEMBER_BYTES_MAX, or below OWN_MEMBER_BYTES_MIN.
            let wanted = left.min(room) as usize;
            let start = self.piece.bytes.len();
            self.piece.bytes.resize(start + wanted, 0);
            let found = read_full(&mut content, &mut self.piece.bytes[start..])
                .map_err(|source| WriteError::Content { path: entry.path.clone(), source })?;
            left -= found as u64;
            if found < wanted {
                let found = format!("exactly {}", size - left);
                return Err(WriteError::Size { path: entry.path.clone(), expected: size, found });
            }
            self.piece.contents.push(ContentRun { range: start..start + wanted, last: left == 0 });
            if own {
                self.cut()?;
            }
            if left == 0 {
                break;
            }
        }
        self.expect_end(entry, content)?;
        self.piece.bytes.resize(self.piece.bytes.len() + header::padding_of(size), 0);
        Ok(())
    }

    fn expect_end(&self, entry: &Entry, mut content: impl Read) -> Result<(), WriteError> {
        let surplus = read_full(&mut content, &mut [0])
            .map_err(|source| WriteError::Content { path: entry.path.clone(), source })?;
        if surplus == 0 {
            return Ok(());
        }
        let (path, expected) = (entry.path.clone(), entry.size());
        Err(WriteError::Size { path, expected, found: format!("more than {expected}") })
    }

    /// Ends the current member.
    fn cut(&mut self) -> Result<(), WriteError> {
        let next = self.members.next_piece();
        let piece = std::mem::replace(&mut self.piece, next);
        self.piece_offset += piece.bytes.len() as u64;
        self.members.submit(piece).map_err(WriteError::Output)
    }
}

impl<W: Write> std::fmt::Debug for LayerWriter<W> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "LayerWriter({} entries so far)", self.entries.len())
    }
}

/// Where members are cut. Every cut lies between two entries or within one large file's content:
///
/// 1. content of [`OWN_MEMBER_BYTES_MIN`] and more gets its own members of [`MEMBER_BYTES_MAX`], the last one shorter;
/// 2. a shared member ends before an entry that would take it over [`MEMBER_BYTES_MAX`];
/// 3. from [`SHARED_MEMBER_BYTES_MIN`] on it also ends before an entry whose path hashes to one of a sixteenth of all
///    values. Without this a file added or grown early would shift every later boundary; with it the boundaries meet
///    again after some sixteen entries, and the members behind stay the same bytes.
struct MemberRule {
    own_members: bool,
    shared_bytes: usize,
    chosen: bool,
}

impl MemberRule {
    fn of(entry: &Entry, header_bytes: usize) -> MemberRule {
        let size = entry.size();
        let own_members = size >= OWN_MEMBER_BYTES_MIN;
        let content = if own_members { 0 } else { size as usize + header::padding_of(size) };
        MemberRule {
            own_members,
            shared_bytes: header_bytes + content,
            chosen: path_hash(entry.path.as_bytes()) >> 60 == 0,
        }
    }

    fn cuts_before(&self, piece_bytes: usize) -> bool {
        let full = piece_bytes > 0 && piece_bytes + self.shared_bytes > MEMBER_BYTES_MAX;
        full || (self.chosen && piece_bytes >= SHARED_MEMBER_BYTES_MIN)
    }
}

/// FNV-1a with 64 bits, and a last multiplication so that the last letters of a name reach the upper bits. Changing it
/// changes the bytes of every compressed layer.
fn path_hash(path: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = path.iter().fold(0xcbf2_9ce4_8422_2325, step);
    (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// Reads until `buffer` is full or the input ends.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
