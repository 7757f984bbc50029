//! The parent's side of a sandbox: open what it needs, clone its process 1, map its ids, wait for its end.
//!
//! Phases of [`Sandbox::spawn`]:
//! 1. open bind sources, make the cgroup, write the plan into a memory file;
//! 2. clone process 1 into its namespaces (and cgroup), write its id maps, let it execute;
//! 3. while it starts, start its watcher, put the overlay together and send it;
//! 4. wait until it says that the payload is being executed, or what failed.
//!
//! May be called from several threads at once.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus};

use crate::executable;
use crate::idmap::{IdMaps, UnmappedUser};
use crate::init::{EXIT_SETUP, MARKER};
use crate::limits::{Cgroup, LimitsError};
use crate::message::{self, Message, SetupFailure, Stub};
use crate::mounts;
use crate::plan::{Plan, Prepared};
use crate::process::{Process, Watcher};
use crate::spec::{EtcFile, Mount, MountKind, Network, RootFs, SandboxSpec, Stdio, Upper};
use crate::stdio::Ends;
use crate::sys::{self, CloneExec, MountChange, clone};
use crate::userns;

/// Linux limits host names to 64 bytes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The caller asked for something impossible.
    #[error("invalid sandbox: {0}")]
    Invalid(String),
    /// A directory or file of the host that the sandbox needs.
    #[error("open {path}: {source}", path = path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something the parent needs; `rimg doctor` may know why.
    #[error("{operation}: {source}")]
    Kernel {
        /// What was attempted.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something process 1 needs.
    #[error("{}", shown(.0))]
    Setup(SetupFailure),
    /// The payload ran, and how it ended could not be learned. It has been killed.
    #[error("the container was started, and is killed now: {}", shown(.0))]
    Lost(SetupFailure),
    /// The payload's user does not exist in this user namespace.
    #[error("{0}")]
    UserUnmapped(UnmappedUser),
    /// A resource limit cannot be applied.
    #[error(transparent)]
    Limits(#[from] LimitsError),
}

fn shown(failure: &SetupFailure) -> String {
    match failure.errno {
        0 => failure.operation.clone(),
        errno => format!("{}: {}", failure.operation, io::Error::from_raw_os_error(errno)),
    }
}

/// How a payload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    /// The payload's exit code; 128 + n when signal n ended it; 126 or 127 when it could not be executed.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Set when the program could not be executed at all.
    pub exec_error: Option<ExecError>,
    /// Set by a foreground run when output of the payload could not be written to the caller's descriptors, and not
    /// because its reader had gone: the kernel's answer.
    pub lost_output: Option<i32>,
}

/// A program that could not be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("execute {}: {}", program.display(), io::Error::from_raw_os_error(*errno))]
pub struct ExecError {
    /// The program as it was asked for.
    pub program: OsString,
    /// The kernel's answer.
    pub errno: i32,
}

/// A sandbox that is ready to be spawned, once.
#[derive(Debug)]
pub struct Sandbox {
    spec: SandboxSpec,
}

impl Sandbox {
    /// Checks what can be checked without the kernel.
    ///
    /// # Errors
    /// [`SandboxError::Invalid`] names the part that is wrong.
    pub fn new(spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        check(&spec).map_err(SandboxError::Invalid)?;
        Ok(Sandbox { spec })
    }

