//! [`OwnTree`]: the tree that one layer makes by itself. The rules of unpacking stand here, and nowhere else.
//!
//! Each entry of a layer is placed, in the order of its tar, and the result says where it lies and what has to be
//! done. The index of a layer (`scan`) and its snapshot (the runner's) are made from the same placements; the merged
//! tree then stacks indexes. What overlay tools do decides (docker, containerd and podman on overlayfs: each layer is
//! unpacked into a directory of its own, whose names hide those of the layers below):
//!
//! | the tar has | it means |
//! |---|---|
//! | a path twice | the later entry; a directory over a directory keeps what is in it |
//! | an entry whose directory the layer does not have | the directory of the layers below with its attributes; where there is none, one of root's with mode 0755. A link or a file of the layers below gives way to it |
//! | an entry below an earlier symbolic link of the layer | it lies where the link points, inside the root |
//! | an entry below another file of the layer | refused |
//! | a whiteout, an opaque marker | they remove from the layers below, wherever in the tar they stand; the directory that they name or lie in exists |
//! | an opaque marker of the root | nothing: no directory can hide whole layers |
//! | a hard link | another name of what its target is at this place of the tar; of what it is in the end, where it comes later; else a copy of the file of the layers below, one for all links to it |
//! | a hard link to itself | nothing where the file exists; refused where not |
//! | a hard link to a directory, or to a file below its own path | refused |
//!
//! containerd decides where the others lose attributes (missing directories), umoci where they fail (a hard link into
//! a layer below, a whiteout of a directory before an entry in it).

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::LINKS_MAX;
use super::entry::{Entry, EntryKind};
use super::error::LayerError;
use super::limits::Limits;
use super::path::{LayerPath, printable};

/// The tree that the entries placed so far make.
#[derive(Debug)]
pub struct OwnTree {
    folders: Vec<Folder>,
    /// Directories that came to be without an entry; some may have got one since, or be gone.
    implied: Vec<FolderId>,
    /// The directory of the entry before: as its tar names it, and where it is.
    recent: Option<(Vec<u8>, FolderId, LayerPath)>,
    folders_max: u64,
}

type FolderId = u32;

#[derive(Debug, Default)]
struct Folder {
    parent: FolderId,
    name: Box<[u8]>,
    /// The entry that gave it its attributes.
    number: Option<u32>,
    /// The layer removes what lies below it in the layers below.
    opaque: bool,
    /// The layer removes this very path from the layers below.
    removed: bool,
    children: HashMap<Box<[u8]>, Child>,
}

#[derive(Clone, Debug)]
enum Child {
    Folder(FolderId),
    Leaf(Leaf),
    Whiteout,
}

#[derive(Clone, Debug)]
struct Leaf {
    /// The entry that put it there.
    number: u32,
    /// The entry with the content: another one for a hard link.
    carrier: u32,
    /// The target of a symbolic link.
    link: Option<Box<[u8]>>,
    /// It is a hard link whose target the layer did not have, or a link to such a one.
    later: bool,
}

/// Where an entry lies, and what has to be done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its path without links. The directory above is one of the layer's own.
    pub path: LayerPath,
    /// Directories that come to be for it in the place of whiteouts of the same layer, the upper ones first: each
    /// whiteout goes, and the directory hides what lies below it. Other directories on the way are made as usual.
    pub uncovered: Vec<LayerPath>,
    /// What has to be done there.
    pub action: Action,
}

/// What has to be done at an entry's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Make what the entry says.
    Make {
        /// Something of the same layer is there and goes first, with all below it.
        replace: bool,
    },
    /// Set the attributes of a directory, which is made unless it exists.
    Directory {
        /// It exists.
        exists: bool,
        /// Something else of the same layer is there and goes first.
        replace: bool,
        /// It hides what lies below it.
        opaque: bool,
    },
    /// Give the entry that `carrier` made another name.
    Link {
        /// The number of that entry.
        carrier: u32,
        /// A path that leads to it now.
        target: LayerPath,
        /// As for [`Action::Make`].
        replace: bool,
    },
    /// A hard link to something that the layer does not have so far: to be made at the end.
    LinkLater {
        /// The number of the entry that it is another name of, which is itself such a link.
        carrier: Option<u32>,
        /// As for [`Action::Make`].
        replace: bool,
    },
    /// Hide the path; nothing of the layer is there.
    Whiteout,
    /// The directory at the path hides what lies below it.
    Opaque,
}

/// A directory without an entry, at the end of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Implied {
    /// Its path.
    pub path: LayerPath,
    /// The layer removes it from the layers below: it does not have their attributes.
    pub removed: bool,
}

/// Why an entry has no place.
enum Misplaced {
    Refused(String),
    Folders,
}

impl From<String> for Misplaced {
    fn from(reason: String) -> Misplaced {
        Misplaced::Refused(reason)
    }
}

