//! The times of files that are not those of their layers: what an earlier step touched, and what a step must see as new
//! beside a cache mount, because the cache has seen other content.
//!
//! Files of layers and of mounts that were made here have logical times ([`super::clock`]), which are earlier than all
//! that a cache holds. That is right as long as they are what they were when the cache was used last. Those that are
//! not ([`super::seen`]) are shown with a real time: of layers by copies in a directory on top, of bind mounts by
//! copying the mount. Only these files are copied.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;

use rimg_formats::digest::Digest;
use rimg_formats::layer::{EntryKind, LayerPath, MergedTree, Mtime, MtimePolicy, Node};

use super::clock::LayerTimes;
use super::mounts::MountPlan;
use super::seen::{Short, Sight};
use super::workspace::RunWorkspace;
use crate::engine::{Build, StageRun};
use crate::layer_plan::{LayerPlan, NewDirectory, PlannedEntry};
use crate::materialise::materialise;
use crate::source_tree::SourceTree;

/// Nanoseconds from one layer to the next, where both have changed.
const LAYER_STEP_NS: i64 = 1000;

/// Times that are not the files' own.
#[derive(Debug, Default)]
pub(super) struct Renewed {
    /// To be put on top of the layers.
    pub(super) top: Option<PathBuf>,
    /// What lies there with which time.
    files: BTreeMap<LayerPath, Mtime>,
    /// Of the mount of this number, the time of each entry.
    pub(super) binds: BTreeMap<usize, Vec<Mtime>>,
}

impl Renewed {
    /// The files among `kept` that have another time than the step saw: they were written anew. None where files keep
    /// their own times, or when there are more than anybody means to touch.
    pub(super) fn touched(
        &self,
        tree: &MergedTree,
        times: &LayerTimes,
        kept: &[(LayerPath, Mtime)],
    ) -> Vec<LayerPath> {
        if times.next_time().is_none() {
            return Vec::new();
        }
        let is_touched = |(path, found): &&(LayerPath, Mtime)| {
            let seen = self.files.get(path).copied().or_else(|| layer_time(tree, times, path));
            seen.is_some_and(|seen| seen != *found)
        };
        let mut touched: Vec<LayerPath> =
            kept.iter().filter(is_touched).map(|(path, _)| path.clone()).collect();
        touched.sort();
        if touched.len() > TOUCHED_MAX { Vec::new() } else { touched }
    }
}

/// Files that one step may touch: each is copied for every later step.
const TOUCHED_MAX: usize = 4096;

/// The time at which a step sees what a layer has at `path`.
fn layer_time(tree: &MergedTree, times: &LayerTimes, path: &LayerPath) -> Option<Mtime> {
    let node = tree.lookup(path)?;
    let clocked = times.clocked.get(node.layer?).copied().flatten();
    let source = tree.link_source(node).unwrap_or(node);
    Some(clocked.map_or(source.mtime(), |secs| Mtime { secs, nanos: 0 }))
}

/// Works out the times for a step written as `text`, and makes the copies of what lies in layers.
pub(super) fn renew(
    stage: &StageRun<'_>,
    text: &str,
    times: &LayerTimes,
    mounts: &MountPlan,
    workspace: &RunWorkspace,
) -> io::Result<Renewed> {
    let Some(next) = times.next_time() else { return Ok(Renewed::default()) };
    let mut renewed = Renewed::default();
    for bind in mounts.binds().filter(|bind| bind.is_of_layers) {
        renewed.binds.insert(bind.number, vec![next; bind.entries.len()]);
    }
    let tree = stage.tree.merged();
    for (path, (secs, layers)) in &times.touched {
        // A later step may have written it, or removed it.
        if tree.lookup(path).is_some_and(|node| node.layer.is_some_and(|layer| layer < *layers)) {
            renewed.files.insert(path.clone(), Mtime { secs: *secs, nanos: 0 });
        }
    }
    if mounts.has_caches() {
        beside_caches(stage, text, times, mounts, &mut renewed)?;
    }
    if !renewed.files.is_empty() {
        let directory = workspace.renewed()?;
        let entries = copies(stage, &renewed.files, times)?;
        materialise(&entries, &directory, MtimePolicy::Preserve)?;
        renewed.top = Some(directory);
    }
    Ok(renewed)
}

/// Adds the times of what the caches have not seen as it is.
fn beside_caches(
    stage: &StageRun<'_>,
    text: &str,
    times: &LayerTimes,
    mounts: &MountPlan,
    renewed: &mut Renewed,
) -> io::Result<()> {
    let tree = stage.tree.merged();
    let next = times.next_time().unwrap_or_default();
    let (paths, mut sights) = layer_sights(tree, times);
    let mut places = Vec::new();
    for bind in mounts.binds() {
        let own = bind_sights(stage.build, &bind)?;
        places.push((bind.number, sights.len()));
        sights.extend(own);
    }
    let shown = mounts.look(stage.build, &sights, slot(text))?;
    for ((number, start), bind) in places.into_iter().zip(mounts.binds()) {
        let shown = &shown[start..start + bind.entries.len()];
        if shown.iter().any(Option::is_some) {
            let own = |entry: &PlannedEntry| if bind.is_of_layers { next } else { entry.entry.mtime };
            let times = bind.entries.iter().zip(shown).map(|(entry, ns)| ns.map_or(own(entry), mtime));
            renewed.binds.insert(number, times.collect());
        }
    }
    let changed = paths.iter().zip(shown).filter_map(|(path, ns)| Some(((*path).clone(), mtime(ns?))));
    renewed.files.extend(changed);
    Ok(())
}

