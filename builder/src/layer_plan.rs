//! [`LayerPlan`]: the entries that a layer is going to have, before a byte of content is read.
//!
//! COPY, ADD, WORKDIR and directory bases fill a plan; [`crate::layer_step`] gives it a key and writes it. A plan is
//! complete in itself: all parents of what it holds are in it, with the attributes that they have in the image below,
//! so that engines which unpack layer by layer do not have to invent them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use rimg_formats::layer::{Entry, EntryKind, LayerPath};

use crate::context::{DiskFile, OpenParent, processors};
use crate::parallel;
use crate::source_tree::{Content, FileIdentity, SourceNode, SourceTree};
use crate::stat_cache::now_ns;
use crate::tree_walk::{Wanted, walk};

/// One entry to be written.
#[derive(Clone, Debug)]
pub(crate) struct PlannedEntry {
    /// What the layer says.
    pub(crate) entry: Entry,
    /// Where the bytes of a regular file come from.
    pub(crate) content: Content,
    /// Where extended attributes are still to be read: [`read_xattrs`].
    pub(crate) unread: Option<DiskFile>,
    /// Which file of which source it is.
    identity: Option<(usize, FileIdentity)>,
}

/// The entries of a layer to be, in layer order.
#[derive(Clone, Debug)]
pub(crate) struct LayerPlan {
    entries: BTreeMap<LayerPath, PlannedEntry>,
    /// Directories that hide what the image below has in them.
    opaque: BTreeSet<LayerPath>,
    /// How many sources there have been.
    sources: usize,
    /// [`now_ns`] from before anything was looked at.
    pub(crate) began_ns: i128,
}

/// Why an entry does not fit where it is to go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanConflict {
    /// A file would replace a directory.
    #[error("cannot replace the directory `/{0}` by a file")]
    DirectoryByFile(LayerPath),
    /// A directory would replace something else.
    #[error("cannot copy a directory onto `/{0}`, which is {1}")]
    OtherByDirectory(LayerPath, &'static str),
    /// The image below could not be looked at.
    #[error(transparent)]
    Below(#[from] io::Error),
}

/// The attributes of directories that have to be made on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewDirectory {
    /// Permission bits.
    pub(crate) mode: u32,
    /// User and group.
    pub(crate) owner: (u64, u64),
}

impl NewDirectory {
    /// What COPY makes: 0755, root's.
    pub(crate) const DEFAULT: NewDirectory = NewDirectory { mode: 0o755, owner: (0, 0) };
}

impl LayerPlan {
    /// An empty plan; what is planned must be looked at later than this.
    pub(crate) fn new() -> LayerPlan {
        LayerPlan { entries: BTreeMap::new(), opaque: BTreeSet::new(), sources: 0, began_ns: now_ns() }
    }

    /// What is planned from here on is copied by itself: names of one file become hard links of each other only where
    /// one source brings both of them.
    pub(crate) fn begin_source(&mut self) {
        self.sources += 1;
    }

    /// Everything in a tree, as one layer on nothing. The root is every container's, 0755 and root's, whatever the
    /// folder or archive is that holds it.
    pub(crate) fn of_tree(tree: &dyn SourceTree) -> io::Result<LayerPlan> {
        let mut plan = LayerPlan::new();
        plan.put_contents(tree, &LayerPath::root(), &LayerPath::root())?;
        Ok(plan)
    }

    /// Plans everything in the directory `from` of a tree below `to`, where nothing is.
    pub(crate) fn put_contents(
        &mut self,
        tree: &dyn SourceTree,
        from: &LayerPath,
        to: &LayerPath,
    ) -> io::Result<()> {
        walk(tree, from, Wanted::default(), |found| {
            let path = to.join(found.inside.as_bytes()).map_err(io::Error::other)?;
            let owner = found.node.owner.unwrap_or((0, 0));
            self.put_anew(path, found.node, owner)
        })
    }

    /// The image `below` as it is with this plan's layer on top.
    pub(crate) fn over<'a>(&'a self, below: &'a dyn SourceTree) -> Over<'a> {
        Over { plan: self, below }
    }

    /// Plans `node` at `path`, whose parents must be planned already. A later call for the same path wins.
    ///
    /// # Errors
    /// When a directory and something else would have to share the path.
    pub(crate) fn put(
        &mut self,
        below: &dyn SourceTree,
        path: LayerPath,
        node: SourceNode,
        owner: (u64, u64),
    ) -> Result<(), PlanConflict> {
        self.check(below, &path, node.is_directory())?;
        self.insert(path, node, owner);
        Ok(())
    }

