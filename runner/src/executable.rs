//! Our own executable as a sandbox's init gets it: through a descriptor by which nobody can write it.
//!
//! The image of process 1 and of the payload before its exec is the host's binary, and `/proc/<pid>/exe` leads to it
//! (CVE-2019-5736). Init therefore executes it from a read-only clone of its mount, which is attached nowhere and so
//! cannot be made writable again; where no such clone is to be had, from a sealed copy in memory. There is no third way.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mounts;
use crate::sys::MountChange;

/// The running program.
const EXE: &str = "/proc/self/exe";

/// The executable of this process, for `execveat`.
pub(crate) fn unwritable() -> io::Result<OwnedFd> {
    read_only_clone().or_else(|_| sealed_copy())
}

/// A read-only clone of the executable's mount.
///
/// `/proc/self/exe` itself will not do: it lies on a mount of the namespace in which the program was started, and the
/// kernel clones mounts of the present one only. So the file is found again by its name, and has to be the same.
fn read_only_clone() -> io::Result<OwnedFd> {
    let running = rustix::fs::stat(EXE)?;
    let name = rustix::fs::readlinkat(CWD, EXE, Vec::new())?;
    let named =
        rustix::fs::openat(CWD, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = rustix::fs::fstat(&named)?;
    if (running.st_dev, running.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&named, "", flags)?;
    mounts::restrict(mount, MountChange { read_only: true, private: true, ..MountChange::default() })
}

/// A copy that the kernel lets nobody change, for binaries that were replaced or removed while they run.
fn sealed_copy() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A system may make memory files not executable (sysctl vm.memfd_noexec) unless told; before Linux 6.3 nothing can be told.
    let memory = match rustix::fs::memfd_create("rimg", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("rimg", flags),
        other => other,
    };
    let mut copy = File::from(memory?);
    io::copy(&mut File::open(EXE)?, &mut copy)?;
    rustix::fs::fcntl_add_seals(
        &copy,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    // The kernel executes nothing that somebody has open for writing.
    let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(rustix::fs::open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_whole_and_sealed() {
        let copy = sealed_copy().unwrap();
        let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
        assert!(std::fs::read(&name).unwrap() == std::fs::read(EXE).unwrap());
        let open = File::open(&name).unwrap();
        assert!(rustix::fs::fcntl_get_seals(&open).unwrap().contains(SealFlags::WRITE | SealFlags::SEAL));
        assert!(std::process::Command::new(&name).arg("--list").output().unwrap().status.success());
    }
}
