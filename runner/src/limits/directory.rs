//! The directories of sandboxes in a cgroup tree: made, locked, swept and removed.
//!
//! A directory is in use as long as somebody holds its lock (flock). A process id would not tell: another pid
//! namespace, such as a container's that shares the cgroup tree, has processes that cannot be seen here.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{LimitsError, kernel};

/// How often a cgroup's removal is tried again while the kernel still takes its last process apart.
const REMOVE_ATTEMPTS: u32 = 50;

/// Patience with the lock of a cgroup: it is held while processes are moved, for milliseconds.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries to get it.
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Makes a directory of our own in `parent` and locks it. What dead processes left there is swept first.
pub(super) fn claim(parent: &Path) -> Result<(PathBuf, OwnedFd), LimitsError> {
    sweep(parent);
    loop {
        match fs::create_dir_all(parent) {
            // It was there, and the last sandbox took it along before the look whether it is a directory.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !parent.is_file() => continue,
            made => made.map_err(kernel("make", parent))?,
        }
        let directory = parent.join(unique_name());
        match fs::create_dir(&directory) {
            // Of a process with our number in another pid namespace, or the last sandbox took `parent` with it.
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
                continue;
            }
            made => made.map_err(kernel("make", &directory))?,
        }
        // Somebody's sweep may have come between.
        if let Some(lock) = lock(&directory).map_err(kernel("lock", &directory))? {
            return Ok((directory, lock));
        }
    }
}

/// Locks a directory; `None` when somebody else has it, or has removed it.
fn lock(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let fd = match open(directory) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let locked = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok((locked && directory.exists()).then_some(fd))
}

/// Waits for the lock of a cgroup whose processes several of us may move. The directory itself is locked for as long as
/// a sandbox lives, if the cgroup is one's. `None` when somebody holds it for longer than `patience`: every user who may
/// read the file can, and must not keep others from running anything.
pub(super) fn wait_for_lock(cgroup: &Path, patience: Duration) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(cgroup.join("cgroup.procs"), flags, Mode::empty())?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(fd)),
            Err(Errno::WOULDBLOCK | Errno::INTR) if began.elapsed() < patience => {
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(directory: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Removes the directories that nobody holds the lock of. What is busy stays for the next time.
pub(super) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if !is_unique_name(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if let Ok(Some(_lock)) = lock(&entry.path()) {
            kill_all(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Kills what is left in a cgroup, where the kernel can, and removes it and its parent, if that is empty.
pub(super) fn remove(directory: &Path) {
    kill_all(directory);
    for _ in 0..REMOVE_ATTEMPTS {
        match fs::remove_dir(directory) {
            // Processes that have been reaped leave their cgroup a moment later.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The next limited sandbox sweeps what is left once this process has ended.
            Ok(()) | Err(_) => break,
        }
    }
    // The caller's cgroup could not be removed with it. Other sandboxes keep it.
    let _ = directory.parent().map(fs::remove_dir);
}

/// Kills every process of a cgroup, where the kernel can: version 2 since Linux 5.14.
fn kill_all(directory: &Path) {
    let _ = write(&directory.join("cgroup.kill"), "1");
}

/// Writes to a file of the cgroup tree. Such a file is never made: with `O_CREAT` one that does not exist answers
/// EACCES.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, text.as_bytes())
}

fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Whether a directory may be one of ours.
fn is_unique_name(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('-').is_some_and(|(pid, count)| number(pid) && number(count))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An ordinary directory locks as a cgroup's does.
    #[test]
    fn a_living_processs_directory_survives_a_sweep_and_a_dead_ones_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("rimg");
        let (live, _lock) = claim(&parent).unwrap();
        // As `kill -9` leaves one, and with the number of a process that does live here.
        let dead = parent.join(format!("{}-999", std::process::id()));
        fs::create_dir(&dead).unwrap();
        let foreign = parent.join("somebody-1");
        fs::create_dir(&foreign).unwrap();
        let (other, _other_lock) = claim(&parent).unwrap();
        assert!(live.exists() && other.exists() && live != other);
        assert!(!dead.exists() && foreign.exists());
    }

    #[test]
    fn many_come_and_go_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("rimg");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let (directory, lock) = claim(&parent).unwrap();
                        drop(lock);
                        remove(&directory);
                    }
                });
            }
        });
        assert!(!parent.exists());
    }

    #[test]
    fn the_last_directory_takes_its_parent_along() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("rimg");
        let (first, first_lock) = claim(&parent).unwrap();
        let (second, _second_lock) = claim(&parent).unwrap();
        drop(first_lock);
        remove(&first);
        assert!(parent.exists() && second.exists());
        remove(&second);
        assert!(!parent.exists() && folder.path().exists());
    }

    #[test]
    fn a_lock_that_somebody_keeps_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.procs"), "").unwrap();
        let first = wait_for_lock(folder.path(), LOCK_PATIENCE).unwrap();
        assert!(first.is_some());
        assert!(wait_for_lock(folder.path(), Duration::ZERO).unwrap().is_none());
        drop(first);
        assert!(wait_for_lock(folder.path(), Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("memory.max"), "1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
