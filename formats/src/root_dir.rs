//! [`RootDir`] and [`Directory`]: the only door to paths on disk that an image, an archive or a container names.
//!
//! Nothing here takes a path apart and hopes that it still means the same later: whole paths are resolved once, by the
//! kernel, relative to a descriptor (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, or `RESOLVE_IN_ROOT`
//! where links are to be followed as they would be inside); whatever is then done is done to one name in an open
//! directory, without following it.
//!
//! What is left to the callers: which entries to make, their order, and directory times (which change with every
//! child).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::layer::{LayerPath, Mtime};

/// Tries at a resolution that races with renames elsewhere in the tree: the kernel answers `EAGAIN` instead of guessing.
const RESOLVE_TRIES: usize = 64;

/// Longest path handed to the kernel: PATH_MAX is 4096 with the closing NUL.
const PIECE_BYTES_MAX: usize = 4000;

/// Directories held open at once by [`Directory::remove`]. Deeper trees, which only an attack has, are taken apart by
/// moving their lower parts up; the limit of open files is 1024 on most machines.
const REMOVE_DEPTH_MAX: usize = 64;

/// Extended attributes that may be left out where the kernel refuses them, by the beginning of their names, with the
/// answers that mean so. Everything else is an error of the disk or of the layer, and no file may come without what
/// its layer gives it: a file system that is full, or an attribute too large for it (ENOSPC, E2BIG), is such an error.
///
/// - ENOTSUP: the file system has no attributes of that kind (tmpfs before Linux 6.6, NFS, vfat).
/// - EPERM: `user.*` of anything but files and directories; `trusted.*` and most of `security.*` in a user namespace.
/// - EACCES: a security module says no to its own.
/// - EINVAL: an access control list, or the root of a capability, that names an id which the user namespace does not
///   have.
const XATTRS_REFUSED: [(&[u8], &[Errno]); 4] = [
    (b"user.", &[Errno::NOTSUP, Errno::PERM]),
    (b"trusted.", &[Errno::NOTSUP, Errno::PERM]),
    (b"security.", &[Errno::NOTSUP, Errno::PERM, Errno::ACCESS, Errno::INVAL]),
    (b"system.", &[Errno::NOTSUP, Errno::PERM, Errno::INVAL]),
];

/// Whether `error` means that an extended attribute cannot be here, and not that something failed.
pub fn is_xattr_refusal(key: &[u8], error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else { return false };
    match XATTRS_REFUSED.iter().find(|(prefix, _)| key.starts_with(prefix)) {
        Some((_, refusals)) => refusals.contains(&errno),
        // A kind that Linux does not know.
        None => errno == Errno::NOTSUP,
    }
}

/// A directory tree whose contents are not trusted.
#[derive(Debug)]
pub struct RootDir {
    fd: OwnedFd,
}

/// One open directory; every name given to it is a single component and is never followed.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
}

impl RootDir {
    /// Opens the tree at `path`, which is trusted and may contain links.
    ///
    /// # Errors
    /// When it cannot be opened as a directory.
    pub fn open(path: &Path) -> io::Result<RootDir> {
        let fd = rustix::fs::openat(CWD, path, DIRECTORY_FLAGS, Mode::empty())?;
        Ok(RootDir { fd })
    }

    /// A tree whose root is open already, as a directory.
    pub fn from_fd(fd: OwnedFd) -> RootDir {
        RootDir { fd }
    }

    /// Opens `path` as a process would that has this tree as its root: links are followed and cannot lead out.
    ///
    /// # Errors
    /// Those of `openat2`.
    pub fn open_in_root(&self, path: impl AsRef<[u8]>, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = path.as_ref();
        // openat2 has no word for the root itself but `.`.
        let path = if path.is_empty() { b"." } else { path };
        Ok(resolve_path(self.fd.as_fd(), path, flags, mode, resolve)?)
    }

    /// Opens `path`, refusing every symbolic link on the way (`ELOOP`), the last component included.
    ///
    /// # Errors
    /// Those of `openat2`.
    pub fn open_plain(&self, path: &LayerPath, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        Ok(self.plain(path, flags, mode)?)
    }

