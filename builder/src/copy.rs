//! COPY and ADD: from sources and a destination to a [`LayerPlan`], by BuildKit's rules.
//!
//! 1. Each source is a path or glob in a tree; links in it are followed inside the tree, the last one included.
//!    `--parents` keeps links, as it keeps the directories in front of a source: [`parents`].
//! 2. A directory brings its *contents*; links met while walking it stay links.
//! 3. The destination's links are followed inside the image. A file goes into it when it is a directory, is written
//!    as one (`dir/`), or several files come; else it becomes the file of that name.
//! 4. Directories that are missing on the way are made: with the permissions of an octal `--chmod`, else 0755, and
//!    owned as `--chown` says, else by root.
//! 5. A file never replaces a directory, nor a directory anything else. What an archive brings does: [`archive`].
//!
//! With `--link` the image below is taken to be empty (3 to 5).

mod archive;
pub(crate) mod destination;
pub(crate) mod mode;
pub(crate) mod owner;
mod parents;
mod sources;

use std::io;
use std::sync::Arc;

use rimg_formats::layer::{EntryKind, LayerPath, LayerPathError, Mtime};

use self::destination::Destination;
use self::mode::ModeChange;
pub(crate) use self::parents::find_with_parents;
pub(crate) use self::sources::{BrokenLink, Match, Missing, find_sources, missing};
use crate::ignore::IgnorePatterns;
use crate::layer_plan::{LayerPlan, NewDirectory, Over, PlanConflict};
use crate::source_tree::{Content, SourceNode, SourceTree, land};
use crate::tree_walk::{Wanted, walk};

/// What flags of COPY and ADD say about the entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct CopyRules {
    /// `--chown`, looked up.
    pub(crate) owner: Option<(u64, u64)>,
    /// `--chmod`.
    pub(crate) mode: Option<ModeChange>,
    /// `--exclude`.
    pub(crate) excludes: Option<IgnorePatterns>,
}

/// Why a COPY cannot be planned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// A source is not there.
    #[error("{0}")]
    Missing(Missing),
    /// A source is a link that leads nowhere.
    #[error("{0}")]
    Broken(BrokenLink),
    /// All of a source is left out by `--exclude`.
    #[error("`--exclude` leaves nothing of `{0}`")]
    Excluded(String),
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
    /// Whether `--exclude` leaves out a file that a source names or matches. The contents of a folder are told apart
    /// when it is walked through.
    pub(crate) fn leaves_out(&self, found: &Match) -> bool {
        !found.node.is_directory() && self.excludes_name(&found.name)
    }

    /// Whether `--exclude` matches the last name of a source.
    pub(crate) fn excludes_name(&self, source: &LayerPath) -> bool {
        let name = String::from_utf8_lossy(source.file_name().unwrap_or_default());
        self.rules.excludes.as_ref().is_some_and(|excludes| excludes.matches_from_root(&name))
    }

    /// Plans what a source matched. `several` says that it is not the only file of the instruction.
    pub(crate) fn add(
        &mut self,
        tree: &dyn SourceTree,
        found: Match,
        several: bool,
    ) -> Result<(), CopyError> {
        self.plan.begin_source();
        if found.node.is_directory() {
            let target = self.enter_destination(self.new_directory())?;
            let wanted = Wanted { excluded: self.rules.excludes.as_ref(), ..Wanted::default() };
            return walk(tree, &found.path, wanted, |found| {
                self.put(target.join(found.inside.as_bytes())?, found.node)
            });
        }
        let name = found.name.file_name().unwrap_or_default().to_vec();
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
            excluded: false,
            identity: None,
        };
        self.add_file(name.as_bytes(), node, several)
    }

    fn add_file(&mut self, name: &[u8], node: SourceNode, several: bool) -> Result<(), CopyError> {
        let landing = land(&self.image(), &self.destination.path)?;
        let is_directory = landing.node.as_ref().is_some_and(SourceNode::is_directory);
        if self.destination.is_directory || is_directory || self.destination.path.is_root() {
            let target = self.enter_destination(self.new_directory())?;
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
    fn enter_destination(&mut self, new: NewDirectory) -> Result<LayerPath, CopyError> {
        let landing = land(&self.image(), &self.destination.path)?;
        self.plan.ensure_directory(self.below, &landing.path, new)?;
        Ok(landing.path)
    }

    /// The image as it is with what has been planned.
    fn image(&self) -> Over<'_> {
        self.plan.over(self.below)
    }

    fn put(&mut self, path: LayerPath, mut node: SourceNode) -> Result<(), CopyError> {
        if let (Some(change), false) = (&self.rules.mode, matches!(node.kind, EntryKind::Symlink { .. })) {
            node.mode = change.apply(node.mode, node.is_directory());
        }
        let owner = self.rules.owner.or(node.owner).unwrap_or((0, 0));
        Ok(self.plan.put(self.below, path, node, owner)?)
    }

    /// How directories are made that are missing on the way.
    fn new_directory(&self) -> NewDirectory {
        let mode = match self.rules.mode {
            Some(ModeChange::Set(mode)) => mode & 0o777,
            Some(ModeChange::Symbolic(_)) | None => NewDirectory::DEFAULT.mode,
        };
        NewDirectory { mode, owner: self.owner() }
    }

    fn owner(&self) -> (u64, u64) {
        self.rules.owner.unwrap_or(NewDirectory::DEFAULT.owner)
    }
}
