//! The kernel's own file systems inside a sandbox: procfs, sysfs, `/dev`, cgroups, and what is hidden of them.
//!
//! Owns what each of them looks like inside. All of them are mounts that init itself has just made, reached by
//! descriptor, so nothing the image ships can take their place: not a `/proc` that swallows writes, not a `/dev/null`
//! that is a link. Device nodes come from the host by descriptor, after a look at their numbers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::message::SetupFailure;
use crate::mounts;
use crate::plan::{CgroupMount, SysMount};
use crate::spec::WindowSize;
use crate::sys::{self, MountChange};
use crate::tree::{self, OrFail, Tree, attach, attach_at, clone_mount, new_file_system};

/// Nodes every container may use, with their numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Symbolic links in /dev.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Where the kernel lists processors.
const PROCESSORS: &str = "sys/devices/system/cpu";

/// The group `tty` of every distribution, which owns terminals.
const TTY_GROUP: u32 = 5;

/// Both ends of a sandbox's terminal.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
}

fn quiet() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// A fresh procfs of our process namespace at `/proc`.
pub(crate) fn mount_proc(tree: &mut Tree) -> Result<(), SetupFailure> {
    let point = tree.system_directory("proc")?;
    let mount = new_file_system("proc", &[], quiet()).or_fail(|| "mount a fresh procfs".to_owned())?;
    attach(mount.as_fd(), point.as_fd()).or_fail(|| "attach procfs at /proc".to_owned())?;
    tree.proc = Some(mount);
    Ok(())
}

/// Lets users other than root listen on every port and send pings, as docker does in networks of containers: nobody else
/// is there. A kernel without one of the settings goes without.
pub(crate) fn set_network(tree: &Tree, ping_group_last: u32) -> Result<(), SetupFailure> {
    let settings = [
        ("sys/net/ipv4/ip_unprivileged_port_start", "0".to_owned()),
        ("sys/net/ipv4/ping_group_range", format!("0 {ping_group_last}")),
    ];
    for (path, value) in settings {
        let operation = || format!("write `{value}` to /proc/{path}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(tree.proc()?, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {}
            opened => {
                rustix::io::write(opened.or_fail(operation)?, value.as_bytes()).or_fail(operation)?;
            }
        }
    }
    Ok(())
}

/// sysfs at `/sys`, read-only, without anything that the host has mounted below its own.
///
/// A fresh one belongs to a network namespace and may be mounted only by its owner. With the host's network that is the
/// parent, if it is the host's root; else the host's own `/sys` is shown, whose mounts below cannot be left out, so they
/// are covered.
pub(crate) fn mount_sys(tree: &mut Tree, kind: SysMount) -> Result<(), SetupFailure> {
    let point = tree.system_directory("sys")?;
    let mount = match kind {
        SysMount::Fresh => {
            let attributes = quiet() | MountAttrFlags::MOUNT_ATTR_RDONLY;
            new_file_system("sysfs", &[], attributes).or_fail(|| "mount a fresh sysfs".to_owned())?
        }
        SysMount::Prepared(fd) => {
            sys::inherited_fd(fd).or_fail(|| "take over the prepared sysfs".to_owned())?
        }
        SysMount::Host => clone_mount(CWD, "/sys", true).or_fail(|| "clone the host's /sys".to_owned())?,
    };
    // Before it is attached, which makes one more of them.
    let below = if kind == SysMount::Host { tree::mounts_below("/sys")? } else { Vec::new() };
    attach(mount.as_fd(), point.as_fd()).or_fail(|| "attach sysfs at /sys".to_owned())?;
    if kind == SysMount::Host {
        let change = MountChange {
            read_only: true,
            no_suid: true,
            no_dev: true,
            no_exec: true,
            recursive: true,
            ..MountChange::default()
        };
        mounts::restrict_attached(mount.as_fd(), change).or_fail(|| "make /sys read-only".to_owned())?;
    }
    tree.sys = Some(mount);
    for path in below {
        mask(tree, &format!("sys/{path}"))?;
    }
    Ok(())
}

