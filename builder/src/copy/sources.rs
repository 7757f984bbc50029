//! The sources of COPY and ADD: paths and globs in a tree, and what to say when one is missing.

use std::fmt;
use std::io;

use rimg_formats::layer::{EntryKind, LayerPath};

use super::CopyError;
use super::destination::clean;
use crate::glob::{Glob, has_wildcards, without_escapes};
use crate::source_tree::{Landing, SourceNode, SourceTree, land};
use crate::suggest;
use crate::syntax::COMMENT_HELP;

/// Something that a source means.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    /// The path as the source names it: its last name is the file's name at the destination.
    pub(crate) name: LayerPath,
    /// The path with links followed: where it is read from.
    pub(crate) path: LayerPath,
    /// What is there.
    pub(crate) node: SourceNode,
}

/// A source that is a symbolic link, or leads through one, to nothing.
#[derive(Clone, Debug)]
pub(crate) struct BrokenLink {
    link: LayerPath,
    target: String,
    tree: String,
    cause: LinkCause,
}

/// Why a link leads nowhere.
#[derive(Clone, Copy, Debug)]
enum LinkCause {
    /// Nothing is where it leads.
    Absent,
    /// It leads out of the tree.
    Outside,
    /// What it leads to is left out of the tree.
    Excluded,
}

impl BrokenLink {
    /// What helps.
    pub(crate) fn advice(&self) -> String {
        match self.cause {
            LinkCause::Absent => format!("mend the link in {}, or name other files", self.tree),
            LinkCause::Outside => format!(
                "links are followed inside of {}: put the file there, or add its folder with `--build-context`",
                self.tree
            ),
            LinkCause::Excluded => "include it again by a line with `!` in .dockerignore".to_owned(),
        }
    }
}

