//! The root file system of a sandbox as a detached overlay mount, made from descriptors.
//!
//! Owns the overlay's options. `userxattr` always: the same snapshots and upper directories then serve root and
//! ordinary users alike, and `trusted.overlay.*` attributes mean nothing. Nothing appears in any mount table until
//! init attaches the result in the sandbox's own namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::sandbox::SandboxError;
use crate::spec::{RootFs, Upper};
use crate::sys::{self, MountChange};

/// Makes the root's mount, with ids on disk mapped through the user namespace `id_map` if one is given.
pub(crate) fn mount(rootfs: &RootFs, id_map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SandboxError> {
    if let ([only], Upper::None) = (rootfs.lowers.as_slice(), &rootfs.upper) {
        return bind_read_only(only, id_map);
    }
    let context =
        fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(kernel("open an overlay context"))?;
    fsconfig_set_flag(context.as_fd(), "userxattr").map_err(kernel("set the overlay option userxattr"))?;
    // Init waits for this mount and its end of it; the layers are only needed while the overlay is put together.
    for lower in rootfs.lowers.iter().rev() {
        set_layer(context.as_fd(), "lowerdir+", lower, id_map)?;
    }
    if let Upper::Directory { upper, work, volatile } = &rootfs.upper {
        set_upper(context.as_fd(), upper, work, id_map)?;
        if *volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")
                .map_err(kernel("set the overlay option volatile"))?;
        }
    }
    fsconfig_create(context.as_fd()).map_err(kernel("mount the overlay"))?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    if matches!(rootfs.upper, Upper::None) {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(kernel("mount the overlay"))
}

fn set_layer(
    context: BorrowedFd<'_>,
    key: &str,
    path: &Path,
    id_map: Option<BorrowedFd<'_>>,
) -> Result<(), SandboxError> {
    let layer = open_layer(path, id_map)?;
    match fsconfig_set_fd(context, key, layer.as_fd()) {
        // Linux before 6.13 takes overlay layers by path only; this one is as good as the descriptor.
        Err(Errno::INVAL) => {
            let path = format!("/proc/self/fd/{}", layer.as_raw_fd());
            fsconfig_set_string(context, key, path.as_str())
        }
        other => other,
    }
    .map_err(|source| SandboxError::Kernel {
        operation: format!(
            "add {} to the overlay as {key}: overlays built from descriptors need Linux 6.5",
            path.display()
        ),
        source: source.into(),
    })
}

/// The upper and work directories have to lie on one mount, so that of their common parent is cloned when mapping.
fn set_upper(
    context: BorrowedFd<'_>,
    upper: &Path,
    work: &Path,
    id_map: Option<BorrowedFd<'_>>,
) -> Result<(), SandboxError> {
    let Some(id_map) = id_map else {
        set_layer(context, "upperdir", upper, None)?;
        return set_layer(context, "workdir", work, None);
    };
    let invalid =
        || SandboxError::Invalid(format!("{} and {} need one parent", upper.display(), work.display()));
    let parent = upper.parent().filter(|parent| work.parent() == Some(parent)).ok_or_else(invalid)?;
    let mount = open_layer(parent, Some(id_map))?;
    for (key, path) in [("upperdir", upper), ("workdir", work)] {
        let name = path.file_name().ok_or_else(invalid)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&mount, name, flags, Mode::empty()).map_err(open(path))?;
        fsconfig_set_fd(context, key, directory.as_fd())
            .map_err(kernel("set the overlay's upper directory"))?;
    }
    Ok(())
}

/// A layer's directory, or an id-mapped clone of its mount.
fn open_layer(path: &Path, id_map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SandboxError> {
    let Some(id_map) = id_map else {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(open(path));
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags).map_err(open(path))?;
    let change = MountChange { id_map: Some(id_map), ..MountChange::default() };
    sys::mount_setattr(mount.as_fd(), change)
        .map_err(|source| SandboxError::IdMap { path: path.to_owned(), source })?;
    Ok(mount)
}

fn bind_read_only(path: &Path, id_map: Option<BorrowedFd<'_>>) -> Result<OwnedFd, SandboxError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags).map_err(open(path))?;
    let change = MountChange { read_only: true, no_dev: true, private: true, recursive: false, id_map };
    sys::mount_setattr(mount.as_fd(), change).map_err(|source| SandboxError::Kernel {
        operation: format!("make {} a read-only root", path.display()),
        source,
    })?;
    Ok(mount)
}

fn open(path: &Path) -> impl FnOnce(Errno) -> SandboxError + '_ {
    move |source| SandboxError::Open { path: path.to_owned(), source: source.into() }
}

fn kernel(operation: &str) -> impl FnOnce(Errno) -> SandboxError + '_ {
    move |source| SandboxError::Kernel { operation: operation.to_owned(), source: io::Error::from(source) }
}
