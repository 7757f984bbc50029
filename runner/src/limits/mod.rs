//! Resource limits by cgroups, of version 2, version 1, or both.
//!
//! Owns [`Limits`] and the cgroup of one sandbox. A limit that cannot be applied is an error that says why; it is never
//! left out. `hierarchy` finds out where controllers live, `unified` where sandboxes go in version 2, `directory` makes
//! and removes their directories.
//!
//! In each hierarchy that has a controller we need:
//!
//! ```text
//! <base>/rimg/<pid>-<n>/     one sandbox of the rimg process <pid>, which holds its lock (flock); removed at its end
//! <base>/rimg-callers/       the processes of <base> as long as there are sandboxes, where version 2 needs that
//! ```
//!
//! `<base>` is the caller's own cgroup, or one above it that nothing limits on the way to; so what limits the caller
//! limits the sandbox too. Nothing of it stays behind, unless rimg was killed: the next limited sandbox and
//! `rimg prune` sweep what nobody holds the lock of.

mod directory;
mod hierarchy;
mod unified;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::plan::CgroupMount;
use directory::{claim, write};
pub(crate) use hierarchy::Hierarchies;
use unified::SANDBOXES;

/// Processes and threads of a sandbox, unless told otherwise: OpenShift's default for a pod. Large builds and virtual
/// machines stay below; eight full sandboxes fit into the 32,768 process ids of a small machine.
const PIDS_DEFAULT: u64 = 4096;

/// The scheduler's accounting period for `cpus`, in microseconds; Docker's.
const CPU_PERIOD_MICROS: u64 = 100_000;

/// The kernel refuses a quota below one millisecond.
const CPU_MILLIS_MIN: u64 = 10;

/// Smaller limits cannot even start a process (Docker's minimum).
const MEMORY_BYTES_MIN: u64 = 6 << 20;

/// What a sandbox may use. By default only the number of processes is limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes; as much swap again, as with Docker.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_millis: Option<u64>,
    /// Processes and threads.
    pub pids: PidsLimit,
}

