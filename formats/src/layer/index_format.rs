//! The layer index as a file.
//!
//! ```text
//! magic    8 bytes  "rimgidx\0"
//! version  4 bytes  little endian
//! body     postcard, see `Body`: paths share prefixes with the one before, members follow one another
//! check    32 bytes SHA-256 of everything before it
//! ```
//!
//! An index is always rebuildable from its blob, so there is no migration: whatever is not exactly this version,
//! whole and in order, is an [`IndexError`] that tells the store to scan the blob again.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize as DeriveSerialize, Serializer};

use super::entry::{Entry, EntryKind, Mtime, layer_order};
use super::index::{IndexEntry, LayerIndex};
use super::path::LayerPath;
use super::sparse::Segment;
use crate::compression::{Compression, Member};
use crate::digest::{Algorithm, DiffId, Digest};

const MAGIC: &[u8; 8] = b"rimgidx\0";
const CHECK_BYTES: usize = 32;

/// Largest index read. The limits on layers keep what they allow in an index below half of it.
const INDEX_BYTES_MAX: u64 = 2 << 30;

/// Why an index file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file cannot be read or written.
    #[error("failed to read or write the layer index: {0}")]
    Io(#[from] io::Error),
    /// It is of another version, or no index at all. Rebuild it.
    #[error("layer index has another format than version {}: rebuild it", LayerIndex::FORMAT_VERSION)]
    Version,
    /// It is damaged. Rebuild it.
    #[error("layer index is damaged ({0}): rebuild it")]
    Damaged(&'static str),
}

impl LayerIndex {
    /// Version of the file format; raised with every change of it, or of what entries mean.
    pub const FORMAT_VERSION: u32 = 2;

    /// Writes the index as a file.
    ///
    /// # Errors
    /// [`IndexError::Io`].
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), IndexError> {
        out.write_all(&self.to_bytes())?;
        Ok(())
    }

    /// The index as the bytes of its file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&LayerIndex::FORMAT_VERSION.to_le_bytes());
        let body = Body::of(self);
        bytes =
            postcard::to_extend(&body, bytes).expect("writing to memory cannot fail, and lengths are known");
        let check = Digest::sha256(&bytes);
        bytes.extend_from_slice(check.as_bytes());
        bytes
    }

    /// Reads an index file.
    ///
    /// # Errors
    /// See [`IndexError`]: all but [`IndexError::Io`] mean that the index has to be rebuilt.
    pub fn read_from(input: &mut impl Read) -> Result<LayerIndex, IndexError> {
        let mut bytes = Vec::new();
        input.take(INDEX_BYTES_MAX).read_to_end(&mut bytes)?;
        LayerIndex::from_bytes(&bytes)
    }

    /// Reads an index from the bytes of its file.
    ///
    /// # Errors
    /// [`IndexError::Version`] or [`IndexError::Damaged`]: the index has to be rebuilt.
    pub fn from_bytes(bytes: &[u8]) -> Result<LayerIndex, IndexError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(IndexError::Version)?;
        let body = rest.strip_prefix(&LayerIndex::FORMAT_VERSION.to_le_bytes()).ok_or(IndexError::Version)?;
        let (body, check) = body.split_last_chunk::<CHECK_BYTES>().ok_or(IndexError::Damaged("too short"))?;
        let checked = &bytes[..bytes.len() - CHECK_BYTES];
        if Digest::sha256(checked).as_bytes() != check {
            return Err(IndexError::Damaged("wrong checksum"));
        }
        let (body, rest) =
            postcard::take_from_bytes::<Body<'_>>(body).map_err(|_| IndexError::Damaged("bad body"))?;
        if !rest.is_empty() {
            return Err(IndexError::Damaged("surplus bytes"));
        }
        body.into_index().map_err(IndexError::Damaged)
    }
}

/// Bytes without a copy, and without serde's element by element.
#[derive(Clone, Copy)]
struct Bytes<'b>(&'b [u8]);

impl serde::Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Bytes<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = Bytes<'de>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("bytes")
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Bytes<'de>, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_bytes(Borrowed)
    }
}

