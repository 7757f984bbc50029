//! [`Changes`]: what a container changed, read back from its overlay's upper directory as layer entries.
//!
//! Whiteouts (character device 0/0) and opaque directories become the layer's; overlayfs's own attributes do not
//! show; sockets, which no layer can hold, are left out. So is what was copied up without having been changed: opening
//! a file for writing, or changing a sibling, is no change. What there was before is read in the merged tree of the
//! layers, so that it costs the same however many these are; a file's content is compared by its digest.
//!
//! The upper directory may be deeper than there are stack, open files, or bytes in a path for: it is walked with a
//! list, one directory open at a time.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use rimg_formats::digest::{Algorithm, DigestWriter};
use rimg_formats::layer::{
    Entry, EntryKind, LayerPath, MergedTree, Mtime, Node, is_image_xattr, layer_order,
};
use rimg_formats::root_dir::{Directory, RootDir};
use rimg_formats::sparse_file::SparseFile;
use rustix::fs::{FileType, OFlags, Stat};

use super::Owners;
use super::apply::opaque;

/// Attributes that are overlayfs's notes or the host's policy, and no part of an image.
const FOREIGN_XATTRS: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];

/// The changes in one upper directory, in layer order.
#[derive(Debug)]
pub struct Changes {
    upper: RootDir,
    /// What changed; every directory above a change is among them.
    pub entries: Vec<Entry>,
    /// Paths on disk whose times are set when the tree becomes a snapshot.
    stamped: Vec<LayerPath>,
    /// Paths on disk that are no part of the layer, those above others first.
    superfluous: Vec<LayerPath>,
    /// The regular files among them with their times: one that was written anew with the same content has another time
    /// than what lies below.
    pub kept: Vec<(LayerPath, Mtime)>,
}

/// A directory of the upper one.
struct Folder {
    path: LayerPath,
    /// Which of the list is above it.
    above: usize,
    entry: Option<Entry>,
    hides: bool,
    /// It, or something in or below it, changed.
    changed: bool,
}

/// Reading one upper directory.
struct Reading<'b> {
    upper: RootDir,
    below: &'b MergedTree,
    /// Whom all files of the layers below were given to, if to one.
    owner: Option<(u64, u64)>,
    ignored: &'b [LayerPath],
    folders: Vec<Folder>,
    /// Entries that are no directories; where a file has several names, with what tells it.
    leaves: Vec<(Entry, Option<(u64, u64)>)>,
    stamped: Vec<LayerPath>,
    superfluous: Vec<LayerPath>,
    kept: Vec<(LayerPath, Mtime)>,
}

impl Changes {
    /// Reads the upper directory `upper` of an overlay over layers that make the tree `below` and are unpacked for
    /// `owners`. Paths in `ignored` are left out when nothing but an empty file or directory is there: mount points
    /// that the sandbox made.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn read(
        upper: &Path,
        below: &MergedTree,
        owners: Owners,
        ignored: &[LayerPath],
    ) -> io::Result<Changes> {
        let caller = || {
            let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
            (u64::from(user.as_raw()), u64::from(group.as_raw()))
        };
        let top = Folder { path: LayerPath::root(), above: 0, entry: None, hides: false, changed: false };
        let mut reading = Reading {
            upper: RootDir::open(upper)?,
            below,
            owner: (owners == Owners::Squash).then(caller),
            ignored,
            folders: vec![top],
            leaves: Vec::new(),
            stamped: Vec::new(),
            superfluous: Vec::new(),
            kept: Vec::new(),
        };
        let mut next = 0;
        while next < reading.folders.len() {
            reading.folder(next)?;
            next += 1;
        }
        Ok(reading.finish())
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Opens the content of a regular file among the entries.
    ///
    /// # Errors
    /// Those of opening it; a link in its place is refused.
    pub fn open(&self, entry: &Entry) -> io::Result<SparseFile> {
        let (parent, name) = self.upper.parent_of(&entry.path)?;
        open(&parent, name)
    }

    /// Removes from the upper directory what the layer written from it does not have: copies of what did not change,
    /// sockets, whiteouts of nothing.
    pub(super) fn remove_superfluous(&self) -> io::Result<()> {
        self.superfluous.iter().try_for_each(|path| self.upper.remove_tree(path))
    }

    /// Sets the time of everything in the upper directory, as the layer written from it has it.
    pub(super) fn set_times(&self, mtime: Mtime) -> io::Result<()> {
        for path in &self.stamped {
            let (parent, name) = self.upper.parent_of(path)?;
            parent.set_mtime(name, mtime)?;
        }
        Ok(())
    }
}

