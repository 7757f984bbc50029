//! Facts about this host that decide how well sandboxes work, as data for `rimg doctor`.
//!
//! Owns finding them out, each by the cheapest look that tells the truth. Leaves wording, advice and verdicts to the
//! command line. Nothing is changed, except that a child process tries a user namespace.

use std::fs;
use std::path::Path;

use crate::limits::Hierarchies;
use crate::sys;
use crate::userns::{self, SingleReason};

/// The facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// Effective user id.
    pub uid: u32,
    /// Whether an ordinary process may make a user namespace and be root in it.
    pub user_namespaces: UserNamespaces,
    /// Subordinate user ids of this user, or why there are none.
    pub subordinate_ids: Result<u32, SingleReason>,
    /// The kernel knows overlayfs (it may be a module that loads on demand).
    pub overlay: bool,
    /// The kernel knows seccomp filters.
    pub seccomp: bool,
    /// Version of mounted cgroups.
    pub cgroups: CgroupMode,
    /// Controllers this user can limit with.
    pub limits: Vec<&'static str>,
    /// `/dev/net/tun` can be opened, which rootless networking needs.
    pub tun: bool,
}

/// Whether user namespaces can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespaces {
    /// Yes.
    Allowed,
    /// The kernel refuses to make one: `user.max_user_namespaces` or `kernel.unprivileged_userns_clone` is 0.
    Forbidden,
    /// One can be made, but without privileges inside, as AppArmor has it on Ubuntu since 23.10.
    Restricted,
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
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let uid = rustix::process::geteuid().as_raw();
    let hierarchies = Hierarchies::of_this_process();
    Facts {
        kernel,
        uid,
        user_namespaces: try_user_namespace(),
        subordinate_ids: userns::subordinate_ids(uid),
        overlay: knows_overlay(),
        seccomp: sys::seccomp_available(),
        cgroups: match (hierarchies.has_v1(), hierarchies.has_unified()) {
            (false, false) => CgroupMode::None,
            (true, false) => CgroupMode::V1,
            (false, true) => CgroupMode::V2,
            (true, true) => CgroupMode::Hybrid,
        },
        limits: hierarchies.usable_controllers(),
        tun: fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok(),
    }
}

/// Overlayfs is listed once its module is loaded; a module on disk loads on the first mount.
fn knows_overlay() -> bool {
    let listed = fs::read_to_string("/proc/filesystems")
        .is_ok_and(|list| list.lines().any(|l| l.ends_with("\toverlay")));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let module = Path::new("/lib/modules").join(release).join("kernel/fs/overlayfs");
    listed || module.exists()
}

fn try_user_namespace() -> UserNamespaces {
    use nix::sched::{CloneFlags, unshare};
    let child = match sys::fork() {
        Ok(Some(child)) => rustix::process::Pid::from_raw(child),
        Ok(None) => {
            let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let privileged = made && unshare(CloneFlags::CLONE_NEWNS).is_ok();
            sys::exit_now(i32::from(!made) + 2 * i32::from(made && !privileged));
        }
        Err(_) => None,
    };
    let status = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
    match status.ok().flatten().and_then(|(_, status)| status.exit_status()) {
        Some(0) => UserNamespaces::Allowed,
        Some(2) => UserNamespaces::Restricted,
        _ => UserNamespaces::Forbidden,
    }
}
