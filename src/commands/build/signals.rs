//! Ctrl-C (SIGINT) and SIGTERM during a build.
//!
//! 1. The first signal interrupts the build: no step begins any more, processes of RUN steps are killed and their
//!    folders removed. The command then says so and exits with 128 + the signal's number, as a shell would put it.
//! 2. A second signal, or a build that takes longer than [`GRACE`] to wind up, ends the program at once. That harms
//!    nothing: whatever a killed build leaves is swept by the next one.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::Scope;
use std::time::Duration;

use rimg_builder::engine::Interrupt;
use rimg_runner::SignalPipe;
use rustix::process::Signal;

use crate::failure::Failure;
use crate::progress::Display;
use crate::terminal::note;

/// How long an interrupted build may take to wind up. Killing sandboxes and removing their folders takes a moment; a
/// download, or unpacking an image, would take longer than whoever pressed Ctrl-C wants to wait.
const GRACE: Duration = Duration::from_secs(3);

/// Runs `build` with signals diverted to `interrupt`. `None` when one came and the build did not get to its end.
pub(super) fn interruptible<T, E>(
    interrupt: &Interrupt,
    display: &Display,
    build: impl FnOnce() -> Result<T, E>,
) -> Result<Result<T, E>, Interrupted> {
    let received = AtomicI32::new(0);
    let result = std::thread::scope(|scope| {
        // Where signals cannot be diverted they end the program, as they do by default.
        let diverted = divert(scope, &received, interrupt, display).ok();
        let result = build();
        drop(diverted);
        result
    });
    match (result, received.into_inner()) {
        (Err(_), signal) if signal != 0 => Err(Interrupted { signal }),
        (result, _) => Ok(result),
    }
}

/// A build that a signal ended.
pub(super) struct Interrupted {
    signal: i32,
}

impl Interrupted {
    /// Says so.
    pub(super) fn tell(&self, display: &Display) -> Failure {
        display.close();
        note("build interrupted");
        Failure::told(self.exit_code())
    }

    fn exit_code(&self) -> u8 {
        u8::try_from(128 + self.signal).unwrap_or(u8::MAX)
    }
}

/// Two threads that end when the returned value is dropped: one waits for signals, the other for what follows them.
fn divert<'scope>(
    scope: &'scope Scope<'scope, '_>,
    received: &'scope AtomicI32,
    interrupt: &'scope Interrupt,
    display: &'scope Display,
) -> io::Result<SignalPipe> {
    let (mut reader, writer) = io::pipe()?;
    let writer = OwnedFd::from(writer);
    // A handler must never block, whatever storms of signals come.
    rustix::io::ioctl_fionbio(&writer, true)?;
    let pipe = SignalPipe::divert(&[Signal::INT.as_raw(), Signal::TERM.as_raw()], writer)?;
    let (sender, signals) = mpsc::channel();
    scope.spawn(move || {
        while let Some(signal) = next_signal(&mut reader) {
            // The other side is gone when the program is about to end.
            let _ = sender.send(signal);
        }
    });
    scope.spawn(move || {
        let Ok(signal) = signals.recv() else { return };
        received.store(signal, Ordering::SeqCst);
        interrupt.set();
        if waits_no_longer(&signals) {
            let failure = Interrupted { signal }.tell(display);
            std::process::exit(i32::from(failure.report().0));
        }
    });
    Ok(pipe)
}

fn next_signal(reader: &mut PipeReader) -> Option<i32> {
    let mut byte = [0];
    loop {
        match reader.read(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(1) => return Some(i32::from(byte[0])),
            Ok(_) | Err(_) => return None,
        }
    }
}

/// Whether a second signal or the end of [`GRACE`] comes before the build's end.
fn waits_no_longer(signals: &Receiver<i32>) -> bool {
    match signals.recv_timeout(GRACE) {
        Ok(_) | Err(RecvTimeoutError::Timeout) => true,
        Err(RecvTimeoutError::Disconnected) => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_second_signal_is_not_waited_upon_and_an_end_is() {
        let (sender, signals) = mpsc::channel();
        sender.send(2).unwrap();
        assert!(waits_no_longer(&signals));
        drop(sender);
        assert!(!waits_no_longer(&signals));
    }

    #[test]
    fn exit_codes_are_a_shells() {
        assert_eq!(Interrupted { signal: Signal::INT.as_raw() }.exit_code(), 130);
        assert_eq!(Interrupted { signal: Signal::TERM.as_raw() }.exit_code(), 143);
    }
}
