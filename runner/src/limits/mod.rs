//! Resource limits by cgroups, of version 2, version 1, or both.
//!
//! Owns [`Limits`], the cgroup of one sandbox and its removal. A limit that cannot be applied is an error that says
//! why; it is never left out. `hierarchy` finds out where controllers live.
//!
//! Directories, in each hierarchy that has a controller we need:
//!
//! ```text
//! <base>/rimg/<pid>-<n>/     one sandbox of the rimg process <pid>, which holds its lock (flock); removed at its end
//! ```
//!
//! `<base>` is the topmost cgroup we may write to on version 2, where a cgroup with processes cannot have limited
//! children, and our own cgroup on version 1, so that limits we live under hold for the sandbox too. Directories that
//! nobody holds the lock of are swept when the next limited sandbox starts. A process id would not tell: another pid
//! namespace, such as a container's that shares the cgroup tree, has processes that cannot be seen here.

mod hierarchy;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::plan::CgroupMount;
pub(crate) use hierarchy::Hierarchies;

/// The scheduler's accounting period for `cpus`, in microseconds; Docker's.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// The kernel refuses a quota below one millisecond.
const CPU_MILLIS_MIN: u64 = 10;

/// Smaller limits cannot even start a process (Docker's minimum).
const MEMORY_BYTES_MIN: u64 = 6 << 20;

/// How often a cgroup's removal is tried again while the kernel still takes its last process apart.
const REMOVE_ATTEMPTS: u32 = 50;

