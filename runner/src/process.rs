//! Process 1 of a sandbox as its parent sees it: signals, as an ordinary process takes them, and an end with ours.
//!
//! The kernel drops a signal for which process 1 of a namespace has neither a handler nor SIG_IGN, where any other
//! process would be ended by it. Docker leaves it at that, and Ctrl-C does nothing to `docker run IMAGE sleep 1000`.
//! Here such a signal ends the sandbox, with the exit code that an ordinary process would have had.
//!
//! When our own process dies, the sandbox has to die too. A death signal (`PR_SET_PDEATHSIG`) is cleared by every
//! program that changes its user, as entrypoints do, so a second process watches us ([`Watcher`]).

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::sys;

/// Signals that do not end a process by default: signal(7).
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// Between two looks for writes to a pipe that nobody reads: soon at first, and rarely where there are none.
const WRITES_PAUSE_MS_MIN: u16 = 50;
const WRITES_PAUSE_MS_MAX: u16 = 2000;

/// More than what the kernel says of a process, unless that has hundreds of groups.
const STATUS_BYTES: usize = 4 << 10;

/// How long writers wait at such a look.
const WRITES_LOOK_MS: u16 = 10;

/// Process 1.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    /// Whether process 1 is our own init, which passes signals on, or the payload itself.
    has_init: bool,
    /// The signal that the sandbox was ended for; 0 for none.
    ended_by: AtomicI32,
}

impl Process {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, has_init: bool) -> Process {
        Process { pid, pidfd, has_init, ended_by: AtomicI32::new(0) }
    }

    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The signal by which the sandbox was ended, where that was not the one that the kernel knows of.
    pub(crate) fn ended_by(&self) -> Option<i32> {
        Some(self.ended_by.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// Sends a signal. One that process 1 leaves at a default action which ends processes ends the sandbox. `executed`
    /// tells whether the payload's program runs already: before, it can have no handler.
    pub(crate) fn signal(&self, signal: i32, executed: bool) -> io::Result<()> {
        if !self.has_init && ends_by_default(signal) && (!executed || self.leaves_at_default(signal)) {
            return self.end_by(signal);
        }
        self.send(signal)
    }

    /// Ends the sandbox if process 1 is the payload and leaves this signal, which the kernel would drop, at its default.
    fn end_if_unhandled(&self, signal: i32) -> io::Result<bool> {
        let ends = !self.has_init && self.leaves_at_default(signal);
        if ends {
            self.end_by(signal)?;
        }
        Ok(ends)
    }

    fn end_by(&self, signal: i32) -> io::Result<()> {
        // The first one counts.
        let _ = self.ended_by.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        self.send(libc::SIGKILL)
    }

    fn send(&self, signal: i32) -> io::Result<()> {
        match sys::send_signal(self.pidfd.as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// Whether it neither catches, ignores nor blocks the signal. A process that cannot be looked at handles everything.
    fn leaves_at_default(&self, signal: i32) -> bool {
        let folder = format!("/proc/{}", self.pid);
        let Ok(main) = SignalSets::read(&Path::new(&folder).join("status")) else { return false };
        if holds(main.caught | main.ignored, signal) {
            return false;
        }
        if !holds(main.blocked, signal) {
            return true;
        }
        // A blocked signal waits for sigwait or a signalfd, unless another thread lets it through.
        let tasks = fs::read_dir(Path::new(&folder).join("task")).into_iter().flatten().flatten();
        let mut sets = tasks.filter_map(|task| SignalSets::read(&task.path().join("status")).ok());
        sets.any(|sets| !holds(sets.blocked, signal))
    }

    /// The terminal that the payload's output went to has gone.
    pub(crate) fn hang_up(&self) {
        if !self.end_if_unhandled(libc::SIGHUP).unwrap_or(true) {
            // One that has ended in the meantime needs no signal.
            let _ = self.send(libc::SIGHUP);
        }
    }

    /// Waits for the end while nobody reads the pipe that the payload writes to. Others are ended by SIGPIPE when they
    /// write; process 1, for which the kernel drops it, would go on for ever where it does not look at the errors of its
    /// writes. So from time to time the pipe is given a reader and filled, for a moment in which writers have to wait: if
    /// process 1 is found among them, SIGPIPE would have ended it.
    pub(crate) fn watch_writes(&self, pipe: &OwnedFd) {
        let mut pause_ms = WRITES_PAUSE_MS_MIN;
        while !self.has_init && !self.ends_within(pause_ms) {
            pause_ms = WRITES_PAUSE_MS_MAX.min(pause_ms * 2);
            // A pipe that cannot be opened cannot be watched.
            let Ok(full) = FullPipe::of(pipe) else { return };
            let ended = self.ends_within(WRITES_LOOK_MS);
            if ended || (self.writes_to(&full) && !matches!(self.end_if_unhandled(libc::SIGPIPE), Ok(false)))
            {
                return;
            }
        }
    }

    fn ends_within(&self, milliseconds: u16) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(milliseconds));
        fds[0].any() == Some(true)
    }

    /// Whether a thread of process 1 is in a call that writes to this pipe.
    fn writes_to(&self, pipe: &FullPipe) -> bool {
        let folder = format!("/proc/{}", self.pid);
        let tasks = fs::read_dir(Path::new(&folder).join("task")).into_iter().flatten().flatten();
        let mut calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        calls.any(|call| {
            written_descriptor(&call).is_some_and(|descriptor| {
                let file = rustix::fs::stat(format!("{folder}/fd/{descriptor}"));
                file.is_ok_and(|file| (file.st_dev, file.st_ino) == pipe.identity)
            })
        })
    }
}

/// A pipe that has a reader, who does not read, and no room.
struct FullPipe {
    _reader: OwnedFd,
    identity: (u64, u64),
}

impl FullPipe {
    fn of(pipe: &OwnedFd) -> io::Result<FullPipe> {
        let name = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        let open = |access| {
            let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(&name, flags, Mode::empty())
        };
        let reader = open(OFlags::RDONLY)?;
        let writer = open(OFlags::WRONLY)?;
        while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
        let stat = rustix::fs::fstat(&reader)?;
        Ok(FullPipe { _reader: reader, identity: (stat.st_dev, stat.st_ino) })
    }
}

/// The descriptor that a thread is writing to: from the number of its system call and the arguments, as `/proc` tells
/// them (proc_pid_syscall(5)).
fn written_descriptor(call: &str) -> Option<i32> {
    let mut words = call.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?;
    let argument = match number {
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendfile | libc::SYS_vmsplice => 0,
        libc::SYS_pwritev2 => 0,
        libc::SYS_tee => 1,
        libc::SYS_splice => 2,
        _ => return None,
    };
    let word = words.nth(argument)?.strip_prefix("0x")?;
    i32::try_from(u64::from_str_radix(word, 16).ok()? & 0xffff_ffff).ok()
}

fn ends_by_default(signal: i32) -> bool {
    (1..=sys::SIGNAL_MAX).contains(&signal) && !HARMLESS.contains(&signal)
}

fn holds(set: u64, signal: i32) -> bool {
    set >> (signal - 1) & 1 == 1
}

/// What a process does with signals: bit n - 1 is signal n.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SignalSets {
    pub(crate) blocked: u64,
    pub(crate) ignored: u64,
    pub(crate) caught: u64,
}