/// How many processes and threads a sandbox may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PidsLimit {
    /// 4096, where that can be applied without moving anybody's processes; else as many as the caller may have.
    #[default]
    Default,
    /// As many as the caller may have.
    Unlimited,
    /// So many. An error where it cannot be applied.
    Max(u64),
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
    /// Makes a cgroup with these limits; `None` when nothing is limited.
    pub(crate) fn make_cgroup(&self) -> Result<Option<Cgroup>, LimitsError> {
        let wanted = self.wanted();
        if wanted.is_empty() {
            return Ok(None);
        }
        self.check()?;
        let hierarchies = Hierarchies::of_this_process();
        let mut cgroup = Cgroup::default();
        for wanted in wanted {
            match cgroup.add(&hierarchies, &wanted) {
                Err(LimitsError::NoController { .. } | LimitsError::NotDelegated { .. })
                    if wanted.default => {}
                other => other?,
            }
        }
        let exists = cgroup.unified.is_some() || !cgroup.v1.is_empty();
        Ok(exists.then_some(cgroup))
    }

    fn check(&self) -> Result<(), LimitsError> {
        let problem = match (self.memory_bytes, self.cpu_millis, self.pids) {
            (Some(bytes), _, _) if bytes < MEMORY_BYTES_MIN => {
                format!("a memory limit of {bytes} bytes is less than the minimum of 6 MiB")
            }
            (_, Some(millis), _) if millis < CPU_MILLIS_MIN => {
                format!("{millis} thousandths of a processor are less than the minimum of {CPU_MILLIS_MIN}")
            }
            (_, _, PidsLimit::Max(0)) => "a sandbox of no processes cannot run".to_owned(),
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
                default: false,
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
                default: false,
                v1: vec![
                    Setting::required("cpu.cfs_period_us", CPU_PERIOD_MICROS.to_string()),
                    Setting::required("cpu.cfs_quota_us", quota.to_string()),
                ],
                v2: vec![Setting::required("cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))],
            });
        }
        let pids = match self.pids {
            PidsLimit::Default => Some(PIDS_DEFAULT),
            PidsLimit::Unlimited => None,
            PidsLimit::Max(pids) => Some(pids),
        };
        if let Some(pids) = pids {
            let setting = || vec![Setting::required("pids.max", pids.to_string())];
            wanted.push(Wanted {
                limit: "the number of processes",
                controller: "pids",
                default: self.pids == PidsLimit::Default,
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
    /// Nobody asked for it: it is left out where that takes more than making a directory.
    default: bool,
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

    /// For a file that a kernel without swap accounting does not have. Any other error counts.
    fn optional(file: &'static str, value: String) -> Setting {
        Setting { file, value, optional: true }
    }
}

/// The cgroup of one sandbox: a directory in each hierarchy concerned, removed when dropped.
#[derive(Debug, Default)]
pub(crate) struct Cgroup {
    unified: Option<Unified>,
    /// Directory, mount options, and the descriptor that holds the lock.
    v1: Vec<(PathBuf, String, OwnedFd)>,
}

impl Cgroup {
    fn add(&mut self, hierarchies: &Hierarchies, wanted: &Wanted) -> Result<(), LimitsError> {
        if hierarchies.v1(wanted.controller).is_some() {
            return self.add_v1(hierarchies, wanted);
        }
        let (limit, controller) = (wanted.limit, wanted.controller);
        let top = hierarchies.unified_top().filter(|top| unified::has(top, controller));
        let top = top.ok_or(LimitsError::NoController { limit, controller })?;
        let undelegated = || LimitsError::NotDelegated { limit, controller };
        let made = match &self.unified {
            Some(_) => None,
            None => {
                let base = hierarchies.unified_base(controller, !wanted.default).ok_or_else(undelegated)?;
                let claimed = claim(&base.join(SANDBOXES));
                Some(Unified::from(claimed.map_err(|error| error.undelegated(limit, controller))?))
            }
        };
        let unified = made.as_ref().or(self.unified.as_ref()).ok_or_else(undelegated)?;
        unified::enable(top, unified.base(), controller, !wanted.default).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::EBUSY | libc::ENOENT | libc::EOPNOTSUPP) => {
                    undelegated()
                }
                _ => kernel("enable a controller for", &unified.directory)(error),
            }
        })?;
        apply(&unified.directory, &wanted.v2)?;
        self.unified = made.or(self.unified.take());
        Ok(())
    }

    fn add_v1(&mut self, hierarchies: &Hierarchies, wanted: &Wanted) -> Result<(), LimitsError> {
        let (limit, controller) = (wanted.limit, wanted.controller);
        let Some((mount, base)) = hierarchies.v1(controller) else {
            return Err(LimitsError::NoController { limit, controller });
        };
        let parent = base.join(SANDBOXES);
        let known = self.v1.iter().find(|(path, ..)| path.parent() == Some(&parent));
        let directory = match known {
            Some((path, ..)) => path.clone(),
            None => {
                let claimed = claim(&parent).map_err(|error| error.undelegated(limit, controller))?;
                self.v1.push((claimed.0.clone(), mount, claimed.1));
                claimed.0
            }
        };
        apply(&directory, &wanted.v1)
    }

    /// The version 2 directory a process can be born in.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|unified| unified.lock.as_fd())
    }

    /// The version 1 files a process writes 0 to in order to join; that of version 2 it was born in.
    ///
    /// A process that moves its only thread takes no lock on all process groups. Moving another process takes it, and
    /// waits for an RCU grace period (kernel/cgroup/cgroup.c, `cgroup_procs_write_start`): half as long again as a start.
    pub(crate) fn join_files(&self) -> Result<Vec<OwnedFd>, LimitsError> {
        let open = |(directory, ..): &(PathBuf, String, OwnedFd)| {
            let path = directory.join("tasks");
            let file = std::fs::OpenOptions::new().write(true).open(&path);
            file.map(OwnedFd::from).map_err(kernel("open", &path))
        };
        self.v1.iter().map(open).collect()
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
        for (directory, ..) in &self.v1 {
            directory::remove(directory);
        }
    }
}