impl OwnTree {
    /// An empty tree, of as many directories as a layer may have.
    pub fn new(limits: &Limits) -> OwnTree {
        OwnTree {
            folders: vec![Folder::default()],
            implied: Vec::new(),
            recent: None,
            // The reader counts directories as the tar names them; links can make others.
            folders_max: limits.max_entries.saturating_mul(2),
        }
    }

    /// Places the next entry; `number` is what the caller knows it by.
    ///
    /// # Errors
    /// [`LayerError::Refused`] for an entry that has no place, and [`LayerError::Limit`].
    pub fn place(&mut self, number: u32, entry: &Entry) -> Result<Placed, LayerError> {
        let mut uncovered = Vec::new();
        let placed = self.place_entry(number, entry, &mut uncovered);
        let (path, action) = placed.map_err(|misplaced| match misplaced {
            Misplaced::Refused(reason) => {
                LayerError::Refused { name: printable(entry.path.as_bytes()), reason }
            }
            Misplaced::Folders => LayerError::Limit { what: "directories", limit: self.folders_max },
        })?;
        Ok(Placed { path, uncovered, action })
    }

    fn place_entry(
        &mut self,
        number: u32,
        entry: &Entry,
        uncovered: &mut Vec<LayerPath>,
    ) -> Result<(LayerPath, Action), Misplaced> {
        if entry.path.is_root() {
            let action = match entry.kind {
                EntryKind::Directory => {
                    self.folders[0].number = Some(number);
                    Action::Directory { exists: true, replace: false, opaque: false }
                }
                _ => Action::Nothing,
            };
            return Ok((LayerPath::root(), action));
        }
        if entry.kind == EntryKind::OpaqueMarker {
            let (folder, path) = self.enter(entry.path.as_bytes(), uncovered)?;
            let action = if folder == 0 { Action::Nothing } else { Action::Opaque };
            self.folders[folder as usize].opaque = folder != 0;
            return Ok((path, action));
        }
        let (parent, name) = entry.path.split_name();
        let (folder, holder) = self.enter(parent, uncovered)?;
        let path = join(&holder, name)?;
        let action = match &entry.kind {
            EntryKind::Directory => self.put_directory(folder, name, number)?,
            EntryKind::Whiteout => self.put_whiteout(folder, name),
            EntryKind::Hardlink { target } => self.put_link(folder, &path, number, target)?,
            EntryKind::Symlink { target } => self.put_leaf(folder, name, number, Some(target.as_slice())),
            _ => self.put_leaf(folder, name, number, None),
        };
        Ok((path, action))
    }

    fn put_directory(&mut self, folder: FolderId, name: &[u8], number: u32) -> Result<Action, Misplaced> {
        let found = self.folders[folder as usize].children.get(name).cloned();
        if let Some(Child::Folder(existing)) = found {
            let existing = &mut self.folders[existing as usize];
            existing.number = Some(number);
            return Ok(Action::Directory { exists: true, replace: false, opaque: existing.opaque });
        }
        let removed = matches!(found, Some(Child::Whiteout));
        if matches!(found, Some(Child::Leaf(_))) {
            self.recent = None;
        }
        let made = self.new_folder(folder, name, removed)?;
        self.folders[made as usize].number = Some(number);
        Ok(Action::Directory { exists: false, replace: found.is_some(), opaque: removed })
    }

    fn put_leaf(&mut self, folder: FolderId, name: &[u8], number: u32, link: Option<&[u8]>) -> Action {
        let leaf = Leaf { number, carrier: number, link: link.map(Into::into), later: false };
        Action::Make { replace: self.insert(folder, name, Child::Leaf(leaf)) }
    }

    /// A whiteout removes from the layers below only: what this layer itself has there stays.
    fn put_whiteout(&mut self, folder: FolderId, name: &[u8]) -> Action {
        match self.folders[folder as usize].children.get(name) {
            Some(&Child::Folder(own)) => {
                let own = &mut self.folders[own as usize];
                (own.opaque, own.removed) = (true, true);
                Action::Opaque
            }
            Some(_) => Action::Nothing,
            None => {
                self.insert(folder, name, Child::Whiteout);
                Action::Whiteout
            }
        }
    }

