//! Process 1 where the caller wants an init (`--init`): it reaps orphans and passes signals on to the payload.
//!
//! Phases:
//! 1. fork the payload, which waits;
//! 2. shed: the payload's user and groups, no capability but the one to signal it, no_new_privs, a filter that lets
//!    nothing through but what phase 4 calls. From then on the payload may look into this process, as into any other of
//!    its user: `/proc/1/fd/1` can be opened;
//! 3. tell the parent, and let the payload go. Whatever fails before ends the sandbox before the payload has run;
//! 4. reap every child, forward signals to the payload, watch for the parent's death;
//! 5. when the payload has ended, tell the parent how and exit: the kernel kills whatever is left in the namespace.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{DumpableBehavior, Pid, WaitOptions};

use crate::init::EXIT_SETUP;
use crate::kernel_fs::Terminal;
use crate::message::{self, Message, SetupFailure};
use crate::payload::{self, Launch};
use crate::privileges::{self, Expected};
use crate::seccomp;
use crate::sys;
use crate::tree::OrFail;

/// `CAP_KILL`: to signal a payload that has changed its user.
const CAP_KILL: u64 = 1 << 5;

/// What phases 3 to 5 call, memory and the C library's own needs included.
const CALLS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_wait4,
    libc::SYS_kill,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Runs the payload below this process to its end. Returns the exit code of this process. `started` is what the parent
/// is told once the payload goes.
pub(crate) fn run(
    launch: Launch,
    terminal: Option<Terminal>,
    control: &OwnedFd,
    started: &Message,
) -> Result<i32, SetupFailure> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&SigSet::all(), flags).or_fail(|| "make a signalfd".to_owned())?;
    sys::receive_children();
    let (wait, go) = std::io::pipe().or_fail(|| "make a pipe to the payload".to_owned())?;
    let child = sys::fork().or_fail(|| "fork the payload".to_owned())?;
    let Some(child) = child.and_then(Pid::from_raw) else {
        drop(go);
        follow(&launch, terminal, control, wait);
    };
    drop(wait);
    shed(&launch)?;
    // What the payload may look into holds nothing but what phase 4 needs.
    drop(launch);
    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    message::send(control.as_fd(), started, master).or_fail(|| "report to the parent".to_owned())?;
    drop(terminal);
    let_go(go).or_fail(|| "let the payload go".to_owned())?;
    match reap_until(child, &signals, control) {
        Ok((code, signal)) => {
            let _ = message::send(control.as_fd(), &Message::Exited { code, signal }, None);
            Ok(code)
        }
        Err(lost) => {
            let _ = message::send(control.as_fd(), &Message::Lost(lost), None);
            Ok(EXIT_SETUP)
        }
    }
}

/// The payload's side: it waits until process 1 has shed, and becomes the payload.
fn follow(launch: &Launch, terminal: Option<Terminal>, control: &OwnedFd, mut wait: PipeReader) -> ! {
    let mut byte = [0];
    // The end of the pipe instead: process 1 has failed, and says so itself.
    if wait.read_exact(&mut byte).is_err() || rustix::process::setsid().is_err() {
        sys::exit_now(EXIT_SETUP);
    }
    payload::become_payload(launch, terminal, control)
}

fn let_go(mut go: PipeWriter) -> std::io::Result<()> {
    go.write_all(&[1])
}

fn shed(launch: &Launch) -> Result<(), SetupFailure> {
    let operation = |what: &str| format!("take from the sandbox's init {what}");
    let credentials = &launch.credentials;
    privileges::limit_capabilities(0)?;
    // A user other than root loses its capabilities with this.
    let groups = privileges::set_ids(credentials, launch.proc.as_fd())?;
    let capabilities = if credentials.uid == 0 { CAP_KILL & launch.capabilities } else { 0 };
    if credentials.uid == 0 {
        privileges::set_capabilities(capabilities).or_fail(|| operation("its capabilities"))?;
    }
    rustix::thread::set_no_new_privs(true).or_fail(|| operation("the right to gain privileges"))?;
    // The filter comes last, and lets nothing be read that could prove it.
    let expected = Expected { credentials, groups, capabilities, no_new_privileges: true, filter: false };
    expected.check(launch.proc.as_fd())?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
        .or_fail(|| "let the payload look at the sandbox's init".to_owned())?;
    sys::load_seccomp(&seccomp::only(CALLS)).or_fail(|| operation("its system calls"))
}

/// Reaps and forwards until the payload has ended. Returns its exit code, and its signal if one killed it.
fn reap_until(
    payload: Pid,
    signals: &SignalFd,
    control: &OwnedFd,
) -> Result<(i32, Option<i32>), SetupFailure> {
    loop {
        if let Some(ended) = reap(payload)? {
            return Ok(ended);
        }
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).or_fail(|| "wait for signals".to_owned()),
        }
        if fds[1].any() == Some(true) {
            // The parent has died.
            sys::exit_now(128 + libc::SIGKILL);
        }
        while let Some(info) = signals.read_signal().or_fail(|| "read signals".to_owned())? {
            let number = info.ssi_signo as i32;
            if number != libc::SIGCHLD {
                // The payload may have ended in this moment; it is not reaped yet, so its id cannot be another's.
                let _ = sys::kill(payload.as_raw_nonzero().get(), number);
            }
        }
    }
}

/// Reaps all that have ended. The payload's end is returned.
fn reap(payload: Pid) -> Result<Option<(i32, Option<i32>)>, SetupFailure> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == payload => {
                return Ok(Some(match status.terminating_signal() {
                    Some(signal) => (128 + signal, Some(signal)),
                    None => (status.exit_status().unwrap_or(EXIT_SETUP), None),
                }));
            }
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error).or_fail(|| "wait for the payload".to_owned()),
        }
    }
}
