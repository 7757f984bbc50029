//! Every `unsafe` block of rimg: the system calls for which neither `rustix` nor `nix` has a safe wrapper.
//!
//! Owns: cloning a child into new namespaces and executing it, `fork` of a single-threaded process, the process that
//! kills a sandbox when this one dies, `mount_setattr`, `close_range`, loading a seccomp filter, signals by number, the
//! signal handler that feeds a pipe, and adopting inherited descriptors.
//! Leaves to others: every decision. Nothing here knows what a container is.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Flags of `clone3`, for callers that must not depend on `libc`.
pub(crate) mod clone {
    /// A user namespace of its own.
    pub(crate) const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
    /// Mount, process, IPC and host name namespaces.
    pub(crate) const NEWNS_PID_IPC_UTS: u64 =
        (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;
    /// A network namespace of its own.
    pub(crate) const NEWNET: u64 = libc::CLONE_NEWNET as u64;
}

/// `struct clone_args` of `clone3(2)`, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What the cloned child becomes.
pub(crate) struct CloneExec<'a> {
    /// `clone3` flags: the namespaces to create.
    pub(crate) flags: u64,
    /// A cgroup v2 directory the child is born in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Arguments.
    pub(crate) argv: &'a [CString],
    /// The program, always our own executable in an unwritable form; its number is among `keep`.
    pub(crate) executable: BorrowedFd<'a>,
    /// The descriptors that become 0, 1 and 2; each must be greater than 2.
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// Descriptors the child keeps under the same number, ascending and without repetition, each greater than 2.
    pub(crate) keep: &'a [RawFd],
    /// A packet socket among `keep`: the child waits for one message on it before it executes, so that the parent
    /// can write the id maps first, and reports an errno on it when it cannot execute.
    pub(crate) control: RawFd,
}

/// Clones a child into new namespaces, where it executes the program with `argv` and an empty environment.
///
/// Returns its process id and a pidfd. The caller may have other threads: between clone and exec the child makes
/// plain system calls on memory prepared beforehand, and nothing else.
pub(crate) fn clone_exec(request: &CloneExec<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut argv: Vec<*const libc::c_char> = request.argv.iter().map(|a| a.as_ptr()).collect();
    argv.push(std::ptr::null());
    let path = CString::new(format!("/proc/self/fd/{}", request.executable.as_raw_fd()))?;
    let mut pidfd: RawFd = -1;
    let mut flags = request.flags | libc::CLONE_PIDFD as u64;
    if request.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let args = CloneArgs {
        flags,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: request.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    let blocked = BlockedSignals::all();
    // SAFETY: `args` is a valid clone_args of the size given and `pidfd` outlives the call. Without CLONE_VM the
    // child gets its own copy of the memory and continues on its own copy of this stack, as after fork. It runs only
    // `child_exec`, which is async-signal-safe: no allocation, no lock, no destructor.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: this is the child; `argv` and all of `request` live in its copy of the memory.
        unsafe { child_exec(request, &argv, &path) }
    }
    drop(blocked);
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel stored a new descriptor, owned by nobody else, in `pidfd` because clone3 succeeded.
    Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// The child's way from clone to exec. Never returns.
///
/// # Safety
/// Must run in a process freshly cloned without `CLONE_VM`; `argv` must be null-terminated. `path` is the executable's
/// name in /proc.
unsafe fn child_exec(request: &CloneExec<'_>, argv: &[*const libc::c_char], path: &CStr) -> ! {
    const EMPTY: &CStr = c"";
    // SAFETY: all calls below are raw system calls whose pointers lead to constants, to locals or to memory that the
    // caller prepared; none allocates or takes a lock, which could be held by a thread that does not exist here.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        for (target, source) in request.stdio.iter().enumerate() {
            if libc::dup2(source.as_raw_fd(), target as RawFd) < 0 {
                libc::_exit(125);
            }
        }
        // Nothing of the parent's stays open but what the sandbox was given: a leaked directory is an escape, and a
        // leaked end of another sandbox's socket would hide its parent's death.
        let mut next: libc::c_uint = 3;
        for &fd in request.keep {
            if fd as libc::c_uint > next
                && libc::syscall(libc::SYS_close_range, next, fd as libc::c_uint - 1, 0) < 0
            {
                child_failed(request.control);
            }
            libc::fcntl(fd, libc::F_SETFD, 0);
            next = fd as libc::c_uint + 1;
        }
        if libc::syscall(libc::SYS_close_range, next, libc::c_uint::MAX, 0) < 0 {
            child_failed(request.control);
        }
        let mut go = 0u8;
        if libc::read(request.control, (&raw mut go).cast(), 1) != 1 {
            libc::_exit(125);
        }
        let envp: [*const libc::c_char; 1] = [std::ptr::null()];
        let executable = request.executable.as_raw_fd();
        libc::fcntl(executable, libc::F_SETFD, libc::FD_CLOEXEC);
        let (argv, envp) = (argv.as_ptr(), envp.as_ptr());
        libc::syscall(libc::SYS_execveat, executable, EMPTY.as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
        // TOMOYO in older kernels looks for such a program by the name /dev/fd/N, which a small system does not have.
        if *libc::__errno_location() == libc::ENOENT {
            libc::execve(path.as_ptr(), argv, envp);
        }
        child_failed(request.control)
    }
}