    /// Starts the payload. When this returns, set-up is complete and the payload is being executed.
    ///
    /// # Errors
    /// Says which operation failed on what. Nothing of a failed sandbox stays, but directories the caller gave.
    pub fn spawn(self, stdio: Stdio) -> Result<Running, SandboxError> {
        let executable =
            executable::unwritable().map_err(kernel("make an unwritable view of rimg itself"))?;
        let (ours, theirs) = message::socket_pair().map_err(kernel("make a socket pair"))?;
        let binds = open_binds(&self.spec.mounts)?;
        let cgroup = self.spec.limits.make_cgroup()?;
        let joins = cgroup.as_ref().map(Cgroup::join_files).transpose()?.unwrap_or_default();
        let sys = match self.spec.network {
            Network::Host => crate::kernel_fs::prepare_sys()
                .map_err(|error| kernel("mount a fresh sysfs")(error.into()))?,
            Network::None => None,
        };
        let ids = IdMaps::of_this_process().map_err(kernel("read this process's id maps"))?;
        let prepared = Prepared {
            ids: ids.clone(),
            control: theirs.as_raw_fd(),
            binds: binds.iter().map(|(fd, directory)| (fd.as_raw_fd(), *directory)).collect(),
            cgroups: cgroup.as_ref().map(Cgroup::mounts).unwrap_or_default(),
            joins: joins.iter().map(AsRawFd::as_raw_fd).collect(),
            sys: sys.as_ref().map(AsRawFd::as_raw_fd),
        };
        let plan = write_plan(&Plan::of(&self.spec, &prepared)).map_err(kernel("write the plan"))?;
        let stdio = if self.spec.tty.is_some() { Stdio::default() } else { stdio };
        let ends = Ends::open(stdio).map_err(kernel("open standard input and output"))?;
        let mut keep: Vec<RawFd> = prepared.binds.iter().map(|(fd, _)| *fd).collect();
        keep.extend([theirs.as_raw_fd(), plan.as_raw_fd(), executable.as_raw_fd()]);
        keep.extend(prepared.sys);
        keep.extend(&prepared.joins);
        keep.sort_unstable();
        let (pid, pidfd) =
            self.clone_init(&executable, &theirs, &plan, &ends.theirs, &keep, cgroup.as_ref())?;
        let [stdin, stdout, stderr] = ends.ours;
        let mut running = Running {
            process: Arc::new(Process::new(pid, pidfd, self.spec.init)),
            watcher: None,
            control: ours,
            stubs: Vec::new(),
            upper: upper_of(&self.spec.rootfs),
            has_init: self.spec.init,
            ended: None,
            stdin,
            stdout,
            stderr,
            terminal: None,
            cgroup,
        };
        drop((executable, theirs, plan, ends.theirs, binds, joins, sys));
        running.bring_up(pid, &ids, &self.spec)?;
        Ok(running)
    }

    fn clone_init(
        &self,
        executable: &OwnedFd,
        control: &OwnedFd,
        plan: &OwnedFd,
        stdio: &[OwnedFd; 3],
        keep: &[RawFd],
        cgroup: Option<&Cgroup>,
    ) -> Result<(i32, OwnedFd), SandboxError> {
        let number = CString::new(plan.as_raw_fd().to_string())
            .map_err(|error| kernel("name the plan")(error.into()))?;
        let marker = CString::new(MARKER).map_err(|error| kernel("name init")(error.into()))?;
        let mut flags = clone::NEWNS_PID_IPC_UTS;
        if self.spec.user_namespace {
            flags |= clone::NEWUSER;
        }
        if self.spec.network == Network::None {
            flags |= clone::NEWNET;
        }
        sys::clone_exec(&CloneExec {
            flags,
            cgroup: cgroup.and_then(Cgroup::directory),
            argv: &[marker, number],
            executable: executable.as_fd(),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            keep,
            control: control.as_raw_fd(),
        })
        .map_err(kernel("make the sandbox's namespaces (run `rimg doctor`)"))
    }
}

/// A sandbox whose payload runs. Dropping it kills everything inside.
#[derive(Debug)]
pub struct Running {
    process: Arc<Process>,
    watcher: Option<Watcher>,
    control: OwnedFd,
    stubs: Vec<Stub>,
    upper: Option<PathBuf>,
    has_init: bool,
    ended: Option<ExitStatus>,
    /// Our end of the payload's standard input, where a pipe was asked for.
    pub stdin: Option<File>,
    /// Our end of its standard output.
    pub stdout: Option<File>,
    /// Our end of its standard error.
    pub stderr: Option<File>,
    /// The master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
}

impl Running {
    fn bring_up(&mut self, pid: i32, ids: &IdMaps, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.user_namespace {
            userns::write_maps(pid, ids).map_err(kernel("write the sandbox's id maps"))?;
        }
        let sent = self.send_root(spec)?;
        let words = message::receive(self.control.as_fd(), true);
        match words.map_err(kernel("hear from the sandbox's process 1"))? {
            Some((Message::Started { stubs }, terminal)) => {
                self.stubs = stubs;
                self.terminal = terminal;
                Ok(())
            }
            Some((Message::Failed(failure), _)) => Err(SandboxError::Setup(failure)),
            Some((Message::UserUnmapped(user), _)) => Err(SandboxError::UserUnmapped(user)),
            Some(_) | None => Err(match sent {
                Err(error) => kernel("send the root's mount to the sandbox")(error),
                Ok(()) => self.silent_death(),
            }),
        }
    }