    /// Plans `node` at `path`, whose parents must be planned already, in place of whatever is there: directories are
    /// merged, anything else takes the whole place.
    pub(crate) fn replace(
        &mut self,
        below: &dyn SourceTree,
        path: LayerPath,
        node: SourceNode,
        owner: (u64, u64),
    ) -> io::Result<()> {
        if !node.is_directory() {
            let inside = self.entries.range(&path..).skip(1).map(|(inside, _)| inside);
            let inside: Vec<LayerPath> =
                inside.take_while(|inside| inside.starts_with(&path)).cloned().collect();
            inside.iter().for_each(|inside| drop(self.entries.remove(inside)));
            self.opaque.retain(|directory| !directory.starts_with(&path));
        } else if self.entries.get(&path).is_some_and(|planned| planned.entry.kind != EntryKind::Directory)
            && below.lookup(&path)?.is_some_and(|below| below.is_directory())
        {
            // What was planned here had taken the place of a directory, which is not to come back.
            self.opaque.insert(path.clone());
        }
        self.insert(path, node, owner);
        Ok(())
    }

    fn insert(&mut self, path: LayerPath, node: SourceNode, owner: (u64, u64)) {
        let mut entry = Entry::new(path.clone(), node.kind, node.mode);
        (entry.uid, entry.gid) = owner;
        entry.mtime = node.mtime;
        entry.xattrs = node.xattrs;
        let (content, unread) = (node.content, node.unread);
        let identity = node.identity.map(|identity| (self.sources, identity));
        self.entries.insert(path, PlannedEntry { entry, content, unread, identity });
    }

    /// Plans `node` at `path` where nothing is below.
    pub(crate) fn put_anew(
        &mut self,
        path: LayerPath,
        node: SourceNode,
        owner: (u64, u64),
    ) -> io::Result<()> {
        self.put(&Nothing, path, node, owner).map_err(io::Error::other)
    }

    fn check(
        &self,
        below: &dyn SourceTree,
        path: &LayerPath,
        is_directory: bool,
    ) -> Result<(), PlanConflict> {
        let found = match self.entries.get(path) {
            Some(planned) => Some(planned.entry.kind.clone()),
            // The parents are planned, as directories.
            None if self.opaque.is_empty() => below.lookup(path)?.map(|node| node.kind),
            None => self.over(below).lookup(path)?.map(|node| node.kind),
        };
        match found {
            Some(EntryKind::Directory) if !is_directory => Err(PlanConflict::DirectoryByFile(path.clone())),
            Some(kind) if is_directory && kind != EntryKind::Directory => {
                Err(PlanConflict::OtherByDirectory(path.clone(), kind_name(&kind)))
            }
            _ => Ok(()),
        }
    }

    /// Plans the directory `path` and all above it: as they are in the image below, else new ones. Their links have
    /// been followed already.
    pub(crate) fn ensure_directory(
        &mut self,
        below: &dyn SourceTree,
        path: &LayerPath,
        new: NewDirectory,
    ) -> Result<(), PlanConflict> {
        let mut missing = Vec::new();
        let mut at = Some(path.clone());
        while let Some(directory) = at.filter(|directory| !directory.is_root()) {
            if let Some(planned) = self.entries.get(&directory) {
                match &planned.entry.kind {
                    EntryKind::Directory => break,
                    kind => return Err(PlanConflict::OtherByDirectory(directory, kind_name(kind))),
                }
            }
            at = directory.parent();
            missing.push(directory);
        }
        missing.into_iter().rev().try_for_each(|directory| self.add_directory(below, directory, new))
    }

    /// Plans a directory whose parents are planned.
    fn add_directory(
        &mut self,
        below: &dyn SourceTree,
        path: LayerPath,
        new: NewDirectory,
    ) -> Result<(), PlanConflict> {
        let mut entry = Entry::new(path.clone(), EntryKind::Directory, new.mode);
        (entry.uid, entry.gid) = new.owner;
        if let Some(found) = below.lookup(&path)? {
            if !found.is_directory() {
                return Err(PlanConflict::OtherByDirectory(path, kind_name(&found.kind)));
            }
            entry.mode = found.mode;
            (entry.uid, entry.gid) = found.owner.unwrap_or((0, 0));
            entry.xattrs = found.xattrs;
            entry.mtime = found.mtime;
        }
        let planned = PlannedEntry { entry, content: Content::None, unread: None, identity: None };
        self.entries.insert(path, planned);
        Ok(())
    }

    /// The entries in layer order. Of several names that one source has for a file the first becomes the file, the
    /// others hard links.
    pub(crate) fn into_entries(self) -> Vec<PlannedEntry> {
        let mut files: HashMap<(usize, FileIdentity), LayerPath> = HashMap::new();
        let mut entries: Vec<PlannedEntry> = Vec::with_capacity(self.entries.len() + self.opaque.len());
        for (path, planned) in self.entries {
            entries.push(planned);
            if self.opaque.contains(&path) {
                let entry = Entry::new(path, EntryKind::OpaqueMarker, 0);
                entries.push(PlannedEntry { entry, content: Content::None, unread: None, identity: None });
            }
        }
        for planned in &mut entries {
            let Some(identity) = planned.identity else { continue };
            if !matches!(planned.entry.kind, EntryKind::Regular { .. }) {
                continue;
            }
            match files.get(&identity) {
                Some(first) => {
                    planned.entry.kind = EntryKind::Hardlink { target: first.clone() };
                    planned.content = Content::None;
                }
                None => {
                    files.insert(identity, planned.entry.path.clone());
                }
            }
        }
        entries
    }
}

