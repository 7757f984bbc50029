//! Where limited sandboxes go in version 2, and how room for them is made.
//!
//! There, a cgroup with processes of its own cannot have children with controllers ("no internal process",
//! Documentation/admin-guide/cgroup-v2.rst), and the caller is a process of its own cgroup. A sandbox goes
//!
//! 1. into the caller's cgroup, where that can have such children already, or the caller is alone in it;
//! 2. else into the nearest ancestor that can, as long as no cgroup on the way limits anything;
//! 3. else into the caller's cgroup, whose processes are moved into a leaf of it for as long as there are sandboxes:
//!    a limit that the caller lives under holds for what it starts.
//!
//! The third way, and the first for a caller that is alone, are for limits somebody asked for only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{LOCK_PATIENCE, wait_for_lock, write};

/// The leaf that the caller's processes are moved into.
const CALLERS: &str = "rimg-callers";

/// Where sandboxes' directories lie below their base.
pub(super) const SANDBOXES: &str = "rimg";

/// Processes may fork while they are moved; a cgroup that is not empty after so many rounds is left as it is.
const MOVE_ROUNDS_MAX: u32 = 50;

/// What limits the processes of a cgroup, with the values that limit nothing.
const LIMITING_FILES: [&str; 8] = [
    "memory.max",
    "memory.high",
    "memory.swap.max",
    "pids.max",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "io.max",
];

/// The cgroup to make children in that `controller` limits, for a caller in `own` of the hierarchy mounted at `top`.
/// `None` where there is no such cgroup.
pub(super) fn base(top: &Path, own: &Path, controller: &str, may_move: bool) -> Option<PathBuf> {
    // An earlier run moved us there.
    let own = if own.ends_with(CALLERS) { own.parent()? } else { own };
    let alone = may_move && processes(own).is_ok_and(|pids| pids == [std::process::id().to_string()]);
    let usable = |cgroup: &Path| can_change(cgroup) && is_available(top, cgroup, controller, may_move);
    if alone && usable(own) {
        return Some(own.to_owned());
    }
    let mut candidate = own;
    while usable(candidate) {
        if is_ready(candidate) {
            return Some(candidate.to_owned());
        }
        if candidate == top || limits(candidate) {
            break;
        }
        candidate = candidate.parent()?;
    }
    (may_move && usable(own)).then(|| own.to_owned())
}

