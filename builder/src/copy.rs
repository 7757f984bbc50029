//! COPY, and ADD of plain files: from sources and a destination to a [`LayerPlan`], by BuildKit's rules.
//!
//! 1. Each source is a path or glob in a tree; links in it are followed inside the tree, the last one included.
//! 2. A directory brings its *contents*; links met while walking it stay links.
//! 3. The destination's links are followed inside the image. A file goes into it when it is a directory, is written
//!    as one (`dir/`), or several files come; else it becomes the file of that name.
//! 4. Directories that are missing on the way are made, 0755, owned as `--chown` says, else by root.
//! 5. A file never replaces a directory, nor a directory anything else.
//!
//! With `--link` the image below is taken to be empty (3 to 5).

pub(crate) mod destination;
pub(crate) mod mode;
pub(crate) mod owner;
mod sources;

use std::io;
use std::sync::Arc;

use rimg_formats::layer::{EntryKind, LayerPath, LayerPathError, Mtime};

use self::destination::Destination;
use self::mode::ModeChange;
pub(crate) use self::sources::{Match, Missing, find_sources};
use crate::context::is_excluded;
use crate::ignore::IgnorePatterns;
use crate::layer_plan::{LayerPlan, NewDirectory, PlanConflict, children_of_all};
use crate::source_tree::{Content, SourceNode, SourceTree, land};

/// What flags of COPY and ADD say about the entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyRules {
    /// `--chown`, looked up.
    pub(crate) owner: Option<(u64, u64)>,
    /// `--chmod`.
    pub(crate) mode: Option<ModeChange>,
    /// `--exclude`.
    pub(crate) excludes: Option<IgnorePatterns>,
    /// `--parents`.
    pub(crate) parents: bool,
}

