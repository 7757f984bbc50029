//! [`MergedTree`]: several layers seen as the one tree that a container would see, from their indexes alone.
//!
//! The tree is persistent: [`MergedTree::with_layer`] shares every directory that the new layer does not touch with
//! the tree it started from, so that the tree after each step of a build costs what the step changed.
//!
//! Layers mean what they mean to containerd, whose reading most images were tested with:
//!
//! - whiteouts and opaque markers remove from the layers below, never from their own;
//! - a directory over a directory replaces its attributes, anything else replaces all that was there;
//! - an entry whose parent directory the layer does not mention, where a layer below has a symbolic link instead of
//!   that directory, lands where the link points inside the tree (see [`MergedTree::land`]). Images of tools that
//!   write `lib/x` onto a base whose `lib` links to `usr/lib` need it;
//! - parents that no layer mentions exist as directories of root's with mode 0755.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::entry::{EntryKind, Mtime};
use super::index::{FileContent, IndexEntry, LayerIndex};
use super::path::{LayerPath, LayerPathError};
use crate::digest::Digest;

/// Symbolic links followed on the way to one path, as in the kernel.
const LINKS_MAX: usize = 40;

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

    /// This tree with one more layer on top.
    pub fn with_layer(&self, layer: Arc<LayerIndex>) -> MergedTree {
        let mut layers = self.layers.clone();
        layers.push(Arc::clone(&layer));
        let mut tree = MergedTree { layers, root: Arc::clone(&self.root) };
        tree.remove_marked(&layer);
        // An index has at most a few million entries, an image 127 layers.
        let number = (tree.layers.len() - 1) as u32;
        let sources = || (0_u32..).zip(&layer.entries).filter(|(_, entry)| !entry.entry.is_marker());
        let mut cursor = Cursor::new(&mut tree.root);
        let mut through_links = Vec::new();
        for (entry, index_entry) in sources() {
            let source = Source { layer: number, entry };
            if !cursor.put(&tree.layers, index_entry, source) {
                through_links.push((index_entry, source));
            }
        }
        cursor.close();
        for (entry, source) in through_links {
            tree.put_through_links(entry, source);
        }
        tree.resolve_foreign_links(self, &layer, number);
        tree
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

    /// Where an entry of a layer on top of this tree lands: its own path, with links among the directories above it
    /// followed. Whoever unpacks a layer by itself has to put its entries there, except below directories that the
    /// layer brings along.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn land(&self, path: &LayerPath) -> Result<LayerPath, ResolveError> {
        Ok(self.follow(path.as_bytes(), false)?.path)
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

    fn follow(&self, path: &[u8], follow_last: bool) -> Result<Resolved<'_>, ResolveError> {
        let printable = || super::path::printable(path);
        let mut walk =
            Follow { tree: self, folders: vec![(&[], &self.root)], leaf: None, missing: Vec::new() };
        let mut pending: Vec<&[u8]> = path.split(|&byte| byte == b'/').rev().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            let Some(target) = walk.step(name)? else { continue };
            let last = pending.iter().all(|name| matches!(*name, b"" | b"."));
            if last && !follow_last {
                continue;
            }
            walk.leaf = None;
            links += 1;
            if links > LINKS_MAX {
                return Err(ResolveError::Links(printable()));
            }
            if target.starts_with(b"/") {
                walk.folders.truncate(1);
            }
            pending.extend(target.split(|&byte| byte == b'/').rev());
        }
        walk.finish().map_err(|source| ResolveError::Path { path: printable(), source })
    }

    /// Applies the whiteouts and opaque markers of `layer`.
    fn remove_marked(&mut self, layer: &LayerIndex) {
        for entry in layer.entries.iter().map(|entry| &entry.entry) {
            let opaque = match entry.kind {
                EntryKind::Whiteout => false,
                EntryKind::OpaqueMarker => true,
                _ => continue,
            };
            // What cannot be reached cannot be removed. The layer's own links do not count here: they are not there yet.
            let resolved = match opaque {
                true => self.resolve(entry.path.as_bytes()),
                false => self.resolve_no_follow(entry.path.as_bytes()),
            };
            let Ok(path) = resolved.map(|resolved| resolved.path) else { continue };
            let holder = if opaque { Some(path.clone()) } else { path.parent() };
            let Some(holder) = holder.filter(|holder| self.folder(holder).is_some()) else { continue };
            let Some(folder) = folder_mut(&mut self.root, &holder, false) else { continue };
            match opaque {
                true => folder.children.clear(),
                false => drop(folder.children.remove(path.split_name().1)),
            }
        }
    }

    fn put_through_links(&mut self, entry: &IndexEntry, source: Source) {
        // A parent that leads nowhere, or to a file, is where no tool could unpack the entry either.
        let Ok(path) = self.land(entry.path()) else { return };
        let Some(parent) = path.parent() else { return };
        if let Some(folder) = folder_mut(&mut self.root, &parent, true) {
            put_child(folder, path.split_name().1, &entry.entry.kind, source);
        }
    }

    /// Hard links whose target is in a layer below take that file's entry: later layers may remove its other name.
    fn resolve_foreign_links(&mut self, below: &MergedTree, layer: &LayerIndex, number: u32) {
        for (at, entry) in (0_u32..).zip(&layer.entries) {
            if !matches!(entry.entry.kind, EntryKind::Hardlink { .. }) || layer.link_source(entry).is_some() {
                continue;
            }
            let Some(found) = foreign_target(below, layer, entry) else { continue };
            let Ok(path) = self.land(entry.path()) else { continue };
            let Some(parent) = path.parent().filter(|parent| self.folder(parent).is_some()) else { continue };
            let Some(folder) = folder_mut(&mut self.root, &parent, false) else { continue };
            if let Some(Child::Leaf(leaf)) = folder.children.get_mut(path.split_name().1)
                && (leaf.layer, leaf.entry) == (number, at)
            {
                *leaf = found;
            }
        }
    }
}

