//! Copying between the caller's standard descriptors and a payload's pipes or terminal.
//!
//! Owns the copying itself. Each stream gets a thread of its own when its first bytes come: the caller's descriptors may
//! block, and their mode, which others share, is not ours to change. Those that do not block are waited for. All output
//! arrives: what is still in the pipes when the sandbox ends is copied too, and nothing is waited for beyond that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use crate::process::Process;
use crate::sandbox::Running;

/// Bytes that are moved at once.
const STEP_BYTES: usize = 1 << 20;

/// Bytes read at once where the kernel cannot move them.
const BUFFER_BYTES: usize = 64 << 10;

/// The size that a pipe gets once it was seen full: the largest one that everybody may have (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

/// A pipe's size at first.
const PIPE_BYTES_FIRST: usize = 64 << 10;

/// Ctrl-D: how a terminal says that there is no more input.
const END_OF_TRANSMISSION: u8 = 4;

/// The streams of one foreground run.
pub(crate) struct Copies {
    waiting: Vec<Copy>,
    threads: Vec<JoinHandle<Option<Errno>>>,
    process: Arc<Process>,
}

/// One stream.
enum Copy {
    Input(Input),
    Output(Output),
}

impl Copy {
    fn is_terminal(&self) -> bool {
        match self {
            Copy::Input(input) => input.is_terminal,
            Copy::Output(output) => output.is_terminal,
        }
    }
}

impl Copies {
    /// The streams that the sandbox's pipes or terminal need. With a terminal, input goes there if `interactive`.
    pub(crate) fn of(
        running: &mut Running,
        terminal: Option<&Arc<OwnedFd>>,
        interactive: bool,
    ) -> io::Result<Copies> {
        let process = running.process();
        let mut waiting = Vec::new();
        let mut push = |pipe: Arc<OwnedFd>, own: BorrowedFd<'static>, is_input: bool| -> io::Result<()> {
            // Our own end, which nobody shares.
            rustix::io::ioctl_fionbio(&pipe, true)?;
            let (process, is_terminal) = (Arc::clone(&process), terminal.is_some());
            waiting.push(match is_input {
                true => Copy::Input(Input { from: own, to: pipe, process, is_terminal }),
                false => Copy::Output(Output { from: pipe, to: own, process, is_terminal }),
            });
            Ok(())
        };
        let pipe = |file: std::fs::File| Arc::new(OwnedFd::from(file));
        if let Some(master) = terminal {
            push(Arc::clone(master), rustix::stdio::stdout(), false)?;
            if interactive {
                push(Arc::clone(master), rustix::stdio::stdin(), true)?;
            }
        }
        if let Some(own) = running.stdin.take() {
            push(pipe(own), rustix::stdio::stdin(), true)?;
        }
        if let Some(own) = running.stdout.take() {
            push(pipe(own), rustix::stdio::stdout(), false)?;
        }
        if let Some(own) = running.stderr.take() {
            push(pipe(own), rustix::stdio::stderr(), false)?;
        }
        Ok(Copies { waiting, threads: Vec::new(), process })
    }

    /// What to wait for: the sources of streams that have not begun.
    pub(crate) fn sources(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.waiting.iter().map(|copy| match copy {
            Copy::Input(input) => input.from,
            Copy::Output(output) => output.from.as_fd(),
        })
    }

    /// Begins those streams of [`Copies::sources`] at which something has happened: `events`, in their order.
    pub(crate) fn begin(&mut self, events: &[PollFlags]) -> io::Result<()> {
        for at in (0..self.waiting.len()).rev() {
            let events = events.get(at).copied().unwrap_or(PollFlags::empty());
            if events.is_empty() {
                continue;
            }
            let copy = self.waiting.remove(at);
            // A pipe that ends with nothing in it, as at the end of a silent run, needs no thread to be closed.
            if events == PollFlags::POLLHUP && !copy.is_terminal() {
                continue;
            }
            // A read from a descriptor that others read from too may block, even though there was something to read.
            let can_block = matches!(&copy, Copy::Input(input) if !input.is_file());
            let run = move || match copy {
                Copy::Input(input) => input.run(),
                Copy::Output(output) => output.run(),
            };
            let thread = std::thread::Builder::new().name("copy".to_owned()).spawn(run)?;
            if !can_block {
                self.threads.push(thread);
            }
        }
        Ok(())
    }

    /// Looks after a payload which has the caller's own pipe `own`, whose reader has gone.
    pub(crate) fn begin_watch_of_writes(&mut self, own: BorrowedFd<'_>) -> io::Result<()> {
        let process = Arc::clone(&self.process);
        let pipe = by_path(own)?;
        let watch = move || {
            process.watch_writes(&pipe);
            None
        };
        self.threads.push(std::thread::Builder::new().name("writes".to_owned()).spawn(watch)?);
        Ok(())
    }

    /// Copies what is left, after the sandbox has ended; input is nobody's any more. Returns why output could not be written, if it could not, and
    /// not because its reader had gone.
    pub(crate) fn finish(self) -> Option<Errno> {
        let mut failure = None;
        for copy in self.waiting {
            if let Copy::Output(output) = copy {
                failure = failure.or(output.run());
            }
        }
        for thread in self.threads {
            // A thread that panicked has said so.
            failure = failure.or(thread.join().ok().flatten());
        }
        failure
    }
}

