//! [`MergedTree`]: several layers seen as the one tree that a container would see, from their indexes alone.
//!
//! The tree is persistent: [`MergedTree::with_layer`] shares every directory that the new layer does not touch with
//! the tree it started from, so that the tree after each step of a build costs what the step changed.
//!
//! Layers mean what overlay tools make of them: [`super::own_tree`] has the rules for one layer, and one layer on
//! others is as overlayfs shows it:
//!
//! - whiteouts and opaque markers remove from the layers below, never from their own;
//! - a directory over a directory replaces its attributes, anything else replaces all that was there;
//! - a directory that the layer has without an entry has the attributes of what its path leads to below, if that is a
//!   directory which the layer does not remove; else it is root's with mode 0755. It takes the place of a file or a
//!   symbolic link, as `lib` does on a base whose `lib` links to `usr/lib`.
//!
//! `apply` puts layers on top, `follow` goes along paths; the rest looks at the result.

mod apply;
mod follow;

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::LINKS_MAX;
use super::entry::{Entry, EntryKind, Mtime};
use super::index::{FileContent, IndexEntry, LayerIndex};
use super::own_tree::Implied;
use super::path::{LayerPath, LayerPathError};
use crate::digest::Digest;

/// The tree that a stack of layers makes.
#[derive(Clone, Debug)]
pub struct MergedTree {
    layers: Vec<Arc<LayerIndex>>,
    root: Arc<Folder>,
}

#[derive(Clone, Debug, Default)]
struct Folder {
    /// The entry that gave the directory its attributes; `None` for one that is only implied.
    source: Option<Source>,
    children: BTreeMap<Arc<[u8]>, Child>,
}

#[derive(Clone, Debug)]
enum Child {
    Folder(Arc<Folder>),
    Leaf(Source),
}

/// An entry of one of the layers.
#[derive(Clone, Copy, Debug)]
struct Source {
    layer: u32,
    entry: u32,
}

/// What a tree has at one path.
#[derive(Clone, Copy, Debug)]
pub struct Node<'t> {
    /// Which layer, from the bottom, says so; `None` for a directory that no layer mentions.
    pub layer: Option<usize>,
    /// What it says; `None` likewise. Its own path differs from the node's where the node is a hard link into a layer
    /// below, or landed through a symbolic link.
    pub entry: Option<&'t IndexEntry>,
}

impl<'t> Node<'t> {
    /// What it is.
    pub fn kind(&self) -> &'t EntryKind {
        self.entry.map_or(&EntryKind::Directory, |entry| &entry.entry.kind)
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        *self.kind() == EntryKind::Directory
    }

    /// Permission bits.
    pub fn mode(&self) -> u32 {
        self.entry.map_or(0o755, |entry| entry.entry.mode)
    }

    /// Owner.
    pub fn uid(&self) -> u64 {
        self.entry.map_or(0, |entry| entry.entry.uid)
    }

    /// Group.
    pub fn gid(&self) -> u64 {
        self.entry.map_or(0, |entry| entry.entry.gid)
    }

    /// Modification time.
    pub fn mtime(&self) -> Mtime {
        self.entry.map_or(Mtime::default(), |entry| entry.entry.mtime)
    }
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub struct Resolved<'t> {
    /// The path without links: of the node, or where something made under the path would come to lie.
    pub path: LayerPath,
    /// What is there; `None` when nothing is.
    pub node: Option<Node<'t>>,
}

/// Why a path leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A component that is not the last is no directory.
    #[error("`{0}` is not a directory in the image")]
    NotADirectory(LayerPath),
    /// More than [`LINKS_MAX`] symbolic links.
    #[error("`{0}` leads through more than {LINKS_MAX} symbolic links in the image")]
    Links(String),
    /// What the links make of it is no path.
    #[error("`{path}` does not lead to a path in the image: {source}")]
    Path {
        /// The path asked for.
        path: String,
        /// What is wrong.
        source: LayerPathError,
    },
}

impl MergedTree {
    /// The tree of `layers`, the bottom one first.
    pub fn new(layers: &[Arc<LayerIndex>]) -> MergedTree {
        let empty = MergedTree { layers: Vec::new(), root: Arc::default() };
        layers.iter().fold(empty, |tree, layer| tree.with_layer(Arc::clone(layer)))
    }

