//! [`Entry`]: one thing a layer says about one path, and the order in which a layer says them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::path::LayerPath;

/// A modification time: seconds since the epoch and nanoseconds after that second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mtime {
    /// Seconds since 1970-01-01T00:00:00Z; may be negative.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000; they count forward also before the epoch.
    pub nanos: u32,
}

/// One entry of a layer.
///
/// For a [`EntryKind::Whiteout`] the path is the one removed, for an [`EntryKind::OpaqueMarker`] the directory that
/// hides what lies below it; the `.wh.` names of the tar never show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it lies.
    pub path: LayerPath,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, with set-user-ID, set-group-ID and sticky: at most 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time.
    pub mtime: Mtime,
    /// Extended attributes by full name (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length of its content in bytes, holes included.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// The text of the link, as it is.
        target: Vec<u8>,
    },
    /// Another name of a file.
    Hardlink {
        /// A name of that file, from the root of the image.
        target: LayerPath,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
    /// The path, and all below it, is gone from the layers below (image-spec, *Whiteouts*).
    Whiteout,
    /// Everything below the directory in the layers below is gone (image-spec, *Opaque Whiteout*).
    OpaqueMarker,
}

impl Entry {
    /// An entry of root's with no extended attributes and the time 0.
    pub fn new(path: LayerPath, kind: EntryKind, mode: u32) -> Entry {
        Entry { path, kind, mode, uid: 0, gid: 0, mtime: Mtime::default(), xattrs: BTreeMap::new() }
    }

    /// Whether it only removes: a whiteout or an opaque marker.
    pub fn is_marker(&self) -> bool {
        matches!(self.kind, EntryKind::Whiteout | EntryKind::OpaqueMarker)
    }

    /// Content length in bytes; 0 for everything but regular files.
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::Regular { size } => size,
            _ => 0,
        }
    }
}

/// Whether an extended attribute belongs to the machine and not to the image: overlayfs's own, by which a layer could
/// redirect a directory to any other of the stack, and SELinux's labels. Layers neither get nor give them.
pub fn is_machine_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") || name == b"security.selinux"
}

/// Whether an extended attribute is one that layers made here keep: capabilities, a user's own, and access control
/// lists. All others describe the host: labels of security modules, and marks that only the host's root may make.
pub fn is_image_xattr(name: &[u8]) -> bool {
    let kept = name == b"security.capability"
        || name.starts_with(b"user.")
        || name.starts_with(b"system.posix_acl_");
    kept && !is_machine_xattr(name)
}

/// The order of entries in a layer rimg writes, and in every index.
///
/// Depth first by components. Within a directory its opaque marker comes first, then its whiteouts, then what it
/// contains: "whiteout files SHOULD appear before sibling directory entries" (image-spec, *Whiteouts*), and a reader
/// that applies entry by entry then never removes what the same layer just brought.
pub fn layer_order(left: &Entry, right: &Entry) -> Ordering {
    Position::of(left).cmp(&Position::of(right))
}

/// Where an entry comes in a layer: its path, with markers ranked before their siblings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Position<'a> {
    path: &'a [u8],
    marker: Marker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Marker {
    Opaque,
    Whiteout,
    Not,
}

impl<'a> Position<'a> {
    pub(super) fn of(entry: &'a Entry) -> Position<'a> {
        let marker = match entry.kind {
            EntryKind::OpaqueMarker => Marker::Opaque,
            EntryKind::Whiteout => Marker::Whiteout,
            _ => Marker::Not,
        };
        Position { path: entry.path.as_bytes(), marker }
    }

    /// The position of whatever is not a marker at `path`.
    pub(super) fn of_path(path: &'a LayerPath) -> Position<'a> {
        Position { path: path.as_bytes(), marker: Marker::Not }
    }

    /// The directory that a marker speaks about, and its rank and name within; `None` for other entries.
    fn marker_parts(&self) -> Option<(&'a [u8], u8, &'a [u8])> {
        match self.marker {
            Marker::Not => None,
            Marker::Opaque => Some((self.path, 0, b"")),
            Marker::Whiteout => {
                let (parent, name) = match self.path.iter().rposition(|&byte| byte == b'/') {
                    Some(slash) => (&self.path[..slash], &self.path[slash + 1..]),
                    None => (&b""[..], self.path),
                };
                Some((parent, 1, name))
            }
        }
    }
}

impl Ord for Position<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.marker_parts(), other.marker_parts()) {
            (None, None) => super::path::compare(self.path, other.path),
            (Some((parent, rank, name)), Some((other_parent, other_rank, other_name))) => {
                let by_directory = marker_against_marker(parent, other_parent);
                by_directory.then(rank.cmp(&other_rank)).then(name.cmp(other_name))
            }
            (Some((parent, ..)), None) => marker_against_path(parent, other.path),
            (None, Some((parent, ..))) => marker_against_path(parent, self.path).reverse(),
        }
    }
}

impl PartialOrd for Position<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Markers of a directory come after those of the directories above it and before those of its siblings after it:
/// the plain order of the directories.
fn marker_against_marker(left: &[u8], right: &[u8]) -> Ordering {
    super::path::compare(left, right)
}

/// A marker of `directory` comes after the directory itself and before everything below it.
fn marker_against_path(directory: &[u8], path: &[u8]) -> Ordering {
    if path == directory { Ordering::Greater } else { super::path::compare(directory, path) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        let (kind, path) = match text.split_once(' ') {
            Some(("whiteout", path)) => (EntryKind::Whiteout, path),
            Some(("opaque", path)) => (EntryKind::OpaqueMarker, path),
            _ => (EntryKind::Directory, text),
        };
        Entry::new(LayerPath::parse(path).unwrap(), kind, 0o755)
    }

    #[test]
    fn markers_come_before_what_their_directory_contains() {
        let sorted = [
            "",
            "opaque ",
            "whiteout a",
            "whiteout z",
            "a",
            "opaque a",
            "whiteout a/b",
            "a/.hidden",
            "a/b",
            "whiteout a/b/c",
            "a/c",
            "a-b",
            "b",
            "whiteout b/a",
            "c",
        ];
        for (left_at, left) in sorted.iter().enumerate() {
            for (right_at, right) in sorted.iter().enumerate() {
                let order = layer_order(&entry(left), &entry(right));
                assert_eq!(order, left_at.cmp(&right_at), "{left:?} {right:?}");
            }
        }
    }
}