/// A fresh sysfs of the network namespace that this process is in, for a sandbox that shares it; `None` where only the
/// namespace's owner may mount one, and this process is not.
pub(crate) fn prepare_sys() -> Result<Option<OwnedFd>, Errno> {
    match new_file_system("sysfs", &[], quiet() | MountAttrFlags::MOUNT_ATTR_RDONLY) {
        Err(Errno::PERM) => Ok(None),
        other => other.map(Some),
    }
}

/// The tmpfs at `/dev` and everything in it.
pub(crate) fn mount_dev(tree: &mut Tree, shm_size_bytes: u64) -> Result<(), SetupFailure> {
    let point = tree.system_directory("dev")?;
    // The nodes are mounts of their own: one that a payload makes here opens nothing.
    let attributes = quiet();
    let options = [("mode", Some("755")), ("size", Some("64m"))];
    let dev =
        new_file_system("tmpfs", &options, attributes).or_fail(|| "mount a tmpfs for /dev".to_owned())?;
    attach(dev.as_fd(), point.as_fd()).or_fail(|| "attach a tmpfs at /dev".to_owned())?;
    for (name, major, minor) in DEVICES {
        let node = host_device(name, major, minor)?;
        bind_device(node.as_fd(), dev.as_fd(), name).or_fail(|| format!("bind the host's /dev/{name}"))?;
    }
    // Now, while nothing the image or the caller wants can have taken its place.
    let null = rustix::fs::openat(&dev, "null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    tree.null = Some(null.or_fail(|| "open the sandbox's /dev/null".to_owned())?);
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).or_fail(|| format!("make the link /dev/{name}"))?;
    }
    let shm_size = shm_size_bytes.to_string();
    let shm = [("mode", Some("1777")), ("size", Some(shm_size.as_str()))];
    mount_below_dev(dev.as_fd(), "shm", "tmpfs", &shm, quiet())?;
    mount_below_dev(dev.as_fd(), "mqueue", "mqueue", &[], quiet())?;
    tree.dev = Some(dev);
    Ok(())
}

/// devpts at `/dev/pts`.
pub(crate) fn mount_devpts(tree: &Tree) -> Result<OwnedFd, SetupFailure> {
    let dev = dev_of(tree)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let group = TTY_GROUP.to_string();
    let with_group = [("ptmxmode", Some("0666")), ("mode", Some("0620")), ("gid", Some(group.as_str()))];
    rustix::fs::mkdirat(dev, "pts", Mode::from(0o755)).or_fail(|| "make /dev/pts".to_owned())?;
    // Where only one id is mapped there is no group 5, and the kernel says EINVAL.
    let mount = match new_file_system("devpts", &with_group, attributes) {
        Err(Errno::INVAL) => new_file_system("devpts", &with_group[..2], attributes),
        other => other,
    };
    let mount = mount.or_fail(|| "mount a devpts".to_owned())?;
    attach_at(mount.as_fd(), dev, "pts").or_fail(|| "attach devpts at /dev/pts".to_owned())?;
    Ok(mount)
}

fn mount_below_dev(
    dev: BorrowedFd<'_>,
    name: &str,
    kind: &str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
) -> Result<(), SetupFailure> {
    rustix::fs::mkdirat(dev, name, Mode::from(0o755)).or_fail(|| format!("make /dev/{name}"))?;
    let mount =
        new_file_system(kind, options, attributes).or_fail(|| format!("mount a {kind} for /dev/{name}"))?;
    attach_at(mount.as_fd(), dev, name).or_fail(|| format!("attach {kind} at /dev/{name}"))
}

