//! What a finished step changed: its overlay upper directory as layer entries.
//!
//! Owns the reading of overlay form (`userxattr`): whiteout devices, opaque directories, copied-up files. Entries
//! come in [`layer_order`], ready for a layer writer. A file that was copied up but equals the one below is left out;
//! a directory is listed when it changed or when something below it is, because a layer that mentions a path without
//! its parents would give them default attributes on unpacking. Sockets have no form in a layer and are left out.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rimg_formats::layer::{Entry, EntryKind, LayerPath, Mtime, layer_order};
use rimg_formats::root_dir::{Directory, RootDir};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Trees deeper than the longest path the kernel takes are not walked.
const DEPTH_MAX: usize = 2048;

/// Bytes compared at a time.
const COMPARE_BYTES: usize = 64 << 10;

/// The changes in an upper directory.
#[derive(Debug)]
pub struct Changes {
    upper: RootDir,
    /// Entries in layer order.
    pub entries: Vec<Entry>,
    /// Copied-up files that equal those below.
    unchanged: Vec<LayerPath>,
}

impl Changes {
    /// Reads the changes of `upper` against `lowers`, the lowest first. With `compare_times` a file that differs only
    /// in its modification time counts as changed.
    ///
    /// # Errors
    /// The kernel's, naming the path.
    pub fn read(upper: &Path, lowers: &[PathBuf], compare_times: bool) -> io::Result<Changes> {
        let lowers = lowers.iter().rev().map(|path| RootDir::open(path)).collect::<io::Result<Vec<_>>>()?;
        let upper = RootDir::open(upper)?;
        let mut walk = Walk {
            upper: &upper,
            lowers: &lowers,
            compare_times,
            entries: Vec::new(),
            unchanged: Vec::new(),
            links: HashMap::new(),
        };
        let root = LayerPath::root();
        let directory = upper.directory(&root)?;
        let stat = rustix::fs::fstat(&directory)?;
        let opaque = is_opaque(&directory)?;
        walk.children(&root, &directory, !opaque, 0)?;
        // The root is listed only when it differs itself: every image has one.
        if opaque {
            walk.entries.push(Entry::new(root.clone(), EntryKind::OpaqueMarker, 0));
        }
        let own = walk.entry(&root, EntryKind::Directory, &stat, &directory)?;
        if !opaque && walk.differs_from_below(&own, &stat)? {
            walk.entries.push(own);
        }
        let (mut entries, unchanged) = (walk.entries, walk.unchanged);
        entries.sort_by(layer_order);
        Ok(Changes { upper, entries, unchanged })
    }

    /// Opens a regular file among the entries for reading.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(&self, path: &LayerPath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(self.upper.open_plain(path, flags, Mode::empty())?))
    }

    /// Makes the upper directory equal to what unpacking the layer would give: no unchanged copies, the layer's times.
    pub(super) fn tidy(&self, mtime: Option<Mtime>) -> io::Result<()> {
        for path in &self.unchanged {
            self.upper.remove_tree(path)?;
        }
        let Some(mtime) = mtime else { return Ok(()) };
        for entry in self.entries.iter().rev().filter(|entry| !entry.is_marker()) {
            if entry.path.is_root() {
                let root =
                    self.upper.open_plain(&entry.path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
                rustix::fs::futimens(&root, &rimg_formats::root_dir::timestamps(mtime))?;
                continue;
            }
            let (parent, name) = self.upper.parent_of(&entry.path)?;
            parent.set_mtime(name, mtime)?;
        }
        Ok(())
    }
}

struct Walk<'w> {
    upper: &'w RootDir,
    /// Topmost first.
    lowers: &'w [RootDir],
    compare_times: bool,
    entries: Vec<Entry>,
    unchanged: Vec<LayerPath>,
    /// First path of every file that has several names.
    links: HashMap<(u64, u64), LayerPath>,
}

