//! The root of a sandbox while init builds it: finding mount points in it, making missing ones, attaching mounts.
//!
//! Owns [`Tree`] and the only ways a path of the image is resolved. Every path is resolved once, inside the root and
//! without magic links, to a descriptor; mounts are moved onto descriptors. `/proc`, `/dev` and `/sys` are resolved
//! without following any link at all: an image that ships them as links wants our file systems somewhere else.
//! Leaves to others: which file systems are mounted ([`crate::kernel_fs`]) and in which order ([`crate::plan`]).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::message::{SetupFailure, Stub};

/// As many links as the kernel follows in one path (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PointKind {
    Directory,
    File,
}

/// The new root, attached on top of the old one but not yet the process's root.
pub(crate) struct Tree {
    /// The root directory of the new root's mount.
    pub(crate) root: OwnedFd,
    /// Mount points that did not exist before.
    pub(crate) stubs: Vec<Stub>,
    /// Our procfs.
    pub(crate) proc: Option<OwnedFd>,
    /// Our tmpfs at /dev.
    pub(crate) dev: Option<OwnedFd>,
    /// The null device in it, open; whatever is mounted at /dev/null later, this is the device.
    pub(crate) null: Option<OwnedFd>,
    /// Our sysfs.
    pub(crate) sys: Option<OwnedFd>,
    /// One empty read-only directory that covers all masked ones.
    pub(crate) empty: Option<OwnedFd>,
}

impl Tree {
    /// A tree whose root is `root`, an attached mount.
    pub(crate) fn new(root: OwnedFd) -> Tree {
        Tree { root, stubs: Vec::new(), proc: None, dev: None, null: None, sys: None, empty: None }
    }

    /// Our procfs, whatever a caller has mounted over it since.
    pub(crate) fn proc(&self) -> Result<&OwnedFd, SetupFailure> {
        self.proc.as_ref().ok_or_else(|| SetupFailure {
            operation: "find the sandbox's procfs: the plan has none".to_owned(),
            errno: 0,
        })
    }

    /// `/proc`, `/dev` or `/sys`: a true directory, made when it is missing.
    pub(crate) fn system_directory(&mut self, name: &str) -> Result<OwnedFd, SetupFailure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let open = |tree: &Tree| rustix::fs::openat2(&tree.root, name, flags, Mode::empty(), resolve);
        match open(self) {
            Err(Errno::NOENT) => {
                let made = rustix::fs::mkdirat(&self.root, name, Mode::from(0o755));
                made.or_fail(|| format!("make the directory /{name} in the root"))?;
                self.stubs.push(Stub { path: OsString::from(name), directory: true });
                open(self).or_fail(|| format!("open /{name} in the root"))
            }
            Err(Errno::LOOP | Errno::NOTDIR) => Err(SetupFailure {
                operation: format!(
                    "mount /{name}: the image ships it as something other than a directory, refused"
                ),
                errno: 0,
            }),
            other => other.or_fail(|| format!("open /{name} in the root")),
        }
    }

    /// The mount point `path` names inside the root, made when it is missing.
    pub(crate) fn mount_point(&mut self, path: &OsStr, kind: PointKind) -> Result<OwnedFd, SetupFailure> {
        let mut links = 0;
        let point = self.find_or_make(Path::new(path), kind, &mut links);
        let point = point.or_fail(|| format!("find or make the mount point {}", path.display()))?;
        let is_directory =
            file_type(&point).or_fail(|| format!("look at {}", path.display()))? == FileType::Directory;
        if is_directory
            && path_in_root(point.as_fd()).or_fail(|| format!("look at {}", path.display()))?.is_empty()
        {
            let operation = format!("mount on {}: in this image that is the root itself", path.display());
            return Err(SetupFailure { operation, errno: 0 });
        }
        match (kind, is_directory) {
            (PointKind::File, true) => Err(mismatch(path, "a directory", "a file")),
            (PointKind::Directory, false) => Err(mismatch(path, "a file", "a directory")),
            _ => Ok(point),
        }
    }

    /// Resolves `path` inside the root without making anything.
    pub(crate) fn resolve(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        open_in_root(self.root.as_fd(), path, flags)
    }

    /// Whether `path` leads, inside the root, to something that cannot be entered.
    pub(crate) fn is_something_else_than_a_directory(&self, path: &Path) -> bool {
        let found = self.resolve(path, OFlags::PATH).map_err(io::Error::from);
        found.and_then(|found| file_type(&found)).is_ok_and(|kind| kind != FileType::Directory)
    }

    /// Resolves `path` inside the root; what is missing of it is made, through dangling links as well.
    fn find_or_make(&mut self, path: &Path, kind: PointKind, links: &mut u32) -> io::Result<OwnedFd> {
        match self.resolve(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        *links += 1;
        if *links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // A path that ends in `..` has no name to make.
            return Err(Errno::NOENT.into());
        };
        let parent = self.find_or_make(parent, PointKind::Directory, links)?;
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
                let base = path_in_root(parent.as_fd())?;
                self.find_or_make(&Path::new("/").join(base).join(target), kind, links)
            }
            Ok(_) => Err(Errno::NOTDIR.into()),
            Err(Errno::NOENT) => self.make(&parent, name, kind),
            Err(error) => Err(error.into()),
        }
    }

    fn make(&mut self, parent: &OwnedFd, name: &OsStr, kind: PointKind) -> io::Result<OwnedFd> {
        match kind {
            PointKind::Directory => rustix::fs::mkdirat(parent, name, Mode::from(0o755))?,
            PointKind::File => {
                rustix::fs::mknodat(parent, name, FileType::RegularFile, Mode::from(0o644), 0)?;
            }
        }
        let mut path = path_in_root(parent.as_fd())?;
        if !path.is_empty() {
            path.push("/");
        }
        path.push(name);
        self.stubs.push(Stub { path, directory: kind == PointKind::Directory });
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
    }
}