/// A terminal of the sandbox's own devpts, also bound at `/dev/console`.
pub(crate) fn open_terminal(tree: &Tree, pts: &OwnedFd, size: WindowSize) -> Result<Terminal, SetupFailure> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(pts, "ptmx", flags, Mode::empty());
    let master = opened.or_fail(|| "open a terminal in the sandbox's devpts".to_owned())?;
    rustix::pty::unlockpt(&master).or_fail(|| "unlock the terminal".to_owned())?;
    let peer_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, peer_flags)
        .or_fail(|| "open the terminal's slave".to_owned())?;
    let window = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, window).or_fail(|| "set the terminal's size".to_owned())?;
    bind_file(slave.as_fd(), dev_of(tree)?, "console")
        .or_fail(|| "bind the terminal at /dev/console".to_owned())?;
    Ok(Terminal { master, slave })
}

/// The cgroup file systems, read-only, at `/sys/fs/cgroup`. A kernel that refuses leaves it empty: they only inform.
pub(crate) fn mount_cgroups(tree: &Tree, mounts: &[CgroupMount]) -> Result<(), SetupFailure> {
    let Some(point) = own_path(tree, "sys/fs/cgroup")? else {
        return Ok(());
    };
    let attributes = quiet() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    if mounts.contains(&CgroupMount::Unified) {
        if let Ok(mount) = new_file_system("cgroup2", &[], attributes) {
            attach(mount.as_fd(), point.as_fd()).or_fail(|| "attach cgroup2 at /sys/fs/cgroup".to_owned())?;
        }
        return Ok(());
    }
    let base = new_file_system("tmpfs", &[("mode", Some("755"))], quiet())
        .or_fail(|| "mount a tmpfs for /sys/fs/cgroup".to_owned())?;
    attach(base.as_fd(), point.as_fd()).or_fail(|| "attach a tmpfs at /sys/fs/cgroup".to_owned())?;
    for mount in mounts {
        let CgroupMount::Controller(names) = mount else { continue };
        let options: Vec<(&str, Option<&str>)> = names.split(',').map(|name| (name, None)).collect();
        if let Ok(mount) = new_file_system("cgroup", &options, attributes) {
            rustix::fs::mkdirat(&base, names.as_str(), Mode::from(0o755))
                .or_fail(|| format!("make /sys/fs/cgroup/{names}"))?;
            attach_at(mount.as_fd(), base.as_fd(), names)
                .or_fail(|| format!("attach the {names} cgroup at /sys/fs/cgroup/{names}"))?;
        }
    }
    let change = MountChange { read_only: true, ..MountChange::default() };
    mounts::restrict_attached(base.as_fd(), change).or_fail(|| "make /sys/fs/cgroup read-only".to_owned())
}

/// Covers `path` (`proc/…` or `sys/…`): a file by the null device, a directory by one shared, empty directory.
pub(crate) fn mask(tree: &mut Tree, path: &str) -> Result<(), SetupFailure> {
    let Some(point) = own_path(tree, path)? else {
        return Ok(());
    };
    let covered = || format!("cover /{path}");
    let cover = if tree::file_type(&point).or_fail(covered)? != FileType::Directory {
        let null = tree.null.as_ref().ok_or_else(no_dev)?;
        clone_mount(null.as_fd(), "", false).or_fail(covered)?
    } else if let Some(empty) = &tree.empty {
        clone_mount(empty.as_fd(), "", false).or_fail(covered)?
    } else {
        let attributes = quiet() | MountAttrFlags::MOUNT_ATTR_RDONLY;
        new_file_system("tmpfs", &[("mode", Some("555"))], attributes).or_fail(covered)?
    };
    attach(cover.as_fd(), point.as_fd()).or_fail(covered)?;
    if tree.empty.is_none() && tree::file_type(&cover).or_fail(covered)? == FileType::Directory {
        tree.empty = Some(cover);
    }
    Ok(())
}

