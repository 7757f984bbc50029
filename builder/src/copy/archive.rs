//! ADD of an archive: it is unpacked onto the image as tar would, what it brings wins.
//!
//! - Something else takes a directory's place with all that was in it, and a directory that of something else.
//! - A directory of the archive goes where the image has a link to one: bases link `/lib` to `/usr/lib`, and archives
//!   bring files for either. BuildKit replaces the link where the archive has an entry for the directory.
//! - A directory without an entry of its own has the attributes that the image gives it, else it is root's, 0755.
//! - `--chown` holds for all entries, `--chmod` for none.

use rimg_formats::layer::{EntryKind, LayerPath};

use super::{CopyError, CopyPlanner};
use crate::layer_plan::NewDirectory;
use crate::layer_tree::LayerTree;
use crate::source_tree::{SourceNode, SourceTree, land};

impl CopyPlanner<'_> {
    /// Plans everything in an archive below the destination. The archive's own root has no say.
    pub(crate) fn add_archive(&mut self, archive: &LayerTree) -> Result<(), CopyError> {
        self.plan.begin_source();
        let new = NewDirectory { owner: self.owner(), ..NewDirectory::DEFAULT };
        let destination = self.enter_destination(new)?;
        let mut waiting = vec![(LayerPath::root(), destination.clone())];
        while let Some((from, target)) = waiting.pop() {
            for (name, node) in archive.children(&from)? {
                let (path, source) = (target.join(&name)?, from.join(&name)?);
                match node.kind {
                    EntryKind::Directory => {
                        let path = self.unpack_directory(path, node, archive.is_implied(&source))?;
                        waiting.push((source, path));
                    }
                    EntryKind::Hardlink { ref target } => {
                        let linked = self.linked(archive, &source, &destination, target)?;
                        self.unpack(path, linked)?;
                    }
                    _ => self.unpack(path, node)?,
                }
            }
        }
        Ok(())
    }

    /// Plans a directory of an archive; returns where it is.
    fn unpack_directory(
        &mut self,
        path: LayerPath,
        node: SourceNode,
        is_implied: bool,
    ) -> Result<LayerPath, CopyError> {
        let landing = land(&self.image(), &path);
        let existing =
            landing.ok().filter(|landing| landing.node.as_ref().is_some_and(SourceNode::is_directory));
        match existing {
            Some(existing) if is_implied || existing.path != path => {
                self.plan.ensure_directory(self.below, &existing.path, NewDirectory::DEFAULT)?;
                Ok(existing.path)
            }
            None if is_implied => {
                self.plan.replace(self.below, path.clone(), node, NewDirectory::DEFAULT.owner)?;
                Ok(path)
            }
            _ => {
                self.unpack(path.clone(), node)?;
                Ok(path)
            }
        }
    }

    fn unpack(&mut self, path: LayerPath, node: SourceNode) -> Result<(), CopyError> {
        let owner = self.rules.owner.or(node.owner).unwrap_or((0, 0));
        Ok(self.plan.replace(self.below, path, node, owner)?)
    }

    /// What the hard link at `path` of an archive means whose target is not in the archive: a file of the image.
    fn linked(
        &self,
        archive: &LayerTree,
        path: &LayerPath,
        destination: &LayerPath,
        target: &LayerPath,
    ) -> Result<SourceNode, CopyError> {
        let found = self.image().lookup(&destination.join(target.as_bytes())?)?;
        found.filter(|node| !node.is_directory()).ok_or_else(|| CopyError::Archive {
            name: archive.describe(),
            reason: format!("`{path}` is a hard link to `{target}`, which is neither in it nor in the image"),
        })
    }
}
