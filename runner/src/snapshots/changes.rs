//! [`Changes`]: what a container changed, read back from its overlay's upper directory as layer entries.
//!
//! Whiteouts (character device 0/0) and opaque directories become the layer's; overlayfs's own attributes do not
//! show; sockets, which no layer can hold, are left out. So is what was copied up without having been changed: opening
//! a file for writing, or changing a sibling, is no change.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rimg_formats::layer::{Entry, EntryKind, LayerPath, Mtime, layer_order};
use rimg_formats::root_dir::{Directory, RootDir};
use rustix::fs::{FileType, OFlags, Stat};

use super::apply::opaque;

/// Attributes that are overlayfs's notes or the host's policy, and no part of an image.
const FOREIGN_XATTRS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];
/// Bytes compared at once.
const COMPARE_BYTES: usize = 64 << 10;

/// The changes in one upper directory, in layer order.
#[derive(Debug)]
pub struct Changes {
    upper: RootDir,
    lowers: Vec<RootDir>,
    /// What changed; every directory above a change is among them.
    pub entries: Vec<Entry>,
    /// Paths on disk whose times are set when the tree becomes a snapshot, directories after what they contain.
    stamped: Vec<LayerPath>,
    /// Paths on disk that are no change, though they lie in the upper directory.
    unchanged: Vec<LayerPath>,
    /// The regular files among them with their times: one that was written anew with the same content has another time
    /// than what lies below.
    pub kept: Vec<(LayerPath, Mtime)>,
}

impl Changes {
    /// Reads the upper directory `upper` of an overlay over `lowers`, the lowest first. Paths in `ignored` are left
    /// out when nothing but an empty file or directory is there: mount points that the sandbox made.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn read(upper: &Path, lowers: &[PathBuf], ignored: &[LayerPath]) -> io::Result<Changes> {
        let lowers = lowers.iter().rev().map(|lower| RootDir::open(lower)).collect::<io::Result<Vec<_>>>()?;
        let mut changes = Changes {
            upper: RootDir::open(upper)?,
            lowers,
            entries: Vec::new(),
            stamped: Vec::new(),
            unchanged: Vec::new(),
            kept: Vec::new(),
        };
        let mut links = HashMap::new();
        changes.directory(&LayerPath::root(), ignored, &mut links)?;
        changes.entries.sort_by(layer_order);
        Ok(changes)
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Opens the content of a regular file among the entries.
    ///
    /// # Errors
    /// Those of opening it; a link in its place is refused.
    pub fn open(&self, entry: &Entry) -> io::Result<File> {
        let (parent, name) = self.upper.parent_of(&entry.path)?;
        parent.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// Sets the time of everything in the upper directory, as the layer written from it has it.
    pub(super) fn set_times(&self, mtime: Mtime) -> io::Result<()> {
        for path in &self.stamped {
            let (parent, name) = self.upper.parent_of(path)?;
            parent.set_mtime(name, mtime)?;
        }
        Ok(())
    }

    /// Removes from the upper directory what was copied up without having been changed: it would cover what the layers
    /// below have, with times of its own.
    pub(super) fn remove_unchanged(&self) -> io::Result<()> {
        for path in &self.unchanged {
            let (parent, name) = self.upper.parent_of(path)?;
            parent.remove(name)?;
        }
        Ok(())
    }

    /// Reads one directory; true when anything in or below it changed.
    fn directory(
        &mut self,
        path: &LayerPath,
        ignored: &[LayerPath],
        links: &mut HashMap<(u64, u64), LayerPath>,
    ) -> io::Result<bool> {
        let folder = self.upper.directory(path)?;
        let mut changed = false;
        for name in folder.names()? {
            let stat = folder.stat(&name)?;
            let path = path.join(&name).map_err(io::Error::other)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if ignored.contains(&path) && is_stub(&folder, &name, &stat)? {
                self.unchanged.push(path);
                continue;
            }
            let is_change = match kind {
                FileType::Directory => self.subdirectory(&path, &folder, &name, &stat, ignored, links)?,
                FileType::Socket => false,
                _ => self.leaf(&path, &folder, &name, &stat, links)?,
            };
            changed |= is_change;
            if !is_change {
                if kind == FileType::RegularFile {
                    self.kept.push((path.clone(), mtime(&stat)));
                }
                self.unchanged.push(path);
            } else if kind != FileType::CharacterDevice {
                // Whiteouts have no time that anybody could see, and their owner may not let us set it.
                self.stamped.push(path);
            }
        }
        Ok(changed)
    }

    fn subdirectory(
        &mut self,
        path: &LayerPath,
        folder: &Directory,
        name: &[u8],
        stat: &Stat,
        ignored: &[LayerPath],
        links: &mut HashMap<(u64, u64), LayerPath>,
    ) -> io::Result<bool> {
        let is_opaque = folder.xattr(name, opaque())?.is_some_and(|value| value == b"y");
        let entry = entry(path, EntryKind::Directory, folder, name, stat)?;
        let below = self.directory(path, ignored, links)?;
        // An opaque directory hides nothing unless there is one below it; a new directory is often marked all the same.
        let hides = is_opaque && self.lower(path)?.is_some();
        let same = match self.lower(path)? {
            Some((parent, name)) if !hides => {
                let stat = parent.stat(&name)?;
                self::entry(path, kind_of(&parent, &name, &stat)?, &parent, &name, &stat)?
                    .same_but_time(&entry)
            }
            _ => false,
        };
        if same && !below {
            return Ok(false);
        }
        if hides {
            self.entries.push(Entry { kind: EntryKind::OpaqueMarker, ..entry.clone() });
        }
        self.entries.push(entry);
        Ok(true)
    }

    fn leaf(
        &mut self,
        path: &LayerPath,
        folder: &Directory,
        name: &[u8],
        stat: &Stat,
        links: &mut HashMap<(u64, u64), LayerPath>,
    ) -> io::Result<bool> {
        let kind = kind_of(folder, name, stat)?;
        if kind == EntryKind::Whiteout {
            // Removing what only this container had made leaves a whiteout of nothing.
            if self.lower(path)?.is_some() {
                self.entries.push(Entry::new(path.clone(), EntryKind::Whiteout, 0));
                return Ok(true);
            }
            return Ok(false);
        }
        let mut entry = entry(path, kind, folder, name, stat)?;
        if stat.st_nlink > 1 && !matches!(entry.kind, EntryKind::Symlink { .. }) {
            let first = links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            if first != path {
                entry.kind = EntryKind::Hardlink { target: first.clone() };
            }
        }
        if stat.st_nlink == 1 && self.is_unchanged(&entry, folder, name)? {
            return Ok(false);
        }
        self.entries.push(entry);
        Ok(true)
    }

    /// Whether the layers below have the very same: attributes and content, the time aside.
    fn is_unchanged(&self, entry: &Entry, folder: &Directory, name: &[u8]) -> io::Result<bool> {
        let Some((parent, below)) = self.lower(&entry.path)? else { return Ok(false) };
        let stat = parent.stat(&below)?;
        let other = self::entry(&entry.path, kind_of(&parent, &below, &stat)?, &parent, &below, &stat)?;
        if !other.same_but_time(entry) {
            return Ok(false);
        }
        if !matches!(entry.kind, EntryKind::Regular { .. }) {
            return Ok(true);
        }
        let open =
            |folder: &Directory, name: &[u8]| folder.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK);
        same_content(open(folder, name)?, open(&parent, &below)?)
    }

