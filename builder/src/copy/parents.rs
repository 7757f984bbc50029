//! `COPY --parents`: a source keeps the directories in front of it.
//!
//! A source is `PIVOT/./PATTERN`, or a pattern alone, whose pivot is the tree's root. The pivot is a path or glob like
//! other sources, its links are followed. The pattern is one of `.dockerignore`: it is matched against the way from the
//! pivot and brings what is below a match as well; links that it matches are copied as links. `--exclude` speaks about
//! the way from the pivot, too.

use rimg_formats::layer::LayerPath;

use super::destination::clean;
use super::sources::{find_directories, missing};
use super::{CopyError, CopyPlanner};
use crate::glob::{has_wildcards, without_escapes};
use crate::ignore::IgnorePatterns;
use crate::source_tree::{SourceNode, SourceTree};
use crate::tree_walk::{Wanted, walk};

/// A source of `COPY --parents`.
#[derive(Debug)]
pub(crate) struct ParentsSource {
    written: String,
    /// The directories that the pivot means.
    pivots: Vec<LayerPath>,
    /// The pattern; `None` for everything.
    included: Option<IgnorePatterns>,
    /// The names of the pattern before the first wildcard.
    names: LayerPath,
    /// The directories among them.
    by_name: LayerPath,
    /// Whether it means one thing, which has to be there.
    is_plain: bool,
}

/// Resolves a source in `tree`.
pub(crate) fn find_with_parents(tree: &dyn SourceTree, written: &str) -> Result<ParentsSource, CopyError> {
    let (pivot, pattern) = written.split_once("/./").unwrap_or(("", written));
    let pivots = find_directories(tree, pivot)?;
    let pattern = clean(pattern.as_bytes())?;
    let text = String::from_utf8_lossy(pattern.as_bytes()).into_owned();
    let included = match pattern.is_root() {
        true => None,
        false => Some(IgnorePatterns::only(&text).map_err(|error| CopyError::Pattern(error.to_string()))?),
    };
    let plain = text.split('/').take_while(|name| !has_wildcards(name)).map(without_escapes);
    let names = LayerPath::parse(plain.collect::<Vec<String>>().join("/"))?;
    let by_name = if has_wildcards(&text) { names.clone() } else { names.parent().unwrap_or_default() };
    let is_plain = !has_wildcards(pivot) && !has_wildcards(&text) && included.is_some();
    Ok(ParentsSource { written: written.to_owned(), pivots, included, names, by_name, is_plain })
}

impl CopyPlanner<'_> {
    /// Plans what a source of `--parents` means.
    pub(crate) fn add_with_parents(
        &mut self,
        tree: &dyn SourceTree,
        source: &ParentsSource,
    ) -> Result<(), CopyError> {
        if source.pivots.is_empty() && !source.is_plain {
            return Ok(());
        }
        let target = self.enter_destination(self.new_directory())?;
        let wanted = Wanted {
            included: source.included.as_ref(),
            excluded: self.rules.excludes.as_ref(),
            by_name: Some(&source.by_name),
        };
        let mut is_empty = true;
        for pivot in &source.pivots {
            self.plan.begin_source();
            walk(tree, pivot, wanted, |found| -> Result<(), CopyError> {
                is_empty = false;
                let path = target.join(found.inside.as_bytes())?;
                let existing = if found.on_the_way { self.image().lookup(&path)? } else { None };
                match existing.filter(SourceNode::is_directory) {
                    Some(_) => Ok(self.plan.ensure_directory(self.below, &path, self.new_directory())?),
                    None => self.put(path, found.node),
                }
            })?;
        }
        match is_empty && source.is_plain {
            true => Err(source.nothing(tree)?),
            false => Ok(()),
        }
    }
}

impl ParentsSource {
    /// Why a plain source brought nothing.
    fn nothing(&self, tree: &dyn SourceTree) -> Result<CopyError, CopyError> {
        let pivot = self.pivots.first().cloned().unwrap_or_default();
        let path = pivot.join(self.names.as_bytes())?;
        let parent = crate::source_tree::land(tree, &path.parent().unwrap_or_default())?;
        let is_there = match (parent.node.filter(SourceNode::is_directory), path.file_name()) {
            (Some(_), Some(name)) => tree.lookup(&parent.path.join(name)?)?.is_some(),
            _ => false,
        };
        if is_there {
            return Ok(CopyError::Excluded(self.written.clone()));
        }
        missing(tree, &self.written, &path)
    }
}