impl Reading<'_> {
    /// Reads what is in the directory with this number; those in it are put at the end of the list.
    fn folder(&mut self, number: usize) -> io::Result<()> {
        let above = self.folders[number].path.clone();
        let folder = self.upper.directory(&above)?;
        for name in folder.names()? {
            let stat = folder.stat(&name)?;
            let path = above.join(&name).map_err(|error| {
                let (above, name) = (above.to_string(), String::from_utf8_lossy(&name).into_owned());
                io::Error::new(io::ErrorKind::InvalidFilename, format!("`{above}/{name}`: {error}"))
            })?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if self.ignored.contains(&path) && is_stub(&folder, &name, &stat)? {
                self.superfluous.push(path);
                continue;
            }
            if kind == FileType::Directory {
                self.subfolder(number, path, &folder, &name, &stat)?;
            } else if kind != FileType::Socket && self.leaf(&path, &folder, &name, &stat)? {
                self.folders[number].changed = true;
                // Whiteouts have no time that anybody could see, and their owner may not let us set it.
                if kind != FileType::CharacterDevice {
                    self.stamped.push(path);
                }
            } else {
                if kind == FileType::RegularFile {
                    self.kept.push((path.clone(), mtime(&stat)));
                }
                self.superfluous.push(path);
            }
        }
        Ok(())
    }

    fn subfolder(
        &mut self,
        above: usize,
        path: LayerPath,
        folder: &Directory,
        name: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        let is_opaque = folder.xattr(name, opaque())?.is_some_and(|value| value == b"y");
        let entry = entry(&path, EntryKind::Directory, folder, name, stat)?;
        let lower = self.lower(&path);
        // An opaque directory hides nothing unless there is one below it; a new directory is often marked all the same.
        let hides = is_opaque && lower.is_some();
        let same = !hides && lower.is_some_and(|node| self.is_same(node, &entry));
        self.folders.push(Folder { path, above, entry: Some(entry), hides, changed: !same });
        Ok(())
    }

    /// Reads anything but a directory; whether it is a change.
    fn leaf(&mut self, path: &LayerPath, folder: &Directory, name: &[u8], stat: &Stat) -> io::Result<bool> {
        let kind = kind_of(folder, name, stat)?;
        if kind == EntryKind::Whiteout {
            // Removing what only this container had made leaves a whiteout of nothing.
            let removes = self.lower(path).is_some();
            if removes {
                self.leaves.push((Entry::new(path.clone(), EntryKind::Whiteout, 0), None));
            }
            return Ok(removes);
        }
        let entry = entry(path, kind, folder, name, stat)?;
        let several = stat.st_nlink > 1 && !matches!(entry.kind, EntryKind::Symlink { .. });
        if stat.st_nlink == 1 && self.is_unchanged(&entry, folder, name)? {
            return Ok(false);
        }
        self.leaves.push((entry, several.then_some((stat.st_dev, stat.st_ino))));
        Ok(true)
    }

    /// What the layers below have at `path`; hard links are their file.
    fn lower(&self, path: &LayerPath) -> Option<Node<'_>> {
        let node = self.below.lookup(path)?;
        Some(self.below.link_source(node).unwrap_or(node))
    }

    /// Whether the layers below have the very same: attributes and content, the time aside.
    fn is_unchanged(&self, entry: &Entry, folder: &Directory, name: &[u8]) -> io::Result<bool> {
        let Some(node) = self.lower(&entry.path).filter(|node| self.is_same(*node, entry)) else {
            return Ok(false);
        };
        if !matches!(entry.kind, EntryKind::Regular { .. }) {
            return Ok(true);
        }
        let Some(content) = node.entry.and_then(|entry| entry.content) else { return Ok(false) };
        let mut hash = DigestWriter::new(io::sink(), Algorithm::Sha256);
        io::copy(&mut open(folder, name)?, &mut hash)?;
        Ok(hash.finish().0 == content)
    }

    /// Whether a node is what `entry` says, content and time aside.
    fn is_same(&self, node: Node<'_>, entry: &Entry) -> bool {
        let owner = self.owner.unwrap_or_else(|| (node.uid(), node.gid()));
        // Links have permission bits in tars only.
        let mode = matches!(entry.kind, EntryKind::Symlink { .. }) || node.mode() == entry.mode;
        let none = BTreeMap::new();
        let xattrs = node.entry.map_or(&none, |entry| &entry.entry.xattrs);
        *node.kind() == entry.kind
            && mode
            && owner == (entry.uid, entry.gid)
            && image_xattrs(xattrs).eq(image_xattrs(&entry.xattrs))
    }

    fn finish(mut self) -> Changes {
        // Those above come before those in them, so that backwards what changed below is known.
        for at in (1..self.folders.len()).rev() {
            if self.folders[at].changed {
                let above = self.folders[at].above;
                self.folders[above].changed = true;
            }
        }
        let mut leaves = std::mem::take(&mut self.leaves);
        leaves.sort_by(|(left, _), (right, _)| layer_order(left, right));
        let mut first: HashMap<(u64, u64), LayerPath> = HashMap::new();
        let mut entries = Vec::with_capacity(leaves.len() + self.folders.len());
        for (mut entry, file) in leaves {
            if let Some(file) = file {
                let target = first.entry(file).or_insert_with(|| entry.path.clone());
                if *target != entry.path {
                    entry.kind = EntryKind::Hardlink { target: target.clone() };
                }
            }
            entries.push(entry);
        }
        for Folder { path, entry, hides, changed, .. } in self.folders {
            let Some(entry) = entry else { continue };
            if !changed {
                self.superfluous.push(path);
                continue;
            }
            if hides {
                entries.push(Entry { kind: EntryKind::OpaqueMarker, ..entry.clone() });
            }
            entries.push(entry);
            self.stamped.push(path);
        }
        entries.sort_by(layer_order);
        self.superfluous.sort();
        // In the order in which a walk would meet them.
        self.kept.sort();
        let Reading { upper, stamped, superfluous, kept, .. } = self;
        Changes { upper, entries, stamped, superfluous, kept }
    }
}

fn image_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
    xattrs.iter().filter(|(name, _)| is_image_xattr(name))
}

fn open(folder: &Directory, name: &[u8]) -> io::Result<SparseFile> {
    SparseFile::new(folder.open_file(name, OFlags::RDONLY | OFlags::NONBLOCK)?)
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
