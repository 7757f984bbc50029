//! A payload's terminal on the caller's: raw mode, relaying, and the size.
//!
//! Owns putting the caller's terminal back on every way out, and a relay that cannot deadlock: input waits in a small
//! buffer while the payload does not read, and output goes on meanwhile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::spec::WindowSize;

/// Input kept while the payload does not read; more stays with its source.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Ctrl-D: how a terminal says that there is no more input.
const END_OF_TRANSMISSION: u8 = 4;

/// The size of the terminal on one of the standard descriptors; 24 × 80 when none is a terminal.
#[must_use]
pub fn window_size() -> WindowSize {
    let standard = [rustix::stdio::stdout(), rustix::stdio::stderr(), rustix::stdio::stdin()];
    standard.into_iter().find_map(|fd| tcgetwinsize(fd).ok()).map_or(
        WindowSize { rows: 24, columns: 80 },
        |size| WindowSize { rows: size.ws_row, columns: size.ws_col },
    )
}

/// The caller's terminal in raw mode; as it was again when dropped.
pub(crate) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Option<RawMode>> {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else {
            return Ok(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(RawMode { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // After the output that is still on its way. If the terminal is gone there is nothing to put back.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// The stream between the caller's standard descriptors and the master of the payload's terminal.
pub(crate) struct Relay {
    master: OwnedFd,
    input: Vec<u8>,
    input_open: bool,
    output_open: bool,
}

impl Relay {
    /// `interactive` lets input through.
    pub(crate) fn new(master: OwnedFd, interactive: bool) -> io::Result<Relay> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Relay { master, input: Vec::new(), input_open: interactive, output_open: true })
    }

    /// What to wait for: on standard input, and on the master.
    pub(crate) fn interests(&self) -> (PollFlags, PollFlags) {
        let readable = self.input_open && self.input.len() < INPUT_BYTES_MAX;
        let input = if readable { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut master = if self.output_open { PollFlags::POLLIN } else { PollFlags::empty() };
        if !self.input.is_empty() {
            master |= PollFlags::POLLOUT;
        }
        (input, master)
    }

    /// The master, while it is of interest: a hung-up one would wake every poll.
    pub(crate) fn master(&self) -> Option<BorrowedFd<'_>> {
        self.output_open.then(|| self.master.as_fd())
    }

    /// Whether standard input is of interest.
    pub(crate) fn wants_input(&self) -> bool {
        self.input_open && self.input.len() < INPUT_BYTES_MAX
    }

    /// Takes input in, after a poll said that there is some.
    pub(crate) fn take_input(&mut self) {
        let mut bytes = [0; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(0) => {
                self.input_open = false;
                self.input.push(END_OF_TRANSMISSION);
            }
            Ok(count) => self.input.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.input_open = false,
        }
    }

    /// Passes on what can be passed on without waiting. `false` when there was no output.
    pub(crate) fn pass(&mut self) -> io::Result<bool> {
        if !self.input.is_empty() {
            match rustix::io::write(&self.master, &self.input) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.input.clear();
                    self.input_open = false;
                }
            }
        }
        let mut bytes = [0; 16 << 10];
        match rustix::io::read(&self.master, &mut bytes) {
            // EIO: the last process has closed the terminal.
            Ok(0) | Err(Errno::IO) => self.output_open = false,
            Ok(count) => {
                io::Write::write_all(&mut std::fs::File::from(stdout()?), &bytes[..count])?;
                return Ok(true);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }

    /// Gives the payload's terminal the size of the caller's.
    pub(crate) fn resize(&self) {
        let standard = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        if let Some(size) = standard.into_iter().find_map(|fd| tcgetwinsize(fd).ok()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}

/// Standard output without the standard library's line buffer, which would hold back prompts.
fn stdout() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?)
}