/// The file below that a chain of hard links in `layer` ends at.
fn foreign_target(below: &MergedTree, layer: &LayerIndex, entry: &IndexEntry) -> Option<Source> {
    let mut current = entry;
    for _ in 0..LINKS_MAX {
        let EntryKind::Hardlink { target } = &current.entry.kind else { return None };
        match layer.get(target) {
            Some(next) => current = next,
            None => {
                let path = below.land(target).ok()?;
                let (name, folder) = below.holder(&path)?;
                return match folder?.children.get(name)? {
                    Child::Leaf(source) => Some(*source),
                    Child::Folder(_) => None,
                };
            }
        }
    }
    None
}

/// The directory at `path`, made unshared on the way; with `create`, missing ones are made and files replaced.
fn folder_mut<'f>(root: &'f mut Arc<Folder>, path: &LayerPath, create: bool) -> Option<&'f mut Folder> {
    let mut folder = Arc::make_mut(root);
    for name in path.components() {
        if create && !matches!(folder.children.get(name), Some(Child::Folder(_))) {
            folder.children.insert(name.into(), Child::Folder(Arc::default()));
        }
        let Some(Child::Folder(next)) = folder.children.get_mut(name) else { return None };
        folder = Arc::make_mut(next);
    }
    Some(folder)
}

fn put_child(folder: &mut Folder, name: &[u8], kind: &EntryKind, source: Source) {
    let directory = *kind == EntryKind::Directory;
    match folder.children.get_mut(name) {
        Some(Child::Folder(existing)) if directory => Arc::make_mut(existing).source = Some(source),
        Some(slot) => *slot = new_child(directory, source),
        None => drop(folder.children.insert(name.into(), new_child(directory, source))),
    }
}

fn new_child(directory: bool, source: Source) -> Child {
    match directory {
        true => Child::Folder(Arc::new(Folder { source: Some(source), children: BTreeMap::new() })),
        false => Child::Leaf(source),
    }
}

/// Puts sorted entries into a tree: keeps the directories on the way to the last one open, so that an entry costs one
/// insertion and not a walk from the root.
struct Cursor<'c> {
    root: &'c mut Arc<Folder>,
    /// Directories taken out of their parents, from the root's child down; the parent keeps an empty one meanwhile.
    open: Vec<(Arc<[u8]>, Arc<Folder>)>,
    empty: Arc<Folder>,
}

