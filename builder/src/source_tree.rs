//! [`SourceTree`]: what COPY, ADD and bind mounts read from, whether it lies on disk or in layers.
//!
//! The trait answers about one path without following links; following them, inside the tree's root, is done here
//! once for both ([`land`]). Two implementers: [`crate::context::DiskTree`] and [`crate::layer_tree::LayerTree`].

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rimg_formats::digest::Digest;
use rimg_formats::layer::{EntryKind, LayerPath, Mtime};

use crate::context::DiskFile;
use crate::layer_tree::LayerFile;

/// As many links as the kernel follows in one path (`MAXSYMLINKS`).
const LINKS_FOLLOWED_MAX: usize = 40;

/// A tree of files that a step may read.
pub(crate) trait SourceTree: Send + Sync {
    /// What is at `path`, whose parents are taken to be directories; `None` when nothing is there.
    fn lookup(&self, path: &LayerPath) -> io::Result<Option<SourceNode>>;

    /// The names in the directory at `path` and what they are, sorted by name.
    fn children(&self, path: &LayerPath) -> io::Result<Vec<(Vec<u8>, SourceNode)>>;

    /// What the tree is called in messages: ``the build context``, ``stage `build` ``.
    fn describe(&self) -> String;

    /// Why nothing is at `path`, when the tree knows better than "no such file".
    fn explain_missing(&self, path: &LayerPath) -> Option<String>;

    /// Whether the tree is a part of this machine's files, where a link out of it means something else than in it.
    fn is_cut_out(&self) -> bool {
        false
    }
}

/// A file of a source tree, with everything that a layer says about it.
#[derive(Clone, Debug)]
pub(crate) struct SourceNode {
    /// What it is; never a hard link or a marker.
    pub(crate) kind: EntryKind,
    /// Permission bits, at most 0o7777.
    pub(crate) mode: u32,
    /// Owner in the tree; `None` when the tree's owners mean nothing, as in a build context.
    pub(crate) owner: Option<(u64, u64)>,
    /// Modification time.
    pub(crate) mtime: Mtime,
    /// Extended attributes that images keep, as far as they are read.
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Where further attributes are to be read, if they are needed: reading them costs more than all else that is told
    /// here, and a file that has not changed has the same.
    pub(crate) unread: Option<DiskFile>,
    /// Where a regular file's bytes are.
    pub(crate) content: Content,
    /// A directory that the tree leaves out, and shows only as the way to what it has in there nevertheless.
    pub(crate) excluded: bool,
    /// Which file a name belongs to, where it may have several names.
    pub(crate) identity: Option<FileIdentity>,
}

impl SourceNode {
    pub(crate) fn is_directory(&self) -> bool {
        self.kind == EntryKind::Directory
    }
}

/// A regular file, whatever it is called: equal for two names of one file, and different for two files of any trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FileIdentity {
    /// A file on disk. Inode numbers are unique on one device only.
    Disk {
        /// The device.
        device: u64,
        /// The inode on it.
        inode: u64,
    },
    /// A file of a layer or archive. Offsets are unique in one of them only.
    Layer {
        /// The number that the layer was given when it was opened.
        layer: u64,
        /// Where the file's bytes begin: every entry has a header of its own in front of them.
        offset: u64,
    },
}

/// Where the bytes of a regular file are.
#[derive(Clone, Debug, Default)]
pub(crate) enum Content {
    /// It has none: not a regular file.
    #[default]
    None,
    /// Here, as with heredocs.
    Bytes(Arc<[u8]>),
    /// In a file on disk.
    Disk(DiskFile),
    /// In a layer.
    Layer(LayerFile),
}

impl Content {
    /// Its digest, as far as it is known without reading.
    pub(crate) fn known_digest(&self) -> Option<Digest> {
        match self {
            Content::None | Content::Disk(_) => None,
            Content::Bytes(bytes) => Some(Digest::sha256(bytes)),
            Content::Layer(file) => file.digest(),
        }
    }
}

/// Where a path leads in a tree once its links are followed, whether or not something is there.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    /// The path without links.
    pub(crate) path: LayerPath,
    /// What is there.
    pub(crate) node: Option<SourceNode>,
    /// Whether a link began at the root or led above it.
    pub(crate) from_root: bool,
}

/// Follows the links of `path`, the last one included, inside `root`. Names that do not exist are kept as they are.
pub(crate) fn land(root: &dyn SourceTree, path: &LayerPath) -> io::Result<Landing> {
    let mut waiting: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let mut at = LayerPath::root();
    let mut links = 0;
    let mut from_root = false;
    let mut node = root.lookup(&at)?;
    while let Some(name) = waiting.pop() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                from_root |= at.is_root();
                at = at.parent().unwrap_or_default();
                node = root.lookup(&at)?;
                continue;
            }
            _ => {}
        }
        let next = at.join(&name).map_err(io::Error::other)?;
        let below_directory = node.as_ref().is_some_and(SourceNode::is_directory);
        let found = if below_directory { root.lookup(&next)? } else { None };
        if node.as_ref().is_some_and(|node| !node.is_directory()) {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("`/{at}` is not a directory")));
        }
        match found.as_ref().map(|found| &found.kind) {
            Some(EntryKind::Symlink { target }) => {
                links += 1;
                if links > LINKS_FOLLOWED_MAX {
                    return Err(io::Error::other(format!("too many symbolic links in `/{path}`")));
                }
                if target.starts_with(b"/") {
                    from_root = true;
                    at = LayerPath::root();
                    node = root.lookup(&at)?;
                }
                waiting.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
            }
            _ => (at, node) = (next, found),
        }
    }
    Ok(Landing { path: at, node, from_root })
}
