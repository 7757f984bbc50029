//! Following a path through a tree as a process inside would: `.`, `..` and symbolic links.

use std::sync::Arc;

use super::{Child, Folder, LINKS_MAX, MergedTree, ResolveError, Resolved, Source};
use crate::layer::entry::EntryKind;
use crate::layer::path::{LayerPath, LayerPathError, printable};

impl MergedTree {
    pub(super) fn follow(&self, path: &[u8], follow_last: bool) -> Result<Resolved<'_>, ResolveError> {
        let walk = self.walk_along(path, follow_last)?;
        walk.finish().map_err(|source| ResolveError::Path { path: printable(path), source })
    }

    /// The directory that `path` leads to, all links followed.
    pub(super) fn leads_to_folder(&self, path: &LayerPath) -> Option<&Arc<Folder>> {
        let walk = self.walk_along(path.as_bytes(), true).ok()?;
        let exists = walk.leaf.is_none() && walk.missing.is_empty();
        walk.folders.last().filter(|_| exists).map(|(_, folder)| *folder)
    }

    fn walk_along<'t>(&'t self, path: &[u8], follow_last: bool) -> Result<Follow<'t>, ResolveError> {
        let printable = || printable(path);
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
        Ok(walk)
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