impl Walk<'_> {
    /// Lists what is in a directory; whether anything was. `merged` says that lower layers show through.
    fn children(
        &mut self,
        path: &LayerPath,
        directory: &Directory,
        merged: bool,
        depth: usize,
    ) -> io::Result<bool> {
        if depth > DEPTH_MAX {
            return Err(at(path)(Errno::NAMETOOLONG.into()));
        }
        let mut any = false;
        for name in directory.names().map_err(at(path))? {
            let child = path.join(&name).map_err(io::Error::other)?;
            any |= self.child(&child, directory, &name, merged, depth).map_err(at(&child))?;
        }
        Ok(any)
    }

    fn child(
        &mut self,
        path: &LayerPath,
        parent: &Directory,
        name: &[u8],
        merged: bool,
        depth: usize,
    ) -> io::Result<bool> {
        let stat = parent.stat(name)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(path, parent, name, &stat, merged, depth),
            FileType::RegularFile => EntryKind::Regular { size: stat.st_size as u64 },
            FileType::Symlink => EntryKind::Symlink { target: parent.read_link(name)? },
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                self.entries.push(Entry::new(path.clone(), EntryKind::Whiteout, 0));
                return Ok(true);
            }
            FileType::CharacterDevice => EntryKind::CharDevice {
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
            FileType::BlockDevice => EntryKind::BlockDevice {
                major: rustix::fs::major(stat.st_rdev),
                minor: rustix::fs::minor(stat.st_rdev),
            },
            // A socket means nothing once its process is gone.
            _ => return Ok(false),
        };
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino))
        {
            let kind = EntryKind::Hardlink { target: first.clone() };
            let entry = self.named_entry(path, kind, &stat, parent, name)?;
            self.entries.push(entry);
            return Ok(true);
        }
        let entry = self.named_entry(path, kind, &stat, parent, name)?;
        // Names of one file stay together: whether one of them was there before says nothing about the others.
        if merged && stat.st_nlink == 1 && !self.differs_from_below(&entry, &stat)? {
            self.unchanged.push(path.clone());
            return Ok(false);
        }
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        self.entries.push(entry);
        Ok(true)
    }

    fn directory(
        &mut self,
        path: &LayerPath,
        parent: &Directory,
        name: &[u8],
        stat: &Stat,
        merged: bool,
        depth: usize,
    ) -> io::Result<bool> {
        let directory = parent.open_dir(name)?;
        let opaque = is_opaque(&directory)?;
        let entry = self.entry(path, EntryKind::Directory, stat, &directory)?;
        let any = self.children(path, &directory, merged && !opaque, depth + 1)?;
        // Opaque means something only where lower layers would show through.
        let hides = opaque && merged && self.below(path)?.is_some();
        if hides {
            self.entries.push(Entry::new(path.clone(), EntryKind::OpaqueMarker, 0));
        }
        let listed = any || hides || !merged || self.differs_from_below(&entry, stat)?;
        if listed {
            self.entries.push(entry);
        }
        Ok(listed)
    }

    fn entry(
        &self,
        path: &LayerPath,
        kind: EntryKind,
        stat: &Stat,
        directory: &Directory,
    ) -> io::Result<Entry> {
        Ok(Entry { xattrs: xattrs_of(directory, None)?, ..bare_entry(path, kind, stat) })
    }

    fn named_entry(
        &self,
        path: &LayerPath,
        kind: EntryKind,
        stat: &Stat,
        parent: &Directory,
        name: &[u8],
    ) -> io::Result<Entry> {
        Ok(Entry { xattrs: xattrs_of(parent, Some(name))?, ..bare_entry(path, kind, stat) })
    }

    /// Whether the lower layers show something else at the entry's path, or nothing.
    fn differs_from_below(&self, entry: &Entry, stat: &Stat) -> io::Result<bool> {
        let Some((lower, below)) = self.below(&entry.path)? else {
            return Ok(true);
        };
        let same = (stat.st_mode, stat.st_uid, stat.st_gid) == (below.st_mode, below.st_uid, below.st_gid);
        if !same || stat.st_rdev != below.st_rdev {
            return Ok(true);
        }
        let times = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
        let directory = entry.kind == EntryKind::Directory;
        // A directory's time changes with its children, which are listed themselves.
        if self.compare_times && !directory && times(stat) != times(&below) {
            return Ok(true);
        }
        let xattrs = if entry.path.is_root() {
            xattrs_of(&lower.directory(&entry.path)?, None)?
        } else {
            let (parent, name) = lower.parent_of(&entry.path)?;
            xattrs_of(&parent, Some(name))?
        };
        if xattrs != entry.xattrs {
            return Ok(true);
        }
        match &entry.kind {
            EntryKind::Regular { size } => {
                Ok(*size != below.st_size as u64 || !self.same_content(lower, &entry.path)?)
            }
            EntryKind::Symlink { target } => {
                let (parent, name) = lower.parent_of(&entry.path)?;
                Ok(parent.read_link(name)? != *target)
            }
            _ => Ok(false),
        }
    }

    fn same_content(&self, lower: &RootDir, path: &LayerPath) -> io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut files =
            [self.upper, lower].map(|root| root.open_plain(path, flags, Mode::empty()).map(File::from));
        let [Ok(above), Ok(below)] = &mut files else {
            return Ok(false);
        };
        let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
        loop {
            let count = above.read(&mut left)?;
            if count == 0 {
                return Ok(below.read(&mut right[..1])? == 0);
            }
            match below.read_exact(&mut right[..count]) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            if left[..count] != right[..count] {
                return Ok(false);
            }
        }
    }

    /// What the lower layers show at `path`: the layer it comes from and its stat.
    fn below(&self, path: &LayerPath) -> io::Result<Option<(&RootDir, Stat)>> {
        for lower in self.lowers {
            match look(lower, path)? {
                Sight::Found(stat) => return Ok(Some((lower, stat))),
                Sight::Hidden => return Ok(None),
                Sight::Through => {}
            }
        }
        Ok(None)
    }
}