/// What the clocked layers show, and their paths.
fn layer_sights<'t>(tree: &'t MergedTree, times: &LayerTimes) -> (Vec<&'t LayerPath>, Vec<Sight>) {
    let (mut paths, mut sights) = (Vec::new(), Vec::new());
    let layers = tree.layers();
    for (number, index) in layers.iter().enumerate().filter(|(number, _)| times.clocked[*number].is_some()) {
        for entry in index.entries.iter().filter(|entry| !entry.entry.is_marker() && !entry.path().is_root())
        {
            let path = entry.path();
            let Some(node) = tree.lookup(path).filter(|node| node.layer == Some(number)) else { continue };
            paths.push(path);
            sights.push(Sight {
                path: short(&[b"/", path.as_bytes()]),
                identity: identity(tree, path, node),
                real_ns: None,
                before_now_ns: (layers.len() - number) as i64 * LAYER_STEP_NS,
            });
        }
    }
    (paths, sights)
}

/// Digest of what a tree has at a path: of a file its content, of a directory the names in it.
fn identity(tree: &MergedTree, path: &LayerPath, node: Node<'_>) -> Short {
    match node.kind() {
        EntryKind::Directory => {
            let names = tree.read_dir(path).into_iter().flatten();
            let names: Vec<&[u8]> = names.flat_map(|(name, _)| [name, &b"/"[..]]).collect();
            short(&[b"d", &names.concat()])
        }
        EntryKind::Symlink { target } => short(&[b"l", target]),
        _ => {
            let source = tree.link_source(node).unwrap_or(node);
            match source.entry.and_then(|entry| entry.content) {
                Some(content) => first(&content),
                // Too large to be known by its content: it is what its layer is.
                None => match source.layer.and_then(|layer| tree.layers().get(layer)) {
                    Some(index) => short(&[b"?", index.diff_id.digest().as_bytes()]),
                    None => short(&[b"?"]),
                },
            }
        }
    }
}

/// What a bind mount shows.
pub(super) struct Bind<'m> {
    /// Its place among the step's mounts.
    pub(super) number: usize,
    /// Where it is mounted, absolute.
    pub(super) target: PathBuf,
    /// What is mounted; the first entry is its root.
    pub(super) entries: &'m [PlannedEntry],
    /// It comes from a stage or an image, so its files have no real times.
    pub(super) is_of_layers: bool,
}

fn bind_sights(build: &Build<'_>, bind: &Bind<'_>) -> io::Result<Vec<Sight>> {
    let mut entries = bind.entries.to_vec();
    let digests = build.maker.digests(&mut entries).map_err(io::Error::other)?;
    let mut names: HashMap<LayerPath, Vec<u8>> = HashMap::new();
    let mut files: HashMap<&LayerPath, Short> = HashMap::new();
    for planned in bind.entries {
        if let Some(parent) = planned.entry.path.parent() {
            let names = names.entry(parent).or_default();
            names.extend(planned.entry.path.file_name().unwrap_or_default());
            names.push(b'/');
        }
    }
    let mut sights = Vec::with_capacity(entries.len());
    for (planned, digest) in bind.entries.iter().zip(digests) {
        let entry = &planned.entry;
        let identity = match &entry.kind {
            EntryKind::Directory => short(&[b"d", names.get(&entry.path).map_or(&b""[..], Vec::as_slice)]),
            EntryKind::Symlink { target } => short(&[b"l", target]),
            EntryKind::Hardlink { target } => files.get(target).copied().unwrap_or_default(),
            _ => digest.map_or_else(|| short(&[b"?"]), |digest| first(&digest)),
        };
        files.insert(&entry.path, identity);
        let inside = entry.path.components().skip(1).fold(Vec::new(), |mut path, name| {
            path.push(b'/');
            path.extend(name);
            path
        });
        let real_ns = entry.mtime.secs.saturating_mul(1_000_000_000).saturating_add(entry.mtime.nanos.into());
        sights.push(Sight {
            path: short(&[bind.target.as_os_str().as_encoded_bytes(), &inside]),
            identity,
            real_ns: (!bind.is_of_layers).then_some(real_ns),
            before_now_ns: 0,
        });
    }
    Ok(sights)
}

/// The changed files of the layers with their new times, and the directories above them as they are.
fn copies(
    stage: &StageRun<'_>,
    changed: &BTreeMap<LayerPath, Mtime>,
    times: &LayerTimes,
) -> io::Result<Vec<PlannedEntry>> {
    let tree = &*stage.tree;
    let mut plan = LayerPlan::new();
    for path in changed.keys() {
        if let Some(parent) = path.parent() {
            let planned = plan.ensure_directory(tree, &parent, NewDirectory::DEFAULT);
            planned.map_err(io::Error::other)?;
        }
        if let Some(node) = tree.lookup(path)? {
            let owner = node.owner.unwrap_or((0, 0));
            plan.put_anew(path.clone(), node, owner)?;
        }
    }
    let mut entries = plan.into_entries();
    for planned in &mut entries {
        let entry = &mut planned.entry;
        let time = changed.get(&entry.path).copied();
        entry.mtime = time.or_else(|| layer_time(tree.merged(), times, &entry.path)).unwrap_or(entry.mtime);
    }
    Ok(entries)
}

fn slot(text: &str) -> u64 {
    let digest = Digest::sha256(text.as_bytes());
    digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn short(parts: &[&[u8]]) -> Short {
    first(&Digest::sha256(&parts.concat()))
}

fn first(digest: &Digest) -> Short {
    digest.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn mtime(ns: i64) -> Mtime {
    let nanos = u32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or_default();
    Mtime { secs: ns.div_euclid(1_000_000_000), nanos }
}
