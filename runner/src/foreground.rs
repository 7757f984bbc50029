//! A payload in the foreground: the caller's descriptors and signals are the payload's.
//!
//! Owns the loop that waits for signals, streams that begin and the end. The end shows on a pidfd, so no race with
//! `SIGCHLD` can lose it. Signals are held back before the sandbox exists; one that arrives early is passed on as soon as
//! there is a payload.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::copies::Copies;
use crate::process::SignalSets;
use crate::sandbox::{ExitStatus, Running, Sandbox, SandboxError};
use crate::spec::{SandboxSpec, Stdio};
use crate::stdio;
use crate::terminal::{Master, RawMode};

/// Runs a payload on the caller's standard descriptors until it ends; with `interactive` it reads the caller's standard
/// input, else nothing. `started` is called once the payload is being executed. Meanwhile the caller's signals are the
/// payload's, and the terminal, if the spec asks for one, is in raw mode; it is put back on every way out.
///
/// To be called by the main thread, with no other thread that has signals unblocked.
///
/// # Errors
/// As [`Sandbox::spawn`] and [`Running::wait`]. That output could not be written is no error: see [`ExitStatus`].
pub fn run_foreground(
    spec: SandboxSpec,
    interactive: bool,
    started: impl FnOnce(&Running),
) -> Result<ExitStatus, SandboxError> {
    let signals = Signals::hold().map_err(kernel("hold signals back"))?;
    let stdio = match spec.tty {
        Some(_) => Stdio::default(),
        None => stdio::of_caller(interactive).map_err(kernel("use the caller's standard descriptors"))?,
    };
    let mut running = Sandbox::new(spec)?.spawn(stdio)?;
    started(&running);
    let master = running.terminal.take().map(Master::new);
    let terminal = master.as_ref().map(Master::descriptor);
    let copies = Copies::of(&mut running, terminal, interactive);
    let mut copies = copies.map_err(kernel("copy to and from the sandbox"))?;
    let raw_mode = match (&master, interactive) {
        (Some(_), true) => RawMode::enter().map_err(kernel("put the terminal into raw mode"))?,
        _ => None,
    };
    // The window may have changed its size between the spec and now.
    let _ = master.as_ref().is_some_and(Master::resize);
    watch(&running, &signals, master.as_ref(), &mut copies).map_err(kernel("wait for the sandbox"))?;
    let status = running.wait();
    // From here on a signal ends us: there is no payload any more, and whoever reads our output may have stopped.
    drop(signals);
    let lost = copies.finish();
    drop(raw_mode);
    status.map(|status| ExitStatus { lost_output: lost.map(rustix::io::Errno::raw_os_error), ..status })
}

/// Until the sandbox has ended.
fn watch(
    running: &Running,
    signals: &Signals,
    master: Option<&Master>,
    copies: &mut Copies,
) -> io::Result<()> {
    // A pipe that was handed on tells of its reader's end here as well.
    let outputs = [rustix::stdio::stdout(), rustix::stdio::stderr()];
    let mut handed = outputs.map(|output| master.is_none() && stdio::is_handed_pipe(output));
    loop {
        let mut fds = vec![
            PollFd::new(running.pidfd(), PollFlags::POLLIN),
            PollFd::new(signals.fd.as_fd(), PollFlags::POLLIN),
        ];
        for (output, handed) in outputs.into_iter().zip(handed) {
            // Always four first, so that what follows has its place.
            let fd = if handed { output } else { signals.fd.as_fd() };
            fds.push(PollFd::new(fd, PollFlags::empty()));
        }
        fds.extend(copies.sources().map(|source| PollFd::new(source, PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events: Vec<PollFlags> =
            fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        drop(fds);
        let ready = |at: usize| !events[at].is_empty();
        if ready(0) {
            return Ok(());
        }
        if ready(1) {
            signals.pass(running, master)?;
        }
        for at in 0..outputs.len() {
            if handed[at] && ready(2 + at) {
                handed[at] = false;
                copies.begin_watch_of_writes(outputs[at])?;
            }
        }
        copies.begin(&events[4..])?;
    }
}

/// The signals of this process while a payload has them; as before when dropped.
struct Signals {
    fd: SignalFd,
    before: SigSet,
    /// What whoever started us wants ignored, as nohup does.
    sets: SignalSets,
}

impl Signals {
    /// Holds back all signals that a payload is to have (`--sig-proxy`): every one but SIGKILL and SIGSTOP, which cannot
    /// be, SIGCHLD and SIGURG, which are about this process, and, where a terminal is used, SIGTTIN and SIGTTOU, by which
    /// it stops a background process that reads from it or changes it.
    fn hold() -> io::Result<Signals> {
        let sets = SignalSets::own()?;
        let mut held = SigSet::all();
        held.remove(Signal::SIGCHLD);
        held.remove(Signal::SIGURG);
        let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        if standard.into_iter().any(rustix::termios::isatty) {
            held.remove(Signal::SIGTTIN);
            held.remove(Signal::SIGTTOU);
        }
        let fd = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = held.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
        Ok(Signals { fd, before, sets })
    }

    /// The next one that has come.
    fn next(&self) -> io::Result<Option<i32>> {
        loop {
            let Some(info) = self.fd.read_signal()? else { return Ok(None) };
            let signal = info.ssi_signo as i32;
            if !self.sets.ignores(signal) {
                return Ok(Some(signal));
            }
        }
    }

    fn pass(&self, running: &Running, master: Option<&Master>) -> io::Result<()> {
        while let Some(signal) = self.next()? {
            // The terminal inside tells its processes itself.
            let is_told = signal == libc::SIGWINCH && master.is_some_and(Master::resize);
            if !is_told {
                running.signal(signal)?;
            }
        }
        Ok(())
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Those that came for the payload too late are nobody's.
        while let Ok(Some(_)) = self.next() {}
        let _ = self.before.thread_set_mask();
    }
}

fn kernel(operation: &str) -> impl FnOnce(io::Error) -> SandboxError + '_ {
    move |source| SandboxError::Kernel { operation: operation.to_owned(), source }
}