impl<'c> Cursor<'c> {
    fn new(root: &'c mut Arc<Folder>) -> Cursor<'c> {
        Cursor { root, open: Vec::new(), empty: Arc::default() }
    }

    /// Puts one entry; false when a symbolic link of a layer below is in its way.
    fn put(&mut self, layers: &[Arc<LayerIndex>], entry: &IndexEntry, source: Source) -> bool {
        let (parent, name) = entry.path().split_name();
        if name.is_empty() {
            Arc::make_mut(self.root).source = Some(source);
            return true;
        }
        let components = || parent.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let common =
            self.open.iter().zip(components()).take_while(|((open, _), name)| **open == **name).count();
        while self.open.len() > common {
            self.close_one();
        }
        for name in components().skip(common) {
            if !self.enter(layers, name) {
                return false;
            }
        }
        put_child(self.top(), name, &entry.entry.kind, source);
        true
    }

    fn top(&mut self) -> &mut Folder {
        match self.open.last_mut() {
            Some((_, folder)) => Arc::make_mut(folder),
            None => Arc::make_mut(self.root),
        }
    }

    fn enter(&mut self, layers: &[Arc<LayerIndex>], name: &[u8]) -> bool {
        let placeholder = Arc::clone(&self.empty);
        let folder = match self.top().children.get_mut(name) {
            Some(Child::Folder(folder)) => std::mem::replace(folder, placeholder),
            Some(Child::Leaf(source)) => {
                let entry = &layers[source.layer as usize].entries[source.entry as usize];
                if matches!(entry.entry.kind, EntryKind::Symlink { .. }) {
                    return false;
                }
                Arc::default()
            }
            None => Arc::default(),
        };
        self.open.push((name.into(), folder));
        true
    }

    fn close_one(&mut self) {
        if let Some((name, folder)) = self.open.pop() {
            match self.top().children.get_mut(&name) {
                Some(slot) => *slot = Child::Folder(folder),
                None => drop(self.top().children.insert(name, Child::Folder(folder))),
            }
        }
    }

    fn close(mut self) {
        while !self.open.is_empty() {
            self.close_one();
        }
    }
}

/// The state of following one path.
struct Follow<'t> {
    tree: &'t MergedTree,
    /// The directories from the root to here.
    folders: Vec<(&'t [u8], &'t Arc<Folder>)>,
    /// What is no directory, at the end of the path.
    leaf: Option<(&'t [u8], Source)>,
    /// Components that do not exist.
    missing: Vec<Vec<u8>>,
}

impl<'t> Follow<'t> {
    /// Goes one component further; gives the target when that is a symbolic link.
    fn step(&mut self, name: &[u8]) -> Result<Option<&'t [u8]>, ResolveError> {
        if matches!(name, b"" | b".") {
            return Ok(None);
        }
        if let Some((leaf, _)) = self.leaf {
            let path = self.path_to(Some(leaf)).unwrap_or_default();
            return Err(ResolveError::NotADirectory(path));
        }
        if name == b".." {
            if self.missing.pop().is_none() && self.folders.len() > 1 {
                self.folders.pop();
            }
            return Ok(None);
        }
        let found = match (self.missing.is_empty(), self.folders.last()) {
            (true, Some((_, folder))) => folder.children.get_key_value(name),
            _ => None,
        };
        match found {
            None => self.missing.push(name.to_vec()),
            Some((name, Child::Folder(folder))) => self.folders.push((name, folder)),
            Some((name, Child::Leaf(source))) => {
                self.leaf = Some((name, *source));
                if let EntryKind::Symlink { target } = &self.tree.entry_of(*source).entry.kind {
                    return Ok(Some(target));
                }
            }
        }
        Ok(None)
    }

    fn path_to(&self, leaf: Option<&[u8]>) -> Result<LayerPath, LayerPathError> {
        let folders = self.folders.iter().map(|(name, _)| *name);
        let parts: Vec<&[u8]> = folders.chain(self.missing.iter().map(Vec::as_slice)).chain(leaf).collect();
        LayerPath::parse(parts.join(&b'/'))
    }

    fn finish(self) -> Result<Resolved<'t>, LayerPathError> {
        let path = self.path_to(self.leaf.map(|(name, _)| name))?;
        let node = match (self.leaf, self.folders.last()) {
            (Some((_, source)), _) => Some(self.tree.source_node(source)),
            (None, Some((_, folder))) if self.missing.is_empty() => Some(self.tree.folder_node(folder)),
            _ => None,
        };
        Ok(Resolved { path, node })
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
