//! A payload in the foreground: the caller's terminal and signals are the payload's.
//!
//! Owns the loop that waits for signals, terminal bytes and the end. Its end shows on a pidfd, so no race with
//! `SIGCHLD` can lose it. Signals are diverted before the sandbox exists; one that arrives early is passed on as soon
//! as there is a payload.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kept_terminal::{self, Copies};
use crate::sandbox::{ExitStatus, Running, Sandbox, SandboxError};
use crate::spec::{SandboxSpec, Stdio};
use crate::sys::SignalPipe;
use crate::terminal::{RawMode, Relay};

/// Signals that are passed on to the payload (`--sig-proxy`).
const PROXIED: [i32; 6] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// Runs a payload on the caller's standard descriptors until it ends; without a terminal of its own it gets pipes where
/// the caller has one. With `interactive` it reads the caller's
/// standard input, else nothing. `started` is called once the payload is being executed.
///
/// The terminal, if the spec asks for one, is in raw mode meanwhile and put back on every way out.
///
/// # Errors
/// As [`Sandbox::spawn`] and [`Running::wait`]; `EBUSY` when another foreground run is going on in this process.
pub fn run_foreground(
    spec: SandboxSpec,
    interactive: bool,
    started: impl FnOnce(&Running),
) -> Result<ExitStatus, SandboxError> {
    let with_terminal = spec.tty.is_some();
    let (mut signals, pipe) = divert(with_terminal).map_err(kernel("divert signals"))?;
    let stdio = if with_terminal { Stdio::default() } else { kept_terminal::stdio(interactive) };
    let mut running = Sandbox::new(spec)?.spawn(stdio)?;
    started(&running);
    let copies = Copies::start(&mut running).map_err(kernel("copy to and from the terminal"))?;
    let mut relay = match running.terminal.take() {
        Some(master) => Some(Relay::new(master, interactive).map_err(kernel("use the sandbox's terminal"))?),
        None => None,
    };
    let raw_mode = match (&relay, interactive) {
        (Some(_), true) => RawMode::enter().map_err(kernel("put the terminal into raw mode"))?,
        _ => None,
    };
    // A signal of this size may have changed the window between the spec and now.
    relay.iter().for_each(Relay::resize);
    let outcome = watch(&running, &mut signals, relay.as_mut()).map_err(kernel("relay to the sandbox"));
    // A terminal that went away must not leave the payload running unseen: wait() below reaps it, dropping kills it.
    let status = match outcome {
        Ok(()) => running.wait(),
        Err(error) => Err(error),
    };
    if let (Some(relay), Ok(_)) = (relay.as_mut(), &status) {
        while relay.pass().unwrap_or(false) {}
    }
    drop(raw_mode);
    drop(pipe);
    if status.is_ok() {
        copies.finish();
    }
    status
}

/// Until the sandbox has ended.
fn watch(running: &Running, signals: &mut io::PipeReader, mut relay: Option<&mut Relay>) -> io::Result<()> {
    let stdin = rustix::stdio::stdin();
    loop {
        let interests = relay.as_ref().map(|relay| relay.interests());
        let mut fds = vec![
            PollFd::new(running.pidfd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let master = relay.as_ref().and_then(|relay| relay.master());
        if let (Some(master), Some((_, events))) = (master, interests) {
            fds.push(PollFd::new(master, events));
        }
        let input_at = fds.len();
        if relay.as_ref().is_some_and(|relay| relay.wants_input()) {
            fds.push(PollFd::new(stdin, PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any() == Some(true));
        let (ended, signalled, input) = (ready(0), ready(1), ready(input_at));
        drop(fds);
        if ended {
            return Ok(());
        }
        if let Some(relay) = relay.as_mut() {
            if input {
                relay.take_input();
            }
            relay.pass()?;
        }
        if signalled {
            pass_signals(running, signals, relay.as_deref())?;
        }
    }
}

fn pass_signals(running: &Running, signals: &mut io::PipeReader, relay: Option<&Relay>) -> io::Result<()> {
    let mut numbers = [0; 64];
    let count = signals.read(&mut numbers)?;
    for &number in &numbers[..count] {
        match i32::from(number) {
            libc::SIGWINCH => relay.iter().for_each(|relay| relay.resize()),
            number => running.signal(number)?,
        }
    }
    Ok(())
}

fn divert(with_terminal: bool) -> io::Result<(io::PipeReader, SignalPipe)> {
    let (reader, writer) = io::pipe()?;
    let writer = OwnedFd::from(writer);
    // A handler must never block, whatever storms of signals come.
    rustix::io::ioctl_fionbio(&writer, true)?;
    let mut numbers = PROXIED.to_vec();
    if with_terminal {
        numbers.push(libc::SIGWINCH);
    }
    Ok((reader, SignalPipe::divert(&numbers, writer)?))
}

fn kernel(operation: &str) -> impl FnOnce(io::Error) -> SandboxError + '_ {
    move |source| SandboxError::Kernel { operation: operation.to_owned(), source }
}
