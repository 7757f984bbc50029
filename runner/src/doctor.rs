//! What this host allows: facts, and a trial of everything that a container needs, as data for `rimg doctor`.
//!
//! Owns finding them out, by doing what `run` does. Leaves wording, advice and verdicts to the command line. Nothing of
//! a trial stays.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;

use crate::kernel::overlay_attributes;
use crate::limits::{Hierarchies, LimitsError, try_limits};
use crate::rootfs::{self, Mechanism};
use crate::sandbox::{Sandbox, SandboxError};
use crate::spec::{Network, RootFs, SandboxSpec, Stdio, Upper};
use crate::sys;
use crate::userns::{self, SingleReason};

/// The facts.
#[derive(Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// Effective user id.
    pub uid: u32,
    /// Whether this process may make a user namespace and be root in it.
    pub user_namespaces: Result<(), NoUserNamespace>,
    /// Subordinate user ids of this user, or why there are none.
    pub subordinate_ids: Result<u32, SingleReason>,
    /// Version of mounted cgroups.
    pub cgroups: CgroupMode,
    /// Each controller, and why it cannot limit, if it cannot.
    pub controllers: Vec<(&'static str, Result<(), LimitsError>)>,
}

/// Why no user namespace is to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoUserNamespace {
    /// What failed.
    pub step: UserNamespaceStep,
    /// The kernel's answer.
    pub errno: i32,
    /// What forbids it, as far as settings tell.
    pub cause: Cause,
}

/// The steps to being root in a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespaceStep {
    /// Making it.
    Make,
    /// Having privileges in it: making a mount namespace.
    Use,
    /// Mapping root to oneself.
    MapIds,
}

/// What forbids user namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The sysctl `user.max_user_namespaces` is 0.
    NoneAllowed,
    /// Debian's sysctl `kernel.unprivileged_userns_clone` is 0.
    RootOnly,
    /// Ubuntu's sysctl `kernel.apparmor_restrict_unprivileged_userns` is 1, and no profile allows this program.
    AppArmorRestriction,
    /// The AppArmor profile that this process is confined by.
    AppArmorProfile(String),
    /// Nothing that shows.
    Unknown,
}

/// cgroup versions in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupMode {
    /// None is mounted.
    None,
    /// Version 1 only.
    V1,
    /// Version 2 only.
    V2,
    /// Both.
    Hybrid,
}

/// Looks around. Single-threaded callers get the truth about user namespaces; it needs a fork.
#[must_use]
pub fn facts() -> Facts {
    let uid = rustix::process::geteuid().as_raw();
    let hierarchies = Hierarchies::of_this_process();
    Facts {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        uid,
        user_namespaces: try_user_namespace().map_err(|(step, errno)| {
            let label = fs::read_to_string("/proc/self/attr/apparmor/current")
                .or_else(|_| fs::read_to_string("/proc/self/attr/current"));
            let cause = cause(Path::new("/proc/sys"), &label.unwrap_or_default(), uid == 0);
            NoUserNamespace { step, errno, cause }
        }),
        subordinate_ids: userns::subordinate_ids(uid),
        cgroups: match (hierarchies.has_v1(), hierarchies.has_unified()) {
            (false, false) => CgroupMode::None,
            (true, false) => CgroupMode::V1,
            (false, true) => CgroupMode::V2,
            (true, true) => CgroupMode::Hybrid,
        },
        controllers: try_limits(),
    }
}

impl Facts {
    /// The controllers that limits can be applied with.
    #[must_use]
    pub fn limits(&self) -> Vec<&'static str> {
        self.controllers.iter().filter(|(_, tried)| tried.is_ok()).map(|(name, _)| *name).collect()
    }
}

