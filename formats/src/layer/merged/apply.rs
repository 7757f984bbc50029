//! One more layer on top of a tree: what it removes from below, what it puts, and where its links lead.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Child, Folder, LINKS_MAX, MergedTree, Source};
use crate::layer::entry::EntryKind;
use crate::layer::index::{IndexEntry, LayerIndex};
use crate::layer::path::LayerPath;

impl MergedTree {
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
