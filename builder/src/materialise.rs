//! Planned entries as files in a directory: copies for bind mounts, and `--output type=local`.
//!
//! Every path goes through [`RootDir`]: the entries' names are an image's, or a stranger's context's.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use rimg_formats::layer::{Entry, EntryKind, LayerPath, Mtime, MtimePolicy};
use rimg_formats::root_dir::{Directory, RootDir, is_xattr_refusal};
use rimg_formats::sparse_file::{SparseFile, write_sparse};

use rustix::fs::FileType;

use crate::layer_plan::PlannedEntry;
use crate::layer_tree::prepare_sources;
use crate::output::Others;
use crate::source_tree::Content;

/// Makes the entries, which come in layer order and with their attributes read, in `directory`. Owners are kept as far as the caller may give files
/// away; devices are left out by those who may not make them.
pub(crate) fn materialise(entries: &[PlannedEntry], directory: &Path, times: MtimePolicy) -> io::Result<()> {
    prepare_sources(entries.iter().map(|planned| &planned.content))?;
    let root = RootDir::open(directory)?;
    make_all(&root, entries, &|_, _| Ok(()))?;
    finish_all(&root, entries, times)
}

/// As [`materialise`], over what is in `directory`: what is in an entry's way goes, and so do `others`, that no entry
/// names, if they are to be removed. A directory is kept for a directory; a link is never followed, whatever it stands
/// for, so nothing is written elsewhere.
pub(crate) fn materialise_over(
    entries: &[PlannedEntry],
    directory: &Path,
    times: MtimePolicy,
    others: Others,
) -> io::Result<()> {
    prepare_sources(entries.iter().map(|planned| &planned.content))?;
    let root = RootDir::open(directory)?;
    make_all(&root, entries, &make_way)?;
    if others == Others::Removed {
        // While directories can still be written to.
        remove_others(&root, entries)?;
    }
    finish_all(&root, entries, times)
}

/// What makes the place of an entry ready for it.
type Prepare = dyn Fn(&RootDir, &Entry) -> io::Result<()>;

fn make_all(root: &RootDir, entries: &[PlannedEntry], prepare: &Prepare) -> io::Result<()> {
    entries.iter().try_for_each(|planned| {
        let made = prepare(root, &planned.entry).and_then(|()| make(root, planned));
        made.map_err(|error| named(&planned.entry.path, &error))
    })
}

/// Backwards, so that making something in a directory does not change its time afterwards.
fn finish_all(root: &RootDir, entries: &[PlannedEntry], times: MtimePolicy) -> io::Result<()> {
    entries.iter().rev().try_for_each(|planned| {
        finish(root, &planned.entry, times).map_err(|error| named(&planned.entry.path, &error))
    })
}

/// Removes what is in an entry's way.
fn make_way(root: &RootDir, entry: &Entry) -> io::Result<()> {
    if entry.path.is_root() || entry.is_marker() {
        return Ok(());
    }
    let (parent, name) = root.parent_of(&entry.path)?;
    let stat = match parent.stat(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    match (is_directory, &entry.kind) {
        // It gets its mode in the end; until then its owner must be able to write to it.
        (true, EntryKind::Directory) => match parent.set_mode(name, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            other => other,
        },
        _ => parent.remove(name),
    }
}

/// Removes what no entry names.
fn remove_others(root: &RootDir, entries: &[PlannedEntry]) -> io::Result<()> {
    let wanted: BTreeSet<&LayerPath> = entries.iter().map(|planned| &planned.entry.path).collect();
    let is_directory = |planned: &&PlannedEntry| planned.entry.kind == EntryKind::Directory;
    let below = entries.iter().filter(is_directory).map(|planned| &planned.entry.path);
    let top = LayerPath::root();
    for directory in below.filter(|path| !path.is_root()).chain([&top]) {
        for name in root.directory(directory)?.names()? {
            // Whatever is no name of a layer is none that an entry has.
            let path = directory.join(&name);
            if !path.is_ok_and(|path| wanted.contains(&path)) {
                let removed = root.directory(directory)?.remove(&name);
                removed.map_err(|error| named(directory, &error))?;
            }
        }
    }
    Ok(())
}

fn named(path: &LayerPath, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{path}`: {error}"))
}

fn make(root: &RootDir, planned: &PlannedEntry) -> io::Result<()> {
    let entry = &planned.entry;
    if entry.path.is_root() {
        return Ok(());
    }
    let (parent, name) = root.parent_of(&entry.path)?;
    match &entry.kind {
        EntryKind::Directory => match parent.create_dir(name, 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        },
        EntryKind::Regular { size } => {
            let mut file = parent.create_file(name, 0o600)?;
            match &planned.content {
                Content::None => Ok(()),
                Content::Bytes(bytes) => io::Write::write_all(&mut file, bytes),
                Content::Disk(source) => write_sparse(&file, &mut SparseFile::new(source.open()?)?, *size),
                Content::Layer(source) => write_sparse(&file, &mut source.open()?, *size),
            }
        }
        EntryKind::Symlink { target } => parent.symlink(name, target),
        EntryKind::Hardlink { target } => {
            let (source, source_name) = root.parent_of(target)?;
            parent.hardlink(name, &source, source_name)
        }
        EntryKind::CharDevice { major, minor } => {
            make_device(&parent, name, FileType::CharacterDevice, *major, *minor)
        }
        EntryKind::BlockDevice { major, minor } => {
            make_device(&parent, name, FileType::BlockDevice, *major, *minor)
        }
        EntryKind::Fifo => parent.make_node(name, FileType::Fifo, 0o600, 0, 0),
        EntryKind::Whiteout | EntryKind::OpaqueMarker => Ok(()),
    }
}

fn make_device(parent: &Directory, name: &[u8], kind: FileType, major: u32, minor: u32) -> io::Result<()> {
    match parent.make_node(name, kind, 0o600, major, minor) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// Owner, mode, attributes and time, in the order in which none undoes another.
fn finish(root: &RootDir, entry: &Entry, times: MtimePolicy) -> io::Result<()> {
    if entry.path.is_root() || matches!(entry.kind, EntryKind::Hardlink { .. }) || entry.is_marker() {
        return Ok(());
    }
    let (parent, name) = root.parent_of(&entry.path)?;
    match apply(&parent, name, entry, times) {
        // A device that was left out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn apply(parent: &Directory, name: &[u8], entry: &Entry, times: MtimePolicy) -> io::Result<()> {
    let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
    match parent.set_owner(name, id(entry.uid)?, id(entry.gid)?) {
        // Ordinary users cannot give files away; ids outside of a user namespace's map are invalid in it.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {}
        other => other?,
    }
    if !matches!(entry.kind, EntryKind::Symlink { .. }) {
        for (key, value) in &entry.xattrs {
            match parent.set_xattr(name, key, value) {
                Err(error) if is_xattr_refusal(key, &error) => {}
                other => other?,
            }
        }
        parent.set_mode(name, entry.mode)?;
    }
    let time = match times {
        MtimePolicy::Fixed(epoch) => Mtime { secs: epoch.seconds(), nanos: 0 },
        MtimePolicy::Preserve => entry.mtime,
    };
    parent.set_mtime(name, time)
}