/// Makes `path` (`proc/…`) read-only, with what is mounted below.
pub(crate) fn make_read_only(tree: &Tree, path: &str) -> Result<(), SetupFailure> {
    let Some(point) = own_path(tree, path)? else {
        return Ok(());
    };
    let operation = || format!("make /{path} read-only");
    let mount = clone_mount(point.as_fd(), "", true).or_fail(operation)?;
    let change = MountChange { read_only: true, recursive: true, ..MountChange::default() };
    attach(mount.as_fd(), point.as_fd()).or_fail(operation)?;
    mounts::restrict_attached(mount.as_fd(), change).or_fail(operation)
}

/// Covers what each processor tells of its temperature, as [`mask`] does: it betrays what other containers compute.
pub(crate) fn mask_throttling(tree: &mut Tree) -> Result<(), SetupFailure> {
    let Some(processors) = own_path(tree, PROCESSORS)? else {
        return Ok(());
    };
    let operation = || format!("list /{PROCESSORS}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = rustix::fs::openat(&processors, ".", flags, Mode::empty()).or_fail(operation)?;
    for entry in rustix::fs::Dir::new(list).or_fail(operation)? {
        let entry = entry.or_fail(operation)?;
        let name = entry.file_name().to_str().unwrap_or_default();
        let number = name.strip_prefix("cpu").unwrap_or_default();
        if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
            mask(tree, &format!("{PROCESSORS}/{name}/thermal_throttle"))?;
        }
    }
    Ok(())
}

/// A descriptor for `proc/…` or `sys/…`, starting from our own mount of it. `None` when this kernel has no such file:
/// every other error could leave open what should be covered.
fn own_path(tree: &Tree, path: &str) -> Result<Option<OwnedFd>, SetupFailure> {
    let mount = match path.split_once('/') {
        Some(("proc", rest)) => tree.proc.as_ref().map(|mount| (mount, rest)),
        Some(("sys", rest)) => tree.sys.as_ref().map(|mount| (mount, rest)),
        _ => None,
    };
    let (mount, rest) = mount.ok_or_else(|| SetupFailure {
        operation: format!("find /{path}: the plan mounts its file system too late"),
        errno: 0,
    })?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(mount, rest, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        other => other.map(Some).or_fail(|| format!("find /{path}")),
    }
}

fn dev_of(tree: &Tree) -> Result<BorrowedFd<'_>, SetupFailure> {
    tree.dev.as_ref().map(AsFd::as_fd).ok_or_else(no_dev)
}

fn no_dev() -> SetupFailure {
    SetupFailure { operation: "find the sandbox's /dev: the plan mounts it too late".to_owned(), errno: 0 }
}

/// The host's device node, if it is the one it should be.
fn host_device(name: &str, major: u32, minor: u32) -> Result<OwnedFd, SetupFailure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(CWD, format!("/dev/{name}"), flags, Mode::empty());
    let node = node.or_fail(|| format!("open the host's /dev/{name}"))?;
    let stat = rustix::fs::fstat(&node).or_fail(|| format!("look at the host's /dev/{name}"))?;
    let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(major, minor);
    if is_it {
        Ok(node)
    } else {
        Err(SetupFailure {
            operation: format!("use the host's /dev/{name}: it is not character device {major}:{minor}"),
            errno: 0,
        })
    }
}

/// Binds a device node of the host, read-only: the device can be written to all the same, but the mode and owner of the
/// host's node cannot be changed, which a root inside that is root outside could do otherwise.
fn bind_device(source: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &str) -> std::io::Result<()> {
    let mount = clone_mount(source, "", false)?;
    rustix::fs::mknodat(directory, name, FileType::RegularFile, Mode::from(0o600), 0)?;
    attach_at(mount.as_fd(), directory, name)?;
    mounts::restrict_attached(mount.as_fd(), MountChange { read_only: true, ..MountChange::default() })
}

/// Binds the file `source` refers to at a new file `name` of `directory`.
fn bind_file(source: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    let mount = clone_mount(source, "", false)?;
    rustix::fs::mknodat(directory, name, FileType::RegularFile, Mode::from(0o600), 0)?;
    attach_at(mount.as_fd(), directory, name)
}
