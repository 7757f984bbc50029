//! A payload's standard descriptors: what may be handed on, and pipes for everything else.
//!
//! Whoever holds a descriptor of a file can do to it what its owner may, through `/proc/self/fd`: truncate it, read what
//! was there before, change its mode, make it set-user-ID. A terminal can be read from through its output. A socket
//! cannot be opened again, and a descriptor that does not block fails programs which do not expect it.
//!
//! | the caller has | the payload gets |
//! |---|---|
//! | a pipe of its own without a name, which blocks | that pipe |
//! | the device null, zero, full, random or urandom | the sandbox's own device of that number |
//! | anything else: file, terminal, socket, FIFO, another's pipe, one that does not block | a pipe, copied by [`crate::copies`] |
//!
//! Standard output and error that are the same file get one pipe, so that their order is kept.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::message::SetupFailure;
use crate::spec::{Stdio, StdioEnd};
use crate::tree::{OrFail, Tree};

/// The file system that pipes without a name live in (`PIPEFS_MAGIC`, linux/magic.h).
const PIPE_FILE_SYSTEM: rustix::fs::FsWord = 0x5049_5045;

/// Devices that the sandbox has as well, with their numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];

/// The ends for a payload on the caller's own descriptors; nothing to read unless `interactive`.
pub(crate) fn of_caller(interactive: bool) -> io::Result<Stdio> {
    let (stdout, stderr) = (rustix::stdio::stdout(), rustix::stdio::stderr());
    let stdin = if interactive { end(rustix::stdio::stdin())? } else { StdioEnd::Null };
    let mut stdio = Stdio { stdin, stdout: end(stdout)?, stderr: end(stderr)? };
    if matches!((&stdio.stdout, &stdio.stderr), (StdioEnd::Pipe, StdioEnd::Pipe)) {
        let (one, other) = (rustix::fs::fstat(stdout)?, rustix::fs::fstat(stderr)?);
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino) {
            stdio.stderr = StdioEnd::SameAsStdout;
        }
    }
    Ok(stdio)
}

/// Whether the caller's `fd` is a pipe that is handed on.
pub(crate) fn is_handed_pipe(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| is_pipe(fd, &stat) && is_ours_and_blocks(fd, &stat))
}

fn end(fd: BorrowedFd<'static>) -> io::Result<StdioEnd> {
    let stat = rustix::fs::fstat(fd)?;
    // Reading or writing one fails anyway, and would not say why.
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(io::Error::other("a directory cannot be a container's input or output"));
    }
    let handed_on = device(&stat).is_some() || (is_pipe(fd, &stat) && is_ours_and_blocks(fd, &stat));
    match handed_on {
        true => Ok(StdioEnd::Fd(above_stdio(fd)?)),
        false => Ok(StdioEnd::Pipe),
    }
}

fn is_pipe(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Fifo
        && rustix::fs::fstatfs(fd).is_ok_and(|system| system.f_type == PIPE_FILE_SYSTEM)
}

/// Only its owner may give a pipe to the payload's user, and a pipe that does not block has users who expect that.
fn is_ours_and_blocks(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
        && rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK))
}

/// The name of the device among those that a sandbox has too.
fn device(stat: &Stat) -> Option<&'static str> {
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    let number = |major, minor| rustix::fs::makedev(major, minor) == stat.st_rdev;
    let found = DEVICES.iter().find(|(_, major, minor)| is_device && number(*major, *minor));
    found.map(|(name, ..)| *name)
}

fn above_stdio(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// The child's three descriptors, each greater than 2, and our ends of its pipes.
pub(crate) struct Ends {
    pub(crate) theirs: [OwnedFd; 3],
    pub(crate) ours: [Option<File>; 3],
}

impl Ends {
    pub(crate) fn open(stdio: Stdio) -> io::Result<Ends> {
        let (stdin, our_stdin) = open(stdio.stdin, 0)?;
        let (stdout, our_stdout) = open(stdio.stdout, 1)?;
        let (stderr, our_stderr) = match stdio.stderr {
            StdioEnd::SameAsStdout => (above_stdio(stdout.as_fd())?, None),
            other => open(other, 2)?,
        };
        Ok(Ends { theirs: [stdin, stdout, stderr], ours: [our_stdin, our_stdout, our_stderr] })
    }
}

fn open(end: StdioEnd, number: usize) -> io::Result<(OwnedFd, Option<File>)> {
    match end {
        StdioEnd::Null | StdioEnd::SameAsStdout => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
            Ok((above_stdio(null.as_fd())?, None))
        }
        StdioEnd::Pipe => {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            let (theirs, ours) = if number == 0 { (reader, writer) } else { (writer, reader) };
            Ok((above_stdio(theirs.as_fd())?, Some(File::from(ours))))
        }
        StdioEnd::Fd(fd) => {
            let stat = rustix::fs::fstat(&fd)?;
            if device(&stat).is_none() && !is_pipe(fd.as_fd(), &stat) {
                return Err(io::Error::other("only a pipe without a name, or a device as the null device"));
            }
            Ok((above_stdio(fd.as_fd())?, None))
        }
    }
}

/// In the child: puts the sandbox's devices in the place of the host's on the standard descriptors. Through the host's
/// mount, a root inside that is root outside could change the mode of the host's `/dev/null`.
pub(crate) fn replace_devices(tree: &Tree) -> Result<(), SetupFailure> {
    let operation = || "give the payload devices of its own as input and output".to_owned();
    let Some(dev) = &tree.dev else { return Ok(()) };
    for number in 0..3 {
        let fd = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()][number];
        let stat = rustix::fs::fstat(fd).or_fail(operation)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            continue;
        }
        let name = device(&stat).ok_or(rustix::io::Errno::NXIO).or_fail(operation)?;
        let own = rustix::fs::openat(dev, name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let own = own.or_fail(operation)?;
        match number {
            0 => rustix::stdio::dup2_stdin(&own),
            1 => rustix::stdio::dup2_stdout(&own),
            _ => rustix::stdio::dup2_stderr(&own),
        }
        .or_fail(operation)?;
    }
    Ok(())
}

/// In the child: gives its pipes to the payload's user, so that `/dev/stdout` can be opened by a user other than root.
pub(crate) fn own_pipes(uid: u32) {
    if uid == 0 {
        return;
    }
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        // A FIFO that has a name is a file of the host's, whose owner is nobody's to change; none is handed on.
        if rustix::fs::fstat(fd).is_ok_and(|stat| is_pipe(fd, &stat)) {
            // A convenience: where it is not allowed the descriptors themselves still work.
            let _ = rustix::fs::fchown(fd, Some(rustix::process::Uid::from_raw(uid)), None);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_pipes_and_shared_devices_are_handed_on() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        for fd in [null(), writer, reader] {
            assert!(open(StdioEnd::Fd(fd), 1).is_ok());
        }
        let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let folder = OwnedFd::from(File::open("/").unwrap());
        let socket = OwnedFd::from(UnixStream::pair().unwrap().0);
        let terminal = OwnedFd::from(File::open("/dev/ptmx").unwrap());
        for fd in [file(), memory, folder, socket, terminal] {
            assert!(open(StdioEnd::Fd(fd), 1).is_err());
        }
    }

    #[test]
    fn pipes_that_do_not_block_are_copied() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(is_handed_pipe(writer.as_fd()) && is_handed_pipe(reader.as_fd()));
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        assert!(!is_handed_pipe(writer.as_fd()) && is_handed_pipe(reader.as_fd()));
    }
}