/// Reports errno to the parent and ends the child.
///
/// # Safety
/// As [`child_exec`]'s, right after a system call that failed.
unsafe fn child_failed(control: RawFd) -> ! {
    // SAFETY: errno is this thread's own; write and _exit are async-signal-safe, and the buffer is a local.
    unsafe {
        let errno = (*libc::__errno_location()).to_ne_bytes();
        libc::write(control, errno.as_ptr().cast(), errno.len());
        libc::_exit(125)
    }
}

/// Starts a process that sends SIGKILL to `watched` once `parent`, a pidfd of this process, has ended, and that ends
/// itself once `watched` has. Returns its process id.
///
/// Signals do not reach it: they are blocked, and it is in a session of its own. It keeps no other descriptor open.
/// The caller may have other threads: the child makes plain system calls and nothing else.
pub(crate) fn fork_watcher(watched: BorrowedFd<'_>, parent: BorrowedFd<'_>) -> io::Result<i32> {
    let args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    let blocked = BlockedSignals::all();
    // SAFETY: as in `clone_exec`: a valid clone_args, no CLONE_VM, and the child runs only `watch`, which is
    // async-signal-safe.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: this is the child, whose copies of both descriptors are open.
        unsafe { watch(watched.as_raw_fd(), parent.as_raw_fd()) }
    }
    drop(blocked);
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) }
}

/// The watcher's life. Never returns.
///
/// # Safety
/// Must run in a process freshly cloned without `CLONE_VM`; both descriptors must be open and greater than 2.
unsafe fn watch(watched: RawFd, parent: RawFd) -> ! {
    // SAFETY: raw system calls whose pointers lead to constants and locals; none allocates or takes a lock.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"rimg-watcher".as_ptr(), 0, 0, 0);
        libc::dup2(watched, 0);
        libc::dup2(parent, 1);
        libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0);
        let end = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut ends = [end(0), end(1)];
        loop {
            libc::poll(ends.as_mut_ptr(), 2, -1);
            if ends[0].revents != 0 {
                libc::_exit(0);
            }
            if ends[1].revents != 0 {
                libc::syscall(libc::SYS_pidfd_send_signal, 0, libc::SIGKILL, 0, 0);
                libc::_exit(0);
            }
        }
    }
}