    fn put_link(
        &mut self,
        folder: FolderId,
        path: &LayerPath,
        number: u32,
        target: &LayerPath,
    ) -> Result<Action, Misplaced> {
        let name = path.split_name().1;
        let (parent, target_name) = target.split_name();
        let holder = self.find(parent);
        let found = holder.and_then(|holder| self.folders[holder as usize].children.get(target_name));
        let found = found.cloned();
        let itself = holder == Some(folder) && target_name == name;
        let leaf = match found {
            Some(Child::Leaf(_)) if itself => return Ok(Action::Nothing),
            _ if itself || target == path => {
                return Err("it is a hard link to itself".to_owned().into());
            }
            Some(Child::Leaf(leaf)) => leaf,
            Some(Child::Folder(_)) => return Err("it is a hard link to a directory".to_owned().into()),
            Some(Child::Whiteout) | None => {
                let later = Leaf { number, carrier: number, link: None, later: true };
                let replace = self.insert(folder, name, Child::Leaf(later));
                return Ok(Action::LinkLater { carrier: None, replace });
            }
        };
        let target = join(&self.path_of(holder.unwrap_or_default())?, target_name)?;
        if target.as_bytes().strip_prefix(path.as_bytes()).is_some_and(|rest| rest.starts_with(b"/")) {
            return Err("it is a hard link to a file below itself".to_owned().into());
        }
        if leaf.later {
            let carrier = Some(leaf.carrier);
            let replace = self.insert(folder, name, Child::Leaf(Leaf { number, ..leaf }));
            return Ok(Action::LinkLater { carrier, replace });
        }
        let carrier = leaf.carrier;
        let replace = self.insert(folder, name, Child::Leaf(Leaf { number, ..leaf }));
        Ok(Action::Link { carrier, target, replace })
    }

    /// Puts a child; whether it takes the place of another.
    fn insert(&mut self, folder: FolderId, name: &[u8], child: Child) -> bool {
        let before = self.folders[folder as usize].children.insert(name.into(), child);
        if matches!(before, Some(Child::Folder(_) | Child::Leaf(_))) {
            // The way to the latest directory may have led through it.
            self.recent = None;
        }
        before.is_some()
    }

    fn new_folder(&mut self, parent: FolderId, name: &[u8], removed: bool) -> Result<FolderId, Misplaced> {
        let made = self.folders.len();
        if made as u64 > self.folders_max {
            return Err(Misplaced::Folders);
        }
        // Bounded by the limit on entries, which is far below.
        let made = made as FolderId;
        let folder = Folder { parent, name: name.into(), opaque: removed, removed, ..Folder::default() };
        self.folders.push(folder);
        self.folders[parent as usize].children.insert(name.into(), Child::Folder(made));
        Ok(made)
    }

    /// The directory at `path`, made where it is missing, and its path without links.
    fn enter(
        &mut self,
        path: &[u8],
        uncovered: &mut Vec<LayerPath>,
    ) -> Result<(FolderId, LayerPath), Misplaced> {
        if let Some((recent, folder, clean)) = &self.recent
            && recent.as_slice() == path
        {
            return Ok((*folder, clean.clone()));
        }
        let folder = self.descend(path, |tree, at, name| {
            let over_whiteout = matches!(tree.folders[at as usize].children.get(name), Some(Child::Whiteout));
            let made = tree.new_folder(at, name, over_whiteout)?;
            if over_whiteout {
                uncovered.push(tree.path_of(made)?);
            }
            tree.implied.push(made);
            Ok(ControlFlow::Continue(made))
        })?;
        // Only `find` stops on the way.
        let folder = folder.unwrap_or_default();
        let clean = self.path_of(folder)?;
        self.recent = Some((path.to_vec(), folder, clean.clone()));
        Ok((folder, clean))
    }

    /// The directory at `path`, if the layer has it.
    fn find(&mut self, path: &[u8]) -> Option<FolderId> {
        self.descend(path, |_, _, _| Ok(ControlFlow::Break(()))).ok().flatten()
    }

