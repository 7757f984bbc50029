//! One more layer on top of a tree: what it removes from below, and what it puts.

use std::collections::{BTreeMap, HashSet};
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
        // An index has at most a few million entries, an image 127 layers.
        let number = (tree.layers.len() - 1) as u32;
        let mut cursor = Cursor::new(&mut tree.root, self);
        for (entry, index_entry) in (0_u32..).zip(&layer.entries) {
            cursor.put(index_entry, Source { layer: number, entry });
        }
        cursor.close();
        tree.resolve_foreign_links(self, &layer, number);
        tree
    }

    /// Hard links whose target is in a layer below take that file's entry: later layers may remove its other name.
    fn resolve_foreign_links(&mut self, below: &MergedTree, layer: &LayerIndex, number: u32) {
        for (at, entry) in (0_u32..).zip(&layer.entries) {
            if !matches!(entry.entry.kind, EntryKind::Hardlink { .. }) || layer.link_source(entry).is_some() {
                continue;
            }
            let Some(found) = foreign_target(below, layer, entry) else { continue };
            let (parent, name) = entry.path().split_name();
            let Some(folder) = folder_mut(&mut self.root, parent) else { continue };
            if let Some(Child::Leaf(leaf)) = folder.children.get_mut(name)
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
        // What the layer has there otherwise came behind the link, or removes: the link means the file below.
        let link = layer.get(target).filter(|next| matches!(next.entry.kind, EntryKind::Hardlink { .. }));
        match link {
            Some(next) => current = next,
            None => {
                let path = below.resolve_no_follow(target.as_bytes()).ok()?.path;
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

/// The directory at `path`, made unshared on the way.
fn folder_mut<'f>(root: &'f mut Arc<Folder>, path: &[u8]) -> Option<&'f mut Folder> {
    let mut folder = Arc::make_mut(root);
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
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
/// insertion and not a walk from the root. In layer order a directory's markers come before what is in it, so that
/// they meet only what the layers below have.
struct Cursor<'c> {
    root: &'c mut Arc<Folder>,
    below: &'c MergedTree,
    /// From the root down.
    open: Vec<Open<'c>>,
    empty: Arc<Folder>,
}

/// A directory on the way to the latest entry.
struct Open<'c> {
    name: Arc<[u8]>,
    /// Taken out of its parent, which keeps an empty one meanwhile; for the root, nothing.
    folder: Arc<Folder>,
    /// What its path leads to in the layers below, unless the layer removes that.
    below: Option<&'c Arc<Folder>>,
    /// Names in it that the layer removes.
    removed: HashSet<Arc<[u8]>>,
}

impl<'c> Cursor<'c> {
    fn new(root: &'c mut Arc<Folder>, below: &'c MergedTree) -> Cursor<'c> {
        let top = Open {
            name: Arc::default(),
            folder: std::mem::take(root),
            below: Some(&below.root),
            removed: HashSet::new(),
        };
        Cursor { root, below, open: vec![top], empty: Arc::default() }
    }

    fn put(&mut self, entry: &IndexEntry, source: Source) {
        let kind = &entry.entry.kind;
        if entry.path().is_root() {
            // No directory can hide whole layers: a marker of the root means nothing.
            if *kind == EntryKind::Directory {
                self.go_to(b"");
                self.top().source = Some(source);
            }
            return;
        }
        if *kind == EntryKind::OpaqueMarker {
            self.go_to(entry.path().as_bytes());
            self.top().children.clear();
            if let Some(open) = self.open.last_mut() {
                open.below = None;
            }
            return;
        }
        let (parent, name) = entry.path().split_name();
        self.go_to(parent);
        if *kind == EntryKind::Whiteout {
            self.top().children.remove(name);
            if let Some(open) = self.open.last_mut() {
                open.removed.insert(name.into());
            }
            return;
        }
        put_child(self.top(), name, kind, source);
    }

    /// Opens the directory at `path`, making it where it is missing.
    fn go_to(&mut self, path: &[u8]) {
        let components = || path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let open = self.open.iter().skip(1);
        let common = open.zip(components()).take_while(|(open, name)| *open.name == **name).count();
        while self.open.len() > common + 1 {
            self.close_one();
        }
        for name in components().skip(common) {
            self.enter(name);
        }
    }

    fn top(&mut self) -> &mut Folder {
        // The root is never closed before the end.
        let at = self.open.len() - 1;
        Arc::make_mut(&mut self.open[at].folder)
    }

    fn enter(&mut self, name: &[u8]) {
        let below = self.below_of(name);
        let placeholder = Arc::clone(&self.empty);
        let folder = match self.top().children.get_mut(name) {
            Some(Child::Folder(folder)) => std::mem::replace(folder, placeholder),
            _ => {
                Arc::new(Folder { source: below.and_then(|folder| folder.source), children: BTreeMap::new() })
            }
        };
        self.open.push(Open { name: name.into(), folder, below, removed: HashSet::new() });
    }

    /// What `name` in the latest directory leads to below.
    fn below_of(&self, name: &[u8]) -> Option<&'c Arc<Folder>> {
        let open = self.open.last()?;
        if open.removed.contains(name) {
            return None;
        }
        match open.below?.children.get(name)? {
            Child::Folder(folder) => Some(folder),
            Child::Leaf(source) => {
                if !matches!(self.below.entry_of(*source).entry.kind, EntryKind::Symlink { .. }) {
                    return None;
                }
                let way = self.open.iter().skip(1).map(|open| &*open.name);
                let path: Vec<&[u8]> = way.chain([name]).collect();
                self.below.leads_to_folder(&LayerPath::parse(path.join(&b'/')).ok()?)
            }
        }
    }

    fn close_one(&mut self) {
        let Some(Open { name, folder, .. }) = self.open.pop() else { return };
        match self.open.last_mut() {
            Some(parent) => {
                drop(Arc::make_mut(&mut parent.folder).children.insert(name, Child::Folder(folder)))
            }
            None => *self.root = folder,
        }
    }

    fn close(mut self) {
        while !self.open.is_empty() {
            self.close_one();
        }
    }
}
