//! [`LayerPlan`]: the entries that a layer is going to have, before a byte of content is read.
//!
//! COPY, ADD, WORKDIR and directory bases fill a plan; [`crate::layer_step`] gives it a key and writes it. A plan is
//! complete in itself: all parents of what it holds are in it, with the attributes that they have in the image below,
//! so that engines which unpack layer by layer do not have to invent them.

use std::collections::{BTreeMap, HashMap};
use std::io;

use rimg_formats::layer::{Entry, EntryKind, LayerPath};

use crate::context::{DiskFile, OpenParent, processors};
use crate::parallel;
use crate::source_tree::{Content, FileIdentity, SourceNode, SourceTree};
use crate::stat_cache::now_ns;

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
        LayerPlan { entries: BTreeMap::new(), sources: 0, began_ns: now_ns() }
    }

    /// What is planned from here on is copied by itself: names of one file become hard links of each other only where
    /// one source brings both of them.
    pub(crate) fn begin_source(&mut self) {
        self.sources += 1;
    }

    /// Everything in a tree, as one layer on nothing.
    pub(crate) fn of_tree(tree: &dyn SourceTree) -> io::Result<LayerPlan> {
        let mut plan = LayerPlan::new();
        let root = tree.lookup(&LayerPath::root())?;
        // Every container runtime makes the root 0755, root's; only another one has to be said.
        let is_usual =
            |root: &SourceNode| root.mode == 0o755 && root.owner.is_none_or(|owner| owner == (0, 0));
        if let Some(root) = root.filter(|root| !is_usual(root)) {
            let owner = root.owner.unwrap_or((0, 0));
            plan.put_anew(LayerPath::root(), root, owner)?;
        }
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
        // No recursion here and in the walks of COPY: directories of strangers may be nested as deep as a path goes.
        let mut waiting = vec![(from.clone(), to.clone())];
        while !waiting.is_empty() {
            let directories = std::mem::take(&mut waiting);
            for ((from, to), children) in children_of_all(tree, directories, |(from, _)| from) {
                for (name, node) in children? {
                    let source = from.join(&name).map_err(io::Error::other)?;
                    let path = to.join(&name).map_err(io::Error::other)?;
                    let (is_directory, owner) = (node.is_directory(), node.owner.unwrap_or((0, 0)));
                    self.put_anew(path.clone(), node, owner)?;
                    if is_directory {
                        waiting.push((source, path));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is planned for `path`.
    pub(crate) fn get(&self, path: &LayerPath) -> Option<&PlannedEntry> {
        self.entries.get(path)
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
        let mut entry = Entry::new(path.clone(), node.kind, node.mode);
        (entry.uid, entry.gid) = owner;
        entry.mtime = node.mtime;
        entry.xattrs = node.xattrs;
        let (content, unread) = (node.content, node.unread);
        let identity = node.identity.map(|identity| (self.sources, identity));
        self.entries.insert(path, PlannedEntry { entry, content, unread, identity });
        Ok(())
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
            None => below.lookup(path)?.map(|node| node.kind),
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
        let mut entries: Vec<PlannedEntry> = self.entries.into_values().collect();
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