/// Opens `path` with `root` as its root directory: absolute links and `..` stay inside, magic links are refused.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename elsewhere on the system raced with a `..`: the kernel asks to try again.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// The path of a directory of the new root, without a leading `/`.
///
/// The new root lies on top of this process's root, so the kernel prints paths in it as absolute ones.
fn path_in_root(directory: BorrowedFd<'_>) -> io::Result<OsString> {
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = rustix::fs::readlink(link, Vec::new())?.into_bytes();
    match path.strip_prefix(b"/") {
        Some(inside) => Ok(OsString::from_vec(inside.to_vec())),
        None => Err(Errno::XDEV.into()),
    }
}

/// Mount points below `path` in this process's mount namespace, relative to it and without those below one another.
pub(crate) fn mounts_below(path: &str) -> Result<Vec<String>, SetupFailure> {
    let operation = || format!("list the mounts below {path}");
    let info = std::fs::read("/proc/self/mountinfo").or_fail(operation)?;
    let text = String::from_utf8(info).map_err(|_| SetupFailure { operation: operation(), errno: 0 })?;
    Ok(points_below(&text, path))
}

/// The fifth field of proc(5)'s mountinfo, where it lies below `path`.
fn points_below(mountinfo: &str, path: &str) -> Vec<String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.filter_map(|point| point.strip_prefix(path)?.strip_prefix('/'));
    let mut below: Vec<String> = below.map(unescape).collect();
    below.sort_unstable();
    below.dedup();
    let mut topmost: Vec<String> = Vec::new();
    for point in below {
        let is_covered =
            |cover: &String| point.strip_prefix(cover.as_str()).is_some_and(|rest| rest.starts_with('/'));
        if !topmost.iter().any(is_covered) {
            topmost.push(point);
        }
    }
    topmost
}

/// A field of mountinfo, in which blanks, tabs, line ends and backslashes are written in octal.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (written, meant)| text.replace(written, meant))
}

fn mismatch(path: &OsStr, is: &str, wanted: &str) -> SetupFailure {
    SetupFailure {
        operation: format!("mount on {}: it is {is}, but the source is {wanted}", path.display()),
        errno: 0,
    }
}

/// The type of the file that `fd` refers to.
pub(crate) fn file_type(fd: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

/// Makes a detached mount of a new file system. Options without a value are flags.
pub(crate) fn new_file_system(
    name: &str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), *key, *value)?,
            None => fsconfig_set_flag(context.as_fd(), *key)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Clones the mount that `path` of `directory` lies on, rooted at that path.
pub(crate) fn clone_mount(
    directory: BorrowedFd<'_>,
    path: &str,
    recursive: bool,
) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(directory, path, flags)
}

/// Attaches a detached mount on the file or directory that `point` refers to.
pub(crate) fn attach(mount: BorrowedFd<'_>, point: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", point, "", flags)
}

/// Attaches a detached mount on `name` in a directory that nobody else can change.
pub(crate) fn attach_at(
    mount: BorrowedFd<'_>,
    directory: BorrowedFd<'_>,
    name: &str,
) -> rustix::io::Result<()> {
    move_mount(mount, "", directory, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Turns an error of the kernel into one that says what was attempted.
pub(crate) trait OrFail<T> {
    /// `operation` completes "failed to …".
    fn or_fail(self, operation: impl FnOnce() -> String) -> Result<T, SetupFailure>;
}

impl<T> OrFail<T> for io::Result<T> {
    fn or_fail(self, operation: impl FnOnce() -> String) -> Result<T, SetupFailure> {
        self.map_err(|error| match error.raw_os_error() {
            Some(errno) => SetupFailure { operation: operation(), errno },
            None => SetupFailure { operation: format!("{}: {error}", operation()), errno: 0 },
        })
    }
}

impl<T> OrFail<T> for rustix::io::Result<T> {
    fn or_fail(self, operation: impl FnOnce() -> String) -> Result<T, SetupFailure> {
        self.map_err(|error| SetupFailure { operation: operation(), errno: error.raw_os_error() })
    }
}

impl<T> OrFail<T> for nix::Result<T> {
    fn or_fail(self, operation: impl FnOnce() -> String) -> Result<T, SetupFailure> {
        self.map_err(|error| SetupFailure { operation: operation(), errno: error as i32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_path_are_found_without_those_below_one_another() {
        let mountinfo = "20 1 0:5 / / rw - ext4 a rw\n21 20 0:6 / /sys rw - sysfs s rw\n22 21 0:7 / /sys/fs/cgroup rw - tmpfs c rw\n\
            23 22 0:8 / /sys/fs/cgroup/pids rw - cgroup c rw\n24 21 0:9 / /sys/fs/bpf rw - bpf b rw\n\
            25 21 0:9 / /sys/fs/cgroup2 rw - bpf b rw\n26 20 0:5 / /system rw - tmpfs x rw\n\
            27 21 0:9 / /sys/a\\040b rw - tmpfs b rw\n28 24 0:9 / /sys/fs/bpf rw - bpf b rw\n";
        assert_eq!(points_below(mountinfo, "/sys"), ["a b", "fs/bpf", "fs/cgroup", "fs/cgroup2"]);
        assert!(points_below(mountinfo, "/nowhere").is_empty());
    }
}
