//! Attributes of mounts (read-only, no devices, private), on kernels with `mount_setattr(2)` and without.
//!
//! `mount_setattr` (Linux 5.12) changes a mount wherever it is. The older remount changes only mounts of the caller's
//! own mount namespace: an attached one is changed in place, a detached one in a namespace that a thread makes for
//! it and that ends with the thread. The caller's own namespace never sees any of it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use crate::sys::{self, MountChange};

/// Any file that every host has, for a mount that is no directory to lie on.
const ANY_FILE: &str = "/dev/null";

/// Restricts a detached mount. Returns the mount to use from then on.
pub(crate) fn restrict(mount: OwnedFd, change: MountChange) -> io::Result<OwnedFd> {
    match sys::mount_setattr(mount.as_fd(), change) {
        Err(error) if is_missing(&error) => restrict_by_remount(mount.as_fd(), change),
        done => done.map(|()| mount),
    }
}

/// Restricts a mount that is attached in this process's mount namespace.
pub(crate) fn restrict_attached(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    match sys::mount_setattr(mount, change) {
        Err(error) if is_missing(&error) => remount_tree(mount, change),
        done => done,
    }
}

/// Whether this answer of a newer system call says that it is not there. Filters of a container that rimg runs in
/// answer EPERM as well; should that be the kernel's own word, the older call gets it too.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM))
}

/// Runs `work` on a thread with a mount namespace of its own, which nothing leaves and no mount event enters.
///
/// The namespace ends with the thread; a mount that is still referred to by a descriptor lives on, detached.
pub(crate) fn in_private_namespace<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let isolated = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        work()
    };
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("rimg-mounts".to_owned()).spawn_scoped(scope, isolated)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
    })
}

/// As [`restrict`], for kernels that cannot change a detached mount.
fn restrict_by_remount(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode);
    let point = if kind == FileType::Directory { "/" } else { ANY_FILE };
    in_private_namespace(|| {
        rustix::mount::move_mount(mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        remount_tree(mount, change)?;
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if change.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        Ok(rustix::mount::open_tree(mount, "", flags)?)
    })
}

/// Changes an attached mount and, if asked, those below it. A mount that another one covers is left as it is.
fn remount_tree(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    remount(mount, change)?;
    if change.recursive {
        for path in mounts_below(mount)? {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let below = rustix::fs::openat(mount, path, flags, Mode::empty())?;
            remount(below.as_fd(), change)?;
        }
    }
    Ok(())
}

fn remount(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let has = rustix::fs::fstatvfs(mount)?.f_flag;
    // A remount sets all flags anew: what the mount has stays. Its atime flags stay when none is given.
    let mut flags = MountFlags::BIND;
    flags.set(MountFlags::RDONLY, change.read_only || has.contains(StatVfsMountFlags::RDONLY));
    flags.set(MountFlags::NODEV, change.no_dev || has.contains(StatVfsMountFlags::NODEV));
    flags.set(MountFlags::NOSUID, change.no_suid || has.contains(StatVfsMountFlags::NOSUID));
    flags.set(MountFlags::NOEXEC, change.no_exec || has.contains(StatVfsMountFlags::NOEXEC));
    rustix::mount::mount_remount(path.as_str(), flags, "")?;
    if change.private {
        rustix::mount::mount_change(path.as_str(), MountPropagationFlags::PRIVATE)?;
    }
    Ok(())
}

/// The mount points below `mount`, relative to it.
fn mounts_below(mount: BorrowedFd<'_>) -> io::Result<Vec<PathBuf>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", mount.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    let id = id.ok_or(io::ErrorKind::NotFound)?;
    // Of this thread: its namespace may be another than the process's.
    Ok(points_below(&fs::read("/proc/thread-self/mountinfo")?, id.as_bytes()))
}

