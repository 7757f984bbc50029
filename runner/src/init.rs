//! Process 1 of a sandbox until the payload runs: the re-executed child that carries out a [`Plan`].
//!
//! Phases:
//! 1. adopt the inherited descriptors, become undumpable, read the plan;
//! 2. carry out the set-up operations, one by one;
//! 3. tell the parent, and execute the payload ([`crate::payload`]), which is process 1 from then on; where the plan wants
//!    an init, stay as one beside it ([`crate::reaper`]).
//!
//! No process of the image runs before phase 3.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::signal::SigSet;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::DumpableBehavior;

use crate::kernel_fs::{self, Terminal};
use crate::message::{self, Message, SetupFailure};
use crate::mounts;
use crate::payload::{self, Prepared};
use crate::plan::{self, Op, Plan};
use crate::process::SignalSets;
use crate::reaper;
use crate::spec::Tmpfs;
use crate::stdio;
use crate::sys::{self, MountChange};
use crate::tree::{self, OrFail, PointKind, Tree, attach, attach_at, new_file_system};

/// The private first argument that turns the executable into a sandbox's init. Its second is the plan's descriptor.
pub(crate) const MARKER: &str = "rimg-init";

/// Exit status of init when set-up fails, as `docker run` has it for the daemon's own errors.
pub(crate) const EXIT_SETUP: i32 = 125;

/// The mode of a new tmpfs, as of `/tmp`.
const STICKY: u32 = 0o1777;

/// Runs init if this process was executed as one, and then never returns.
pub(crate) fn main_if_requested() {
    let mut args = std::env::args_os();
    if args.next().as_deref() != Some(OsStr::new(MARKER)) {
        return;
    }
    let plan_fd = args.next().and_then(|arg| arg.to_str()?.parse().ok());
    // Only a process whose parent made it for this has process id 1; a user who calls the binary by this name gets
    // the ordinary command line.
    let Some(plan_fd) = plan_fd.filter(|_| std::process::id() == 1) else {
        return;
    };
    let Ok((mut plan, control)) = adopt(plan_fd) else {
        sys::exit_now(EXIT_SETUP);
    };
    let code = match set_up_and_run(&mut plan, &control) {
        Ok(code) => code,
        Err(failure) => {
            // If the parent is gone there is nobody to tell.
            let _ = message::send(control.as_fd(), &Message::Failed(failure), None);
            EXIT_SETUP
        }
    };
    sys::exit_now(code);
}

fn adopt(plan_fd: i32) -> std::io::Result<(Plan, OwnedFd)> {
    // What is made for mounts and the working directory has the same modes whoever the caller is.
    rustix::process::umask(Mode::from(0o022));
    // Undumpable: no process inside may trace init or open its files through /proc, whatever its ids.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"rimg-init")?;
    sys::close_on_exec_from_3()?;
    let mut bytes = Vec::new();
    std::fs::File::from(sys::inherited_fd(plan_fd)?).read_to_end(&mut bytes)?;
    let plan: Plan = postcard::from_bytes(&bytes).map_err(std::io::Error::other)?;
    plan::wipe(&mut bytes);
    let control = sys::inherited_fd(plan.control)?;
    // From here on the parent's death shows as the end of the control socket, whichever of its threads made us.
    rustix::process::set_parent_process_death_signal(None)?;
    Ok((plan, control))
}