/// What a sandbox may use. Nothing is limited by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes; as much swap again, as with Docker.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// Why a limit cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// The number makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// No hierarchy offers the controller.
    #[error("limit {limit}: this system has no cgroup controller `{controller}` mounted (run `rimg doctor`)")]
    NoController {
        /// What was to be limited.
        limit: &'static str,
        /// The controller it takes.
        controller: &'static str,
    },
    /// There is no cgroup we may make children in.
    #[error(
        "limit {limit}: the cgroup controller `{controller}` is not delegated to this user: run as root, or, where \
         it is of cgroup version 2, with `systemd-run --user --scope -p Delegate=yes rimg …` (run `rimg doctor`)"
    )]
    NotDelegated {
        /// What was to be limited.
        limit: &'static str,
        /// The controller it takes.
        controller: &'static str,
    },
    /// The kernel refused.
    #[error("apply a limit: {operation} {path}: {source}", path = path.display())]
    Kernel {
        /// What was attempted.
        operation: &'static str,
        /// The file of the cgroup tree.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Limits {
    /// Whether nothing is limited, so that no cgroup is needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// Makes a cgroup with these limits; `None` when nothing is limited.
    pub(crate) fn make_cgroup(&self) -> Result<Option<Cgroup>, LimitsError> {
        if self.is_empty() {
            return Ok(None);
        }
        self.check()?;
        let hierarchies = Hierarchies::of_this_process();
        let mut cgroup = Cgroup::default();
        for wanted in self.wanted() {
            cgroup.add(&hierarchies, &wanted)?;
        }
        Ok(Some(cgroup))
    }

    fn check(&self) -> Result<(), LimitsError> {
        let problem = match (self.memory_bytes, self.cpu_millis, self.pids) {
            (Some(bytes), _, _) if bytes < MEMORY_BYTES_MIN => {
                format!("a memory limit of {bytes} bytes is less than the minimum of 6 MiB")
            }
            (_, Some(millis), _) if millis < CPU_MILLIS_MIN => {
                format!("{millis} thousandths of a processor are less than the minimum of {CPU_MILLIS_MIN}")
            }
            (_, _, Some(0)) => "a sandbox of no processes cannot run".to_owned(),
            _ => return Ok(()),
        };
        Err(LimitsError::Invalid(problem))
    }

    fn wanted(&self) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        if let Some(bytes) = self.memory_bytes {
            wanted.push(Wanted {
                limit: "memory",
                controller: "memory",
                v1: vec![
                    Setting::required("memory.limit_in_bytes", bytes.to_string()),
                    Setting::optional("memory.memsw.limit_in_bytes", bytes.saturating_mul(2).to_string()),
                ],
                v2: vec![
                    Setting::required("memory.max", bytes.to_string()),
                    Setting::optional("memory.swap.max", bytes.to_string()),
                ],
            });
        }
        if let Some(millis) = self.cpu_millis {
            let quota = millis.saturating_mul(CPU_PERIOD_MICROS) / 1000;
            wanted.push(Wanted {
                limit: "processor time",
                controller: "cpu",
                v1: vec![
                    Setting::required("cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string()),
                    Setting::required("cpu.cfs_quota_us", quota.to_string()),
                ],
                v2: vec![Setting::required("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))],
            });
        }
        if let Some(pids) = self.pids {
            let setting = || vec![Setting::required("pids.max", pids.to_string())];
            wanted.push(Wanted {
                limit: "the number of processes",
                controller: "pids",
                v1: setting(),
                v2: setting(),
            });
        }
        wanted
    }
}

/// One limit and the files it is written to.
struct Wanted {
    limit: &'static str,
    controller: &'static str,
    v1: Vec<Setting>,
    v2: Vec<Setting>,
}

struct Setting {
    file: &'static str,
    value: String,
    optional: bool,
}

impl Setting {
    fn required(file: &'static str, value: String) -> Setting {
        Setting { file, value, optional: false }
    }

    /// For files that a kernel without swap accounting does not have.
    fn optional(file: &'static str, value: String) -> Setting {
        Setting { file, value, optional: true }
    }
}

/// The cgroup of one sandbox: a directory in each hierarchy concerned, removed when dropped.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    /// The directory; the descriptor holds its lock.
    unified: Option<(PathBuf, OwnedFd)>,
    /// Directory, mount options, and the descriptor that holds the lock.
    v1: Vec<(PathBuf, String, OwnedFd)>,
}

impl Cgroup {
    fn add(&mut self, hierarchies: &Hierarchies, wanted: &Wanted) -> Result<(), LimitsError> {
        let (limit, controller) = (wanted.limit, wanted.controller);
        if let Some((mount, base)) = hierarchies.v1(controller) {
            let parent = base.join("rimg");
            let known = self.v1.iter().find(|(path, ..)| path.parent() == Some(&parent));
            let directory = match known {
                Some((path, ..)) => path.clone(),
                None => {
                    let claimed = claim(&parent).map_err(|error| error.undelegated(limit, controller))?;
                    self.v1.push((claimed.0.clone(), mount, claimed.1));
                    claimed.0
                }
            };
            return apply(&directory, &wanted.v1);
        }
        if !hierarchies.unified_has(controller) {
            return Err(LimitsError::NoController { limit, controller });
        }
        if self.unified.is_none() {
            let base = hierarchies
                .unified_base(controller)
                .ok_or(LimitsError::NotDelegated { limit, controller })?;
            self.unified =
                Some(claim(&base.join("rimg")).map_err(|error| error.undelegated(limit, controller))?);
        }
        let Some((directory, _)) = &self.unified else {
            return Err(LimitsError::NotDelegated { limit, controller });
        };
        enable(directory, controller).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EBUSY | libc::ENOENT) => {
                LimitsError::NotDelegated { limit, controller }
            }
            _ => kernel("enable a controller for", directory)(error),
        })?;
        apply(directory, &wanted.v2)
    }

    /// The version 2 directory a process can be born in.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, fd)| fd.as_fd())
    }

    /// Puts a process into the version 1 directories; that of version 2 it was born in.
    pub(crate) fn join(&self, pid: i32) -> Result<(), LimitsError> {
        for (directory, ..) in &self.v1 {
            let path = directory.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(kernel("write", &path))?;
        }
        Ok(())
    }

    /// What to show of it inside.
    pub(crate) fn mounts(&self) -> Vec<CgroupMount> {
        let unified = self.unified.iter().map(|_| CgroupMount::Unified);
        unified
            .chain(self.v1.iter().map(|(_, options, _)| CgroupMount::Controller(options.clone())))
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some((directory, _)) = &self.unified {
            remove(directory);
        }
        for (directory, ..) in &self.v1 {
            remove(directory);
        }
    }
}