/// The mount points below the mount `id` in proc(5)'s mountinfo, relative to it.
fn points_below(mountinfo: &[u8], id: &[u8]) -> Vec<PathBuf> {
    let lines: Vec<[&[u8]; 3]> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            Some([fields.next()?, fields.next()?, fields.nth(2)?])
        })
        .collect();
    let Some([_, _, base]) = lines.iter().find(|[own, ..]| *own == id) else { return Vec::new() };
    let base = unescape(base);
    let mut ids = vec![id];
    let mut points = Vec::new();
    let mut next = 0;
    while let Some(parent) = ids.get(next).copied() {
        next += 1;
        for [own, above, point] in &lines {
            if *above == parent && !ids.contains(own) {
                ids.push(own);
                // Where several lie on one point, the topmost is the one that a path finds.
                points.extend(unescape(point).strip_prefix(&base).ok().map(Path::to_owned));
            }
        }
    }
    points.retain(|point| !point.as_os_str().is_empty());
    points.dedup();
    points
}

/// A path of mountinfo, where blanks and the like are written as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use rustix::mount::open_tree;

    #[test]
    fn what_lies_below_a_mount_is_found_by_ids() {
        let mountinfo = b"20 1 8:1 / / rw - ext4 a rw\n30 20 0:5 / /a\\040b rw - tmpfs t rw\n\
            31 30 0:6 / /a\\040b/c rw - tmpfs t rw\n32 31 0:7 / /a\\040b/c/d rw - tmpfs t rw\n\
            33 20 0:8 / /other rw - tmpfs t rw\n34 30 0:9 / /a\\040b rw - tmpfs t rw\n";
        let points = |id: &str| points_below(mountinfo, id.as_bytes());
        assert_eq!(points("30"), [PathBuf::from("c"), PathBuf::from("c/d")]);
        assert_eq!(points("33"), Vec::<PathBuf>::new());
        assert_eq!(points("99"), Vec::<PathBuf>::new());
    }

    fn clone(path: &Path, flags: OpenTreeFlags) -> OwnedFd {
        open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | flags)
            .unwrap()
    }

    fn is_read_only(directory: &OwnedFd, path: &str) -> bool {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(directory, path, flags, Mode::RUSR).map(drop) == Err(Errno::ROFS)
    }

    /// What kernels before 5.12 get, on this one.
    #[test]
    fn a_detached_tree_is_restricted_by_remounting_and_the_original_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let read_only =
            MountChange { read_only: true, private: true, no_dev: true, ..MountChange::default() };
        let made = in_private_namespace(|| {
            let sub = folder.path().join("sub dir");
            fs::create_dir(&sub).unwrap();
            fs::write(folder.path().join("file"), "x").unwrap();
            rustix::mount::mount("t", folder.path(), "tmpfs", MountFlags::NOEXEC, None)?;
            fs::create_dir(&sub).unwrap();
            rustix::mount::mount("t", &sub, "tmpfs", MountFlags::empty(), None)?;
            Ok([
                restrict_by_remount(
                    clone(folder.path(), OpenTreeFlags::AT_RECURSIVE).as_fd(),
                    MountChange { recursive: true, ..read_only },
                )?,
                restrict_by_remount(clone(folder.path(), OpenTreeFlags::AT_RECURSIVE).as_fd(), read_only)?,
                clone(folder.path(), OpenTreeFlags::AT_RECURSIVE),
            ])
        });
        let [tree, single, original] = match made {
            // The test's process may have neither the right to mount nor a single thread to get it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return eprintln!("SKIPPED: an ordinary user cannot mount from a process with threads");
            }
            other => other.unwrap(),
        };
        assert!(is_read_only(&tree, "new") && is_read_only(&tree, "sub dir/new"));
        assert!(is_read_only(&single, "new"));
        assert!(!is_read_only(&original, "new") && !is_read_only(&original, "sub dir/new"));
        let flags = rustix::fs::fstatvfs(&tree).unwrap().f_flag;
        assert!(flags.contains(StatVfsMountFlags::NOEXEC | StatVfsMountFlags::NODEV), "{flags:?}");
        let ours = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!ours.contains(folder.path().to_str().unwrap()), "nothing is left in our own namespace");
        let file = restrict_by_remount(
            clone(&folder.path().join("file"), OpenTreeFlags::empty()).as_fd(),
            read_only,
        );
        let file = file.unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = fs::OpenOptions::new().write(true).open(path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}