/// A directory of version 2, removed when dropped.
#[derive(Debug)]
struct Unified {
    directory: PathBuf,
    lock: OwnedFd,
}

impl From<(PathBuf, OwnedFd)> for Unified {
    fn from((directory, lock): (PathBuf, OwnedFd)) -> Unified {
        Unified { directory, lock }
    }
}

impl Unified {
    /// The cgroup that has the sandboxes' directories.
    fn base(&self) -> &Path {
        self.directory.ancestors().nth(2).unwrap_or(&self.directory)
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        directory::remove(&self.directory);
        unified::restore(self.base());
    }
}

/// Makes a limited cgroup for each controller, as a limited sandbox has it, and removes it again.
pub(crate) fn try_limits() -> Vec<(&'static str, Result<(), LimitsError>)> {
    let none = Limits { pids: PidsLimit::Unlimited, ..Limits::default() };
    let each = [
        ("memory", Limits { memory_bytes: Some(1 << 30), ..none }),
        ("cpu", Limits { cpu_millis: Some(1000), ..none }),
        ("pids", Limits { pids: PidsLimit::Max(PIDS_DEFAULT), ..none }),
    ];
    each.into_iter().map(|(name, limits)| (name, limits.make_cgroup().map(drop))).collect()
}

/// Removes what killed runs left in this process's cgroups and those above.
pub fn sweep() {
    for base in Hierarchies::of_this_process().bases() {
        let sandboxes = base.join(SANDBOXES);
        if sandboxes.exists() {
            directory::sweep(&sandboxes);
            let _ = std::fs::remove_dir(&sandboxes);
        }
        unified::restore(&base);
    }
}

fn apply(directory: &Path, settings: &[Setting]) -> Result<(), LimitsError> {
    for setting in settings {
        let path = directory.join(setting.file);
        match write(&path, &setting.value) {
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => {}
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        let limits = |memory_bytes, cpu_millis, pids| Limits { memory_bytes, cpu_millis, pids };
        let default = PidsLimit::Default;
        for wrong in [
            limits(Some(5), None, default),
            limits(None, Some(1), default),
            limits(None, None, PidsLimit::Max(0)),
        ] {
            assert!(matches!(wrong.check(), Err(LimitsError::Invalid(_))), "{wrong:?}");
        }
        assert!(limits(Some(64 << 20), Some(500), PidsLimit::Max(10)).check().is_ok());
    }

    fn shown(limits: Limits) -> Vec<String> {
        let wanted = limits.wanted();
        let settings = wanted.iter().flat_map(|wanted| wanted.v2.iter().chain(&wanted.v1));
        settings.map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    }

    #[test]
    fn limits_become_the_kernels_numbers() {
        let limits = Limits { memory_bytes: Some(1 << 30), cpu_millis: Some(1500), pids: PidsLimit::Max(7) };
        assert_eq!(
            shown(limits),
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
        assert_eq!(shown(Limits::default()), ["pids.max=4096", "pids.max=4096"]);
        assert!(shown(Limits { pids: PidsLimit::Unlimited, ..Limits::default() }).is_empty());
    }

    /// Swap accounting may not be there; a limit on swap that the kernel refuses is another thing.
    #[test]
    fn only_a_file_that_is_not_there_makes_a_setting_optional() {
        let folder = tempfile::tempdir().unwrap();
        let settings = [Setting::optional("memory.swap.max", "1".to_owned())];
        apply(folder.path(), &settings).unwrap();
        // What refuses to be written, whoever writes it.
        fs::create_dir(folder.path().join("memory.swap.max")).unwrap();
        assert!(matches!(apply(folder.path(), &settings), Err(LimitsError::Kernel { .. })));
        assert!(apply(folder.path(), &[Setting::required("pids.max", "1".to_owned())]).is_err());
    }
}