/// What of the settings below `settings` (`/proc/sys`) and of this process's AppArmor label forbids user namespaces.
fn cause(settings: &Path, label: &str, is_root: bool) -> Cause {
    let is = |name: &str, value: &str| {
        fs::read_to_string(settings.join(name)).is_ok_and(|text| text.trim() == value)
    };
    if is("user/max_user_namespaces", "0") {
        return Cause::NoneAllowed;
    }
    if !is_root && is("kernel/unprivileged_userns_clone", "0") {
        return Cause::RootOnly;
    }
    let profile = label.trim_end_matches(['\0', '\n']);
    let is_confined = !profile.is_empty() && !profile.starts_with("unconfined");
    if !is_root && is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return Cause::AppArmorRestriction;
    }
    if is_confined { Cause::AppArmorProfile(profile.to_owned()) } else { Cause::Unknown }
}

/// Becomes root in a user namespace as [`userns::enter`] does, in a child.
fn try_user_namespace() -> Result<(), (UserNamespaceStep, i32)> {
    let unknown = |_| (UserNamespaceStep::Make, 0);
    let (mut told, mut tell) = io::pipe().map_err(unknown)?;
    let child = match sys::fork().map_err(unknown)? {
        Some(child) => rustix::process::Pid::from_raw(child),
        None => {
            let (step, errno) = user_namespace_steps().err().unwrap_or((0, 0));
            let _ = tell.write_all(&[step, errno as u8]);
            sys::exit_now(0);
        }
    };
    drop(tell);
    let mut answer = [0; 2];
    let read = told.read_exact(&mut answer);
    let _ = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
    let step = match (read, answer[0]) {
        (Ok(()), 0) => return Ok(()),
        (Ok(()), 2) => UserNamespaceStep::Use,
        (Ok(()), 3) => UserNamespaceStep::MapIds,
        _ => UserNamespaceStep::Make,
    };
    Err((step, i32::from(answer[1])))
}

/// The number of the step that failed, and its errno.
fn user_namespace_steps() -> Result<(), (u8, i32)> {
    use nix::sched::{CloneFlags, unshare};
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| (1, errno as i32))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| (2, errno as i32))?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ];
    for (file, text) in maps {
        fs::write(Path::new("/proc/self").join(file), text)
            .map_err(|error| (3, error.raw_os_error().unwrap_or(0)))?;
    }
    Ok(())
}

/// Why a trial failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Nothing can be written there.
    #[error("write to {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file system does not take the marks that overlayfs keeps on files.
    #[error("keep overlayfs's marks on the file system of {}: {source}", path.display())]
    Marks {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The overlay cannot be mounted.
    #[error(transparent)]
    Overlay(SandboxError),
    /// The sandbox cannot be made.
    #[error(transparent)]
    Sandbox(SandboxError),
    /// It was made, and did something else than to execute the payload.
    #[error("execute the payload: it ended with {0}")]
    Payload(i32),
}

/// Makes an overlay and a sandbox as `run` does, on the file system of `folder`, which exists; with a program that does
/// not, so that everything is done but the payload. Returns how the overlay was mounted.
///
/// To be called after [`userns::enter`].
///
/// # Errors
/// Says what failed.
pub fn trial(folder: &Path) -> Result<Mechanism, TrialError> {
    let place = Place::new(folder)?;
    let rootfs = place.stack()?;
    let mount = rootfs::mount(&rootfs).map_err(TrialError::Overlay)?;
    let root = PathBuf::from(format!("/proc/self/fd/{}/.", mount.as_raw_fd()));
    // Removing what a lower layer has and making it anew takes a mark in the upper directory.
    let marks = |source| TrialError::Marks { path: folder.to_owned(), source };
    fs::remove_dir_all(root.join("directory")).map_err(marks)?;
    fs::create_dir(root.join("directory")).map_err(marks)?;
    if fs::read_dir(root.join("directory")).map_err(marks)?.next().is_some() {
        return Err(marks(io::ErrorKind::DirectoryNotEmpty.into()));
    }
    drop(mount);
    let mut spec = SandboxSpec::new(place.fresh(rootfs)?, vec!["/rimg-doctor".into()]);
    spec.network = Network::None;
    let spawned = Sandbox::new(spec).and_then(|sandbox| sandbox.spawn(Stdio::default()));
    let status = spawned.and_then(|mut running| running.wait()).map_err(TrialError::Sandbox)?;
    match status.exec_error {
        Some(error) if error.errno == libc::ENOENT => Ok(rootfs::working()),
        _ => Err(TrialError::Payload(status.code)),
    }
}