impl fmt::Display for BrokenLink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` is a link to `{}`, which ", self.link, self.target)?;
        match self.cause {
            LinkCause::Absent => write!(formatter, "is not in {}", self.tree),
            LinkCause::Outside => write!(formatter, "is outside of {}", self.tree),
            LinkCause::Excluded => write!(formatter, "is excluded by .dockerignore"),
        }
    }
}

/// A source that means nothing.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    /// As written.
    pub(crate) pattern: String,
    /// Where it was looked for.
    pub(crate) tree: String,
    /// A name near to it.
    pub(crate) near: Option<String>,
    /// What the tree says about it, such as the `.dockerignore` rule that hides it.
    pub(crate) reason: Option<String>,
}

impl Missing {
    /// What helps, by what people mean who write such a path.
    pub(crate) fn advice(&self) -> Option<String> {
        let pattern = self.pattern.as_str();
        if pattern.starts_with('#') {
            return Some(COMMENT_HELP.to_owned());
        }
        if pattern.starts_with('[') {
            return Some(
                "the JSON form takes double quotes, commas and a closing `]`: `[\"a\", \"/b/\"]`".to_owned(),
            );
        }
        if pattern.starts_with('~') || pattern.contains("$(") || pattern.contains('`') {
            return Some("no shell reads this path: `~` and command substitution mean themselves".to_owned());
        }
        if pattern.split('/').any(|name| name == "..") {
            return Some(format!(
                "no path leads out of {}: build from a folder further up, or add a source with `--build-context`",
                self.tree
            ));
        }
        let from_root = pattern.strip_prefix('/')?;
        Some(format!("a path begins at the top of {}: this means `{from_root}` in it", self.tree))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` is not in {}", self.pattern, self.tree)
    }
}

/// What `pattern` means in `tree`, in the order of names. A glob may mean nothing; a plain path may not, nor may a link
/// of either, unless its name `is_excluded`.
pub(crate) fn find_sources(
    tree: &dyn SourceTree,
    pattern: &str,
    is_excluded: impl Fn(&LayerPath) -> bool,
) -> Result<Vec<Match>, CopyError> {
    let cleaned = clean(pattern.as_bytes())?;
    let text = String::from_utf8_lossy(cleaned.as_bytes()).into_owned();
    let is_glob = has_wildcards(&text);
    let names = if is_glob { expand(tree, &text)? } else { vec![plain(tree, cleaned)?] };
    let mut matches = Vec::new();
    for name in names {
        if let Some(Landing { path, node: Some(node), .. }) = land_source(tree, &name)? {
            matches.push(Match { name, path, node });
            continue;
        }
        match broken_link(tree, &name)? {
            Some(link) if link.link == name && is_excluded(&name) => {}
            Some(link) => return Err(CopyError::Broken(link)),
            // An excluded directory that turned out to hold nothing.
            None if is_glob => {}
            None => return Err(missing(tree, pattern, &name)?),
        }
    }
    Ok(matches)
}

/// A plain path as it is; when nothing has that name, with its backslashes taken for escapes.
fn plain(tree: &dyn SourceTree, path: LayerPath) -> Result<LayerPath, CopyError> {
    if !path.as_bytes().contains(&b'\\')
        || land_source(tree, &path)?.is_some_and(|found| found.node.is_some())
    {
        return Ok(path);
    }
    // Escapes are ASCII: where they stand does not depend on bytes that are no UTF-8.
    match std::str::from_utf8(path.as_bytes()) {
        Ok(text) => Ok(clean(without_escapes(text).as_bytes())?),
        Err(_) => Ok(path),
    }
}

/// Follows a path's links; a file where a directory should be means that nothing is there.
fn land_source(tree: &dyn SourceTree, path: &LayerPath) -> io::Result<Option<Landing>> {
    match land(tree, path) {
        Ok(landing) => Ok(Some(landing)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

/// The directories that `pattern` means in `tree`, links followed.
pub(super) fn find_directories(tree: &dyn SourceTree, pattern: &str) -> Result<Vec<LayerPath>, CopyError> {
    let cleaned = clean(pattern.as_bytes())?;
    let text = String::from_utf8_lossy(cleaned.as_bytes()).into_owned();
    if !has_wildcards(&text) {
        let found =
            find_sources(tree, pattern, |_| false)?.into_iter().filter(|found| found.node.is_directory());
        return Ok(found.map(|found| found.path).collect());
    }
    let mut directories = Vec::new();
    for name in expand(tree, &text)? {
        let landing = land_source(tree, &name)?;
        let is_directory = |landing: &Landing| landing.node.as_ref().is_some_and(SourceNode::is_directory);
        directories.extend(landing.filter(is_directory).map(|landing| landing.path));
    }
    Ok(directories)
}

/// The names that a glob matches, sorted. Links in front of the first wildcard are followed; from there on a link is no
/// directory to look into.
fn expand(tree: &dyn SourceTree, pattern: &str) -> Result<Vec<LayerPath>, CopyError> {
    let components: Vec<&str> = pattern.split('/').collect();
    let plain = components.iter().take_while(|component| !has_wildcards(component)).count();
    let head: Vec<String> = components[..plain].iter().map(|component| without_escapes(component)).collect();
    let head = LayerPath::parse(head.join("/"))?;
    let Some(Landing { path, node: Some(_), .. }) = land_source(tree, &head)? else {
        return broken_link(tree, &head)?.map_or(Ok(Vec::new()), |link| Err(CopyError::Broken(link)));
    };
    let mut found = vec![(head, path)];
    for component in &components[plain..] {
        let mut matched = Vec::new();
        for (name, path) in found {
            for child in children_matching(tree, &path, component)? {
                matched.push((name.join(&child)?, path.join(&child)?));
            }
        }
        found = matched;
    }
    let mut names: Vec<LayerPath> = found.into_iter().map(|(name, _)| name).collect();
    names.sort();
    Ok(names)
}

/// The names in the directory at `path` that one component of a pattern matches; none when it is no directory.
fn children_matching(
    tree: &dyn SourceTree,
    path: &LayerPath,
    component: &str,
) -> Result<Vec<Vec<u8>>, CopyError> {
    if !tree.lookup(path)?.is_some_and(|node| node.is_directory()) {
        return Ok(Vec::new());
    }
    if !has_wildcards(component) {
        let name = without_escapes(component);
        return Ok(Vec::from_iter(tree.lookup(&path.join(&name)?)?.map(|_| name.into_bytes())));
    }
    let matcher = Glob::parse(component, false).map_err(|error| CopyError::Pattern(error.to_string()))?;
    let names = tree.children(path)?.into_iter().map(|(name, _)| name);
    Ok(names.filter(|name| matcher.matches(&String::from_utf8_lossy(name))).collect())
}

/// The first link of `path` that leads nowhere.
fn broken_link(tree: &dyn SourceTree, path: &LayerPath) -> io::Result<Option<BrokenLink>> {
    let mut link = LayerPath::root();
    for name in path.components() {
        let Some(Landing { path: directory, node: Some(node), .. }) = land_source(tree, &link)? else {
            break;
        };
        link = link.join(name).map_err(io::Error::other)?;
        if !node.is_directory() {
            break;
        }
        let found = tree.lookup(&directory.join(name).map_err(io::Error::other)?)?;
        let Some(EntryKind::Symlink { target }) = found.map(|found| found.kind) else { continue };
        let landing = land_source(tree, &link)?;
        if landing.as_ref().is_some_and(|landing| landing.node.is_some()) {
            continue;
        }
        let hidden = landing.as_ref().and_then(|landing| tree.explain_missing(&landing.path)).is_some();
        let cause = match landing {
            _ if hidden => LinkCause::Excluded,
            Some(landing) if landing.from_root && tree.is_cut_out() => LinkCause::Outside,
            _ => LinkCause::Absent,
        };
        let target = String::from_utf8_lossy(&target).into_owned();
        return Ok(Some(BrokenLink { link, target, tree: tree.describe(), cause }));
    }
    Ok(None)
}

/// What can be said about a path that is not there.
pub(crate) fn missing(
    tree: &dyn SourceTree,
    pattern: &str,
    path: &LayerPath,
) -> Result<CopyError, CopyError> {
    if let Some(link) = broken_link(tree, path)? {
        return Ok(CopyError::Broken(link));
    }
    let reason = tree.explain_missing(path);
    // What is left out is there: the name is no slip.
    let near = if reason.is_none() { nearest_name(tree, path)? } else { None };
    Ok(CopyError::Missing(Missing { pattern: pattern.to_owned(), tree: tree.describe(), near, reason }))
}

/// A path that differs from `path` by a slip of the finger in its last name, or lies deeper by the same name.
fn nearest_name(tree: &dyn SourceTree, path: &LayerPath) -> io::Result<Option<String>> {
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else { return Ok(None) };
    let Some(Landing { path: directory, node: Some(node), .. }) = land_source(tree, &parent)? else {
        return Ok(None);
    };
    if !node.is_directory() {
        return Ok(None);
    }
    let names: Vec<String> =
        tree.children(&directory)?.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok()).collect();
    let wanted = String::from_utf8_lossy(name);
    let near = suggest::nearest(&wanted, names.iter().map(String::as_str));
    Ok(near.and_then(|near| parent.join(near).ok()).map(|near| near.to_string()))
}