#[derive(DeriveSerialize, DeriveDeserialize)]
struct Body<'b> {
    #[serde(borrow)]
    diff_id: Bytes<'b>,
    #[serde(borrow)]
    blob: Bytes<'b>,
    blob_size: u64,
    compression: u8,
    uncompressed_size: u64,
    members: Vec<WireMember>,
    #[serde(borrow)]
    entries: Vec<WireEntry<'b>>,
}

/// A member; it begins where the one before ended, after `gap` bytes of blob that hold no content.
#[derive(DeriveSerialize, DeriveDeserialize)]
struct WireMember {
    gap: u64,
    uncompressed_len: u64,
    blob_len: u64,
}

#[derive(DeriveSerialize, DeriveDeserialize)]
struct WireEntry<'b> {
    /// Bytes that the path shares with the path before it.
    shared: u32,
    #[serde(borrow)]
    suffix: Bytes<'b>,
    #[serde(borrow)]
    kind: WireKind<'b>,
    mode: u32,
    uid: u64,
    gid: u64,
    secs: i64,
    nanos: u32,
    #[serde(borrow)]
    xattrs: Vec<(Bytes<'b>, Bytes<'b>)>,
    content: Option<[u8; 32]>,
    offset: u64,
    segments: Vec<(u64, u64)>,
}

#[derive(DeriveSerialize, DeriveDeserialize)]
enum WireKind<'b> {
    Directory,
    Regular(u64),
    #[serde(borrow)]
    Symlink(Bytes<'b>),
    #[serde(borrow)]
    Hardlink(Bytes<'b>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Whiteout,
    OpaqueMarker,
}

const COMPRESSIONS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Bzip2, Compression::Xz];

impl<'b> Body<'b> {
    fn of(index: &'b LayerIndex) -> Body<'b> {
        let mut blob_end = 0;
        let members = index.members.iter().map(|member| {
            let gap = member.blob_offset - blob_end;
            blob_end = member.blob_offset + member.blob_len;
            WireMember { gap, uncompressed_len: member.uncompressed_len, blob_len: member.blob_len }
        });
        let members = members.collect();
        let mut previous: &[u8] = b"";
        let entries = index.entries.iter().map(|entry| {
            let wire = WireEntry::of(entry, previous);
            previous = entry.path().as_bytes();
            wire
        });
        Body {
            diff_id: Bytes(index.diff_id.digest().as_bytes()),
            blob: Bytes(index.blob.as_bytes()),
            blob_size: index.blob_size,
            compression: COMPRESSIONS.iter().position(|&other| other == index.compression).unwrap_or(0) as u8,
            uncompressed_size: index.uncompressed_size,
            members,
            entries: entries.collect(),
        }
    }

    fn into_index(self) -> Result<LayerIndex, &'static str> {
        let compression = *COMPRESSIONS.get(usize::from(self.compression)).ok_or("unknown compression")?;
        let mut entries: Vec<IndexEntry> = Vec::with_capacity(self.entries.len());
        for wire in self.entries {
            let previous = entries.last();
            let entry = wire.into_entry(previous.map_or(b"", |last| last.path().as_bytes()))?;
            if previous.is_some_and(|last| layer_order(&last.entry, &entry.entry).is_ge()) {
                return Err("entries out of order");
            }
            entries.push(entry);
        }
        Ok(LayerIndex {
            diff_id: DiffId::new(digest(self.diff_id)?),
            blob: digest(self.blob)?,
            blob_size: self.blob_size,
            compression,
            uncompressed_size: self.uncompressed_size,
            entries,
            members: members(&self.members).ok_or("member offsets overflow")?,
        })
    }
}

fn members(wire: &[WireMember]) -> Option<Vec<Member>> {
    let (mut uncompressed_offset, mut blob_end) = (0_u64, 0_u64);
    let restored = wire.iter().map(|&WireMember { gap, uncompressed_len, blob_len }| {
        let member = Member {
            uncompressed_offset,
            blob_offset: blob_end.checked_add(gap)?,
            uncompressed_len,
            blob_len,
        };
        uncompressed_offset = uncompressed_offset.checked_add(uncompressed_len)?;
        blob_end = member.blob_offset.checked_add(blob_len)?;
        Some(member)
    });
    restored.collect()
}