    /// Lets process 1 execute and sends it the root. An error of sending is told inside: should process 1 have failed
    /// already, its last words say more, and without them it is to find the end of the stream rather than wait.
    fn send_root(&mut self, spec: &SandboxSpec) -> Result<io::Result<()>, SandboxError> {
        let mut sent = message::send_bytes(self.control.as_fd(), &[1], None);
        if sent.is_ok() {
            // Before the payload can run: without the root it does not get that far. An init watches by itself.
            if !self.has_init {
                let watcher = Watcher::start(self.process.pidfd());
                self.watcher = Some(watcher.map_err(kernel("start the sandbox's watcher"))?);
            }
            let root = crate::rootfs::mount(&spec.rootfs)?;
            sent = message::send_bytes(self.control.as_fd(), &[2], Some(root.as_fd()));
        }
        if sent.is_err() {
            message::shut_down(self.control.as_fd());
        }
        Ok(sent)
    }

    /// What to say when process 1 ended without a word.
    fn silent_death(&self) -> SandboxError {
        let how = match self.wait_for_process() {
            Ok(status) => status.terminating_signal().map_or_else(
                || format!("exit status {}", status.exit_status().unwrap_or(EXIT_SETUP)),
                |signal| format!("signal {signal}"),
            ),
            Err(error) => error.to_string(),
        };
        let operation = format!("start the sandbox's process 1: it ended without a word ({how})");
        SandboxError::Setup(SetupFailure { operation, errno: 0 })
    }

    fn wait_for_process(&self) -> io::Result<WaitIdStatus> {
        loop {
            match rustix::process::waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the payload has ended and everything inside with it.
    ///
    /// # Errors
    /// [`SandboxError::Setup`] when the last steps before exec failed; [`SandboxError::Lost`] when waiting itself did.
    pub fn wait(&mut self) -> Result<ExitStatus, SandboxError> {
        if let Some(status) = &self.ended {
            return Ok(status.clone());
        }
        let lost = |error: io::Error| {
            let errno = error.raw_os_error().unwrap_or(0);
            SandboxError::Lost(SetupFailure { operation: "wait for its end".to_owned(), errno })
        };
        let process = self.wait_for_process().map_err(lost)?;
        let killed = process.terminating_signal();
        let signal = match killed {
            // Not how it would have ended on its own, but what it was ended for.
            Some(libc::SIGKILL) => self.process.ended_by().or(killed),
            _ => killed,
        };
        let code = process.exit_status().unwrap_or_else(|| 128 + signal.unwrap_or(0));
        let mut status = ExitStatus { code, signal, exec_error: None, lost_output: None };
        let mut failure = None;
        while let Ok(Some((message, _))) = message::receive(self.control.as_fd(), false) {
            match message {
                Message::Exited { signal, .. } => status.signal = signal,
                Message::ExecFailed { program, errno } => {
                    status.exec_error = Some(ExecError { program, errno })
                }
                Message::Failed(cause) => failure = Some(SandboxError::Setup(cause)),
                Message::Lost(cause) => failure = Some(SandboxError::Lost(cause)),
                Message::Started { .. } | Message::UserUnmapped(_) => {}
            }
        }
        self.clean_up();
        self.ended = Some(status.clone());
        match failure {
            Some(failure) => Err(failure),
            None => Ok(status),
        }
    }

    /// Sends a signal to the payload, which takes it as an ordinary process does: one that it neither handles nor
    /// ignores ends it, and the sandbox with it. `SIGKILL` reaches the whole sandbox, `SIGSTOP` process 1. A sandbox that
    /// has ended is no error.
    ///
    /// # Errors
    /// The kernel's, for a number that is no signal.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        self.process.signal(number, self.is_executed())
    }

    /// Whether the payload's program runs: its exec closes the other end of the control socket.
    fn is_executed(&self) -> bool {
        let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0].any() == Some(true)
    }

