//! Everything below a directory of a tree, as far as it is wanted: the one walk of COPY, bind mounts and bases.
//!
//! A directory that is not wanted itself is met when something in it is, and just before that. Links are met as links.

use std::io;

use rimg_formats::layer::{EntryKind, LayerPath};

use crate::ignore::{IgnorePatterns, Inherited};
use crate::layer_plan::children_of_all;
use crate::source_tree::{SourceNode, SourceTree, land};

/// What of a directory is wanted: all, unless patterns say otherwise. They speak about the way from the directory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// What is matched, and what is in it; everything when there are none.
    pub(crate) included: Option<&'a IgnorePatterns>,
    /// What is not wanted nevertheless.
    pub(crate) excluded: Option<&'a IgnorePatterns>,
    /// A directory that is asked for by its names: links on the way to it are gone through.
    pub(crate) by_name: Option<&'a LayerPath>,
}

/// Something that a walk meets.
#[derive(Debug)]
pub(crate) struct Found {
    /// The way to it from where the walk began.
    pub(crate) inside: LayerPath,
    /// What it is.
    pub(crate) node: SourceNode,
    /// Whether it is there only because something in it is wanted.
    pub(crate) on_the_way: bool,
}

/// A directory whose contents are still to be looked at.
struct Directory {
    path: LayerPath,
    inside: LayerPath,
    included: Inherited,
    excluded: Inherited,
    /// The nearest directory, this one or above, that has not been met, in [`Walk::unmet`].
    unmet: Option<usize>,
}

/// A directory that is met when something in it is.
struct Unmet {
    above: Option<usize>,
    found: Option<Found>,
}

struct Walk<'a, F> {
    tree: &'a dyn SourceTree,
    wanted: Wanted<'a>,
    unmet: Vec<Unmet>,
    waiting: Vec<Directory>,
    meet: F,
}

/// Walks through everything below the directory `from`; directories come before what is in them.
pub(crate) fn walk<E: From<io::Error>>(
    tree: &dyn SourceTree,
    from: &LayerPath,
    wanted: Wanted<'_>,
    meet: impl FnMut(Found) -> Result<(), E>,
) -> Result<(), E> {
    let start = Directory {
        path: from.clone(),
        inside: LayerPath::root(),
        included: Inherited::default(),
        excluded: Inherited::default(),
        unmet: None,
    };
    let mut walk = Walk { tree, wanted, unmet: Vec::new(), waiting: vec![start], meet };
    // No recursion: directories of strangers may be nested as deep as a path goes.
    while !walk.waiting.is_empty() {
        let directories = std::mem::take(&mut walk.waiting);
        for (directory, children) in children_of_all(tree, directories, |directory| &directory.path) {
            for (name, node) in children? {
                walk.child(&directory, &name, node)?;
            }
        }
    }
    Ok(())
}

impl<E: From<io::Error>, F: FnMut(Found) -> Result<(), E>> Walk<'_, F> {
    fn child(&mut self, parent: &Directory, name: &[u8], mut node: SourceNode) -> Result<(), E> {
        let inside = parent.inside.join(name).map_err(io::Error::other)?;
        let Wanted { included, excluded, .. } = self.wanted;
        let text = match (included, excluded) {
            (None, None) => String::new(),
            _ => String::from_utf8_lossy(inside.as_bytes()).into_owned(),
        };
        let hands_down = !matches!(node.kind, EntryKind::Regular { .. });
        let enter = |patterns: Option<&IgnorePatterns>, above: &Inherited| match patterns {
            Some(patterns) if hands_down => patterns.enter(&text, above),
            Some(patterns) => (patterns.matches(&text, above), Inherited::default()),
            None => (false, Inherited::default()),
        };
        let (matched, includes_down) = enter(included, &parent.included);
        let (is_excluded, excludes_down) = enter(excluded, &parent.excluded);
        let wanted = (matched || included.is_none()) && !is_excluded && !node.excluded;
        if wanted && !node.is_directory() {
            return self.meet(parent, Found { inside, node, on_the_way: false });
        }
        let mut path = parent.path.join(name).map_err(io::Error::other)?;
        if !wanted && self.leads_on(&inside, &node) {
            let landing = land(self.tree, &path)?;
            if let Some(directory) = landing.node.filter(SourceNode::is_directory) {
                (path, node) = (landing.path, directory);
            }
        }
        if !node.is_directory() {
            return Ok(());
        }
        let more_below = |patterns: Option<&IgnorePatterns>, negated| {
            patterns.is_none_or(|patterns| patterns.may_match_below(&text, negated))
        };
        if (!matched && !more_below(included, false)) || (is_excluded && !more_below(excluded, true)) {
            return Ok(());
        }
        let found = Found { inside: inside.clone(), node, on_the_way: !wanted };
        let unmet = if wanted {
            self.meet(parent, found)?;
            None
        } else {
            self.unmet.push(Unmet { above: parent.unmet, found: Some(found) });
            Some(self.unmet.len() - 1)
        };
        self.waiting.push(Directory {
            path,
            inside,
            included: includes_down,
            excluded: excludes_down,
            unmet,
        });
        Ok(())
    }

    /// Whether `inside` is a link on the way to what is asked for by name.
    fn leads_on(&self, inside: &LayerPath, node: &SourceNode) -> bool {
        let is_link = matches!(node.kind, EntryKind::Symlink { .. });
        is_link && self.wanted.by_name.is_some_and(|name| name.starts_with(inside))
    }

    /// Meets what is in `parent`, and before it the directories above that have not been met.
    fn meet(&mut self, parent: &Directory, found: Found) -> Result<(), E> {
        let mut above = Vec::new();
        let mut at = parent.unmet;
        while let Some(directory) = at.map(|at| &mut self.unmet[at]) {
            let Some(unmet) = directory.found.take() else { break };
            above.push(unmet);
            at = directory.above;
        }
        above.into_iter().rev().try_for_each(&mut self.meet)?;
        (self.meet)(found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