    /// The layers, the bottom one first.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// What is at `path`. No link is followed, neither on the way nor at the end.
    pub fn lookup(&self, path: &LayerPath) -> Option<Node<'_>> {
        let Some((name, folder)) = self.holder(path) else { return Some(self.folder_node(&self.root)) };
        Some(self.node(folder?.children.get(name)?))
    }

    /// Follows `path` from the root as a process inside would: absolute or not, `..` and symbolic links included, and
    /// the last component too. A path that does not exist resolves to where it would be made.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve(&self, path: impl AsRef<[u8]>) -> Result<Resolved<'_>, ResolveError> {
        self.follow(path.as_ref(), true)
    }

    /// Like [`MergedTree::resolve`], but a link at the very end is the result.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn resolve_no_follow(&self, path: impl AsRef<[u8]>) -> Result<Resolved<'_>, ResolveError> {
        self.follow(path.as_ref(), false)
    }

    /// The attributes of a directory that a layer on top of this tree has without an entry: those of the directory
    /// that its path leads to here. `None` where there is none: root's with mode 0755 and the time 0.
    pub fn implied(&self, implied: &Implied) -> Option<&Entry> {
        let folder = if implied.removed { None } else { self.leads_to_folder(&implied.path) };
        folder?.source.map(|source| &self.entry_of(source).entry)
    }

    /// The file that a hard link of a layer on top of this tree names, when the layer does not have the target itself:
    /// links on the way are followed, the target is not.
    pub fn link_target(&self, target: &LayerPath) -> Option<Node<'_>> {
        let found = self.resolve_no_follow(target.as_bytes()).ok()?.node?;
        if found.is_directory() { None } else { self.link_source(found) }
    }

    /// The names in a directory and what they are, sorted; `None` when `path` is no directory.
    pub fn read_dir(&self, path: &LayerPath) -> Option<impl Iterator<Item = (&[u8], Node<'_>)>> {
        let folder = self.folder(path)?;
        Some(folder.children.iter().map(|(name, child)| (&**name, self.node(child))))
    }

    /// `path` and all below it, directories before what they contain, names sorted. Links are not followed; nothing
    /// when there is nothing.
    pub fn walk(&self, path: &LayerPath) -> Walk<'_> {
        let first = self.lookup(path).map(|node| (path.clone(), node));
        let levels = self.folder(path).map(|folder| (path.clone(), folder.children.iter()));
        Walk { tree: self, first, levels: levels.into_iter().collect() }
    }

    /// The node that carries attributes and content where `node` is a hard link, else `node` itself. `None` when the
    /// link leads nowhere.
    pub fn link_source<'t>(&'t self, node: Node<'t>) -> Option<Node<'t>> {
        let (Some(layer), Some(entry)) = (node.layer, node.entry) else { return Some(node) };
        let entry = self.layers.get(layer)?.link_source(entry)?;
        Some(Node { layer: Some(layer), entry: Some(entry) })
    }

    /// The content of a regular file, hard links followed; `open` gives the blob of a layer by its digest.
    ///
    /// # Errors
    /// When `node` is no regular file or its content cannot be read.
    pub fn read_file(
        &self,
        node: Node<'_>,
        open: impl FnOnce(&Digest) -> io::Result<File>,
    ) -> io::Result<FileContent> {
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, "the file's content is in none of the layers");
        let (Some(layer), Some(entry)) = (node.layer, node.entry) else { return Err(missing()) };
        let index = self.layers.get(layer).ok_or_else(missing)?;
        let entry = index.link_source(entry).ok_or_else(missing)?;
        index.read_file(entry, open(&index.blob)?)
    }

    fn entry_of(&self, source: Source) -> &IndexEntry {
        &self.layers[source.layer as usize].entries[source.entry as usize]
    }

    fn node(&self, child: &Child) -> Node<'_> {
        match child {
            Child::Folder(folder) => self.folder_node(folder),
            Child::Leaf(source) => self.source_node(*source),
        }
    }

    fn folder_node(&self, folder: &Folder) -> Node<'_> {
        folder.source.map_or(Node { layer: None, entry: None }, |source| self.source_node(source))
    }

    fn source_node(&self, source: Source) -> Node<'_> {
        Node { layer: Some(source.layer as usize), entry: Some(self.entry_of(source)) }
    }

    fn folder(&self, path: &LayerPath) -> Option<&Folder> {
        path.components().try_fold(&*self.root, |folder, name| match folder.children.get(name)? {
            Child::Folder(folder) => Some(&**folder),
            Child::Leaf(_) => None,
        })
    }

    /// The last component of `path` and the directory that would hold it; `None` for the root.
    fn holder<'p>(&self, path: &'p LayerPath) -> Option<(&'p [u8], Option<&Folder>)> {
        let parent = path.parent()?;
        Some((path.split_name().1, self.folder(&parent)))
    }
}

type Children<'t> = btree_map::Iter<'t, Arc<[u8]>, Child>;

/// See [`MergedTree::walk`].
#[derive(Debug)]
pub struct Walk<'t> {
    tree: &'t MergedTree,
    first: Option<(LayerPath, Node<'t>)>,
    levels: Vec<(LayerPath, Children<'t>)>,
}

impl<'t> Iterator for Walk<'t> {
    type Item = (LayerPath, Node<'t>);

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let (parent, children) = self.levels.last_mut()?;
            let Some((name, child)) = children.next() else {
                self.levels.pop();
                continue;
            };
            // Links among a layer's own parents can make a path longer than any can be; nothing could open it.
            let Ok(path) = parent.join(name) else { continue };
            if let Child::Folder(folder) = child {
                self.levels.push((path.clone(), folder.children.iter()));
            }
            return Some((path, self.tree.node(child)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Entry, LayerOptions, LayerWriter};
    use super::*;

    fn layer(names: &[&str]) -> Arc<LayerIndex> {
        let mut writer = LayerWriter::new(Vec::new(), LayerOptions::default()).unwrap();
        for name in names {
            let kind = EntryKind::Regular { size: 0 };
            writer.append_empty(&Entry::new(LayerPath::parse(name).unwrap(), kind, 0o644)).unwrap();
        }
        Arc::new(writer.finish().unwrap().index)
    }

    #[test]
    fn untouched_directories_are_shared() {
        let base = MergedTree::new(&[layer(&["a/b/c", "a/d/e", "z/z"])]);
        let above = base.with_layer(layer(&["a/b/new"]));
        let shared = |name: &str| {
            let path = LayerPath::parse(name).unwrap();
            std::ptr::eq(base.folder(&path).unwrap(), above.folder(&path).unwrap())
        };
        assert!(shared("z") && shared("a/d"));
        assert!(!shared("a") && !shared("a/b"));
    }
}