fn digest(bytes: Bytes<'_>) -> Result<Digest, &'static str> {
    let fits = Algorithm::ALL.into_iter().find_map(|algorithm| Digest::from_raw(algorithm, bytes.0));
    fits.ok_or("bad digest")
}

impl<'b> WireEntry<'b> {
    fn of(entry: &'b IndexEntry, previous: &[u8]) -> WireEntry<'b> {
        let path = entry.path().as_bytes();
        let shared = path.iter().zip(previous).take_while(|(left, right)| left == right).count();
        let Entry { kind, mode, uid, gid, mtime, xattrs, .. } = &entry.entry;
        WireEntry {
            // Paths have at most PATH_BYTES_MAX bytes.
            shared: shared as u32,
            suffix: Bytes(&path[shared..]),
            kind: WireKind::of(kind),
            mode: *mode,
            uid: *uid,
            gid: *gid,
            secs: mtime.secs,
            nanos: mtime.nanos,
            xattrs: xattrs.iter().map(|(key, value)| (Bytes(key), Bytes(value))).collect(),
            content: entry.content.and_then(|digest| digest.as_bytes().try_into().ok()),
            offset: entry.offset,
            segments: entry.segments.iter().map(|segment| (segment.offset, segment.length)).collect(),
        }
    }

    fn into_entry(self, previous: &[u8]) -> Result<IndexEntry, &'static str> {
        let shared = previous.get(..self.shared as usize).ok_or("bad path prefix")?;
        let path = LayerPath::parse([shared, self.suffix.0].concat()).map_err(|_| "bad path")?;
        let xattrs: BTreeMap<_, _> =
            self.xattrs.into_iter().map(|(key, value)| (key.0.to_vec(), value.0.to_vec())).collect();
        let segments: Vec<Segment> =
            self.segments.into_iter().map(|(offset, length)| Segment { offset, length }).collect();
        let size = match self.kind {
            WireKind::Regular(size) => size,
            _ => 0,
        };
        let stored = segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.length));
        if !segments.is_empty() {
            super::sparse::check(&segments, size, stored).map_err(|_| "bad sparse map")?;
        }
        let mtime = Mtime { secs: self.secs, nanos: self.nanos };
        let kind = self.kind.into_kind()?;
        let entry = Entry { path, kind, mode: self.mode, uid: self.uid, gid: self.gid, mtime, xattrs };
        let content = self.content.and_then(|raw| Digest::from_raw(Algorithm::Sha256, &raw));
        Ok(IndexEntry { entry, content, offset: self.offset, segments })
    }
}

impl<'b> WireKind<'b> {
    fn of(kind: &'b EntryKind) -> WireKind<'b> {
        match kind {
            EntryKind::Directory => WireKind::Directory,
            EntryKind::Regular { size } => WireKind::Regular(*size),
            EntryKind::Symlink { target } => WireKind::Symlink(Bytes(target)),
            EntryKind::Hardlink { target } => WireKind::Hardlink(Bytes(target.as_bytes())),
            EntryKind::CharDevice { major, minor } => WireKind::CharDevice(*major, *minor),
            EntryKind::BlockDevice { major, minor } => WireKind::BlockDevice(*major, *minor),
            EntryKind::Fifo => WireKind::Fifo,
            EntryKind::Whiteout => WireKind::Whiteout,
            EntryKind::OpaqueMarker => WireKind::OpaqueMarker,
        }
    }

    fn into_kind(self) -> Result<EntryKind, &'static str> {
        Ok(match self {
            WireKind::Directory => EntryKind::Directory,
            WireKind::Regular(size) => EntryKind::Regular { size },
            WireKind::Symlink(target) => EntryKind::Symlink { target: target.0.to_vec() },
            WireKind::Hardlink(target) => EntryKind::Hardlink {
                target: LayerPath::parse(target.0).map_err(|_| "bad hard link target")?,
            },
            WireKind::CharDevice(major, minor) => EntryKind::CharDevice { major, minor },
            WireKind::BlockDevice(major, minor) => EntryKind::BlockDevice { major, minor },
            WireKind::Fifo => EntryKind::Fifo,
            WireKind::Whiteout => EntryKind::Whiteout,
            WireKind::OpaqueMarker => EntryKind::OpaqueMarker,
        })
    }
}