    fn plain(&self, path: &LayerPath, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mut path = if path.is_root() { b"." } else { path.as_bytes() };
        let mut above: Option<OwnedFd> = None;
        // The kernel takes no path of 4096 bytes. Without links a path can be gone along in pieces.
        while path.len() > PIECE_BYTES_MAX {
            let Some(cut) = path[..PIECE_BYTES_MAX].iter().rposition(|&byte| byte == b'/') else { break };
            let from = above.as_ref().unwrap_or(&self.fd).as_fd();
            let piece = OFlags::PATH | OFlags::DIRECTORY;
            above = Some(resolve_path(from, &path[..cut], piece, Mode::empty(), resolve)?);
            path = &path[cut + 1..];
        }
        resolve_path(above.as_ref().unwrap_or(&self.fd).as_fd(), path, flags, mode, resolve)
    }

    /// Opens a directory without following links.
    ///
    /// # Errors
    /// When it does not exist, is no directory, or a link is on the way (`ELOOP`).
    pub fn directory(&self, path: &LayerPath) -> io::Result<Directory> {
        Ok(Directory { fd: self.plain(path, DIRECTORY_FLAGS, Mode::empty())? })
    }

    /// The directory that holds `path`, opened without following links, and the name in it.
    ///
    /// # Errors
    /// As [`RootDir::directory`]; `InvalidInput` for the root, which nothing holds.
    pub fn parent_of<'p>(&self, path: &'p LayerPath) -> io::Result<(Directory, &'p [u8])> {
        let parent = path
            .parent()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the root has no parent"))?;
        Ok((self.directory(&parent)?, path.split_name().1))
    }

    /// Opens the directory at `path`, making it and those above it with mode 0755 where they are missing. A link or
    /// file on the way is an error, never followed or replaced.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` as said, and those of the file system.
    pub fn mkdir_all(&self, path: &LayerPath) -> io::Result<Directory> {
        match self.plain(path, DIRECTORY_FLAGS, Mode::empty()) {
            Ok(fd) => return Ok(Directory { fd }),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mut directory = self.directory(&LayerPath::root())?;
        for name in path.components() {
            directory = match directory.open_dir(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    match directory.create_dir(name, 0o755) {
                        // Somebody else was faster; what it is shows when it is opened.
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                        _ => directory.open_dir(name)?,
                    }
                }
                result => result?,
            };
        }
        Ok(directory)
    }

    /// Removes whatever is at `path` with all below it; nothing there is fine.
    ///
    /// # Errors
    /// As [`Directory::remove`]; a missing parent is fine too.
    pub fn remove_tree(&self, path: &LayerPath) -> io::Result<()> {
        match self.parent_of(path) {
            Ok((parent, name)) => parent.remove(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for RootDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn resolve_path(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut tries = RESOLVE_TRIES;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries > 1 => tries -= 1,
            result => return result,
        }
    }
}

/// `name` when it is one component. Everything that acts on a name in a directory goes through here.
fn single(name: &[u8]) -> io::Result<&[u8]> {
    let plain = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0);
    plain.then_some(name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a plain file name"))
}

impl Directory {
    /// A directory that is open already, for reading.
    pub fn from_fd(fd: OwnedFd) -> Directory {
        Directory { fd }
    }

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// `ELOOP` or `ENOTDIR` when it is a link or something else.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Directory> {
        Ok(Directory { fd: self.open(name, DIRECTORY_FLAGS)? })
    }

    /// Opens a file that exists.
    ///
    /// # Errors
    /// `ELOOP` when it is a link. `flags` should have `O_NONBLOCK` where a FIFO is possible.
    pub fn open_file(&self, name: &[u8], flags: OFlags) -> io::Result<File> {
        Ok(File::from(self.open(name, flags)?))
    }

    fn open(&self, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, single(name)?, flags, Mode::empty())?)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `AlreadyExists` and the like. As with all that makes something here, the umask applies; see
    /// [`Directory::set_mode`].
    pub fn create_dir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.fd, single(name)?, Mode::from_raw_mode(mode))?)
    }

    /// Makes an empty regular file and opens it for writing. Whatever exists under the name, a link included, is an
    /// error.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    pub fn create_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.fd, single(name)?, flags, Mode::from_raw_mode(mode))?))
    }

    /// Makes a symbolic link; its target is only text.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    pub fn symlink(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.fd, single(name)?)?)
    }

    /// Makes `name` another name of `source_name` in `source`, which is not followed when it is a symbolic link.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    pub fn hardlink(&self, name: &[u8], source: &Directory, source_name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::linkat(&source.fd, single(source_name)?, &self.fd, single(name)?, AtFlags::empty())?)
    }

    /// Makes a device or FIFO.
    ///
    /// # Errors
    /// `PermissionDenied` for devices without privilege, and the like. Character device 0/0 needs none.
    pub fn make_node(
        &self,
        name: &[u8],
        kind: FileType,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        let device = rustix::fs::makedev(major, minor);
        Ok(rustix::fs::mknodat(&self.fd, single(name)?, kind, Mode::from_raw_mode(mode), device)?)
    }

    /// Sets the owner; call it before [`Directory::set_mode`], because it clears the set-user-ID bit.
    ///
    /// # Errors
    /// `PermissionDenied` without privilege; `InvalidInput` for ids that the user namespace does not map.
    pub fn set_owner(&self, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        // All ones would mean "leave as it is" to the kernel.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "owner 4294967295 does not exist"));
        }
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(rustix::fs::chownat(&self.fd, single(name)?, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets the permission bits of anything but a symbolic link, which has none.
    ///
    /// # Errors
    /// Those of `chmod`; `/proc` has to be mounted.
    pub fn set_mode(&self, name: &[u8], mode: u32) -> io::Result<()> {
        // There is no fchmodat that does not follow links before Linux 6.6. A descriptor of the thing itself, taken
        // without following, has a name in /proc that can only mean that thing.
        let fd = self.open(name, OFlags::PATH)?;
        let proc_name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Ok(rustix::fs::chmod(proc_name, Mode::from_raw_mode(mode))?)
    }

    /// Sets modification and access time.
    ///
    /// # Errors
    /// Those of `utimensat`.
    pub fn set_mtime(&self, name: &[u8], mtime: Mtime) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&self.fd, single(name)?, &timestamps(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Sets an extended attribute, of a symbolic link itself where `name` is one.
    ///
    /// # Errors
    /// `PermissionDenied` for `security.*` and `trusted.*` without privilege, `Unsupported` where the file system has
    /// none; `/proc` has to be mounted.
    pub fn set_xattr(&self, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::lsetxattr(self.proc_path(name)?, key, value, XattrFlags::empty())?)
    }

    /// Sets an extended attribute of this directory itself.
    ///
    /// # Errors
    /// As [`Directory::set_xattr`].
    pub fn set_own_xattr(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(&self.fd, key, value, XattrFlags::empty())?)
    }

    /// The value of an extended attribute; `None` where there is no such attribute, or none at all.
    ///
    /// # Errors
    /// Those of `lgetxattr`; `/proc` has to be mounted.
    pub fn xattr(&self, name: &[u8], key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let path = self.proc_path(name)?;
        let mut value = vec![0; XATTR_VALUE_BYTES_MAX];
        match rustix::fs::lgetxattr(&path, key, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of all extended attributes, sorted.
    ///
    /// # Errors
    /// Those of `llistxattr`; `/proc` has to be mounted.
    pub fn xattr_names(&self, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let path = self.proc_path(name)?;
        // Nearly every file has none, and asking for the length first costs nothing then.
        match rustix::fs::llistxattr_query(&path) {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut list = vec![0; XATTR_VALUE_BYTES_MAX];
        let length = rustix::fs::llistxattr(&path, list.as_mut_slice())?;
        let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
        names.sort();
        Ok(names)
    }

    /// This directory's name in `/proc` with `name` below it: the `l*xattr` calls know no directory descriptors, and
    /// do not follow the last component.
    fn proc_path(&self, name: &[u8]) -> io::Result<CString> {
        let prefix = format!("/proc/self/fd/{}/", self.fd.as_raw_fd());
        Ok(CString::new([prefix.as_bytes(), single(name)?].concat())?)
    }

    /// What `name` is.
    ///
    /// # Errors
    /// `NotFound` and the like.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.fd, single(name)?, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `InvalidInput` when it is none.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.fd, single(name)?, Vec::new())?.into_bytes())
    }

    /// The names in this directory, sorted, without `.` and `..`.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => names.push(name.to_vec()),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Gives `name` here another name in `target`, replacing nothing.
    ///
    /// # Errors
    /// `AlreadyExists` and the like.
    pub fn rename(&self, name: &[u8], target: &Directory, target_name: &[u8]) -> io::Result<()> {
        let (from, to) = (single(name)?, single(target_name)?);
        Ok(rustix::fs::renameat_with(&self.fd, from, &target.fd, to, RenameFlags::NOREPLACE)?)
    }

    /// Removes `name`, a whole tree where it is a directory; nothing there is fine. Links are removed, not followed.
    /// Directories of one's own without permissions are opened up first.
    ///
    /// # Errors
    /// Those of the file system, at the first thing that cannot be removed.
    pub fn remove(&self, name: &[u8]) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, single(name)?, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // POSIX has EPERM for directories, Linux EISDIR.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        let mut moved = 0_u64;
        let mut levels = vec![Level::enter(self, name.to_vec())?];
        while let Some(level) = levels.last_mut() {
            let Some(child) = level.directories.pop() else {
                // The loop's condition holds a level.
                let Some(done) = levels.pop() else { break };
                let parent = levels.last().map_or(self, |level| &level.directory);
                rustix::fs::unlinkat(&parent.fd, done.name.as_slice(), AtFlags::REMOVEDIR)?;
                continue;
            };
            let level = if levels.len() < REMOVE_DEPTH_MAX {
                let parent = levels.last().map_or(self, |level| &level.directory);
                Level::enter(parent, child)?
            } else {
                move_up(&mut levels, &child, &mut moved)?;
                continue;
            };
            levels.push(level);
        }
        Ok(())
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// XATTR_SIZE_MAX and XATTR_LIST_MAX of the kernel.
const XATTR_VALUE_BYTES_MAX: usize = 64 * 1024;

/// Opens a regular file for reading whose name is ours but which somebody else may have put there: a symbolic link
/// is not followed, and a FIFO or device, which could block or do worse, is refused.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Both times of a file as `mtime`; what the kernel stores is cut to what the file system can hold.
pub fn timestamps(mtime: Mtime) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A directory being emptied: its files are gone, its directories still to do.
struct Level {
    directory: Directory,
    name: Vec<u8>,
    directories: Vec<Vec<u8>>,
}

impl Level {
    fn enter(parent: &Directory, name: Vec<u8>) -> io::Result<Level> {
        let mode = parent.stat(&name)?.st_mode;
        if mode & 0o700 != 0o700 {
            parent.set_mode(&name, 0o700)?;
        }
        let directory = parent.open_dir(&name)?;
        let mut directories = Vec::new();
        for child in directory.names()? {
            match rustix::fs::unlinkat(&directory.fd, child.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => directories.push(child),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Level { directory, name, directories })
    }
}

/// Moves `child` of the lowest level into the top one, to be emptied from there.
fn move_up(levels: &mut [Level], child: &[u8], moved: &mut u64) -> io::Result<()> {
    let [top, .., lowest] = levels else { return Ok(()) };
    // Another parent is written into the directory itself, so it has to be writable.
    lowest.directory.set_mode(child, 0o700)?;
    loop {
        *moved += 1;
        let name = format!("rimg-removed-{moved}").into_bytes();
        match lowest.directory.rename(child, &top.directory, &name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                top.directories.push(name);
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn path(text: &str) -> LayerPath {
        LayerPath::parse(text).unwrap()
    }

    fn root() -> (tempfile::TempDir, RootDir) {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDir::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn links_are_refused_or_kept_inside() {
        let (directory, root) = root();
        std::fs::create_dir_all(directory.path().join("etc")).unwrap();
        std::fs::write(directory.path().join("etc/passwd"), "inside").unwrap();
        symlink("/etc", directory.path().join("link")).unwrap();
        symlink("../../../../../../etc", directory.path().join("up")).unwrap();
        for name in ["link/passwd", "up/passwd"] {
            let error = root.open_plain(&path(name), OFlags::RDONLY, Mode::empty()).unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::LOOP), "{name}");
            assert!(root.parent_of(&path(name)).is_err());
            assert!(root.mkdir_all(&path(name)).is_err());
            let fd = root.open_in_root(name, OFlags::RDONLY, Mode::empty()).unwrap();
            assert_eq!(io::read_to_string(File::from(fd)).unwrap(), "inside");
        }
        assert!(root.directory(&path("link")).is_err());
        root.remove_tree(&path("link")).unwrap();
        root.remove_tree(&path("up")).unwrap();
        assert!(directory.path().join("etc/passwd").exists());
    }

    #[test]
    fn names_are_single_components() {
        let (_directory, root) = root();
        let top = root.directory(&LayerPath::root()).unwrap();
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
            assert!(top.create_dir(name, 0o755).is_err());
            assert!(top.create_file(name, 0o644).is_err());
            assert!(top.symlink(name, b"x").is_err());
            assert!(top.remove(name).is_err());
            assert!(top.set_xattr(name, b"user.a", b"").is_err());
        }
        let error = top.set_owner(b"a", u32::MAX, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn everything_can_be_made_without_following() {
        let (directory, root) = root();
        let sub = root.mkdir_all(&path("a/b/c")).unwrap();
        sub.create_file(b"file", 0o600).unwrap().write_all(b"content").unwrap();
        sub.symlink(b"link", b"/etc/passwd").unwrap();
        sub.make_node(b"pipe", FileType::Fifo, 0o600, 0, 0).unwrap();
        let top = root.directory(&LayerPath::root()).unwrap();
        top.hardlink(b"other", &sub, b"file").unwrap();
        sub.set_mode(b"file", 0o4751).unwrap();
        let time = Mtime { secs: -5, nanos: 7 };
        for name in [&b"file"[..], b"link", b"pipe"] {
            sub.set_mtime(name, time).unwrap();
            assert_eq!((sub.stat(name).unwrap().st_mtime, sub.stat(name).unwrap().st_mtime_nsec), (-5, 7));
        }
        let other = std::fs::metadata(directory.path().join("other")).unwrap();
        assert_eq!((other.permissions().mode() & 0o7777, other.nlink()), (0o4751, 2));
        assert_eq!(sub.read_link(b"link").unwrap(), b"/etc/passwd");
        assert_eq!(sub.names().unwrap(), [b"file".to_vec(), b"link".to_vec(), b"pipe".to_vec()]);
        for name in [&b"file"[..], b"link", b"pipe"] {
            let error = sub.create_file(name, 0o644).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        }
    }

    #[test]
    fn extended_attributes_of_the_thing_itself() {
        // A temporary directory on tmpfs before Linux 6.6 has no user attributes; the worktree's file system has.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let top = RootDir::open(directory.path()).unwrap().directory(&LayerPath::root()).unwrap();
        top.create_file(b"file", 0o600).unwrap();
        assert!(top.xattr_names(b"file").unwrap().is_empty());
        top.set_xattr(b"file", b"user.b", b"\0\xff").unwrap();
        top.set_xattr(b"file", b"user.a", b"").unwrap();
        assert_eq!(top.xattr_names(b"file").unwrap(), [b"user.a".to_vec(), b"user.b".to_vec()]);
        assert_eq!(top.xattr(b"file", b"user.b").unwrap().unwrap(), b"\0\xff");
        assert_eq!(top.xattr(b"file", b"user.c").unwrap(), None);
        top.symlink(b"link", b"file").unwrap();
        assert!(
            top.set_xattr(b"link", b"user.a", b"").is_err(),
            "the link itself cannot have user attributes"
        );
    }

    #[test]
    fn trees_are_removed_whatever_they_are() {
        let (directory, root) = root();
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "").unwrap();
        // Deeper than the number of open files allowed, with a closed directory and links out of it on the way.
        let mut current = root.mkdir_all(&path("deep")).unwrap();
        let mut half_way = None;
        for level in 0..1500 {
            current.create_dir(b"d", 0o755).unwrap();
            current.create_file(b"f", 0o644).unwrap();
            current.symlink(b"l", outside.as_os_str().as_encoded_bytes()).unwrap();
            let next = current.open_dir(b"d").unwrap();
            let above = std::mem::replace(&mut current, next);
            if level == 700 {
                half_way = Some(above);
            }
        }
        half_way.unwrap().set_mode(b"d", 0).unwrap();
        root.remove_tree(&path("deep")).unwrap();
        assert!(!directory.path().join("deep").exists());
        assert!(outside.join("kept").exists());
        root.remove_tree(&path("deep")).unwrap();
        root.remove_tree(&path("no/such/parent")).unwrap();
    }
}