/// A folder of our own, removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new(folder: &Path) -> Result<Place, TrialError> {
        let path = folder.join(format!(".rimg-doctor-{}", std::process::id()));
        fs::create_dir(&path).map_err(|source| TrialError::Folder { path: folder.to_owned(), source })?;
        Ok(Place(path))
    }

    /// Two layers, the upper of which hides something of the lower, and an upper directory.
    fn stack(&self) -> Result<RootFs, TrialError> {
        let [base, layer] = ["base", "layer"].map(|name| self.0.join(name));
        let marked = layer.join("directory");
        let made =
            fs::create_dir_all(base.join("directory/hidden")).and_then(|()| fs::create_dir_all(&marked));
        made.map_err(|source| TrialError::Folder { path: self.0.clone(), source })?;
        let opaque = String::from_utf8_lossy(overlay_attributes().opaque()).into_owned();
        rustix::fs::setxattr(&marked, opaque, b"y", XattrFlags::empty())
            .map_err(|errno| TrialError::Marks { path: self.0.clone(), source: errno.into() })?;
        self.fresh(RootFs { lowers: vec![base, layer], upper: Upper::None })
    }

    /// The same layers with an upper directory that was not used before.
    fn fresh(&self, rootfs: RootFs) -> Result<RootFs, TrialError> {
        let number = fs::read_dir(&self.0).map_or(0, Iterator::count);
        let [upper, work] = ["upper", "work"].map(|name| self.0.join(format!("{name}{number}")));
        let made = fs::create_dir(&upper).and_then(|()| fs::create_dir(&work));
        made.map_err(|source| TrialError::Folder { path: self.0.clone(), source })?;
        Ok(RootFs { upper: Upper::Directory { upper, work, volatile: true }, ..rootfs })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name().and_then(|name| name.to_str()))
        else {
            return;
        };
        // Overlayfs leaves directories without any permission in its work directory.
        let _ = crate::claim::remove(parent, name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_forbids_user_namespaces_is_read_from_the_settings() {
        let settings = tempfile::tempdir().unwrap();
        for folder in ["user", "kernel"] {
            fs::create_dir(settings.path().join(folder)).unwrap();
        }
        let set =
            |name: &str, value: &str| fs::write(settings.path().join(name), format!("{value}\n")).unwrap();
        let found = |label: &str, is_root| cause(settings.path(), label, is_root);
        assert_eq!(found("", false), Cause::Unknown);
        assert_eq!(found("unconfined\n", false), Cause::Unknown);
        assert_eq!(found("rimg (enforce)\n", false), Cause::AppArmorProfile("rimg (enforce)".to_owned()));
        set("kernel/apparmor_restrict_unprivileged_userns", "0");
        assert_eq!(found("unconfined\n", false), Cause::Unknown);
        set("kernel/apparmor_restrict_unprivileged_userns", "1");
        assert_eq!(found("unconfined\n", false), Cause::AppArmorRestriction);
        assert_eq!(found("unprivileged_userns (enforce)\n", false), Cause::AppArmorRestriction);
        assert_eq!(found("unconfined\n", true), Cause::Unknown);
        set("kernel/unprivileged_userns_clone", "0");
        assert_eq!(found("unconfined\n", false), Cause::RootOnly);
        set("user/max_user_namespaces", "0");
        assert_eq!(found("", false), Cause::NoneAllowed);
        assert_eq!(found("", true), Cause::NoneAllowed);
    }
}