/// Why a COPY cannot be planned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// A source is not there.
    #[error("{0}")]
    Missing(Missing),
    /// A source is no pattern.
    #[error("{0}")]
    Pattern(String),
    /// Several files for what is written as one file.
    #[error("several files are to go to `{0}`, which is not written as a directory")]
    NeedsDirectory(String),
    /// Something in the way.
    #[error(transparent)]
    Conflict(#[from] PlanConflict),
    /// A path cannot be in an image.
    #[error(transparent)]
    Path(#[from] LayerPathError),
    /// An archive that ADD was to unpack cannot be.
    #[error("failed to unpack `{name}`: {reason}")]
    Archive {
        /// The archive.
        name: String,
        /// Why.
        reason: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
}

/// A COPY on its way to a plan.
pub(crate) struct CopyPlanner<'a> {
    /// The image below.
    pub(crate) below: &'a dyn SourceTree,
    /// Where things go.
    pub(crate) destination: &'a Destination,
    /// What flags say.
    pub(crate) rules: &'a CopyRules,
    /// What has been planned.
    pub(crate) plan: LayerPlan,
}

impl CopyPlanner<'_> {
    /// Plans what a source matched. `several` says that it is not the only file of the instruction.
    pub(crate) fn add(
        &mut self,
        tree: &dyn SourceTree,
        found: Match,
        several: bool,
    ) -> Result<(), CopyError> {
        self.plan.begin_source();
        if self.rules.parents {
            return self.add_with_parents(tree, found);
        }
        if found.node.is_directory() {
            let target = self.enter_destination()?;
            return self.add_contents(tree, &found.path, &target);
        }
        let name = found.name.file_name().unwrap_or_default().to_vec();
        if self.is_excluded(&name, false) {
            return Ok(());
        }
        self.add_file(&name, found.node, several)
    }

    /// Plans a file whose content stands in the Buildfile.
    pub(crate) fn add_inline(
        &mut self,
        name: &str,
        content: Arc<[u8]>,
        several: bool,
    ) -> Result<(), CopyError> {
        let node = SourceNode {
            kind: EntryKind::Regular { size: content.len() as u64 },
            mode: 0o644,
            owner: None,
            mtime: Mtime::default(),
            xattrs: std::collections::BTreeMap::new(),
            unread: None,
            content: Content::Bytes(content),
            identity: None,
        };
        self.add_file(name.as_bytes(), node, several)
    }

    fn add_file(&mut self, name: &[u8], node: SourceNode, several: bool) -> Result<(), CopyError> {
        let landing = land(self.below, &self.destination.path)?;
        let planned =
            self.plan.get(&landing.path).is_some_and(|planned| planned.entry.kind == EntryKind::Directory);
        let is_directory = planned || landing.node.as_ref().is_some_and(SourceNode::is_directory);
        if self.destination.is_directory || is_directory || self.destination.path.is_root() {
            let target = self.enter_destination()?;
            return self.put(target.join(name)?, node);
        }
        if several {
            return Err(CopyError::NeedsDirectory(format!("/{}", self.destination.path)));
        }
        if let Some(parent) = landing.path.parent() {
            self.plan.ensure_directory(self.below, &parent, self.new_directory())?;
        }
        self.put(landing.path, node)
    }

    /// Plans the destination as a directory; returns where it is.
    pub(crate) fn enter_destination(&mut self) -> Result<LayerPath, CopyError> {
        let landing = land(self.below, &self.destination.path)?;
        self.plan.ensure_directory(self.below, &landing.path, self.new_directory())?;
        Ok(landing.path)
    }

    /// Plans everything in the directory `from` of `tree`. `--exclude` patterns speak about the way from there.
    fn add_contents(
        &mut self,
        tree: &dyn SourceTree,
        from: &LayerPath,
        target: &LayerPath,
    ) -> Result<(), CopyError> {
        let mut waiting = vec![(from.clone(), target.clone(), LayerPath::root())];
        while !waiting.is_empty() {
            let directories = std::mem::take(&mut waiting);
            for ((from, target, inside), children) in children_of_all(tree, directories, |(from, ..)| from) {
                for (name, node) in children? {
                    let inside = inside.join(&name)?;
                    if self.is_excluded(inside.as_bytes(), node.is_directory()) {
                        continue;
                    }
                    let (path, source) = (target.join(&name)?, from.join(&name)?);
                    let is_directory = node.is_directory();
                    self.put(path.clone(), node)?;
                    if is_directory {
                        waiting.push((source, path, inside));
                    }
                }
            }
        }
        Ok(())
    }

    /// Plans everything in an archive below the destination. A directory of the archive goes where the image has a
    /// link to one: bases link `/lib` to `/usr/lib`, and archives bring files for either.
    pub(crate) fn add_archive(&mut self, archive: &dyn SourceTree) -> Result<(), CopyError> {
        self.plan.begin_source();
        let mut waiting = vec![(LayerPath::root(), self.enter_destination()?)];
        while let Some((from, target)) = waiting.pop() {
            for (name, node) in archive.children(&from)? {
                let (path, source) = (target.join(&name)?, from.join(&name)?);
                if !node.is_directory() {
                    self.put(path, node)?;
                    continue;
                }
                let landing = land(self.below, &path)?;
                if landing.path != path && landing.node.as_ref().is_some_and(SourceNode::is_directory) {
                    self.plan.ensure_directory(self.below, &landing.path, self.new_directory())?;
                    waiting.push((source, landing.path));
                } else {
                    self.put(path.clone(), node)?;
                    waiting.push((source, path));
                }
            }
        }
        Ok(())
    }

    /// `--parents`: the source keeps the directories in front of it, behind a `/./` if there is one.
    fn add_with_parents(&mut self, tree: &dyn SourceTree, found: Match) -> Result<(), CopyError> {
        let target = self.enter_destination()?;
        let kept = found.name.strip_prefix(&found.pivot).unwrap_or_else(|| found.name.clone());
        let mut way = LayerPath::root();
        for name in kept.parent().unwrap_or_default().components() {
            way = way.join(name)?;
            let source = land(tree, &found.pivot.join(way.as_bytes())?)?;
            let place = target.join(way.as_bytes())?;
            let existing = self.plan.get(&place).is_some() || self.below.lookup(&place)?.is_some();
            match source.node.filter(SourceNode::is_directory) {
                Some(node) if !existing => self.put(place, node)?,
                _ => self.plan.ensure_directory(self.below, &place, self.new_directory())?,
            }
        }
        if self.is_excluded(kept.as_bytes(), found.node.is_directory()) {
            return Ok(());
        }
        let place = target.join(kept.as_bytes())?;
        let is_directory = found.node.is_directory();
        if !place.is_root() && place != target {
            self.put(place.clone(), found.node)?;
        }
        if is_directory {
            self.add_contents(tree, &found.path, &place)?;
        }
        Ok(())
    }

    fn put(&mut self, path: LayerPath, mut node: SourceNode) -> Result<(), CopyError> {
        if let (Some(change), false) = (&self.rules.mode, matches!(node.kind, EntryKind::Symlink { .. })) {
            node.mode = change.apply(node.mode, node.is_directory());
        }
        let owner = self.rules.owner.or(node.owner).unwrap_or((0, 0));
        Ok(self.plan.put(self.below, path, node, owner)?)
    }

    fn is_excluded(&self, inside: &[u8], is_directory: bool) -> bool {
        let Some(excludes) = &self.rules.excludes else { return false };
        is_excluded(excludes, inside, is_directory)
    }

    fn new_directory(&self) -> NewDirectory {
        NewDirectory { owner: self.rules.owner.unwrap_or((0, 0)), ..NewDirectory::DEFAULT }
    }
}