impl SignalSets {
    /// Those of the calling thread.
    pub(crate) fn own() -> io::Result<SignalSets> {
        SignalSets::read(Path::new("/proc/self/status"))
    }

    fn read(status: &Path) -> io::Result<SignalSets> {
        // The kernel does not tell the size of such a file; with room for all of it there is one read.
        let mut text = String::with_capacity(STATUS_BYTES);
        fs::File::open(status)?.read_to_string(&mut text)?;
        SignalSets::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// From proc_pid_status(5).
    fn parse(status: &str) -> Option<SignalSets> {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        Some(SignalSets { blocked: set("SigBlk:")?, ignored: set("SigIgn:")?, caught: set("SigCgt:")? })
    }

    pub(crate) fn ignores(&self, signal: i32) -> bool {
        holds(self.ignored, signal)
    }
}

/// A process that kills a sandbox when our own process has died, however it died. It ends by itself with the sandbox.
#[derive(Debug)]
pub(crate) struct Watcher(i32);

impl Watcher {
    pub(crate) fn start(watched: BorrowedFd<'_>) -> io::Result<Watcher> {
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        Ok(Watcher(sys::fork_watcher(watched, own.as_fd())?))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It is our child and not reaped, so its id is nobody else's. It has ended already, or is about to.
        let _ = sys::kill(self.0, libc::SIGKILL);
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitpid(Pid::from_raw(self.0), WaitOptions::empty())
        {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn signal_sets_are_read_from_a_status() {
        let status = "Name:\tsh\nSigPnd:\t0000000000000000\nSigBlk:\t0000000000000001\n\
            SigIgn:\t0000000000001000\nSigCgt:\t0000001000000002\nCapInh:\t0\n";
        let sets = SignalSets::parse(status).unwrap();
        assert!(holds(sets.blocked, libc::SIGHUP) && sets.ignores(libc::SIGPIPE));
        assert!(holds(sets.caught, libc::SIGINT) && holds(sets.caught, 37));
        assert!(!holds(sets.caught, libc::SIGTERM));
        assert_eq!(SignalSets::parse("SigBlk:\t0\nSigIgn:\tx\nSigCgt:\t0\n"), None);
        assert!(SignalSets::own().is_ok());
    }

    #[test]
    fn what_ends_an_ordinary_process() {
        for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGUSR1, libc::SIGALRM, libc::SIGIO, 37, 64] {
            assert!(ends_by_default(signal), "{signal}");
        }
        for signal in [0, 65, -1, libc::SIGWINCH, libc::SIGCONT, libc::SIGTSTP, libc::SIGCHLD] {
            assert!(!ends_by_default(signal), "{signal}");
        }
    }

    #[test]
    fn calls_that_write_are_told_by_their_number() {
        for (number, arguments, descriptor) in [
            (libc::SYS_write, "0x1 0x7ffd 0x2", Some(1)),
            (libc::SYS_splice, "0x3 0x0 0x5 0x0", Some(5)),
            (libc::SYS_read, "0x0 0x7ffd 0x2", None),
            (libc::SYS_write, "", None),
            (libc::SYS_write, "0xffffffff 0x0", None),
        ] {
            assert_eq!(written_descriptor(&format!("{number} {arguments}\n")), descriptor, "{arguments}");
        }
        assert_eq!(written_descriptor("running\n"), None);
    }
}