fn set_up_and_run(plan: &mut Plan, control: &OwnedFd) -> Result<i32, SetupFailure> {
    let sets = SignalSets::own().or_fail(|| "read /proc/self/status".to_owned())?;
    let signals = SigSet::all();
    signals.thread_block().or_fail(|| "block signals".to_owned())?;
    // Out of the caller's process group: a Ctrl-C on its terminal reaches the caller, which passes it on, and must not
    // reach the payload a second time through us.
    rustix::process::setsid().or_fail(|| "start a session".to_owned())?;
    let mut setup = Setup::default();
    for op in &plan.ops {
        setup.carry_out(op, control)?;
    }
    let Setup { tree, terminal, pts, volumes: _ } = setup;
    let mut tree = tree
        .ok_or_else(|| SetupFailure { operation: "attach a root: the plan has none".to_owned(), errno: 0 })?;
    let launch = match payload::prepare(&plan.payload, &tree, sets.ignored)? {
        Prepared::Launch(launch) => launch,
        Prepared::UserUnmapped(user) => {
            let unmapped = Message::UserUnmapped(user);
            message::send(control.as_fd(), &unmapped, None).or_fail(|| "report to the parent".to_owned())?;
            return Ok(EXIT_SETUP);
        }
    };
    let started = Message::Started { stubs: std::mem::take(&mut tree.stubs) };
    // An init stays in sight of the payload.
    drop((tree, pts));
    if plan.init {
        plan.wipe_private_files();
        return reaper::run(launch, terminal, control, &started);
    }
    // Before the payload's own last words, which must not come first.
    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    message::send(control.as_fd(), &started, master).or_fail(|| "report to the parent".to_owned())?;
    payload::become_payload(&launch, terminal, control)
}

/// What the operations leave for one another.
#[derive(Default)]
struct Setup {
    tree: Option<Tree>,
    pts: Option<OwnedFd>,
    terminal: Option<Terminal>,
    /// Detached mounts of the root's own directories, by where they belong.
    volumes: Vec<(OsString, OwnedFd)>,
}

impl Setup {
    fn carry_out(&mut self, op: &Op, control: &OwnedFd) -> Result<(), SetupFailure> {
        match op {
            Op::IsolateMounts => {
                let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                rustix::mount::mount_change("/", flags)
                    .or_fail(|| "make the mount namespace private".to_owned())
            }
            Op::JoinCgroups(files) => files.iter().try_for_each(|file| {
                let file = sys::inherited_fd(*file).or_fail(|| "take over a cgroup's file".to_owned())?;
                let joined = rustix::io::write(&file, b"0");
                joined.map(drop).or_fail(|| "join the sandbox's cgroup".to_owned())
            }),
            Op::UnshareCgroup => {
                let flags = nix::sched::CloneFlags::CLONE_NEWCGROUP;
                nix::sched::unshare(flags).or_fail(|| "make a cgroup namespace".to_owned())
            }
            Op::Hostname(name) => rustix::system::sethostname(name.as_bytes())
                .or_fail(|| format!("set the host name to `{name}`")),
            Op::LoopbackUp => loopback_up(),
            Op::AttachRoot => {
                self.tree = Some(Tree::new(receive_root(control)?));
                Ok(())
            }
            Op::LeaveOldRoot => leave_old_root(self.tree()?),
            other => self.carry_out_mount(other),
        }
    }

