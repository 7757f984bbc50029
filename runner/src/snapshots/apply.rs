//! A layer's entries as files in an overlay lower directory.
//!
//! Owns the translation into overlay form (overlayfs.rst, *whiteouts and opaque directories*) and the rules for
//! layers that contradict themselves:
//! - a later entry replaces an earlier one; a directory over a directory keeps its children;
//! - a parent that is no directory is replaced by one: nothing is ever written through a link;
//! - a whiteout concerns lower layers only: it never removes what this layer brings itself;
//! - overlay's own attributes and its whiteout device, shipped by an image, would forge overlay state: left out.
//!
//! What an unprivileged user cannot make (device nodes, other owners, some attributes) is left out and counted.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use rimg_formats::layer::{Entry, EntryKind, LayerPath, LayerReader, Limits};
use rimg_formats::root_dir::{Directory, RootDir, timestamps};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::SnapshotError;

/// The attribute that hides everything below a directory, in `userxattr` form.
const OPAQUE: &[u8] = b"user.overlay.opaque";

/// What could not be kept of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnpackReport {
    /// Device nodes that were not made.
    pub devices_skipped: u64,
    /// Files that belong to us because their owner's id is not mapped.
    pub owners_lost: u64,
    /// Extended attributes that could not be set.
    pub xattrs_skipped: u64,
}

/// Unpacks the layer `input` into the empty directory `root`.
pub(super) fn unpack(
    input: impl Read + Send,
    root: &RootDir,
    limits: Limits,
    layer: &str,
) -> Result<UnpackReport, SnapshotError> {
    let bad_layer = |source| SnapshotError::Layer { layer: layer.to_owned(), source };
    let mut reader = LayerReader::new(input, limits).map_err(bad_layer)?;
    let mut applier =
        Applier { root, directories: Vec::new(), hidden: BTreeSet::new(), report: UnpackReport::default() };
    while let Some(entry) = reader.next_entry().map_err(bad_layer)? {
        applier.apply(&entry, &mut reader).map_err(|source| SnapshotError::Entry {
            layer: layer.to_owned(),
            path: entry.path.as_bytes().to_vec(),
            source,
        })?;
    }
    applier.finish().map_err(|(path, source)| SnapshotError::Entry { layer: layer.to_owned(), path, source })
}

struct Applier<'r> {
    root: &'r RootDir,
    /// Directories whose attributes are set at the end, when nothing changes in them any more.
    directories: Vec<Entry>,
    /// Paths that a whiteout of this layer hides in the layers below.
    hidden: BTreeSet<LayerPath>,
    report: UnpackReport,
}