/// Makes a directory of our own in `parent` and locks it. What dead processes left there is swept first.
fn claim(parent: &Path) -> Result<(PathBuf, OwnedFd), LimitsError> {
    fs::create_dir_all(parent).map_err(kernel("make", parent))?;
    sweep(parent);
    loop {
        let directory = parent.join(unique_name());
        match fs::create_dir(&directory) {
            // Of a process with our number in another pid namespace.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
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
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(directory, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let locked = rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok((locked && directory.exists()).then_some(fd))
}

/// Removes the directories that nobody holds the lock of. What is busy stays for the next time.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if let Ok(Some(_lock)) = lock(&entry.path()) {
            kill_all(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Kills every process of a cgroup, where the kernel can: version 2 since Linux 5.14.
fn kill_all(directory: &Path) {
    let file = fs::OpenOptions::new().write(true).open(directory.join("cgroup.kill"));
    let _ = file.and_then(|mut file| io::Write::write_all(&mut file, b"1"));
}

/// Kills what is left in a cgroup, where the kernel can, and removes it.
fn remove(directory: &Path) {
    kill_all(directory);
    for _ in 0..REMOVE_ATTEMPTS {
        match fs::remove_dir(directory) {
            // Processes that have been reaped leave their cgroup a moment later.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            // The next limited sandbox sweeps what is left once this process has ended.
            Ok(()) | Err(_) => return,
        }
    }
}

/// Enables a controller on the way from the base to `directory`, which is `<base>/rimg/<name>`.
fn enable(directory: &Path, controller: &str) -> io::Result<()> {
    let text = format!("+{controller}");
    for ancestor in [directory.ancestors().nth(2), directory.parent()].into_iter().flatten() {
        let enabled = fs::read_to_string(ancestor.join("cgroup.subtree_control"))?;
        if !enabled.split_ascii_whitespace().any(|name| name == controller) {
            fs::write(ancestor.join("cgroup.subtree_control"), &text)?;
        }
    }
    Ok(())
}

fn apply(directory: &Path, settings: &[Setting]) -> Result<(), LimitsError> {
    for setting in settings {
        let path = directory.join(setting.file);
        match fs::write(&path, &setting.value) {
            Err(_) if setting.optional => {}
            other => other.map_err(kernel("write", &path))?,
        }
    }
    Ok(())
}

fn kernel<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LimitsError + 'a {
    move |source| LimitsError::Kernel { operation, path: path.to_owned(), source }
}

impl LimitsError {
    /// A directory that may not be made means that the controller is not this user's.
    fn undelegated(self, limit: &'static str, controller: &'static str) -> LimitsError {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self {
            LimitsError::Kernel { source, .. }
                if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) =>
            {
                LimitsError::NotDelegated { limit, controller }
            }
            other => other,
        }
    }
}

fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let limits = |memory_bytes, cpu_millis, pids| Limits { memory_bytes, cpu_millis, pids };
        for wrong in [limits(Some(5), None, None), limits(None, Some(1), None), limits(None, None, Some(0))] {
            assert!(matches!(wrong.check(), Err(LimitsError::Invalid(_))), "{wrong:?}");
        }
        assert!(limits(Some(64 << 20), Some(500), Some(10)).check().is_ok());
    }

    /// An ordinary directory locks as a cgroup's does.
    #[test]
    fn a_living_processs_directory_survives_a_sweep_and_a_dead_ones_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (live, _lock) = claim(folder.path()).unwrap();
        // As `kill -9` leaves one, and with the number of a process that does live here.
        let dead = folder.path().join(format!("{}-999", std::process::id()));
        fs::create_dir(&dead).unwrap();
        let (other, _other_lock) = claim(folder.path()).unwrap();
        assert!(live.exists() && other.exists() && live != other);
        assert!(!dead.exists());
    }

    #[test]
    fn limits_become_the_kernels_numbers() {
        let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1500), pids: Some(7) };
        let shown: Vec<_> = limits
            .wanted()
            .iter()
            .flat_map(|wanted| wanted.v2.iter().chain(&wanted.v1))
            .map(|setting| format!("{}={}", setting.file, setting.value))
            .collect();
        assert_eq!(
            shown,
            [
                "memory.max=1073741824",
                "memory.swap.max=1073741824",
                "memory.limit_in_bytes=1073741824",
                "memory.memsw.limit_in_bytes=2147483648",
                "cpu.max=150000 100000",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=150000",
                "pids.max=7",
                "pids.max=7",
            ]
        );
    }
}