    fn carry_out_mount(&mut self, op: &Op) -> Result<(), SetupFailure> {
        let tree = self.tree.as_mut().ok_or_else(no_root)?;
        match op {
            Op::Proc => kernel_fs::mount_proc(tree),
            Op::Dev { shm_size_bytes } => {
                kernel_fs::mount_dev(tree, *shm_size_bytes)?;
                // Now, while nothing the image or the caller wants can have taken their place.
                stdio::replace_devices(tree)?;
                self.pts = Some(kernel_fs::mount_devpts(tree)?);
                Ok(())
            }
            Op::Terminal(size) => {
                let pts = self.pts.as_ref().ok_or_else(no_root)?;
                self.terminal = Some(kernel_fs::open_terminal(tree, pts, *size)?);
                Ok(())
            }
            Op::Sys(kind) => kernel_fs::mount_sys(tree, *kind),
            Op::Cgroups(mounts) => kernel_fs::mount_cgroups(tree, mounts),
            Op::NetworkSettings { ping_group_last } => kernel_fs::set_network(tree, *ping_group_last),
            Op::EtcFile { .. } => give_file(tree, op),
            Op::Attach { mount, directory, target } => {
                let kind = if *directory { PointKind::Directory } else { PointKind::File };
                let point = tree.mount_point(target, kind)?;
                let mount = sys::inherited_fd(*mount).or_fail(|| "take over a prepared mount".to_owned())?;
                attach(mount.as_fd(), point.as_fd())
                    .or_fail(|| format!("attach a mount at {}", target.display()))
            }
            Op::Tmpfs { target, tmpfs, read_only } => mount_tmpfs(tree, target, tmpfs, *read_only),
            Op::OpenVolume { target } => {
                let volume = open_volume(tree, target)?;
                self.volumes.push((target.clone(), volume));
                Ok(())
            }
            Op::Volume { target, read_only } => {
                let opened = self.volumes.iter().position(|(opened, _)| opened == target);
                let (_, volume) = self.volumes.swap_remove(opened.ok_or_else(no_root)?);
                mount_volume(tree, target, &volume, *read_only)
            }
            Op::Mask(path) => kernel_fs::mask(tree, path),
            Op::MaskThrottling => kernel_fs::mask_throttling(tree),
            Op::ReadOnly(path) => kernel_fs::make_read_only(tree, path),
            Op::MakeCwd(path) => make_cwd(tree, path),
            Op::RootReadOnly => {
                let change = MountChange { read_only: true, ..MountChange::default() };
                mounts::restrict_attached(tree.root.as_fd(), change)
                    .or_fail(|| "make the root read-only".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn tree(&self) -> Result<&Tree, SetupFailure> {
        self.tree.as_ref().ok_or_else(no_root)
    }
}

fn no_root() -> SetupFailure {
    SetupFailure {
        operation: "mount below the root: the plan does so before it attaches the root".to_owned(),
        errno: 0,
    }
}

fn loopback_up() -> Result<(), SetupFailure> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .or_fail(|| "open a socket to bring loopback up".to_owned())?;
    sys::loopback_up(socket.as_fd()).or_fail(|| "bring loopback up".to_owned())
}

/// Waits for the root's mount and puts it on top of the present root, which hides nothing from absolute paths yet.
fn receive_root(control: &OwnedFd) -> Result<OwnedFd, SetupFailure> {
    let received =
        message::receive_bytes(control.as_fd(), true).or_fail(|| "receive the root's mount".to_owned())?;
    let Some((_, Some(root))) = received else {
        // The parent gave up or died.
        sys::exit_now(EXIT_SETUP);
    };
    rustix::mount::move_mount(
        &root,
        "",
        rustix::fs::CWD,
        "/",
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .or_fail(|| "attach the root".to_owned())?;
    Ok(root)
}

fn leave_old_root(tree: &Tree) -> Result<(), SetupFailure> {
    rustix::process::fchdir(&tree.root).or_fail(|| "enter the root".to_owned())?;
    rustix::process::pivot_root(".", ".").or_fail(|| "change the root (pivot_root)".to_owned())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).or_fail(|| "let go of the old root".to_owned())?;
    rustix::process::chdir("/").or_fail(|| "enter the root".to_owned())
}

/// Writes `content` to a file of the /dev tmpfs, or of one of its own where programs may be executed if the mode says
/// so, and binds it at `target`: it never touches the root's own files.
fn give_file(tree: &mut Tree, op: &Op) -> Result<(), SetupFailure> {
    let Op::EtcFile { target, content, mode, owner, optional } = op else {
        return Ok(());
    };
    let (mode, owner) = (*mode, *owner);
    const TEMPORARY: &str = ".rimg-file";
    const EXECUTABLE: &str = ".rimg-executable";
    let operation = || format!("provide {}", target.display());
    let point = match tree.mount_point(target, PointKind::File) {
        Err(failure) if *optional && failure.errno == libc::EROFS => return Ok(()),
        other => other?,
    };
    let dev = tree.dev.as_ref().ok_or_else(no_root)?;
    if mode & 0o111 == 0 {
        let mount = file_in(dev.as_fd(), TEMPORARY, content, mode, owner).or_fail(operation)?;
        attach(mount.as_fd(), point.as_fd()).or_fail(operation)?;
        return rustix::fs::unlinkat(dev, TEMPORARY, rustix::fs::AtFlags::empty()).or_fail(operation);
    }
    // Only what is attached can be cloned, so the file system lies below /dev for a moment.
    rustix::fs::mkdirat(dev, EXECUTABLE, Mode::from(0o700)).or_fail(operation)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let system = new_file_system("tmpfs", &[("mode", Some("700"))], attributes).or_fail(operation)?;
    attach_at(system.as_fd(), dev.as_fd(), EXECUTABLE).or_fail(operation)?;
    let mount = file_in(system.as_fd(), TEMPORARY, content, mode, owner).or_fail(operation)?;
    attach(mount.as_fd(), point.as_fd()).or_fail(operation)?;
    let place = format!("/proc/self/fd/{}/{EXECUTABLE}", dev.as_raw_fd());
    rustix::mount::unmount(place, UnmountFlags::DETACH).or_fail(operation)?;
    rustix::fs::unlinkat(dev, EXECUTABLE, rustix::fs::AtFlags::REMOVEDIR).or_fail(operation)
}

/// Makes a file in `directory`, which is part of a mount, and returns a mount of that file alone.
fn file_in(
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
    owner: (u32, u32),
) -> std::io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::from(0o600))?;
    if owner != (0, 0) {
        use rustix::fs::{Gid, Uid};
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(&file, Mode::from(mode))?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, content)?;
    Ok(tree::clone_mount(directory, name, false)?)
}

fn mount_tmpfs(tree: &mut Tree, target: &OsStr, tmpfs: &Tmpfs, read_only: bool) -> Result<(), SetupFailure> {
    let shown: Vec<String> =
        tmpfs.parameters.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    let operation = || format!("mount a tmpfs at {}{}", target.display(), shown.concat());
    let stubs = tree.stubs.len();
    let point = tree.mount_point(target, PointKind::Directory)?;
    let mode = match tmpfs.mode {
        Some(mode) => mode,
        None if tree.stubs.len() > stubs => STICKY,
        None => rustix::fs::fstat(&point).or_fail(operation)?.st_mode & 0o7777,
    };
    let mode = format!("{mode:o}");
    let mut options = vec![("mode", Some(mode.as_str()))];
    options.extend(tmpfs.parameters.iter().map(|(name, value)| (name.as_str(), Some(value.as_str()))));
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    for (is_set, attribute) in [
        (!tmpfs.exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (!tmpfs.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
    ] {
        attributes.set(attribute, is_set);
    }
    let mount = new_file_system("tmpfs", &options, attributes).or_fail(operation)?;
    attach(mount.as_fd(), point.as_fd()).or_fail(operation)
}

/// A detached mount of a directory of the root: its content, owner and mode are the image's, what is written goes where
/// the root's changes go, and a root that becomes read-only leaves it as it is.
fn open_volume(tree: &mut Tree, target: &OsStr) -> Result<OwnedFd, SetupFailure> {
    let stubs = tree.stubs.len();
    let point = tree.mount_point(target, PointKind::Directory)?;
    // As the working directory: it is no stub.
    tree.stubs.truncate(stubs);
    tree::clone_mount(point.as_fd(), "", false).or_fail(|| format!("make a volume of {}", target.display()))
}

fn mount_volume(
    tree: &mut Tree,
    target: &OsStr,
    volume: &OwnedFd,
    read_only: bool,
) -> Result<(), SetupFailure> {
    let operation = || format!("mount a volume at {}", target.display());
    let point = tree.mount_point(target, PointKind::Directory)?;
    attach(volume.as_fd(), point.as_fd()).or_fail(operation)?;
    if read_only {
        let change = MountChange { read_only: true, ..MountChange::default() };
        mounts::restrict_attached(volume.as_fd(), change).or_fail(operation)?;
    }
    Ok(())
}

/// The working directory is part of what the payload asked for, so it is no stub and stays, as with Docker.
fn make_cwd(tree: &mut Tree, path: &OsStr) -> Result<(), SetupFailure> {
    let stubs = tree.stubs.len();
    let path = Path::new("/").join(path);
    if tree.is_something_else_than_a_directory(&path) {
        let operation = format!("enter the working directory {}: it is not a directory", path.display());
        return Err(SetupFailure { operation, errno: 0 });
    }
    tree.mount_point(path.as_os_str(), PointKind::Directory)?;
    tree.stubs.truncate(stubs);
    Ok(())
}