impl Applier<'_> {
    fn apply(&mut self, entry: &Entry, reader: &mut LayerReader<'_>) -> io::Result<()> {
        if entry.path.is_root() {
            return self.apply_root(entry);
        }
        let parent = entry.path.parent().unwrap_or_else(LayerPath::root);
        let name = entry.path.split_name().1;
        let directory = self.parent(&parent)?;
        let existing = kind_of(&directory, name)?;
        match &entry.kind {
            EntryKind::Whiteout => return self.whiteout(entry, &directory, name, existing),
            EntryKind::OpaqueMarker => {
                let directory = self.parent(&entry.path)?;
                return Ok(rustix::fs::fsetxattr(reopen(&directory)?, OPAQUE, b"y", XattrFlags::empty())?);
            }
            EntryKind::Directory => return self.directory(entry, &directory, name, existing),
            EntryKind::Hardlink { target } => {
                return self.hardlink(target, entry, &directory, name, existing);
            }
            _ => {}
        }
        self.clear(&entry.path, &directory, name, existing)?;
        if let Some((kind, major, minor)) = device_of(&entry.kind)
            && !self.device(&directory, name, kind, major, minor)?
        {
            return Ok(());
        }
        match &entry.kind {
            EntryKind::Regular { .. } => {
                let mut file = directory.create_file(name, 0o600)?;
                reader.content().copy_to(&mut file)?;
                return self.file_attributes(entry, &file);
            }
            EntryKind::Symlink { target } => directory.symlink(name, target)?,
            EntryKind::Fifo => directory.make_node(name, FileType::Fifo, 0o600, 0, 0)?,
            _ => {}
        }
        self.attributes(entry, &directory, name)
    }

    fn apply_root(&mut self, entry: &Entry) -> io::Result<()> {
        match entry.kind {
            EntryKind::Directory => self.directories.push(entry.clone()),
            EntryKind::OpaqueMarker => {
                let root = self.root.directory(&LayerPath::root())?;
                rustix::fs::fsetxattr(reopen(&root)?, OPAQUE, b"y", XattrFlags::empty())?;
            }
            _ => return Err(invalid("the root can only be a directory")),
        }
        Ok(())
    }

    /// The directory at `path`, made with default attributes, in place of anything else that is there.
    fn parent(&mut self, path: &LayerPath) -> io::Result<Directory> {
        match self.root.directory(path) {
            Ok(directory) => return Ok(directory),
            Err(error) if !is_missing_or_other(&error) => return Err(error),
            Err(_) => {}
        }
        let mut at = LayerPath::root();
        let mut directory = self.root.directory(&at)?;
        for name in path.components() {
            at = at.join(name).map_err(io::Error::other)?;
            let existing = kind_of(&directory, name)?;
            if existing != Some(FileType::Directory) {
                self.make_directory(&at, &directory, name, existing)?;
            }
            directory = directory.open_dir(name)?;
        }
        Ok(directory)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
        existing: Option<FileType>,
    ) -> io::Result<()> {
        if existing != Some(FileType::Directory) {
            self.make_directory(&entry.path, parent, name, existing)?;
        }
        self.directories.push(entry.clone());
        Ok(())
    }

    fn make_directory(
        &mut self,
        path: &LayerPath,
        parent: &Directory,
        name: &[u8],
        existing: Option<FileType>,
    ) -> io::Result<()> {
        self.clear(path, parent, name, existing)?;
        parent.create_dir(name, 0o755)?;
        parent.set_mode(name, 0o755)?;
        if self.hidden.contains(path) {
            parent.set_xattr(name, OPAQUE, b"y")?;
        }
        Ok(())
    }

    /// Makes room for an entry.
    fn clear(
        &mut self,
        path: &LayerPath,
        parent: &Directory,
        name: &[u8],
        existing: Option<FileType>,
    ) -> io::Result<()> {
        if existing == Some(FileType::Directory) {
            self.directories.retain(|entry| !entry.path.starts_with(path));
        }
        if existing.is_some() { parent.remove(name) } else { Ok(()) }
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
        existing: Option<FileType>,
    ) -> io::Result<()> {
        self.hidden.insert(entry.path.clone());
        match existing {
            None => parent.make_node(name, FileType::CharacterDevice, 0, 0, 0),
            // What this layer itself brings hides a file below anyway; a directory has to say so.
            Some(FileType::Directory) => parent.set_xattr(name, OPAQUE, b"y"),
            Some(_) => Ok(()),
        }
    }

    fn hardlink(
        &mut self,
        target: &LayerPath,
        entry: &Entry,
        parent: &Directory,
        name: &[u8],
        existing: Option<FileType>,
    ) -> io::Result<()> {
        if *target == entry.path {
            return if existing.is_some() { Ok(()) } else { Err(invalid("a hard link to itself")) };
        }
        if target.starts_with(&entry.path) {
            return Err(invalid("a hard link to something below itself"));
        }
        let explain = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => {
                let target = String::from_utf8_lossy(target.as_bytes()).into_owned();
                io::Error::new(
                    error.kind(),
                    format!("a hard link to `{target}`, which this layer does not contain"),
                )
            }
            _ => error,
        };
        let (source, source_name) = self.root.parent_of(target).map_err(explain)?;
        match kind_of(&source, source_name)? {
            Some(FileType::Directory) => return Err(invalid("a hard link to a directory")),
            Some(FileType::CharacterDevice) if self.hidden.contains(target) => {
                return Err(invalid("a hard link to a path that this layer removes"));
            }
            _ => {}
        }
        self.clear(&entry.path, parent, name, existing)?;
        parent.hardlink(name, &source, source_name).map_err(explain)
    }

    /// Makes a device node; `false` when it had to be left out.
    fn device(
        &mut self,
        parent: &Directory,
        name: &[u8],
        kind: FileType,
        major: u32,
        minor: u32,
    ) -> io::Result<bool> {
        // Character device 0:0 is a whiteout to overlayfs, and no other device has these numbers.
        let forged = (kind, major, minor) == (FileType::CharacterDevice, 0, 0);
        let made =
            if forged { Err(Errno::PERM.into()) } else { parent.make_node(name, kind, 0o600, major, minor) };
        match made {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.report.devices_skipped += 1;
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Attributes of a regular file, by its descriptor. The owner first: changing it takes set-user-id bits and file
    /// capabilities away.
    fn file_attributes(&mut self, entry: &Entry, file: &File) -> io::Result<()> {
        let (uid, gid) = owner(entry)?;
        if (uid, gid) != (0, 0) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.owned(rustix::fs::fchown(file, owner.0, owner.1).map_err(Into::into))?;
        }
        for (key, value) in kept_xattrs(entry) {
            let set = rustix::fs::fsetxattr(file, key.as_slice(), value, XattrFlags::empty());
            self.attributed(set.map_err(Into::into))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode & 0o7777))?;
        Ok(rustix::fs::futimens(file, &timestamps(entry.mtime))?)
    }

    /// Attributes of anything else, by its name, which is not followed.
    fn attributes(&mut self, entry: &Entry, parent: &Directory, name: &[u8]) -> io::Result<()> {
        let (uid, gid) = owner(entry)?;
        if (uid, gid) != (0, 0) {
            self.owned(parent.set_owner(name, uid, gid))?;
        }
        for (key, value) in kept_xattrs(entry) {
            self.attributed(parent.set_xattr(name, key, value))?;
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            parent.set_mode(name, entry.mode & 0o7777)?;
        }
        parent.set_mtime(name, entry.mtime)
    }

    fn owned(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            // The id is not mapped, or we are not allowed to give files away.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {
                self.report.owners_lost += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn attributed(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                self.report.xattrs_skipped += 1;
                Ok(())
            }
            other => other,
        }
    }

    /// Sets the attributes of all directories, children before parents, whose times would change otherwise.
    fn finish(mut self) -> Result<UnpackReport, (Vec<u8>, io::Error)> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by(|a, b| a.path.cmp(&b.path));
        for entry in directories.iter().rev() {
            self.directory_attributes(entry).map_err(|error| (entry.path.as_bytes().to_vec(), error))?;
        }
        Ok(self.report)
    }

    fn directory_attributes(&mut self, entry: &Entry) -> io::Result<()> {
        let directory = self.root.directory(&entry.path)?;
        let file = reopen(&directory)?;
        self.file_attributes(entry, &file)
    }
}

/// A descriptor that attributes can be set through; directories are otherwise opened for their path alone.
fn reopen(directory: &Directory) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(directory, ".", flags, Mode::empty())?))
}

fn kind_of(directory: &Directory, name: &[u8]) -> io::Result<Option<FileType>> {
    match directory.stat(name) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn device_of(kind: &EntryKind) -> Option<(FileType, u32, u32)> {
    match kind {
        EntryKind::CharDevice { major, minor } => Some((FileType::CharacterDevice, *major, *minor)),
        EntryKind::BlockDevice { major, minor } => Some((FileType::BlockDevice, *major, *minor)),
        _ => None,
    }
}

fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
    let forged = |key: &[u8]| key.starts_with(b"user.overlay.") || key.starts_with(b"trusted.overlay.");
    entry.xattrs.iter().filter(move |(key, _)| !forged(key))
}

fn owner(entry: &Entry) -> io::Result<(u32, u32)> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ => Err(invalid("an owner beyond 32 bits")),
    }
}

fn is_missing_or_other(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}