    /// Follows `path`, through links of the layer; `missing` decides about a directory that the layer does not have.
    fn descend(
        &mut self,
        path: &[u8],
        mut missing: impl FnMut(&mut OwnTree, FolderId, &[u8]) -> Result<ControlFlow<(), FolderId>, Misplaced>,
    ) -> Result<Option<FolderId>, Misplaced> {
        let (mut at, mut links) = (0, 0);
        let mut pending: Vec<Box<[u8]>> = Vec::new();
        let mut components = path.split(|&byte| byte == b'/');
        loop {
            let followed = pending.pop();
            let Some(name) = followed.as_deref().or_else(|| components.next()) else { return Ok(Some(at)) };
            match name {
                b"" | b"." => continue,
                b".." => {
                    at = self.folders[at as usize].parent;
                    continue;
                }
                _ => {}
            }
            match self.folders[at as usize].children.get(name) {
                Some(&Child::Folder(next)) => at = next,
                Some(Child::Leaf(Leaf { link: Some(target), .. })) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(format!("more than {LINKS_MAX} symbolic links lead to it").into());
                    }
                    pending.extend(target.split(|&byte| byte == b'/').rev().map(Into::into));
                    if target.starts_with(b"/") {
                        at = 0;
                    }
                }
                Some(Child::Leaf(_)) => {
                    let path = join(&self.path_of(at)?, name)?;
                    let what = "which the same layer makes something other than a directory";
                    return Err(format!("it lies under `{path}`, {what}").into());
                }
                Some(Child::Whiteout) | None => match missing(self, at, name)? {
                    ControlFlow::Continue(made) => at = made,
                    ControlFlow::Break(()) => return Ok(None),
                },
            }
        }
    }

    fn path_of(&self, folder: FolderId) -> Result<LayerPath, Misplaced> {
        let mut names = Vec::new();
        let mut at = folder;
        while at != 0 {
            let folder = &self.folders[at as usize];
            names.push(&*folder.name);
            at = folder.parent;
        }
        names.reverse();
        LayerPath::parse(names.join(&b'/')).map_err(|error| Misplaced::Refused(error.to_string()))
    }

    /// Whether the entry `number` is still what lies at `path`, which is the one it was placed at.
    pub fn stands(&self, number: u32, path: &LayerPath) -> bool {
        match self.child_at(path) {
            Some(Child::Leaf(leaf)) => leaf.number == number,
            Some(&Child::Folder(folder)) => self.folders[folder as usize].number == Some(number),
            _ => path.is_root() && self.folders[0].number == Some(number),
        }
    }

    /// Where the file that `target` names by now lies in the layer; for hard links that were to be made later.
    pub fn link_target(&mut self, target: &LayerPath) -> Option<LayerPath> {
        let (parent, name) = target.split_name();
        let holder = self.find(parent)?;
        match self.folders[holder as usize].children.get(name)? {
            Child::Leaf(_) => join(&self.path_of(holder).ok()?, name).ok(),
            _ => None,
        }
    }

    /// The directories that have no entry; the root is none of them.
    pub fn implied(&self) -> impl Iterator<Item = Implied> + '_ {
        let without = |folder: &&FolderId| self.folders[**folder as usize].number.is_none();
        self.implied.iter().filter(without).filter(|folder| self.is_attached(**folder)).filter_map(
            |&folder| Some(Implied { path: self.path_of(folder).ok()?, removed: self.is_removed(folder) }),
        )
    }

    /// Whether the layer has an entry for the root.
    pub fn has_root(&self) -> bool {
        self.folders[0].number.is_some()
    }

    /// Whether the layer says anything at all.
    pub fn is_empty(&self) -> bool {
        !self.has_root() && self.folders[0].children.is_empty()
    }

    fn is_attached(&self, folder: FolderId) -> bool {
        let mut at = folder;
        while at != 0 {
            let folder = &self.folders[at as usize];
            match self.folders[folder.parent as usize].children.get(&folder.name) {
                Some(&Child::Folder(there)) if there == at => at = folder.parent,
                _ => return false,
            }
        }
        true
    }

    fn is_removed(&self, folder: FolderId) -> bool {
        let mut at = folder;
        let mut removed = self.folders[at as usize].removed;
        while at != 0 && !removed {
            at = self.folders[at as usize].parent;
            removed = self.folders[at as usize].opaque;
        }
        removed
    }

    /// Which of the entries 0 to `count` are still there.
    pub(super) fn standing(&self, count: usize) -> Vec<bool> {
        let mut standing = vec![false; count];
        let mut mark = |number: u32| standing[number as usize] = true;
        let mut pending = vec![0];
        while let Some(folder) = pending.pop() {
            let folder = &self.folders[folder as usize];
            folder.number.into_iter().for_each(&mut mark);
            for child in folder.children.values() {
                match child {
                    Child::Folder(below) => pending.push(*below),
                    Child::Leaf(leaf) => mark(leaf.number),
                    Child::Whiteout => {}
                }
            }
        }
        standing
    }

    /// Whether the marker `entry`, which was placed, still has an effect.
    pub(super) fn marks(&self, entry: &Entry) -> bool {
        match entry.kind {
            EntryKind::OpaqueMarker => {
                self.folder_at(entry.path.as_bytes()).is_some_and(|at| self.folders[at as usize].opaque)
            }
            _ => match self.child_at(&entry.path) {
                Some(&Child::Folder(folder)) => self.folders[folder as usize].removed,
                child => child.is_some(),
            },
        }
    }

    fn child_at(&self, path: &LayerPath) -> Option<&Child> {
        let (parent, name) = path.split_name();
        self.folders[self.folder_at(parent)? as usize].children.get(name)
    }

    fn folder_at(&self, path: &[u8]) -> Option<FolderId> {
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        names.try_fold(0, |at: FolderId, name| match self.folders[at as usize].children.get(name) {
            Some(&Child::Folder(next)) => Some(next),
            _ => None,
        })
    }
}

fn join(parent: &LayerPath, name: &[u8]) -> Result<LayerPath, Misplaced> {
    parent.join(name).map_err(|error| Misplaced::Refused(error.to_string()))
}