/// Directories on one level whose children are looked at together: enough for all threads, few enough for memory.
const DIRECTORIES_AT_ONCE: usize = 1024;

/// A directory on the way through a tree, and what is in it.
type Entered<D> = (D, io::Result<Vec<(Vec<u8>, SourceNode)>>);

/// The children of several directories, looked at on all threads; `path` tells where one is in the tree.
pub(crate) fn children_of_all<D: Send + Sync>(
    tree: &dyn SourceTree,
    directories: Vec<D>,
    path: impl Fn(&D) -> &LayerPath + Sync,
) -> impl Iterator<Item = Entered<D>> {
    let mut waiting = directories.into_iter();
    let next = move || {
        let some: Vec<D> = waiting.by_ref().take(DIRECTORIES_AT_ONCE).collect();
        let children = parallel::each(&some, processors(), |directory| tree.children(path(directory)));
        (!some.is_empty()).then(|| some.into_iter().zip(children))
    };
    std::iter::from_fn(next).flatten()
}

/// Reads the extended attributes that planned entries have on disk, as far as that has not been done.
pub(crate) fn read_xattrs(entries: &mut [PlannedEntry]) -> io::Result<()> {
    let share = entries.len().div_ceil(processors()).max(ENTRIES_PER_THREAD_MIN);
    let read = |part: &mut [PlannedEntry]| -> io::Result<()> {
        let mut parent = OpenParent::default();
        for planned in part {
            if let Some(file) = planned.unread.take() {
                planned.entry.xattrs.extend(file.xattrs(&mut parent)?);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = entries.chunks_mut(share).map(|part| scope.spawn(move || read(part))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("reading attributes does not panic"))
    })
}

/// Below this many entries a thread costs more than it gains.
const ENTRIES_PER_THREAD_MIN: usize = 256;

/// An image with a planned layer on top. It knows what is at a path, not what is in a directory.
#[derive(Clone, Copy)]
pub(crate) struct Over<'a> {
    plan: &'a LayerPlan,
    below: &'a dyn SourceTree,
}

impl SourceTree for Over<'_> {
    fn lookup(&self, path: &LayerPath) -> io::Result<Option<SourceNode>> {
        if let Some(planned) = self.plan.entries.get(path) {
            return Ok(Some(planned.as_node()));
        }
        let mut above = path.parent();
        while let Some(directory) = above.filter(|directory| !directory.is_root()) {
            match self.plan.entries.get(&directory) {
                Some(planned) if planned.entry.kind != EntryKind::Directory => return Ok(None),
                Some(_) if self.plan.opaque.contains(&directory) => return Ok(None),
                // All that is above a planned directory is planned.
                Some(_) if self.plan.opaque.is_empty() => break,
                _ => above = directory.parent(),
            }
        }
        self.below.lookup(path)
    }

    fn children(&self, _path: &LayerPath) -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
        Err(io::Error::other("what a planned layer puts into a directory is not known yet"))
    }

    fn describe(&self) -> String {
        self.below.describe()
    }

    fn explain_missing(&self, path: &LayerPath) -> Option<String> {
        self.below.explain_missing(path)
    }
}

impl PlannedEntry {
    fn as_node(&self) -> SourceNode {
        let entry = &self.entry;
        SourceNode {
            kind: entry.kind.clone(),
            mode: entry.mode,
            owner: Some((entry.uid, entry.gid)),
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
            unread: self.unread.clone(),
            content: self.content.clone(),
            excluded: false,
            identity: self.identity.map(|(_, identity)| identity),
        }
    }
}

/// The tree below a base: empty.
pub(crate) struct Nothing;

impl SourceTree for Nothing {
    fn lookup(&self, _path: &LayerPath) -> io::Result<Option<SourceNode>> {
        Ok(None)
    }

    fn children(&self, _path: &LayerPath) -> io::Result<Vec<(Vec<u8>, SourceNode)>> {
        Ok(Vec::new())
    }

    fn describe(&self) -> String {
        "nothing".to_owned()
    }

    fn explain_missing(&self, _path: &LayerPath) -> Option<String> {
        None
    }
}

/// A kind of file in words, with its article.
pub(crate) fn kind_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "a directory",
        EntryKind::Regular { .. } | EntryKind::Hardlink { .. } => "a file",
        EntryKind::Symlink { .. } => "a symbolic link",
        EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => "a device",
        EntryKind::Fifo => "a FIFO",
        EntryKind::Whiteout | EntryKind::OpaqueMarker => "removed",
    }
}
