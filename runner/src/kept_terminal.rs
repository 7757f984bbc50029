//! The caller's terminal, when the payload is not to have one: pipes in its place, and threads that copy.
//!
//! Whoever holds a descriptor of a terminal, be it only its output, can read what is typed there, change its modes and
//! the permissions of its device. Without `--tty` the payload therefore gets pipes, as from Docker. Descriptors that
//! are no terminal are handed on as they are, and nothing has to be copied.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sandbox::Running;
use crate::spec::{Stdio, StdioEnd};

/// Bytes copied at once.
const COPY_BYTES: usize = 16 << 10;

/// The payload's standard descriptors: the caller's own, with pipes in the place of terminals.
pub(crate) fn stdio(interactive: bool) -> Stdio {
    let end = |fd: BorrowedFd<'_>| match rustix::termios::isatty(fd) {
        true => StdioEnd::Pipe,
        false => StdioEnd::Inherit,
    };
    Stdio {
        stdin: if interactive { end(rustix::stdio::stdin()) } else { StdioEnd::Null },
        stdout: end(rustix::stdio::stdout()),
        stderr: end(rustix::stdio::stderr()),
    }
}

/// Threads that copy between the caller's terminal and the payload's pipes.
#[derive(Default)]
pub(crate) struct Copies(Vec<JoinHandle<()>>);

impl Copies {
    /// Begins to copy what [`stdio`] made pipes of.
    pub(crate) fn start(running: &mut Running) -> io::Result<Copies> {
        let mut copies = Copies::default();
        if let Some(pipe) = running.stdin.take() {
            let ended = running.pidfd().try_clone_to_owned()?;
            copies.0.push(std::thread::spawn(move || take_input(pipe, &ended)));
        }
        for (pipe, own) in [
            (running.stdout.take(), rustix::stdio::stdout()),
            (running.stderr.take(), rustix::stdio::stderr()),
        ] {
            if let Some(pipe) = pipe {
                let own = rustix::io::fcntl_dupfd_cloexec(own, 3)?;
                copies.0.push(std::thread::spawn(move || give_output(pipe, own)));
            }
        }
        Ok(copies)
    }

    /// Waits until all output has been copied: once the sandbox has ended, since nobody else has the pipes' other ends.
    pub(crate) fn finish(self) {
        for copy in self.0 {
            // A copy that panicked has nothing more to say.
            let _ = copy.join();
        }
    }
}

/// Until the input's end, or the sandbox's.
fn take_input(mut pipe: File, ended: &OwnedFd) {
    let stdin = rustix::stdio::stdin();
    let mut bytes = [0; COPY_BYTES];
    loop {
        let mut fds = [PollFd::new(stdin, PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].any() == Some(true) {
            return;
        }
        if fds[0].any() != Some(true) {
            continue;
        }
        match rustix::io::read(stdin, &mut bytes) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => return,
            // A payload that reads no more wants no more.
            Ok(count) => match pipe.write_all(&bytes[..count]) {
                Ok(()) => {}
                Err(_) => return,
            },
        }
    }
}

/// Until the last writer has gone. When the terminal goes first, the payload finds its pipe closed.
fn give_output(mut pipe: File, own: OwnedFd) {
    let mut own = File::from(own);
    let mut bytes = [0; COPY_BYTES];
    while let Ok(count) = pipe.read(&mut bytes) {
        if count == 0 || own.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