/// Of `clone3` only, beyond the 32 bits of `clone`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// All signals blocked in this thread until dropped, so that no handler of the parent runs in a cloned child.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn all() -> BlockedSignals {
        // SAFETY: sigset_t is plain data that sigfillset and pthread_sigmask fill in; both pointers are to locals.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            BlockedSignals(old)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: self.0 is the mask that pthread_sigmask returned.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut());
        }
    }
}

/// Forks. `None` in the child.
///
/// For single-threaded processes only (the sandbox's init, and the command line before it has made a thread): the
/// child may then do whatever its parent could.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the callers are single-threaded by contract, so no lock is held by a thread that vanishes; even if one
    // were, the consequence is a child that hangs, not undefined behaviour.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process at once, without running destructors or exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any integer and never returns.
    unsafe { libc::_exit(code) }
}

/// Takes over a descriptor that this process inherited across exec; the parent promised its number.
pub(crate) fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on a number that is not open fails with EBADF and touches nothing.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, not one of the standard three, and each inherited number is adopted once, at start-up,
    // before anything else could have opened a descriptor of that number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sets close-on-exec on every descriptor from 3 on.
pub(crate) fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC only changes flags; no descriptor is closed behind its owner's back.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Before Linux 5.11 `close_range` does not know the flag.
        error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            close_on_exec_one_by_one()
        }
        error => Err(error),
    }
}