/// From the payload to the caller.
struct Output {
    from: Arc<OwnedFd>,
    to: BorrowedFd<'static>,
    process: Arc<Process>,
    is_terminal: bool,
}

impl Output {
    /// Until the last writer has gone, or the sandbox has ended and nothing is left.
    fn run(self) -> Option<Errno> {
        let mut step = Step::new(!self.is_terminal);
        loop {
            match step.copy(self.from.as_fd(), self.to, self.from.as_fd()) {
                Ok(true) => {}
                // EIO is how a terminal says that the last process has closed it.
                Ok(false) | Err(Fault::Source(Errno::IO)) => return None,
                Err(Fault::Source(Errno::AGAIN)) => match self.wait() {
                    true => {}
                    false => return None,
                },
                Err(Fault::Target(Errno::AGAIN)) => wait_for(self.to, PollFlags::POLLOUT, None),
                Err(Fault::Either(Errno::AGAIN)) => match self.wait() {
                    true => wait_for(self.to, PollFlags::POLLOUT, None),
                    false => return None,
                },
                Err(Fault::Source(error) | Fault::Target(error) | Fault::Either(error)) => {
                    return self.broken(error);
                }
            }
        }
    }

    /// Waits for output. `false` when the sandbox has ended and there is none.
    fn wait(&self) -> bool {
        let mut fds = [
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.process.pidfd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        fds[0].any() == Some(true) || fds[1].any() != Some(true)
    }

    /// Nothing can be written any more. A payload's pipe is closed, as it would find it had it the caller's; the
    /// processes on a terminal are told that it has gone, and what they write is dropped.
    fn broken(self, error: Errno) -> Option<Errno> {
        let reader_gone = matches!(error, Errno::PIPE | Errno::CONNRESET)
            || (error == Errno::IO && rustix::termios::isatty(self.to));
        let Output { from, process, is_terminal, to } = self;
        if is_terminal {
            process.hang_up();
            let mut dropped = [0; 4096];
            let rest = Output { from, process, is_terminal, to };
            loop {
                match rustix::io::read(&rest.from, &mut dropped) {
                    Err(Errno::AGAIN) if rest.wait() => {}
                    Err(Errno::INTR) | Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        } else {
            let pipe = by_path(from.as_fd());
            drop(from);
            if let Ok(pipe) = pipe {
                process.watch_writes(&pipe);
            }
        }
        (!reader_gone).then_some(error)
    }
}

/// From the caller to the payload.
struct Input {
    from: BorrowedFd<'static>,
    to: Arc<OwnedFd>,
    process: Arc<Process>,
    is_terminal: bool,
}

impl Input {
    /// Until the input's end, or the sandbox's.
    fn run(self) -> Option<Errno> {
        let rest = self.rest();
        let mut step = Step::new(!self.is_terminal && !rustix::termios::isatty(self.from));
        let ended = loop {
            let pidfd = Some(self.process.pidfd());
            if step.pending() == 0 {
                // It may block, and somebody else may be reading from it too.
                wait_for(self.from, PollFlags::POLLIN, pidfd);
            }
            if self.has_ended() {
                break true;
            }
            match step.copy(self.from, self.to.as_fd(), self.to.as_fd()) {
                Ok(true) | Err(Fault::Source(Errno::AGAIN)) => {}
                Err(Fault::Target(Errno::AGAIN) | Fault::Either(Errno::AGAIN)) => {
                    wait_for(self.to.as_fd(), PollFlags::POLLOUT, pidfd);
                }
                // A payload that reads no more wants no more; a source that fails has ended.
                Ok(false) | Err(_) => break false,
            }
        };
        if self.is_terminal && !ended {
            wait_for(self.to.as_fd(), PollFlags::POLLOUT, Some(self.process.pidfd()));
            // A terminal that does not take it has been closed.
            let _ = rustix::io::write(&self.to, &[END_OF_TRANSMISSION]);
        }
        let Input { from, to, process, .. } = self;
        drop(to);
        if let Some(rest) = rest {
            wait_for(process.pidfd(), PollFlags::POLLIN, None);
            let unread = rustix::io::ioctl_fionread(&rest).unwrap_or(0) + step.pending() as u64;
            // Left to whoever reads the file next, as a payload with the file itself would leave it.
            let _ = rustix::fs::seek(from, SeekFrom::Current(-(unread as i64)));
        }
        None
    }

    fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.process.pidfd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0].any() == Some(true)
    }

    /// Whether it can be put back to what the payload has read.
    fn is_file(&self) -> bool {
        !self.is_terminal && rustix::fs::tell(self.from).is_ok()
    }

    /// The pipe's other end, where the source is a file.
    fn rest(&self) -> Option<OwnedFd> {
        if !self.is_file() {
            return None;
        }
        let pipe = format!("/proc/self/fd/{}", self.to.as_raw_fd());
        rustix::fs::open(pipe, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

/// Which side of a copy failed.
enum Fault {
    Source(Errno),
    Target(Errno),
    /// The kernel, which moved the bytes itself, does not say.
    Either(Errno),
}

/// The state of one stream's copying.
struct Step {
    /// Whether the kernel can move the bytes (splice).
    splices: bool,
    /// Whether the pipe that is ours has been made larger.
    grown: bool,
    buffer: Vec<u8>,
    /// What of the buffer is not written yet.
    start: usize,
}

impl Step {
    fn new(splices: bool) -> Step {
        Step { splices, grown: false, buffer: Vec::new(), start: 0 }
    }

    fn pending(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Copies some bytes. `false` at the end of the source. `ours` is the side that is the payload's pipe.
    fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        ours: BorrowedFd<'_>,
    ) -> Result<bool, Fault> {
        if self.pending() > 0 {
            match rustix::io::write(to, &self.buffer[self.start..]) {
                Ok(count) => self.start += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(Fault::Target(error)),
            }
            return Ok(true);
        }
        if self.splices {
            match rustix::pipe::splice(from, None, to, None, STEP_BYTES, SpliceFlags::NONBLOCK) {
                Ok(count) => {
                    self.grow(count, ours);
                    return Ok(count > 0);
                }
                Err(Errno::INTR) => return Ok(true),
                // A file opened for appending, or one whose driver cannot.
                Err(Errno::INVAL) => self.splices = false,
                Err(error) => return Err(Fault::Either(error)),
            }
        }
        self.buffer.resize(BUFFER_BYTES, 0);
        self.start = 0;
        let read = rustix::io::read(from, self.buffer.as_mut_slice());
        self.buffer.truncate(read.unwrap_or(0));
        match read {
            Ok(count) => {
                self.grow(count, ours);
                Ok(count > 0)
            }
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(Fault::Source(error)),
        }
    }

    /// A pipe that was full is made larger, once: whoever writes much waits less often.
    fn grow(&mut self, count: usize, ours: BorrowedFd<'_>) {
        if count >= PIPE_BYTES_FIRST && !self.grown {
            self.grown = true;
            // A user has only so much memory in pipes, and a terminal is none.
            let _ = rustix::pipe::fcntl_setpipe_size(ours, PIPE_BYTES);
        }
    }
}

/// A descriptor by which a pipe can be opened again, and which is neither of its ends.
fn by_path(pipe: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let name = format!("/proc/self/fd/{}", pipe.as_raw_fd());
    Ok(rustix::fs::open(name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Waits for `events` on `fd`, or the end of `or`.
fn wait_for(fd: BorrowedFd<'_>, events: PollFlags, or: Option<BorrowedFd<'_>>) {
    let mut fds = vec![PollFd::new(fd, events)];
    fds.extend(or.map(|or| PollFd::new(or, PollFlags::POLLIN)));
    // An interrupted or failed poll only means another try.
    let _ = poll(&mut fds, PollTimeout::NONE);
}