    /// What the stack of lowers has at `path`: the directory that holds it and its name there.
    fn lower(&self, path: &LayerPath) -> io::Result<Option<(Directory, Vec<u8>)>> {
        for lower in &self.lowers {
            match find(lower, path)? {
                Found::Here(parent, name) => return Ok(Some((parent, name))),
                Found::Hidden => return Ok(None),
                Found::Below => {}
            }
        }
        Ok(None)
    }
}

/// Where the search for a path in one layer of a stack ended.
enum Found {
    /// It is here.
    Here(Directory, Vec<u8>),
    /// This layer hides it from the layers below.
    Hidden,
    /// This layer says nothing of it.
    Below,
}

fn find(lower: &RootDir, path: &LayerPath) -> io::Result<Found> {
    let mut folder = lower.directory(&LayerPath::root())?;
    let mut hidden = false;
    let components: Vec<&[u8]> = path.components().collect();
    for (position, name) in components.iter().enumerate() {
        let stat = match folder.stat(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if hidden { Found::Hidden } else { Found::Below });
            }
            stat => stat?,
        };
        if kind_of(&folder, name, &stat)? == EntryKind::Whiteout {
            return Ok(Found::Hidden);
        }
        if position + 1 == components.len() {
            return Ok(Found::Here(folder, name.to_vec()));
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Found::Hidden);
        }
        hidden |= folder.xattr(name, opaque())?.is_some_and(|value| value == b"y");
        folder = folder.open_dir(name)?;
    }
    Ok(Found::Below)
}

/// An empty file or directory.
fn is_stub(folder: &Directory, name: &[u8], stat: &Stat) -> io::Result<bool> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Ok(folder.open_dir(name)?.names()?.is_empty()),
        FileType::RegularFile => Ok(stat.st_size == 0),
        _ => Ok(false),
    }
}

fn kind_of(folder: &Directory, name: &[u8], stat: &Stat) -> io::Result<EntryKind> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink { target: folder.read_link(name)? },
        FileType::Fifo => EntryKind::Fifo,
        FileType::CharacterDevice if (major, minor) == (0, 0) => EntryKind::Whiteout,
        FileType::CharacterDevice => EntryKind::CharDevice { major, minor },
        FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
        _ => EntryKind::Regular { size: u64::try_from(stat.st_size).unwrap_or(0) },
    })
}

fn entry(
    path: &LayerPath,
    kind: EntryKind,
    folder: &Directory,
    name: &[u8],
    stat: &Stat,
) -> io::Result<Entry> {
    let mut xattrs = BTreeMap::new();
    for key in folder.xattr_names(name)? {
        let foreign = FOREIGN_XATTRS.iter().any(|prefix| key.starts_with(prefix));
        if !foreign && let Some(value) = folder.xattr(name, &key)? {
            xattrs.insert(key, value);
        }
    }
    let mtime = mtime(stat);
    let (uid, gid) = (stat.st_uid.into(), stat.st_gid.into());
    Ok(Entry { path: path.clone(), kind, mode: stat.st_mode & 0o7777, uid, gid, mtime, xattrs })
}

fn mtime(stat: &Stat) -> Mtime {
    Mtime { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// Comparison of entries as layers see them.
trait SameButTime {
    fn same_but_time(&self, other: &Entry) -> bool;
}

impl SameButTime for Entry {
    fn same_but_time(&self, other: &Entry) -> bool {
        *self == Entry { mtime: self.mtime, ..other.clone() }
    }
}

fn same_content(mut left: File, mut right: File) -> io::Result<bool> {
    let mut buffers = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let count = left.read(&mut buffers.0)?;
        if count == 0 {
            return Ok(right.read(&mut buffers.1[..1])? == 0);
        }
        match right.read_exact(&mut buffers.1[..count]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            result => result?,
        }
        if buffers.0[..count] != buffers.1[..count] {
            return Ok(false);
        }
    }
}