/// What one lower layer says about a path.
enum Sight {
    Found(Stat),
    /// Removed, or covered by something that is no directory.
    Hidden,
    /// Nothing: the next layer decides.
    Through,
}

fn look(lower: &RootDir, path: &LayerPath) -> io::Result<Sight> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &LayerPath| lower.open_plain(path, flags, Mode::empty());
    match open(path) {
        Ok(fd) => return seen(&fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
            return Ok(Sight::Hidden);
        }
        Err(error) => return Err(error),
    }
    let mut ancestor = path.parent();
    while let Some(path) = ancestor {
        match open(&path) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd)?;
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !is_directory || is_opaque(&Directory::from_fd(fd))? {
                    return Ok(Sight::Hidden);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
                return Ok(Sight::Hidden);
            }
            Err(error) => return Err(error),
        }
        ancestor = path.parent();
    }
    Ok(Sight::Through)
}

fn seen(fd: &OwnedFd) -> io::Result<Sight> {
    let stat = rustix::fs::fstat(fd)?;
    let whiteout = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
    Ok(if whiteout { Sight::Hidden } else { Sight::Found(stat) })
}

fn bare_entry(path: &LayerPath, kind: EntryKind, stat: &Stat) -> Entry {
    Entry {
        path: path.clone(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid.into(),
        gid: stat.st_gid.into(),
        mtime: Mtime { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        xattrs: BTreeMap::new(),
    }
}

/// Extended attributes of a directory itself, or of a name in it, without overlay's own.
fn xattrs_of(directory: &Directory, name: Option<&[u8]>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut xattrs = BTreeMap::new();
    let names = match name {
        Some(name) => directory.xattr_names(name)?,
        None => own_xattr_names(directory)?,
    };
    for key in names {
        if key.starts_with(b"user.overlay.") || key.starts_with(b"trusted.overlay.") {
            continue;
        }
        let value = match name {
            Some(name) => directory.xattr(name, &key)?,
            None => own_xattr(directory, &key)?,
        };
        if let Some(value) = value {
            xattrs.insert(key, value);
        }
    }
    Ok(xattrs)
}

fn own_xattr_names(directory: &Directory) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; XATTR_BYTES_MAX];
    match rustix::fs::listxattr(own_name(directory), list.as_mut_slice()) {
        Ok(length) => Ok(list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect()),
        Err(Errno::NOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn own_xattr(directory: &Directory, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_BYTES_MAX];
    match rustix::fs::getxattr(own_name(directory), key, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Limits of the kernel on an attribute and on the list of their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_BYTES_MAX: usize = 64 << 10;

/// A path to the directory a descriptor refers to; descriptors opened for their path alone have no other way.
fn own_name(directory: &Directory) -> String {
    use std::os::fd::{AsFd, AsRawFd};
    format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd())
}

fn is_opaque(directory: &Directory) -> io::Result<bool> {
    Ok(own_xattr(directory, b"user.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

fn at(path: &LayerPath) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| {
        let named = format!("/{}: {error}", String::from_utf8_lossy(path.as_bytes()));
        io::Error::new(error.kind(), named)
    }
}