    /// Readable once the sandbox has ended, for polling.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd()
    }

    /// Process 1, for those who look at it from threads of their own.
    pub(crate) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process)
    }

    fn clean_up(&mut self) {
        if let Some(upper) = &self.upper {
            remove_stubs(upper, &self.stubs);
        }
        self.stubs.clear();
        self.cgroup = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ = self.signal(libc::SIGKILL);
            let mut fds = [PollFd::new(self.pidfd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::NONE);
            let _ = self.wait_for_process();
            self.clean_up();
        }
    }
}

fn check(spec: &SandboxSpec) -> Result<(), String> {
    let lowers = spec.rootfs.lowers.len();
    if lowers == 0 || lowers > RootFs::LOWERS_MAX {
        return Err(format!("a root of {lowers} layers: the kernel stacks 1 to {}", RootFs::LOWERS_MAX));
    }
    if spec.args.is_empty() {
        return Err("no command: name a program".to_owned());
    }
    if spec.hostname.is_empty() || spec.hostname.len() > HOSTNAME_BYTES_MAX {
        return Err(format!(
            "the host name `{}` is empty or longer than {HOSTNAME_BYTES_MAX} bytes",
            spec.hostname
        ));
    }
    let private = spec.private_files.iter().map(|private| &private.file);
    let files = || spec.files.iter().chain(private.clone());
    let targets = spec.mounts.iter().map(|mount| &mount.target).chain(files().map(|file| &file.target));
    for target in targets {
        let bytes = target.as_os_str().as_encoded_bytes();
        if !target.is_absolute() || target == Path::new("/") || bytes.contains(&0) {
            return Err(format!("the mount target {} is not an absolute path below /", target.display()));
        }
    }
    if let Some(file) = files().find(|file| file.content.len() > EtcFile::SIZE_MAX) {
        return Err(format!("{} is larger than {} bytes", file.target.display(), EtcFile::SIZE_MAX));
    }
    Ok(())
}

/// Clones the mounts of bind sources in our own mount namespace; only we may, and nobody sees the clones.
fn open_binds(mounts: &[Mount]) -> Result<Vec<(OwnedFd, bool)>, SandboxError> {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let mut binds = Vec::new();
    for mount in mounts {
        let MountKind::Bind { source } = &mount.kind else {
            continue;
        };
        let open = |error: io::Error| SandboxError::Open { path: source.clone(), source: error };
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let fd = open_tree(rustix::fs::CWD, source, flags).map_err(|error| open(error.into()))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| open(error.into()))?;
        let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
        // There is no device controller between a payload and the nodes in a folder of the host, as Docker has one: a
        // device is shared by naming it, never by sharing the folder it lies in.
        let change = MountChange {
            read_only: mount.read_only,
            private: true,
            recursive: true,
            no_dev: directory,
            ..MountChange::default()
        };
        let fd = mounts::restrict(fd, change).map_err(open)?;
        binds.push((fd, directory));
    }
    Ok(binds)
}

fn write_plan(plan: &Plan) -> io::Result<OwnedFd> {
    let bytes = postcard::to_stdvec(plan).map_err(io::Error::other)?;
    let fd = rustix::fs::memfd_create("rimg-plan", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(&bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file.into())
}

fn upper_of(rootfs: &RootFs) -> Option<PathBuf> {
    match &rootfs.upper {
        Upper::None => None,
        Upper::Directory { upper, .. } => Some(upper.clone()),
    }
}

/// Takes the mount points that set-up had to make out of the upper directory again, unless the payload has put
/// something there. Nothing runs inside any more, so the paths stand still.
fn remove_stubs(upper: &Path, stubs: &[Stub]) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(upper) = rustix::fs::open(upper, flags, Mode::empty()) else {
        return;
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for stub in stubs.iter().rev() {
        let path = Path::new(&stub.path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let Ok(parent) = rustix::fs::openat2(&upper, parent, flags, Mode::empty(), resolve) else {
            continue;
        };
        let Ok(stat) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        // A directory that is no longer empty is not removed by the kernel; it has become the payload's own.
        if stub.directory {
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR);
        } else if stat.st_size == 0 && rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
        }
    }
}

fn kernel(operation: &str) -> impl FnOnce(io::Error) -> SandboxError + '_ {
    move |source| SandboxError::Kernel { operation: operation.to_owned(), source }
}