/// Enables `controller` for the children of `base`, which lies below `top`, and of [`SANDBOXES`] in it, which exists.
/// Moves the processes of `base` out of the way if `may_move`. Where the system has the controller off on the way to
/// `base`, it is switched on and stays so: others may have begun to use it.
///
/// # Errors
/// The kernel's; EBUSY where processes are in the way.
pub(super) fn enable(top: &Path, base: &Path, controller: &str, may_move: bool) -> io::Result<()> {
    // Without the lock it may fail while others move processes; nothing worse.
    let _lock = wait_for_lock(base, LOCK_PATIENCE)?;
    if !has(base, controller) {
        if !may_move {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        let mut above: Vec<&Path> =
            base.ancestors().skip(1).take_while(|path| path.starts_with(top)).collect();
        above.reverse();
        above.into_iter().try_for_each(|cgroup| enable_for_children(cgroup, controller))?;
    }
    if !is_ready(base) {
        if !may_move {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let moved = move_away(base);
        if moved.is_err() {
            restore_locked(base);
        }
        moved?;
    }
    enable_for_children(base, controller)?;
    enable_for_children(&base.join(SANDBOXES), controller)
}

fn move_away(base: &Path) -> io::Result<()> {
    let leaf = base.join(CALLERS);
    match fs::create_dir(&leaf) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    move_processes(base, &leaf)
}

/// Takes back what [`enable`] did to a cgroup whose processes it moved, once there are no sandboxes in it.
pub(super) fn restore(base: &Path) {
    if base.join(CALLERS).exists()
        && let Ok(Some(_lock)) = wait_for_lock(base, LOCK_PATIENCE)
        && !base.join(SANDBOXES).exists()
    {
        restore_locked(base);
    }
}

fn restore_locked(base: &Path) {
    let control = base.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    let off: Vec<String> = enabled.split_ascii_whitespace().map(|name| format!("-{name}")).collect();
    // What cannot be taken back now stays for the next run that ends here.
    let _ = write(&control, &off.join(" "));
    let leaf = base.join(CALLERS);
    let _ = move_processes(&leaf, base);
    let _ = fs::remove_dir(leaf);
}

fn enable_for_children(cgroup: &Path, controller: &str) -> io::Result<()> {
    if enabled(cgroup, controller)? {
        return Ok(());
    }
    write(&cgroup.join("cgroup.subtree_control"), &format!("+{controller}"))
}

fn move_processes(from: &Path, to: &Path) -> io::Result<()> {
    let target = to.join("cgroup.procs");
    for _ in 0..MOVE_ROUNDS_MAX {
        let pids = processes(from)?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            match write(&target, &pid) {
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other?,
            }
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Those of the cgroup itself; "0" is one of another pid namespace.
fn processes(cgroup: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    Ok(text.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Whether a cgroup can have limited children as it is. The kernel itself would let one with processes have some
/// controllers (pids, cpu), but makes its children threads of it, which cannot be limited as a whole.
fn is_ready(cgroup: &Path) -> bool {
    // The true root, which alone has no type, is free of the rule.
    !cgroup.join("cgroup.type").exists() || processes(cgroup).is_ok_and(|pids| pids.is_empty())
}

fn enabled(cgroup: &Path, controller: &str) -> io::Result<bool> {
    let text = fs::read_to_string(cgroup.join("cgroup.subtree_control"))?;
    Ok(text.split_ascii_whitespace().any(|name| name == controller))
}

/// Whether the cgroup has the controller, or can get it from those above, if it `may`.
fn is_available(top: &Path, cgroup: &Path, controller: &str, may: bool) -> bool {
    let mut above = cgroup.ancestors().skip(1).take_while(|path| path.starts_with(top));
    has(cgroup, controller)
        || (may
            && has(top, controller)
            && above.all(|path| enabled(path, controller).unwrap_or(false) || can_change(path)))
}

/// Whether the cgroup has the controller at all.
pub(super) fn has(cgroup: &Path, controller: &str) -> bool {
    fs::read_to_string(cgroup.join("cgroup.controllers"))
        .is_ok_and(|list| list.split_ascii_whitespace().any(|name| name == controller))
}

fn can_change(cgroup: &Path) -> bool {
    let writable = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
    // A process is born in a child only where it could be moved there.
    writable(cgroup)
        && ["cgroup.subtree_control", "cgroup.procs"].iter().all(|file| writable(&cgroup.join(file)))
}

/// Whether the cgroup limits what is in it. What cannot be read counts as a limit.
fn limits(cgroup: &Path) -> bool {
    LIMITING_FILES.iter().any(|file| match fs::read_to_string(cgroup.join(file)) {
        Ok(text) => !text.trim().is_empty() && text.split_ascii_whitespace().next() != Some("max"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A cgroup as files: what of it decides where sandboxes go.
    fn cgroup(path: &Path, processes: &str, enabled: &str, limits: &[(&str, &str)]) {
        fs::create_dir_all(path).unwrap();
        let fixed = [("cgroup.type", "domain"), ("cgroup.controllers", "memory pids"), ("memory.max", "max")];
        let own =
            [("cgroup.procs", processes), ("cgroup.subtree_control", enabled), ("cpu.max", "max 100000")];
        for (file, text) in fixed.iter().chain(&own).chain(limits) {
            fs::write(path.join(file), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn a_sandbox_stays_below_every_limit_of_its_caller() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        let own = top.join("slice/scope");
        let us = std::process::id().to_string();
        let limited: &[(&str, &str)] = &[("pids.max", "4915")];
        let place = |may_move| {
            base(top, &own, "memory", may_move).map(|base| base.strip_prefix(top).unwrap().to_owned())
        };
        let slice = Some(PathBuf::from("slice"));
        let scope = Some(PathBuf::from("slice/scope"));
        cgroup(top, "1", "memory pids", &[]);
        cgroup(&top.join("slice"), "", "memory", &[]);
        // A login session: others' processes, and nothing that limits.
        cgroup(&own, "1\n2", "", &[]);
        assert_eq!((place(false), place(true)), (slice.clone(), slice.clone()));
        // A scope with a limit of its own.
        cgroup(&own, "1\n2", "", limited);
        assert_eq!((place(false), place(true)), (None, scope.clone()));
        cgroup(&own, "1\n2", "", &[("pids.max", "max"), ("cpuset.cpus", "0-1")]);
        assert_eq!((place(false), place(true)), (None, scope.clone()));
        fs::remove_file(own.join("cpuset.cpus")).unwrap();
        // As the kernel allows for controllers of threads.
        cgroup(&own, "1\n2", "memory", limited);
        assert_eq!((place(false), place(true)), (None, scope.clone()));
        // We are alone in it.
        cgroup(&own, &us, "", &[("pids.max", "max")]);
        assert_eq!((place(false), place(true)), (slice, scope.clone()));
        // An earlier run has moved the processes.
        cgroup(&own, "", "memory", limited);
        let leaf = own.join(CALLERS);
        cgroup(&leaf, "1\n2", "", &[]);
        assert_eq!(base(top, &leaf, "memory", false), Some(own.clone()));
        // Inside a container the topmost cgroup has processes, and is not the root.
        assert_eq!(base(&own, &own, "memory", false), Some(own.clone()));
        cgroup(&own, "1\n2", "", &[]);
        assert_eq!(
            (base(&own, &own, "memory", false), base(&own, &own, "memory", true)),
            (None, Some(own.clone()))
        );
        // A controller that is not there.
        assert_eq!(base(top, &own, "cpu", true), None);
        // One that the system has off on the way.
        fs::write(top.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        cgroup(&own, "1\n2", "", limited);
        assert_eq!((base(top, &own, "cpu", false), base(top, &own, "cpu", true)), (None, Some(own.clone())));
    }
}