fn close_on_exec_one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: Option<RawFd> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let number = number.filter(|number| *number > 2);
        // SAFETY: F_SETFD only changes a flag; the descriptor that reads this directory has it already.
        if number.is_some_and(|number| unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Changes of a mount's attributes.
#[derive(Default, Clone, Copy)]
pub(crate) struct MountChange {
    /// Make it read-only.
    pub(crate) read_only: bool,
    /// Forbid device nodes.
    pub(crate) no_dev: bool,
    /// Take the effect from set-user-ID bits.
    pub(crate) no_suid: bool,
    /// Forbid executing.
    pub(crate) no_exec: bool,
    /// Cut it off from mount events of its peers.
    pub(crate) private: bool,
    /// Apply to the mounts below as well.
    pub(crate) recursive: bool,
}

/// `mount_setattr(2)` on the mount that `mount` refers to. For [`crate::mounts`], which does without it where need be.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, change: MountChange) -> io::Result<()> {
    let mut attr = MountAttr::default();
    if change.read_only {
        attr.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    if change.no_dev {
        attr.attr_set |= libc::MOUNT_ATTR_NODEV;
    }
    if change.no_suid {
        attr.attr_set |= libc::MOUNT_ATTR_NOSUID;
    }
    if change.no_exec {
        attr.attr_set |= libc::MOUNT_ATTR_NOEXEC;
    }
    if change.private {
        attr.propagation = libc::MS_PRIVATE;
    }
    let recursive = if change.recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a valid mount_attr of the size given, the path is a constant, and the descriptors are
    // borrowed for the duration of the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One instruction of classic BPF, as `seccomp(2)` takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BpfInstruction {
    /// Operation.
    pub(crate) code: u16,
    /// Jump distance when true.
    pub(crate) jt: u8,
    /// Jump distance when false.
    pub(crate) jf: u8,
    /// Operand.
    pub(crate) k: u32,
}

/// Installs a seccomp filter on this thread. Needs no-new-privs or `CAP_SYS_ADMIN`.
pub(crate) fn load_seccomp(program: &[BpfInstruction]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        len: u16,
        filter: *const BpfInstruction,
    }
    let Ok(len) = u16::try_from(program.len()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let filter = Program { len, filter: program.as_ptr() };
    // SAFETY: `filter` has the layout of struct sock_fprog and its pointer and length describe `program`, which the
    // kernel copies and verifies before it returns.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ifreq is plain data; the name is shorter than the field and the rest is zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq through the pointer.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The writing end of the pipe that [`deliver_signal`] writes to; -1 when there is none.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn deliver_signal(signal: libc::c_int) {
    let fd = SIGNAL_PIPE.load(Ordering::Relaxed);
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe and reads one byte of a local; errno, which it may change, is put back
    // because the interrupted code may be about to read it.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// Signals diverted into a pipe, one byte each, until dropped; then the old dispositions return.
pub struct SignalPipe {
    old: Vec<(libc::c_int, libc::sigaction)>,
    _writer: OwnedFd,
}

impl SignalPipe {
    /// Diverts `signals` into `writer`, which should be non-blocking. At most one pipe exists in a process at a time:
    /// a second one is refused with `EBUSY`.
    pub fn divert(signals: &[i32], writer: OwnedFd) -> io::Result<SignalPipe> {
        let free = SIGNAL_PIPE.compare_exchange(-1, writer.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst);
        if free.is_err() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        let mut pipe = SignalPipe { old: Vec::with_capacity(signals.len()), _writer: writer };
        for &signal in signals {
            // SAFETY: both sigaction structures are plain data owned here; the handler is async-signal-safe.
            unsafe {
                let mut new: libc::sigaction = std::mem::zeroed();
                let mut old: libc::sigaction = std::mem::zeroed();
                new.sa_sigaction = deliver_signal as extern "C" fn(libc::c_int) as usize;
                new.sa_flags = libc::SA_RESTART;
                if libc::sigaction(signal, &raw const new, &raw mut old) != 0 {
                    continue;
                }
                if old.sa_sigaction == libc::SIG_IGN {
                    // Whoever started us (nohup, a shell's `&`) wants it ignored, and a payload that got it passed on
                    // would die of it.
                    libc::sigaction(signal, &raw const old, std::ptr::null_mut());
                } else {
                    pipe.old.push((signal, old));
                }
            }
        }
        Ok(pipe)
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        for (signal, old) in &self.old {
            // SAFETY: `old` is what sigaction returned for this signal.
            unsafe {
                libc::sigaction(*signal, old, std::ptr::null_mut());
            }
        }
        SIGNAL_PIPE.store(-1, Ordering::SeqCst);
    }
}

/// The highest signal number of Linux.
pub(crate) const SIGNAL_MAX: i32 = 64;

/// Sends a signal of any number, real-time ones included, to the process of a pidfd.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes two numbers and a null pointer, which it accepts.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0, 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal of any number to a process; never to a group.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: kill takes two numbers.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes sure that children can be waited for and signals arrive, whatever this process inherited: a caller that blocks
/// signals keeps Ctrl-C from us.
pub(crate) fn receive_signals() {
    receive_children();
    unblock_signals();
}

/// Makes sure that children can be waited for: the kernel reaps those of a process that ignores SIGCHLD, unseen.
pub(crate) fn receive_children() {
    // SAFETY: a zeroed sigaction is SIG_DFL with an empty mask, and the call reads a valid local.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, &raw const default, std::ptr::null_mut());
    }
}

/// Gives the signals of `ignored` (bit n - 1 is signal n) their default action again and unblocks all: the state a
/// payload expects at its start. Handlers need no care: exec removes them.
pub(crate) fn reset_signals(ignored: u64) {
    // The C library keeps two signals for itself and refuses to touch them; the kernel's structure is no larger than this.
    let default = [0_u64; 8];
    for signal in (1..=SIGNAL_MAX).filter(|signal| ignored >> (signal - 1) & 1 == 1) {
        // SAFETY: all zero is SIG_DFL with no flags and an empty mask, whose size is given; nothing is written back.
        // A signal that cannot be changed answers EINVAL.
        unsafe {
            let (new, none, size) = (default.as_ptr(), std::ptr::null_mut::<u64>(), size_of::<u64>());
            libc::syscall(libc::SYS_rt_sigaction, signal, new, none, size);
        }
    }
    unblock_signals();
}

fn unblock_signals() {
    // SAFETY: sigemptyset and pthread_sigmask work on a local.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}
