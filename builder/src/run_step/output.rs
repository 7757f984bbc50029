//! The output of a RUN step: lines to events, and the last of them for the error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rimg_runner::Running;
use rustix::process::{Signal, pidfd_send_signal};

use crate::engine::Build;
use crate::events::{Event, OutputStream, StepId};

/// Lines that an error shows.
const LAST_LINES_MAX: usize = 20;

/// Longest line that is told as one: progress bars and binary output must not fill memory.
const LINE_BYTES_MAX: usize = 16 << 10;

/// How often a running step looks whether it is to go on.
const STOP_CHECK: Duration = Duration::from_millis(50);

/// Tells the output until it ends; returns the last lines. A failing sibling stage or an interrupt ends the process.
pub(super) fn follow(build: &Build<'_>, id: StepId, running: &mut Running) -> Vec<String> {
    let last = Mutex::new(VecDeque::new());
    let done = AtomicBool::new(false);
    let (stdout, stderr) = (running.stdout.take(), running.stderr.take());
    let pidfd = running.pidfd();
    std::thread::scope(|scope| {
        let tell = |stream, piece: Piece<'_>| {
            let line = match piece {
                Piece::Line(line) => String::from_utf8_lossy(line).into_owned(),
                Piece::Overwritten(line) => {
                    let line = String::from_utf8_lossy(line).into_owned();
                    return (build.events)(Event::StepProgress { id, line });
                }
            };
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.len() == LAST_LINES_MAX {
                last.pop_front();
            }
            last.push_back(line.clone());
            drop(last);
            (build.events)(Event::StepOutput { id, stream, line });
        };
        let readers = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)]
            .map(|(stream, pipe)| scope.spawn(move || read_lines(pipe, &|piece| tell(stream, piece))));
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if build.check_stopped().is_err() {
                    // A process that has just ended by itself is no error.
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                    return;
                }
                std::thread::park_timeout(STOP_CHECK);
            }
        });
        for reader in readers {
            // Reading neither fails nor panics; a panic of the event sink is passed on by the scope.
            let _ = reader.join();
        }
        done.store(true, Ordering::Relaxed);
        // Without this every step would end with a wait for the watcher's next look.
        watcher.thread().unpark();
    });
    last.into_inner().unwrap_or_else(PoisonError::into_inner).into()
}

/// Reads a pipe to its end and cuts it into lines.
fn read_lines(pipe: Option<File>, tell: &dyn Fn(Piece<'_>)) {
    let Some(mut pipe) = pipe else { return };
    let mut chunk = vec![0; 8192];
    let mut lines = Lines::default();
    loop {
        match pipe.read(&mut chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
            Ok(length) => lines.feed(&chunk[..length], tell),
        }
    }
    lines.end(tell);
}

/// A piece of output.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    /// A line that stands.
    Line(&'a [u8]),
    /// A line that is going to be overwritten.
    Overwritten(&'a [u8]),
}

/// Output on its way to lines.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    /// A carriage return came last. What follows overwrites the line, unless it is the line's end.
    returned: bool,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], tell: &dyn Fn(Piece<'_>)) {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    tell(Piece::Line(&self.line));
                    self.clear();
                }
                b'\r' => {
                    if !self.returned && !self.line.is_empty() {
                        tell(Piece::Overwritten(&self.line));
                    }
                    self.returned = true;
                }
                byte => {
                    if self.returned {
                        self.clear();
                    }
                    self.line.push(byte);
                    if self.line.len() == LINE_BYTES_MAX {
                        tell(Piece::Line(&self.line));
                        self.clear();
                    }
                }
            }
        }
    }

    fn end(&mut self, tell: &dyn Fn(Piece<'_>)) {
        if !self.line.is_empty() {
            tell(Piece::Line(&self.line));
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.line.clear();
        self.returned = false;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Lines as they are, overwritten ones with a `~`.
    fn pieces(chunks: &[&str]) -> Vec<String> {
        let told = RefCell::new(Vec::new());
        let tell = |piece: Piece<'_>| {
            let (mark, bytes) = match piece {
                Piece::Line(bytes) => ("", bytes),
                Piece::Overwritten(bytes) => ("~", bytes),
            };
            told.borrow_mut().push(format!("{mark}{}", String::from_utf8_lossy(bytes)));
        };
        let mut lines = Lines::default();
        chunks.iter().for_each(|chunk| lines.feed(chunk.as_bytes(), &tell));
        lines.end(&tell);
        told.into_inner()
    }

    #[test]
    fn output_becomes_lines() {
        let table: [(&[&str], &[&str]); 8] = [
            (&["a\nb\n\nc"], &["a", "b", "", "c"]),
            (&["a\r\nb\r\n"], &["~a", "a", "~b", "b"]),
            (&["1%\r2%\r3%\n"], &["~1%", "~2%", "3%"]),
            (&["1%\r", "2%\r", "\n"], &["~1%", "~2%", "2%"]),
            (&["\r1%\r2%"], &["~1%", "2%"]),
            (&["a\r\r\nb"], &["~a", "a", "b"]),
            (&["\r\n"], &[""]),
            (&[], &[]),
        ];
        for (chunks, expected) in table {
            assert_eq!(pieces(chunks), expected, "{chunks:?}");
        }
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        assert_eq!(pieces(&[&long]).iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES_MAX, 1]);
    }
}
